"""Widths and what they are widths of: groups of channels, their bins, and a sub-network. Pure data.

A word each: *channels* are counted as the layer's own out_channels; a *unit* is the least that can be removed alone
(one channel, or one conv-group of a grouped convolution); a *bin* is a run of channels that comes and goes together;
a *width* counts the bins that are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

ALWAYS, NEVER = -1, -2  # in the place of a group: a position that is kept in every sub-network, or in none


@dataclass(frozen=True)
class Bins:
    """How a group's channels are cut into bins: bin k (from 0) holds channels edges[k] .. edges[k + 1] - 1.

    Our rules give all bins one size, but for the first, which takes the remainder (and is then always kept, so that
    every candidate of one width has the same channel count). Those cut at given channel counts may have any sizes.
    """

    edges: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or self.edges[0] != 0 or (np.diff(self.edges) < 1).any():
            raise ValueError(f"edges of bins must rise from 0 and hold at least one bin, but got {self.edges}")

    @classmethod
    def of_size(cls, channels: int, size: int, *, first: int = 1) -> Bins:
        """Bins of `size` channels out of `channels`; the first takes the remainder and holds at least `first`."""
        size = min(size, channels)
        rest = channels % size or size
        while rest < min(first, channels):
            rest += size
        return cls((0, *range(min(rest, channels), channels + 1, size)))

    @classmethod
    def ones(cls, count: int) -> Bins:
        """`count` bins of one channel each, as in the paper's figure 1."""
        return cls(tuple(range(count + 1)))

    @property
    def count(self) -> int:
        """The number of bins, n of the paper once channels are binned."""
        return len(self.edges) - 1

    @property
    def size(self) -> int:
        """Channels in a bin (b_i of eq. 9); the first bin may differ."""
        return self.edges[-1] - self.edges[-2]

    @cached_property
    def are_even(self) -> bool:
        """Whether all bins but the first have one size."""
        return len(set(np.diff(self.edges)[1:].tolist())) < 2

    @property
    def first_is_kept(self) -> bool:
        """Whether the first bin differs from the others, and so belongs to every candidate."""
        return self.edges[1] != self.size

    def channels(self, width: int) -> int:
        """Channels that a width of `width` bins keeps, whichever bins they are."""
        return self.edges[width]

    def channel_indices(self, kept: Sequence[int]) -> IntArray:
        """Indices of the channels in the bins `kept`, ascending; shape (channels(len(kept)),)."""
        return np.concatenate([np.arange(self.edges[k], self.edges[k + 1]) for k in sorted(kept)])


@dataclass(frozen=True)
class WidthGroup:
    """Channels that belong together through residual adds, depthwise convolutions, normalisation and the like.

    Args:
        name: the layer that first produces the channels; unique in a space.
        channels: how many of that layer's channels the group holds.
        members: the axes it runs through, as "layer.out" and "layer.in".
        unit: how many of the channels come and go together at the least (1, or a conv-group's channels).
        least: the fewest channels with which the forward works.
    """

    name: str
    channels: int
    members: tuple[str, ...] = ()
    unit: int = 1
    least: int = 1

    def __post_init__(self) -> None:
        if self.unit < 1 or self.channels < self.unit or self.channels % self.unit:
            raise ValueError(
                f"group {self.name}: channels must be a multiple of the unit, but got {self.channels} and {self.unit}"
            )
        if not 1 <= self.least <= self.channels:
            raise ValueError(f"group {self.name}: least must be 1 to {self.channels}, but got {self.least}")

    @property
    def units(self) -> int:
        return self.channels // self.unit

    @property
    def least_units(self) -> int:
        return -(-self.least // self.unit)


@dataclass(frozen=True, eq=False)
class Axis:
    """One side of one layer: which group, and which unit of it, each channel position belongs to.

    Args:
        layer: the module's qualified name, or a bare parameter's.
        side: "out" or "in"; "dim0", "dim1", ... for a bare parameter.
        groups: shape (size,), the index of the position's group, or ALWAYS or NEVER where none decides.
        units: shape (size,), the position's unit within its group, or -1.
    """

    layer: str
    side: str
    groups: IntArray
    units: IntArray

    @property
    def size(self) -> int:
        return len(self.groups)

    @property
    def key(self) -> tuple[str, str]:
        return self.layer, self.side

    @cached_property
    def pattern(self) -> tuple[bytes, bytes]:
        """Axes of one pattern keep the same positions: a convolution's outputs and their BatchNorm's channels, say."""
        return self.groups.tobytes(), self.units.tobytes()

    @cached_property
    def by_group(self) -> dict[int, tuple[IntArray, IntArray]]:
        """For each group that runs through: its positions, and the unit of each."""
        present = np.unique(self.groups[self.groups >= 0]).tolist()
        places = {group: np.flatnonzero(self.groups == group) for group in present}
        return {group: (here, self.units[here]) for group, here in places.items()}

    def __str__(self) -> str:
        return f"{self.layer}.{self.side}"

    def positions(self, kept_units: Sequence[IntArray | None]) -> IntArray | None:
        """Positions that stay, ascending, when group g keeps kept_units[g] (None: all); None where all stay."""
        keep = self.groups != NEVER
        for group, (here, units) in self.by_group.items():
            kept = kept_units[group]
            if kept is not None:
                stays = np.zeros(units.max() + 1, dtype=bool)
                stays[kept] = True
                keep[here] = stays[units]
        return None if keep.all() else np.flatnonzero(keep)

    def reordered(self, orders: Mapping[int, IntArray]) -> IntArray:
        """For each position the one whose content it gets when unit u of group g gets that of unit orders[g][u]."""
        source = np.arange(self.size)
        for group, (here, units) in self.by_group.items():
            if group in orders:
                # positions by (unit, occurrence): row u holds the positions of unit u
                by_unit = here[np.argsort(units, kind="stable")].reshape(len(orders[group]), -1)
                source[by_unit] = by_unit[orders[group]]
        return source


def contiguous_runs(positions: IntArray) -> list[tuple[int, int]]:
    """Ascending positions as (start, length) of their contiguous runs, which are few."""
    firsts = [0, *(np.flatnonzero(positions[1:] - positions[:-1] != 1) + 1).tolist()]
    lasts = [*firsts[1:], len(positions)]
    return [(int(positions[first]), last - first) for first, last in zip(firsts, lasts, strict=True)]


def kept_positions(axes: Iterable[Axis], kept_units: Sequence[IntArray | None]) -> dict[tuple[str, str], IntArray]:
    """Positions that stay, by (layer, side), for every axis that `kept_units` (see Axis.positions) narrows.

    Axes of one pattern share one array.
    """
    by_pattern: dict[tuple[bytes, bytes], IntArray | None] = {}
    found: dict[tuple[str, str], IntArray] = {}
    for axis in axes:
        if axis.pattern not in by_pattern:
            by_pattern[axis.pattern] = axis.positions(kept_units)
        positions = by_pattern[axis.pattern]
        if positions is not None:
            found[axis.key] = positions
    return found


@dataclass(frozen=True)
class Widths:
    """How many bins each group keeps, in the order of the space's groups (c of the paper)."""

    bins_kept: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.bins_kept):
            raise ValueError(f"every group must keep at least 1 bin, but got {self.bins_kept}")


@dataclass(frozen=True)
class SubNetwork:
    """Widths, and the bins that stand for them in each group (I(c) of eq. 3 and 5; bins count from 0)."""

    widths: Widths
    kept: tuple[tuple[int, ...], ...] = field(repr=False)

    def __post_init__(self) -> None:
        if tuple(map(len, self.kept)) != self.widths.bins_kept:
            raise ValueError(f"kept bins {self.kept} do not have the widths {self.widths.bins_kept}")
        if any(tuple(sorted(set(bins))) != bins for bins in self.kept):
            raise ValueError(f"kept bins must ascend without repetition, but got {self.kept}")

    @classmethod
    def fixed(cls, widths: Widths) -> SubNetwork:
        """The sub-network of the fixed pattern: the leftmost bins (eq. 3)."""
        return cls(widths, tuple(tuple(range(width)) for width in widths.bins_kept))
