"""Cutting groups into bins: FLOPs-sensitive (eq. 7-9), uniform, or single channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from nni_cafenet.cost import CostModel
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import Bins, WidthGroup


class BinRule(Protocol):
    """How large each group's bins should be; extend by writing a class of this shape."""

    def sizes(self, groups: Sequence[WidthGroup], sensitivities: Sequence[float]) -> list[float]:
        """Channels in a bin of each group, before rounding.

        Args:
            groups: the width groups.
            sensitivities: e_i of eq. 7: MACs that one channel of each group costs at full width.
        """
        ...


@dataclass(frozen=True)
class FlopsSensitiveBins:
    """Bins that cost about the same MACs: b_i = min_bin * max_j e_j / e_i (eq. 9).

    Args:
        min_bin: beta of the paper, the bin size of the most sensitive group; 1 in all its experiments.
    """

    min_bin: float = 1

    def __post_init__(self) -> None:
        if not self.min_bin > 0:
            raise ValueError(f"min_bin must be above 0, but got {self.min_bin}")

    def sizes(self, groups: Sequence[WidthGroup], sensitivities: Sequence[float]) -> list[float]:
        most = max(sensitivities)
        return [
            self.min_bin * most / own if own > 0 else group.channels
            for group, own in zip(groups, sensitivities, strict=True)
        ]


@dataclass(frozen=True)
class UniformBins:
    """The baseline that the paper argues against: `count` bins in every group."""

    count: int = 8

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, but got {self.count}")

    def sizes(self, groups: Sequence[WidthGroup], sensitivities: Sequence[float]) -> list[float]:
        return [group.channels // self.count for group in groups]


@dataclass(frozen=True)
class SingleChannels:
    """Bins of one unit: the finest space, in which the Uniform and Random baselines are drawn."""

    def sizes(self, groups: Sequence[WidthGroup], sensitivities: Sequence[float]) -> list[float]:
        return [1.0] * len(groups)


def cut_bins(
    groups: Sequence[WidthGroup],
    sensitivities: Sequence[float],
    rule: BinRule,
    *,
    round_to: int = 1,
    min_channels: int = 1,
) -> tuple[Bins, ...]:
    """The bins of every group: sizes by `rule`, rounded to whole units and to multiples of `round_to` channels.

    Args:
        round_to: every channel count is a multiple; groups whose channels are not one must be frozen before.
        min_channels: the least channels that a group keeps.
    """
    bins = []
    for group, wanted in zip(groups, rule.sizes(groups, sensitivities), strict=True):
        step = math.lcm(group.unit, round_to)
        size = max(step, round(wanted / step) * step)
        bins.append(Bins.of_size(group.channels, size, first=min_channels))
    return tuple(bins)


def rebin(space: SearchSpace, rule: BinRule, *, round_to: int = 1, min_channels: int = 1) -> SearchSpace:
    """The same groups cut into other bins."""
    per_unit = space.cost.macs_per_unit()
    sensitivities = [float(macs) / group.unit for macs, group in zip(per_unit, space.groups, strict=True)]
    bins = cut_bins(space.groups, sensitivities, rule, round_to=round_to, min_channels=min_channels)
    return replace(space, bins=bins, cost=CostModel(space.cost.terms, units_of(space.groups, bins)))


def units_of(groups: Sequence[WidthGroup], bins: Sequence[Bins]) -> tuple[tuple[int, ...], ...]:
    """The table that CostModel wants: units kept at each width."""
    return tuple(tuple(edge // group.unit for edge in cut.edges) for group, cut in zip(groups, bins, strict=True))
