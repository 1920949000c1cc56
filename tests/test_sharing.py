from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_cafenet import Bins, Fixed, FullyFree, LocallyFree
from nni_cafenet.sharing import sharing_degree
from tests.contracts.sharing import SharingContract, a_bins


class TestFixed(SharingContract):
    pattern = Fixed()


class TestLocallyFreeOfOffset0(SharingContract):
    pattern = LocallyFree(offset=0)


class TestLocallyFreeOfOffset1(SharingContract):
    pattern = LocallyFree(offset=1)


class TestLocallyFreeOfOffset3(SharingContract):
    pattern = LocallyFree(offset=3)


class TestFullyFree(SharingContract):
    pattern = FullyFree(samples=4, seed=1)


# Figure 1 of the paper: six units and offset 1; counted from 0 here
FIGURE_1 = {
    1: {(0,), (1,)},
    2: {(0, 1), (0, 2), (1, 2)},
    3: {(0, 1, 2), (0, 1, 3), (0, 2, 3)},
    4: {(0, 1, 2, 3), (0, 1, 2, 4), (0, 1, 3, 4)},
    5: {(0, 1, 2, 3, 4), (0, 1, 2, 3, 5), (0, 1, 2, 4, 5)},
    6: {(0, 1, 2, 3, 4, 5)},
}


@pytest.mark.parametrize("width", FIGURE_1)
def test_locally_free_choices_are_those_of_figure_1(width: int) -> None:
    assert set(LocallyFree(offset=1).choices(6, width)) == FIGURE_1[width]


def test_the_paper_s_offset_is_the_default() -> None:
    assert LocallyFree() == LocallyFree(offset=1)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 11), offset=st.integers(0, 12), data=st.data())
def test_locally_free_choices_are_all_subsets_with_the_base_and_within_the_zone(
    count: int, offset: int, data: st.DataObject
) -> None:
    """Equation 5, by brute force over all subsets and in the paper's own counting from 1."""
    width = data.draw(st.integers(1, count))
    base = set(range(1, max(width - offset - 1, 0) + 1))
    zone = set(range(width - offset, width + offset + 1)) & set(range(len(base) + 1, count + 1))
    expected = {
        tuple(k - 1 for k in kept)
        for kept in combinations(range(1, count + 1), width)
        if base <= set(kept) and set(kept) - base <= zone
    }
    assert set(LocallyFree(offset=offset).choices(count, width)) == expected


@settings(max_examples=100, deadline=None)
@given(count=st.integers(2, 11), offset=st.integers(0, 3), data=st.data())
def test_locally_free_choices_share_at_least_the_base(count: int, offset: int, data: st.DataObject) -> None:
    """Equation 4: the sharing degree lies between c_b / c and 1."""
    width = data.draw(st.integers(1, count))
    least = max(width - offset - 1, 0) / width
    for kept, other in combinations(LocallyFree(offset=offset).choices(count, width), 2):
        assert least <= sharing_degree(kept, other) <= 1


@settings(max_examples=100, deadline=None)
@given(count=st.integers(2, 11), offset=st.integers(0, 3), data=st.data())
def test_locally_free_widths_share_at_least_the_smaller_one_s_base(
    count: int, offset: int, data: st.DataObject
) -> None:
    narrow, wide = sorted(data.draw(st.tuples(st.integers(1, count), st.integers(1, count))))
    pattern = LocallyFree(offset=offset)
    for kept in pattern.choices(count, narrow):
        for other in pattern.choices(count, wide):
            assert max(narrow - offset - 1, 0) / narrow <= sharing_degree(kept, other) <= 1


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 20), data=st.data())
def test_fixed_widths_share_all_of_the_smaller_one(count: int, data: st.DataObject) -> None:
    narrow, wide = data.draw(st.tuples(st.integers(1, count), st.integers(1, count)))
    assert sharing_degree(Fixed().choices(count, narrow)[0], Fixed().choices(count, wide)[0]) == 1


def test_the_sharing_degree_is_relative_to_the_smaller_set() -> None:
    assert sharing_degree((0, 1, 2), (1, 2, 3, 4)) == pytest.approx(2 / 3)
    assert sharing_degree((0, 1), (2, 3, 4)) == 0


@settings(max_examples=60, deadline=None)
@given(bins=a_bins, data=st.data())
def test_offset_0_is_the_fixed_pattern(bins: Bins, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, bins.count))
    assert LocallyFree(offset=0).choices(bins, width) == Fixed().choices(bins, width)


@settings(max_examples=60, deadline=None)
@given(offset=st.integers(0, 4))
def test_an_unclipped_zone_gives_all_combinations_of_the_free_bins(offset: int) -> None:
    width, count = offset + 1, 2 * offset + 1
    choices = LocallyFree(offset=offset).choices(3 * count, width + 2)
    assert len(choices) == comb(2 * offset + 1, offset + 1)


def test_a_first_bin_of_another_size_is_always_kept() -> None:
    bins = Bins.of_size(11, 4)  # 3, 4, 4
    assert bins.first_is_kept
    assert LocallyFree(offset=1).choices(bins, 1) == ((0,),)
    assert LocallyFree(offset=1).choices(bins, 2) == ((0, 1), (0, 2))
    assert all(kept[0] == 0 for kept in FullyFree(samples=9).choices(bins, 2))


def test_locally_free_draws_are_uniform_over_the_choices() -> None:
    rng = np.random.default_rng(0)
    drawn = [LocallyFree(offset=1).draw(6, 3, rng) for _ in range(3000)]
    for choice in FIGURE_1[3]:
        assert drawn.count(choice) == pytest.approx(1000, abs=120)


def test_fully_free_lists_as_many_choices_as_asked_and_the_same_ones_at_every_call() -> None:
    pattern = FullyFree(samples=5, seed=3)
    choices = pattern.choices(12, 6)
    assert choices == pattern.choices(12, 6)
    assert choices != FullyFree(samples=5, seed=4).choices(12, 6)
    assert 1 < len(choices) <= 5


def test_fully_free_draws_reach_every_subset() -> None:
    rng = np.random.default_rng(0)
    assert {FullyFree().draw(5, 2, rng) for _ in range(300)} == set(combinations(range(5), 2))


def test_fully_free_goes_beyond_the_locally_free_zone() -> None:
    rng = np.random.default_rng(0)
    local = set(LocallyFree(offset=1).choices(10, 5))
    assert any(FullyFree().draw(10, 5, rng) not in local for _ in range(20))


@pytest.mark.parametrize("offset", [-1, 1.5, True, "1", None])
def test_an_offset_that_is_no_whole_number_from_0_is_refused(offset: object) -> None:
    with pytest.raises(ValueError, match="offset must be a whole number of at least 0, but got"):
        LocallyFree(offset=offset)  # type: ignore[arg-type]


def test_fewer_than_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="samples must be at least 1, but got 0"):
        FullyFree(samples=0)
