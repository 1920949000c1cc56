"""One method of the comparison against another, over all networks and budgets where both have run.

    python examples/benchmarks/versus.py cafenet-predictor cafenet-e --out examples/benchmarks/compare

Points of test accuracy of the first above the second, paired by seed, with Student's intervals of 95 %. Budgets of one
network and seed share a dense network, and searches a supernet, so that for the last line they are averaged first: it
counts each network and seed once.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from summarise import Cell, by_fields, interval, lines, read

Differences = dict[tuple[str, str], dict[int, float]]  # by network and budget, by seed; points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs=2, metavar="METHOD")
    parser.add_argument(
        "--or", dest="instead", metavar="METHOD", help="stands for the first one where that has not run"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder that compare.py wrote into")
    parser.add_argument("--size", default="small")
    parser.add_argument("--weights", choices=("scratch", "inherited"), default="scratch")
    parser.add_argument("--budgets", nargs="+", help="of the MACs (default: all)")
    options = parser.parse_args()
    cells = [
        cell for cell in read(options.out)
        if (cell.size, cell.weights) == (options.size, options.weights)
        and (options.budgets is None or cell.budget in options.budgets)
    ]  # fmt: skip
    one, other = options.methods
    found = differences(cells, one, other)
    if options.instead:
        found = {**differences(cells, options.instead, other), **found}
    if not found:
        parser.error(f"{options.out} holds no seed of both {' and '.join(options.methods)}")
    for (network, budget), by_seed in sorted(found.items(), key=lambda one: (one[0][0], -float(one[0][1].rstrip("%")))):
        print(f"{network:14}{budget:>4}  {said(list(by_seed.values()))}")
    print(f"each network and seed  {said(averaged(found))}")


def differences(cells: Iterable[Cell], one: str, other: str) -> Differences:
    """What `one` has more than `other`."""
    found = {}
    for (network, budget), own in by_fields(cells, "network", "budget").items():
        for line in lines(own, "test", other):
            if line.method == one and line.differences:
                found[network, budget] = {seed: 100 * more for seed, more in line.differences.items()}
    return found


def averaged(found: Differences) -> list[float]:
    """Over the budgets of each network and seed."""
    by_network_and_seed: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (network, _), by_seed in found.items():
        for seed, points in by_seed.items():
            by_network_and_seed[network, seed].append(points)
    return [statistics.mean(points) for points in by_network_and_seed.values()]


def said(points: Sequence[float]) -> str:
    """The mean, its interval and how many they are."""
    if len(points) < 2:
        return f"{points[0]:+.2f} (1)"
    return "{:+.2f} ({:+.2f} to {:+.2f})".format(*interval(points)) + f" ({len(points)})"


if __name__ == "__main__":
    main()
