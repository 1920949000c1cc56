from __future__ import annotations

import numpy as np
import pytest

from nni_cafenet import RandomSearch, Searcher, Widths
from nni_cafenet.cost import Limits
from nni_cafenet.search.searcher import draw_within, fill, shrink
from tests.contracts.searcher import LIMITS, SPACE, SearcherContract, search
from tests.spaces import all_widths, chain


class TestRandomSearch(SearcherContract):
    @staticmethod
    def make(seed: int = 0) -> Searcher:
        return RandomSearch(evaluations=30, seed=seed)


def maximal_widths(limits: Limits) -> set[Widths]:
    """By brute force: what fits and cannot be widened by one bin anywhere."""
    fitting = {widths for widths in all_widths(SPACE) if limits.admit(SPACE.cost, widths)}

    def wider(widths: Widths) -> list[Widths]:
        bins = widths.bins_kept
        return [Widths((*bins[:i], bins[i] + 1, *bins[i + 1 :])) for i in range(len(bins))]

    return {widths for widths in fitting if not fitting.intersection(wider(widths))}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=list(LIMITS))
def test_drawn_widths_leave_no_room(limits: Limits) -> None:
    rng = np.random.default_rng(0)
    assert {draw_within(SPACE, limits, rng) for _ in range(200)} <= maximal_widths(limits)


def test_a_long_search_finds_nearly_every_width_that_leaves_no_room() -> None:
    searcher = RandomSearch(evaluations=10_000)
    searcher.begin(SPACE, LIMITS["macs"])
    found, all_there_are = set(search(searcher)), maximal_widths(LIMITS["macs"])
    assert found <= all_there_are
    assert len(found) > 0.95 * len(all_there_are)  # the draws that are unlikely may be missed


def test_shrink_only_narrows_and_fill_only_widens() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        widths = SPACE.sample(rng).widths
        narrowed = shrink(SPACE, LIMITS["both"], widths, rng)
        filled = fill(SPACE, LIMITS["both"], narrowed, rng)
        assert all(np.array(narrowed.bins_kept) <= widths.bins_kept)
        assert all(np.array(filled.bins_kept) >= narrowed.bins_kept)
        assert LIMITS["both"].admit(SPACE.cost, filled)


def test_what_fits_is_not_narrowed() -> None:
    rng = np.random.default_rng(0)
    assert shrink(SPACE, LIMITS["all"], SPACE.largest, rng) == SPACE.largest


def test_limits_that_admit_nothing_are_an_internal_error() -> None:
    with pytest.raises(AssertionError, match="limits do not admit the smallest network"):
        shrink(SPACE, Limits(max_macs=1), SPACE.largest, np.random.default_rng(0))


def test_fewer_than_one_evaluation_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluations must be at least 1, but got 0"):
        RandomSearch(evaluations=0)


def test_asking_before_beginning_is_an_internal_error() -> None:
    with pytest.raises(AssertionError, match=r"begin\(\) comes before ask\(\)"):
        RandomSearch().ask()


def test_a_search_of_several_bins_sizes_stays_within_its_bins() -> None:
    space = chain(10, 7, size=4)
    searcher = RandomSearch(evaluations=50)
    searcher.begin(space, Limits())
    assert searcher.ask(50) == [space.largest]
