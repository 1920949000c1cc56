"""Which channels belong together: width groups out of torch-pruning's dependency graph.

torch-pruning answers, for each channel of a layer, which channels of which other layers go with it. Those answers are
edges of a graph over all (layer, side, position) triples; its connected components are the units, and units that run
through the same axes the same number of times form a width group. Wrong answers are caught by verify.py.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
import torch_pruning
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn
from torch_pruning.ops import OPTYPE

from nni_cafenet.layers import CONVOLUTION, axis_size, owns_its_tensors
from nni_cafenet.space import FrozenPart
from nni_cafenet.tracing.example import Example
from nni_cafenet.tracing.graph import dependency_graph
from nni_cafenet.widths import Axis, IntArray, WidthGroup

logger = logging.getLogger(__name__)

PRODUCERS = (CONVOLUTION, nn.Linear)
SLICED = {OPTYPE.CONV, OPTYPE.DEPTHWISE_CONV, OPTYPE.LINEAR, OPTYPE.BN, OPTYPE.LN, OPTYPE.IN, OPTYPE.PRELU,
          OPTYPE.PARAMETER}  # fmt: skip
NOT_SLICED = {
    OPTYPE.OUTPUT: "it is the model's output",
    OPTYPE.MHA: "it feeds a MultiheadAttention, which is not sliced",
    OPTYPE.LSTM: "it feeds an LSTM, which is not sliced",
    OPTYPE.EMBED: "it is tied to an Embedding, which is not sliced",
    OPTYPE.GN: "it runs through a GroupNorm, whose statistics span channels of one norm group",
    OPTYPE.CUSTOMIZED: "it runs through a layer of an unknown kind",
}


@dataclass(frozen=True)
class GroupTable:
    """The groups of a model, the axes they run through, and what is frozen."""

    groups: tuple[WidthGroup, ...]
    axes: tuple[Axis, ...]
    frozen: tuple[FrozenPart, ...]

    def without(self, dropped: dict[int, str]) -> GroupTable:
        """This table with the groups of these indices frozen for the reason given."""
        if not dropped:
            return self
        keep = [index for index in range(len(self.groups)) if index not in dropped]
        renumber = np.full(len(self.groups) + 1, -1)  # the last entry serves index -1
        renumber[keep] = np.arange(len(keep))
        axes = tuple(
            Axis(axis.layer, axis.side, groups := renumber[axis.groups], np.where(groups >= 0, axis.units, -1))
            for axis in self.axes
        )
        frozen = [
            FrozenPart(self.groups[index].name, self.groups[index].channels, reason)
            for index, reason in dropped.items()
        ]
        return GroupTable(tuple(self.groups[index] for index in keep), axes, (*self.frozen, *frozen))


def find_groups(model: nn.Module, example: Example, *, ignored: Collection[str] = ()) -> GroupTable:
    """The width groups of `model`, whose parameters must all require gradients (frozen ones vanish from the graph).

    Args:
        model: a private copy in eval mode; torch-pruning changes its mode.
        ignored: names of layers whose output channels stay as they are.

    Raises:
        UnsupportedModel: the graph cannot be built.
    """
    builder = _Builder(model)
    graph = dependency_graph(model, example)
    for layer in list(graph.module2node):
        if isinstance(layer, PRODUCERS):
            builder.follow(graph, layer)
    builder.join_conv_groups()
    for name in ignored:
        builder.freeze_layer(name, "named in ignore=")
    builder.freeze_tied_weights()
    return builder.table()


@dataclass
class _OpenAxis:
    """An axis while its positions are being joined; positions are numbered through all axes from `start`."""

    layer: str
    side: str
    size: int
    start: int
    producer: bool  # the output side of a convolution or linear layer
    depth: int  # the layer's place in the model, for an order that people expect


@dataclass
class _Builder:
    model: nn.Module
    axes: dict[tuple[str, str], _OpenAxis] = field(default_factory=dict)
    total: int = 0
    edges: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    frozen: list[tuple[IntArray, str]] = field(default_factory=list)
    covered: set[nn.Module] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.names = {module: name for name, module in self.model.named_modules()}
        self.order = {name: place for place, name in enumerate(self.names.values())}
        self.parameter_names = {id(parameter): name for name, parameter in self.model.named_parameters()}

    def axis(self, layer: str, side: str, size: int, *, producer: bool = False) -> _OpenAxis:
        if (layer, side) not in self.axes:
            depth = self.order.get(layer, len(self.order))
            self.axes[layer, side] = _OpenAxis(layer, side, size, self.total, producer, depth)
            self.total += size
        return self.axes[layer, side]

    def output_axis(self, layer: nn.Module) -> _OpenAxis:
        size = axis_size(layer, "out")
        assert size is not None
        return self.axis(self.names[layer], "out", size, producer=isinstance(layer, PRODUCERS))

    def follow(self, graph: torch_pruning.DependencyGraph, layer: nn.Module) -> None:
        """Join the output channels of `layer` to everything that torch-pruning says goes with them."""
        root = self.output_axis(layer)
        if not owns_its_tensors(layer):
            self.freeze(root, "its weight is computed by a parametrisation or a hook")
        if layer in self.covered:
            return
        try:
            prune_out = graph.get_pruner_of_module(layer).prune_out_channels
            items = graph.get_pruning_group(layer, prune_out, list(range(root.size))).items
        except Exception as error:  # torch-pruning fails on channel shuffle, for one
            reason = f"torch-pruning cannot follow its channels ({type(error).__name__}: {error})"
            logger.info("%s stays at full width: %s", root.layer, reason)
            self.freeze(root, reason)
            return
        for item in items:
            self._join(root, item)
        self.covered.add(layer)

    def _join(self, root: _OpenAxis, item: object) -> None:
        node = item.dep.target  # type: ignore[attr-defined]
        side = "in" if item.dep.handler.__name__ == "prune_in_channels" else "out"  # type: ignore[attr-defined]
        roots = np.array([-1 if index is None else index for index in item.root_idxs])  # type: ignore[attr-defined]
        targets = np.asarray(item.idxs)  # type: ignore[attr-defined]
        known = (roots >= 0) & (roots < root.size)
        reason = NOT_SLICED.get(node.type)
        if reason is None and not node.outputs and side == "out" and node.type != OPTYPE.PARAMETER:
            reason = NOT_SLICED[OPTYPE.OUTPUT]  # the last layer has no OUTPUT node behind it
        if reason is not None:
            self.frozen.append((root.start + roots[known], reason))
        if not known.all():
            self.freeze(root, f"torch-pruning cannot say which of its channels reach {node.name}")
        if node.type not in SLICED:
            return
        axis = self._target_axis(node, side)
        if axis is None:
            return
        fits = known & (targets >= 0) & (targets < axis.size)
        if (known & ~fits).any():
            self.freeze(root, f"torch-pruning maps its channels outside of {axis.layer}")
        self.edges.append((root.start + roots[fits], axis.start + targets[fits]))
        if axis.producer and len(set(targets[fits].tolist())) == axis.size:
            self.covered.add(node.module)  # all of its output is joined already

    def _target_axis(self, node: object, side: str) -> _OpenAxis | None:
        module = node.module  # type: ignore[attr-defined]
        if isinstance(module, nn.Parameter):
            dim = node.pruning_dim % module.dim()  # type: ignore[attr-defined]
            return self.axis(self.parameter_names[id(module)], f"dim{dim}", module.shape[dim])
        if not isinstance(module, PRODUCERS):
            side = "out"  # a norm has one axis
        if side == "out" and isinstance(module, PRODUCERS):
            return self.output_axis(module)
        size = axis_size(module, side)
        return None if size is None else self.axis(self.names[module], side, size)

    def join_conv_groups(self) -> None:
        """The channels of a conv-group, inputs and outputs, are one unit."""
        for module, name in self.names.items():
            if not isinstance(module, CONVOLUTION) or module.groups == 1 or (name, "out") not in self.axes:
                continue
            out = self.axes[name, "out"]
            if module.transposed and module.groups != module.in_channels:
                self.freeze(out, "it is a transposed convolution of several groups, which is not sliced")
            outputs = np.arange(module.out_channels)
            first = outputs // (module.out_channels // module.groups) * (module.out_channels // module.groups)
            self.edges.append((out.start + first, out.start + outputs))
            if (name, "in") in self.axes:
                into = self.axes[name, "in"]
                inputs = np.arange(module.in_channels)
                group = inputs // (module.in_channels // module.groups)
                self.edges.append((out.start + group * (module.out_channels // module.groups), into.start + inputs))

    def freeze(self, axis: _OpenAxis, reason: str) -> None:
        self.frozen.append((axis.start + np.arange(axis.size), reason))

    def freeze_layer(self, name: str, reason: str) -> None:
        for side in ("out", "dim0", "dim1", "dim2", "dim3"):
            if (name, side) in self.axes:
                self.freeze(self.axes[name, side], reason)

    def freeze_tied_weights(self) -> None:
        """Layers that share a parameter keep their widths: slicing one would have to slice the other alike."""
        owners: dict[int, list[str]] = defaultdict(list)
        for module, name in self.names.items():
            for parameter in module._parameters.values():
                if parameter is not None:
                    owners[id(parameter)].append(name)
        for names in owners.values():
            if len(names) > 1:
                for name in names:
                    for key, axis in self.axes.items():
                        if key[0] == name:
                            self.freeze(axis, f"its weight is tied: {' and '.join(names)} share one parameter")

    def table(self) -> GroupTable:
        """The components of the joined positions, gathered into groups."""
        axes = list(self.axes.values())
        left = np.concatenate([pair[0] for pair in self.edges] or [np.zeros(0, int)])
        right = np.concatenate([pair[1] for pair in self.edges] or [np.zeros(0, int)])
        joins = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(self.total, self.total))
        count, component = connected_components(joins, directed=False)
        reasons: dict[int, str] = {}
        for positions, reason in self.frozen:
            for index in np.unique(component[positions]):
                reasons.setdefault(int(index), reason)
        table = _gather(axes, component, count, reasons)
        return replace(table, frozen=(*table.frozen, *self._unreached()))

    def _unreached(self) -> list[FrozenPart]:
        reason = "autograd does not reach it from the output: it is unused, or runs under no_grad"
        # torch-pruning sees an attention as one layer, and never lists its projections
        attended = {
            part for whole in self.names if isinstance(whole, nn.MultiheadAttention) for part in whole.modules()
        }
        return [
            FrozenPart(name, size, reason)
            for module, name in self.names.items()
            if isinstance(module, PRODUCERS)
            and module not in attended
            and (name, "out") not in self.axes
            and (size := axis_size(module, "out"))
        ]


def _gather(axes: list[_OpenAxis], component: IntArray, count: int, reasons: dict[int, str]) -> GroupTable:
    axis_of = np.repeat(np.arange(len(axes)), [axis.size for axis in axes])
    through: list[list[int]] = [[] for _ in range(count)]  # the axes of each component, once for each position
    for position, index in enumerate(component):
        through[index].append(int(axis_of[position]))
    members: dict[tuple[tuple[int, ...], str | None], list[int]] = defaultdict(list)
    for index, passed in enumerate(through):
        if any(axes[axis].producer for axis in passed):
            members[tuple(passed), reasons.get(index)].append(index)

    def root_of(signature: tuple[int, ...]) -> int:
        return min((axis for axis in signature if axes[axis].producer), key=lambda axis: axes[axis].depth)

    groups: list[WidthGroup] = []
    frozen: list[FrozenPart] = []
    group_of, unit_of = np.full(count, -1), np.full(count, -1)
    names: dict[str, int] = defaultdict(int)
    for signature, why in sorted(members, key=lambda key: axes[root_of(key[0])].depth):
        root = axes[root_of(signature)]
        here = component[root.start : root.start + root.size]
        # units are numbered in the order of their channels in the root layer
        components = list(dict.fromkeys(here[np.isin(here, members[signature, why])].tolist()))
        unit = signature.count(root_of(signature))
        channels = unit * len(components)
        if why is not None:
            frozen.append(FrozenPart(root.layer, channels, why))
            continue
        names[root.layer] += 1
        name = root.layer if names[root.layer] == 1 else f"{root.layer}#{names[root.layer]}"
        group_of[components], unit_of[components] = len(groups), np.arange(len(components))
        ordered = sorted(dict.fromkeys(signature), key=lambda axis: axes[axis].depth)
        groups.append(
            WidthGroup(name, channels, tuple(f"{axes[axis].layer}.{axes[axis].side}" for axis in ordered), unit)
        )
    table = tuple(
        Axis(axis.layer, axis.side, group_of[positions], unit_of[positions])
        for axis in axes
        for positions in (component[axis.start : axis.start + axis.size],)
    )
    return GroupTable(tuple(groups), table, tuple(frozen))
