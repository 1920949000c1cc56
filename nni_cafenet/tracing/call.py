"""What is known of one operation of a running forward, and what do all rules need?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from nni_cafenet.tracing.labels import Ledger, Slot, Slots, aligned, compressed, varying


@dataclass
class Call:
    """One operation of a running forward."""

    operation: torch._ops.OpOverload
    arguments: dict[str, Any]  # by the names of torch's schema
    outputs: list[torch.Tensor]
    ledger: Ledger
    slots_of: Callable[[torch.Tensor], Slots]
    where: str  # the module that is running

    def slots(self, name: str) -> Slots:
        """The slots of a tensor argument; none where it is absent."""
        tensor = self.arguments.get(name)
        return self.slots_of(tensor) if isinstance(tensor, torch.Tensor) else ()

    def inputs(self) -> list[torch.Tensor]:
        return [leaf for leaf in pytree.tree_leaves(self.arguments) if isinstance(leaf, torch.Tensor)]

    def tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self.arguments[name]
        return tensor

    def dims(self, name: str = "dim", *, of: str = "self") -> list[int]:
        """The dimensions that an argument names, from 0; all of them where it names none."""
        given, count = self.arguments.get(name), self.tensor(of).dim()
        given = [given] if isinstance(given, int) else given
        return [dim % count for dim in given] if given else list(range(count))


Rule = Callable[[Call], list[Slots]]


def unknown(call: Call) -> list[Slots]:
    """What enters an operation that is not in the table stays at full width."""
    name = call.operation.overloadpacket
    for tensor in call.inputs():
        call.ledger.freeze(call.slots_of(tensor), f"it runs through {name} in {call.where}, which is not followed")
    return [() for _ in call.outputs]


def merged(ledger: Ledger, combined: list[Slot], slots: Sequence[Slot], dims: int) -> list[Slot]:
    """The slots of two operands of an elementwise operation; those along the same dimensions are joined."""
    for slot in slots:
        slot = aligned(slot, dims)
        same = [other for other in combined if varying(other) & varying(slot)]
        rest = [other for other in combined if not varying(other) & varying(slot)]
        if len(same) > 1:
            ledger.freeze([*same, slot], "its channels meet those of two other layers at once")
            combined = rest
            continue
        for other in same:
            ledger.join(other, slot)
            other, slot = torch.broadcast_tensors(other, slot)
            slot = compressed(torch.where(other >= 0, other, slot))
        combined = [*rest, slot]
    return combined
