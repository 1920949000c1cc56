"""What did the searches of several budgets find in one supernet, and saving it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from torch import nn

from nni_cafenet import page
from nni_cafenet.files import replacing
from nni_cafenet.report import write_report
from nni_cafenet.result import Result
from nni_cafenet.search.searcher import Candidate, pareto_front
from nni_cafenet.space import SearchSpace
from nni_cafenet.summary import HEADER, LABELS, accuracy_text, budget_text, duration_facts, network_rows


@dataclass(frozen=True, eq=False)
class Sweep:
    """The outcome of :func:`nni_cafenet.search_widths` for several budgets, which share a supernet.

    Args:
        results: that of each budget, in the order in which they were given; `results[0].best`, and so on.
    """

    results: tuple[Result, ...]

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates of all budgets, in the order in which they were scored, none of them twice."""
        return tuple(dict.fromkeys(found for result in self.results for found in result.history))

    @property
    def pareto(self) -> tuple[Candidate, ...]:
        """The candidates of all budgets that no other beats in both score and MACs, by rising MACs."""
        return tuple(pareto_front(self.candidates, lambda found: (found.macs, found.score)))

    @property
    def space(self) -> SearchSpace:
        """The space that was searched for all budgets."""
        return self.results[0].space

    @property
    def supernet(self) -> nn.Module:
        """The trained full-width model, to slice any candidate from: slice_model(supernet, space, sub)."""
        return self.results[0].supernet

    @property
    def seconds(self) -> Mapping[str, float]:
        """Wall time by phase; that of the searches is summed up, the supernet was trained once."""
        return {**self.results[0].seconds, "search": sum(result.seconds["search"] for result in self.results)}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write report.html, pareto.csv and, in a folder of its own, each budget's report; the path of the page.

        pareto.csv has a line for each network of the front: its MACs, parameters, score and the channels of each group.
        """
        folder = Path(folder)
        for result in self.results:
            write_report(folder / result.limits.label, result.report())
        for name, text in (("pareto.csv", self._front_csv()), ("report.html", self._page())):
            with replacing(folder / name) as partial:
                partial.write_text(text, encoding="utf-8", newline="")
        return folder / "report.html"

    def _front_csv(self) -> str:
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["macs", "params", "score", *(group.name for group in self.space.groups)])
        for found in self.pareto:
            channels = self.space.channels(found.subnetwork.widths)
            writer.writerow([found.macs, found.params, found.score, *channels.values()])
        return buffer.getvalue()

    def _page(self) -> str:
        summaries = [result.report().summary for result in self.results]
        cells = [{row[0]: row[1:] for row in network_rows(summary)} for summary in summaries]
        slim, uniform, dense = LABELS["slim"], LABELS["uniform"], LABELS["dense"]
        rows = [(dense, *cells[0][dense], "")]
        rows += [
            (f"within {budget_text(summary)}", *of_budget[slim], of_budget[uniform][-1])
            for summary, of_budget in zip(summaries, cells, strict=True)
        ]
        found = ", ".join(f"{of_budget[slim][-1]} at {of_budget[slim][1]}" for of_budget in cells)
        full = cells[0][dense][-1]
        return page.page(
            title="Widths within several budgets",
            lead=f"Networks within each budget: accuracy {found} of the dense network's MACs (dense {full}).",
            networks=page.table((*HEADER, uniform), rows),
            facts={
                **duration_facts(self.seconds),
                "candidates scored": f"{len(self.candidates):,}",
                "seed": str(self.results[0].seed),
            },
            accuracy_of=accuracy_text(summaries[0]),
            sections="\n".join(self._sections()),
        )

    def _sections(self) -> Iterator[str]:
        from nni_cafenet import plots  # matplotlib takes long to import

        dense = self.results[0].dense
        marked = [("dense", dense)]
        for result in self.results:
            marked += [("slim", result.best), ("uniform", result.uniform)]
        bounds = [result.limits.max_macs for result in self.results]
        yield page.figure("Accuracy over MACs", plots.draw_pareto(
            [(found.macs, found.score) for found in self.candidates],
            [plots.Point(name, found.macs, found.score) for name, found in marked],
            max_macs={most: f"{100 * most / dense.macs:.3g}%" for most in bounds if most is not None},
        ))  # fmt: skip
        front = [
            (f"{found.macs:,}", f"{found.macs / dense.macs:.1%}", f"{found.params:,}",
             f"{found.params / dense.params:.1%}", f"{found.score:.6g}")
            for found in self.pareto
        ]  # fmt: skip
        yield page.folded("The Pareto front (pareto.csv has the channels too)", page.table(HEADER[1:], front))
        links = [
            f'<li><a href="{result.limits.label}/report.html">{escape(budget_text(result.report().summary))}</a></li>'
            for result in self.results
        ]
        yield f"<h2>Each budget's report</h2>\n<ul>{''.join(links)}</ul>"
