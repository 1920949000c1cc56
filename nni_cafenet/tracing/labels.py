"""Which channel does each element of a tensor carry? Labels, and what is learnt of them while a forward runs.

A label stands for one position of one axis (layer, side). A tensor's labels are a few *slots*: integer tensors of as
many dimensions as the tensor, of size 1 along the dimensions where the label does not vary. A feature map has one slot,
of shape (1, C, 1, 1); a convolution's weight two, (out, 1, 1, 1) and (1, in, 1, 1). -1 stands for no channel, such as
padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from nni_cafenet.widths import IntArray

Slot = torch.Tensor
Slots = tuple[Slot, ...]


@dataclass
class Ledger:
    """What is learnt of the labels: which go together, which must stay, which feed a statistic."""

    count: int = 0
    joins: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    frozen: list[tuple[IntArray, str]] = field(default_factory=list)
    spanned: list[IntArray] = field(default_factory=list)  # a statistic is taken over them, as by a LayerNorm
    produced: list[IntArray] = field(default_factory=list)  # a layer's own output channels
    decides: str | None = None  # a module that reads the value of a tensor, as a branch does
    selects: bool = False  # whether some operation picks by value, as a detector picks boxes

    def new(self, count: int) -> int:
        """The first of `count` new labels."""
        self.count += count
        return self.count - count

    def join(self, left: Slot, right: Slot) -> None:
        """Elements in the same place (of the broadcast shape) belong together; padding beside a channel freezes it."""
        ours, theirs = (_flat(side) for side in torch.broadcast_tensors(left, right))
        both = (ours >= 0) & (theirs >= 0) & (ours != theirs)
        if both.any():
            self.joins.append((ours[both], theirs[both]))
        alone = (ours >= 0) != (theirs >= 0)
        if alone.any():
            reason = "it is added to channels that are no layer's, as padding"
            self.frozen.append((np.maximum(ours, theirs)[alone], reason))

    def join_along(self, slot: Slot, dim: int) -> Slot:
        """Elements along `dim` belong together; the slot with that dimension reduced to 1."""
        first = slot.narrow(dim, 0, 1)
        if slot.shape[dim] > 1:
            self.join(first, slot)
        return first

    def components(self) -> IntArray:
        """For each label the number of what hangs together with it."""
        left = np.concatenate([pair[0] for pair in self.joins] or [np.zeros(0, int)])
        right = np.concatenate([pair[1] for pair in self.joins] or [np.zeros(0, int)])
        joins = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(self.count, self.count))
        found: IntArray = connected_components(joins, directed=False)[1]
        return found

    def hangs_together(self, slot: Slot, dims: Iterable[int]) -> bool:
        """Whether what is in the same place but along `dims` has been joined before."""
        component = np.append(self.components(), -1)[slot.numpy()]  # the last entry serves label -1
        return all((component == component.take([0], axis=dim)).all() for dim in dims)

    def freeze(self, slots: Iterable[Slot], reason: str) -> None:
        """The labels of `slots` stay."""
        self.frozen.extend((_labels(slot), reason) for slot in slots)

    def span(self, slot: Slot) -> None:
        """A statistic is taken over the labels of `slot`, which changes with their number."""
        self.spanned.append(_labels(slot))

    def produce(self, slot: Slot) -> None:
        """The labels of `slot` come out of a layer."""
        self.produced.append(_labels(slot))


def varying(slot: Slot) -> set[int]:
    """The dimensions along which the label varies."""
    return {dim for dim, size in enumerate(slot.shape) if size > 1}


def aligned(slot: Slot, dims: int) -> Slot:
    """The slot with leading dimensions of size 1, as broadcasting adds them."""
    return slot.reshape(*(1,) * (dims - slot.dim()), *slot.shape)


def compressed(labels: torch.Tensor) -> Slot:
    """A slot out of the labels of every element."""
    for dim, size in enumerate(labels.shape):
        if size > 1:
            first = labels.narrow(dim, 0, 1)
            if labels.stride(dim) == 0 or bool((labels == first).all()):
                labels = first
    return labels


def without_dims(slot: Slot, dims: Sequence[int], *, keepdim: bool) -> Slot:
    """The slot of a tensor reduced over `dims`, along which the slot does not vary any more."""
    for dim in sorted(dims, reverse=True):
        slot = slot.narrow(dim, 0, 1) if keepdim else slot.select(dim, 0)
    return slot


def _flat(slot: Slot) -> IntArray:
    return slot.reshape(-1).numpy()


def _labels(slot: Slot) -> IntArray:
    labels: IntArray = np.unique(_flat(slot))
    return labels[labels >= 0]
