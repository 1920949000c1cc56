"""Which rule tells how a torch operation passes channels on? A table over aten's operations.

A rule gets a call and answers with the slots (labels.py) of its outputs; on the way it writes down which labels go
together. Operations that torch tags as pointwise need no entry. An operation without a rule freezes what enters it: the
unknown is reported, never guessed. What a rule gets wrong is caught by verify.py.
"""

from __future__ import annotations

import torch

from nni_cafenet.tracing.call import Call, Rule, merged, unknown
from nni_cafenet.tracing.labels import Slot, Slots
from nni_cafenet.tracing.mixing import (
    attention,
    batch_norm,
    convolution,
    glu,
    group_norm,
    in_order,
    layer_norm,
    matmul,
    reduction,
    softmax,
    spatial,
)
from nni_cafenet.tracing.moving import (
    as_strided,
    cat,
    channel_shuffle,
    index_put,
    move,
    pad,
    roll,
    slice_,
    split,
    stack,
    view,
)


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


def pointwise(call: Call) -> list[Slots]:
    """Operands of one (broadcast) shape: channels in the same place go together."""
    combined: list[Slot] = []
    for tensor in call.inputs():
        combined = merged(call.ledger, combined, call.slots_of(tensor), call.outputs[0].dim())
    return [tuple(combined) for _ in call.outputs]


def constant(call: Call) -> list[Slots]:
    """A new tensor, made after the shape of another: ones, masks, random numbers."""
    return [() for _ in call.outputs]


def selection(call: Call) -> list[Slots]:
    """Entries are picked by their values."""
    call.ledger.selects = True
    return unknown(call)


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
    **_named(move, "permute transpose t numpy_T expand select unsqueeze squeeze unbind flip pixel_shuffle "
             "pixel_unshuffle repeat index_select index unfold diagonal movedim gather"),
    **_named(pad, "constant_pad_nd"),
    **_named(roll, "roll"),
    **_named(channel_shuffle, "channel_shuffle native_channel_shuffle"),
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
