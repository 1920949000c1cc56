"""Greedy search, as AutoSlim does it (Yu and Huang, 2019): from the full network down, one group at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nni_cafenet.cost import Limits
from nni_cafenet.search.searcher import Candidate
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import Widths


class Greedy:
    """Narrows the group that costs the least score for what it saves, again and again, until the limits admit.

    In every step each group is narrowed alone, so far that the step saves its share of the way down (or as far as it
    goes); of these networks the one that loses the least score for each MAC (or parameter) saved is where the next
    step starts. What it asks on the way is above the limits; the result of a search never is.

    Args:
        steps: into how many equal savings the way down is cut; each scores every group once.
    """

    def __init__(self, *, steps: int = 20) -> None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, but got {steps}")
        self.steps = steps
        self._space: SearchSpace | None = None
        self._limits = Limits()
        self._from: Widths | None = None  # where this step starts; None before the full network is scored
        self._score = -math.inf  # of `_from`
        self._queue: list[Widths] = []  # of this step, not asked for yet
        self._asked: list[Widths] = []  # of this step, in order
        self._told: dict[Widths, float] = {}  # of this step

    def __repr__(self) -> str:
        return f"Greedy(steps={self.steps})"

    @property
    def evaluations(self) -> int:
        """Each step saves its share, or narrows a group as far as it goes."""
        assert self._space is not None, "begin() comes before evaluations"
        groups = len(self._space.groups)
        return 1 + (self.steps + groups) * groups

    def begin(self, space: SearchSpace, limits: Limits) -> None:
        self._space, self._limits = space, limits
        self._from, self._score = None, -math.inf
        self._queue, self._asked, self._told = [space.largest], [], {}

    def ask(self, n: int = 1) -> list[Widths]:
        if not self._queue and self._asked and len(self._told) == len(self._asked):
            self._step()
        asked, self._queue = self._queue[:n], self._queue[n:]
        self._asked += asked
        return asked

    def tell(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            self._told[candidate.subnetwork.widths] = candidate.score

    def state_dict(self) -> dict[str, Any]:
        return {
            "from": None if self._from is None else list(self._from.bins_kept),
            "score": self._score,
            "queue": [list(widths.bins_kept) for widths in self._queue],
            "asked": [list(widths.bins_kept) for widths in self._asked],
            "told": [[list(widths.bins_kept), score] for widths, score in self._told.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._from = None if state["from"] is None else Widths(tuple(state["from"]))
        self._score = state["score"]
        self._queue = [Widths(tuple(bins)) for bins in state["queue"]]
        self._asked = [Widths(tuple(bins)) for bins in state["asked"]]
        self._told = {Widths(tuple(bins)): score for bins, score in state["told"]}

    def _step(self) -> None:
        """Go to the best network of this step, and queue those of the next one."""
        best = min(self._asked, key=self._loss)  # the first of equal ones: the order asked in, not told in
        self._from, self._score = best, self._told[best]
        self._asked, self._told = [], {}
        if self._excess(best) > 0:
            self._queue = self._narrowed(best)

    def _loss(self, widths: Widths) -> float:
        """Score lost for each share of the way down that is saved."""
        if self._from is None:
            return 0.0
        lost = self._score - self._told[widths]
        return math.inf if math.isnan(lost) else lost / (self._excess(self._from) - self._excess(widths))

    def _narrowed(self, widths: Widths) -> list[Widths]:
        """`widths` with each group in turn narrowed just enough to save a step's share, or within the limits."""
        assert self._space is not None
        above = self._excess(widths)
        share = self._excess(self._space.largest) / self.steps
        found = []
        for group, width in enumerate(widths.bins_kept):
            for narrower in range(width - 1, 0, -1):
                bins = (*widths.bins_kept[:group], narrower, *widths.bins_kept[group + 1 :])
                excess = self._excess(Widths(bins))
                if excess == 0 or above - excess >= share or narrower == 1:
                    found.append(Widths(bins))
                    break
        assert found, "the limits do not admit the smallest network: make them with space.limits(budget)"
        return found

    def _excess(self, widths: Widths) -> float:
        """How far `widths` are above the limits, each as a share of the limit; 0 for what they admit."""
        assert self._space is not None, "begin() comes before ask()"
        cost = self._space.cost
        counted = ((self._limits.max_macs, cost.macs), (self._limits.max_params, cost.params))
        return sum(max(count(widths) / limit - 1, 0.0) for limit, count in counted if limit is not None)
