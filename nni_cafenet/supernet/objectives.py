"""Losses and scores: what a user's functions look like, ready-made ones for classification, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nni_cafenet.errors import InvalidBatches, InvalidScore

LossFn = Callable[[nn.Module, Any], torch.Tensor]  # (model, batch) -> scalar
ScoreFn = Callable[[nn.Module, Iterable[Any]], float]  # (model in eval mode, batches) -> higher is better
TorchLoss = Callable[[torch.Tensor, Any], torch.Tensor]  # (outputs, targets) -> scalar
AnyLoss = LossFn | TorchLoss | nn.Module  # as users give one; as_loss makes a LossFn of it


def cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    """The default loss: cross entropy for batches of (inputs, targets)."""
    inputs, targets = to_device(batch, model)
    return nn.functional.cross_entropy(model(inputs), targets)


def binary_cross_entropy(model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss of several labels an image, each there or not: for batches of (inputs, targets of shape (N, labels))."""
    inputs, targets = to_device(batch, model)
    logits = model(inputs)
    return nn.functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))


def label_accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """The share, 0 to 1, of all labels of all images that are right: CelebA's mean attribute accuracy."""
    right = total = 0
    with torch.no_grad():
        for batch in batches:
            inputs, targets = to_device(batch, model)
            right += int(((model(inputs) > 0) == (targets > 0)).sum())
            total += targets.numel()
    if not total:
        raise InvalidBatches("the batches to score on hold no label: give valid_batches that yield (inputs, targets)")
    return right / total


def accuracy(model: nn.Module, batches: Iterable[Any]) -> float:
    """The default score: the share, 0 to 1, of (inputs, targets) whose largest output is the target's."""
    right = total = 0
    with torch.no_grad():
        for batch in batches:
            inputs, targets = to_device(batch, model)
            right += int((model(inputs).argmax(1) == targets).sum())
            total += len(targets)
    if not total:
        raise InvalidBatches("the batches to score on hold no example: give valid_batches that yield (inputs, targets)")
    return right / total


def as_loss(loss_fn: AnyLoss) -> LossFn:
    """`loss_fn` as a function of (model, batch): torch's own losses are applied to (model(inputs), targets)."""
    function = loss_fn.func if isinstance(loss_fn, partial) else loss_fn
    if isinstance(function, type):
        raise TypeError(
            f"loss_fn must be a function or a module, but got the class {function.__name__}: make an instance"
        )
    if isinstance(function, nn.Module) or getattr(function, "__module__", None) == "torch.nn.functional":

        def applied(model: nn.Module, batch: Any) -> torch.Tensor:
            inputs, targets = to_device(batch, model)
            return loss_fn(model(inputs), targets)  # type: ignore[call-arg, arg-type, no-any-return]

        return applied
    return loss_fn  # type: ignore[return-value]


def checked_loss(loss: Any) -> torch.Tensor:
    """`loss`, if it is a scalar tensor that gradients can flow from.

    Raises:
        InvalidBatches: it is not.
    """
    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise InvalidBatches(
                "loss_fn(model, batch) must return a loss that gradients can flow from, but what it returned depends "
                "on no parameter that requires them: is the loss detached, or is the model frozen?"
            )
        return loss
    got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
    raise InvalidBatches(f"loss_fn(model, batch) must return a scalar tensor, but it returned {got}")


def checked_score(score: Any) -> float:
    """`score` as a float.

    Raises:
        InvalidScore: it is not a finite number.
    """
    try:
        if isinstance(score, (str, bool)):
            raise TypeError
        number = float(score)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidScore(
            f"score_fn(model, batches) must return a number, higher is better, but it returned {score!r}"
        ) from None
    if not math.isfinite(number):
        raise InvalidScore(f"score_fn(model, batches) must return a finite number, but it returned {number}")
    return number


def to_device(batch: Any, model: nn.Module) -> Any:
    """`batch` with its tensors where the model's parameters are."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        return batch
    return pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.to(parameter.device, non_blocking=True), batch)
