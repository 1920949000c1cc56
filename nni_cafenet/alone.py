"""What is a network worth after a training of its own? For searches without a supernet, beyond the paper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DistributedSampler

from nni_cafenet.distributed import by_itself
from nni_cafenet.errors import InvalidBatches
from nni_cafenet.export.slicing import slice_model
from nni_cafenet.modes import evaluating, seeded
from nni_cafenet.search.searcher import Candidate
from nni_cafenet.space import SearchSpace
from nni_cafenet.supernet.objectives import LossFn, ScoreFn, checked_score
from nni_cafenet.train import Recipe, train_model
from nni_cafenet.widths import SubNetwork, Widths


@dataclass(frozen=True, eq=False)
class AloneScorer:
    """Scores widths by training the network that `model` holds of them, each by itself.

    A supernet's scores err in one direction: what a wider layer gains is overlooked. Those of networks that are trained
    alone, to the end, err by chance, which a PredictorSearch averages out. Of several processes each trains others.

    Args:
        model: where all start from, in the fixed pattern; left as it is.
        train_batches: what each is trained on, all in the same order; in every process all of the images.
        valid_batches: what score_fn gets.
        score_fn: higher is better.
        loss_fn: of the training.
        recipe: of the training; that of the final one, for shorter ones prefer other widths.
        seed: of shuffling, augmentation and dropout.

    Raises:
        InvalidBatches: train_batches are a process' share of the images.
    """

    model: nn.Module
    space: SearchSpace
    train_batches: Iterable[Any]
    valid_batches: Iterable[Any]
    score_fn: ScoreFn
    loss_fn: LossFn
    recipe: Recipe
    seed: int = 0

    def __post_init__(self) -> None:
        sampler = getattr(self.train_batches, "sampler", None)
        if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
            raise InvalidBatches(
                f"each network is trained by one process, but its train_batches hold one of {sampler.num_replicas} "
                f"shares of the images: give a loader without DistributedSampler"
            )

    @property
    def scores_of(self) -> str:
        epochs = self.recipe.epochs
        return f"networks of the search after {epochs} epoch{'s' if epochs > 1 else ''} each"

    def score(self, sub: SubNetwork) -> float:
        """The score of one sub-network after its training.

        Raises:
            InvalidScore: score_fn gave something that is not a finite number.
            TrainingDiverged: the loss is NaN or infinite.
        """
        slim = slice_model(self.model, self.space, sub)
        with by_itself():
            train_model(
                slim, self.train_batches, self.recipe, loss_fn=self.loss_fn, seed=self.seed,
                label=f"widths {list(sub.widths.bins_kept)}", progress=False,
            )  # fmt: skip
        with torch.no_grad(), evaluating(slim), seeded(self.seed, 0, slim):
            return checked_score(self.score_fn(slim, self.valid_batches))

    def evaluate(self, widths: Widths) -> Candidate:
        """`widths` in the fixed pattern, with score and cost."""
        return Candidate.fixed(self.space, widths, self.score(SubNetwork.fixed(widths)))
