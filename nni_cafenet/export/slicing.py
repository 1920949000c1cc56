"""Cutting a sub-network out of a model: a copy of the original class with plain, smaller layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch_pruning
from torch import nn
from torch_pruning.pruner import function

from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.layers import CONVOLUTION, axis_size, axis_tensors, check_fits, resized_attributes
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import IntArray, SubNetwork

Positions = Mapping[tuple[str, str], IntArray]


def slice_model(model: nn.Module, space: SearchSpace, sub: SubNetwork) -> nn.Module:
    """A copy of `model` that holds only what `sub` keeps: the original class, the same state_dict keys, smaller layers.

    Mode, requires_grad and device are the original's; gradients are not copied. `model` itself is untouched.

    Raises:
        UnsupportedModel: `space` was built from another model.
        ValueError: `sub` belongs to another space.
    """
    return slice_layers(model, space.positions(sub))


def slice_layers(model: nn.Module, positions: Positions) -> nn.Module:
    """A copy of `model` with each axis in `positions`, by (layer, side), cut down to the positions listed."""
    slim = copy.deepcopy(model)
    slim.zero_grad(set_to_none=True)
    layers = dict(slim.named_modules())
    for (name, side), kept in positions.items():
        check_fits(layers.get(name), name, side, int(kept[-1]))
    # asked before anything is cut: a grouped convolution that keeps one conv-group looks like a plain one afterwards
    grouped = {name for name, layer in layers.items() if isinstance(layer, CONVOLUTION) and layer.groups > 1}
    for (name, side), kept in positions.items():
        if name in grouped:
            if side == "out":  # its inputs go together with its outputs
                _slice_grouped(layers[name], kept)
        elif name in layers:
            _slice_layer(layers[name], side, kept)
        else:
            _slice_bare_parameter(slim, name, int(side.removeprefix("dim")), kept)
    return slim


def _slice_layer(layer: nn.Module, side: str, kept: IntArray) -> None:
    # torch-pruning gives every parameter that it cuts requires_grad=True
    trainable = {name: parameter.requires_grad for name, parameter in layer.named_parameters(recurse=False)}
    pruner = function.PrunerBox[torch_pruning.ops.module2type(layer)]
    pruner.pruning_dim = -1  # shared by all callers, and a LayerNorm's depends on it
    size = axis_size(layer, side)
    assert size is not None
    dropped = sorted(set(range(size)) - set(kept.tolist()))
    (pruner.prune_in_channels if side == "in" else pruner.prune_out_channels)(layer, dropped)
    if isinstance(layer, nn.modules.instancenorm._InstanceNorm) and layer.track_running_stats:
        # torch-pruning leaves an InstanceNorm's running statistics at full width
        for name in ("running_mean", "running_var"):
            setattr(layer, name, getattr(layer, name)[torch.from_numpy(kept)])
    for name, parameter in layer.named_parameters(recurse=False):
        parameter.requires_grad_(trainable[name])


def _slice_grouped(layer: nn.Module, kept: IntArray) -> None:
    """Cut whole conv-groups out of a grouped convolution, which torch-pruning would leave invalid."""
    attributes = resized_attributes(layer, "out", len(kept))
    for name, dim in axis_tensors(layer, "out"):
        full = getattr(layer, name)
        cut = full.detach().index_select(dim, torch.from_numpy(kept).to(full.device))
        setattr(layer, name, nn.Parameter(cut, requires_grad=full.requires_grad))
    for name, value in attributes.items():
        setattr(layer, name, value)


def _slice_bare_parameter(model: nn.Module, name: str, dim: int, kept: IntArray) -> None:
    owner_name, _, attribute = name.rpartition(".")
    try:
        owner = model.get_submodule(owner_name)
        parameter = owner._parameters[attribute]
    except (AttributeError, KeyError) as error:
        raise UnsupportedModel(
            f"the model has no layer or parameter {name!r}: this is not the model that the space was built from"
        ) from error
    assert parameter is not None
    index = torch.from_numpy(kept).to(parameter.device)
    cut = nn.Parameter(parameter.detach().index_select(dim, index), requires_grad=parameter.requires_grad)
    owner._parameters[attribute] = cut
