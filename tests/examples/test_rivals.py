"""What other people's pruners choose is a sub-network within the budget, and depends on the trained weights."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from nni_cafenet import Budget, SearchSpace, SingleChannels, build_space, count_macs, cross_entropy, rebin, slice_model
from nni_cafenet.cost import Limits
from nni_cafenet.demo import IMAGE_SHAPE, DigitsNet, digits
from nni_cafenet.layers import axis_tensors
from tests.snapshots import Snapshot

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
EXAMPLE = torch.zeros(IMAGE_SHAPE)
KINDS = ("magnitude", "slimming", "taylor", "hessian", "random")
RIVALS = [f"tp-{kind}-{where}" for kind in KINDS for where in ("global", "local")]
RIVALS += [f"nni-{kind}" for kind in ("l1", "fpgm", "slim", "taylor")]
FASTNAS = pytest.param(
    "modelopt-fastnas",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("modelopt") is None or importlib.util.find_spec("torchprofile") is None,
        reason="pip install nni_cafenet[rivals]",
    ),
)
Batches = list[tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def rivals() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)  # as it is for a script
        rivals = importlib.import_module("rivals")
        quick = {"HESSIAN_IMAGES": 8, "GRADIENT_BATCHES": 1, "LARGEST_STEP": 0.05, "STALE": 0.1, "SLIM_STEPS": 60}
        quick |= {"FASTNAS_BATCHES": 2}
        for name, less in quick.items():
            patch.setattr(rivals, name, less)
        yield rivals
    sys.modules.pop("rivals", None)


@pytest.fixture(scope="module")
def batches() -> Batches:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [tuple(batch) for batch in digits(batch_size=32).train][:12]


@pytest.fixture(scope="module")
def trained(batches: Batches) -> tuple[nn.Module, SearchSpace]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitsNet(width=12)
    space = rebin(build_space(model, EXAMPLE), SingleChannels())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in batches * 3:
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()
    return model, space


@pytest.mark.parametrize("name", [*RIVALS, FASTNAS])
def test_a_rival_meets_the_budget_and_leaves_all_as_it_was(
    rivals: ModuleType, trained: tuple[nn.Module, SearchSpace], batches: Batches, name: str
) -> None:
    model, space = trained
    model.train()
    model.head.weight.requires_grad_(False)
    limits = space.limits(Budget(max_macs="25%"))
    before = Snapshot(model)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tobytes()
    found = rivals.choose(name, model, space, limits, batches, example=EXAMPLE, seed=1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == states[1:]
    before.assert_unchanged()
    assert 0.85 * limits.max_macs < space.cost.macs(found.widths) <= limits.max_macs
    assert count_macs(slice_model(model, space, found), EXAMPLE) == space.cost.macs(found.widths)
    if name != "modelopt-fastnas":  # which takes half a minute
        torch.manual_seed(5)
        assert rivals.choose(name, model, space, limits, batches, example=EXAMPLE, seed=1) == found
    if "random" in name:
        assert rivals.choose(name, model, space, limits, batches, example=EXAMPLE, seed=2) != found


@pytest.mark.parametrize("name", [name for name in RIVALS if "random" not in name])
def test_channels_that_do_nothing_go_first(
    rivals: ModuleType, trained: tuple[nn.Module, SearchSpace], batches: Batches, name: str
) -> None:
    model, space = copy.deepcopy(trained[0]), trained[1]
    dead = [1]
    with torch.no_grad():
        for axis in space.axes:
            layer = model.get_submodule(axis.layer)
            for here, units in axis.by_group.values():
                places = torch.from_numpy(here[np.isin(units, dead)])
                for own, dim in axis_tensors(layer, axis.side):
                    tensor = getattr(layer, own)
                    if own in ("weight", "bias"):
                        tensor.index_copy_(dim, places, 1e-4 * tensor.index_select(dim, places))
    limits = space.limits(Budget(max_macs="45%"))
    found = rivals.choose(name, model, space, limits, batches, example=EXAMPLE, seed=0)
    left = {group.name: set(dead) & set(kept) for group, kept in zip(space.groups, found.kept, strict=True)}
    assert not any(left.values()), left


def test_local_rivals_take_the_same_share_of_every_layer_and_global_ones_do_not(
    rivals: ModuleType, trained: tuple[nn.Module, SearchSpace], batches: Batches
) -> None:
    model, space = trained
    limits = space.limits(Budget(max_macs="25%"))
    spread = {}
    for name in ("tp-magnitude-local", "nni-l1", "tp-magnitude-global", "nni-taylor"):
        found = rivals.choose(name, model, space, limits, batches, example=EXAMPLE, seed=0)
        spread[name] = np.ptp([len(kept) / bins.count for kept, bins in zip(found.kept, space.bins, strict=True)])
    assert spread["tp-magnitude-local"] < 0.15 and spread["nni-l1"] < 0.15
    assert spread["tp-magnitude-global"] > 0.2 and spread["nni-taylor"] > 0.2


def test_squares_of_gradients_are_those_of_single_images(rivals: ModuleType, batches: Batches) -> None:
    model = DigitsNet(width=4).eval()
    images, labels = batches[0][0][:5], batches[0][1][:5]
    rivals._take_gradients(model, [(images, labels)], squared=True)
    found = model.head.weight.grad
    expected = torch.zeros_like(found)
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        cross_entropy(model, (image[None], label[None])).backward()
        expected += model.head.weight.grad**2 / len(images)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["tp-magnitude-global", "tp-random-local", "nni-fpgm", "nni-taylor"])
def test_a_budget_out_of_reach_is_said_with_the_least_that_was_reached(
    rivals: ModuleType, trained: tuple[nn.Module, SearchSpace], batches: Batches, name: str
) -> None:
    model, space = trained
    with pytest.raises(rivals.Unreachable, match=f"^{name} comes down to [0-9,]+ MACs, and the budget is 1$") as caught:
        rivals.choose(name, model, space, Limits(max_macs=1), batches, example=EXAMPLE, seed=0)
    assert space.cost.macs(space.smallest) <= caught.value.least < 0.05 * space.cost.macs(space.largest)


@pytest.mark.parametrize("name", ["tp-slimming-global", "nni-slim"])
def test_slimming_needs_a_norm(rivals: ModuleType, batches: Batches, name: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    space = rebin(build_space(model, EXAMPLE), SingleChannels())
    with pytest.raises(rivals.Unreachable) as caught:
        rivals.choose(name, model, space, space.limits(Budget(max_macs="50%")), batches, example=EXAMPLE, seed=0)
    assert caught.value.least == space.cost.macs(space.largest)


def test_what_is_asked_for_wrongly_is_said(
    rivals: ModuleType, trained: tuple[nn.Module, SearchSpace], batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, space = trained
    limits = space.limits(Budget(max_macs="50%"))
    with pytest.raises(ValueError, match="no rival 'tp-magnitud-local'; the nearest: tp-magnitude-local"):
        rivals.choose("tp-magnitud-local", model, space, limits, batches, example=EXAMPLE, seed=0)
    with pytest.raises(ValueError, match="give limits with max_macs"):
        rivals.choose("nni-l1", model, space, Limits(max_params=10), batches, example=EXAMPLE, seed=0)
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    for name, packages in {
        "tp-random-local": "torch-pruning", "nni-l1": "'nni>=3.0,<4'", "modelopt-fastnas": "nvidia-modelopt",
    }.items():  # fmt: skip
        with pytest.raises(ModuleNotFoundError, match=f"{name} needs .*: pip install {packages}"):
            rivals.choose(name, model, space, limits, batches, example=EXAMPLE, seed=0)


def test_the_names_are_those_that_are_tested(rivals: ModuleType) -> None:
    assert set(rivals.RIVALS) == {*RIVALS, "modelopt-fastnas"}
