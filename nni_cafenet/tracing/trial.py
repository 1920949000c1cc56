"""How is a private copy made ready for comparisons, and changed for one?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from nni_cafenet.layers import CONVOLUTION, NORM_TENSORS, axis_tensors, home_of
from nni_cafenet.widths import Axis, IntArray

Swaps = dict[tuple[nn.Module, str], torch.Tensor]  # (owner, name) -> the tensor in its place
AxisTensors = Mapping[tuple[str, str], Sequence[tuple[nn.Module, str, int]]]  # axis -> (owner, name, dimension) of each


def doubled(model: nn.Module) -> nn.Module:
    """A copy in float64, without a copy in the model's own precision on the way."""
    memo: dict[int, torch.Tensor] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().double()) if parameter.is_floating_point() else parameter
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.double() if buffer.is_floating_point() else buffer.clone()
    return copy.deepcopy(model, memo)


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
                        low, high = (0.5, 1.5) if name in ("weight", "running_var") else (-0.2, 0.2)
                        tensor.copy_(uniform(tensor, low, high))
        for parameter in model.parameters():
            if not parameter.is_floating_point() or parameter.numel() < 2:
                continue
            first, second = parameter.flatten()[:2]
            if first == second and (parameter == first).all():
                parameter.copy_(uniform(parameter, -0.5, 0.5))


def enliven(model: nn.Module, forward: Callable[[], object]) -> None:
    """Scale the weights of each convolution and linear layer, in place, so that what it computes has a deviation of 1.

    Else the input hardly shows behind the biases of many layers: initialised for training, an EfficientNet passes less
    than 1e-10 of it on in eval mode, and a fault in an early layer would show as little.
    """

    def scale(layer: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, torch.Tensor)
        shift = bias.view(-1, *(1,) * (weight.dim() - 2)) if isinstance(bias, torch.Tensor) else 0
        deviation = (output - shift).std()
        if not (torch.isfinite(deviation) and deviation > 0):
            return output
        weight.data.div_(deviation)
        return (output - shift) / deviation + shift

    layers = [layer for layer in model.modules() if isinstance(layer, (CONVOLUTION, nn.Linear))]
    handles = [layer.register_forward_hook(scale) for layer in layers]
    try:
        with torch.no_grad():  # a forward may cache what carries gradients
            forward()
    finally:
        for handle in handles:
            handle.remove()


def lively(tensor: torch.Tensor) -> torch.Tensor:
    """Noise in the place of constant inputs, such as torch.zeros: they would hide much of what a network does."""
    if not tensor.is_floating_point() or (tensor != tensor.flatten()[0]).any():
        return tensor
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)


def disturbed(tensor: torch.Tensor) -> torch.Tensor:
    """Another input of the same range: the values in reverse order, a little louder."""
    return tensor.flatten().flip(0).view(tensor.shape) * 1.1 if tensor.is_floating_point() else tensor


def tensors_along(model: nn.Module, axes: Iterable[Axis]) -> AxisTensors:
    """The tensors of `model` that each axis, of a layer or of a bare tensor, runs through."""
    layers = dict(model.named_modules())
    found = {}
    for axis in axes:
        if axis.layer in layers:
            layer = layers[axis.layer]
            found[axis.key] = [(layer, name, dim) for name, dim in axis_tensors(layer, axis.side)]
        else:
            owner, name, _ = home_of(model, axis.layer)
            found[axis.key] = [(owner, name, int(axis.side.removeprefix("dim")))]
    return found


def permuted(axes: Iterable[Axis], tensors: AxisTensors, orders: Mapping[int, IntArray]) -> Swaps:
    """Unit u of group g with the content of unit orders[g][u], in every tensor that this changes."""
    swaps: Swaps = {}
    for axis in axes:
        source = axis.reordered(orders)
        if (source != np.arange(axis.size)).any():
            for owner, name, dim in tensors[axis.key]:
                tensor = swaps.get((owner, name), getattr(owner, name))
                swaps[owner, name] = tensor.detach().index_select(dim, torch.from_numpy(source).to(tensor.device))
    return swaps


@contextmanager
def new_tensors_in(dtype: torch.dtype) -> Iterator[None]:
    """Inside the block torch.ones(3) and the like are of `dtype`, where nothing else is asked for."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def swapped(swaps: Swaps) -> Iterator[None]:
    """Other tensors in the places of a private model's parameters and buffers."""
    homes: list[dict[str, Any]] = [
        owner._parameters if name in owner._parameters else owner._buffers for owner, name in swaps
    ]
    saved = [home[name] for home, (_, name) in zip(homes, swaps, strict=True)]
    try:
        for home, ((_, name), tensor) in zip(homes, swaps.items(), strict=True):
            home[name] = tensor
        yield
    finally:
        for home, (_, name), tensor in zip(homes, swaps, saved, strict=True):
            home[name] = tensor
