"""Models of all kinds: precisions, hooks, buffers, sound and video, lists of images, pretrained weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from nni_cafenet import (
    FullyFree,
    SearchSpace,
    SubNetwork,
    Supernet,
    UnsupportedModel,
    build_space,
    count_macs,
    slice_model,
)
from nni_cafenet.tracing.example import Example, output_tensors
from tests import models
from tests.built import built, some_subnetworks
from tests.models import CLASSES, NETWORKS, Plain, Residual, conv_bn, example, make
from tests.snapshots import Snapshot


def names(space: SearchSpace) -> list[str]:
    return [group.name for group in space.groups]


def reasons(space: SearchSpace) -> dict[str, str]:
    return {part.layer: part.reason for part in space.frozen}


def members(space: SearchSpace, name: str) -> set[str]:
    return set(next(group for group in space.groups if group.name == name).members)


def assert_slices_are_right(model: nn.Module, inputs: Any, *, rtol: float = 1e-5, atol: float = 1e-6) -> SearchSpace:
    """The space, after comparing some slim networks with the running supernet and with what they should cost."""
    model.eval()
    before = Snapshot(model)
    space = build_space(model, inputs)
    before.assert_unchanged()
    supernet, rng = Supernet(model, space), np.random.default_rng(0)
    subs = [SubNetwork.fixed(space.smallest), *(space.sample(rng, sharing=FullyFree()) for _ in range(2))]
    for sub in subs:
        slim = slice_model(model, space, sub)
        assert space.cost.macs(sub.widths) == count_macs(slim, inputs)
        assert space.cost.params(sub.widths) == sum(parameter.numel() for parameter in slim.parameters())
        with torch.no_grad(), supernet.running(sub):
            expected = output_tensors(Example(inputs).run(model))
        with torch.no_grad():
            found = output_tensors(Example(inputs).run(slim))
        assert expected
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)
    return space


# precisions


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("factory", [Plain, Residual])
def test_a_model_of_another_precision_has_the_same_space_and_stays_in_it(
    factory: type[nn.Module], dtype: torch.dtype
) -> None:
    model, images = make(factory).to(dtype), example().to(dtype)
    space = assert_slices_are_right(model, images, rtol=1e-2, atol=1e-2)
    assert space.fingerprint() == build_space(make(factory), example()).fingerprint()
    slim = slice_model(model, space, SubNetwork.fixed(space.smallest))
    floats = [tensor for tensor in slim.state_dict().values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {dtype}
    assert slim(images).dtype == dtype


class Projected(nn.Module):
    """Makes a tensor of the default dtype and multiplies it with its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.position, self.fc = conv_bn(3, 8), nn.Linear(4, 8), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.stem(x)).mean((2, 3)) + self.position(torch.linspace(0, 1, 4)))


def test_tensors_that_a_forward_makes_itself_do_not_get_in_the_way_of_the_oracle() -> None:
    space = assert_slices_are_right(make(Projected), example())
    assert members(space, "stem.0") == {"stem.0.out", "stem.1.out", "position.out", "fc.in"}
    assert torch.get_default_dtype() == torch.float32


def test_a_forward_that_casts_to_a_fixed_precision_is_refused_with_the_remedy() -> None:
    class Casting(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.float())

    model = make(Casting)
    before = Snapshot(model)
    with pytest.raises(UnsupportedModel, match=r"forward of Casting fails in float64, .*: let it cast to the dtype of"):
        build_space(model, example())
    before.assert_unchanged()
    assert torch.get_default_dtype() == torch.float32


# what forwards do besides


class Checkpointed(Residual):
    """Recomputes its blocks in the backward pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = checkpoint(lambda x: F.relu(x + self.outer1(F.relu(self.inner1(x)))), x, use_reentrant=False)
        x = checkpoint(lambda x: F.relu(self.project(x) + self.outer2(F.relu(self.inner2(x)))), x, use_reentrant=False)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def test_gradient_checkpointing_changes_nothing() -> None:
    space = assert_slices_are_right(make(Checkpointed), example())
    assert space.fingerprint() == built("residual")[1].fingerprint()


class Dropping(nn.Module):
    """Leaves out whole branches at random in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = conv_bn(3, 8), conv_bn(8, 10), conv_bn(10, 8)
        self.depth, self.fc = StochasticDepth(0.5, "row"), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.depth(self.outer(F.relu(self.inner(x)))))
        return self.fc(x.mean((2, 3)))


def test_branches_that_train_mode_drops_at_random_are_followed() -> None:
    model = make(Dropping)
    space = assert_slices_are_right(model, example())
    assert names(space) == ["stem.0", "inner.0"]
    assert {"outer.0.out", "outer.1.out", "fc.in"} <= members(space, "stem.0")
    for sub in some_subnetworks(space):
        assert slice_model(model.train(), space, sub)(example()).shape == (2, CLASSES)


class Scaled(nn.Module):
    """A fixed factor for each channel, kept in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.fc = conv_bn(3, 8), conv_bn(8, 10), nn.Linear(10, CLASSES)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8))
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))  # of the images, whose channels stay

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x - self.mean) * self.scale.view(1, -1, 1, 1)
        return self.fc(F.relu(self.head(F.relu(x))).mean((2, 3)))


def test_a_buffer_along_channels_is_cut_with_them() -> None:
    model = make(Scaled)
    space = assert_slices_are_right(model, example())
    assert "scale.dim0" in members(space, "stem.0")
    sub = space.sample(np.random.default_rng(1), sharing=FullyFree())
    slim = slice_model(model, space, sub)
    kept = space.positions(sub)["stem.0", "out"]
    assert torch.equal(slim.scale, model.scale[kept])
    assert torch.equal(slim.mean, model.mean)


# hooks


def test_hooks_run_on_the_copy_and_never_on_the_caller_s_model() -> None:
    model = make(Plain)
    called: list[tuple[str, nn.Module]] = []
    model.conv2.register_forward_hook(lambda module, inputs, output: called.append(("after", module)))
    model.conv2.register_forward_pre_hook(lambda module, inputs: called.append(("before", module)))
    model.register_forward_hook(lambda module, inputs, output: called.append(("after all", module)))
    before = Snapshot(model)
    space = build_space(model, example())
    before.assert_unchanged()
    assert called
    assert not any(module in (model, model.conv2) for _, module in called)
    slim = slice_model(model, space, SubNetwork.fixed(space.smallest))
    called.clear()
    slim(example())
    assert called == [("before", slim.conv2), ("after", slim.conv2), ("after all", slim)]


def test_a_hook_that_changes_an_output_is_followed() -> None:
    model = make(Plain)
    model.conv2.register_forward_hook(lambda module, inputs, output: output.flip(1))
    space = assert_slices_are_right(model, example())
    axis = next(axis for axis in space.axes if str(axis) == "bn2.out")
    assert axis.units.tolist() == list(range(12))[::-1]


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_a_hook_computes_is_frozen(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = make(Plain)
    norm(model.conv2)
    with torch.no_grad():  # else the weight belongs to a graph
        model(example())
    space = assert_slices_are_right(model, example())
    assert names(space) == ["conv3"]  # neither what it gives nor what it reads
    assert reasons(space)["conv2"] == "its weight is computed by a parametrisation or a hook"


def test_a_weight_that_a_hook_left_in_a_graph_is_refused() -> None:
    model = make(Plain)
    nn.utils.weight_norm(model.conv2)
    before = Snapshot(model)
    with pytest.raises(UnsupportedModel, match=r"Plain cannot be copied \(RuntimeError: .*weight_norm"):
        build_space(model, example())
    before.assert_unchanged()


# other shapes of data


def test_a_network_for_sound_is_searched() -> None:
    sound = nn.Sequential(
        nn.Conv1d(2, 8, 9, stride=4), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(8, 8, 3, groups=8),
        nn.BatchNorm1d(8), nn.Conv1d(8, 12, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(12, CLASSES),
    )  # fmt: skip
    space = assert_slices_are_right(make(lambda: sound), torch.randn(2, 2, 100))
    assert names(space) == ["0", "6"]
    assert {"0.out", "4.out", "5.out", "6.in"} <= members(space, "0")


class Video(nn.Module):
    """Space and time convolved in turn, as in R(2+1)D, with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1), bias=False), nn.BatchNorm3d(8)
        self.space, self.time = (
            nn.Conv3d(8, 10, (1, 3, 3), padding=(0, 1, 1)),
            nn.Conv3d(10, 8, (3, 1, 1), padding=(1, 0, 0)),
        )
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.time(F.relu(self.space(x))))
        return self.fc(F.adaptive_avg_pool3d(F.max_pool3d(x, 2), 1).flatten(1))


def test_a_network_for_video_is_searched() -> None:
    space = assert_slices_are_right(make(Video), torch.randn(2, 3, 4, 8, 8))
    assert names(space) == ["stem", "space"]
    assert members(space, "stem") == {"stem.out", "norm.out", "space.in", "time.out", "fc.in"}


class TwoSizes(nn.Module):
    """Takes a list of images of any sizes, as detectors do, and returns a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.fc = conv_bn(3, 8), conv_bn(8, 10), nn.Linear(10, CLASSES)

    def forward(self, images: list[torch.Tensor]) -> Any:
        features = [F.relu(self.body(F.relu(self.stem(image[None])))).mean((2, 3)) for image in images]
        return Scores(self.fc(torch.cat(features)), len(images))


@dataclass
class Scores:
    classes: torch.Tensor
    count: int


def test_a_list_of_images_of_several_sizes_and_a_dataclass_as_output() -> None:
    images = [torch.randn(3, 12, 10), torch.randn(3, 8, 9)]
    model = make(TwoSizes).eval()
    space = build_space(model, (images,))
    assert names(space) == ["stem.0", "body.0"]
    with torch.no_grad():
        for sub in some_subnetworks(space):
            slim = slice_model(model, space, sub)
            with Supernet(model, space).running(sub):
                expected = model(images)
            assert slim(images).count == 2
            torch.testing.assert_close(slim(images).classes, expected.classes, rtol=1e-5, atol=1e-6)
            # per image: of the first one
            assert space.cost.macs(sub.widths) == count_macs(slim, (images,)) == count_macs(slim, (images[:1],))


# modules in several places


def test_a_module_at_two_places_of_a_sequence_has_one_width() -> None:
    shared, act = conv_bn(8, 8), nn.ReLU()
    model = make(lambda: nn.Sequential(conv_bn(3, 8), act, shared, act, conv_bn(8, 8), act, shared, nn.Flatten(),
                                       nn.Linear(8 * 144, CLASSES)))  # fmt: skip
    space = assert_slices_are_right(model, example())
    assert members(space, "0.0") == {"0.0.out", "0.1.out", "2.0.in", "4.0.out", "4.1.out"}
    assert members(space, "2.0") == {"2.0.out", "2.1.out", "4.0.in", "8.in"}
    slim = slice_model(model, space, SubNetwork.fixed(space.smallest))
    assert slim[2] is slim[6]


# pretrained weights


@pytest.mark.parametrize("name", NETWORKS)
def test_at_full_width_a_slim_network_is_the_model_bit_by_bit(name: str) -> None:
    model, space = built(name)
    slim = slice_model(model.eval(), space, SubNetwork.fixed(space.largest))
    weights, slim_weights = model.state_dict(), slim.state_dict()
    assert list(slim_weights) == list(weights)
    for key, tensor in weights.items():
        assert torch.equal(slim_weights[key], tensor), key
        assert slim_weights[key].dtype == tensor.dtype, key
        assert tensor.numel() == 0 or slim_weights[key].data_ptr() != tensor.data_ptr(), key
    with torch.no_grad():
        inputs = (example(), torch.randn(2, 4)) if isinstance(model, models.TwoInputs) else (example(),)
        assert torch.equal(slim(*inputs), model(*inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_slim_network_s_weights_load_into_another_one_of_the_same_widths(name: str) -> None:
    model, space = built(name)
    sub = space.sample(np.random.default_rng(3))
    slim = slice_model(model.eval(), space, sub)
    assert list(slim.state_dict()) == list(model.state_dict())
    other = slice_model(make(NETWORKS[name], seed=5).eval(), space, sub)
    with torch.no_grad():
        assert not torch.equal(other(example()), slim(example()))
        other.load_state_dict(copy.deepcopy(slim.state_dict()))
        assert torch.equal(other(example()), slim(example()))


def test_weights_of_the_fixed_pattern_are_the_first_channels_of_the_pretrained_ones() -> None:
    model, space = built("plain")
    sub = space.sample(np.random.default_rng(0))
    slim = slice_model(model, space, sub)
    channels = space.channels(sub.widths)
    first, second = channels["conv1"], channels["conv2"]
    assert torch.equal(slim.conv2.weight, model.conv2.weight[:second, :first])
    assert torch.equal(slim.bn2.running_var, model.bn2.running_var[:second])
