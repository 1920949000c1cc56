"""How does an evaluator get the last word? The best slim models are trials of NNI's engine, here or elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nni.nas.execution import ExecutionEngine
from nni.nas.space import ExecutableModelSpace, RawFormatModelSpace
from torch import nn

from nni_cafenet.checkpoint import Memory
from nni_cafenet.errors import InvalidScore
from nni_cafenet.nas.ranking import reported_metric
from nni_cafenet.search.searcher import Candidate

logger = logging.getLogger(f"nni.{__name__}")  # under nni, so that NNI's log files hold it


@dataclass(frozen=True)
class Confirmed:
    """A candidate with its score; the network as the evaluator left it, where that was in this process."""

    candidate: Candidate
    network: nn.Module | None = None


def confirm(
    candidates: Iterable[Candidate],
    engine: ExecutionEngine,
    *,
    trial_of: Callable[[Candidate], ExecutableModelSpace],
    rescored: Callable[[Candidate, float], Candidate],
    may_submit: Callable[[], bool],
    memory: Memory,
) -> list[Confirmed]:
    """Submit a model of every candidate, and rank them by the metrics that the trials report.

    Args:
        candidates: the best first, should the engine's budget not do for all.
        engine: runs the trials, one after the other in this process or wherever a training service does.
        trial_of: makes the model that is submitted.
        rescored: the candidate with the score that a metric is worth.
        may_submit: waits for a free worker; False when the engine's budget is used up.
        memory: what was confirmed before is not submitted again.

    Raises:
        InvalidScore: there were trials, and none reported a finite number.
    """
    known: dict[str, Any] = memory.load() or {}
    trials: dict[Candidate, ExecutableModelSpace] = {}
    wanted = list(candidates)

    def collect(*, everything: bool = False) -> None:
        for candidate, trial in trials.items():
            # a training service may end the trial of one model and report the metric of another: at the end all are in
            if _name(candidate) not in known and (trial.metric is not None or everything):
                known[_name(candidate)] = _metric(trial)
        memory.save(known)

    for candidate in wanted:
        if _name(candidate) in known:
            continue
        if not may_submit():
            logger.warning("the engine's budget is used up: %d of %d models are confirmed", len(trials), len(wanted))
            break
        trials[candidate] = trial_of(candidate)
        engine.submit_models(trials[candidate])
        collect()
    if trials:
        engine.wait_models(*trials.values())
        collect(everything=True)
    if not known:
        return []
    confirmed = [
        Confirmed(rescored(candidate, known[_name(candidate)]), _network(trials.get(candidate)))
        for candidate in wanted
        if known.get(_name(candidate)) is not None
    ]
    if not confirmed:
        raise InvalidScore(
            f"none of the {len(wanted)} best models was confirmed: every trial failed, or reported no finite number by "
            f"nni.report_final_result(metric); NNI's log of the experiment, and of each trial, tells why"
        )
    return sorted(confirmed, key=lambda one: (-one.candidate.score, one.candidate.macs))


def _metric(trial: ExecutableModelSpace) -> float | None:
    try:
        return reported_metric(trial, "a trial")
    except InvalidScore as error:
        logger.warning("%s is left out: %s", trial, error)
        return None


def _network(trial: ExecutableModelSpace | None) -> nn.Module | None:
    return trial.executable_model() if isinstance(trial, RawFormatModelSpace) else None  # type: ignore[no-any-return]


def _name(candidate: Candidate) -> str:
    return repr(candidate.subnetwork.kept)
