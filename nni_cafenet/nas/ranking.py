"""What is a metric that an evaluator reports worth to the search? Its sign, NNI's penalty, and scores that are none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nni.nas.oneshot.pytorch.profiler import SampleProfilerPenalty
from nni.nas.space import ExecutableModelSpace, ModelStatus

from nni_cafenet.errors import CafeNetError, InvalidScore
from nni_cafenet.nas.model_space import WidthModelSpace
from nni_cafenet.search.searcher import Candidate
from nni_cafenet.supernet.evaluate import Scorer
from nni_cafenet.widths import Widths


@dataclass(frozen=True)
class Ranking:
    """Turns metrics into scores, of which higher ones are better.

    Args:
        lower_is_better: of metrics; their scores are the metrics with the sign turned.
        penalty: of NNI; it changes the metric as it was reported, before the sign is turned. So its scale is negative
            for an accuracy and positive for an error, as in NNI's own strategies.
    """

    lower_is_better: bool = False
    penalty: SampleProfilerPenalty | None = None

    def score(self, metric: float) -> float:
        """The score of `metric`, not yet penalised."""
        return -metric if self.lower_is_better else metric

    def penalised(self, score: float, sample: Mapping[str, int]) -> float:
        """`score` after the penalty for `sample` (channels by label).

        Raises:
            InvalidScore: the penalty makes it NaN or infinite, as "mul" does of negative numbers.
        """
        if self.penalty is None:
            return score
        # -(-score) is the metric again: turning a sign is its own inverse
        value, details = self.penalty(self.score(score), sample)
        if not math.isfinite(value):
            raise InvalidScore(f"the penalty makes {float(value)} of the metric {self.score(score)}: {details}")
        return self.score(float(value))


@dataclass(frozen=True, eq=False, kw_only=True)
class PenalisedScorer(Scorer):
    """A Scorer whose candidates are penalised for their widths.

    Args:
        ranking: holds the penalty.
        model_space: knows the samples of widths.
    """

    ranking: Ranking
    model_space: WidthModelSpace

    def evaluate(self, widths: Widths) -> Candidate:
        found = super().evaluate(widths)
        return replace(found, score=self.ranking.penalised(found.score, self.model_space.sample_of(widths)))


def as_penalty(penalty: SampleProfilerPenalty | Mapping[str, Any] | None) -> SampleProfilerPenalty | None:
    """`penalty` as NNI's object: its users also write a dict of profiler, baseline, scale and so on.

    Raises:
        TypeError: it is neither; an ExpectationProfilerPenalty is for strategies that learn distributions.
    """
    if isinstance(penalty, Mapping):
        penalty = SampleProfilerPenalty(**penalty)
    if penalty is not None and not isinstance(penalty, SampleProfilerPenalty):
        raise TypeError(
            f"penalty must be a SampleProfilerPenalty or a dict of its arguments, but got a {type(penalty).__name__}"
        )
    return penalty


def check_ran(trial: ExecutableModelSpace, what: str) -> None:
    """Raise CafeNetError where `trial` failed and the engine went on, as it does with continue_on_failure."""
    if trial.status is not ModelStatus.Trained:
        raise CafeNetError(f"{what} failed ({trial.status.value}): the error is in the experiment's log")


def reported_metric(trial: ExecutableModelSpace, reporter: str) -> float:
    """What `trial` reported: its final metric or, where it reports none, the last intermediate one.

    Args:
        trial: executed.
        reporter: what reports, for messages.

    Raises:
        InvalidScore: there is no metric, or it is NaN or infinite.
    """
    metrics = trial.metrics
    metric = metrics.final
    if metric is None and metrics.intermediates:
        metric = metrics.intermediates[-1]
    if metric is None:
        raise InvalidScore(
            f"{reporter} reports no metric when it validates: call nni.report_final_result(metric), or "
            f"nni.report_intermediate_result(metric), for instance in its on_validation_end; where it does, its "
            f"validation data holds no batch"
        )
    if not math.isfinite(metric):
        raise InvalidScore(
            f"{reporter} reports the metric {metric}, and sub-networks cannot be ranked by it: "
            f"report a finite number, and look for what makes it {metric}"
        )
    return float(metric)
