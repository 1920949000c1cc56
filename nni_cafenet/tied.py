"""How do several width groups become one? Where somebody else has decided that their widths go together. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from nni_cafenet.cost import CostModel
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import Axis, Bins, WidthGroup


@dataclass(frozen=True)
class Tie:
    """Groups that have one width, and what channels each has at it.

    Args:
        name: of the group that they become.
        channels: by the group's index, its channels at a width of 1, 2, ... bins, ascending; proportional to those of
            the other groups, as 8, 16 is to 16, 32.
    """

    name: str
    channels: dict[int, tuple[int, ...]]


def tied(space: SearchSpace, ties: Sequence[Tie]) -> SearchSpace:
    """`space` with one group a tie, whose bins are cut at the channels of the tie's first group.

    Raises:
        ValueError: the ties do not name every group once, a group's channels do not end at its full width, the channels
            of a tie's groups are not proportional, or a group cannot be cut so. The message names the groups.
    """
    if sorted(group for tie in ties for group in tie.channels) != list(range(len(space.groups))):
        raise ValueError("ties must name every group of the space once")
    place: dict[int, tuple[int, int]] = {}  # of a group: the new one, and how many of its units are one there
    groups, bins = [], []
    for index, tie in enumerate(ties):
        first, *_ = tie.channels
        counts = _units_of(space, tie)
        for group, channels in tie.channels.items():
            place[group] = index, channels[-1] // counts[-1] // space.groups[group].unit
        edges = tie.channels[first]
        members = tuple(member for group in tie.channels for member in space.groups[group].members)
        groups.append(WidthGroup(tie.name, edges[-1], members, unit=edges[-1] // counts[-1], least=edges[0]))
        bins.append(Bins((0, *edges)))
    terms = tuple(
        replace(
            term,
            macs=term.macs * math.prod(place[group][1] for group in term.groups),
            params=term.params * math.prod(place[group][1] for group in term.groups),
            groups=tuple(sorted(place[group][0] for group in term.groups)),
        )
        for term in space.cost.terms
    )
    units = tuple(tuple(edge // group.unit for edge in cut.edges) for group, cut in zip(groups, bins, strict=True))
    axes = tuple(_tied_axis(axis, place) for axis in space.axes)
    return replace(space, groups=tuple(groups), bins=tuple(bins), axes=axes, cost=CostModel(terms, units))


def _units_of(space: SearchSpace, tie: Tie) -> tuple[int, ...]:
    """How many units of the tie's group there are at each width."""
    counts: tuple[int, ...] | None = None
    for index, channels in tie.channels.items():
        group, step = space.groups[index], math.gcd(*channels)
        if channels[-1] != group.channels or list(channels) != sorted(set(channels)):
            raise ValueError(f"{tie.name}: the channels of {group.name} must rise to {group.channels}, not {channels}")
        if step % group.unit or channels[0] < group.least:
            raise ValueError(
                f"{tie.name}: {group.name} cannot have {channels} channels: they go together by {group.unit}, and the "
                f"forward needs {group.least}"
            )
        own = tuple(count // step for count in channels)
        if counts is not None and own != counts:
            raise ValueError(f"{tie.name}: {channels} channels of {group.name} are not proportional to the others'")
        counts = own
    assert counts is not None, "a tie has a group"
    return counts


def _tied_axis(axis: Axis, place: dict[int, tuple[int, int]]) -> Axis:
    groups, units = axis.groups.copy(), axis.units.copy()
    for group, (here, own) in axis.by_group.items():
        index, together = place[group]
        groups[here], units[here] = index, own // together
    return replace(axis, groups=np.asarray(groups), units=np.asarray(units))
