"""What is a wider layer worth, and what does a supernet think of it?

    python examples/benchmarks/effects.py --network vgg13 --out examples/benchmarks/ranking

By the accuracies and scores that ranking.py has collected. From Uniform of a budget one layer after the other is made
twice and half as wide; what that is worth, in points, says the regression of the widths trained alone, and those of
each supernet's scores. Means over seeds, with Student's intervals of 95 %, go to OUT/NETWORK-effects.csv, for each
layer and for all of them ("mean"); a plot beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from agreement import Numbers
from matplotlib.figure import Figure
from ranking import add_known, draw, scores_by_arm, space_of, truth_by_seed
from setting import ALONE_ARM, ARMS
from summarise import interval, write_svg
from tables import write_csv

from nni_cafenet import Budget, SearchSpace, Widths, uniform_widths
from nni_cafenet.search.predictor import regression

FACTORS = {"half": 0.5, "twice": 2.0}
TRUTH = "truth"
LABELS = {TRUTH: "trained alone, to the end", ALONE_ARM: "trained alone, shortly"}


@dataclass(frozen=True)
class Effect:
    """What one layer of another width is worth, in points, by one way of scoring; over so many seeds."""

    by: str
    seeds: int
    group: str
    factor: str
    points: float
    low: float
    high: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_known(parser)
    parser.add_argument("--at", default="25%", help="the budget whose Uniform is changed")
    arms = [ALONE_ARM, "fixed", "locally-free", "locally-free-trained"]
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, ALONE_ARM], default=arms)
    options = parser.parse_args()
    space = space_of(options)
    widths = draw(space, options.widths, options.band)
    by_arm = scores_by_arm(options.out, options.network)
    said = {TRUTH: truth_by_seed(options.out, options.network)}
    said |= {arm: by_arm[arm] for arm in options.arms if arm in by_arm}
    uniform = uniform_widths(space, space.limits(Budget(max_macs=options.at)))
    rows = [
        row
        for by, scores in said.items()
        if len(scores) > 1
        for row in _effects(by, np.array([_points(space, widths, own, uniform) for own in scores.values()]), space)
    ]
    for row in rows:
        if row.group == "mean":
            print(f"{row.by:24}{row.seeds:3}  {row.factor:8}{row.points:6.2f} ({row.low:.2f} to {row.high:.2f})")
    name = options.out / f"{options.network}-effects"
    write_csv(name.with_suffix(".csv"), Effect, rows, digits=3)
    figure = draw_effects(rows, f"{options.network}: one layer of Uniform at {options.at} changed")
    write_svg(name.with_suffix(".svg"), figure)


def _points(space: SearchSpace, widths: Sequence[Widths], scores: Numbers, start: Widths) -> Numbers:
    """What each group of another width is worth by a regression of `scores`; shape (factors, groups)."""
    changed = [
        Widths(
            (*start.bins_kept[:group], min(max(1, round(factor * width)), bins.count), *start.bins_kept[group + 1 :])
        )
        for factor in FACTORS.values()
        for group, (width, bins) in enumerate(zip(start.bins_kept, space.bins, strict=True))
    ]
    before, *after = 100 * regression(space, widths, list(scores))([start, *changed])
    return (np.array(after) - before).reshape(len(FACTORS), -1)


def _effects(by: str, points: Numbers, space: SearchSpace) -> list[Effect]:
    """Of points of shape (seeds, factors, groups)."""
    names = [group.name for group in space.groups]
    columns = {**dict(zip(names, np.moveaxis(points, 2, 0), strict=True)), "mean": points.mean(2)}
    return [
        Effect(by, len(points), name, factor, *interval(list(of_group[:, place])))
        for place, factor in enumerate(FACTORS)
        for name, of_group in columns.items()
    ]


def draw_effects(rows: Sequence[Effect], title: str) -> Figure:
    """A panel for each factor: by layer, a line for each way of scoring, its interval shaded."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    colors = ["#000000", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#E69F00", "#56B4E9", "#999999"]
    for axes, factor in zip(figure.subplots(1, 2), FACTORS, strict=True):
        for by, color in zip(dict.fromkeys(row.by for row in rows), colors, strict=False):
            own = [row for row in rows if (row.by, row.factor) == (by, factor) and row.group != "mean"]
            places = range(len(own))
            axes.fill_between(
                places, [row.low for row in own], [row.high for row in own], color=color, alpha=0.12, lw=0
            )
            axes.plot(
                places,
                [row.points for row in own],
                "o-",
                color=color,
                ms=3,
                label=f"{LABELS.get(by, by)} ({own[0].seeds})",
            )
            axes.set_xticks(places, [row.group for row in own], rotation=35, ha="right", fontsize=8)
        shown = [row.points for row in rows if row.factor == factor and row.group != "mean"]
        axes.set_ylim(min(shown) - 0.3, max(shown) + 0.3)  # intervals of two seeds would fill any
        axes.axhline(0, color="#888888", lw=0.8)
        axes.set_title(f"{factor} as wide", fontsize=10)
        axes.set_ylabel("points")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


if __name__ == "__main__":
    main()
