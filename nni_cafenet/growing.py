"""How does a model grow along its axes? The opposite of export/slicing.py: a copy whose layers have more channels."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.layers import axis_tensors, memory_format, named_tensors, resized_attributes
from nni_cafenet.widths import Axis, IntArray


@dataclass(frozen=True, eq=False)
class Growth:
    """How an axis grows.

    Args:
        wider: the axis afterwards.
        places: shape (size before,), ascending: where in it each of the old positions is found.
    """

    wider: Axis
    places: IntArray


Growths = Mapping[tuple[str, str], Growth]  # by (layer, side)
Dims = Sequence[tuple[int, Growth]]  # the dimensions of a tensor that grow


def unclear_groups(axes: Iterable[Axis], units: Sequence[int]) -> dict[int, str]:
    """The groups for which some axis does not tell where new channels belong, with the reason.

    Args:
        units: how many units each group has.
    """
    return {
        group: f"the order of its channels in {axis} does not tell where new ones belong"
        for axis in axes
        for group, run in _runs(axis)
        if group >= 0 and not _is_whole(run, units[group])
    }


def find_growths(axes: Iterable[Axis], units: Sequence[int], wider: Sequence[int]) -> dict[tuple[str, str], Growth]:
    """How each axis grows when group g goes from units[g] to wider[g] units; axes that stay are left out.

    New units follow the old ones in each run of a group. So of concatenated groups [a0 a1 b0] becomes
    [a0 a1 a2 b0 b1], of flattened feature maps [a0 a0 a1 a1] becomes [a0 a0 a1 a1 a2 a2], and of two halves
    [a0 a1 a0 a1] becomes [a0 a1 a2 a0 a1 a2].
    """
    found = {}
    for axis in axes:
        groups, new_units, places, size = [], [], [], 0
        for group, run in _runs(axis):
            grows = group >= 0 and wider[group] > units[group]
            new_units.append(np.repeat(np.arange(wider[group]), len(run) // units[group]) if grows else run)
            groups.append(np.full(len(new_units[-1]), group))
            places.append(np.arange(size, size + len(run)))
            size += len(new_units[-1])
        if size > axis.size:
            larger = Axis(axis.layer, axis.side, np.concatenate(groups), np.concatenate(new_units))
            found[axis.key] = Growth(larger, np.concatenate(places))
    return found


def enlarged(model: nn.Module, growths: Growths) -> nn.Module:
    """A copy of `model` whose axes have grown: the old values at their places, zeros elsewhere.

    Class, state_dict keys, modes, requires_grad, dtypes, devices and memory formats are the original's; gradients are
    not copied.
    """
    wide = copy.deepcopy(model)
    wide.zero_grad(set_to_none=True)
    layers = dict(wide.named_modules())
    for name, dims in _grown_tensors(layers, growths).items():
        owner, _, attribute = name.rpartition(".")
        old = getattr(layers[owner], attribute)
        shape = list(old.shape)
        for dim, growth in dims:
            shape[dim] = growth.wider.size
        larger = old.detach().new_zeros(shape).to(memory_format=memory_format(old))
        _write(larger, old.detach(), dims)
        parameter = isinstance(old, nn.Parameter)
        setattr(layers[owner], attribute, nn.Parameter(larger, old.requires_grad) if parameter else larger)
    for (name, side), growth in growths.items():
        if name in layers:
            for attribute, value in resized_attributes(layers[name], side, growth.wider.size).items():
                setattr(layers[name], attribute, value)
    return wide


@torch.no_grad()
def initialise(wide: nn.Module, model: nn.Module, growths: Growths, *, keep_weights: bool) -> None:
    """Fresh values for `wide`, which is `model` enlarged by `growths`, in place and from torch's global generator.

    Modules are initialised by their own reset_parameters, children before parents. A tensor that has grown and that
    no reset_parameters reaches keeps its value if it is constant (a layer scale), and is else drawn from the normal
    distribution of its old mean and deviation. All others are left as they are.

    Args:
        keep_weights: write the old values back to their places, so that only new channels are fresh.

    Raises:
        UnsupportedModel: a reset_parameters fails.
    """
    grown = _grown_tensors(dict(wide.named_modules()), growths)
    old, new = named_tensors(model), named_tensors(wide)
    for name in grown:
        _redraw(new[name], old[name])
    owners = {name.rpartition(".")[0] for name in grown}
    for name, layer in reversed(list(wide.named_modules())):
        if hasattr(layer, "reset_parameters") and (name in owners or not keep_weights):
            try:
                layer.reset_parameters()
            except Exception as error:  # third-party code
                raise UnsupportedModel(
                    f"reset_parameters of {name or 'the model'} ({type(layer).__name__}) fails "
                    f"({type(error).__name__}: {error}): it must take no arguments and fill the module's own tensors"
                ) from error
    if keep_weights:
        for name, tensor in named_tensors(wide).items():
            _write(tensor, old[name], grown.get(name, ()))


@torch.no_grad()
def reorder_units(wide: nn.Module, growths: Growths, orders: Mapping[int, IntArray]) -> None:
    """Unit u of each group g, which has grown, gets the values of its unit orders[g][u] along every axis, in place."""
    tensors = named_tensors(wide)
    for name, dims in _grown_tensors(dict(wide.named_modules()), growths).items():
        for dim, growth in dims:
            source = torch.from_numpy(growth.wider.reordered(orders)).to(tensors[name].device)
            tensors[name].copy_(tensors[name].index_select(dim, source))


def _runs(axis: Axis) -> list[tuple[int, IntArray]]:
    """(group, units) of the stretches of `axis`, cut where another group begins or the units of one begin again."""
    cuts = np.flatnonzero((np.diff(axis.groups) != 0) | (np.diff(axis.units) < 0)) + 1
    parts = zip(np.split(axis.groups, cuts), np.split(axis.units, cuts), strict=True)
    return [(int(groups[0]), units) for groups, units in parts]


def _is_whole(run: IntArray, units: int) -> bool:
    """Whether a run has all units in order, each equally often; the order of one repeated unit says nothing."""
    often = len(run) // units
    return np.array_equal(run, np.repeat(np.arange(units), often)) and (units > 1 or often == 1)


def _grown_tensors(layers: Mapping[str, nn.Module], growths: Growths) -> dict[str, list[tuple[int, Growth]]]:
    """The tensors that grow, by full name, with the dimensions."""
    found: dict[str, list[tuple[int, Growth]]] = defaultdict(list)
    for (layer, side), growth in growths.items():
        if layer in layers:
            for tensor, dim in axis_tensors(layers[layer], side):
                found[f"{layer}.{tensor}".removeprefix(".")].append((dim, growth))
        else:
            found[layer].append((int(side.removeprefix("dim")), growth))  # a bare parameter
    return found


def _write(target: torch.Tensor, old: torch.Tensor, dims: Dims) -> None:
    """`old` into its places in the larger `target`."""
    if not dims:
        target.copy_(old)
        return
    (dim, growth), *rest = dims
    places = torch.from_numpy(growth.places).to(target.device)
    part = target.index_select(dim, places)
    _write(part, old, rest)
    target.index_copy_(dim, places, part)


def _redraw(tensor: torch.Tensor, old: torch.Tensor) -> None:
    constant = old.flatten()[0]
    if (old == constant).all():
        tensor.fill_(constant)
    else:
        tensor.normal_(float(old.double().mean()), float(old.double().std()))
