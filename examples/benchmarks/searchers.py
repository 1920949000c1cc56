"""Which searcher finds most, where scores err as a supernet's do? Hundreds of searches, none of which runs a network.

    python examples/benchmarks/searchers.py --network vgg13 --out examples/benchmarks/ranking

By the accuracies and scores that ranking.py has collected. What a width is worth is what ceiling.py's regression of the
widths trained alone says of it; what a supernet says of it is the same regression of that supernet's scores, and noise
as large as what this leaves unexplained. Every searcher searches every supernet of an arm several times within the
band's budget, and what all of them say together, their mean. Reported is what the widths that come first are worth, in
points above Uniform; and with finalists: of the 15 that come first and Uniform, each worth what it is and the noise of
one training, the best. The table goes to OUT/NETWORK-searchers.csv. How far the regression is off is printed too, for
the networks that compare.py's methods have found within the same budget and again.py has trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from agreement import Numbers, tau
from ceiling import predicted_unseen
from ranking import add_known, draw, scores_by_arm, space_of, truth_by_seed
from setting import ARMS, nearest
from summarise import over_trainings
from tables import columns, write_csv
from tqdm.auto import tqdm

from nni_cafenet import Budget, Evolution, RandomSearch, Searcher, SearchSpace, Widths, uniform_widths
from nni_cafenet.cost import Limits
from nni_cafenet.search.predictor import Predict, regression, search_predictions

FINALISTS = 16
POPULATIONS = ((16, 8), (32, 12), (25, 40), (50, 20), (100, 10))  # and generations
SEARCHERS: list[Callable[[int], Searcher]] = [
    *(
        partial(lambda p, g, u, seed: Evolution(population=p, generations=g, from_uniform=u, seed=seed), *size, uniform)
        for uniform in (False, True)
        for size in POPULATIONS
    ),
    *(partial(lambda count, seed: RandomSearch(evaluations=count, seed=seed), n) for n in (128, 384, 1000)),
]


@dataclass(frozen=True)
class Row:
    """Searches by one searcher of the supernets of one arm; points above Uniform, and their standard deviations."""

    arm: str
    searcher: str
    evaluations: int
    searches: int
    points: float
    std: float
    points_of_finalists: float
    std_of_finalists: float


@dataclass(frozen=True, eq=False)
class Simulated:
    """What a supernet would say of any widths, by what it said of some."""

    smooth: Predict
    noise: float

    @classmethod
    def of(cls, space: SearchSpace, widths: Sequence[Widths], scores: Numbers) -> Simulated:
        unexplained = scores - predicted_unseen(space, widths, scores)
        return cls(regression(space, widths, scores), float(unexplained.std()))

    def says(self, some: Sequence[Widths], rng: np.random.Generator) -> Numbers:
        return self.smooth(some) + rng.normal(0, self.noise, len(some))


@dataclass(frozen=True, eq=False)
class Landscape:
    """What widths are worth, and how far one training strays from that."""

    space: SearchSpace
    limits: Limits
    worth: Predict
    noise: float

    def gains(self, supernet: Simulated, searcher: Searcher, rng: np.random.Generator) -> tuple[float, float]:
        """Points above Uniform of what a searcher finds that asks a supernet: of its first, and of finalists."""
        found = search_predictions(lambda some: supernet.says(some, rng), searcher, self.space, self.limits)
        uniform = uniform_widths(self.space, self.limits)
        values = 100 * self.worth([*(one.subnetwork.widths for one in found[: FINALISTS - 1]), uniform])
        trained = values + rng.normal(0, 100 * self.noise, len(values))
        return float(values[0] - values[-1]), float(values[trained.argmax()] - values[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_known(parser)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["locally-free", "fixed"])
    parser.add_argument("--times", type=int, default=4, help="searches of each supernet by each searcher")
    parser.add_argument("--cells", type=Path, help="the folder that compare.py wrote into, to test the regression by")
    options = parser.parse_args()
    if options.times < 2:
        parser.error(f"--times must be at least 2, for a spread, but got {options.times}")
    space = space_of(options)
    widths = draw(space, options.widths, options.band)
    truths = np.array(list(truth_by_seed(options.out, options.network).values()))
    noise = float(truths.std(0, ddof=1).mean()) if len(truths) > 1 else 0.0
    limits = space.limits(Budget(max_macs=options.band))
    landscape = Landscape(space, limits, regression(space, widths, truths.mean(0)), noise)
    if options.cells:
        print(_how_far_off(landscape, options.cells / options.size / options.network))
    by_arm = scores_by_arm(options.out, options.network)
    rows = []
    for arm in options.arms:
        scores = np.array(list(by_arm[arm].values()))
        asked = {arm: [Simulated.of(space, widths, own) for own in scores]}
        if len(scores) > 1:
            asked[f"{arm}, together"] = [Simulated.of(space, widths, scores.mean(0))]
        for (name, supernets), make in tqdm(list(product(asked.items(), SEARCHERS)), desc=arm, unit="searcher"):
            seeds = range(options.times * len(scores) // len(supernets))
            gains = np.array([
                landscape.gains(supernet, make(seed), np.random.default_rng(seed))
                for supernet in supernets
                for seed in seeds
            ])  # fmt: skip
            mean, std = gains.mean(0), gains.std(0, ddof=1)
            searcher = make(0)
            rows.append(Row(name, _name(searcher), searcher.evaluations, len(gains), mean[0], std[0], mean[1], std[1]))
    print(columns(Row, rows, digits=2))
    write_csv(options.out / f"{options.network}-searchers.csv", Row, rows, digits=2)


def _how_far_off(landscape: Landscape, cells: Path) -> str:
    """Of networks within the landscape's limits that were found by other means, and trained more than once."""
    space, limits = landscape.space, landscape.limits
    rows = [json.loads(path.read_text()) for path in sorted(cells.glob("*-scratch-*.json"))]
    own = [row for row in rows if "again" in row and space.limits(Budget(max_macs=row["budget"])) == limits]
    predicted = landscape.worth([nearest(space, row["widths"]) for row in own])
    real = np.array([over_trainings(row, "check") for row in own])
    off = 100 * (predicted - real)
    return (
        f"the regression, of {len(own)} networks that were found: off by {off.mean():+.2f} points, std "
        f"{off.std(ddof=1):.2f}; tau {tau(predicted, real):.2f}"
    )


def _name(searcher: Searcher) -> str:
    if isinstance(searcher, Evolution):
        uniform = ", from Uniform" if searcher.from_uniform else ""
        return f"evolution {searcher.population} x {searcher.generations}{uniform}"
    return "random"


if __name__ == "__main__":
    main()
