"""A min-min training step: of the candidates of some widths, only the one with the smallest loss learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nni_cafenet.supernet.objectives import LossFn, checked_loss
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.widths import SubNetwork


@dataclass(frozen=True)
class Step:
    """What a training step did: the sub-network that learned, and its loss."""

    subnetwork: SubNetwork
    loss: float


def minmin_loss(
    supernet: Supernet, candidates: Sequence[SubNetwork], batch: Any, loss_fn: LossFn
) -> tuple[SubNetwork, torch.Tensor]:
    """The candidate with the smallest loss on `batch`, and that loss with its graph.

    Every candidate runs forward with a graph, and only the best one's is kept: at most two are alive at a time, and
    no forward is run twice. A NaN is returned at once, so that training stops instead of hiding it.
    """
    best: tuple[SubNetwork, torch.Tensor] | None = None
    smallest = math.inf
    for sub in candidates:
        with supernet.running(sub) as model:
            loss = checked_loss(loss_fn(model, batch))
        value = float(loss.detach())
        if math.isnan(value):
            return sub, loss
        if best is None or value < smallest:
            best, smallest = (sub, loss), value
    assert best is not None, "there is always the fixed pattern's candidate"
    return best


def minmin_step(supernet: Supernet, candidates: Sequence[SubNetwork], batch: Any, loss_fn: LossFn) -> Step:
    """Gradients of the best candidate's loss, in the parameters of the full model; see :func:`minmin_loss`."""
    sub, loss = minmin_loss(supernet, candidates, batch, loss_fn)
    value = float(loss.detach())
    if math.isfinite(value):
        loss.backward()
    return Step(sub, value)
