"""How do operations that move data pass channels on? Views, cuts, concatenations: what holds for the data holds for
the labels.
"""

from __future__ import annotations

import torch
from torch.utils import _pytree as pytree

from nni_cafenet.tracing.call import Call, merged, unknown
from nni_cafenet.tracing.labels import Slot, Slots, aligned, compressed, varying


def move(call: Call) -> list[Slots]:
    """Data is only moved: the same operation on the labels tells where they go."""
    source = next(name for name in ("self", "input") if name in call.arguments)
    tensor = call.tensor(source)
    found: list[list[Slot]] = [[] for _ in call.outputs]
    for slot in call.slots(source):
        moved = _moved(call, source, slot.expand(tensor.shape))
        for slots, labels in zip(found, moved, strict=True):
            piece = compressed(labels)
            if piece.numel() > 1:
                slots.append(piece)
            else:
                call.ledger.freeze([piece], f"a single one of its channels is picked out in {call.where}")
    return [tuple(slots) for slots in found]


def view(call: Call) -> list[Slots]:
    """A dimension may be split, as for a channel shuffle or heads: then whole rows or columns go together."""
    tensor, out = call.tensor("self"), call.outputs[0]
    asked = list(call.arguments["size"])
    found = []
    for slot in call.slots("self"):
        piece = compressed(slot.expand(tensor.shape).reshape(out.shape))
        dims = sorted(varying(piece))
        if len(dims) > len(varying(slot)):
            # sizes that the forward computes from its input are usually written last (groups, channels // groups)
            flexible = next((dim for dim in dims if asked[dim] == -1), dims[-1])
            for dim in dims:
                if dim != flexible:
                    call.ledger.join_along(piece, dim)
        found.append(piece)
    return [tuple(found)]


def as_strided(call: Call) -> list[Slots]:
    """Another layout in memory, as pooling to one pixel does for channels last."""
    same = call.outputs[0].shape == call.tensor("self").shape
    return [call.slots("self")] if same else unknown(call)


def split(call: Call) -> list[Slots]:
    """Equal parts, as by chunk(), keep equal sizes: what is in the same place of each goes together."""
    dim = call.dims()[0] if "dim" in call.arguments else 0
    pieces = move(call)
    if len({out.shape[dim] for out in call.outputs}) == 1:
        for slot, *others in zip(*pieces, strict=False):
            for other in others:
                if dim in varying(slot) and slot.shape == other.shape:
                    call.ledger.join(slot, other)
    return pieces


def slice_(call: Call) -> list[Slots]:
    """One of several equal parts, as x[:, : c // 2] or x[:, ::2], is treated as if all of them had been taken."""
    dim = call.dims()[0] if "dim" in call.arguments else 0
    size, length = call.tensor("self").shape[dim], call.outputs[0].shape[dim]
    start, step = call.arguments.get("start") or 0, call.arguments.get("step") or 1
    start = start + size if start < 0 else start
    for slot in call.slots("self") if length and size % length == 0 else ():
        if dim in varying(slot) and step == 1 and start % length == 0:
            call.ledger.join_along(slot.unflatten(dim, (size // length, length)), dim)
        elif dim in varying(slot) and step == size // length:
            call.ledger.join_along(slot.unflatten(dim, (length, step)), dim + 1)
    return move(call)


def pad(call: Call) -> list[Slots]:
    """Places that are put around a channel are its own; channels that are put beside others are no layer's."""
    amounts, last = list(call.arguments["pad"]), call.tensor("self").dim() - 1
    found = []
    for slot in call.slots("self"):
        along = [amount if last - place // 2 in varying(slot) else 0 for place, amount in enumerate(amounts)]
        found.append(torch.constant_pad_nd(slot, along, -1))
    return [tuple(found)]


def roll(call: Call) -> list[Slots]:
    """Which channels change places depends on their number; places are rolled alike for all channels."""
    rolled = set(call.dims("dims"))
    turned = [slot for slot in call.slots("self") if varying(slot) & rolled]
    call.ledger.freeze(turned, f"its channels are taken in order in {call.where}")
    return [tuple(slot for slot in call.slots("self") if not varying(slot) & rolled)]


def channel_shuffle(call: Call) -> list[Slots]:
    """As by a view to (N, groups, C / groups, ...): what is in the same place of each group goes together."""
    for slot in call.slots("self"):
        if 1 in varying(slot):
            call.ledger.join_along(slot.unflatten(1, (call.arguments["groups"], -1)), 1)
    return move(call)


def cat(call: Call) -> list[Slots]:
    """Side by side along one dimension; along the others, channels in the same place go together."""
    tensors = [tensor for tensor in call.arguments["tensors"] if tensor.numel()]
    out = call.outputs[0]
    dim = int(call.arguments.get("dim", 0)) % out.dim()
    along, across = [], []
    for tensor in tensors:
        slots = call.slots_of(tensor)
        along.append([slot for slot in slots if dim in varying(slot)])
        across.append([slot for slot in slots if dim not in varying(slot)])
    combined: list[Slot] = []
    for others in across:
        combined = merged(call.ledger, combined, others, out.dim())
    if any(len(slots) > 1 for slots in along):
        return unknown(call)
    if any(along):
        labels = [
            (slots[0] if slots else torch.full((1,) * out.dim(), -1)).expand(tensor.shape)
            for slots, tensor in zip(along, tensors, strict=True)
        ]
        combined.append(compressed(torch.cat(labels, dim)))
    return [_checked(call, combined)]


def stack(call: Call) -> list[Slots]:
    """Side by side along a new dimension: channels in the same place go together."""
    out = call.outputs[0]
    dim = int(call.arguments.get("dim", 0)) % out.dim()
    combined: list[Slot] = []
    for tensor in call.arguments["tensors"]:
        combined = merged(call.ledger, combined, [slot.unsqueeze(dim) for slot in call.slots_of(tensor)], out.dim())
    return [tuple(combined)]


def index_put(call: Call) -> list[Slots]:
    """Rows are written in place, as a detector gathers its regions: along the others, channels go together."""
    rows = {dim for dim, index in enumerate(call.arguments["indices"]) if index is not None}
    values = [aligned(slot, call.outputs[0].dim()) for slot in call.slots("values")]
    if any(varying(slot) & rows for slot in values):
        return unknown(call)
    return [tuple(merged(call.ledger, list(call.slots("self")), values, call.outputs[0].dim()))]


def _moved(call: Call, source: str, labels: torch.Tensor) -> list[torch.Tensor]:
    moved = call.operation(**{**call.arguments, source: labels})
    return [leaf for leaf in pytree.tree_leaves(moved) if isinstance(leaf, torch.Tensor)]


def _checked(call: Call, slots: list[Slot]) -> Slots:
    """Slots along different dimensions; where they overlap, nothing is known of the channels."""
    seen: set[int] = set()
    for slot in slots:
        if varying(slot) & seen:
            call.ledger.freeze(slots, f"its channels are concatenated in an unusual way in {call.where}")
            return ()
        seen |= varying(slot)
    return tuple(slots)
