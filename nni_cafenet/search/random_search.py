"""Random search: CafeNet-R of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nni_cafenet.cost import Limits
from nni_cafenet.search.searcher import MOST_TRIES, Candidate, draw_within, load_rng_state, rng_state
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import Widths


class RandomSearch:
    """Widths drawn at random within the limits, none of them twice.

    Args:
        evaluations: how many to score; 1000 are as many as the paper's evolution scores in 20 generations of 50.
        seed: of the draws.
    """

    def __init__(self, *, evaluations: int = 1000, seed: int = 0) -> None:
        if evaluations < 1:
            raise ValueError(f"evaluations must be at least 1, but got {evaluations}")
        self.evaluations, self.seed = evaluations, seed
        self._rng = np.random.default_rng(seed)
        self._asked: dict[Widths, bool] = {}  # in the order asked; whether told
        self._space: SearchSpace | None = None
        self._limits = Limits()

    def __repr__(self) -> str:
        return f"RandomSearch(evaluations={self.evaluations}, seed={self.seed})"

    def begin(self, space: SearchSpace, limits: Limits) -> None:
        self._space, self._limits = space, limits
        self._rng, self._asked = np.random.default_rng(self.seed), {}

    def ask(self, n: int = 1) -> list[Widths]:
        assert self._space is not None, "begin() comes before ask()"
        new: list[Widths] = []
        while len(new) < n and len(self._asked) < self.evaluations:
            for _ in range(MOST_TRIES):
                widths = draw_within(self._space, self._limits, self._rng)
                if widths not in self._asked:
                    break
            else:
                break
            self._asked[widths] = False
            new.append(widths)
        return new

    def tell(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            self._asked[candidate.subnetwork.widths] = True

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": rng_state(self._rng),
            "asked": [[list(widths.bins_kept), told] for widths, told in self._asked.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_rng_state(self._rng, state["rng"])
        self._asked = {Widths(tuple(bins)): told for bins, told in state["asked"]}
