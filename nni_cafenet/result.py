"""What a search found, and saving it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nni_cafenet.cost import Limits
from nni_cafenet.report import HistoryRow, Report, WidthRow, write_report
from nni_cafenet.search.searcher import Candidate, pareto_front
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import Widths


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of :func:`nni_cafenet.search_widths`. All scores are the supernet's, on the validation batches,
    or those of networks that were trained one by one.

    Args:
        history: every candidate, in the order in which it was scored; some searchers pass through larger ones.
        dense: the full network.
        uniform: the Uniform baseline at the same budget.
        random: one draw within the same budget.
        space: the space that was searched, in the last stage.
        supernet: the trained full-width model, of several the first one, to slice networks from:
            slice_model(result.supernet, space, sub); where networks were trained one by one, what they started from.
        limits: the budget in absolute numbers.
        seconds: wall time by phase.
        seed: the seed of the search.
        whole: the space of the full network, where stages narrowed it.
        scores_of: what the scores are those of.
        predicted: of each in `history`, what the searcher makes of its score, where it does not take it as it is.
    """

    history: tuple[Candidate, ...]
    dense: Candidate
    uniform: Candidate
    random: Candidate
    space: SearchSpace
    supernet: nn.Module = field(repr=False)
    limits: Limits
    seconds: Mapping[str, float]
    seed: int
    whole: SearchSpace | None = None
    scores_of: str = "sub-networks of the supernet"
    predicted: tuple[float, ...] | None = field(default=None, repr=False)

    @property
    def scored(self) -> tuple[Candidate, ...]:
        """All that was scored: the candidates and the networks beside them."""
        return (*self.history, self.dense, self.uniform, self.random)

    @property
    def admitted(self) -> tuple[Candidate, ...]:
        """The candidates within the limits, in the order in which they were scored."""
        return tuple(found for found in self.history if self.limits.admit(self.space.cost, found.subnetwork.widths))

    @property
    def ranked(self) -> tuple[Candidate, ...]:
        """The candidates within the limits, the highest score first, of equal ones the one with the fewest MACs.

        By what the searcher predicts, where it does.
        """
        values = dict(zip(self.history, self.predicted or (found.score for found in self.history), strict=True))
        return tuple(sorted(self.admitted, key=lambda candidate: (-values[candidate], candidate.macs)))

    @property
    def best(self) -> Candidate:
        """The first of those ranked."""
        return self.ranked[0]

    @property
    def pareto(self) -> tuple[Candidate, ...]:
        """The candidates that no other beats in both score and MACs, by rising MACs."""
        return tuple(pareto_front(self.history, lambda found: (found.macs, found.score)))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write result.json, widths.csv and report.html into `folder`; the path of the report."""
        return write_report(folder, self.report())

    def report(self) -> Report:
        """What save() writes, as plain data."""
        summary: dict[str, Any] = {
            "dense": _row(self.dense),
            "budget": {name: limit for name, limit in vars(self.limits).items() if limit is not None},
            "slim": _row(self.best),
            "uniform": _row(self.uniform),
            "random": _row(self.random),
            "widths": self.space.channels(self.best.subnetwork.widths),
            "seconds": dict(self.seconds),
            "seed": self.seed,
            "accuracy_of": f"{self.scores_of}, by score_fn on valid_batches",
        }
        predicted = self.predicted or (None,) * len(self.history)
        history = tuple(
            HistoryRow(found.macs, found.params, found.score, value)
            for found, value in zip(self.history, predicted, strict=True)
        )
        found, even = self.best.subnetwork.widths, self.uniform.subnetwork.widths
        widths = width_rows(self.whole or self.space, self.space, found, self.space, even)
        return Report(summary, widths, history)


def width_rows(
    whole: SearchSpace, space: SearchSpace, widths: Widths, uniform_space: SearchSpace, uniform: Widths
) -> tuple[WidthRow, ...]:
    """Channels of each group: full, found, and Uniform's; the spaces may be other binnings of the same groups."""
    found, full, even = space.channels(widths), whole.channels(whole.largest), uniform_space.channels(uniform)
    return tuple(WidthRow(name, full[name], found[name], even[name]) for name in full)


def _row(candidate: Candidate) -> dict[str, float]:
    return {"macs": candidate.macs, "params": candidate.params, "accuracy": candidate.score}
