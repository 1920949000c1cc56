"""A min-min training step: of the candidates of some widths, only the one with the smallest loss learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nni_cafenet.cost import Limits
from nni_cafenet.distributed import mean_over_ranks
from nni_cafenet.errors import TrainingDiverged
from nni_cafenet.search.searcher import draw_within
from nni_cafenet.sharing import SharingPattern
from nni_cafenet.supernet.candidates import Candidates
from nni_cafenet.supernet.distillation import divergence, loss_and_logits
from nni_cafenet.supernet.objectives import LossFn, checked_loss
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.widths import SubNetwork, Widths


@dataclass(frozen=True, eq=False)
class MinMin:
    """Min-min training of a supernet, whoever runs the loop over the batches.

    Args:
        supernet: what learns.
        sharing: which bins may stand for a width.
        candidates: which joint choices a step compares.
        random_steps: in the first so many steps a random candidate learns instead of the best one.
        seed: of the widths and candidates drawn.
        sandwich: in every step the largest and the smallest network learn too (slimmable networks' sandwich rule).
        distill: every step the largest network learns too, and the others from its answers instead of the targets.
        near: in the share `near_share` of the steps the widths are drawn to fill these limits, instead of uniformly.
    """

    supernet: Supernet
    sharing: SharingPattern
    candidates: Candidates
    random_steps: int = 0
    seed: int = 0
    sandwich: bool = False
    distill: bool = False
    near: Limits | None = None
    near_share: float = 0.0

    def loss(self, batch: Any, number: int, loss_fn: LossFn) -> torch.Tensor:
        """The loss to learn from in step `number` (from 0): of the best candidate of random widths, with its graph.

        With others that learn too, it is the mean of their losses.

        Raises:
            TrainingDiverged: it is NaN or infinite.
        """
        space = self.supernet.space
        widths, listed = self._drawn(number)
        losses, largest = [], SubNetwork.fixed(space.largest)
        if self.distill:
            with self.supernet.running(largest) as model:
                loss, taught = loss_and_logits(model, batch, loss_fn)
            losses.append(loss)
            loss_fn = _learning_from(taught.detach(), loss_fn)
        elif self.sandwich:
            losses.append(minmin_loss(self.supernet, [largest], batch, loss_fn)[1])
        losses.append(minmin_loss(self.supernet, listed, batch, loss_fn)[1])
        if self.sandwich:
            losses.append(minmin_loss(self.supernet, [SubNetwork.fixed(space.smallest)], batch, loss_fn)[1])
        loss = torch.stack(losses).mean() if len(losses) > 1 else losses[0]
        self._check(loss, number, widths)
        return loss

    def choice(self, batch: Any, number: int, loss_fn: LossFn) -> SubNetwork:
        """The candidate that learns in step `number`, where something else than this makes it learn.

        Raises:
            TrainingDiverged: its loss is NaN or infinite.
        """
        widths, listed = self._drawn(number)
        with torch.no_grad():
            best, loss = minmin_loss(self.supernet, listed, batch, loss_fn)
        self._check(loss, number, widths)
        return best

    def _drawn(self, number: int) -> tuple[Widths, list[SubNetwork]]:
        """The widths of a step, and the candidates that it compares."""
        space = self.supernet.space
        rng = np.random.default_rng([self.seed, number])  # of the step alone, so that a resume draws the same
        if self.near is not None and rng.random() < self.near_share:
            widths = draw_within(space, self.near, rng)
        else:
            widths = space.sample(rng).widths
        listed = self.candidates.listed(space, widths, self.sharing, rng)
        return widths, [listed[rng.integers(len(listed))]] if number < self.random_steps else listed

    def _check(self, loss: torch.Tensor, number: int, widths: Widths) -> None:
        value = mean_over_ranks(loss)
        if not math.isfinite(value):
            channels = self.supernet.space.channels(widths)
            raise TrainingDiverged(
                f"supernet: the loss is {value} at step {number}, at the widths {channels}: "
                f"lower the learning rate, or check the data"
            )


def _learning_from(taught: torch.Tensor, loss_fn: LossFn) -> LossFn:
    """A loss with the answers `taught` in the place of the targets."""
    return lambda model, batch: divergence(loss_and_logits(model, batch, loss_fn)[1], taught)


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
        value = mean_over_ranks(loss)
        if math.isnan(value):
            return sub, loss
        if best is None or value < smallest:
            best, smallest = (sub, loss), value
    assert best is not None, "there is always the fixed pattern's candidate"
    return best
