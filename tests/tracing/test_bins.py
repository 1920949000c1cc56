from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import (
    Bins,
    FlopsSensitiveBins,
    SearchSpace,
    SingleChannels,
    SubNetwork,
    UniformBins,
    WidthGroup,
    build_space,
    count_macs,
    rebin,
    slice_model,
)
from nni_cafenet.tracing.bins import LayerBins, cut_bins
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


# other bins for some layers


def sizes_of(space: SearchSpace) -> dict[str, int]:
    return {group.name: bins.size for group, bins in zip(space.groups, space.bins, strict=True)}


def test_an_override_changes_the_bins_of_its_group_alone() -> None:
    usual = sizes_of(build_space(make(Chain), example(), min_bin=2))
    space = build_space(make(Chain), example(), min_bin=2, bins={"conv2": 8, "conv3": UniformBins(4)})
    assert sizes_of(space) == {**usual, "conv2": 8, "conv3": 16}
    assert usual["conv2"] != 8 and usual["conv3"] != 16


def test_a_rebinned_space_takes_overrides_too() -> None:
    model, space = built("residual")
    other = rebin(space, {"inner?.0": 5, "*": SingleChannels()})
    assert sizes_of(other) == {"stem.0": 1, "inner1.0": 5, "inner2.0": 5, "outer2.0": 1}
    assert sizes_of(rebin(space, {})) == sizes_of(space)
    for sub in some_subnetworks(other, 2):
        assert other.cost.macs(sub.widths) == count_macs(slice_model(model, other, sub), example())


@pytest.mark.parametrize("name", ["stem.0", "outer1.0", "outer1.*", "outer1", "stem.1"])
def test_a_group_goes_by_every_layer_whose_outputs_it_holds(name: str) -> None:
    _, space = built("residual")
    usual = sizes_of(rebin(space, {}))
    assert sizes_of(rebin(space, {name: 4})) == {**usual, "stem.0": 4}


def test_a_layer_that_only_reads_a_group_does_not_stand_for_it() -> None:
    space = build_space(make(Chain), example())
    assert sizes_of(rebin(space, {"conv2": 5})) == {**sizes_of(space), "conv2": 5}


def test_the_first_entry_that_matches_counts() -> None:
    _, space = built("residual")
    assert sizes_of(rebin(space, {"inner1.0": 2, "inner*": 5, "*": 3}))["inner1.0"] == 2
    assert sizes_of(rebin(space, {"inner*": 5, "inner1.0": 2, "*": 3}))["inner1.0"] == 5


def test_an_override_by_sensitivity_compares_with_all_groups() -> None:
    _, space = built("residual")
    finer, coarser = sizes_of(rebin(space, FlopsSensitiveBins(1))), sizes_of(rebin(space, FlopsSensitiveBins(3)))
    assert finer["outer2.0"] != coarser["outer2.0"]
    assert sizes_of(rebin(space, {"outer2": FlopsSensitiveBins(3)})) == {**finer, "outer2.0": coarser["outer2.0"]}


def test_overrides_are_rounded_to_what_can_be_sliced() -> None:
    groups = [WidthGroup("a", 48, unit=6), WidthGroup("b", 48), WidthGroup("c", 8)]
    rule = LayerBins({"a": 7, "b": 9, "c": 100}, SingleChannels())
    assert [cut.size for cut in cut_bins(groups, [1.0, 1.0, 1.0], rule, round_to=4)] == [12, 8, 8]


def test_a_name_that_is_no_searchable_layer_s_is_refused_with_the_reason_or_the_nearest() -> None:
    _, space = built("residual")
    with pytest.raises(ValueError, match=r"bins= names 'inner3\*', which matches no searchable layer; the nearest: i"):
        rebin(space, {"stem.0": 2, "inner3*": 4})
    with pytest.raises(ValueError, match="bins= names 'fc', but fc keeps its width: it is the model's output"):
        build_space(make(NETWORKS["residual"]), example(), bins={"fc": 4})


@pytest.mark.parametrize("size", [0, -3, 2.0, True, "4", None, UniformBins])
def test_an_override_that_is_no_rule_and_no_size_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"bin sizes in channels of at least 1, but got .* for 'conv1'"):
        build_space(make(Chain), example(), bins={"conv1": size})


@pytest.mark.parametrize("bins", [8, "conv1=8", UniformBins, [("conv1", 8)], Bins.ones(3)], ids=str)
def test_bins_that_are_no_rule_and_no_mapping_are_refused(bins: Any) -> None:
    with pytest.raises(ValueError, match=r"bins must be a rule such as UniformBins\(8\), or a mapping .* but got"):
        build_space(make(Chain), example(), bins=bins)


def test_a_key_that_is_no_name_is_refused() -> None:
    model = make(Chain)
    with pytest.raises(ValueError, match=r"keys of bins= must be names or globs of layers, but got Conv2d.*its name"):
        build_space(model, example(), bins={model.conv1: 8})  # type: ignore[dict-item]


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
