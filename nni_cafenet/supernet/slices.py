"""What running a sub-network swaps into a model: which tensor is cut how, and copying both ways in blocks.

A kept index set is a handful of contiguous runs (base bins, then free ones), so a sliced tensor is a handful of
blocks of the full one; torch._foreach_copy_ copies all blocks of all tensors in one call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import nn

from nni_cafenet.layers import axis_tensors, check_fits, home_of, memory_format, resized_attributes
from nni_cafenet.widths import IntArray, contiguous_runs

MOST_BLOCKS = 64  # above this one gather per dimension is cheaper than a view for each block

Block = tuple[tuple[int, int, int, int], ...]  # (dimension, start in the slice, start in the full tensor, length)


@dataclass(frozen=True, eq=False)
class Kept:
    """Positions that stay along a dimension, as an index and as runs."""

    index: torch.Tensor
    runs: tuple[tuple[int, int, int], ...]  # (start in the slice, start in the full tensor, length)

    @classmethod
    def of(cls, positions: IntArray) -> Kept:
        placed, start = [], 0
        for source, length in contiguous_runs(positions):
            placed.append((start, source, length))
            start += length
        return cls(torch.from_numpy(positions), tuple(placed))


@dataclass(frozen=True, eq=False)
class TensorSlice:
    """One parameter or buffer of `owner`, cut along one or more dimensions."""

    owner: nn.Module
    name: str
    kept: tuple[tuple[int, torch.Tensor], ...]  # (dimension, positions)
    blocks: tuple[Block, ...]  # empty: gather by index instead

    @property
    def full(self) -> torch.Tensor:
        """The uncut tensor, looked up anew: it may have been moved or replaced since."""
        tensor = self._home[self.name]
        assert isinstance(tensor, torch.Tensor)
        return tensor

    @property
    def _home(self) -> dict[str, Any]:
        return self.owner._parameters if self.name in self.owner._parameters else self.owner._buffers

    @property
    def is_parameter(self) -> bool:
        return self.name in self.owner._parameters

    def empty(self, full: torch.Tensor) -> torch.Tensor:
        """Uninitialised memory for the slice of `full`, in the same memory format."""
        shape = list(full.shape)
        for dim, positions in self.kept:
            shape[dim] = len(positions)
        return torch.empty(shape, dtype=full.dtype, device=full.device, memory_format=memory_format(full))

    def views(self, part: torch.Tensor, full: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(view of the slice, view of the full tensor) for each block."""
        inner, outer = part.stride(), full.stride()
        pairs = []
        for block in self.blocks:
            size, into, out_of = list(part.shape), part.storage_offset(), full.storage_offset()
            for dim, start, source, length in block:
                size[dim] = length
                into += start * inner[dim]
                out_of += source * outer[dim]
            # one call each, where narrow would be one for each dimension
            pairs.append((part.as_strided(size, inner, into), full.as_strided(size, outer, out_of)))
        return pairs


@dataclass(frozen=True, eq=False)
class SlicePlan:
    """Everything about running one sub-network that does not depend on the weights."""

    parameters: tuple[TensorSlice, ...]
    buffers: tuple[TensorSlice, ...]
    attributes: tuple[tuple[nn.Module, str, Any], ...]  # (layer, attribute, value while running)


def plan_slices(model: nn.Module, positions: Mapping[tuple[str, str], IntArray]) -> SlicePlan:
    """The plan for running `model` with only these positions, by (layer, side) as SearchSpace.positions gives them.

    Raises:
        UnsupportedModel: the positions do not fit the model.
    """
    layers = dict(model.named_modules())
    dims: dict[tuple[nn.Module, str], dict[int, Kept]] = {}
    attributes: list[tuple[nn.Module, str, Any]] = []
    arrays = {id(each): each for each in positions.values()}  # axes of one pattern share one
    prepared = {key: Kept.of(each) for key, each in arrays.items()}
    for (name, side), places in positions.items():
        layer, kept = layers.get(name), prepared[id(places)]
        check_fits(layer, name, side, int(places[-1]))
        if layer is None:
            owner, attribute, _ = home_of(model, name)
            dims.setdefault((owner, attribute), {})[int(side.removeprefix("dim"))] = kept
            continue
        for tensor, dim in axis_tensors(layer, side):
            dims.setdefault((layer, tensor), {})[dim] = kept
        attributes += [(layer, key, value) for key, value in resized_attributes(layer, side, len(places)).items()]
    slices = [_tensor_slice(owner, name, kept) for (owner, name), kept in dims.items()]
    return SlicePlan(
        tuple(piece for piece in slices if piece.is_parameter),
        tuple(piece for piece in slices if not piece.is_parameter),
        tuple(attributes),
    )


def gather(slices: Sequence[TensorSlice], full: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The slices of the tensors `full`, detached from any graph."""
    parts, inner, outer = [], [], []
    for piece, tensor in zip(slices, full, strict=True):
        tensor = tensor.detach()
        if piece.blocks:
            part = piece.empty(tensor)
            for left, right in piece.views(part, tensor):
                inner.append(left)
                outer.append(right)
        else:
            part = tensor
            for dim, positions in piece.kept:
                part = part.index_select(dim, positions.to(tensor.device))
            part = part.to(memory_format=memory_format(tensor))
        parts.append(part)
    if inner:
        torch._foreach_copy_(inner, outer)
    return parts


def scatter(
    slices: Sequence[TensorSlice], parts: Sequence[torch.Tensor | None], full: Sequence[torch.Tensor]
) -> list[torch.Tensor | None]:
    """Tensors shaped as `full` that hold `parts` in their place and exact zeros elsewhere; None where part is None."""
    wholes: list[torch.Tensor | None] = []
    inner, outer = [], []
    for piece, part, tensor in zip(slices, parts, full, strict=True):
        if part is None:
            wholes.append(None)
            continue
        whole = torch.zeros_like(tensor)
        if piece.blocks:
            for left, right in piece.views(part, whole):
                inner.append(left)
                outer.append(right)
        else:
            index: list[Any] = [slice(None)] * whole.dim()
            for place, (dim, positions) in enumerate(piece.kept):
                shape = [1] * len(piece.kept)
                shape[place] = -1
                index[dim] = positions.to(whole.device).view(shape)
            whole[tuple(index)] = part
        wholes.append(whole)
    if inner:
        torch._foreach_copy_(outer, inner)
    return wholes


class Sliced(torch.autograd.Function):
    """Differentiable gather: slices of parameters forward, gradients back in place with zeros around them."""

    @staticmethod
    def forward(ctx: Any, slices: Sequence[TensorSlice], *full: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.slices, ctx.full = slices, [tensor.detach() for tensor in full]
        ctx.set_materialize_grads(False)
        return tuple(gather(slices, full))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        return None, *scatter(ctx.slices, gradients, ctx.full)


def _tensor_slice(owner: nn.Module, name: str, kept: dict[int, Kept]) -> TensorSlice:
    blocks: tuple[Block, ...] = ()
    if math.prod(len(each.runs) for each in kept.values()) <= MOST_BLOCKS:
        blocks = tuple(product(*([(dim, *run) for run in each.runs] for dim, each in kept.items())))
    return TensorSlice(owner, name, tuple((dim, each.index) for dim, each in sorted(kept.items())), blocks)
