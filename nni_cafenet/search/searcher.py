"""What a searcher is: it is asked for widths and told their scores. Pure; one algorithm a file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from nni_cafenet.cost import Limits
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import SubNetwork, Widths

MOST_TRIES = 100  # redraws of widths that were asked for before; then the space counts as exhausted

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """Widths that were scored, by the best sub-network that stands for them (max-max selection).

    Args:
        subnetwork: the best of the sub-networks that stand for its widths.
        score: what the score function gave it, higher is better.
        macs: multiply-adds per image.
        params: parameters.
    """

    subnetwork: SubNetwork
    score: float
    macs: int
    params: int

    @classmethod
    def fixed(cls, space: SearchSpace, widths: Widths, score: float) -> Candidate:
        """`widths` in the fixed pattern, with their cost."""
        return cls(SubNetwork.fixed(widths), score, space.cost.macs(widths), space.cost.params(widths))


class Searcher(Protocol):
    """Asked and told; extend by writing a class of this shape.

    A searcher is begun with a space and limits, then asked and told until `ask` returns nothing. What
    `state_dict` gives holds plain types alone, and a new searcher of the same settings that loads it goes on exactly
    where the old one was. Its repr names its settings, by which a checkpoint knows whether it belongs to it.

    One that makes more of the scores than each says by itself may have `predict(widths)` too, a number for each of
    `widths`, higher is better: a result is ranked by these. And one that plans ahead may have `at_most(evaluations)`,
    the same search planned for fewer, where a stage of a search allows no more.
    """

    @property
    def evaluations(self) -> int:
        """How many widths it will ask to be scored at the most, for progress bars; known once it is begun."""
        ...

    def begin(self, space: SearchSpace, limits: Limits) -> None:
        """Start a search of `space` for networks within `limits`, which admit the smallest network at least.

        Nothing is left of a search before: of several budgets, each is begun in turn.
        """
        ...

    def ask(self, n: int = 1) -> list[Widths]:
        """Up to `n` widths; fewer while others are being scored, none when the search is over.

        At least one of all that are asked for is within the limits; what is not is a step on the way there, and never
        the result.
        """
        ...

    def tell(self, candidates: Sequence[Candidate]) -> None:
        """The scores of widths that were asked for."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def predictions(searcher: Searcher, widths: Sequence[Widths]) -> tuple[float, ...] | None:
    """What `searcher` makes of the scores of `widths`; None of one that takes them as they are."""
    predict = getattr(searcher, "predict", None)
    predicted = None if predict is None else predict(widths)
    return None if predicted is None else tuple(predicted)


def pareto_front(found: Iterable[T], macs_and_score: Callable[[T], tuple[int, float]]) -> list[T]:
    """What nothing else in `found` beats in both MACs and score, by rising MACs."""
    front: list[T] = []
    best = -math.inf
    for one in sorted(found, key=lambda one: (macs_and_score(one)[0], -macs_and_score(one)[1])):
        if not front or macs_and_score(one)[1] > best:
            front.append(one)
            best = macs_and_score(one)[1]
    return front


def draw_within(space: SearchSpace, limits: Limits, rng: np.random.Generator) -> Widths:
    """Random widths within `limits` that leave no room to widen any group.

    Widths are drawn uniformly; random groups are narrowed until the limits hold, then widened in random order, one
    bin at a time, while they still hold: a network that is smaller than it need be is rarely the best.
    """
    return fill(space, limits, shrink(space, limits, space.sample(rng).widths, rng), rng)


def shrink(space: SearchSpace, limits: Limits, widths: Widths, rng: np.random.Generator) -> Widths:
    """`widths` with random groups narrowed, each to a random width below its own, until `limits` hold."""
    bins = list(widths.bins_kept)
    while not limits.admit(space.cost, Widths(tuple(bins))):
        wide = [group for group, width in enumerate(bins) if width > 1]
        assert wide, "the limits do not admit the smallest network: make them with space.limits(budget)"
        group = wide[rng.integers(len(wide))]
        bins[group] = int(rng.integers(1, bins[group]))
    return Widths(tuple(bins))


def fill(space: SearchSpace, limits: Limits, widths: Widths, rng: np.random.Generator) -> Widths:
    """`widths` with groups widened in random order, one bin at a time, while `limits` hold."""
    bins = list(widths.bins_kept)
    open_groups = [group for group, cut in enumerate(space.bins) if bins[group] < cut.count]
    while open_groups:
        place = int(rng.integers(len(open_groups)))
        group = open_groups[place]
        bins[group] += 1
        if not limits.admit(space.cost, Widths(tuple(bins))):
            bins[group] -= 1
            open_groups.pop(place)  # costs rise with every width, so it will not fit later either
        elif bins[group] == space.bins[group].count:
            open_groups.pop(place)
    return Widths(tuple(bins))


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """The generator's state in plain types (Python integers of 128 bits among them, as text)."""
    state = rng.bit_generator.state
    return {**state, "state": {name: str(number) for name, number in state["state"].items()}}


def load_rng_state(rng: np.random.Generator, state: dict[str, Any]) -> None:
    """The inverse of rng_state, into `rng`."""
    rng.bit_generator.state = {**state, "state": {name: int(text) for name, text in state["state"].items()}}
