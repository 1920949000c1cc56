"""How are dense and slim networks trained by themselves, before and after a search? Each training kept in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nni_cafenet.checkpoint import Checkpoint
from nni_cafenet.cost import Limits
from nni_cafenet.distributed import from_first
from nni_cafenet.halving import short_rounds, successive_halving
from nni_cafenet.importance import channel_importance, few_images, sort_channels
from nni_cafenet.modes import evaluating
from nni_cafenet.networks import Factory, Network
from nni_cafenet.space import SearchSpace
from nni_cafenet.supernet.objectives import AnyLoss, LossFn, ScoreFn, checked_loss
from nni_cafenet.train import Recipe, first_batches, train_model

IMPORTANCE_BATCHES = 8  # from which the importance of the dense network's channels is estimated
Teaching = Callable[[nn.Module], LossFn]  # makes a loss of a trained network


@dataclass(frozen=True, eq=False)
class Data:
    """Batches by their use. Nothing is selected by `test`, which is looked at once for each network, at the end.

    Args:
        train: what every network is trained on.
        valid: what the search selects by, a part of the training data that `train` does not hold.
        test: what accuracies are reported on.
    """

    train: Iterable[Any]
    valid: Iterable[Any]
    test: Iterable[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Trainings:
    """What networks of one search are trained from, on and by.

    Args:
        factory: makes the dense network.
        limits: of the slim ones.
        recipe: of the dense network's training before a search.
        runs: trainings of each network; the first by `seed`, the next by seed + 1 and so on.
        folder: of the dense network's checkpoints.
        given: the dense network, where it is trained already.
    """

    factory: Factory
    space: SearchSpace
    data: Data
    limits: Limits
    recipe: Recipe
    loss_fn: AnyLoss
    score_fn: ScoreFn
    runs: int
    seed: int
    folder: Path
    progress: bool
    given: nn.Module | None = None

    def after(
        self, recipe: Recipe, name: str, run: int, network: Network, start: Factory, folder: Path, loss_fn: AnyLoss
    ) -> nn.Module:
        """A network cut out of what `start` makes, after a training, whose checkpoint is in `folder`."""
        seed = self.seed + run
        model = network.make(start, seed=seed)
        widths = list(network.subnetwork.widths.bins_kept)
        settings = {**recipe.settings(), "limits": repr(self.limits), "widths": widths, "seed": seed}
        train_model(
            model, self.data.train, recipe, loss_fn=loss_fn, seed=seed,
            checkpoint=Checkpoint(folder, f"{name}-{run}", settings),
            label=f"{name} {run + 1}/{max(run + 1, self.runs)}", progress=self.progress,
        )  # fmt: skip
        return model

    def dense(self, run: int) -> nn.Module:
        """The trained dense network of a run, or the one that was given."""
        if self.given is not None:
            return self.given
        full = Network.full(self.space)
        return self.after(self.recipe, "dense", run, full, self.factory, self.folder, self.loss_fn)

    def sorted_dense(self, run: int) -> nn.Module:
        """The same, its most important channels first."""
        dense = self.dense(run)
        drawn = from_first(first_batches(self.data.train, IMPORTANCE_BATCHES, seed=self.seed, model=dense))
        importance = channel_importance(
            dense, self.space, few_images(drawn), loss_fn=self.loss_fn, progress=self.progress
        )
        return sort_channels(dense, self.space, importance)

    def taught_loss(self, teaching: Teaching) -> LossFn:
        """What the dense network of the first run teaches by; tried here, since a search may take a night."""
        loss = teaching(self.dense(0))
        student = Network.full(self.space).make(self.factory, seed=self.seed)
        with torch.no_grad(), evaluating(student):
            for batch in first_batches(self.data.train, 1, seed=self.seed, model=student):
                checked_loss(loss(student, batch))
        return loss

    def best_of(
        self, candidates: Sequence[Network], recipe: Recipe, start: Factory, folder: Path, loss_fn: AnyLoss
    ) -> tuple[Network, str]:
        """The best of a search's candidates and Uniform, the last one, and what a report says of that.

        Args:
            recipe: of a final training, which they have in parts.
            start: makes what they are cut out of.
        """
        best, _ = successive_halving(
            start, candidates, rounds=short_rounds(recipe), train_batches=self.data.train,
            valid_batches=self.data.valid, folder=folder, loss_fn=loss_fn, score_fn=self.score_fn, seed=self.seed,
            progress=self.progress,
        )  # fmt: skip
        whose = "Uniform: slim is Uniform" if best is candidates[-1] else "found by the search"
        return best, f"{len(candidates)}, the best of them {whose}"
