"""What the cells of compare.py say: a table on the screen, and compare.csv and a plot for each network in OUT.

    python examples/benchmarks/summarise.py --out examples/benchmarks/compare

Differences are paired: the same seed is the same dense network, the same data in the same order and the same number of
updates. Their intervals are Student's, of 95 %, over seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from scipy import stats
from tables import write_csv

from nni_cafenet.files import replacing

FAMILIES = {  # by the first word of a method
    "tp": "torch-pruning", "nni": "NNI", "modelopt": "modelopt",
    "dense": "baseline", "uniform": "baseline", "random": "baseline",
}  # fmt: skip
COLORS = {
    "CafeNet": "#0072B2",
    "torch-pruning": "#009E73",
    "NNI": "#CC79A7",
    "modelopt": "#E69F00",
    "baseline": "#D55E00",
}
POINTS = 8  # of accuracy below the best that a panel shows


@dataclass(frozen=True)
class Cell:
    """One method at one budget with one seed; empty where it did not reach the budget.

    Accuracies are 0 to 1, and the mean of `trainings` of the network that it found.
    """

    size: str
    network: str
    weights: str
    budget: str
    method: str
    seed: int
    macs: int | None = None
    params: int | None = None
    check: float | None = None
    test: float | None = None
    search_seconds: float | None = None
    supernet_seconds: float | None = None
    training_seconds: float | None = None
    trainings: int = 1
    unreachable: str = ""


@dataclass(frozen=True)
class Line:
    """One method at one budget, over seeds.

    Args:
        differences: to the reference, by seed, of those that both have; none of the reference itself.
    """

    method: str
    seeds: int
    macs: float
    params: float
    mean: float
    std: float
    differences: Mapping[int, float]
    seconds: float
    unreached: int

    @property
    def above(self) -> tuple[float, float, float] | None:
        """The mean difference and its interval; None of fewer than two seeds."""
        return interval(list(self.differences.values())) if len(self.differences) > 1 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that compare.py wrote into")
    parser.add_argument("--split", choices=("test", "check"), default="test")
    options = parser.parse_args()
    cells = read(options.out)
    write_csv(options.out / "compare.csv", Cell, cells)
    for (size, network, weights), own in sorted(by_fields(cells, "size", "network", "weights").items()):
        print(f"\n## {network}, {size}, {weights}\n")
        print(table(own, options.split))
        figure = draw(own, f"{network} ({size}), {weights} weights", options.split)
        write_svg(options.out / f"{size}-{network}-{weights}.svg", figure)


def read(folder: Path) -> list[Cell]:
    """All cells below `folder`, in the order of their names."""
    return [_cell(json.loads(path.read_text())) for path in sorted(folder.glob("*/*/*.json"))]


def _cell(row: dict[str, Any]) -> Cell:
    known = {field.name for field in fields(Cell)}
    again = row.get("again", [])
    if again:
        row |= {split: over_trainings(row, split) for split in ("check", "test")}
    return Cell(**{name: value for name, value in row.items() if name in known}, trainings=1 + len(again))


def over_trainings(row: Mapping[str, Any], split: str) -> float:
    """The mean accuracy of all trainings of the network of a cell."""
    return statistics.mean([row[split], *(other[split] for other in row.get("again", []))])


def write_svg(path: Path, figure: Figure) -> None:
    """The same bytes for the same figure: no date, and ids of its content alone."""
    with replacing(path) as partial, matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(partial, format="svg", metadata={"Date": None})


def lines(cells: Iterable[Cell], split: str, reference: str = "uniform") -> list[Line]:
    """The methods of one budget, the best first, beside one of them."""
    by_method = by_fields(cells, "method")
    beside = {cell.seed: getattr(cell, split) for cell in by_method.get((reference,), []) if cell.macs is not None}
    found = []
    for (method,), own in by_method.items():
        scores = {cell.seed: getattr(cell, split) for cell in own if cell.macs is not None}
        if not scores:
            continue
        reached = [cell for cell in own if cell.macs is not None]
        paired = {seed: score - beside[seed] for seed, score in scores.items() if seed in beside}
        found.append(Line(
            method, len(scores), statistics.mean(cell.macs or 0 for cell in reached),
            statistics.mean(cell.params or 0 for cell in reached), statistics.mean(scores.values()),
            statistics.stdev(scores.values()) if len(scores) > 1 else math.nan,
            paired if method != reference else {},
            statistics.median((cell.search_seconds or 0) + (cell.supernet_seconds or 0) for cell in reached),
            len(own) - len(reached),
        ))  # fmt: skip
    return sorted(found, key=lambda line: -line.mean)


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """The mean and its 95 % interval by Student's t."""
    mean, error = statistics.mean(differences), statistics.stdev(differences) / math.sqrt(len(differences))
    margin = float(stats.t.ppf(0.975, len(differences) - 1)) * error
    return mean, mean - margin, mean + margin


def table(cells: Sequence[Cell], split: str) -> str:
    """Markdown: for each budget the methods, the best first; MACs as a share of the dense network's, if it is there."""
    dense = next((cell.macs for cell in cells if cell.method == "dense"), None)
    rows = [
        "| budget | method | seeds | MACs | params | accuracy %, mean ± std | points above Uniform, 95 % | search |"
    ]
    rows.append("|---|---|---|---|---|---|---|---|")
    for (budget,), own in sorted(by_fields(cells, "budget").items(), key=lambda item: -float(item[0][0].rstrip("%"))):
        for line in lines(own, split):
            above = "" if line.above is None else "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * v for v in line.above))
            spread = "" if math.isnan(line.std) else f" ± {100 * line.std:.2f}"
            unreached = f", {line.unreached} not reached" if line.unreached else ""
            macs = f"{line.macs / dense:.1%}" if dense else f"{line.macs:,.0f}"
            rows.append(
                f"| {budget} | {line.method} | {line.seeds}{unreached} | {macs} | {line.params:,.0f} "
                f"| {100 * line.mean:.2f}{spread} | {above} | {line.seconds:.0f} s |"
            )
    return "\n".join(rows)


def draw(cells: Sequence[Cell], title: str, split: str) -> Figure:
    """For each budget a panel: the accuracy of each method, its mean, and every seed; far below, a number alone."""
    budgets = {budget: own for (budget,), own in by_fields(cells, "budget").items() if budget != "100%"}
    order = sorted(budgets, key=lambda budget: -float(budget.rstrip("%")))
    most = max(len(lines(own, split)) for own in budgets.values())
    figure = Figure(figsize=(4.2 * len(order) + 0.6, 0.27 * most + 1.6), layout="constrained")
    for axes, budget in zip(figure.subplots(1, len(order), squeeze=False)[0], order, strict=True):
        ranked = lines(budgets[budget], split)[::-1]
        by_method = by_fields(budgets[budget], "method")
        floor = 100 * ranked[-1].mean - POINTS
        for place, line in enumerate(ranked):
            color, mean = COLORS[family(line.method)], 100 * line.mean
            if mean < floor:
                axes.text(floor, place, f" ◂ {mean:.1f}", color=color, fontsize=8, va="center")
                continue
            seen = [100 * getattr(cell, split) for cell in by_method[line.method,] if cell.macs is not None]
            axes.plot(seen, [place] * len(seen), ".", color=color, alpha=0.45, markersize=5)
            axes.plot(mean, place, "|", color=color, markersize=13, markeredgewidth=2.5)
            if line.method == "uniform":
                axes.axvline(mean, color=color, linewidth=0.8, linestyle=":")
        if 100 * ranked[0].mean < floor:
            axes.set_xlim(left=floor)
        axes.set_ylim(-0.7, len(ranked) - 0.3)
        axes.set_yticks(range(len(ranked)), [line.method for line in ranked], fontsize=8)
        for label, line in zip(axes.get_yticklabels(), ranked, strict=True):
            label.set_color(COLORS[family(line.method)])
        axes.set_title(f"{budget} of the MACs", fontsize=10)
        axes.set_xlabel(f"{split} accuracy, %")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    return figure


def family(method: str) -> str:
    """Whose method it is."""
    return FAMILIES.get(method.partition("-")[0], "CafeNet")


def by_fields(cells: Iterable[Cell], *names: str) -> Mapping[tuple[str, ...], list[Cell]]:
    """The cells that agree in these fields."""
    found: dict[tuple[str, ...], list[Cell]] = defaultdict(list)
    for cell in cells:
        found[tuple(getattr(cell, name) for name in names)].append(cell)
    return found


if __name__ == "__main__":
    main()
