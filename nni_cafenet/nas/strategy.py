"""How is CafeNet a strategy of NNI: its evaluator trains and scores, search_supernet searches, NNI gets the models."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.execution import ExecutionEngine
from nni.nas.oneshot.pytorch.profiler import SampleProfilerPenalty
from nni.nas.oneshot.pytorch.strategy import OneShotStrategy
from nni.nas.space import ExecutableModelSpace, ModelStatus, RawFormatModelSpace, SimplifiedModelSpace
from torch import nn

from nni_cafenet.checks import check_numbers, check_parts, warn_of_coarse_bins
from nni_cafenet.cost import Budget
from nni_cafenet.nas.choices import as_width_space
from nni_cafenet.nas.confirmation import Confirmed, confirm
from nni_cafenet.nas.constraints import Constrained, Filter, as_filter, limits_under, on_widths, upper_part
from nni_cafenet.nas.engines import engine_here, user_space
from nni_cafenet.nas.evaluation import LightningWork, Work, checked_evaluator, metric_is_an_error, training_batches
from nni_cafenet.nas.functional import FunctionalWork, Lesson
from nni_cafenet.nas.progress import Progress
from nni_cafenet.nas.ranking import PenalisedScorer, Ranking, as_penalty, check_ran, reported_metric
from nni_cafenet.phases import search_supernet
from nni_cafenet.result import Result
from nni_cafenet.search.predictor import PredictorSearch
from nni_cafenet.search.searcher import Candidate, Searcher
from nni_cafenet.sharing import LocallyFree, SharingPattern
from nni_cafenet.supernet.candidates import Candidates, as_candidates
from nni_cafenet.supernet.minmin import MinMin
from nni_cafenet.supernet.objectives import AnyLoss, ScoreFn, accuracy, cross_entropy
from nni_cafenet.supernet.recalibrate import recalibrate
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.train import OptimizerFn, Recipe, ScheduleFn, cosine, first_batches, sgd

logger = logging.getLogger(f"nni.{__name__}")  # under nni, so that NNI's log files hold it


class CafeNet(OneShotStrategy):
    """Searches the widths of a WidthModelSpace, or of a hand-written space, in the process of the experiment.

    With a Lightning evaluator its trainer trains the supernet, its loss chosen by min-min; its validation reports the
    score of every sub-network. With a FunctionalEvaluator `train_batches`, `valid_batches` and so on do that, and the
    top_k slim models are then trials: the metric that the function reports ranks them. Any evaluator has the last word
    in this way where the engine is a training service, whose trials make the model anew and run in other processes.

    Metrics are scores, higher is better, as everywhere in NNI but for its Regression evaluator, which reports its mean
    squared error: see `lower_is_better`.

    Args:
        budget: the most that the found network may cost; may be left out where `filter` bounds MACs or parameters.
        sharing: LocallyFree(offset=1) unless given.
        searcher: PredictorSearch(seed=seed) unless given; CafeNet-E of the paper is Evolution(seed=seed).
        candidates: which joint choices a training step compares (see search_widths).
        score_candidates: which ones a score is the best of; those of training unless given.
        random_share: in this first share of the steps a random candidate learns instead of the best one.
        recalibrate_batches: training batches from which BatchNorm statistics are re-estimated.
        top_k: how many models list_models gives unless told, and how many are confirmed by trials.
        filter: which samples (channels by label) may be scored: a callable, a RangeProfilerFilter or a dict of
            profiler, min and max. The max of a WidthFlopsProfiler or WidthParamsProfiler is a budget.
        penalty: NNI's SampleProfilerPenalty, or a dict of its arguments: changes the metrics by which is searched, so
            that its scale is negative for an accuracy.
        lower_is_better: of the evaluator's metrics, which then count with their sign turned; True for Regression.
        mutation_hooks: none: CafeNet trains the model's own layers.
        seed: of the widths, candidates and calibration batches drawn; a Lightning evaluator's data has its own.
        checkpoint: a folder where the run's state is kept up to date, for NNI saves when an experiment starts and stops
            but not while it runs: after a kill, the same experiment, resumed or new, goes on from there.
        train_batches, valid_batches, loss_fn, score_fn, epochs, optimizer_fn, schedule_fn: how the supernet of a
            FunctionalEvaluator is trained and scored; see search_widths.

    Attributes:
        result: after the run, everything that was scored; result.save(folder) writes the report.

    Raises:
        TypeError: an argument, the model space or the evaluator is of a kind that it cannot use.
        InfeasibleBudget, CafeNetError: on initialisation, before anything is trained: a budget that no network meets,
            or a filter that admits none.
        InvalidBatches: on initialisation, an evaluator without training or validation data.
        InvalidScore: before anything is trained, an evaluator whose validation reports no finite number.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        sharing: SharingPattern | None = None,
        searcher: Searcher | None = None,
        candidates: Candidates | str = "sampled",
        score_candidates: Candidates | str | None = None,
        random_share: float = 0.0,
        recalibrate_batches: int = 20,
        top_k: int = 1,
        filter: Filter | Mapping[str, Any] | None = None,
        penalty: SampleProfilerPenalty | Mapping[str, Any] | None = None,
        lower_is_better: bool | None = None,
        mutation_hooks: Iterable[Any] | None = None,
        seed: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
        train_batches: Iterable[Any] | None = None,
        valid_batches: Iterable[Any] | None = None,
        loss_fn: AnyLoss = cross_entropy,
        score_fn: ScoreFn = accuracy,
        epochs: int = 60,
        optimizer_fn: OptimizerFn = sgd,
        schedule_fn: ScheduleFn = cosine,
    ) -> None:
        super().__init__()
        if not isinstance(budget, Budget | None):
            raise TypeError(f'budget must be a Budget, such as Budget(max_macs="50%"), but got {budget!r}')
        if mutation_hooks:
            raise TypeError("CafeNet takes no mutation_hooks: it trains the model's own layers and replaces none")
        check_numbers(random_share=random_share, recalibrate_batches=recalibrate_batches)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k must be a whole number of at least 1, but got {top_k!r}")
        self.budget, self.sharing = budget, sharing or LocallyFree(offset=1)
        self.searcher = searcher or PredictorSearch(seed=seed)
        check_parts(self.sharing, self.searcher)
        self.candidates = as_candidates(candidates)
        self.score_candidates = as_candidates(score_candidates or candidates)
        self.random_share, self.recalibrate_batches = random_share, recalibrate_batches
        self.top_k, self.seed, self.checkpoint = top_k, seed, checkpoint
        self.filter, self.penalty, self.lower_is_better = as_filter(filter), as_penalty(penalty), lower_is_better
        recipe = Recipe(epochs, optimizer_fn, schedule_fn)
        self.lesson = Lesson(train_batches, valid_batches, loss_fn, score_fn, recipe)
        self.result: Result | None = None
        self._confirmed: list[Confirmed] = []
        self._state_refused = False

    def extra_repr(self) -> str:
        names = ("budget", "sharing", "searcher", "candidates", "score_candidates", "random_share",
                 "recalibrate_batches", "lower_is_better", "seed")  # fmt: skip
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    # ---- before the run: everything is checked

    def _initialize(self, model_space: ExecutableModelSpace, engine: ExecutionEngine) -> ExecutableModelSpace:
        evaluator = model_space.evaluator
        supernet = as_width_space(user_space(model_space, engine), lambda: self._first_batch(evaluator))
        net, space = supernet.net, supernet.space
        self._limits = limits_under(space, self.budget, self.filter)
        self._constrained = Constrained(
            self.searcher, on_widths(self.filter, supernet), engine.budget_available,
            below=on_widths(upper_part(self.filter), supernet),
        )  # fmt: skip
        least = supernet.sample_of(space.smallest)
        self._constrained.check(space, self._limits, seed=self.seed, sample=least)
        warn_of_coarse_bins(space, self._limits)
        lower = metric_is_an_error(evaluator) if self.lower_is_better is None else self.lower_is_better
        self._ranking = Ranking(lower, self.penalty)
        self._supernet = Supernet(net, space)
        settings = {"settings": repr(self), "recipe": self.lesson.recipe.settings(), "space": space.fingerprint()}
        self._progress = Progress(settings, self.checkpoint)
        self._progress.get("begun")  # a folder of other settings is refused here
        self._work = self._work_of(evaluator)
        self._here = engine_here(engine)
        self._mutated_model_space = RawFormatModelSpace(supernet, self._work.training)
        self._mutated_model_space.status = ModelStatus.Frozen
        return model_space

    def _first_batch(self, evaluator: Any) -> Any:
        """What tells what a hand-written model space takes."""
        if isinstance(evaluator, FunctionalEvaluator):
            batches = first_batches(self.lesson.batches[0], 1, seed=self.seed, model=nn.Module())
        else:
            batches = training_batches(checked_evaluator(evaluator), 1, seed=self.seed, model=nn.Module())
        return batches[0] if batches else None

    def _work_of(self, evaluator: Any) -> Work:
        if isinstance(evaluator, FunctionalEvaluator):
            learned, batches = self._progress.part("training"), self.recalibrate_batches
            return FunctionalWork(self.lesson, self._supernet, self._ranking, self._minmin, learned, batches)
        if self.lesson.train_batches is not None or self.lesson.valid_batches is not None:
            raise TypeError("train_batches and valid_batches are for a FunctionalEvaluator: Lightning's has its own")
        return LightningWork(evaluator, self._supernet, self._minmin, self.recalibrate_batches, self.checkpoint)

    def _minmin(self, steps: float) -> MinMin:
        """The training of `steps` steps in all."""
        if self.random_share and (steps < 0 or math.isinf(steps)):
            raise ValueError(
                f"random_share={self.random_share} is a share of all steps, and this trainer has no last one: "
                f"give it max_epochs or max_steps"
            )
        random_steps = int(self.random_share * steps) if self.random_share else 0
        return MinMin(self._supernet, self.sharing, self.candidates, random_steps, self.seed)

    # ---- the run

    def _run(self) -> None:
        work, net = self._work, self._supernet.model
        self._calibration = work.prepare()
        if (weights := self._progress.get("supernet")) is None:
            self._progress.set("begun", True)
            self._score(net, ())  # a metric that never comes should not cost a night of training
            self._here.submit_models(self._mutated_model_space)
            check_ran(self._mutated_model_space, "training the supernet")
            self._progress.set("supernet", dict(net.state_dict()))
            self._progress.set("training", None)  # half a checkpoint less
        else:
            net.load_state_dict(weights)
        work.place(self.supernet)
        scorer = PenalisedScorer(
            self._supernet, (), self._score, self._calibration, work.loss_fn, self.sharing, self.score_candidates,
            self.seed, ranking=self._ranking, model_space=self.supernet,
        )  # fmt: skip
        progress = self._progress.part("search")
        self.result = search_supernet(scorer, self._constrained, self._limits, checkpoint=progress)
        self.supernet.best.update({found.subnetwork.widths: found.subnetwork for found in self.result.history})
        logger.info("best of %d widths: %s", len(self.result.history), self.result.best)
        if work.confirms or self._here is not self.engine:
            self._confirmed = confirm(
                self.result.ranked[: self.top_k], self.engine, trial_of=self._trial, rescored=self._rescored,
                may_submit=self.wait_for_resource, memory=self._progress.part("confirmed"),
            )  # fmt: skip
            logger.info("confirmed, the best first: %s", [one.candidate for one in self._confirmed])

    def _score(self, model: nn.Module, batches: Iterable[Any]) -> float:
        """The ScoreFn: `model`, running as a sub-network, through the evaluator's validation; it knows the batches."""
        trial = RawFormatModelSpace(self.supernet, self._work.validation)
        trial.status = ModelStatus.Frozen
        self._here.submit_models(trial)
        check_ran(trial, "validating a sub-network")
        self._work.place(self.supernet)
        return self._ranking.score(reported_metric(trial, self._work.reporter))

    def _rescored(self, candidate: Candidate, metric: float) -> Candidate:
        sample = self.supernet.sample_of(candidate.subnetwork.widths)
        return replace(candidate, score=self._ranking.penalised(self._ranking.score(metric), sample))

    # ---- afterwards

    def list_models(self, sort: bool = True, limit: int | None = None) -> Iterator[RawFormatModelSpace]:
        """Slim models; their metric is the score that they are ranked by, of which higher ones are better.

        Args:
            sort: the best score first, or what the searcher predicts to be the best, of equal ones the fewest MACs;
                those that trials have confirmed, where trials do. Otherwise all in the order in which they were scored.
            limit: how many; top_k unless given.

        Raises:
            RuntimeError: the strategy has not been run to its end.
        """
        if self.result is None:
            raise RuntimeError("CafeNet has found no models yet: run the experiment, or resume it, to its end")
        found = [Confirmed(candidate) for candidate in (self.result.ranked if sort else self.result.admitted)]
        for one in (self._confirmed if sort and self._confirmed else found)[: self.top_k if limit is None else limit]:
            slim = self._slim(one.candidate) if one.network is None else one.network
            model = self._raw(slim, one.candidate, ModelStatus.Trained)
            model.metrics.final = one.candidate.score
            yield model

    def _trial(self, candidate: Candidate) -> ExecutableModelSpace:
        """What the evaluator confirms: the slim model or, where it does so in another process, its widths."""
        if isinstance(self.model_space, SimplifiedModelSpace):
            return self.model_space.freeze(self.supernet.sample_of(candidate.subnetwork.widths))
        return self._raw(self._slim(candidate), candidate, ModelStatus.Frozen)

    def _slim(self, candidate: Candidate) -> nn.Module:
        slim: nn.Module = self.supernet.freeze(self.supernet.sample_of(candidate.subnetwork.widths))
        self._work.place(slim)
        recalibrate(slim, self._calibration, self._work.loss_fn)
        return slim

    def _raw(self, slim: nn.Module, candidate: Candidate, status: ModelStatus) -> RawFormatModelSpace:
        model = RawFormatModelSpace(slim, self.model_space.evaluator)
        model.sample, model.status = self.supernet.sample_of(candidate.subnetwork.widths), status
        return model

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors: Lightning's checkpoint path, the trained supernet's weights, the search so far.

        Raises:
            RuntimeError: it could not be initialised or resumed: NNI, which saves however an experiment ends, would
                write over the checkpoint that it could not resume from.
        """
        if self._mutated_model_space is None or self._state_refused:
            raise RuntimeError(
                "CafeNet could not be initialised or resumed, for a reason given by another error: nothing is saved, "
                "and a checkpoint that is there already stays as it is"
            )
        return {**self._progress.state_dict(), **self._work.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`: in mid-training from Lightning's checkpoint, in mid-search after the last score.

        Raises:
            CheckpointMismatch: it is of another model or other settings.
        """
        self._state_refused = True
        self._progress.load_state_dict(state_dict)
        self._work.load_state_dict(state_dict)
        self._state_refused = False
