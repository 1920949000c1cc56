"""Candidates of a whole network: which joint choices of all groups stand for its widths."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nni_cafenet.sharing import SharingPattern
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import SubNetwork, Widths

Score = Callable[[SubNetwork], float]


class Candidates(Protocol):
    """Finds the sub-network that stands for widths; extend by writing a class of this shape."""

    def listed(
        self, space: SearchSpace, widths: Widths, sharing: SharingPattern, rng: np.random.Generator
    ) -> list[SubNetwork]:
        """The candidates of a training step, the fixed pattern's first, none twice."""
        ...

    def best(
        self, space: SearchSpace, widths: Widths, sharing: SharingPattern, rng: np.random.Generator, score: Score
    ) -> tuple[SubNetwork, float]:
        """The candidate of the highest score, and that score."""
        ...


class _Listed:
    """Candidates that can be listed before any is scored."""

    def listed(
        self, space: SearchSpace, widths: Widths, sharing: SharingPattern, rng: np.random.Generator
    ) -> list[SubNetwork]:
        raise NotImplementedError

    def best(
        self, space: SearchSpace, widths: Widths, sharing: SharingPattern, rng: np.random.Generator, score: Score
    ) -> tuple[SubNetwork, float]:
        scored = [(sub, score(sub)) for sub in self.listed(space, widths, sharing, rng)]
        return max(scored, key=lambda pair: pair[1])


@dataclass(frozen=True)
class Tied(_Listed):
    """The k-th choice in every group at once, 3 candidates at offset 1; a group with fewer choices takes its last."""

    def listed(
        self, space: SearchSpace, widths: Widths, sharing: SharingPattern, rng: np.random.Generator
    ) -> list[SubNetwork]:
        choices = [sharing.choices(bins, width) for bins, width in zip(space.bins, widths.bins_kept, strict=True)]
        most = max(map(len, choices))
        return _unique(widths, (tuple(own[min(k, len(own) - 1)] for own in choices) for k in range(most)))


@dataclass(frozen=True)
class Sampled(_Listed):
    """`count` joint draws, each group on its own; the fixed pattern is always the first of them."""

    count: int = 3

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, but got {self.count}")

    def listed(
        self, space: SearchSpace, widths: Widths, sharing: SharingPattern, rng: np.random.Generator
    ) -> list[SubNetwork]:
        drawn = [space.sample(rng, sharing=sharing, widths=widths).kept for _ in range(self.count - 1)]
        return _unique(widths, [SubNetwork.fixed(widths).kept, *drawn])


@dataclass(frozen=True)
class Coordinate:
    """From the fixed pattern, the best choice of one group after the other: many forwards, for scoring only."""

    def listed(
        self, space: SearchSpace, widths: Widths, sharing: SharingPattern, rng: np.random.Generator
    ) -> list[SubNetwork]:
        raise ValueError("Coordinate candidates are for scoring only: train with Sampled() or Tied()")

    def best(
        self, space: SearchSpace, widths: Widths, sharing: SharingPattern, rng: np.random.Generator, score: Score
    ) -> tuple[SubNetwork, float]:
        best = SubNetwork.fixed(widths)
        best_score = score(best)
        for group, (bins, width) in enumerate(zip(space.bins, widths.bins_kept, strict=True)):
            for choice in sharing.choices(bins, width):
                if choice != best.kept[group]:
                    other = SubNetwork(widths, (*best.kept[:group], choice, *best.kept[group + 1 :]))
                    other_score = score(other)
                    if other_score > best_score:
                        best, best_score = other, other_score
        return best, best_score


def as_candidates(name: Candidates | str) -> Candidates:
    """Candidates by name, as the command line gives them: "tied", "sampled", "sampled:5" or "coordinate"."""
    if not isinstance(name, str):
        if isinstance(name, type) or not callable(getattr(name, "best", None)):
            raise TypeError(f"candidates must be an object such as Sampled(3), or a name of one, but got {name!r}")
        return name
    word, _, number = name.partition(":")
    if word == "sampled" and (not number or number.isdigit()):
        return Sampled(int(number)) if number else Sampled()
    if name in ("tied", "coordinate"):
        return Tied() if name == "tied" else Coordinate()
    raise ValueError(f'candidates must be "tied", "sampled", "sampled:COUNT" or "coordinate", but got {name!r}')


def _unique(widths: Widths, kept: Iterable[tuple[tuple[int, ...], ...]]) -> list[SubNetwork]:
    return [SubNetwork(widths, bins) for bins in dict.fromkeys(kept)]
