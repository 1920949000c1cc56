"""How does each torch operation pass channels on? A table of rules over aten's operations.

A rule gets a call and answers with the slots (labels.py) of its outputs; on the way it writes down which labels go
together. Operations that torch tags as pointwise need no entry. An operation without a rule freezes what enters it: the
unknown is reported, never guessed. What a rule gets wrong is caught by verify.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from nni_cafenet.tracing.labels import Ledger, Slot, Slots, aligned, compressed, varying, without_dims


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


def rule_of(operation: torch._ops.OpOverload) -> Rule:
    """The rule for an operation; in-place ones have their twin's."""
    name = operation.overloadpacket.__name__
    if any(argument.name == "other" for argument in operation._schema.arguments):
        return pointwise  # the maximum of two tensors goes by the name of the one along a dimension
    found = RULES.get(name) or RULES.get(name.rstrip("_"))
    if found is None and torch.Tag.pointwise in operation.tags:
        return pointwise
    if found is None and name.startswith("_scaled_dot_product"):
        return attention
    return found or unknown


def unknown(call: Call) -> list[Slots]:
    """What enters an operation that is not in the table stays at full width."""
    name = call.operation.overloadpacket
    for tensor in call.inputs():
        call.ledger.freeze(call.slots_of(tensor), f"it runs through {name} in {call.where}, which is not followed")
    return [() for _ in call.outputs]


def as_strided(call: Call) -> list[Slots]:
    """Another layout in memory, as pooling to one pixel does for channels last."""
    same = call.outputs[0].shape == call.tensor("self").shape
    return [call.slots("self")] if same else unknown(call)


def selection(call: Call) -> list[Slots]:
    """Entries are picked by their values."""
    call.ledger.selects = True
    return unknown(call)


def constant(call: Call) -> list[Slots]:
    """A new tensor, made after the shape of another: ones, masks, random numbers."""
    return [() for _ in call.outputs]


def pointwise(call: Call) -> list[Slots]:
    """Operands of one (broadcast) shape: channels in the same place go together."""
    combined: list[Slot] = []
    for tensor in call.inputs():
        combined = _merged(call.ledger, combined, call.slots_of(tensor), call.outputs[0].dim())
    return [tuple(combined) for _ in call.outputs]


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
    """One of several equal parts, as x[:, : c // 2], is treated as if all of them had been taken."""
    dim = call.dims()[0] if "dim" in call.arguments else 0
    size, length = call.tensor("self").shape[dim], call.outputs[0].shape[dim]
    start, step = call.arguments.get("start") or 0, call.arguments.get("step") or 1
    start = start + size if start < 0 else start
    if step == 1 and length and length < size and size % length == 0 and start % length == 0:
        for slot in call.slots("self"):
            if dim in varying(slot):
                parts = slot.split(length, dim)
                for part in parts[1:]:
                    call.ledger.join(parts[0], part)
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
        combined = _merged(call.ledger, combined, others, out.dim())
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
        combined = _merged(call.ledger, combined, [slot.unsqueeze(dim) for slot in call.slots_of(tensor)], out.dim())
    return [tuple(combined)]


def index_put(call: Call) -> list[Slots]:
    """Rows are written in place, as a detector gathers its regions: along the others, channels go together."""
    rows = {dim for dim, index in enumerate(call.arguments["indices"]) if index is not None}
    values = [aligned(slot, call.outputs[0].dim()) for slot in call.slots("values")]
    if any(varying(slot) & rows for slot in values):
        return unknown(call)
    return [tuple(_merged(call.ledger, list(call.slots("self")), values, call.outputs[0].dim()))]


def reduction(call: Call) -> list[Slots]:
    """A sum or a mean: over the channels themselves it is a statistic, across several of them it joins them."""
    dims, keepdim = call.dims(), bool(call.arguments.get("keepdim", False))
    found = []
    for slot in call.slots("self"):
        if varying(slot) <= set(dims):
            call.ledger.span(slot)
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
        vectors = [slot.reshape(1, -1, *(1,) * (dims - 2)) for slot in call.slots(name)]
        combined = _merged(call.ledger, combined, vectors, dims)
    return [tuple(combined), *(() for _ in call.outputs[1:])]


def layer_norm(call: Call) -> list[Slots]:
    """A statistic over the last dimensions."""
    dims = call.tensor("input").dim()
    first = dims - len(call.arguments["normalized_shape"])
    combined = list(call.slots("input"))
    for name in ("weight", "bias"):
        combined = _merged(call.ledger, combined, call.slots(name), dims)
    for slot in combined:
        if max(varying(slot), default=-1) >= first:
            call.ledger.span(slot)
    return [tuple(combined), *(() for _ in call.outputs[1:])]


def group_norm(call: Call) -> list[Slots]:
    """A statistic over each of several runs of channels: a run stays or goes as a whole."""
    dims, groups = call.tensor("input").dim(), int(call.arguments["group"])
    combined = list(call.slots("input"))
    for name in ("weight", "bias"):
        vectors = [slot.reshape(1, -1, *(1,) * (dims - 2)) for slot in call.slots(name)]
        combined = _merged(call.ledger, combined, vectors, dims)
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
    result = [slot.reshape(1, -1, *(1,) * (weight.dim() - 2)) for slot in writes]
    biases = [slot.reshape(1, -1, *(1,) * (weight.dim() - 2)) for slot in call.slots("bias")]
    for slot in result:
        ledger.produce(slot)
    return [tuple(_merged(ledger, result, biases, weight.dim()))]


def matmul(call: Call) -> list[Slots]:
    """The last dimension of one operand is summed up with the last but one of the other."""
    ledger = call.ledger
    left, right = [name for name in ("self", "mat1", "batch1", "mat2", "batch2") if name in call.arguments][-2:]
    count = call.tensor(left).dim()
    rows, inner, columns = count - 2, count - 1, count - 2  # of the left one twice, then the right one's inner
    summed_left = [
        ledger.join_along(slot, rows).reshape(*slot.shape[:rows], -1)
        for slot in call.slots(left) if inner in varying(slot)
    ]  # fmt: skip
    summed_right = [
        ledger.join_along(slot, inner).reshape(*slot.shape[:rows], -1)
        for slot in call.slots(right) if columns in varying(slot)
    ]  # fmt: skip
    _contract(call, summed_left, summed_right)
    combined: list[Slot] = []
    for name, own in ((left, inner), (right, columns)):
        kept = [slot for slot in call.slots(name) if own not in varying(slot)]
        combined = _merged(ledger, combined, kept, count)
    for slot in combined:
        ledger.produce(slot)
    if left != "self":
        combined = _merged(ledger, combined, call.slots("self"), count)
    return [tuple(combined)]


def attention(call: Call) -> list[Slots]:
    """Queries and keys are multiplied along the last dimension; the values' channels come out."""
    query, key = (
        [call.ledger.join_along(slot, 2) for slot in call.slots(name) if 3 in varying(slot)]
        for name in ("query", "key")
    )
    _contract(call, query, key)
    return [call.slots("value"), *(() for _ in call.outputs[1:])]


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


def _merged(ledger: Ledger, combined: list[Slot], slots: Sequence[Slot], dims: int) -> list[Slot]:
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


def _moved(call: Call, source: str, labels: torch.Tensor) -> list[torch.Tensor]:
    arguments = {**call.arguments, source: labels}
    if "pad" in arguments:
        arguments["value"] = -1  # no channel
    for option in ("dtype", "device", "layout", "pin_memory"):
        arguments.pop(option, None)
    moved = call.operation(**arguments)
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


def _named(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_named(pointwise, "clone _to_copy alias detach lift_fresh contiguous dropout native_dropout hardswish rsub where "
             "_prelu_kernel prelu copy fill log_sigmoid_forward resolve_conj zero addcmul addcdiv"),
    **_named(selection, "nonzero nms masked_select argsort"),
    **_named(constant, "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty "
             "new_full bernoulli bernoulli_ new_empty_strided"),
    **_named(as_strided, "as_strided"),
    **_named(view, "view _unsafe_view reshape _reshape_alias"),
    **_named(move, "permute transpose t numpy_T expand select unsqueeze squeeze unbind flip roll constant_pad_nd "
             "pixel_shuffle pixel_unshuffle channel_shuffle repeat index_select index unfold diagonal movedim gather "
             "split_with_sizes"),
    **_named(split, "split unsafe_split chunk split_with_sizes"),
    **_named(slice_, "slice"),
    **_named(cat, "cat concat"),
    **_named(stack, "stack"),
    **_named(index_put, "index_put"),
    **_named(reduction, "sum mean amax amin var std var_mean std_mean prod norm linalg_vector_norm logsumexp any all "
             "max min argmax argmin median"),
    **_named(softmax, "_softmax _log_softmax softmax log_softmax"),
    **_named(in_order, "cumsum cumprod sort topk logcumsumexp"),
    **_named(spatial, "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d "
             "avg_pool2d avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool2d "
             "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
             "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
             "upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa "
             "reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
             "grid_sampler_2d grid_sampler_3d roi_align roi_pool ps_roi_align"),
    **_named(glu, "glu"),
    **_named(batch_norm, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
             "cudnn_batch_norm _batch_norm_with_update"),
    **_named(layer_norm, "native_layer_norm"),
    **_named(group_norm, "native_group_norm"),
    **_named(convolution, "convolution _convolution"),
    **_named(matmul, "mm bmm addmm baddbmm"),
}  # fmt: skip
