"""Which channels of a trained network matter most, and how do they come first?"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from tqdm.auto import tqdm

from nni_cafenet.errors import InvalidBatches, TrainingDiverged, UnsupportedModel
from nni_cafenet.modes import evaluating, seeded
from nni_cafenet.space import SearchSpace
from nni_cafenet.supernet.objectives import AnyLoss, as_loss, checked_loss, cross_entropy
from nni_cafenet.tracing.trial import AxisTensors, permuted, tensors_along

Importance = tuple[npt.NDArray[np.float64], ...]


def channel_importance(
    model: nn.Module,
    space: SearchSpace,
    batches: Iterable[Any],
    *,
    loss_fn: AnyLoss = cross_entropy,
    progress: bool = True,
) -> Importance:
    """How much a trained network would lose with each unit of each group; arrays of shape (units,), higher is more.

    The diagonal estimate of Optimal Brain Damage (LeCun et al., 1990), with squared gradients in the place of second
    derivatives: the sum of mean(gradient^2) * weight^2 over all weights that come and go with a unit, be it that they
    make its channels, normalise or read them.

    Args:
        model: trained; looked at in eval mode, and left as it is.
        space: from build_space(model, example_inputs).
        batches: of the training data, and all of them are used: give some hundred images. Many small batches, of 1 to 8
            images (:func:`few_images` makes them), tell more than few large ones, whose images cancel out in the mean.
        loss_fn: (model, batch) -> scalar, or a torch loss for batches of (inputs, targets).
        progress: a bar on stderr, if that is a terminal.

    Raises:
        InvalidBatches: no batches, or a loss that is not a scalar.
        TrainingDiverged: a loss, or a gradient, is NaN or infinite.
        UnsupportedModel: `space` was built from another model.
    """
    loss_of = as_loss(loss_fn)
    model = copy.deepcopy(model)
    tensors = _tensors(model, space)
    weights = [weight.requires_grad_() for weight in model.parameters() if weight.is_floating_point()]
    squares = {id(weight): torch.zeros_like(weight) for weight in weights}
    count = 0
    with torch.enable_grad(), evaluating(model), seeded(0, 0, model):
        for batch in tqdm(batches, "importance", unit="batch", disable=None if progress else True, leave=False):
            loss = checked_loss(loss_of(model, batch))
            _check_finite(loss, f"the loss is {float(loss.detach())} on batch {count}")
            for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                if gradient is not None:
                    squares[id(weight)] += gradient.square()
            count += 1
    if not count:
        raise InvalidBatches("batches yields nothing: give a DataLoader, or a list, of batches of the training data")
    lost = {id(weight): weight.detach().double().square() * squares.pop(id(weight)) / count for weight in weights}
    importance = tuple(np.zeros(group.units) for group in space.groups)
    for axis in space.axes:
        for owner, name, dim in tensors[axis.key]:
            weight = getattr(owner, name)
            if id(weight) in lost:
                along = lost[id(weight)].movedim(dim, 0).reshape(axis.size, -1).sum(1)
                _check_finite(along, f"the gradients of {axis.layer} are not finite")
                per_position = along.cpu().numpy()
                for group, (here, units) in axis.by_group.items():
                    np.add.at(importance[group], units, per_position[here])
    return importance


def few_images(batches: Iterable[Any], images: int = 4) -> Iterator[Any]:
    """`batches` of (inputs, targets) in pieces of so many images; batches of another form as they are."""
    for batch in batches:
        match batch:
            case (torch.Tensor() as inputs, torch.Tensor() as targets) if inputs.shape[:1] == targets.shape[:1] != ():
                yield from zip(inputs.split(images), targets.split(images), strict=True)
            case _:
                yield batch


def sort_channels(model: nn.Module, space: SearchSpace, importance: Sequence[npt.ArrayLike]) -> nn.Module:
    """A copy of a trained `model` that computes the same, with the most important channels first in every group.

    So the leftmost bins, from which every sharing pattern starts, are the ones worth keeping, and a supernet that
    starts from the copy keeps much of what the trained network knows (as in Once-for-All, Cai et al., 2020). The space
    of the copy is `space`.

    Args:
        importance: for each group a value for each unit, higher is more important: from :func:`channel_importance`, or
            others.

    Raises:
        ValueError: `importance` does not fit the space, or holds NaN.
        UnsupportedModel: `space` was built from another model.
    """
    if len(importance) != len(space.groups):
        raise ValueError(
            f"importance must hold one array for each of the space's {len(space.groups)} groups, but holds "
            f"{len(importance)}"
        )
    orders = {}
    for index, (group, given) in enumerate(zip(space.groups, importance, strict=True)):
        values = np.asarray(given, dtype=np.float64)
        if values.shape != (group.units,) or np.isnan(values).any():
            got = f"shape {values.shape}" if values.shape != (group.units,) else "NaN"
            raise ValueError(f"importance of {group.name} must be {group.units} numbers, one for a unit, but got {got}")
        orders[index] = np.argsort(-values, kind="stable")
    ordered = copy.deepcopy(model)
    ordered.zero_grad()
    with torch.no_grad():
        for (owner, name), tensor in permuted(space.axes, _tensors(ordered, space), orders).items():
            getattr(owner, name).copy_(tensor)
    return ordered


def _tensors(model: nn.Module, space: SearchSpace) -> AxisTensors:
    tensors = tensors_along(model, space.axes)
    for axis in space.axes:
        for owner, name, dim in tensors[axis.key]:
            size = getattr(owner, name).shape[dim]
            if size != axis.size:
                raise UnsupportedModel(
                    f"{axis} has {axis.size} channels in the space and {size} in the model: use the space built from "
                    f"this model"
                )
    return tensors


def _check_finite(values: torch.Tensor, message: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise TrainingDiverged(f"channel importance: {message}: look at the weights and the data")
