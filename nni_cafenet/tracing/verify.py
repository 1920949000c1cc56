"""The oracles that every space must pass: a wrong group is frozen by name, never a wrong network.

On a private copy in float64, with random BatchNorm statistics and values in zero-initialised weights (else equality
proves nothing):

- permutation: reordering a group's units everywhere must not change the output, whatever the layers in between;
- removal: the sliced network must give the output of the full one whose consumers ignore the removed channels.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import nn

from nni_cafenet.cost import CostModel
from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.export.slicing import slice_layers
from nni_cafenet.layers import CONVOLUTION, NORM_TENSORS, axis_tensors
from nni_cafenet.tracing.example import Example, output_tensors
from nni_cafenet.tracing.groups import GroupTable
from nni_cafenet.tracing.macs import total_macs
from nni_cafenet.widths import Axis, IntArray, Widths, kept_positions

logger = logging.getLogger(__name__)

REDRAWS = 5  # of a cut that leaves the network dead
TOLERANCE = 1e-7  # relative; float64 rounding is near 1e-12, one wrong channel far above


def verified(model: nn.Module, table: GroupTable, example: Example, *, rng: np.random.Generator) -> GroupTable:
    """`table` without the groups that fail an oracle, which are frozen with the reason.

    Args:
        model: a private copy in eval mode; not changed.

    Raises:
        UnsupportedModel: groups that pass one by one fail together.
    """
    oracle = _Oracle(model, table, example, rng)
    everything = range(len(table.groups))
    if oracle.fault(everything) is None:
        return table
    faults = {index: fault for index in everything if (fault := oracle.fault([index])) is not None}
    for index, fault in faults.items():
        logger.info("%s stays at full width: %s", table.groups[index].name, fault)
    rest = [index for index in everything if index not in faults]
    fault = oracle.fault(rest)
    if fault is not None:
        names = ", ".join(table.groups[index].name for index in rest)
        raise UnsupportedModel(
            f"the groups {names} pass the check one by one but not together ({fault}): "
            f"name the layers whose channels the forward handles in a special way in ignore="
        )
    return table.without(faults)


def check_cost(
    model: nn.Module, table: GroupTable, cost: CostModel, example: Example, *, rng: np.random.Generator
) -> None:
    """fvcore and numel() on a sliced copy must agree with `cost`, whose bins are single units.

    Raises:
        UnsupportedModel: they do not.
    """
    widths = Widths(tuple(int(rng.integers(1, group.units + 1)) for group in table.groups))
    kept: list[IntArray | None] = [np.arange(width) for width in widths.bins_kept]
    slim = slice_layers(model, kept_positions(table.axes, kept))
    counted = total_macs(slim, example.first_image())
    numel = sum(parameter.numel() for parameter in slim.parameters())
    if (counted, numel) != (cost.macs(widths), cost.params(widths)):
        raise UnsupportedModel(
            f"the cost model says {cost.macs(widths):,} MACs and {cost.params(widths):,} parameters of a sliced copy "
            f"of {type(model).__name__}, fvcore counts {counted:,} and numel() {numel:,}: the cost is not bilinear in "
            f"the widths; name the layers with unusual arithmetic in ignore="
        )


class _Oracle:
    def __init__(self, model: nn.Module, table: GroupTable, example: Example, rng: np.random.Generator) -> None:
        self.table, self.example, self.rng = table, example.double().map(_lively), rng
        self.model = copy.deepcopy(model).double().eval()
        randomise(self.model, seed=int(rng.integers(2**31)))
        self.other_example = self.example.map(_disturbed)
        self.expected = self._outputs(self.model)
        if not all(torch.isfinite(out).all() for out in self.expected):
            raise UnsupportedModel(f"{type(model).__name__} gives NaN or infinity on the example inputs")
        spanning = {name for name, layer in self.model.named_modules() if isinstance(layer, nn.LayerNorm)}
        self.spanned = {int(group) for axis in table.axes if axis.layer in spanning for group in axis.groups}

    def fault(self, groups: Collection[int]) -> str | None:
        """What is wrong with slicing these groups, or None."""
        try:
            if not _close(self._outputs(self._permuted(groups)), self.expected):
                return "reordering its channels changes the output, so not all that goes with them was found"
            for lowest, highest in ((0.5, 1.0), (0.0, 0.5)):
                fault = self._removal_fault(groups, lowest, highest)
                if fault is not None:
                    return fault
        except Exception as error:  # a third-party forward may raise anything at other widths
            return f"the forward fails when it is sliced ({type(error).__name__}: {error})"
        return None

    def _removal_fault(self, groups: Collection[int], lowest: float, highest: float) -> str | None:
        for _ in range(REDRAWS):
            kept = self._some(groups, lowest, highest)
            sliced = slice_layers(self.model, kept_positions(self.table.axes, kept))
            slim = self._outputs(sliced)
            if [out.shape for out in slim] != [out.shape for out in self.expected]:
                return "slicing it changes the shape of the output"
            if not self.spanned.isdisjoint(groups):
                return None  # a LayerNorm's statistics change with its channels, as they should
            if not _close(slim, self._outputs(self._ignoring(kept))):
                return "the sliced network differs from the full one that ignores the removed channels"
            if not _close(slim, self._outputs(sliced, self.other_example)):
                return None
            # the cut left a layer of ReLUs dead: equal constants prove nothing
        return None

    def _outputs(self, model: nn.Module, example: Example | None = None) -> list[torch.Tensor]:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a forward may draw random numbers, in eval mode too
            return output_tensors((example or self.example).run(model))

    def _some(self, groups: Collection[int], lowest: float, highest: float) -> list[IntArray | None]:
        """A random share, `lowest` to `highest`, of each group's units; never all of them where there are several."""
        kept: list[IntArray | None] = [None] * len(self.table.groups)
        for index in groups:
            units = self.table.groups[index].units
            most = max(min(int(highest * units), units - 1), 1)
            least = min(max(int(lowest * units), 1), most)
            size = int(self.rng.integers(least, most + 1))
            kept[index] = np.sort(self.rng.choice(units, size=size, replace=False))
        return kept

    def _permuted(self, groups: Collection[int]) -> nn.Module:
        orders = {index: self.rng.permutation(self.table.groups[index].units) for index in groups}
        model = copy.deepcopy(self.model)
        layers = dict(model.named_modules())
        for axis in self.table.axes:
            source = torch.from_numpy(_reordered(axis, orders))
            if axis.layer in layers:
                tensors = [(getattr(layers[axis.layer], n), d) for n, d in axis_tensors(layers[axis.layer], axis.side)]
            else:
                tensors = [(model.get_parameter(axis.layer), int(axis.side.removeprefix("dim")))]
            for tensor, dim in tensors:
                tensor.data = tensor.data.index_select(dim, source.to(tensor.device))
        return model

    def _ignoring(self, kept: Sequence[IntArray | None]) -> nn.Module:
        """The full network with the weights that read a removed channel set to 0."""
        model = copy.deepcopy(self.model)
        layers = dict(model.named_modules())
        for axis in self.table.axes:
            positions = axis.positions(kept)
            layer = layers.get(axis.layer)
            if axis.side != "in" or positions is None or layer is None:
                continue
            if isinstance(layer, CONVOLUTION) and layer.groups > 1:
                continue  # its outputs go together with its inputs
            removed = torch.from_numpy(np.setdiff1d(np.arange(axis.size), positions))
            for name, dim in axis_tensors(layer, "in"):
                weight = getattr(layer, name).data
                weight.index_fill_(dim, removed.to(weight.device), 0)
        return model


def randomise(model: nn.Module, *, seed: int) -> None:
    """Random BatchNorm statistics and affine, and values in constant weights, in place: for equality checks."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64) * (high - low) + low
        return drawn.to(like.device, like.dtype)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
                for name in NORM_TENSORS:
                    tensor = getattr(module, name, None)
                    if tensor is not None:
                        low, high = (0.5, 1.5) if name in ("weight", "running_var") else (-0.5, 0.5)
                        tensor.copy_(uniform(tensor, low, high))
        for parameter in model.parameters():
            if parameter.is_floating_point() and parameter.numel() > 1 and (parameter == parameter.flatten()[0]).all():
                parameter.copy_(uniform(parameter, -0.5, 0.5))


def _lively(tensor: torch.Tensor) -> torch.Tensor:
    """Noise in the place of constant inputs, such as torch.zeros: they would hide much of what a network does."""
    if not tensor.is_floating_point() or (tensor != tensor.flatten()[0]).any():
        return tensor
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)


def _disturbed(tensor: torch.Tensor) -> torch.Tensor:
    """Another input of the same range: the values in reverse order, a little louder."""
    return tensor.flatten().flip(0).view(tensor.shape) * 1.1 if tensor.is_floating_point() else tensor


def _reordered(axis: Axis, orders: dict[int, IntArray]) -> IntArray:
    """For each position the one whose content it gets when unit u of group g gets the content of orders[g][u]."""
    source = np.arange(axis.size)
    for group, order in orders.items():
        here = np.flatnonzero(axis.groups == group)
        if here.size:
            # positions by (unit, occurrence): row u holds the positions of unit u
            by_unit = here[np.argsort(axis.units[here], kind="stable")].reshape(len(order), -1)
            source[by_unit] = by_unit[order]
    return source


def _close(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(
        a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * max(float(b.abs().max()), 1e-30)
        for a, b in zip(left, right, strict=True)
        if a.numel()
    )
