"""Max-max scoring: widths are worth what the best sub-network that stands for them is worth."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from nni_cafenet.modes import evaluating, seeded
from nni_cafenet.search.searcher import Candidate
from nni_cafenet.sharing import SharingPattern
from nni_cafenet.space import SearchSpace
from nni_cafenet.supernet.candidates import Candidates
from nni_cafenet.supernet.objectives import LossFn, ScoreFn, checked_score
from nni_cafenet.supernet.recalibrate import recalibrate
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.widths import SubNetwork, Widths


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores sub-networks of a trained supernet; the same widths get the same score whenever they are asked.

    Args:
        supernet: trained; left as it is.
        valid_batches: what score_fn gets.
        score_fn: higher is better.
        recalibration_batches: training batches from which BatchNorm statistics are re-estimated for each sub-network.
        loss_fn: runs the forward on those batches.
        sharing: which bins may stand for a width.
        candidates: which joint choices are tried.
        seed: of the choices that are drawn.
        others: more supernets of the same space; a score is then the mean of theirs. Beyond the paper: what supernets
            of other seeds do not agree on is noise.
    """

    supernet: Supernet
    valid_batches: Iterable[Any]
    score_fn: ScoreFn
    recalibration_batches: Sequence[Any]
    loss_fn: LossFn
    sharing: SharingPattern
    candidates: Candidates
    seed: int = 0
    others: Sequence[Supernet] = ()

    @property
    def space(self) -> SearchSpace:
        return self.supernet.space

    @property
    def model(self) -> nn.Module:
        """The full network, with the supernet's weights."""
        return self.supernet.model

    @property
    def scores_of(self) -> str:
        """What the scores are those of, for reports."""
        return f"sub-networks of {1 + len(self.others)} supernets" if self.others else "sub-networks of the supernet"

    def score(self, sub: SubNetwork) -> float:
        """The score of one sub-network after BatchNorm re-estimation.

        Raises:
            InvalidScore: score_fn gave something that is not a finite number.
        """
        return statistics.fmean(self._score_in(supernet, sub) for supernet in (self.supernet, *self.others))

    def evaluate(self, widths: Widths) -> Candidate:
        """The best candidate of `widths`, with its score and cost."""
        space = self.supernet.space
        # drawn from the widths themselves, so that the order of questions, or a resume, changes nothing
        rng = np.random.default_rng([self.seed, *widths.bins_kept])
        sub, score = self.candidates.best(space, widths, self.sharing, rng, self.score)
        return Candidate(sub, score, space.cost.macs(widths), space.cost.params(widths))

    def _score_in(self, supernet: Supernet, sub: SubNetwork) -> float:
        with torch.no_grad(), supernet.running(sub) as model, evaluating(model), seeded(self.seed, 0, model):
            recalibrate(model, self.recalibration_batches, self.loss_fn)
            return checked_score(self.score_fn(model, self.valid_batches))
