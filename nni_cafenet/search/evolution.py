"""Evolutionary search: CafeNet-E of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nni_cafenet.cost import Limits
from nni_cafenet.search.searcher import MOST_TRIES, Candidate, draw_within, fill, load_rng_state, rng_state, shrink
from nni_cafenet.space import SearchSpace, uniform_widths
from nni_cafenet.widths import Widths


class Evolution:
    """Generations of crossover and mutation among the best widths so far, every one within the limits.

    The first generation is drawn at random. In every other one, half of the widths are a uniform crossover of two of
    the `parents` best so far, half a mutation of one of them; what breaks the limits is narrowed, what leaves room is
    widened, and nothing is scored twice.

    Args:
        population: widths in a generation.
        generations: how many, the random one counted.
        parents: how many of the best breed.
        mutation: the probability of redrawing a group's width in a mutation.
        from_uniform: the first generation holds Uniform's widths too, so that no result scores below them.
        seed: of all draws.
    """

    def __init__(
        self,
        *,
        population: int = 50,
        generations: int = 20,
        parents: int = 10,
        mutation: float = 0.1,
        from_uniform: bool = False,
        seed: int = 0,
    ) -> None:
        for name, number in (("population", population), ("generations", generations), ("parents", parents)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, but got {number}")
        if not 0 < mutation <= 1:
            raise ValueError(f"mutation must be above 0 and at most 1, but got {mutation}")
        self.population, self.generations, self.parents = population, generations, parents
        self.mutation, self.from_uniform, self.seed = mutation, from_uniform, seed
        self._rng = np.random.default_rng(seed)
        self._queue: list[Widths] = []  # of the current generation, not asked for yet
        self._asked: set[Widths] = set()  # ever, the queue counted
        self._told: dict[Widths, float] = {}
        self._bred = 0  # generations so far
        self._space: SearchSpace | None = None
        self._limits = Limits()

    def __repr__(self) -> str:
        return (
            f"Evolution(population={self.population}, generations={self.generations}, parents={self.parents}, "
            f"mutation={self.mutation}, from_uniform={self.from_uniform}, seed={self.seed})"
        )

    @property
    def evaluations(self) -> int:
        return self.population * self.generations

    def begin(self, space: SearchSpace, limits: Limits) -> None:
        self._space, self._limits = space, limits
        self._rng = np.random.default_rng(self.seed)
        self._queue, self._asked, self._told, self._bred = [], set(), {}, 0

    def ask(self, n: int = 1) -> list[Widths]:
        waiting = len(self._asked) - len(self._queue) - len(self._told)
        if not self._queue and waiting == 0 and self._bred < self.generations:
            self._breed()
        asked, self._queue = self._queue[:n], self._queue[n:]
        return asked

    def tell(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            self._told[candidate.subnetwork.widths] = candidate.score

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": rng_state(self._rng),
            "queue": [list(widths.bins_kept) for widths in self._queue],
            "asked": sorted(list(widths.bins_kept) for widths in self._asked),
            "told": [[list(widths.bins_kept), score] for widths, score in self._told.items()],
            "bred": self._bred,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_rng_state(self._rng, state["rng"])
        self._queue = [Widths(tuple(bins)) for bins in state["queue"]]
        self._asked = {Widths(tuple(bins)) for bins in state["asked"]}
        self._told = {Widths(tuple(bins)): score for bins, score in state["told"]}
        self._bred = state["bred"]

    def _breed(self) -> None:
        # a stable sort, so that equal scores keep the order in which they were told
        best = sorted(self._told, key=lambda widths: -self._told[widths])[: self.parents]
        for place in range(self.population):
            # few parents have few crossovers: where they are used up, a mutation takes the place
            for crossover in ([True] * MOST_TRIES if place % 2 == 0 else []) + [False] * MOST_TRIES:
                child = self._child(best, crossover=crossover)
                if child not in self._asked:
                    self._asked.add(child)
                    self._queue.append(child)
                    break
        self._bred += 1

    def _child(self, best: Sequence[Widths], *, crossover: bool) -> Widths:
        assert self._space is not None, "begin() comes before ask()"
        space, rng = self._space, self._rng
        if not best:
            first = self.from_uniform and not self._asked
            return uniform_widths(space, self._limits) if first else draw_within(space, self._limits, rng)
        mother, father = (np.array(best[i].bins_kept) for i in rng.integers(len(best), size=2))
        if crossover and len(best) > 1:
            bins = np.where(rng.random(len(mother)) < 0.5, mother, father)
        else:
            redrawn = rng.random(len(mother)) < self.mutation
            redrawn[rng.integers(len(mother))] = True  # or nothing might change
            bins = np.where(redrawn, space.sample(rng).widths.bins_kept, mother)
        narrowed = shrink(space, self._limits, Widths(tuple(int(width) for width in bins)), rng)
        return fill(space, self._limits, narrowed, rng)
