from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nni_cafenet import Bins, SubNetwork, WidthGroup, Widths
from nni_cafenet.widths import Axis, contiguous_runs, kept_positions


@given(channels=st.integers(1, 200), size=st.integers(1, 250), first=st.integers(1, 250))
def test_bins_cover_all_channels_in_one_size_but_for_the_first(channels: int, size: int, first: int) -> None:
    bins = Bins.of_size(channels, size, first=first)
    sizes = np.diff(bins.edges)
    assert bins.edges[0] == 0
    assert bins.edges[-1] == channels == bins.channels(bins.count)
    assert set(sizes[1:]) <= {min(size, channels)}
    assert sizes[0] >= min(first, channels)
    assert bins.first_is_kept == (len(sizes) > 1 and sizes[0] != sizes[1])


@given(channels=st.integers(1, 100), size=st.integers(1, 100))
def test_the_first_bin_takes_the_remainder(channels: int, size: int) -> None:
    bins = Bins.of_size(channels, size)
    assert bins.count == -(-channels // min(size, channels))
    assert bins.edges[1] == (channels % min(size, channels) or min(size, channels))


def test_the_remainder_is_the_first_bin_and_is_kept() -> None:
    assert Bins.of_size(10, 4).edges == (0, 2, 6, 10)
    assert Bins.of_size(10, 4).first_is_kept
    assert Bins.of_size(12, 4).edges == (0, 4, 8, 12)
    assert not Bins.of_size(12, 4).first_is_kept
    assert Bins.of_size(12, 4, first=5).edges == (0, 8, 12)


def test_a_bin_larger_than_the_group_is_the_whole_group() -> None:
    assert Bins.of_size(5, 100).edges == (0, 5)
    assert not Bins.of_size(5, 100).first_is_kept


def test_ones_are_bins_of_one_channel() -> None:
    assert Bins.ones(4) == Bins.of_size(4, 1)
    assert Bins.ones(4).count == 4
    assert Bins.ones(4).size == 1


def test_channel_indices_are_those_of_the_kept_bins() -> None:
    bins = Bins.of_size(10, 4)
    assert bins.channel_indices((0, 2)).tolist() == [0, 1, 6, 7, 8, 9]
    assert bins.channel_indices((2, 0)).tolist() == [0, 1, 6, 7, 8, 9]


@pytest.mark.parametrize("edges", [(), (0,), (1, 2), (0, 2, 2), (0, 3, 1)])
def test_edges_that_do_not_rise_from_0_are_refused(edges: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="edges of bins must rise from 0 and hold at least one bin"):
        Bins(edges)


def test_bins_may_be_cut_at_given_channel_counts() -> None:
    assert not Bins((0, 1, 3, 6)).are_even
    assert Bins((0, 1, 3, 5)).are_even
    assert [Bins((0, 1, 3, 6)).channels(width) for width in (1, 2, 3)] == [1, 3, 6]


def test_a_group_of_a_broken_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="group conv1: channels must be a multiple of the unit, but got 10 and 4"):
        WidthGroup("conv1", 10, unit=4)
    assert WidthGroup("conv1", 12, unit=4).units == 3


def test_a_width_of_no_bin_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every group must keep at least 1 bin, but got \(2, 0\)"):
        Widths((2, 0))


def test_a_sub_network_must_have_its_widths() -> None:
    with pytest.raises(ValueError, match="do not have the widths"):
        SubNetwork(Widths((2,)), ((0,),))
    with pytest.raises(ValueError, match="kept bins must ascend without repetition"):
        SubNetwork(Widths((2,)), ((1, 0),))
    with pytest.raises(ValueError, match="kept bins must ascend without repetition"):
        SubNetwork(Widths((2,)), ((1, 1),))


def test_sub_networks_are_hashable_values() -> None:
    fixed = SubNetwork.fixed(Widths((2, 1)))
    assert fixed.kept == ((0, 1), (0,))
    assert {fixed: 1}[SubNetwork(Widths((2, 1)), ((0, 1), (0,)))] == 1
    assert fixed != SubNetwork(Widths((2, 1)), ((0, 2), (0,)))


@given(positions=st.sets(st.integers(0, 60), min_size=1))
def test_contiguous_runs_give_the_positions_back(positions: set[int]) -> None:
    ordered = sorted(positions)
    runs = contiguous_runs(np.array(ordered))
    assert [start + k for start, length in runs for k in range(length)] == ordered
    assert all(left[0] + left[1] < right[0] for left, right in pairwise(runs))


def axis(groups: list[int], units: list[int]) -> Axis:
    return Axis("conv", "in", np.array(groups), np.array(units))


def test_an_axis_keeps_frozen_positions_and_those_of_kept_units() -> None:
    mixed = axis([-1, 0, 0, 1, 1, 0], [-1, 0, 1, 0, 1, 1])
    assert mixed.positions([np.array([1]), None]).tolist() == [0, 2, 3, 4, 5]
    assert mixed.positions([np.array([0]), np.array([1])]).tolist() == [0, 1, 4]
    assert mixed.positions([None, None]) is None
    assert mixed.positions([np.array([0, 1]), None]) is None
    assert str(mixed) == "conv.in"
    assert mixed.key == ("conv", "in")
    assert mixed.size == 6


def test_kept_positions_list_narrowed_axes_alone() -> None:
    axes = [axis([0, 0], [0, 1]), Axis("fc", "out", np.array([1, 1]), np.array([0, 1]))]
    found = kept_positions(axes, [np.array([1]), None])
    assert list(found) == [("conv", "in")]
    assert found["conv", "in"].tolist() == [1]
