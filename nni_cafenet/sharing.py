"""Weight sharing patterns: which bins of a layer stand for a width (eq. 3-5). Pure.

Bins count from 0 here, from 1 in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

import numpy as np

from nni_cafenet.widths import Bins

Kept = tuple[int, ...]


class SharingPattern(Protocol):
    """What a sharing pattern is asked for; extend by writing a class of this shape."""

    def choices(self, bins: Bins | int, width: int) -> tuple[Kept, ...]:
        """Every set of bins that may stand for `width`, ascending, the leftmost one first."""
        ...

    def draw(self, bins: Bins | int, width: int, rng: np.random.Generator) -> Kept:
        """One such set, drawn uniformly."""
        ...


def sharing_degree(kept: Kept, other: Kept) -> float:
    """The share of the smaller set that both have (eq. 4), between 0 and 1."""
    return len(set(kept) & set(other)) / min(len(kept), len(other))


@dataclass(frozen=True)
class LocallyFree:
    """Base bins on the left, free ones out of a zone around the width's end (eq. 5).

    A width c keeps the base bins 1 .. c_b with c_b = max(c - offset - 1, 0), and c - c_b free bins out of the zone
    c - offset .. c + offset, clipped to what follows the base. Where the first bin differs in size it is always kept;
    of bins of other sizes still, those sets stand for a width that hold as many channels as its leftmost bins.

    Args:
        offset: r of the paper, at least 0; 1 in all its experiments, 0 is the fixed pattern.
    """

    offset: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.offset, bool) or not isinstance(self.offset, (int, np.integer)) or self.offset < 0:
            raise ValueError(f"offset must be a whole number of at least 0, but got {self.offset!r}")

    def choices(self, bins: Bins | int, width: int) -> tuple[Kept, ...]:
        bins = _checked(bins, width)
        base = max(width - self.offset - 1, 0)
        if bins.first_is_kept:
            base = max(base, 1)
        zone = range(base, min(width + self.offset, bins.count))
        found = ((*range(base), *free) for free in combinations(zone, width - base))
        return tuple(kept for kept in found if bins.are_even or _holds(bins, kept, width))

    def draw(self, bins: Bins | int, width: int, rng: np.random.Generator) -> Kept:
        choices = self.choices(bins, width)
        return choices[rng.integers(len(choices))]


@dataclass(frozen=True)
class Fixed:
    """A width of c keeps the leftmost c bins (eq. 3), as AutoSlim and most others share."""

    def choices(self, bins: Bins | int, width: int) -> tuple[Kept, ...]:
        _checked(bins, width)
        return (tuple(range(width)),)

    def draw(self, bins: Bins | int, width: int, rng: np.random.Generator) -> Kept:
        return self.choices(bins, width)[0]


@dataclass(frozen=True)
class FullyFree:
    """Any c of the n bins, for ablations: the paper rules the whole of it out as O(2^n), so its choices are sampled.

    Args:
        samples: how many choices stand for a width, the leftmost one among them.
        seed: which ones, the same at every call.
    """

    samples: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, but got {self.samples}")

    def choices(self, bins: Bins | int, width: int) -> tuple[Kept, ...]:
        bins = _checked(bins, width)
        rng = np.random.default_rng([self.seed, bins.count, width])
        drawn = [tuple(range(width)), *(self.draw(bins, width, rng) for _ in range(self.samples - 1))]
        return tuple(dict.fromkeys(drawn))

    def draw(self, bins: Bins | int, width: int, rng: np.random.Generator) -> Kept:
        bins = _checked(bins, width)
        first = int(bins.first_is_kept)
        free = rng.choice(np.arange(first, bins.count), size=width - first, replace=False)
        kept = (*range(first), *sorted(free.tolist()))
        return kept if bins.are_even or _holds(bins, kept, width) else tuple(range(width))


def _holds(bins: Bins, kept: Kept, width: int) -> bool:
    """Whether uneven bins hold as many channels as the leftmost do: candidates of one width cost the same."""
    return sum(bins.edges[k + 1] - bins.edges[k] for k in kept) == bins.channels(width)


def _checked(bins: Bins | int, width: int) -> Bins:
    bins = Bins.ones(bins) if isinstance(bins, int) else bins
    if not 1 <= width <= bins.count:
        raise ValueError(f"width must be 1 to {bins.count} bins, but got {width}")
    return bins
