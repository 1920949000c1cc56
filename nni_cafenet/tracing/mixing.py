"""How do operations that sum up pass channels on? Statistics, norms, pooling, and products with weights."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nni_cafenet.tracing.call import Call, merged
from nni_cafenet.tracing.labels import Slot, Slots, varying, without_dims


def reduction(call: Call) -> list[Slots]:
    """A sum or a mean: over the channels themselves it is a statistic, across several of them it joins them."""
    dims, keepdim = call.dims(), bool(call.arguments.get("keepdim", False))
    found = []
    for slot in call.slots("self"):
        kept = varying(slot) - set(dims)
        if not kept or (kept != varying(slot) and call.ledger.hangs_together(slot, kept)):
            call.ledger.span(slot)  # one statistic over all, or one for each of several equal groups of channels
            continue
        for dim in dims:
            slot = call.ledger.join_along(slot, dim)
        found.append(without_dims(slot, dims, keepdim=keepdim))
    return [tuple(found) for _ in call.outputs]


def softmax(call: Call) -> list[Slots]:
    """As a sum along the dimension, but the shape stays."""
    dim = call.dims()[0]
    for slot in call.slots("self"):
        if varying(slot) == {dim}:
            call.ledger.span(slot)
        elif dim in varying(slot):
            call.ledger.join_along(slot, dim)
    return [call.slots("self") for _ in call.outputs]


def in_order(call: Call) -> list[Slots]:
    """A running sum, a sort: nothing along the dimension can be left out."""
    call.ledger.selects |= call.operation.overloadpacket.__name__ in ("sort", "topk")
    dim = call.dims()[0]
    ordered = [slot for slot in call.slots("self") if dim in varying(slot)]
    call.ledger.freeze(ordered, f"its channels are taken in order in {call.where}")
    kept = tuple(slot for slot in call.slots("self") if dim not in varying(slot))
    return [kept for _ in call.outputs]


def spatial(call: Call) -> list[Slots]:
    """Pooling, resizing, sampling: the last dimensions are mixed, channels are not."""
    source = next(name for name in ("self", "input") if name in call.arguments)
    count = re.search(r"([123])d", call.operation.overloadpacket.__name__)
    last = int(count[1]) if count else 2
    for name in call.arguments:
        if name != source:
            call.ledger.freeze(call.slots(name), f"it says where to sample in {call.where}")
    slots = _without_places(call, call.slots(source), last)
    return [slots if out.dim() == call.tensor(source).dim() else () for out in call.outputs]


def glu(call: Call) -> list[Slots]:
    """One half of the channels gates the other half."""
    dim = call.dims()[0] if "dim" in call.arguments else call.tensor("self").dim() - 1
    found = []
    for slot in call.slots("self"):
        if dim in varying(slot):
            left, right = slot.chunk(2, dim)
            call.ledger.join(left, right)
            slot = left
        found.append(slot)
    return [tuple(found)]


def batch_norm(call: Call) -> list[Slots]:
    """One mean and variance for each entry of dimension 1."""
    dims = call.tensor("input").dim()
    combined = list(call.slots("input"))
    if call.arguments.get("training", True) or call.arguments.get("running_mean") is None:
        for slot in combined:
            if varying(slot) != {1}:
                call.ledger.span(slot)  # as where a weight is standardised over its inputs
    for name in ("weight", "bias", "running_mean", "running_var"):
        combined = merged(call.ledger, combined, _of_channels(call.slots(name), dims), dims)
    return [tuple(combined), *(() for _ in call.outputs[1:])]


def layer_norm(call: Call) -> list[Slots]:
    """A statistic over the last dimensions."""
    dims = call.tensor("input").dim()
    first = dims - len(call.arguments["normalized_shape"])
    combined = list(call.slots("input"))
    for name in ("weight", "bias"):
        combined = merged(call.ledger, combined, call.slots(name), dims)
    for slot in combined:
        if max(varying(slot), default=-1) >= first:
            call.ledger.span(slot)
    return [tuple(combined), *(() for _ in call.outputs[1:])]


def group_norm(call: Call) -> list[Slots]:
    """A statistic over each of several runs of channels: a run stays or goes as a whole."""
    dims, groups = call.tensor("input").dim(), int(call.arguments["group"])
    combined = list(call.slots("input"))
    for name in ("weight", "bias"):
        combined = merged(call.ledger, combined, _of_channels(call.slots(name), dims), dims)
    for slot in combined:
        if varying(slot) != {1} or groups == 1:
            call.ledger.span(slot)
        else:
            call.ledger.join_along(slot.reshape(groups, -1), 1)
    return [tuple(combined), *(() for _ in call.outputs[1:])]


def convolution(call: Call) -> list[Slots]:
    """Inputs of dimension 1 are summed up by weights; with groups, each run of inputs belongs to a run of outputs."""
    ledger, weight, groups = call.ledger, call.tensor("weight"), int(call.arguments["groups"])
    out, into = (1, 0) if call.arguments["transposed"] else (0, 1)
    channels = [slot for slot in _without_places(call, call.slots("input"), weight.dim() - 2) if varying(slot) == {1}]
    reads = [slot.reshape(-1) for slot in call.slots("weight") if varying(slot) == {into}]
    writes = [slot.reshape(-1) for slot in call.slots("weight") if varying(slot) == {out}]
    odd = [slot for slot in call.slots("weight") if varying(slot) not in ({out}, {into})]
    ledger.freeze(odd, f"its weight is made in an unusual way in {call.where}")
    if groups > 1 and call.arguments["transposed"]:
        if tuple(weight.shape[:2]) != (groups, 1):
            ledger.freeze([*reads, *channels], "it is a transposed convolution of several groups, which is not sliced")
            return [()]
        writes = reads  # depthwise: one dimension for both
    if groups > 1:
        for slot in writes:
            whole = ledger.join_along(slot.reshape(groups, -1), 1)
            for inputs in channels:
                ledger.join(whole, inputs.reshape(groups, -1))
        if not writes:
            ledger.freeze(channels, f"it is convolved with a weight of fixed size in {call.where}")
    else:
        _contract(call, [slot.reshape(-1) for slot in channels], reads)
    result = _of_channels(writes, weight.dim())
    biases = _of_channels(call.slots("bias"), weight.dim())
    for slot in result:
        ledger.produce(slot)
    return [tuple(merged(ledger, result, biases, weight.dim()))]


def matmul(call: Call) -> list[Slots]:
    """The last dimension of one operand is summed up with the last but one of the other."""
    ledger = call.ledger
    left, right = [name for name in ("self", "mat1", "batch1", "mat2", "batch2") if name in call.arguments][-2:]
    count = call.tensor(left).dim()
    contracted: list[list[Slot]] = []
    combined: list[Slot] = []
    for name, summed, kept in ((left, count - 1, count - 2), (right, count - 2, count - 1)):
        inner = [slot for slot in call.slots(name) if summed in varying(slot)]
        contracted.append([ledger.join_along(slot, kept).reshape(*slot.shape[:-2], -1) for slot in inner])
        outer = [slot for slot in call.slots(name) if summed not in varying(slot)]
        combined = merged(ledger, combined, outer, count)
    _contract(call, *contracted)
    for slot in combined:
        ledger.produce(slot)
    if left != "self":
        combined = merged(ledger, combined, call.slots("self"), count)
    return [tuple(combined)]


def attention(call: Call) -> list[Slots]:
    """Queries and keys are multiplied along the last dimension; the values' channels come out."""
    query, key = (
        [call.ledger.join_along(slot, 2) for slot in call.slots(name) if 3 in varying(slot)]
        for name in ("query", "key")
    )
    _contract(call, query, key)
    return [call.slots("value"), *(() for _ in call.outputs[1:])]


def _of_channels(vectors: Sequence[Slot], dims: int) -> list[Slot]:
    """Slots of one dimension as those of dimension 1, the channels', of `dims`."""
    return [slot.reshape(1, -1, *(1,) * (dims - 2)) for slot in vectors]


def _contract(call: Call, left: Sequence[Slot], right: Sequence[Slot]) -> None:
    if left and right:
        for slot in right:
            call.ledger.join(left[0], slot)
    else:
        call.ledger.freeze([*left, *right], f"it is multiplied with a tensor of fixed size in {call.where}")


def _without_places(call: Call, slots: Slots, last: int) -> Slots:
    """Slots that do not vary along the `last` dimensions, whose places an operation mixes."""
    found = []
    for slot in slots:
        places = range(slot.dim() - last, slot.dim())
        if varying(slot) and varying(slot) <= set(places):
            call.ledger.freeze([slot], f"its channels are mixed as if they were places in {call.where}")
            continue
        for dim in places:
            slot = call.ledger.join_along(slot, dim)
        found.append(slot)
    return tuple(found)
