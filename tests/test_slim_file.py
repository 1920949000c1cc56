"""Slim files: what was saved is what is loaded, and a damaged or foreign file is a clear error."""

import json

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from nni_cafenet import InvalidSlimFile, LocallyFree, build_space, load_slim, save_slim, slice_model
from nni_cafenet.demo import IMAGE_SHAPE, DigitsNet
from nni_cafenet.tracing.verify import randomise


@pytest.fixture(scope="module")
def network():
    return DigitsNet()


@pytest.fixture
def saved(network, tmp_path):
    space = build_space(network, torch.zeros(IMAGE_SHAPE))
    sub = space.sample(np.random.default_rng(0), sharing=LocallyFree(offset=1))
    slim = slice_model(network, space, sub)
    randomise(slim, seed=0)
    path = tmp_path / "slim.safetensors"
    save_slim(slim, space, sub, path)
    return slim, space, sub, path


def test_loaded_network_equals_the_saved_one(saved):
    slim, _, _, path = saved
    loaded = load_slim(path, DigitsNet)
    images = torch.randn(4, *IMAGE_SHAPE[1:])
    assert type(loaded) is DigitsNet
    assert torch.equal(loaded.eval()(images), slim.eval()(images))
    assert list(loaded.state_dict()) == list(slim.state_dict())


def test_third_party_network_with_factory_arguments_comes_back(tmp_path):
    model = torchvision.models.mobilenet_v2(num_classes=10)
    example = torch.randn(2, 3, 32, 32)
    space = build_space(model, example)
    sub = space.sample(np.random.default_rng(1), sharing=LocallyFree(offset=1))
    slim = slice_model(model, space, sub)
    randomise(slim, seed=0)
    save_slim(slim, space, sub, tmp_path / "slim.safetensors")
    loaded = load_slim(tmp_path / "slim.safetensors", torchvision.models.mobilenet_v2, num_classes=10)
    assert torch.equal(loaded.eval()(example), slim.eval()(example))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file_is_refused(saved, share):
    path = saved[-1]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidSlimFile, match="truncated or no safetensors file"):
        load_slim(path, DigitsNet)


def test_pickled_file_is_refused_without_running_it(network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    with pytest.raises(InvalidSlimFile, match="no safetensors file"):
        load_slim(tmp_path / "model.pt", DigitsNet)


def test_foreign_safetensors_file_is_refused(network, tmp_path):
    save_file(network.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(InvalidSlimFile, match="save_slim did not write it"):
        load_slim(tmp_path / "other.safetensors", DigitsNet)


def test_another_version_is_refused(network, tmp_path):
    metadata = {"format": "nni_cafenet.slim", "version": "99", "positions": json.dumps([])}
    save_file(network.state_dict(), tmp_path / "new.safetensors", metadata)
    with pytest.raises(InvalidSlimFile, match="version 99"):
        load_slim(tmp_path / "new.safetensors", DigitsNet)


@pytest.mark.parametrize(
    "factory",
    [lambda: DigitsNet(width=4), lambda: DigitsNet(classes=7), lambda: nn.Linear(3, 3)],
)
def test_file_that_does_not_fit_the_factory_is_refused(saved, factory):
    with pytest.raises(InvalidSlimFile, match="does not fit what the factory made"):
        load_slim(saved[-1], factory)


def test_missing_file_is_an_ordinary_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        load_slim(tmp_path / "nothing.safetensors", DigitsNet)


def test_saving_a_network_of_other_widths_leaves_the_file_as_it_was(saved, network):
    _, space, sub, path = saved
    before = path.read_bytes()
    with pytest.raises(ValueError, match="pass the slim model with the space and the sub-network"):
        save_slim(network, space, sub, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
