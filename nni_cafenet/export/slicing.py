"""Cutting a sub-network out of a model: a copy of the original class with plain, smaller layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch_pruning
from torch import nn
from torch_pruning.pruner import function

from nni_cafenet.layers import (
    CONVOLUTION,
    axis_size,
    axis_tensors,
    check_fits,
    home_of,
    memory_format,
    named_tensors,
    resized_attributes,
)
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import IntArray, SubNetwork

Positions = Mapping[tuple[str, str], IntArray]

# what torch-pruning cuts rightly, but for grouped convolutions; the rest is cut by our table of layers: of a LayerNorm
# of some hundred channels it shuffles the values (it relies on the order of a set)
BY_TORCH_PRUNING = (CONVOLUTION, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.PReLU)


def slice_model(model: nn.Module, space: SearchSpace, sub: SubNetwork) -> nn.Module:
    """A copy of `model` that holds only what `sub` keeps: the original class, the same state_dict keys, smaller layers.

    Mode, requires_grad, device and memory format are the original's; gradients are not copied. `model` itself is
    untouched.

    Raises:
        UnsupportedModel: `space` was built from another model.
        ValueError: `sub` belongs to another space.
    """
    return slice_layers(model, space.positions(sub))


def slice_layers(model: nn.Module, positions: Positions, *, share: bool = False) -> nn.Module:
    """A copy of `model` with each axis in `positions`, by (layer, side), cut down to the positions listed.

    Args:
        share: whether tensors that are not cut are the model's own instead of copies: cheaper, to look at only.
    """
    layers = dict(model.named_modules())
    for (name, side), kept in positions.items():
        check_fits(layers.get(name), name, side, int(kept[-1]))
    # what is cut is replaced in the copy, never written to, so copying it first would be in vain
    shared = [*model.parameters(), *model.buffers()] if share else _cut(model, positions)
    slim = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    layers = dict(slim.named_modules())
    # asked before anything is cut: a grouped convolution that keeps one conv-group looks like a plain one afterwards
    plain = {name for name, layer in layers.items() if isinstance(layer, BY_TORCH_PRUNING) and not _is_grouped(layer)}
    for (name, side), kept in positions.items():
        if name in plain:
            _slice_by_torch_pruning(layers[name], side, kept)
        elif name in layers:
            _slice_by_table(layers[name], side, kept)
        else:
            owner, own, _ = home_of(slim, name)
            _slice_tensor(owner, own, int(side.removeprefix("dim")), kept)
    if not share:
        slim.zero_grad(set_to_none=True)
        _lay_out(slim, model)
    return slim


def _lay_out(slim: nn.Module, model: nn.Module) -> None:
    """Channels last where the model's tensors are: slim tensors come out contiguous."""
    full = named_tensors(model)
    for name, tensor in named_tensors(slim).items():
        if (kind := memory_format(full[name])) != torch.contiguous_format:
            tensor.data = tensor.data.to(memory_format=kind)


def _cut(model: nn.Module, positions: Positions) -> list[torch.Tensor]:
    """The parameters that `positions` cut."""
    layers = dict(model.named_modules())
    found: list[torch.Tensor | None] = []
    for name, side in positions:
        if name in layers:
            found += [layers[name]._parameters.get(tensor) for tensor, _ in axis_tensors(layers[name], side)]
        else:
            _, own, home = home_of(model, name)
            found.append(home[own])
    return [tensor for tensor in found if tensor is not None]


def _is_grouped(layer: nn.Module) -> bool:
    return isinstance(layer, CONVOLUTION) and layer.groups > 1


def _slice_by_torch_pruning(layer: nn.Module, side: str, kept: IntArray) -> None:
    # torch-pruning gives every parameter that it cuts requires_grad=True
    trainable = {name: parameter.requires_grad for name, parameter in layer.named_parameters(recurse=False)}
    pruner = function.PrunerBox[torch_pruning.ops.module2type(layer)]
    size = axis_size(layer, side)
    assert size is not None
    dropped = sorted(set(range(size)) - set(kept.tolist()))
    (pruner.prune_in_channels if side == "in" else pruner.prune_out_channels)(layer, dropped)
    for name, parameter in layer.named_parameters(recurse=False):
        parameter.requires_grad_(trainable[name])


def _slice_by_table(layer: nn.Module, side: str, kept: IntArray) -> None:
    attributes = resized_attributes(layer, side, len(kept))
    for name, dim in axis_tensors(layer, side):
        _slice_tensor(layer, name, dim, kept)
    for name, value in attributes.items():
        setattr(layer, name, value)


def _slice_tensor(owner: nn.Module, name: str, dim: int, kept: IntArray) -> None:
    full = getattr(owner, name)
    cut = full.detach().index_select(dim, torch.from_numpy(kept).to(full.device))
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(cut, requires_grad=full.requires_grad)
    else:
        owner._buffers[name] = cut
