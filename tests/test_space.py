from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nni_cafenet import (
    Bins,
    Budget,
    CafeNetError,
    Fixed,
    FullyFree,
    InfeasibleBudget,
    LocallyFree,
    SubNetwork,
    Widths,
    uniform_widths,
)
from nni_cafenet.cost import CostTerm, Limits
from tests.spaces import all_widths, chain

SPACE = chain(8, 12, 6)


def test_the_smallest_and_the_largest_widths_are_one_bin_and_all_bins() -> None:
    assert SPACE.smallest == Widths((1, 1, 1))
    assert SPACE.largest == Widths((8, 12, 6))
    assert SPACE.cost.macs(SPACE.largest) == 30 * 8 + 10 * 8 * 12 + 10 * 12 * 6 + 50 * 6


def test_channels_are_those_of_the_kept_bins() -> None:
    space = chain(8, 12, 6, size=4)
    assert space.largest == Widths((2, 3, 2))
    assert space.channels(Widths((1, 2, 1))) == {"conv0": 4, "conv1": 8, "conv2": 2}


def test_a_sample_is_a_sub_network_of_the_space() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        sub = SPACE.sample(rng, sharing=LocallyFree(offset=1))
        for bins, width, kept in zip(SPACE.bins, sub.widths.bins_kept, sub.kept, strict=True):
            assert kept in LocallyFree(offset=1).choices(bins, width)
        seen.add(sub.widths.bins_kept[0])
    assert seen == set(range(1, 9))


def test_sampling_without_a_pattern_is_fixed_and_widths_can_be_given() -> None:
    rng = np.random.default_rng(0)
    sub = SPACE.sample(rng)
    assert sub == SubNetwork.fixed(sub.widths)
    widths = Widths((3, 4, 5))
    assert SPACE.sample(rng, widths=widths) == SubNetwork.fixed(widths)
    assert SPACE.sample(rng, widths=widths, sharing=FullyFree()).widths == widths
    assert SPACE.sample(rng, widths=widths, sharing=Fixed()) == SubNetwork.fixed(widths)


def test_sampling_repeats_with_the_generator_s_seed() -> None:
    def draws(seed: int) -> list[SubNetwork]:
        rng = np.random.default_rng(seed)
        return [SPACE.sample(rng, sharing=LocallyFree()) for _ in range(10)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_positions_follow_the_kept_bins_through_every_axis() -> None:
    space = chain(8, 12, 6, size=4)
    positions = space.positions(SubNetwork(Widths((1, 2, 2)), ((1,), (0, 2), (0, 1))))
    assert {key: kept.tolist() for key, kept in positions.items()} == {
        ("conv0", "out"): [4, 5, 6, 7],
        ("conv1", "in"): [4, 5, 6, 7],
        ("conv1", "out"): [0, 1, 2, 3, 8, 9, 10, 11],
        ("conv2", "in"): [0, 1, 2, 3, 8, 9, 10, 11],
    }


def test_the_full_network_has_no_narrowed_axis() -> None:
    assert SPACE.positions(SubNetwork.fixed(SPACE.largest)) == {}


def test_a_sub_network_of_another_space_is_refused() -> None:
    with pytest.raises(ValueError, match="the sub-network has 2 groups and this space 3: pass the space"):
        SPACE.positions(SubNetwork.fixed(Widths((1, 1))))
    with pytest.raises(ValueError, match=r"group conv2 has 6 bins \(0 to 5\), but the sub-network keeps bin 6"):
        SPACE.positions(SubNetwork(Widths((1, 1, 1)), ((0,), (0,), (6,))))


def test_the_fingerprint_tells_spaces_apart() -> None:
    assert SPACE.fingerprint() == chain(8, 12, 6).fingerprint()
    others = [
        chain(8, 12, 7),
        chain(8, 12, 6, size=2),
        chain(12, 8, 6),
        replace(SPACE, axes=SPACE.axes[:-1]),
        replace(SPACE, cost=replace(SPACE.cost, terms=SPACE.cost.terms[:-1])),
    ]
    assert len({SPACE.fingerprint(), *(other.fingerprint() for other in others)}) == 6


def test_describe_lists_groups_costs_and_what_is_frozen_and_why() -> None:
    text = SPACE.describe()
    for group in SPACE.groups:
        assert group.name in text
    assert f"{SPACE.cost.macs(SPACE.largest):,}" in text
    assert f"{SPACE.cost.macs(SPACE.smallest):,}" in text
    assert f"{SPACE.cost.params(SPACE.largest):,}" in text
    assert "it is the model's output" in text
    assert "3 groups, 576 architectures" in text
    assert "WARNING" not in text


def test_describe_warns_where_most_macs_cannot_be_searched() -> None:
    costly = replace(SPACE.cost, terms=(*SPACE.cost.terms, CostTerm("stem", 10**6, 0)))
    text = replace(SPACE, cost=costly).describe()
    assert "WARNING: 100% of the MACs sit in frozen layers, which no width changes; most in stem (99.8%)" in text


def test_the_searchable_share_is_that_of_the_macs_which_some_width_changes() -> None:
    assert SPACE.searchable_share == 1
    total = SPACE.cost.macs(SPACE.largest)
    half = replace(SPACE.cost, terms=(*SPACE.cost.terms, CostTerm("stem", total, 0)))
    assert replace(SPACE, cost=half).searchable_share == 0.5


def test_uniform_is_the_largest_uniform_shrink_within_the_budget() -> None:
    limits = SPACE.limits(Budget(max_macs="50%"))
    found = uniform_widths(SPACE, Budget(max_macs="50%"))
    assert found == uniform_widths(SPACE, limits)
    shrunk = {
        Widths(tuple(max(1, round(factor * bins.count)) for bins in SPACE.bins)) for factor in np.linspace(0, 1, 2001)
    }
    fitting = [widths for widths in shrunk if limits.admit(SPACE.cost, widths)]
    assert limits.admit(SPACE.cost, found)
    assert SPACE.cost.macs(found) == max(map(SPACE.cost.macs, fitting))


@pytest.mark.parametrize("percent", [3, 10, 25, 50, 75, 100])
@pytest.mark.parametrize("size", [1, 4, 5])
def test_uniform_keeps_the_budget_at_any_bins(percent: int, size: int) -> None:
    space = chain(16, 40, 24, size=size)
    try:
        limits = space.limits(Budget(max_macs=f"{percent}%", max_params=f"{min(percent + 10, 100)}%"))
    except InfeasibleBudget:
        assert percent < 10
        return
    assert limits.admit(space.cost, uniform_widths(space, limits))


def test_uniform_of_the_whole_budget_is_the_full_network() -> None:
    assert uniform_widths(SPACE, Budget(max_macs="100%")) == SPACE.largest


def test_uniform_of_the_smallest_budget_is_the_smallest_network() -> None:
    assert uniform_widths(SPACE, Budget(max_macs=SPACE.cost.macs(SPACE.smallest))) == SPACE.smallest


def test_uniform_refuses_an_infeasible_budget() -> None:
    with pytest.raises(InfeasibleBudget, match="smallest possible"):
        uniform_widths(SPACE, Budget(max_macs="1%"))
    with pytest.raises(CafeNetError, match="these limits admit no network of this space"):
        uniform_widths(SPACE, Limits(max_macs=1))


def test_the_hand_made_space_counts_its_widths() -> None:
    assert len(all_widths(chain(3, 2))) == 6
    assert chain(3, 2).bins == (Bins.ones(3), Bins.ones(2))
