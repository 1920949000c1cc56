from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from nni_cafenet import (
    SearchSpace,
    SingleChannels,
    SubNetwork,
    Supernet,
    UnsupportedModel,
    Widths,
    build_space,
    count_macs,
    rebin,
    slice_model,
    widen,
)
from nni_cafenet.export.slicing import slice_layers
from nni_cafenet.growing import find_growths
from nni_cafenet.layers import memory_format
from nni_cafenet.tracing.verify import randomise
from tests import models
from tests.built import built, some_subnetworks
from tests.models import NETWORKS, SEARCHABLE, conv_bn, example, make
from tests.snapshots import Snapshot

# of a few large units, none come near to 1.5
MACS = {name: 2.0 if name in ("grouped", "group_normed", "weight_normed") else 1.5 for name in NETWORKS}


@cache
def _widened(name: str) -> tuple[nn.Module, SearchSpace]:
    model, _ = built(name)
    wide = widen(model, example(), macs=MACS[name], keep_weights=True, seed=0)
    return wide, rebin(build_space(wide, example()), SingleChannels())


def widened(name: str) -> tuple[nn.Module, SearchSpace]:
    """A network of models.py with its old weights in a wider copy, and the copy's space of single units."""
    wide, space = _widened(name)
    return copy.deepcopy(wide), space


def units(space: SearchSpace) -> list[int]:
    return [group.units for group in space.groups]


def leftmost(space: SearchSpace, narrow: SearchSpace) -> SubNetwork:
    """The sub-network of `space` that has the widths of `narrow`."""
    return SubNetwork.fixed(Widths(tuple(units(narrow))))


def assert_same_values(left: nn.Module, right: nn.Module) -> None:
    ours, theirs = left.state_dict(), right.state_dict()
    assert list(ours) == list(theirs)
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_the_macs_are_those_asked_for(name: str) -> None:
    model, _ = built(name)
    wide, _ = widened(name)
    assert count_macs(wide, example()) / count_macs(model, example()) == pytest.approx(MACS[name], rel=0.02)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_widened_model_has_the_same_groups_with_more_channels(name: str) -> None:
    _, before = built(name)
    wide, space = widened(name)
    assert [group.name for group in space.groups] == [group.name for group in before.groups]
    assert [group.members for group in space.groups] == [group.members for group in before.groups]
    assert [group.unit for group in space.groups] == [group.unit for group in before.groups]
    assert [(part.layer, part.channels) for part in space.frozen] == [
        (part.layer, part.channels) for part in before.frozen
    ]
    assert all(wider >= own for wider, own in zip(units(space), units(before), strict=True))
    assert sum(units(space)) > sum(units(before))
    assert space.cost.macs(space.largest) == count_macs(wide, example())
    assert space.cost.params(space.largest) == sum(parameter.numel() for parameter in wide.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_original_is_the_leftmost_sub_network_of_its_widened_copy(name: str) -> None:
    """Bit for bit, by the widened copy's own groups, which know nothing of how it was made."""
    model, before = built(name)
    wide, space = widened(name)
    slim = slice_model(wide, space, leftmost(space, before))
    assert_same_values(slim, model)
    assert torch.equal(slim.eval()(example()), model.eval()(example()))


@pytest.mark.parametrize("name", NETWORKS)
def test_slicing_back_to_the_old_places_gives_the_original(name: str) -> None:
    model, before = built(name)
    wide, space = widened(name)
    growths = find_growths(before.axes, units(before), units(space))
    slim = slice_layers(wide, {key: growth.places for key, growth in growths.items()})
    assert_same_values(slim, model)


@pytest.mark.parametrize("name", SEARCHABLE)
def test_sub_networks_of_a_widened_model_run_as_they_are_sliced(name: str) -> None:
    wide, space = widened(name)
    wide.eval()
    for sub in some_subnetworks(space, 2):
        slim = slice_model(wide, space, sub)
        assert count_macs(slim, example()) == space.cost.macs(sub.widths)
        with Supernet(wide, space).running(sub) as running:
            torch.testing.assert_close(running(example()), slim(example()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keep_weights", [False, True], ids=["fresh", "kept"])
@pytest.mark.parametrize("name", ["frozen", "norms", "grouped"])
def test_class_keys_modes_and_attributes_are_the_original_s_and_it_is_left_unchanged(
    name: str, keep_weights: bool
) -> None:
    model, _ = built(name)
    model.double().to(memory_format=torch.channels_last)
    next(model.children()).eval()
    model(example().double()).sum().backward()
    before = Snapshot(model)
    state = torch.get_rng_state()
    wide = widen(model, example().double(), macs=MACS[name], keep_weights=keep_weights, seed=0)
    before.assert_unchanged()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(wide) is type(model)
    assert list(wide.state_dict()) == list(model.state_dict())
    assert [module.training for module in wide.modules()] == [module.training for module in model.modules()]
    for ours, theirs in zip(wide.parameters(), model.parameters(), strict=True):
        assert (ours.dtype, ours.device, ours.requires_grad) == (theirs.dtype, theirs.device, theirs.requires_grad)
        assert ours.is_leaf and ours.grad is None and memory_format(ours) == memory_format(theirs)
    originals = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    assert originals.isdisjoint(tensor.data_ptr() for tensor in [*wide.parameters(), *wide.buffers()])


def test_every_layer_is_initialised_by_its_own_reset_parameters() -> None:
    model = make(models.Residual)
    model.fc.weight.data.fill_(7)
    wide = widen(model, example(), seed=0)
    for module in wide.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
            assert (module.running_mean == 0).all() and (module.running_var == 1).all()
        elif isinstance(module, (nn.Conv2d, nn.Linear)):  # uniform within 1 / sqrt(fan in)
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert 0.8 * bound < float(module.weight.detach().abs().max()) <= bound


def test_the_seed_decides_the_fresh_weights() -> None:
    model = make(models.Plain)
    first, again, other = (widen(model, example(), seed=seed) for seed in (0, 0, 1))
    assert_same_values(first, again)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_without_a_seed_torch_s_generator_decides() -> None:
    model = make(models.Plain)
    wide = []
    with torch.random.fork_rng():
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            wide.append(widen(model, example()))
    assert_same_values(wide[0], wide[1])
    assert not torch.equal(wide[0].conv1.weight, wide[2].conv1.weight)


def test_a_widened_model_can_be_widened_trained_and_copied() -> None:
    wide = widen(widen(make(models.Residual), example(), seed=0), example(), seed=0)
    optimizer = torch.optim.SGD(wide.parameters(), lr=0.1)
    before = copy.deepcopy(wide)
    wide(example()).sum().backward()
    optimizer.step()
    assert not torch.equal(before(example()), wide(example()))


def test_channels_become_multiples_of_round_to() -> None:
    model = make(models.Residual)
    wide = widen(model, example(), macs=2, round_to=4)
    assert all(group.channels % 4 == 0 for group in build_space(wide, example()).groups)
    assert count_macs(wide, example()) / count_macs(model, example()) == pytest.approx(2, rel=0.02)
    assert len(build_space(wide, example(), round_to=4).groups) == len(build_space(model, example()).groups)


def test_all_groups_grow_by_about_one_factor() -> None:
    model = torchvision.models.resnet18(num_classes=10)
    images = torch.randn(1, 3, 32, 32)
    wide = widen(model, images, macs=1.5, seed=0)
    before, after = build_space(model, images), build_space(wide, images)
    factors = [wider / own for wider, own in zip(units(after), units(before), strict=True)]
    assert max(factors) - min(factors) < 2 / 64
    assert np.mean(factors) == pytest.approx(math.sqrt(1.5), rel=0.02)
    assert count_macs(wide, images) / count_macs(model, images) == pytest.approx(1.5, rel=0.001)


def test_layers_named_in_ignore_keep_their_channels() -> None:
    wide = widen(make(models.Plain), example(), ignore=["conv2"], seed=0)
    assert wide.conv2.out_channels == 12
    assert wide.conv1.out_channels > 8 and wide.conv3.out_channels > 16


def test_inputs_may_be_several() -> None:
    inputs = {"image": example(), "vector": torch.randn(2, 4)}
    model = make(models.TwoInputs)
    wide = widen(model, inputs, seed=0)
    assert count_macs(wide, inputs) / count_macs(model, inputs) == pytest.approx(1.5, rel=0.02)
    assert wide(**inputs)["classes"].shape == (2, models.CLASSES)


class Forward(nn.Module):
    """Two convolutions, the first of 8 channels, with something done between them."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv_bn(3, 8), conv_bn(8, 16), conv_bn(16, 24)
        self.fc = nn.Linear(24, models.CLASSES)
        self.between = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.between(F.relu(self.stem(x)))
        return self.fc(F.relu(self.head(F.relu(self.body(x)))).mean((2, 3)))


def refuses_more_than_8(x: torch.Tensor) -> torch.Tensor:
    if x.shape[1] > 8:
        raise RuntimeError("8 channels at the most")
    return x


def turns_more_than_8(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1) if x.shape[1] > 8 else x


def multiplies_more_than_8(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.eye(x.shape[-1], dtype=x.dtype) if x.shape[1] > 8 else x


@pytest.mark.parametrize(
    ("between", "reason"),
    [(refuses_more_than_8, "8 channels at the most"), (turns_more_than_8, "does not read its new channels where")],
)
def test_a_group_whose_growth_the_forward_refuses_keeps_its_channels(
    between: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = Forward(between)
    with caplog.at_level(logging.INFO, logger="nni_cafenet.widen"):
        wide = widen(model, example(), seed=0)
    assert wide.stem[0].out_channels == 8
    assert wide.body[0].out_channels > 16 and wide.head[0].out_channels > 24
    assert count_macs(wide, example()) / count_macs(model, example()) == pytest.approx(1.5, rel=0.02)
    assert [record.message.partition(":")[0] for record in caplog.records] == ["stem.0 keeps its 8 channels"]
    assert reason in caplog.text


class Crowded(models.Plain):
    """A forward that bears one wider layer, not both."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.conv1.out_channels > 8 and self.conv2.out_channels > 12:
            raise RuntimeError("too crowded")
        return super().forward(x)


def test_of_groups_that_cannot_grow_together_some_do() -> None:
    wide = widen(make(Crowded), example(), seed=0)
    assert wide.conv1.out_channels > 8 and wide.conv2.out_channels == 12


def test_too_few_layers_that_can_grow_are_an_error_that_names_the_others() -> None:
    model = make(models.Plain)
    with pytest.raises(
        UnsupportedModel, match=r"too few layers can grow for macs=1.5: 1\.\d+ is reached .*conv2 \(name"
    ):
        widen(model, example(), ignore=["conv2", "conv1"])


def test_macs_between_what_whole_channels_can_do_are_an_error_that_names_the_next() -> None:
    model = make(models.Grouped)
    with pytest.raises(ValueError, match=r"macs=1.5 cannot be met within 2% .*near it is macs=(\d\.\d+)") as caught:
        widen(model, example(), macs=1.5)
    near = float(str(caught.value).partition("near it is macs=")[2].partition(":")[0])
    wide = widen(model, example(), macs=near)
    assert count_macs(wide, example()) / count_macs(model, example()) == pytest.approx(near, rel=0.02)


def test_arithmetic_that_changes_beyond_full_width_is_an_error() -> None:
    with pytest.raises(UnsupportedModel, match="not bilinear beyond full width"):
        widen(Forward(multiplies_more_than_8), example())


@pytest.mark.parametrize("macs", [1, 0.5, 1.0, -2, float("nan"), float("inf"), True, "150%", None])
def test_macs_that_are_no_number_above_1_are_refused(macs: Any) -> None:
    with pytest.raises(ValueError, match=r"macs must be a number above 1, .* but got"):
        widen(make(models.Plain), example(), macs=macs)


@pytest.mark.parametrize("round_to", [0, -8, 1.5, True, "8"])
def test_a_round_to_that_is_no_whole_number_is_refused(round_to: Any) -> None:
    with pytest.raises(ValueError, match="round_to must be a whole number of at least 1, but got"):
        widen(make(models.Plain), example(), round_to=round_to)


def test_unknown_names_in_ignore_are_refused() -> None:
    with pytest.raises(ValueError, match="'conv9'"):
        widen(make(models.Plain), example(), ignore=["conv9"])


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(growth_rate=8, block_config=(2, 3), num_init_features=16, num_classes=10)


def convnext() -> nn.Module:
    block = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([block(16, 24, 2), block(24, None, 1)], num_classes=10)


TORCHVISION = {
    "resnet18": torchvision.models.resnet18,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
    "densenet": densenet,
    "convnext": convnext,
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_s_models_are_sub_networks_of_their_widened_copies(name: str) -> None:
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TORCHVISION[name]()
    randomise(model, seed=0)
    model.eval()
    wide = widen(model, images, macs=1.5, keep_weights=True, seed=0)
    assert count_macs(wide, images) / count_macs(model, images) == pytest.approx(1.5, rel=0.02)
    before, space = build_space(model, images), rebin(build_space(wide, images), SingleChannels())
    assert [group.name for group in space.groups] == [group.name for group in before.groups]
    sub = leftmost(space, before)
    assert space.cost.macs(sub.widths) == count_macs(model, images)
    slim = slice_model(wide, space, sub)
    assert_same_values(slim, model)
    assert torch.equal(slim(images), model(images))


def test_a_layer_scale_of_a_constant_stays_constant() -> None:
    wide = widen(convnext(), torch.randn(1, 3, 32, 32), seed=0)
    scales = [parameter for name, parameter in wide.named_parameters() if name.endswith("layer_scale")]
    assert len(scales) == 3
    assert all((scale == 1e-6).all() and len(scale) > 16 for scale in scales)
