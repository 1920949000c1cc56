"""Which widths, or which sub-network, has a model that somebody else's pruner has made smaller?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import nn

from nni_cafenet.errors import InvalidChoice
from nni_cafenet.layers import axis_size
from nni_cafenet.peers.choice import ORIGIN, BoolArray, reason, some_of, subnetwork_of
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import Axis, IntArray, SubNetwork, Widths

TWICE = (
    ": torch-pruning records group.prune(idxs=...) twice, so cut by get_pruning_group(..., idxs=...).prune(); "
    "widths_of(space, pruner.model) gives the widths alone"
)


class Pruner(Protocol):
    """What is asked of torch-pruning's pruners; its DependencyGraph is one too."""

    model: nn.Module

    def pruning_history(self) -> Sequence[tuple[str, bool, Sequence[int]]]:
        """Of each cut the root layer, whether its outputs were cut, and which of those that it then had."""
        ...


def from_torch_pruning(space: SearchSpace, pruner: Pruner, *, round: bool = False) -> SubNetwork:
    """The sub-network that a pruner of torch-pruning, or its DependencyGraph, has left of its model.

    It replays ``pruner.pruning_history()``, and holds the outcome against the sizes of ``pruner.model``. Where there is
    no history, as of a model loaded from a file, :func:`widths_of` still gives the widths.

    Args:
        space: built from the model before it was pruned.
        round: see :func:`from_masks`.

    Raises:
        InvalidChoice: it pruned what the space holds at full width, the history does not explain the model's sizes, or
            the bins do not allow it.
    """
    axes = {axis.key: axis for axis in space.axes}
    kept = [np.ones(group.units, dtype=bool) for group in space.groups]
    for name, is_output, cut in pruner.pruning_history():
        axis = axes.get((name, "out" if is_output else "in"))
        gone = None if axis is None else _still_there(axis, kept, cut)
        if axis is None or (axis.groups[gone] < 0).any():
            raise InvalidChoice(
                f"{name} was pruned, which the space holds at full width{reason(space, name)}: name it in the pruner's "
                f"ignored_layers="
            )
        for group, unit in zip(axis.groups[gone].tolist(), axis.units[gone].tolist(), strict=True):
            kept[group][unit] = False
    widths = _channels_of(space, pruner.model)
    for group, units, channels in zip(space.groups, kept, widths, strict=True):
        if units.sum() * group.unit != channels:
            raise InvalidChoice(
                f"the pruning history leaves {units.sum() * group.unit} channels of {group.name}, and the pruned model "
                f"has {channels}{TWICE}"
            )
    return subnetwork_of(space, list(kept), round=round)


def widths_of(space: SearchSpace, pruned: nn.Module, *, round: bool = False) -> Widths:
    """The widths of a model that anybody pruned, from the sizes of its layers.

    Which channels are left is not to be seen: SubNetwork.fixed(widths) keeps the leftmost bins, and
    space.sample(rng, sharing=..., widths=widths) draws them.

    Args:
        space: built from the model before it was pruned.
        round: take the nearest width where the bins do not allow these channels, instead of raising an error.

    Raises:
        InvalidChoice: the sizes are no sub-network's, or the bins do not allow them.
    """
    channels = _channels_of(space, pruned)
    kept: list[BoolArray | None] = [
        np.arange(group.units) < count // group.unit for group, count in zip(space.groups, channels, strict=True)
    ]
    return subnetwork_of(space, kept, round=round).widths


def _still_there(axis: Axis, kept: Sequence[BoolArray], cut: Sequence[int]) -> IntArray:
    """The positions of the full axis that `cut` counts among those that are still there."""
    left = axis.positions([np.flatnonzero(units) for units in kept])
    left = np.arange(axis.size) if left is None else left
    if len(cut) and max(cut) >= len(left):
        raise InvalidChoice(
            f"the pruning history cuts channel {max(cut)} of {axis}, which has {len(left)} left by then{TWICE}"
        )
    return left[np.asarray(cut, dtype=np.int64)]


def _channels_of(space: SearchSpace, pruned: nn.Module) -> list[int]:
    """How many channels each group has in a pruned model."""
    layers = dict(pruned.named_modules())
    sizes = {axis.key: axis_size(layers[axis.layer], axis.side) for axis in space.axes if axis.layer in layers}
    counts: dict[int, int] = {}
    while len(counts) < len(space.groups):
        before = len(counts)
        for axis in space.axes:
            unknown = [group for group in axis.by_group if group not in counts]
            size = sizes.get(axis.key)
            if size is None or len(unknown) != 1:
                continue
            each = _positions_per_unit(space, axis)
            rest = size - int((axis.groups < 0).sum()) - sum(each[g] * counts[g] for g in each if g in counts)
            units, over = divmod(rest, each[unknown[0]])
            if over or not 1 <= units <= space.groups[unknown[0]].units:
                raise InvalidChoice(f"{axis} has {size} channels, which no sub-network of this space has: {ORIGIN}")
            counts[unknown[0]] = units
        if len(counts) == before:
            missing = [group.name for index, group in enumerate(space.groups) if index not in counts]
            raise InvalidChoice(f"the sizes of the pruned model do not tell the widths of {some_of(missing)}: {ORIGIN}")
    for axis in space.axes:
        each = _positions_per_unit(space, axis)
        wanted = int((axis.groups < 0).sum()) + sum(each[group] * counts[group] for group in each)
        if sizes.get(axis.key) not in (None, wanted):
            raise InvalidChoice(
                f"{axis} has {sizes[axis.key]} channels in the pruned model, and {wanted} in the sub-network that the "
                f"other layers stand for{reason(space, axis.layer)}: {ORIGIN}"
            )
    for part in space.frozen:
        held = axis_size(layers[part.layer], "out") if part.layer in layers else None
        if (part.layer, "out") not in sizes and held is not None and held < part.channels:
            raise InvalidChoice(
                f"{part.layer} has {held} channels in the pruned model, and the space holds {part.channels} of it "
                f"({part.reason}): leave it out of what is pruned"
            )
    return [counts[index] * group.unit for index, group in enumerate(space.groups)]


def _positions_per_unit(space: SearchSpace, axis: Axis) -> dict[int, int]:
    return {group: len(here) // space.groups[group].units for group, (here, _) in axis.by_group.items()}
