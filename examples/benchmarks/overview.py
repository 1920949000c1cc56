"""The comparison's tables of READMEs, written anew from its cells, between the comments that name them.

    python examples/benchmarks/overview.py --out examples/benchmarks/compare README.md examples/benchmarks/README.md

Of each method and budget: the mean test accuracy in percent, its standard deviation and the number of seeds, and, to a
method that the table names, the paired difference with its interval of 95 %. A seed's figure is the mean of all
trainings of the network that was found; * marks one training each, ~ some seeds with one. The highest mean is bold.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from summarise import Cell, lines, read

from nni_cafenet.files import replacing

NETWORKS = {"vgg13": "VGG-13", "resnet18": "ResNet-18", "mobilenet_v2": "MobileNetV2"}
FROM_SCRATCH = {
    "cafenet-paper": "CafeNet-E, as in the paper",
    "cafenet-e": "CafeNet-E, from Uniform too",
    "cafenet-halving": "the same, then finalists",
    "cafenet-predictor": "CafeNet, a predictor in the place of evolution",
    "cafenet-predictor-halving": "the same, then finalists",
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
    "uniform-sorted": "Uniform of the dense network's best channels",
    "tp-hessian-local": "torch-pruning, Hessian local",
    "tp-magnitude-local": "torch-pruning, magnitude (group L2) local",
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
    "comparison-vgg13": Overview(
        "scratch", FROM_SCRATCH, (("vgg13", "25%"), ("vgg13", "10%"), ("vgg13", "5%")), "uniform"
    ),
    "comparison-others": Overview(
        "scratch", FROM_SCRATCH,
        (("resnet18", "10%"), ("resnet18", "5%"), ("mobilenet_v2", "10%"), ("mobilenet_v2", "5%")), "uniform",
    ),
    "comparison-inherited": Overview(
        "inherited", INHERITED, (("vgg13", "10%"), ("vgg13", "5%"), ("resnet18", "10%"), ("resnet18", "5%")),
        "fixed-trained-distill-halving",
    ),
    "comparison-medium": Overview("scratch", FROM_SCRATCH, MEDIUM, "uniform", "medium"),
    "comparison-medium-inherited": Overview(
        "inherited", INHERITED, MEDIUM, "fixed-trained-distill-halving", "medium"
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder that compare.py wrote into")
    parser.add_argument("readmes", type=Path, nargs="+")
    options = parser.parse_args()
    cells = read(options.out)
    for readme in options.readmes:
        text = written(readme.read_text(), cells)
        with replacing(readme) as partial:
            partial.write_text(text)


def written(text: str, cells: Iterable[Cell]) -> str:
    """`text` with what stands between `<!-- NAME -->` and `<!-- end -->` replaced by the table of that name."""
    cells = list(cells)

    def anew(match: re.Match[str]) -> str:
        indent, name = match["indent"], match["name"]
        rows = [f"<!-- {name} -->", "", *rows_of(OVERVIEWS[name], cells), "", "<!-- end -->"]
        return "\n".join(indent + row if row else "" for row in rows)

    return re.sub(r"(?P<indent> *)<!-- (?P<name>comparison-[\w-]+) -->.*?<!-- end -->", anew, text, flags=re.DOTALL)


def rows_of(overview: Overview, cells: Iterable[Cell]) -> list[str]:
    """The table's lines, in Markdown; a method that has no cell in it has no row."""
    own = [cell for cell in cells if (cell.size, cell.weights) == (overview.size, overview.weights)]
    columns = [_column(overview, own, network, budget) for network, budget in overview.columns]
    head = ["method", *(f"{NETWORKS[network]}, {budget.replace('%', ' %')}" for network, budget in overview.columns)]
    rows = [head, ["---"] * len(head)]
    for method, name in overview.methods.items():
        if any(method in column for column in columns):
            rows.append([name, *(column.get(method, "") for column in columns)])
    return [f"| {' | '.join(row)} |" for row in rows]


def _column(overview: Overview, cells: Iterable[Cell], network: str, budget: str) -> dict[str, str]:
    """What stands of each method in the column of a network and a budget; the dense network is in all of them."""
    own = [cell for cell in cells if cell.network == network and cell.budget in (budget, "100%")]
    ranked = [line for line in lines(own, "test", overview.reference) if line.method in overview.methods]
    best = next((line.method for line in ranked if line.method != "dense"), None)
    found = {}
    for line in ranked:
        trainings = [cell.trainings for cell in own if cell.method == line.method and cell.macs is not None]
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
