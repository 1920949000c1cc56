from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from nni_cafenet import Budget, Greedy, Searcher, Widths
from nni_cafenet.cost import Limits
from tests.contracts.searcher import LIMITS, SPACE, SearcherContract, objective, scored, search


class TestGreedy(SearcherContract):
    asks_within_limits = False

    @staticmethod
    def make(seed: int = 0) -> Searcher:
        return Greedy(steps=6 + seed)

    @pytest.mark.parametrize("limits", LIMITS)
    def test_it_ends_within_the_limits(self, limits: str) -> None:
        assert LIMITS[limits].admit(SPACE.cost, search(self.begun(limits))[-1])


def steps_of(searcher: Searcher, score: Callable[[Widths], float] = objective) -> list[list[Widths]]:
    """What is asked for, a whole step at once; the full network first."""
    steps = []
    while step := searcher.ask(100):
        steps.append(step)
        searcher.tell([scored(widths, score) for widths in step])
    return steps


def lost_per_mac(start: Widths, widths: Widths) -> float:
    return (objective(start) - objective(widths)) / (SPACE.cost.macs(start) - SPACE.cost.macs(widths))


def begun(steps: int, limits: Limits) -> Greedy:
    searcher = Greedy(steps=steps)
    searcher.begin(SPACE, limits)
    return searcher


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_each_step_starts_where_the_least_score_was_lost_for_each_mac_saved(steps: int) -> None:
    (start,), *found = steps_of(begun(steps, LIMITS["macs"]))
    assert start == SPACE.largest
    assert len(found) <= steps + len(SPACE.groups)
    for step in found:
        narrowed = [[g for g, width in enumerate(start.bins_kept) if widths.bins_kept[g] < width] for widths in step]
        assert narrowed == [[g] for g, width in enumerate(start.bins_kept) if width > 1]
        start = min(step, key=lambda widths, start=start: lost_per_mac(start, widths))


def test_a_step_narrows_each_group_no_more_than_its_share_of_the_way() -> None:
    limits, steps = LIMITS["macs"], 8
    assert limits.max_macs is not None
    full = SPACE.cost.macs(SPACE.largest)
    share = (full - limits.max_macs) / steps
    _, first, *_ = steps_of(begun(steps, limits))
    for widths in first:
        wider = tuple(min(width + 1, bins.count) for width, bins in zip(widths.bins_kept, SPACE.bins, strict=True))
        assert full - SPACE.cost.macs(widths) >= share > full - SPACE.cost.macs(Widths(wider))


@pytest.mark.parametrize("limits", ["macs", "params", "both", "tight"])
def test_it_goes_on_until_a_step_s_best_is_within_the_limits(limits: str) -> None:
    start: Widths | None = None
    for step in steps_of(begun(8, LIMITS[limits])):
        assert start is None or not LIMITS[limits].admit(SPACE.cost, start)
        start = min(step, key=lambda widths, start=start: 0 if start is None else less(start, widths, limits))
    assert start is not None
    assert LIMITS[limits].admit(SPACE.cost, start)


def less(start: Widths, widths: Widths, limits: str) -> float:
    return (objective(start) - objective(widths)) / (excess(start, limits) - excess(widths, limits))


def excess(widths: Widths, limits: str) -> float:
    bounds = LIMITS[limits]
    macs = max(SPACE.cost.macs(widths) / bounds.max_macs - 1, 0) if bounds.max_macs else 0
    return macs + (max(SPACE.cost.params(widths) / bounds.max_params - 1, 0) if bounds.max_params else 0)


def test_more_steps_find_better_networks() -> None:
    def found(steps: int) -> float:
        asked = search(begun(steps, LIMITS["macs"]))
        return max(objective(widths) for widths in asked if LIMITS["macs"].admit(SPACE.cost, widths))

    assert found(1) < found(4) <= found(16)


def test_a_group_that_is_refused_is_left_wide() -> None:
    def score(widths: Widths) -> float:
        return -math.inf if widths.bins_kept[0] < 8 else 1.0

    limits = SPACE.limits(Budget(max_macs="70%"))
    *_, last = steps_of(begun(4, limits), score)
    admitted = [widths for widths in last if limits.admit(SPACE.cost, widths)]
    assert any(widths.bins_kept[0] == 8 for widths in admitted)


def test_nothing_more_is_asked_while_a_step_is_being_scored() -> None:
    searcher = begun(4, LIMITS["macs"])
    assert searcher.ask(5) == [SPACE.largest]
    assert searcher.ask(5) == []
    searcher.tell([scored(SPACE.largest)])
    assert len(searcher.ask(5)) == len(SPACE.groups)
    assert searcher.ask(5) == []


@pytest.mark.parametrize("steps", [0, -1])
def test_steps_below_one_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps must be at least 1, but got {steps}"):
        Greedy(steps=steps)
