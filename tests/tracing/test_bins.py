from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import (
    FlopsSensitiveBins,
    SingleChannels,
    SubNetwork,
    UniformBins,
    WidthGroup,
    build_space,
    count_macs,
    rebin,
    slice_model,
)
from nni_cafenet.tracing.bins import cut_bins
from tests.built import built, some_subnetworks
from tests.models import NETWORKS, example, make


class Chain(nn.Module):
    """Convolutions and a linear layer alone, so that equation 6 is all there is to count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(12, 40, 3, stride=2, padding=1, bias=False)
        self.conv3 = nn.Conv2d(40, 64, 1, bias=False)
        self.conv4 = nn.Conv2d(64, 16, 3, stride=6, padding=1, bias=False)
        self.fc = nn.Linear(16, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(layer(x))
        return self.fc(x.flatten(1))


# (inputs, outputs, positions, kernel positions) of each layer at 12 pixels
LAYERS = [(3, 12, 144, 9), (12, 40, 36, 9), (40, 64, 36, 1), (64, 16, 1, 9), (16, 5, 1, 1)]


def flops(inputs: int, outputs: int, layer: int) -> int:
    """Equation 6."""
    return inputs * outputs * LAYERS[layer][2] * LAYERS[layer][3]


def sensitivities() -> list[int]:
    """Equation 7: what one channel costs, as an output of its producer and an input of its consumer."""
    return [flops(LAYERS[i][0], 1, i) + flops(1, LAYERS[i + 1][1], i + 1) for i in range(len(LAYERS) - 1)]


@pytest.mark.parametrize("beta", [1, 2, 0.5, 3.3])
def test_flops_sensitive_bins_follow_equation_9(beta: float) -> None:
    space = build_space(make(Chain), example(), min_bin=beta)
    assert [group.name for group in space.groups] == ["conv1", "conv2", "conv3", "conv4"]
    assert space.cost.macs_per_unit().tolist() == sensitivities()
    most = max(sensitivities())
    wanted = [max(1, round(beta * most / own)) for own in sensitivities()]
    found = [bins.size for bins in space.bins]
    assert found == [min(size, group.channels) for size, group in zip(wanted, space.groups, strict=True)]


def test_the_most_sensitive_group_has_bins_of_one_channel() -> None:
    space = build_space(make(Chain), example())
    sizes = [bins.size for bins in space.bins]
    assert sizes[sensitivities().index(max(sensitivities()))] == 1
    assert max(sizes) > 1


def test_flops_sensitive_bins_cost_about_the_same() -> None:
    space = build_space(make(Chain), example(), min_bin=2)
    costs = [own * bins.size for own, bins in zip(sensitivities(), space.bins, strict=True) if bins.count > 1]
    assert len(costs) > 2
    assert max(costs) / min(costs) < 1.5


def test_sensitivities_of_tied_channels_are_sums_over_all_their_layers() -> None:
    """The residual group of tests/models.py: its producers and consumers, batch norms counted as fvcore does."""
    _, space = built("residual")
    stem, half = 12 * 12, 6 * 6
    producers = 3 * stem * 9 + 10 * stem * 9
    consumers = 10 * stem * 9 + 12 * half * 9 + 16 * half
    norms = 2 * (2 * stem)
    assert space.cost.macs_per_unit()[0] == producers + consumers + norms


@pytest.mark.parametrize("count", [1, 2, 3, 8, 100])
def test_uniform_bins_cut_every_group_into_as_many(count: int) -> None:
    space = build_space(make(Chain), example(), bins=UniformBins(count))
    for group, bins in zip(space.groups, space.bins, strict=True):
        size = max(1, group.channels // count)
        assert bins.size == size
        assert bins.count == -(-group.channels // size)


def test_single_channels_are_bins_of_one_unit() -> None:
    _, space = built("grouped")
    single = rebin(space, SingleChannels())
    assert [bins.size for bins in single.bins] == [group.unit for group in single.groups]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rebinned_space_has_exact_costs(name: str) -> None:
    model, space = built(name)
    other = rebin(space, UniformBins(3), min_channels=2)
    assert other.groups == space.groups
    assert other.cost.macs(other.largest) == space.cost.macs(space.largest)
    for sub in some_subnetworks(other, 2):
        slim = slice_model(model, other, sub)
        assert other.cost.macs(sub.widths) == count_macs(slim, example())
        assert other.cost.params(sub.widths) == sum(parameter.numel() for parameter in slim.parameters())


def test_rebinning_as_it_was_changes_nothing() -> None:
    _, space = built("residual")
    assert rebin(rebin(space, UniformBins(2)), FlopsSensitiveBins()).fingerprint() == space.fingerprint()


def test_a_remainder_is_always_kept_so_that_a_width_has_one_cost() -> None:
    model, _ = built("residual")
    space = build_space(model, example(), bins=UniformBins(3))
    ragged = [bins for bins in space.bins if bins.first_is_kept]
    assert ragged
    for sub in some_subnetworks(space, 10):
        assert all(kept[0] == 0 for kept, bins in zip(sub.kept, space.bins, strict=True) if bins.first_is_kept)
        assert count_macs(slice_model(model, space, sub), example()) == space.cost.macs(sub.widths)


def test_bins_are_rounded_to_units_and_multiples() -> None:
    groups = [WidthGroup("a", 48, unit=6), WidthGroup("b", 48), WidthGroup("c", 48)]
    bins = cut_bins(groups, [1.0, 2.0, 1.0], FlopsSensitiveBins(7), round_to=4)
    assert [cut.size for cut in bins] == [12, 8, 16]
    bins = cut_bins(groups, [1.0, 1.0, 1.0], FlopsSensitiveBins(1), min_channels=13)
    assert [cut.edges[1] for cut in bins] == [18, 13, 13]


def test_a_group_that_costs_nothing_is_one_bin() -> None:
    bins = cut_bins([WidthGroup("a", 8), WidthGroup("b", 8)], [0.0, 5.0], FlopsSensitiveBins())
    assert [cut.count for cut in bins] == [1, 8]


def test_another_rule_is_any_object_with_sizes() -> None:
    class Pairs:
        def sizes(self, groups: list[WidthGroup], sensitivities: list[float]) -> list[float]:
            assert len(groups) == len(sensitivities)
            return [2.0] * len(groups)

    space = build_space(make(Chain), example(), bins=Pairs())
    assert {bins.size for bins in space.bins} == {2}


def test_broken_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="min_bin must be above 0, but got 0"):
        FlopsSensitiveBins(0)
    with pytest.raises(ValueError, match="count must be at least 1, but got 0"):
        UniformBins(0)


def test_the_full_sub_network_of_every_binning_is_the_model_itself() -> None:
    model, space = built("concat")
    model.eval()
    for rule in (UniformBins(2), SingleChannels(), FlopsSensitiveBins(4)):
        other = rebin(space, rule)
        slim = slice_model(model, other, SubNetwork.fixed(other.largest))
        assert torch.equal(slim(example()), model(example()))
