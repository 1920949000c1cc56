"""The oracles that every space must pass: a wrong group is frozen by name, never a wrong network.

On a private copy in float64, with random BatchNorm statistics and values in zero-initialised weights (else equality
proves nothing):

- permutation: reordering a group's units everywhere must not change the output, whatever the layers in between;
- removal: the sliced network must give the output of the full one whose consumers ignore the removed channels.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from nni_cafenet.cost import CostModel
from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.export.slicing import slice_layers
from nni_cafenet.tracing.example import Example, output_tensors
from nni_cafenet.tracing.groups import GroupTable
from nni_cafenet.tracing.macs import total_macs
from nni_cafenet.tracing.trial import (
    Swaps,
    disturbed,
    doubled,
    enliven,
    lively,
    new_tensors_in,
    permuted,
    randomise,
    swapped,
    tensors_along,
)
from nni_cafenet.widths import IntArray, Widths, kept_positions

logger = logging.getLogger(__name__)


LEAST = (2, 4, 8)  # units that are tried where 1 is too few, as for a statistic over a single channel
SMALL = 2**22  # elements; layers with larger weights have biases or norms to tell of them
REDRAWS = 5  # of a cut that leaves the network dead
TOLERANCE = 1e-7  # relative; float64 rounding is near 1e-12, one wrong channel far above


def verified(
    model: nn.Module, table: GroupTable, example: Example, *, rng: np.random.Generator, small: Example | None = None
) -> GroupTable:
    """`table` without the groups that fail an oracle, which are frozen with the reason.

    Args:
        model: a private copy in eval mode; not changed.
        small: the example with smaller images, which are quicker, where all groups show on them.

    Raises:
        UnsupportedModel: the model gives NaN or infinity.
    """
    oracle = _Oracle(model, table, small or example, rng)
    if oracle.unseen and small is not None and small is not example:  # an attention over one position is a constant
        oracle = _Oracle(model, table, example, rng)
    faults = dict.fromkeys(oracle.unseen, "nothing that the model returns depends on it, on the example")
    passed: Sequence[int] = [index for index in range(len(table.groups)) if index not in faults]
    for check in (oracle.crash, oracle.fault):  # first what is cheap to find
        while found := _faults(check, passed):
            faults |= found
            passed = [index for index in passed if index not in found]
            oracle.draw_anew()
    least = _least_units(oracle, passed, faults)
    for index, fault in faults.items():
        logger.info("%s stays at full width: %s", table.groups[index].name, fault)
    groups = tuple(
        replace(group, least=least[index] * group.unit) if least.get(index, 1) > 1 else group
        for index, group in enumerate(table.groups)
    )
    return replace(table, groups=groups).without(faults)


def _faults(check: Callable[[Sequence[int]], str | None], groups: Sequence[int]) -> dict[int, str]:
    """What is wrong with which of `groups`, found by halving: most networks have no fault, some a few."""
    fault = check(groups) if groups else None
    if fault is None:
        return {}
    if len(groups) == 1:
        return {groups[0]: fault}
    half = len(groups) // 2
    found = {**_faults(check, groups[:half]), **_faults(check, groups[half:])}
    if not found:  # each half passes, both together do not
        together = list(groups[:half])
        for index in groups[half:]:
            fault = check([*together, index])
            if fault is None:
                together.append(index)
            else:
                found[index] = f"together with other layers {fault}"
    return found


def _least_units(oracle: _Oracle, groups: Sequence[int], faults: dict[int, str]) -> dict[int, int]:
    """The fewest units of each group with which the forward works; what fails at all of LEAST joins `faults`."""
    least = dict.fromkeys(groups, 1)

    def failing() -> dict[int, str]:
        return _faults(lambda some: oracle.smallest_fault({index: least[index] for index in some}), list(least))

    for more in LEAST:
        found = failing()
        if not found:
            return least
        least |= {index: min(more, oracle.table.groups[index].units) for index in found}
    faults.update(failing())
    return least


def check_cost(
    model: nn.Module,
    table: GroupTable,
    cost: CostModel,
    example: Example,
    *,
    rng: np.random.Generator,
    data_dependent: Collection[str] = (),
) -> None:
    """fvcore and numel() on a sliced copy must agree with `cost`, whose bins are single units.

    Args:
        data_dependent: layers whose MACs are not compared.

    Raises:
        UnsupportedModel: they do not.
    """
    widths = Widths(tuple(int(rng.integers(1, len(units))) for units in cost.units))
    kept: list[IntArray | None] = [
        np.arange(units[width]) for units, width in zip(cost.units, widths.bins_kept, strict=True)
    ]
    slim = slice_layers(model, kept_positions(table.axes, kept), share=True)
    counted = total_macs(slim, example.first_image(), without=data_dependent)
    expected = cost.macs(widths) - sum(cost.layer_macs(widths).get(layer, 0) for layer in data_dependent)
    numel = sum(parameter.numel() for parameter in slim.parameters())
    if (counted, numel) != (expected, cost.params(widths)):
        raise UnsupportedModel(
            f"the cost model says {expected:,} MACs and {cost.params(widths):,} parameters of a sliced copy "
            f"of {type(model).__name__}, fvcore counts {counted:,} and numel() {numel:,}: the cost is not bilinear in "
            f"the widths; name the layers with unusual arithmetic in ignore="
        )


class _Oracle:
    def __init__(self, model: nn.Module, table: GroupTable, example: Example, rng: np.random.Generator) -> None:
        self.plain, self.plain_example = model, example  # to see whether it runs: float64 is several times slower
        self.table, self.example, self.rng = table, example.double().map(lively), rng
        self.draw_anew()
        self.model = doubled(model).eval()
        self.tensors = tensors_along(self.model, table.axes)
        # layers of full width say more than the output, which a detector cuts out of them
        narrowed = {axis.layer for axis in table.axes if axis.side != "in"}
        self.observed = {part.layer for part in table.frozen} - narrowed
        self.other_example = self.example.map(disturbed)
        self.unseen = list(range(len(table.groups)))
        try:
            for _ in range(REDRAWS):  # a narrow layer of ReLUs may be dead by chance
                randomise(self.model, seed=int(rng.integers(2**31)))
                enliven(self.model, lambda: self._outputs(self.model))
                before, self.unseen = self.unseen, self._unseen()
                if not self.unseen or self.unseen == before:
                    break
            self.expected = self._outputs(self.model)
        except Exception as error:  # a forward that works in one precision alone, for it ran on the example before
            raise UnsupportedModel(
                f"the forward of {type(model).__name__} fails in float64, in which its channels are checked "
                f"({type(error).__name__}: {error}): let it cast to the dtype of its input or its weights instead of "
                f"a fixed one"
            ) from error
        if not all(torch.isfinite(out).all() for out in self.expected):
            raise UnsupportedModel(f"{type(model).__name__} gives NaN or infinity on the example inputs")

    def draw_anew(self) -> None:
        """Cut and reorder in another way from here on. Until then a group is cut alike whichever others are, so that
        halving finds the one to blame."""
        self.seed = int(self.rng.integers(2**31))

    def _unseen(self) -> list[int]:
        """Groups on which no output depends, so that no comparison could find a fault of theirs."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.numel() <= SMALL]
        with torch.enable_grad():
            model = slice_layers(self.model, {}, share=True)  # a forward may cache what carries gradients
            seen = [out for out in self._outputs(model, gradients=True) if out.requires_grad]
            if not seen:
                return []
            found = torch.autograd.grad([out.square().sum() for out in seen], parameters, allow_unused=True)
        gradients = zip(parameters, found, strict=True)
        moved = {id(parameter) for parameter, gradient in gradients if gradient is not None and gradient.any()}
        alive: set[int] = set()
        for axis in self.table.axes:
            if any(id(getattr(owner, name)) in moved for owner, name, _ in self.tensors[axis.key]):
                alive.update(axis.groups.tolist())
        return [index for index in range(len(self.table.groups)) if index not in alive]

    def crash(self, groups: Sequence[int]) -> str | None:
        """Why the forward fails when these groups are sliced, or None."""
        try:
            slim = slice_layers(self.plain, kept_positions(self.table.axes, self._cuts(groups, REDRAWS)[0]), share=True)
            self._outputs(slim, self.plain_example)
        except Exception as error:  # a third-party forward may raise anything at other widths
            return f"the forward fails when it is sliced ({type(error).__name__}: {error})"
        return None

    def fault(self, groups: Sequence[int]) -> str | None:
        """What is wrong with slicing these groups, or None."""
        try:
            with swapped(permuted(self.table.axes, self.tensors, self._orders(groups))):
                reordered = self._outputs(self.model)
            if not _close(reordered, self.expected):
                return "reordering its channels changes the output, so not all that goes with them was found"
            return self._removal_fault(groups)
        except Exception as error:  # a third-party forward may raise anything at other widths
            return f"the forward fails when it is sliced ({type(error).__name__}: {error})"

    def smallest_fault(self, least: Mapping[int, int]) -> str | None:
        """What is wrong with keeping so many units of these groups, or None."""
        kept: list[IntArray | None] = [None] * len(self.table.groups)
        for index, units in least.items():
            kept[index] = np.arange(units)
        try:
            finite = all(torch.isfinite(out).all() for out in self._outputs(self._sliced(kept)))
        except Exception as error:  # whatever a third-party forward raises
            return f"the forward fails at few channels ({type(error).__name__}: {error})"
        return None if finite else "the output is not finite at few channels"

    def _removal_fault(self, groups: Sequence[int]) -> str | None:
        # a statistic over channels changes with their number, as it should: nothing to compare it with but itself
        spanned = [index for index in groups if self.table.groups[index].name in self.table.spanned]
        for kept in self._cuts(groups) if spanned else ():
            slim = self._outputs(self._sliced(kept))
            if [out.shape for out in slim] != [out.shape for out in self.expected]:
                return "slicing it changes the shape of the output"
            orders = self._orders(spanned)
            same = list(kept)
            for index, order in orders.items():
                units = kept[index]
                assert units is not None
                same[index] = np.flatnonzero(np.isin(order, units))
            with swapped(permuted(self.table.axes, self.tensors, orders)):
                reordered = self._outputs(self._sliced(same))
            if all(out.isfinite().all() for out in slim) and not _close(slim, reordered):
                return "the same channels in another order, sliced, give another output"
        rest = [index for index in groups if index not in spanned]
        for attempt in range(REDRAWS if rest else 0):
            alive = True
            for kept in self._cuts(rest, attempt):
                sliced = self._sliced(kept)
                slim = self._outputs(sliced)
                with swapped(self._ignoring(kept)):
                    ignoring = self._outputs(self.model)
                if not _close(slim, ignoring):
                    return "the sliced network differs from the full one that ignores the removed channels"
                alive = alive and not _close(slim, self._outputs(sliced, self.other_example))
            if alive:
                return None
            # a cut left a layer of ReLUs dead: equal constants prove nothing
        return None

    def _sliced(self, kept: Sequence[IntArray | None]) -> nn.Module:
        return slice_layers(self.model, kept_positions(self.table.axes, kept), share=True)

    def _outputs(
        self, model: nn.Module, example: Example | None = None, *, gradients: bool = False
    ) -> list[torch.Tensor]:
        """The outputs of the model, and of the layers that are observed."""
        seen: list[torch.Tensor] = []

        def observe(layer: nn.Module, inputs: object, output: object) -> None:
            seen.extend(output_tensors(output))

        layers = [layer for name, layer in model.named_modules() if name in self.observed]
        handles = [layer.register_forward_hook(observe) for layer in layers]
        try:
            with (
                torch.set_grad_enabled(gradients),
                torch.random.fork_rng(devices=[]),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # at odd widths a forward may warn, and warnings may be errors
                torch.manual_seed(0)  # a forward may draw random numbers, in eval mode too
                with nullcontext() if example is self.plain_example else new_tensors_in(torch.float64):
                    returned = output_tensors((example or self.example).run(model))
                return seen if self.table.selects and seen else [*returned, *seen]
        finally:
            for handle in handles:
                handle.remove()

    def _cuts(self, groups: Collection[int], attempt: int = 0) -> tuple[list[IntArray | None], list[IntArray | None]]:
        """A random half or more of each group's units, and the others: each unit is once there and once away."""
        more: list[IntArray | None] = [None] * len(self.table.groups)
        fewer = list(more)
        for index in groups:
            units = self.table.groups[index].units
            rng = np.random.default_rng((self.seed, attempt, index))
            order = rng.permutation(units)
            size = int(rng.integers((units + 1) // 2, 3 * units // 4 + 1)) if units > 1 else 1
            more[index], fewer[index] = np.sort(order[:size]), np.sort(order[size:] if units > 1 else order)
        return more, fewer

    def _orders(self, groups: Collection[int]) -> dict[int, IntArray]:
        rngs = {index: np.random.default_rng((self.seed, index)) for index in groups}
        return {index: rng.permutation(self.table.groups[index].units) for index, rng in rngs.items()}

    def _ignoring(self, kept: Sequence[IntArray | None]) -> Swaps:
        """The weights of the full network, with 0 for what reads a removed channel."""
        swaps: Swaps = {}
        for axis in self.table.axes:
            positions = axis.positions(kept) if axis.side == "in" else None
            if positions is not None:
                removed = torch.from_numpy(np.setdiff1d(np.arange(axis.size), positions))
                for owner, name, dim in self.tensors[axis.key]:
                    tensor = swaps.get((owner, name), getattr(owner, name))
                    swaps[owner, name] = tensor.detach().index_fill(dim, removed.to(tensor.device), 0)
        return swaps


def _close(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(
        a.shape == b.shape and float((a - b).abs().max()) <= TOLERANCE * max(float(b.abs().max()), 1e-30)
        for a, b in zip(left, right, strict=True)
        if a.numel()
    )
