"""Which tensors and attributes of a torch layer carry its output and input channels: one table for all who slice."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn

from nni_cafenet.errors import UnsupportedModel

Tensors = tuple[tuple[str, int], ...]  # (parameter or buffer, its dimension)

NORMS_PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
CONVOLUTION = nn.modules.conv._ConvNd
Home = dict[str, torch.Tensor | None]  # a module's own parameters, or its buffers
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def axis_size(layer: nn.Module, side: str) -> int | None:
    """Channels on `side` ("out" or "in") of `layer`; None for a kind of layer that cannot be sliced."""
    attribute = _size_attribute(layer, side)
    if attribute is None:
        return None
    size = getattr(layer, attribute)
    return int(size[-1] if isinstance(size, tuple) else size)


def axis_tensors(layer: nn.Module, side: str) -> Tensors:
    """The parameters and buffers that hold one slice for each channel on `side`, with the dimension."""
    tensors: Tensors
    if isinstance(layer, CONVOLUTION):
        if layer.groups > 1:
            # whole conv-groups are sliced, and dimension 0 runs over them in both kinds of convolution
            tensors = () if side == "in" else (("weight", 0), ("bias", 0))
        else:
            out, into = (1, 0) if layer.transposed else (0, 1)
            tensors = (("weight", into),) if side == "in" else (("weight", out), ("bias", 0))
    elif isinstance(layer, nn.Linear):
        tensors = (("weight", 1),) if side == "in" else (("weight", 0), ("bias", 0))
    elif isinstance(layer, (*NORMS_PER_CHANNEL, nn.GroupNorm, nn.PReLU)):
        tensors = tuple((name, 0) for name in NORM_TENSORS)
    elif (shape := _normalized_shape(layer)) is not None:
        tensors = tuple((name, len(shape) - 1) for name in NORM_TENSORS)
    else:
        tensors = ()
    return tuple((name, dim) for name, dim in tensors if getattr(layer, name, None) is not None)


def resized_attributes(layer: nn.Module, side: str, size: int) -> dict[str, Any]:
    """The attributes of `layer` that change when `side` has `size` channels, with their new values."""
    attribute = _size_attribute(layer, side)
    assert attribute is not None
    if (shape := _normalized_shape(layer)) is not None:
        return {attribute: type(shape)((*shape[:-1], size))}
    if isinstance(layer, nn.GroupNorm):  # the channels of one statistic stay as many
        groups = layer.num_groups * size // layer.num_channels if layer.num_groups > 1 else 1
        return {attribute: size, "num_groups": groups}
    if isinstance(layer, CONVOLUTION) and layer.groups > 1:
        if side == "in":
            return {}  # follows from "out"
        groups = size * layer.groups // layer.out_channels
        return {"out_channels": size, "in_channels": layer.in_channels // layer.groups * groups, "groups": groups}
    return {attribute: size}


def check_fits(layer: nn.Module | None, name: str, side: str, last: int) -> None:
    """Raise UnsupportedModel where the layer called `name` (None: there is none) has no channel `last` on `side`."""
    if layer is None and side.startswith("dim"):
        return  # a bare tensor, looked for when it is cut
    size = None if layer is None else axis_size(layer, side)
    if size is None or last >= size:
        raise UnsupportedModel(
            f"the sub-network keeps channel {last} of layer {name!r} on side {side!r}, and the model has "
            f"{size or 'none'} there: use the space built from this model"
        )


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of `model`, by their full names."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """How `tensor` lies in memory: channels last, in two or three dimensions, or contiguous.

    By its strides, as torch's own kernels look: `is_contiguous` says yes to any format where there is one channel (the
    weights of a depthwise convolution) or one pixel (a kernel of 1 x 1).
    """
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is not None and tensor.stride(1) == 1 and tensor.stride(-1) == tensor.shape[1]:
        return last
    return torch.contiguous_format


def owns_its_tensors(layer: nn.Module) -> bool:
    """Whether the layer's weight is a plain parameter, not computed by a parametrisation or a hook."""
    weight = getattr(layer, "weight", None)
    return weight is None or "weight" in layer._parameters


def home_of(model: nn.Module, name: str) -> tuple[nn.Module, str, Home]:
    """The module that owns the bare parameter or buffer `name`, the tensor's own name, and where it is kept.

    Raises:
        UnsupportedModel: the model has none of that name.
    """
    owner_name, _, own = name.rpartition(".")
    owner = dict(model.named_modules()).get(owner_name)
    for home in () if owner is None else (owner._parameters, owner._buffers):
        if home.get(own) is not None:
            assert owner is not None
            return owner, own, home
    raise UnsupportedModel(
        f"the model has no layer, parameter or buffer {name!r}: this is not the model that the space was built from"
    )


def _normalized_shape(layer: nn.Module) -> tuple[int, ...] | list[int] | None:
    """The last dimensions that a LayerNorm, an RMSNorm or somebody's own of that kind normalises."""
    shape = getattr(layer, "normalized_shape", None)
    return shape if isinstance(shape, (tuple, list)) else None


def _size_attribute(layer: nn.Module, side: str) -> str | None:
    if isinstance(layer, CONVOLUTION):
        return "in_channels" if side == "in" else "out_channels"
    if isinstance(layer, nn.Linear):
        return "in_features" if side == "in" else "out_features"
    if isinstance(layer, NORMS_PER_CHANNEL):
        return "num_features"
    if isinstance(layer, nn.GroupNorm):
        return "num_channels"
    if _normalized_shape(layer) is not None:
        return "normalized_shape"
    if isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
        return "num_parameters"
    return None
