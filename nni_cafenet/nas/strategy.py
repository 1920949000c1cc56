"""How is CafeNet a strategy of NNI: its evaluator trains and scores, search_supernet searches, NNI gets the models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nni.nas.evaluator.pytorch import Lightning, LightningModule
from nni.nas.oneshot.pytorch.profiler import RangeProfilerFilter
from nni.nas.oneshot.pytorch.strategy import OneShotStrategy
from nni.nas.space import ModelStatus, RawFormatModelSpace
from torch import nn

from nni_cafenet.checkpoint import assert_plain
from nni_cafenet.cost import Budget, Limits
from nni_cafenet.errors import CheckpointMismatch, InvalidScore
from nni_cafenet.nas.constraints import Constrained
from nni_cafenet.nas.evaluation import Validation, checked_evaluator, training_batches
from nni_cafenet.nas.model_space import WidthModelSpace
from nni_cafenet.nas.training import MinMinModule, quiet_loss
from nni_cafenet.result import Result
from nni_cafenet.run import check_numbers, search_supernet
from nni_cafenet.search.evolution import Evolution
from nni_cafenet.search.searcher import Candidate, Searcher
from nni_cafenet.sharing import LocallyFree, SharingPattern
from nni_cafenet.supernet.candidates import Candidates, as_candidates
from nni_cafenet.supernet.evaluate import Scorer
from nni_cafenet.supernet.recalibrate import recalibrate
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.widths import Widths

logger = logging.getLogger(f"nni.{__name__}")  # under nni, so that NNI's log files hold it

Filter = Callable[[dict[str, int]], bool]  # of a sample: channels by label


class CafeNet(OneShotStrategy):
    """Searches the widths of a WidthModelSpace with a Lightning evaluator, on the sequential engine.

    The evaluator's trainer trains the supernet, its loss chosen by min-min. Sub-networks are then submitted to the
    engine one by one: the evaluator's validation reports their score (nni.report_final_result, higher is better).
    exp.export_top_models(formatter="instance") gives slim models with the supernet's weights and BatchNorm statistics
    of their own.

    Args:
        budget: the most that the found network may cost.
        sharing: LocallyFree(offset=1) unless given.
        searcher: Evolution(seed=seed) unless given.
        candidates: which joint choices a training step compares (see search_widths).
        score_candidates: which ones a score is the best of; those of training unless given.
        random_share: in this first share of the steps a random candidate learns instead of the best one.
        recalibrate_batches: training batches from which BatchNorm statistics are re-estimated.
        top_k: how many models list_models gives unless told.
        seed: of the widths, candidates and calibration batches drawn; the evaluator's data has its own.
        filter: which samples (channels by label) may be scored: a callable, or NNI's dict of profiler, min and max.
        **kwargs: of NNI's OneShotStrategy.

    Attributes:
        result: after the run, everything that was scored; result.save(folder) writes the report.

    Raises:
        TypeError: `budget` is not a Budget; on initialisation, a model space or evaluator that it cannot use.
        InfeasibleBudget: on initialisation, before anything is trained.
        InvalidBatches: on initialisation, an evaluator without training or validation data.
        InvalidScore: before anything is trained, an evaluator whose validation reports no number.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        sharing: SharingPattern | None = None,
        searcher: Searcher | None = None,
        candidates: Candidates | str = "sampled",
        score_candidates: Candidates | str | None = None,
        random_share: float = 0.0,
        recalibrate_batches: int = 20,
        top_k: int = 1,
        seed: int = 0,
        filter: Filter | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(budget, Budget):
            raise TypeError(f'budget must be a Budget, such as Budget(max_macs="50%"), but got {budget!r}')
        check_numbers(random_share, recalibrate_batches)
        self.budget, self.sharing = budget, sharing or LocallyFree(offset=1)
        self.searcher = searcher or Evolution(seed=seed)
        self.candidates = as_candidates(candidates)
        self.score_candidates = as_candidates(score_candidates or candidates)
        self.random_share, self.recalibrate_batches = random_share, recalibrate_batches
        self.top_k, self.seed = top_k, seed
        self.filter = RangeProfilerFilter(**filter) if isinstance(filter, Mapping) else filter
        self.result: Result | None = None
        self._trained = False
        self._memory = _Memory()

    def extra_repr(self) -> str:
        names = ("budget", "sharing", "searcher", "candidates", "score_candidates", "random_share",
                 "recalibrate_batches", "seed")  # fmt: skip
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def mutate_model(self, model: Any) -> WidthModelSpace:
        if not isinstance(model, WidthModelSpace):
            raise TypeError(
                f"CafeNet searches the widths of a WidthModelSpace, but the model space is a {type(model).__name__}: "
                f"give NasExperiment a WidthModelSpace(factory, kwargs=..., example_shape=...)"
            )
        self._limits: Limits = model.space.limits(self.budget)
        self._supernet = Supernet(model.net, model.space)
        return super().mutate_model(model)  # type: ignore[no-any-return]

    def mutate_evaluator(self, evaluator: Any) -> Lightning:
        self._evaluator = checked_evaluator(evaluator)
        self._validation = Validation(self._evaluator)
        return super().mutate_evaluator(evaluator)

    def configure_oneshot_module(self, training_module: LightningModule) -> MinMinModule:
        return MinMinModule(
            training_module, self._supernet, self.sharing, self.candidates, self.random_share, self.seed
        )

    def _run(self) -> None:
        module, net = self._evaluator.module, self._supernet.model
        self._calibration = training_batches(self._evaluator, self.recalibrate_batches, seed=self.seed, model=net)
        self.oneshot_module.calibration = self._calibration
        if not self._trained:
            self._score(net, ())  # a metric that never comes should not cost a night of training
            super()._run()
            self._trained = True
        module.set_model(self.supernet)
        net.to(self._device)
        scorer = Scorer(
            self._supernet, (), self._score, self._calibration, quiet_loss(module), self.sharing,
            self.score_candidates, self.seed,
        )  # fmt: skip
        searcher = Constrained(self.searcher, self._admits, self.engine.budget_available)
        self.result = search_supernet(scorer, searcher, self._limits, checkpoint=self._memory)
        self.supernet.best.update({found.subnetwork.widths: found.subnetwork for found in self.result.history})
        logger.info("best of %d widths: %s", len(self.result.history), self.result.best)

    def list_models(self, sort: bool = True, limit: int | None = None) -> Iterator[RawFormatModelSpace]:
        """Slim models, the best score first (of equal ones the fewest MACs), or in the order of scoring.

        Args:
            sort: by score.
            limit: how many; top_k unless given.

        Raises:
            RuntimeError: the strategy has not been run to its end.
        """
        if self.result is None:
            raise RuntimeError("CafeNet has found no models yet: run the experiment, or resume it, to its end")
        found = list(self.result.history)
        if sort:
            found.sort(key=lambda candidate: (-candidate.score, candidate.macs))
        for candidate in found[: self.top_k if limit is None else limit]:
            yield self._frozen(candidate)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors: Lightning's checkpoint path, the trained supernet's weights, the search so far."""
        if self._mutated_model_space is None:
            return {}
        weights = dict(self._supernet.model.state_dict()) if self._trained else None
        state = {
            **super().state_dict(), "settings": repr(self), "space": self._supernet.space.fingerprint(),
            "supernet": weights, "search": self._memory.load(),
        }  # fmt: skip
        assert_plain(state)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`: in mid-training from Lightning's checkpoint, in mid-search after the last score.

        Raises:
            CheckpointMismatch: it is of another model or other settings.
        """
        super().load_state_dict(state_dict)
        for name, own in (("settings", repr(self)), ("space", self._supernet.space.fingerprint())):
            if state_dict.get(name) != own:
                raise CheckpointMismatch(
                    f"the experiment's checkpoint has the {name} {state_dict.get(name)!r}, but this strategy {own!r}: "
                    f"resume with the same model and settings, or start a new experiment"
                )
        if state_dict["supernet"] is not None:
            self._supernet.model.load_state_dict(state_dict["supernet"])
            self._trained = True
        if state_dict["search"] is not None:
            self._memory.save(state_dict["search"])

    @property
    def _device(self) -> Any:
        return self._evaluator.trainer.strategy.root_device

    def _admits(self, widths: Widths) -> bool:
        return self.filter is None or bool(self.filter(self.supernet.sample_of(widths)))

    def _score(self, model: nn.Module, batches: Iterable[Any]) -> float:
        """The ScoreFn: `model`, running as a sub-network, through the evaluator's validation; it knows the batches."""
        trial = RawFormatModelSpace(self.supernet, self._validation)
        trial.status = ModelStatus.Frozen
        self.engine.submit_models(trial)
        model.to(self._device)  # Lightning leaves it on the CPU
        if trial.metric is None:
            raise InvalidScore(
                f"{type(self._evaluator.module).__name__} reports no metric when it validates: "
                f"call nni.report_final_result(metric), higher is better, in its on_validation_end"
            )
        return float(trial.metric)

    def _frozen(self, candidate: Candidate) -> RawFormatModelSpace:
        sample = self.supernet.sample_of(candidate.subnetwork.widths)
        slim, module = self.supernet.freeze(sample), self._evaluator.module
        module.set_model(slim)
        recalibrate(slim, self._calibration, quiet_loss(module))
        model = RawFormatModelSpace(slim, self._evaluator)
        model.sample, model.status, model.metrics.final = sample, ModelStatus.Trained, candidate.score
        return model


class _Memory:
    """Where search_supernet keeps its state, for NNI to save."""

    def __init__(self) -> None:
        self._state: dict[str, Any] | None = None

    def load(self) -> dict[str, Any] | None:
        return self._state

    def save(self, state: Mapping[str, Any]) -> None:
        self._state = dict(state)
