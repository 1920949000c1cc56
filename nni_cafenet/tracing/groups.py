"""Which channels belong together: width groups out of what a watched forward says of their labels.

The joins of graph.py are edges of a graph over all (layer, side, position) triples; its connected components are the
units, and units that run through the same axes the same number of times form a width group. Wrong answers are caught
by verify.py.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.frozen import FrozenPart
from nni_cafenet.layers import CONVOLUTION, axis_size, owns_its_tensors
from nni_cafenet.tracing.example import Example
from nni_cafenet.tracing.graph import Stretch, watch
from nni_cafenet.tracing.labels import Ledger
from nni_cafenet.widths import Axis, IntArray, WidthGroup

IDLE = "it does not run in the forward on the example, or inside of a layer that is not sliced"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupTable:
    """The groups of a model, the axes they run through, and what is frozen.

    Args:
        spanned: names of the groups over whose channels a statistic is taken, as by a LayerNorm.
        selects: whether the forward picks by value, as a detector picks boxes: rounding may change what it returns.
    """

    groups: tuple[WidthGroup, ...]
    axes: tuple[Axis, ...]
    frozen: tuple[FrozenPart, ...]
    spanned: frozenset[str] = frozenset()
    selects: bool = False

    def without(self, dropped: dict[int, str]) -> GroupTable:
        """This table with the groups of these indices frozen for the reason given."""
        if not dropped:
            return self
        keep = [index for index in range(len(self.groups)) if index not in dropped]
        renumber = np.full(len(self.groups) + 1, -1)  # the last entry serves index -1
        renumber[keep] = np.arange(len(keep))
        axes = tuple(
            Axis(axis.layer, axis.side, kept := renumber[axis.groups], np.where(kept >= 0, axis.units, -1))
            for axis in self.axes
        )
        frozen = [
            FrozenPart(self.groups[index].name, self.groups[index].channels, reason)
            for index, reason in dropped.items()
        ]
        groups = tuple(self.groups[index] for index in keep)
        return replace(self, groups=groups, axes=axes, frozen=(*self.frozen, *frozen))


def find_groups(model: nn.Module, example: Example, *, ignored: Collection[str] = ()) -> GroupTable:
    """The width groups of `model`.

    Args:
        model: a private copy in eval mode.
        ignored: names of layers whose output channels stay as they are.

    Raises:
        UnsupportedModel: the forward seems to decide by values which layers run.
    """
    axes, ledger = watch(model, example)
    frozen = [
        *_of_layers(axes, ignored, "named in ignore="),
        *_not_its_own(model, axes),
        *_tied(model, axes),
        *ledger.frozen,
    ]
    component = ledger.components()
    reasons: dict[int, str] = {}
    for labels, reason in frozen:
        for index in np.unique(component[labels]):
            reasons.setdefault(int(index), reason)
    table = _gather(model, axes, component, ledger, reasons)
    idle = _idle(model, axes, component, ledger, reasons)
    skipped = [part.layer for part in idle if part.reason == IDLE]
    if ledger.decides and skipped:
        raise UnsupportedModel(
            f"the forward of {type(model).__name__} reads values in {ledger.decides}, and on the example does not run "
            f"{', '.join(skipped[:5])}: if values decide which layers run, a slim network could not run these; give an "
            f"example with which all run, or take the decision out of the forward"
        )
    if ledger.decides:
        logger.warning(
            "the forward of %s reads values in %s: what it does with other values than the example's is not checked",
            type(model).__name__,
            ledger.decides,
        )
    return replace(table, frozen=(*table.frozen, *idle))


def _of_layers(axes: list[Stretch], names: Collection[str], reason: str) -> list[tuple[IntArray, str]]:
    return [(_labels(axis), reason) for axis in axes if axis.layer in names and axis.side != "in"]


def _not_its_own(model: nn.Module, axes: list[Stretch]) -> list[tuple[IntArray, str]]:
    names = {name for name, layer in model.named_modules() if not owns_its_tensors(layer)}
    inside = [axis for axis in axes if axis.layer in names or axis.layer.partition(".parametrizations.")[0] in names]
    return [(_labels(axis), "its weight is computed by a parametrisation or a hook") for axis in inside]


def _tied(model: nn.Module, axes: list[Stretch]) -> list[tuple[IntArray, str]]:
    """Layers that share a parameter keep their widths: slicing one would have to slice the other alike."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].append(name)
    found = []
    for names in owners.values():
        if len(names) > 1:
            reason = f"its weight is tied: {' and '.join(names)} share one parameter"
            found += [(_labels(axis), reason) for axis in axes if axis.layer in names]
    return found


def _idle(
    model: nn.Module, axes: list[Stretch], component: IntArray, ledger: Ledger, reasons: dict[int, str]
) -> list[FrozenPart]:
    """Layers of which no channel comes out: they do not run, or their weight is not what is convolved with."""
    made = set(component[_among(ledger.produced, ledger.count)].tolist())
    first = {axis.layer: int(component[axis.start]) for axis in axes if axis.side == "out"}
    return [
        FrozenPart(name, size, reasons.get(first.get(name, -1), IDLE))
        for name, module in model.named_modules()
        if isinstance(module, (CONVOLUTION, nn.Linear))
        and (size := axis_size(module, "out"))
        and size > 1
        and first.get(name) not in made
    ]


def _labels(axis: Stretch) -> IntArray:
    return axis.start + np.arange(axis.size)


def _among(parts: list[IntArray], count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found = np.zeros(count, dtype=bool)
    for labels in parts:
        found[labels] = True
    return found


@dataclass
class _Kind:
    """Components that run through the same axes the same number of times, and are frozen for one reason or free."""

    root: int
    signature: tuple[int, ...]
    reason: str | None
    components: list[int] = field(default_factory=list)


def _gather(
    model: nn.Module, axes: list[Stretch], component: IntArray, ledger: Ledger, reasons: dict[int, str]
) -> GroupTable:
    """The components, gathered into groups."""
    count = int(component.max(initial=-1)) + 1
    produced, spanned = _among(ledger.produced, ledger.count), _among(ledger.spanned, ledger.count)
    order = {name: place for place, name in enumerate(dict(model.named_modules()))}

    def depth(axis: Stretch) -> int:
        return order.get(axis.layer, order.get(axis.layer.rpartition(".")[0], len(order)))

    axis_of = np.repeat(np.arange(len(axes)), [axis.size for axis in axes])
    makes = np.array([bool(produced[axis.start : axis.start + axis.size].any()) for axis in axes])
    through: list[list[int]] = [[] for _ in range(count)]  # the axes of each component, once for each position
    for index, axis in zip(component.tolist(), axis_of.tolist(), strict=True):
        through[index].append(axis)
    kinds: dict[tuple[tuple[int, ...], str | None], _Kind] = {}
    for index, passed in enumerate(through):
        roots = [axis for axis in dict.fromkeys(passed) if makes[axis]]
        if roots:
            key = tuple(passed), reasons.get(index)
            first = min(roots, key=lambda axis: depth(axes[axis]))
            kinds.setdefault(key, _Kind(first, *key)).components.append(index)

    groups: list[WidthGroup] = []
    frozen: list[FrozenPart] = []
    statistics: set[str] = set()
    group_of, unit_of = np.full(count, -1), np.full(count, -1)
    over = np.zeros(count, dtype=bool)
    over[component[spanned]] = True
    names: dict[str, int] = defaultdict(int)
    for kind in sorted(kinds.values(), key=lambda kind: depth(axes[kind.root])):
        root = axes[kind.root]
        here = component[root.start : root.start + root.size]
        # units are numbered in the order of their channels in the root layer
        components = list(dict.fromkeys(here[np.isin(here, kind.components)].tolist()))
        unit = kind.signature.count(kind.root)
        channels = unit * len(components)
        reason = kind.reason or (None if len(components) > 1 else "all of its channels hang together")
        if reason is not None:
            frozen.append(FrozenPart(root.layer.partition(".parametrizations.")[0], channels, reason))
            continue
        names[root.layer] += 1
        name = root.layer if names[root.layer] == 1 else f"{root.layer}#{names[root.layer]}"
        group_of[components], unit_of[components] = len(groups), np.arange(len(components))
        if over[components].any():
            statistics.add(name)
        ordered = sorted((axes[axis] for axis in dict.fromkeys(kind.signature)), key=depth)
        groups.append(WidthGroup(name, channels, tuple(f"{axis.layer}.{axis.side}" for axis in ordered), unit))
    table = (
        Axis(stretch.layer, stretch.side, group_of[positions], unit_of[positions])
        for stretch in axes
        for positions in (component[_labels(stretch)],)
    )
    used = tuple(axis for axis in table if (axis.groups >= 0).any())
    return GroupTable(tuple(groups), used, tuple(frozen), frozenset(statistics), ledger.selects)
