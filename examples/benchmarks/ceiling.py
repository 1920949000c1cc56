"""How far above Uniform could any search come here? The truth itself is asked in the place of a supernet.

    python examples/benchmarks/ceiling.py --data DIR --network vgg13 --out examples/benchmarks/ranking

The accuracies of the widths that `ranking.py truth` trained alone are regressed on the logarithms of their channels and
on the squares of these: by more trainings than a search could afford. Evolution finds the widths within a budget, the
band's unless told, for which that predicts most; these and Uniform are then trained several times. What they gain
over Uniform, with Student's interval of 95 %, is about what there is to gain: a supernet that ranks widths worse than
that regression should not be expected to find more. Others may be asked in the place of the truth:

    --cells CELLS    all networks that compare.py's alone-predictor has trained, of all seeds: some hundreds
    --by ARM         the mean scores of that arm's supernets, from `ranking.py supernets`: what several find together
    --by-seeds SEED  those supernets, or the truth, of these seeds alone

All is in OUT/NETWORK-ceiling.json (-ceiling-5-fixed-0-1-2.json for --budget 5% --by fixed --by-seeds 0 1 2, -cells.json
for --cells); the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from agreement import Numbers, tau
from ranking import add_widths, draw, scores_by_arm, truth_by_seed
from scipy.stats import hmean
from setting import ALONE_ARM, ARMS, add_setting, alone_scores, setting_of, trained_again, write_json
from summarise import interval

from nni_cafenet import Budget, Evolution, SearchSpace, SubNetwork, Widths
from nni_cafenet.networks import Network, uniform_network
from nni_cafenet.search.predictor import regression, search_predictions, shares

APART = 2000  # seeds of the trainings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting(parser)
    add_widths(parser)
    parser.add_argument("--times", type=int, default=4, help="trainings of the found network and of Uniform")
    parser.add_argument("--budget", help="within which widths are looked for; the band's unless given")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--cells", type=Path, help="the folder that compare.py wrote into")
    instead.add_argument(
        "--by", choices=[*ARMS, ALONE_ARM], help="the arm whose supernets are asked instead of the truth"
    )
    parser.add_argument("--by-seeds", type=int, nargs="+", help="of these seeds' scores or truth; of all unless given")
    options = parser.parse_args()
    budget = options.budget or options.band
    if options.times < 2:
        parser.error(f"--times must be at least 2, for an interval, but got {options.times}")
    if options.cells and options.by_seeds:
        parser.error("--by-seeds goes with the ranking's truth or supernets: --cells asks all seeds")
    setting = setting_of(options, options.seeds[0])
    space, limits = setting.space, setting.space.limits(Budget(max_macs=budget))
    asked = of_cells(options, space) if options.cells else of_ranking(options, space)
    evolution = Evolution(population=64, generations=60, from_uniform=True)
    says = regression(space, asked.widths, asked.scores)
    best = search_predictions(says, evolution, space, limits)[0].subnetwork.widths
    networks = {
        "found": Network(space, SubNetwork.fixed(best)),
        "uniform": uniform_network(space, limits),
    }
    report: dict[str, Any] = {"network": options.network, "budget": budget, "by": asked.who, **asked.facts}
    for name, network in networks.items():
        bins = "-".join(map(str, network.subnetwork.widths.bins_kept))
        trainings = [
            trained_again(setting, network, f"ceiling-{number}-{bins}", seed=setting.seed + APART + number)
            for number in range(options.times)
        ]
        report[name] = {
            "channels": network.space.channels(network.subnetwork.widths), "macs": network.macs, "trainings": trainings
        }  # fmt: skip
    for split in ("check", "test"):  # paired: the same seed is the same order of images
        found, uniform = ([one[split] for one in report[name]["trainings"]] for name in ("found", "uniform"))
        mean, low, high = interval([100 * (one - other) for one, other in zip(found, uniform, strict=True)])
        report[f"points_above_uniform_{split}"] = {"mean": mean, "low": low, "high": high}
    print(json.dumps(report, indent=1))
    parts = [options.network, "ceiling", "" if budget == options.band else budget.rstrip("%"), asked.name]
    write_json(options.out / f"{'-'.join(filter(None, parts))}.json", report)


@dataclass(frozen=True)
class Asked:
    """What is known of many widths, to be regressed.

    Args:
        who: says so.
        name: the same in a file's name; empty for the truth.
        scores: shape (widths,).
        facts: for the report.
    """

    who: str
    name: str
    widths: list[Widths]
    scores: Numbers
    facts: dict[str, Any]


def of_ranking(options: argparse.Namespace, space: SearchSpace) -> Asked:
    """The truth of ranking.py, or an arm's scores, both of the same widths."""
    widths = draw(space, options.widths, options.band)
    scores = truth_by_seed(options.out, options.network)
    truth, band = np.mean(list(scores.values()), axis=0), len(widths) // 2
    assert len(truth) == len(widths), f"{len(truth)} widths were trained alone: first run ranking.py truth"
    if options.by:
        scores = scores_by_arm(options.out, options.network)[options.by]
    asked = np.array([scores[seed] for seed in options.by_seeds or scores])
    unseen = predicted_unseen(space, widths, asked.mean(0))
    even = hmean(shares(space, widths), axis=1)  # what a supernet has to be better than
    facts = {
        "regressed": list(asked.shape),
        "tau_of_the_regression": {"all": tau(unseen, truth), "band": tau(unseen[:band], truth[:band])},
        "tau_of_evenness": {"all": tau(even, truth), "band": tau(even[:band], truth[:band])},
        "mean_of_the_band": float(truth[:band].mean()),
    }
    by = options.by or ("truth" if options.by_seeds else "")
    name = "-".join(filter(None, [by, *map(str, options.by_seeds or [])]))
    return Asked(options.by or "the truth", name, widths, asked.mean(0), facts)


def of_cells(options: argparse.Namespace, space: SearchSpace) -> Asked:
    """All that alone-predictor has trained; how well it is regressed, each seed's networks say to the others'."""
    folder = options.cells / options.size / options.network
    by_seed = {seed: known for seed, known in alone_scores(folder).items() if len(known) > 1}
    assert len(by_seed) > 1, f"{folder} holds {len(by_seed)} seeds of alone-predictor: first run compare.py with it"
    taus = {}
    for seed, own in by_seed.items():
        says = regression(space, *_pooled(known for other, known in by_seed.items() if other != seed))
        taus[f"seed {seed}"] = tau(says(list(own)), np.array(list(own.values())))
    widths, scores = _pooled(by_seed.values())
    facts = {"regressed": [len(by_seed), len(widths)], "tau_of_the_regression": taus}
    return Asked("networks trained alone", "cells", widths, scores, facts)


def _pooled(known: Iterable[dict[Widths, float]]) -> tuple[list[Widths], Numbers]:
    """What each of several seeds' networks has, one after another; widths of two seeds stand there twice."""
    pairs = [pair for own in known for pair in own.items()]
    return [widths for widths, _ in pairs], np.array([score for _, score in pairs])


def predicted_unseen(space: SearchSpace, widths: Sequence[Widths], values: Numbers) -> Numbers:
    """What the regression says of each of them if it has seen the others alone; shape (widths,)."""
    found = []
    for number, each in enumerate(widths):
        others = [*widths[:number], *widths[number + 1 :]]
        found.append(regression(space, others, np.delete(values, number))([each])[0])
    return np.array(found)


if __name__ == "__main__":
    main()
