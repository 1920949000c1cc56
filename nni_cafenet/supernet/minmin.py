"""A min-min training step: of the candidates of some widths, only the one with the smallest loss learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nni_cafenet.errors import TrainingDiverged
from nni_cafenet.sharing import SharingPattern
from nni_cafenet.supernet.candidates import Candidates
from nni_cafenet.supernet.objectives import LossFn, checked_loss
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.widths import SubNetwork


@dataclass(frozen=True, eq=False)
class MinMin:
    """Min-min training of a supernet, whoever runs the loop over the batches.

    Args:
        supernet: what learns.
        sharing: which bins may stand for a width.
        candidates: which joint choices a step compares.
        random_steps: in the first so many steps a random candidate learns instead of the best one.
        seed: of the widths and candidates drawn.
    """

    supernet: Supernet
    sharing: SharingPattern
    candidates: Candidates
    random_steps: int = 0
    seed: int = 0

    def loss(self, batch: Any, number: int, loss_fn: LossFn) -> torch.Tensor:
        """The loss to learn from in step `number` (from 0): of the best candidate of random widths, with its graph.

        Raises:
            TrainingDiverged: it is NaN or infinite.
        """
        space = self.supernet.space
        rng = np.random.default_rng([self.seed, number])  # of the step alone, so that a resume draws the same
        widths = space.sample(rng).widths
        listed = self.candidates.listed(space, widths, self.sharing, rng)
        if number < self.random_steps:
            listed = [listed[rng.integers(len(listed))]]
        _, loss = minmin_loss(self.supernet, listed, batch, loss_fn)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"supernet: the loss is {value} at step {number}, at the widths {space.channels(widths)}: "
                f"lower the learning rate, or check the data"
            )
        return loss


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
