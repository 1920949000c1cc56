"""Does a supernet rank widths as they rank when trained alone? Kendall's tau, by the supernet's way of sharing weights.

    python examples/benchmarks/ranking.py truth --data DIR --seeds 0 1 2 3 --out examples/benchmarks/ranking
    python examples/benchmarks/ranking.py supernets --data DIR --seeds 0 1 2 --arms locally-free fixed --out ...
    python examples/benchmarks/ranking.py report --out examples/benchmarks/ranking

The widths are drawn once, half of them to fill one budget, half to fill budgets between 5 and 60 % of the MACs. The
truth is the mean accuracy on `check` of a width trained alone, over seeds; a supernet's score is what a search would
see, on `valid`, by accuracy and by the negative loss. Intervals come from drawing widths and supernet seeds anew
(bootstrap). A row is appended when it is known: the same command goes on where it was; README.md has the plan.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agreement import Agreement, Numbers, agreement, by_seed, draw_agreement, split_half
from networks import NETWORKS
from setting import ALONE_ARM, ARMS, SIZES, Setting, add_setting, nearest, scored, setting_of
from summarise import write_svg
from tables import append_csv, columns, read_csv, write_csv
from torch import nn
from tqdm.auto import tqdm

from nni_cafenet import Budget, SearchSpace, SubNetwork, Widths, accuracy, cross_entropy
from nni_cafenet.alone import AloneScorer
from nni_cafenet.networks import Network
from nni_cafenet.search.searcher import draw_within
from nni_cafenet.supernet.evaluate import Scorer

SHORT = 0.2  # of the epochs, where widths are trained alone in the place of a supernet
SPREAD = (5, 60)  # percent of the MACs, of the half that is not within the band


@dataclass(frozen=True)
class Alone:
    """A width trained alone."""

    network: str
    width: int
    band: bool
    macs: int
    seed: int
    check: float


@dataclass(frozen=True)
class Shared:
    """A width scored by a supernet."""

    network: str
    width: int
    arm: str
    seed: int
    accuracy: float
    minus_loss: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("truth", "train each width alone"), ("supernets", "train supernets and ask them")):
        own = commands.add_parser(name, help=text)
        add_setting(own)
        add_widths(own)
        if name == "supernets":
            own.add_argument("--arms", nargs="+", choices=[*ARMS, ALONE_ARM], default=["locally-free", "fixed"])
    own = commands.add_parser("report", help="tau of each arm, with intervals")
    own.add_argument("--out", type=Path, required=True)
    own.add_argument("--network", default="vgg13")
    own.add_argument("--score", choices=("accuracy", "minus_loss"), default="accuracy")
    own.add_argument("--against", choices=ARMS, default="fixed", help="the arm over which gains are reported")
    options = parser.parse_args()
    if options.command == "report":
        report(options.out, options.network, options.score, options.against)
    else:
        for seed in options.seeds:
            setting = setting_of(options, seed)
            widths = draw(setting.space, options.widths, options.band)
            (truth if options.command == "truth" else supernets)(setting, widths, options)


def add_widths(parser: argparse.ArgumentParser) -> None:
    """The options that say which widths are compared, and where what is known of them lies."""
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--widths", type=int, default=60)
    parser.add_argument("--band", default="10%", help="the budget that half of the widths fill")


def add_known(parser: argparse.ArgumentParser) -> None:
    """The options of a study that goes by what is known already, and runs no network."""
    parser.add_argument("--network", choices=NETWORKS, default="vgg13")
    parser.add_argument("--size", choices=SIZES, default="small")
    add_widths(parser)


def space_of(options: argparse.Namespace) -> SearchSpace:
    """Of the network that add_known's options name."""
    return Setting(options.network, SIZES[options.size], 0, Path(), Path(), torch.device("cpu")).space


def draw(space: SearchSpace, count: int, band: str) -> list[Widths]:
    """The widths that are compared, the same whenever they are asked for; the first half fills the band."""
    rng = np.random.default_rng(2021)
    found: dict[Widths, None] = {}
    while len(found) < count:
        share = band if len(found) < count // 2 else f"{rng.uniform(*SPREAD):.2f}%"
        found[draw_within(space, space.limits(Budget(max_macs=share)), rng)] = None
    return list(found)


def truth(setting: Setting, widths: Sequence[Widths], options: argparse.Namespace) -> None:
    path = options.out / "alone.csv"
    known = {(row.network, row.width, row.seed) for row in read_csv(path, Alone)}
    for number, each in enumerate(tqdm(widths, desc=f"alone, seed {setting.seed}", unit="width")):
        if (setting.network, number, setting.seed) in known:
            continue
        network = Network(setting.space, SubNetwork.fixed(each))
        model = network.make(setting.factory, seed=setting.seed)
        setting.train(model, f"alone-{number}", epochs=setting.size.epochs)
        band = number < len(widths) // 2
        row = Alone(setting.network, number, band, network.macs, setting.seed, scored(model, setting, "check"))
        append_csv(path, [row])


def supernets(setting: Setting, widths: Sequence[Widths], options: argparse.Namespace) -> None:
    path = options.out / "shared.csv"
    known = {(row.network, row.arm, row.seed) for row in read_csv(path, Shared)}
    for arm in options.arms:
        if (setting.network, arm, setting.seed) in known:
            continue
        scorer: Scorer | AloneScorer = setting.alone(max(1, round(SHORT * setting.size.epochs)))
        if arm != ALONE_ARM:
            scorer, _ = setting.scorer(arm, setting.space.limits(Budget(max_macs=options.band)))
        rows = []
        for number, each in enumerate(tqdm(widths, desc=f"{arm}, seed {setting.seed}", unit="width")):
            near = nearest(scorer.space, setting.space.channels(each))
            rows.append(Shared(setting.network, number, arm, setting.seed, *both_scores(scorer, near)))
        append_csv(path, rows)


def both_scores(scorer: Scorer | AloneScorer, widths: Widths) -> tuple[float, float]:
    """By accuracy and by the negative loss: a supernet's of the best candidate by each, a training's of its network."""
    if isinstance(scorer, Scorer):
        by_loss = replace(scorer, score_fn=minus_loss)
        return scorer.evaluate(widths).score, by_loss.evaluate(widths).score
    losses: list[float] = []

    def accurate(model: nn.Module, batches: Iterable[Any]) -> float:
        losses.append(minus_loss(model, batches))
        return accuracy(model, batches)

    return replace(scorer, score_fn=accurate).score(SubNetwork.fixed(widths)), losses[-1]


def minus_loss(model: nn.Module, batches: Iterable[Any]) -> float:
    """A score of finer steps than accuracy."""
    with torch.no_grad():
        return -float(np.mean([float(cross_entropy(model, batch)) for batch in batches]))


def report(folder: Path, network: str, score: str, against: str) -> None:
    """Print, and write as a table and a plot, how far each arm's scores agree with the truth."""
    truths, scores = np.array(list(truth_by_seed(folder, network).values())), scores_by_arm(folder, network, score)
    rivals, widths = scores.get(against, {}), truths.shape[1]
    rows = []
    for name, chosen in (("all", list(range(widths))), ("band", list(range(widths // 2)))):
        own = truths[:, chosen]
        noise = f"{100 * own.std(0, ddof=1).mean():.2f}" if len(own) > 1 else "unknown"
        print(
            f"{name}: {len(chosen)} widths, {len(own)} seeds each; points of std over seeds {noise}, over widths "
            f"{100 * own.mean(0).std(ddof=1):.2f}; the truth's agreement with itself, split-half tau "
            f"{split_half(own):.2f}"
        )
        for arm, each in tqdm(scores.items(), desc=f"{name}, bootstrap", unit="arm", leave=False):
            both = [] if arm == against else [seed for seed in each if seed in rivals]
            mine, other = (np.array([found[seed][chosen] for seed in both]) for found in (each, rivals))
            every = np.array([found[chosen] for found in each.values()])
            rows.append(agreement(arm, name, every, own, (mine, other) if both else None))
    print(f"gain: over {against}, of supernets of the same seeds")
    print(columns(Agreement, rows, digits=3))
    name = f"{network}-{score}" + ("" if against == "fixed" else f"-against-{against}")
    write_csv(folder / f"{name}.csv", Agreement, rows, digits=3)
    figure = draw_agreement(rows, f"{network}: Kendall's tau of {score} with the truth")
    write_svg(folder / f"{network}-{score}.svg", figure)


def truth_by_seed(folder: Path, network: str) -> dict[int, Numbers]:
    """For each seed, what each of the widths trained alone has; shape (widths,), those of the band first."""
    rows = [row for row in read_csv(folder / "alone.csv", Alone) if row.network == network]
    return by_seed(rows, "check")


def scores_by_arm(folder: Path, network: str, score: str = "accuracy") -> dict[str, dict[int, Numbers]]:
    """For each arm and the seed of each of its supernets, what this gives the same widths; shape (widths,)."""
    arms: dict[str, list[Shared]] = {}
    for row in read_csv(folder / "shared.csv", Shared):
        if row.network == network:
            arms.setdefault(row.arm, []).append(row)
    return {arm: by_seed(rows, score) for arm, rows in arms.items()}


if __name__ == "__main__":
    main()
