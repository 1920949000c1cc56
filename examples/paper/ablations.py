"""The paper's fig. 2 and table 6 on CIFAR-10: r, lambda, more training or search for the fixed pattern, and the bins.

python -m examples.paper.ablations cifar10-mobilenet_v2 --data DIR --out DIR --arm r=0 r=1 r=2 r=3
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.paper.classification import Search, add_job, run
from examples.paper.experiments import EXPERIMENTS
from examples.paper.launch import guarded, say
from nni_cafenet import UniformBins

# r=1 is CafeNet itself, which every other arm is compared with; r=0 is the fixed pattern
ARMS = {
    **{f"r={r}": Search(offset=r) for r in range(4)},
    **{f"lambda={share}": Search(random_share=share) for share in (0.25, 0.5, 0.75, 1.0)},
    **{
        f"fixed,training*{training},search*{searching}": Search(offset=0, training=training, searching=searching)
        for searching, training in itertools.product((1, 2, 3), repeat=2)
        if (training, searching) != (1, 1)
    },
    **{f"bins={count}": Search(bins=UniformBins(count)) for count in (10, 20)},
    **{f"min_bin={beta}": Search(min_bin=beta) for beta in (2, 4)},
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS, help="cifar10-mobilenet_v2 and cifar10-vgg in the paper")
    add_job(parser)
    parser.add_argument("--arm", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.set_defaults(method=["cafenet-e"], macs=["50%"])
    options = parser.parse_args(arguments)
    return guarded(lambda: compare(options))


def compare(options: argparse.Namespace) -> None:
    """Search and train each arm in a folder of its own; a line for each budget of each."""
    lines = []
    for arm in options.arm:
        of_arm = copy.copy(options)
        of_arm.out = str(Path(options.out) / arm)
        for row in run(EXPERIMENTS[options.experiment], of_arm, ARMS[arm]):
            lines.append(f"{arm:28} {row['macs'] / 1e6:8.1f}M {row['accuracy']:8.2%}")
    say(f"{'arm':28} {'MACs':>9} accuracy", *lines, sep="\n")


if __name__ == "__main__":
    sys.exit(main())
