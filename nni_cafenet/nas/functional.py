"""What does CafeNet add to a FunctionalEvaluator, which only evaluates? A supernet's training and its scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import nni
import torch
from nni.nas.evaluator import Evaluator
from torch import nn

from nni_cafenet.checkpoint import Memory
from nni_cafenet.modes import evaluating
from nni_cafenet.nas.ranking import Ranking
from nni_cafenet.phases import check_valid_batches, train_supernet
from nni_cafenet.sharing import Fixed
from nni_cafenet.supernet.candidates import Tied
from nni_cafenet.supernet.evaluate import Scorer
from nni_cafenet.supernet.minmin import MinMin
from nni_cafenet.supernet.objectives import AnyLoss, ScoreFn, as_loss, checked_score
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.train import Recipe, count_batches, first_batches
from nni_cafenet.widths import SubNetwork


@dataclass(frozen=True)
class Lesson:
    """What a supernet learns from and is scored by; see search_widths."""

    train_batches: Iterable[Any] | None
    valid_batches: Iterable[Any] | None
    loss_fn: AnyLoss
    score_fn: ScoreFn
    recipe: Recipe

    @property
    def batches(self) -> tuple[Iterable[Any], Iterable[Any]]:
        """Those to train on, and those to score on.

        Raises:
            TypeError: one is missing.
        """
        if self.train_batches is None or self.valid_batches is None:
            raise TypeError(
                "a FunctionalEvaluator tells how a network is evaluated, but not how a supernet is trained: "
                "give CafeNet(train_batches=..., valid_batches=..., loss_fn=..., score_fn=..., epochs=...) too"
            )
        return self.train_batches, self.valid_batches


class FunctionalWork:
    """The work of training and scoring by `lesson`; the evaluator's own function has the last word afterwards.

    Args:
        lesson: what search_widths would be given.
        supernet: to be trained.
        ranking: of the function's metrics; what is reported here is reported in the same direction.
        training: steps in all -> how they are done.
        checkpoint: of the training.
        recalibrate_batches: see CafeNet.

    Raises:
        TypeError: `lesson` lacks training or validation batches.
        InvalidBatches: there are none, or only once.
    """

    confirms = True
    reporter = "score_fn"

    def __init__(
        self,
        lesson: Lesson,
        supernet: Supernet,
        ranking: Ranking,
        training: Callable[[float], MinMin],
        checkpoint: Memory,
        recalibrate_batches: int,
    ) -> None:
        train_batches, valid_batches = lesson.batches
        check_valid_batches(valid_batches, supernet.model)
        self.lesson, self.supernet, self.ranking, self.checkpoint = lesson, supernet, ranking, checkpoint
        self.minmin = training(lesson.recipe.epochs * count_batches(train_batches))
        self.recalibrate_batches = recalibrate_batches
        self.loss_fn = as_loss(lesson.loss_fn)
        self.training, self.validation = SupernetTraining(self), Scoring(self)

    def prepare(self) -> list[Any]:
        """The batches from which BatchNorm statistics are estimated."""
        train_batches, _ = self.lesson.batches
        return first_batches(train_batches, self.recalibrate_batches, seed=self.minmin.seed, model=self.supernet.model)

    def place(self, model: nn.Module) -> None:
        """Nothing: `model` is given to the loss, and is where it is to be run."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing: all of it is in `checkpoint`."""


class Scoring(Evaluator):
    """Reports what score_fn gives a model as it is."""

    def __init__(self, work: FunctionalWork) -> None:
        self.work = work

    def evaluate(self, model: nn.Module) -> None:
        lesson = self.work.lesson
        assert lesson.valid_batches is not None
        with torch.no_grad(), evaluating(model):
            score = checked_score(lesson.score_fn(model, lesson.valid_batches))
        nni.report_final_result(self.work.ranking.score(score))


class SupernetTraining(Evaluator):
    """Trains the supernet, and reports what score_fn gives the full network after every epoch and at the end."""

    def __init__(self, work: FunctionalWork) -> None:
        self.work = work

    def evaluate(self, model: nn.Module) -> None:
        work, lesson, supernet = self.work, self.work.lesson, self.work.supernet
        assert lesson.train_batches is not None and lesson.valid_batches is not None
        scorer = Scorer(
            supernet, lesson.valid_batches, lesson.score_fn, work.prepare(), work.loss_fn, Fixed(), Tied()
        )  # fmt: skip
        reported: list[float] = []

        def report() -> None:
            score = scorer.score(SubNetwork.fixed(supernet.space.largest))
            reported.append(work.ranking.score(score))
            nni.report_intermediate_result(reported[-1])

        train_supernet(
            supernet, lesson.train_batches, lesson.recipe, work.minmin, work.loss_fn,
            checkpoint=work.checkpoint, on_epoch=report,
        )  # fmt: skip
        if not reported:  # no epoch, or resumed after the last one
            report()
        nni.report_final_result(reported[-1])
