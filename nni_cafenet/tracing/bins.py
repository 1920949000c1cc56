"""How are groups cut into bins? FLOPs-sensitive (eq. 7-9), uniform, single channels, or a rule for each layer."""

from __future__ import annotations

import fnmatch
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from nni_cafenet.cost import CostModel
from nni_cafenet.errors import nearest
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import Bins, WidthGroup


@runtime_checkable
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


@dataclass(frozen=True)
class LayerBins:
    """Other bins for some groups: what the mapping that ``bins=`` takes stands for.

    Args:
        overrides: a rule, or a bin size in channels, for each name or glob (see :func:`rebin`).
        rest: the rule for the groups that no entry of `overrides` matches.
    """

    overrides: Mapping[str, BinRule | int]
    rest: BinRule

    def __post_init__(self) -> None:
        for name, override in self.overrides.items():
            if not isinstance(name, str):
                raise ValueError(f"the keys of bins= must be names or globs of layers, but got {name!r}: use its name")
            if not _is_size(override) and not _is_rule(override):
                raise ValueError(
                    f"bins= must hold rules such as UniformBins(8), or bin sizes in channels of at least 1, but got "
                    f"{override!r} for {name!r}"
                )

    def sizes(self, groups: Sequence[WidthGroup], sensitivities: Sequence[float]) -> list[float]:
        """Every rule sees all groups, so that FlopsSensitiveBins means the same for a part of them."""
        sizes = list(self.rest.sizes(groups, sensitivities))
        for index, group in enumerate(groups):
            override = self._override(group)
            if isinstance(override, BinRule):
                sizes[index] = override.sizes(groups, sensitivities)[index]
            elif override is not None:
                sizes[index] = override
        return sizes

    def check_names(self, space: SearchSpace) -> None:
        """Raise ValueError for an entry that matches no group of `space`."""
        known = dict.fromkeys(name for group in space.groups for name in _names(group))
        for entry in self.overrides:
            if _matches(entry, known):
                continue
            for part in space.frozen:
                if _matches(entry, [part.layer]):
                    raise ValueError(f"bins= names {entry!r}, but {part.layer} keeps its width: {part.reason}")
            raise ValueError(f"bins= names {entry!r}, which matches no searchable layer; {nearest(entry, known)}")

    def _override(self, group: WidthGroup) -> BinRule | int | None:
        matching = (override for entry, override in self.overrides.items() if _matches(entry, _names(group)))
        return next(matching, None)


def _names(group: WidthGroup) -> list[str]:
    """The group's name, and the layers whose output channels it holds; what only reads them has a group of its own."""
    members = (member.rpartition(".") for member in group.members)
    return [group.name, *(layer for layer, _, side in members if side != "in")]


def _matches(entry: str, names: Iterable[str]) -> bool:
    """Whether a name or glob is one of `names`, or is a module that one of them is inside of."""
    return any(fnmatch.fnmatchcase(name, entry) or name.startswith(f"{entry}.") for name in names)


def _is_rule(given: object) -> bool:
    return isinstance(given, BinRule) and not isinstance(given, type)


def _is_size(given: object) -> bool:
    return isinstance(given, numbers.Integral) and not isinstance(given, bool) and int(given) >= 1


def bin_rule(bins: BinRule | Mapping[str, BinRule | int] | None, *, rest: BinRule) -> BinRule:
    """The rule that a ``bins=`` stands for, with `rest` where it says nothing.

    Raises:
        ValueError: `bins` is neither a rule nor a mapping of rules and bin sizes.
    """
    if bins is None:
        return rest
    if isinstance(bins, Mapping):
        return LayerBins(bins, rest)
    if not _is_rule(bins):
        raise ValueError(
            f"bins must be a rule such as UniformBins(8), or a mapping from names of layers to rules or bin sizes such "
            f'as {{"layer4.*": 8}}, but got {bins!r}'
        )
    return bins


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
        bins.append(Bins.of_size(group.channels, size, first=max(min_channels, group.least)))
    return tuple(bins)


def rebin(
    space: SearchSpace,
    rule: BinRule | Mapping[str, BinRule | int],
    *,
    round_to: int = 1,
    min_channels: int = 1,
) -> SearchSpace:
    """The same groups cut into other bins.

    Args:
        space: as :func:`nni_cafenet.build_space` made it.
        rule: for all groups; or a mapping from names or globs to rules, or to bin sizes in channels, such as
            {"layer4.*": UniformBins(4), "conv1": 8, "*": SingleChannels()}. An entry is for the groups that it names,
            and for those that hold the output channels of a layer that it names or of one inside. The first entry that
            matches a group counts; groups without one get FlopsSensitiveBins. Sizes are rounded to what can be sliced:
            whole conv-groups, multiples of `round_to`, no more than the group has.
        round_to: every channel count is a multiple.
        min_channels: the least channels that a group keeps.

    Raises:
        ValueError: an entry matches no group, or is no rule and no size of at least 1.
    """
    rule = bin_rule(rule, rest=FlopsSensitiveBins())
    if isinstance(rule, LayerBins):
        rule.check_names(space)
    per_unit = space.cost.macs_per_unit()
    sensitivities = [float(macs) / group.unit for macs, group in zip(per_unit, space.groups, strict=True)]
    bins = cut_bins(space.groups, sensitivities, rule, round_to=round_to, min_channels=min_channels)
    cost = CostModel(space.cost.terms, units_of(space.groups, bins))
    return replace(space, bins=bins, cost=cost, round_to=round_to, min_channels=min_channels)


def units_of(groups: Sequence[WidthGroup], bins: Sequence[Bins]) -> tuple[tuple[int, ...], ...]:
    """The table that CostModel wants: units kept at each width."""
    return tuple(tuple(edge // group.unit for edge in cut.edges) for group, cut in zip(groups, bins, strict=True))
