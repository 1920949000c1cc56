"""How many networks must be trained alone before what their regression likes is better than Uniform?

    python examples/benchmarks/trainings.py --network vgg13 --cells examples/benchmarks/compare \
        --out examples/benchmarks/ranking

compare.py's alone-predictor has trained random networks of many sizes, and keeps their scores. Of each seed the first
few are regressed, as the search does. How that ranks the widths of ranking.py, which it has not seen, is Kendall's tau
with their accuracies when trained alone, over all of them and within the band. What it likes best within each budget is
worth what ceiling.py's regression of these accuracies says of it, in points above Uniform, and in the mean of all
budgets. Means over seeds, with Student's intervals of 95 %, go to OUT/NETWORK-trainings.csv. Nothing is trained.

With --beside ARM the trainings need not say all: what that arm's supernet of the same seed says of the ranking's widths
is regressed first, and they correct that, its level, its slope and, by their own regression, the rest. The table is
OUT/NETWORK-trainings-beside-ARM.csv.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from agreement import Numbers, tau
from compare import ALONE
from ranking import add_known, draw, scores_by_arm, space_of, truth_by_seed
from setting import ARMS, alone_scores
from summarise import interval
from tables import write_csv
from tqdm.auto import tqdm

from nni_cafenet import Budget, Evolution, PredictorSearch, SearchSpace, Widths, uniform_widths
from nni_cafenet.search.predictor import Predict, regression, search_predictions

COUNTS = (8, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Row:
    """What so many trainings lead to, over so many seeds: "tau", "tau of the band", or points above Uniform.

    Args:
        measure: these points are named by their budget, or "mean".
    """

    trainings: int
    measure: str
    seeds: int
    value: float
    low: float
    high: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_known(parser)
    parser.add_argument("--cells", type=Path, required=True, help="the folder that compare.py wrote into")
    parser.add_argument("--budgets", nargs="+", default=["50%", "25%", "10%", "5%"], help="of the MACs")
    parser.add_argument("--beside", choices=ARMS, help="the arm whose supernets are corrected by the trainings")
    options = parser.parse_args()
    space = space_of(options)
    widths, band = draw(space, options.widths, options.band), options.widths // 2
    truth = np.mean(list(truth_by_seed(options.out, options.network).values()), axis=0)
    worth = regression(space, widths, truth)
    supernets = scores_by_arm(options.out, options.network)[options.beside] if options.beside else {}
    trained = []
    for seed, known in alone_scores(options.cells / options.size / options.network).items():
        searcher = PredictorSearch(evaluations=ALONE, seed=seed)
        searcher.begin(space, space.limits(Budget(max_macs=options.budgets[0])))
        drawn = [each for each in searcher.ask(ALONE) if each in known]
        # Uniform of that budget may not have been asked for
        if len(drawn) >= COUNTS[-1] - 1 and (seed in supernets or not options.beside):
            prior = regression(space, widths, supernets[seed]) if options.beside else None
            trained.append(({each: known[each] for each in drawn}, prior))
    if len(trained) < 2:
        parser.error(f"{options.cells} holds {len(trained)} whole searches by alone-predictor: two make an interval")
    rows = []
    for count in tqdm(COUNTS, unit="count"):
        says = [_regressed(space, scores, count, prior) for scores, prior in trained]
        ranked = [one(widths) for one in says]
        gains = np.array([_gains(space, one, worth, options.budgets) for one in says])
        measured = {
            "tau": [tau(one, truth) for one in ranked],
            "tau of the band": [tau(one[:band], truth[:band]) for one in ranked],
            **dict(zip(options.budgets, gains.T, strict=True)),
            "mean": gains.mean(1),
        }
        rows += [Row(count, measure, len(says), *interval(list(values))) for measure, values in measured.items()]
    for row in rows:
        print(f"{row.trainings:4} trainings, {row.measure:16}{row.value:+.2f} ({row.low:+.2f} to {row.high:+.2f})")
    name = f"{options.network}-trainings" + (f"-beside-{options.beside}" if options.beside else "")
    write_csv(options.out / f"{name}.csv", Row, rows, digits=3)


def _regressed(space: SearchSpace, scores: dict[Widths, float], count: int, prior: Predict | None) -> Predict:
    """As the search regresses the first `count` scores, or what `prior` leaves of them unexplained."""
    seen = list(scores)[:count]
    known, caution = np.array([scores[widths] for widths in seen]), PredictorSearch().caution
    if prior is None:
        return regression(space, seen, known, caution=caution)
    slope, level = np.polyfit(prior(seen), known, 1)
    rest = regression(space, seen, known - level - slope * prior(seen), caution=caution)
    return lambda some: level + slope * prior(some) + rest(some)


def _gains(space: SearchSpace, says: Predict, worth: Predict, budgets: Sequence[str]) -> Numbers:
    """Points above Uniform of what a regression likes best within each budget; shape (budgets,)."""
    gains = []
    for budget in budgets:
        limits = space.limits(Budget(max_macs=budget))
        explorer = Evolution(population=64, generations=20, from_uniform=True)
        best = search_predictions(says, explorer, space, limits)[0].subnetwork.widths
        found, uniform = worth([best, uniform_widths(space, limits)])
        gains.append(100 * (found - uniform))
    return np.array(gains)


if __name__ == "__main__":
    main()
