"""How far do two rankings agree? Kendall's tau with bootstrap intervals, as ranking.py reports it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from scipy.stats import kendalltau

Numbers = npt.NDArray[np.float64]
DRAWS = 2000  # of a bootstrap


@dataclass(frozen=True)
class Agreement:
    """The mean tau of an arm's supernets with the truth, and what it is above another arm's; 95 % intervals.

    Args:
        together: tau of the mean score of all of them: what an ensemble would rank by.
    """

    arm: str
    widths: str
    supernets: int
    tau: float
    low: float
    high: float
    together: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None


def agreement(
    arm: str, widths: str, scores: Numbers, truths: Numbers, paired: tuple[Numbers, Numbers] | None = None
) -> Agreement:
    """Of scores (supernets, widths) with truths (seeds, widths).

    Args:
        paired: scores of this arm and of another one, by supernets of the same seeds; for the gain.
    """
    mean = truths.mean(0)
    each = float(np.mean([tau(own, mean) for own in scores]))
    together = tau(scores.mean(0), mean) if len(scores) > 1 else None
    found = Agreement(arm, widths, len(scores), each, *bootstrap(scores, truths), together)
    if paired is None:
        return found
    gain = np.mean([tau(mine, mean) - tau(other, mean) for mine, other in zip(*paired, strict=True)])
    low, high = bootstrap(paired[0], truths, paired[1])
    return replace(found, gain=float(gain), gain_low=low, gain_high=high)


def by_seed(rows: Sequence[Any], name: str) -> dict[int, Numbers]:
    """For each seed that has all widths, ascending, the values of `name` by width; shape (widths,)."""
    widths = 1 + max((row.width for row in rows), default=-1)
    found: dict[int, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row.seed, {})[row.width] = getattr(row, name)
    return {
        seed: np.array([own[width] for width in range(widths)])
        for seed, own in sorted(found.items())
        if len(own) == widths
    }


def tau(scores: Numbers, truth: Numbers) -> float:
    """Kendall's tau-b; 0 where all are equal, as may happen to a draw of the bootstrap."""
    found = float(kendalltau(scores, truth).statistic)
    return 0.0 if np.isnan(found) else found


def split_half(truths: Numbers) -> float:
    """Tau between the means of two halves of the seeds, over all halvings."""
    seeds = range(len(truths))
    halves = [half for half in itertools.combinations(seeds, len(truths) // 2) if half]
    found = [
        tau(truths[list(half)].mean(0), truths[[seed for seed in seeds if seed not in half]].mean(0)) for half in halves
    ]
    return float(np.mean(found)) if found else float("nan")


def bootstrap(scores: Numbers, truths: Numbers, other: Numbers | None = None) -> tuple[float, float]:
    """The 95 % interval of the mean tau over supernets, less that of `other`, a supernet of the same seed for each.

    Widths, supernets and the seeds of the truth are drawn anew.
    """
    rng = np.random.default_rng(0)
    mine, theirs = ([order(own) for own in each] for each in (scores, [] if other is None else other))
    found = []
    for _ in range(DRAWS):
        widths = rng.integers(truths.shape[1], size=truths.shape[1])
        times = np.bincount(widths, minlength=truths.shape[1])
        against = order(truths[rng.integers(len(truths), size=len(truths))].mean(0))
        nets = rng.integers(len(scores), size=len(scores))
        taus = [drawn_tau(mine[net], against, times) for net in nets]
        if theirs:
            taus = [own - drawn_tau(theirs[net], against, times) for own, net in zip(taus, nets, strict=True)]
        found.append(np.mean(taus))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def order(values: Numbers) -> Numbers:
    """For each pair, whether the first is more (1), less (-1) or the same (0)."""
    return np.sign(np.subtract.outer(values, values))


def drawn_tau(one: Numbers, other: Numbers, times: Numbers) -> float:
    """What `tau` is of a draw in which each stands so many times, by the two orders of all; twenty times as fast."""
    both, own, others = (times @ matrix @ times for matrix in (one * other, one**2, other**2))
    return float(both / math.sqrt(own * others)) if own and others else 0.0


def draw_agreement(rows: Sequence[Agreement], title: str) -> Figure:
    """Tau and its interval by arm, of all widths and of those in the band; hollow, of the supernets' mean score."""
    figure = Figure(figsize=(9, 1.2 + 0.22 * len(rows)), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("all", "band"), strict=True):
        own = [row for row in rows if row.widths == name][::-1]
        for place, row in enumerate(own):
            color = "#D55E00" if row.arm == "fixed" else "#0072B2"
            axes.plot([row.low, row.high], [place, place], color=color, linewidth=2, alpha=0.5)
            axes.plot(row.tau, place, "o", color=color)
            if row.together is not None:
                axes.plot(row.together, place, "o", color=color, markerfacecolor="none")
        axes.set_yticks(range(len(own)), [f"{row.arm} ({row.supernets})" for row in own], fontsize=8)
        axes.set_title({"all": "all widths", "band": "widths of one budget"}[name], fontsize=10)
        axes.set_xlabel("tau, 95 % interval")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{title}; filled: mean of the supernets, hollow: of their mean score", fontsize=11)
    return figure
