"""How do NNI's constraints bind any Searcher: a filter refuses samples, the engine's budget ends the search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from nni_cafenet.cost import Limits
from nni_cafenet.search.searcher import Candidate, Searcher
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import SubNetwork, Widths


class Constrained:
    """A Searcher that asks what `searcher` asks, less what `admits` refuses.

    What is refused is told to `searcher` at once, with the score minus infinity, and counts as one of its evaluations.

    Args:
        searcher: does the searching.
        admits: whether widths may be scored.
        goes_on: asked before every question; False ends the search.
    """

    def __init__(self, searcher: Searcher, admits: Callable[[Widths], bool], goes_on: Callable[[], bool]) -> None:
        self.searcher, self.admits, self.goes_on = searcher, admits, goes_on
        self._space: SearchSpace | None = None

    def __repr__(self) -> str:
        return f"{self.searcher!r} under NNI's constraints"

    @property
    def evaluations(self) -> int:
        return self.searcher.evaluations

    def begin(self, space: SearchSpace, limits: Limits) -> None:
        self._space = space
        self.searcher.begin(space, limits)

    def ask(self, n: int = 1) -> list[Widths]:
        while self.goes_on() and (asked := self.searcher.ask(n)):
            admitted = [widths for widths in asked if self.admits(widths)]
            self.searcher.tell([self._refused(widths) for widths in asked if widths not in admitted])
            if admitted:
                return admitted
        return []

    def tell(self, candidates: Sequence[Candidate]) -> None:
        self.searcher.tell(candidates)

    def state_dict(self) -> dict[str, Any]:
        return self.searcher.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.searcher.load_state_dict(state)

    def _refused(self, widths: Widths) -> Candidate:
        assert self._space is not None, "begin() comes before ask()"
        cost = self._space.cost
        return Candidate(SubNetwork.fixed(widths), -math.inf, cost.macs(widths), cost.params(widths))
