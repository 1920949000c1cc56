"""The comparison's tables of READMEs, written anew from its cells, between the comments that name them, and plots.

    python examples/benchmarks/overview.py --out examples/benchmarks/compare README.md examples/benchmarks/README.md

Of each method and budget: the mean test accuracy in percent, its standard deviation and the number of seeds, and, to a
method that the table names, the paired difference with its interval of 95 %. A seed's figure is the mean of all
trainings of the network that was found; * marks one training each, ~ some seeds with one. The highest mean is bold.
The plots, OUT/NAME.svg, show the differences. One more table says how long searches took.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from summarise import COLORS, Cell, Line, family, lines, read, write_svg

from nni_cafenet.files import replacing

SHOWN = (-4.5, 2.8)  # points that a panel shows
NETWORKS = {"vgg13": "VGG-13", "resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}
FROM_SCRATCH = {
    "cafenet-predictor": "CafeNet with a predictor, the default",
    "cafenet-trained-distill-predictor": "the default, supernet from the trained network, distillation",
    "cafenet-fine-predictor": "the default, finer bins",
    "cafenet-fine-trained-distill-predictor": "the default, finer bins, supernet from the trained, distillation",
    "cafenet-fine-predictor-halving": "the default, finer bins, then finalists",
    "cafenet-predictor-halving": "the default, then finalists",
    "cafenet-paper": "CafeNet-E, as in the paper",
    "cafenet-e": "CafeNet-E, from Uniform too",
    "cafenet-fine-e": "CafeNet-E, from Uniform too, finer bins",
    "cafenet-halving": "CafeNet-E from Uniform too, then finalists",
    "cafenet-trained-distill-e": "CafeNet-E, supernet from the trained network, distillation",
    "fixed-e": "the fixed pattern, evolution from Uniform",
    "fixed-predictor": "the fixed pattern, a predictor",
    "greedy": "Greedy (AutoSlim)",
    "alone-predictor": "no supernet: 72 networks trained one by one, a predictor",
    "uniform": "Uniform",
    "random": "Random, the best of 10",
    "modelopt-fastnas": "modelopt FastNAS",
    "tp-random-global": "torch-pruning, random global",
    "tp-hessian-global": "torch-pruning, Hessian global",
    "nni-slim": "NNI, Slim",
    "dense": "dense, all of the MACs",
}
INHERITED = {
    "fixed-trained-distill-halving": "the fixed pattern's supernet from the trained network, distillation, finalists",
    "fixed-trained-distill-halving-taught": "the same, taught by the dense network",
    "uniform-sorted": "Uniform of the dense network's best channels",
    "uniform-sorted-taught": "Uniform of its best channels, taught by it",
    "tp-hessian-local": "torch-pruning, Hessian local",
    "tp-hessian-local-taught": "torch-pruning, Hessian local, taught by it",
    "tp-magnitude-local": "torch-pruning, magnitude (group L2) local",
    "tp-magnitude-local-taught": "torch-pruning, magnitude local, taught by it",
    "tp-taylor-local": "torch-pruning, Taylor local",
    "uniform": "Uniform of its first channels",
    "dense": "dense, trained as much longer",
}


@dataclass(frozen=True)
class Overview:
    """A table: of each method a row, of each network and budget a column.

    Args:
        reference: the method to which the others' differences are.
    """

    weights: str
    methods: Mapping[str, str]
    columns: tuple[tuple[str, str], ...]
    reference: str
    size: str = "small"


MEDIUM = (("vgg13", "10%"), ("vgg13", "5%"))
OVERVIEWS = {
    **{
        f"comparison-{network}": Overview(
            "scratch", FROM_SCRATCH, tuple((network, budget) for budget in ("50%", "25%", "10%", "5%")), "uniform"
        )
        for network in NETWORKS
    },
    "comparison-inherited": Overview(
        "inherited", INHERITED,
        (
            ("vgg13", "50%"), ("vgg13", "25%"), ("vgg13", "10%"), ("vgg13", "5%"),
            ("resnet18", "10%"), ("resnet18", "5%"), ("mobilenet_v2", "10%"),
        ), "fixed-trained-distill-halving",
    ),
    "comparison-medium": Overview("scratch", FROM_SCRATCH, MEDIUM, "uniform", "medium"),
    "comparison-medium-inherited": Overview(
        "inherited", INHERITED, MEDIUM, "fixed-trained-distill-halving", "medium"
    ),
}  # fmt: skip
MINUTES = "comparison-minutes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that compare.py wrote into")
    parser.add_argument("readmes", type=Path, nargs="+")
    options = parser.parse_args()
    cells = read(options.out)
    for name, overview in OVERVIEWS.items():
        write_svg(options.out / f"{name}.svg", draw(overview, cells))
    for readme in options.readmes:
        text = written(readme.read_text(), cells)
        with replacing(readme) as partial:
            partial.write_text(text)


def written(text: str, cells: Sequence[Cell]) -> str:
    """`text` with what stands between `<!-- NAME -->` and `<!-- end -->` replaced by the table of that name."""

    def anew(match: re.Match[str]) -> str:
        name = match["name"]
        rows = minutes_of(cells) if name == MINUTES else rows_of(OVERVIEWS[name], cells)
        return "\n".join([match["open"], "", *rows, "", "<!-- end -->"])

    return re.sub(r"(?P<open><!-- (?P<name>comparison-[\w-]+) -->).*?<!-- end -->", anew, text, flags=re.DOTALL)


def rows_of(overview: Overview, cells: Sequence[Cell]) -> list[str]:
    """The table's lines, in Markdown; a method that has no cell in it has no row."""
    columns = {title: _texts(overview, own) for title, own in _columns(overview, cells)}
    rows = [["method", *columns], ["---"] * (1 + len(columns))]
    for method, name in overview.methods.items():
        if any(method in column for column in columns.values()):
            rows.append([name, *(column.get(method, "") for column in columns.values())])
    return _markdown(rows)


def minutes_of(cells: Sequence[Cell], size: str = "small") -> list[str]:
    """A table of what a search from scratch takes, by network: the median over budgets and seeds, in minutes.

    A supernet's training comes first, where there is one; the dense network's, which pruners start from, is its row.
    """
    own = [cell for cell in cells if (cell.size, cell.weights) == (size, "scratch") and cell.macs is not None]
    rows = [["method", *NETWORKS.values()], ["---"] * (1 + len(NETWORKS))]
    for method, name in FROM_SCRATCH.items():
        texts = [_minutes([cell for cell in own if (cell.method, cell.network) == (method, it)]) for it in NETWORKS]
        if any(texts):
            rows.append([name, *texts])
    return _markdown(rows)


def _minutes(cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    kinds = ("training_seconds",) if cells[0].method == "dense" else ("supernet_seconds", "search_seconds")
    medians = [statistics.median(getattr(cell, kind) or 0 for cell in cells) / 60 for kind in kinds]
    return " + ".join(f"{minutes:.1f}" for minutes in medians if minutes or len(medians) == 1) or "0.0"


def _markdown(rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in rows]


def draw(overview: Overview, cells: Sequence[Cell]) -> Figure:
    """For each network and budget a panel: every method's points above the reference, and their intervals of 95 %.

    A ring is a single seed. What is beyond the panel stands at its left end, as a number.
    """
    panels = {
        title: {line.method: line for line in _lines(overview, own) if line.method != "dense"}
        for title, own in _columns(overview, cells)
    }
    methods = [name for name in overview.methods if any(name in lines for lines in panels.values())][::-1]
    figure = Figure(figsize=(3.6 + 1.9 * len(panels), 0.27 * len(methods) + 1.1), layout="constrained")
    (row,) = figure.subplots(1, len(panels), sharey=True, squeeze=False)
    for axes, (title, found) in zip(row, panels.items(), strict=True):
        axes.axvline(0, color=COLORS["baseline"], linewidth=0.8, linestyle=":")
        for height, method in enumerate(methods):
            if method in found:
                _draw_line(axes, found[method], height)
        axes.set(xlim=SHOWN, ylim=(-0.7, len(methods) - 0.3))
        axes.set_title(title, fontsize=9)
        axes.tick_params(left=False, labelsize=8)
        axes.spines[["top", "right", "left"]].set_visible(False)
    axes = figure.axes[0]
    axes.set_yticks(range(len(methods)), [overview.methods[method] for method in methods])
    for label, method in zip(axes.get_yticklabels(), methods, strict=True):
        label.set_color(COLORS[family(method)])
    figure.supxlabel(f"test accuracy, points above: {overview.methods[overview.reference]}", fontsize=9)
    return figure


def _draw_line(axes: Axes, line: Line, height: int) -> None:
    color, mean = COLORS[family(line.method)], 100 * statistics.mean(line.differences.values() or (0,))
    if mean < SHOWN[0]:
        axes.text(SHOWN[0], height, f" ◂ {mean:+.1f}", color=color, fontsize=8, va="center")
        return
    axes.plot(mean, height, "o", color=color, markersize=5, markerfacecolor="none" if line.seeds == 1 else color)
    if line.above is not None:
        axes.hlines(height, *(100 * value for value in line.above[1:]), color=color, linewidth=1.4, alpha=0.6)


def _columns(overview: Overview, cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Of each network and budget that has run the title and the cells; the dense network is in all of them."""
    own = [cell for cell in cells if (cell.size, cell.weights) == (overview.size, overview.weights)]
    for network, budget in overview.columns:
        found = [cell for cell in own if cell.network == network and cell.budget in (budget, "100%")]
        if any(cell.budget == budget for cell in found):
            yield f"{NETWORKS[network]}, {budget.replace('%', ' %')}", found


def _lines(overview: Overview, cells: Iterable[Cell]) -> list[Line]:
    """The methods that the overview names, the best first."""
    return [line for line in lines(cells, "test", overview.reference) if line.method in overview.methods]


def _texts(overview: Overview, cells: Sequence[Cell]) -> dict[str, str]:
    """What stands of each method in a column of the table."""
    ranked = _lines(overview, cells)
    best = next((line.method for line in ranked if line.method != "dense"), None)
    found = {}
    for line in ranked:
        trainings = [cell.trainings for cell in cells if cell.method == line.method and cell.macs is not None]
        mark = "" if min(trainings) > 1 else " *" if max(trainings) == 1 else " ~"
        mean = f"{100 * line.mean:.1f}" + ("" if math.isnan(line.std) else f" ± {100 * line.std:.1f}")
        text = f"**{mean}**" if line.method == best else mean
        text += f" ({line.seeds}{mark})"
        if line.above is not None and line.method != "dense":
            text += "; {:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in line.above))
        found[line.method] = text
    return found


if __name__ == "__main__":
    main()
