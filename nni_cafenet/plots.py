"""The figures of a report: SVG files from plain numbers, drawn without pyplot and its global state."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from nni_cafenet.search.searcher import pareto_front
from nni_cafenet.summary import LABELS

# Okabe and Ito's colours, told apart with any colour vision; each network has a marker of its own as well.
COLORS = {"dense": "#000000", "before": "#777777", "slim": "#0072B2", "uniform": "#D55E00", "random": "#AA4499"}
MARKERS = {"dense": "s", "before": "P", "slim": "o", "uniform": "^", "random": "D"}
FULL, CANDIDATE, FRONT, LIMIT = "#D4D8DC", "#8A9199", "#009E73", "#6B7280"

PAGE_INCHES = 11.5
LEGEND_ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False, "borderaxespad": 0.3}
LEGEND_BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "frameon": False}
NAME_CHARACTERS = 26
MANY_DOTS = 3000  # above which they are embedded as an image, or the file grows by 100 bytes a dot


@dataclass(frozen=True)
class Point:
    """A trained or scored network; `std` is the accuracy's standard deviation over several runs, None if unknown."""

    name: str
    macs: int
    accuracy: float
    std: float | None = None


def draw_widths(groups: Sequence[str], full: Sequence[int], chosen: Mapping[str, Sequence[int]]) -> bytes:
    """The channels of each group, as numbers and as shares of the full width.

    Args:
        groups: names.
        full: channels of the full network.
        chosen: channels by network, "slim" and perhaps "uniform".
    """
    many = len(groups) > 12
    with _style():
        if many:
            figure = Figure(figsize=(max(PAGE_INCHES, 1.2 + 0.2 * len(groups)), 6.6), layout="constrained")
            upper, lower = figure.subplots(2, 1, sharex=True)
            upper.tick_params(labelbottom=False)
        else:
            figure = Figure(figsize=(PAGE_INCHES, 3.6), layout="constrained")
            upper, lower = figure.subplots(1, 2)
        legend = _bars(upper, full, chosen)
        upper.set_ylabel("channels")
        shares = {name: [part / of for part, of in zip(counts, full, strict=True)] for name, counts in chosen.items()}
        _bars(lower, [1.0] * len(full), shares)
        lower.set_ylabel("channels, % of full")
        lower.yaxis.set_major_formatter(PercentFormatter(xmax=1))
        upper.legend(handles=legend, ncols=3, **LEGEND_ABOVE)
        slant = {"rotation": 90} if many else {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        for axes in (lower,) if many else (upper, lower):
            labels = [_shortened(name) for name in groups]
            axes.set_xticks(range(len(groups)), labels, fontsize=8, parse_math=False, **slant)
        return _svg(figure)


def draw_history(scores: Sequence[float], predicted: Sequence[float] = ()) -> bytes:
    """The score of each candidate in the order of scoring, and the best so far; or what is predicted of each."""
    with _style():
        figure = Figure(figsize=(PAGE_INCHES, 3.2), layout="constrained")
        axes = figure.subplots()
        order = range(1, len(scores) + 1)
        _dots(axes, order, scores)
        if predicted:
            axes.plot(order, predicted, ".", color=COLORS["slim"], markersize=4, label="predicted from all scores")
        else:
            best = list(accumulate(scores, max))
            axes.plot(order, best, color=COLORS["slim"], drawstyle="steps-post", label="best so far")
        axes.set_xlabel("candidates scored")
        axes.set_ylabel("score in the search")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
        axes.legend(ncols=2, **LEGEND_ABOVE)
        return _svg(figure)


def draw_accuracy(
    candidates: Sequence[tuple[int, float]],
    networks: Sequence[Point],
    *,
    found: tuple[int, float] | None,
    max_macs: int | None,
    accuracy_of: str,
) -> bytes:
    """Accuracy over MACs, in two panels with scales of their own: the candidates' scores, and the networks'.

    Args:
        candidates: (macs, score) of each, from the search.
        networks: those to compare, named "dense", "before", "slim", "uniform", "random".
        found: which of the candidates the search has found.
        max_macs: the budget, if it bounds the MACs.
        accuracy_of: what the networks' accuracies are.
    """
    with _style():
        figure = Figure(figsize=(PAGE_INCHES, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2) if candidates else (None, figure.subplots())
        if left is not None:
            _draw_candidates(left, candidates, found)
        _draw_networks(right, networks)
        right.set_title("\n".join(textwrap.wrap(accuracy_of, 72)), parse_math=False)
        for axes in figure.axes:
            if max_macs is not None:
                axes.axvline(max_macs, color=LIMIT, linestyle="--", linewidth=1, label="budget", zorder=1)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(ncols=4, **LEGEND_BELOW)
        _label_macs(figure.axes)
        return _svg(figure)


def draw_pareto(
    candidates: Sequence[tuple[int, float]], networks: Sequence[Point], *, max_macs: Mapping[int, str]
) -> bytes:
    """Scores over MACs of all that several budgets' searches found, and the Pareto front of all.

    Args:
        candidates: (macs, score) of each, from the search.
        networks: those to mark, scored alike: the "slim" and the "uniform" one of each budget, and the "dense" one.
        max_macs: what stands above the line of each budget that bounds the MACs.
    """
    with _style():
        figure = Figure(figsize=(PAGE_INCHES, 5.2), layout="constrained")
        axes = figure.subplots()
        _draw_front(axes, candidates)
        for name, label in (("uniform", LABELS["uniform"]), ("slim", "slim, the best of a budget"), ("dense", "dense")):
            places = [(point.macs, point.accuracy) for point in networks if point.name == name]
            axes.plot(
                *zip(*places, strict=True), MARKERS[name], color=COLORS[name], markersize=9, markeredgecolor="white",
                label=label, zorder=4,
            )  # fmt: skip
        for place, (most, text) in enumerate(sorted(max_macs.items())):
            axes.axvline(
                most, color=LIMIT, linestyle="--", linewidth=1, label=None if place else "budget", zorder=1
            )  # fmt: skip
            axes.annotate(
                text, (most, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                ha="center", color=LIMIT,
            )  # fmt: skip
        axes.set_ylabel("score in the search")
        axes.legend(ncols=6, **LEGEND_BELOW)
        _label_macs([axes])
        return _svg(figure)


def pareto(candidates: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The (macs, score) that no other beats in both, by rising MACs."""
    return pareto_front(candidates, lambda candidate: candidate)


def _bars(axes: Axes, full: Sequence[float], chosen: Mapping[str, Sequence[float]]) -> list[Any]:
    """Slim in front of full, and Uniform as a line across; returned in the legend's order."""
    places = range(len(full))
    drawn: list[Any] = [
        axes.bar(places, full, width=0.86, color=FULL, label="full"),
        axes.bar(places, chosen["slim"], width=0.5, color=COLORS["slim"], label=LABELS["slim"]),
    ]
    if "uniform" in chosen:
        ends = [place - 0.43 for place in places], [place + 0.43 for place in places]
        drawn.append(axes.hlines(chosen["uniform"], *ends, color=COLORS["uniform"], lw=2, label=LABELS["uniform"]))
    axes.set_xlim(-0.6, len(full) - 0.4)
    axes.grid(axis="x", visible=False)
    return drawn


def _dots(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    many = len(x) > MANY_DOTS
    axes.scatter(x, y, s=9, color=CANDIDATE, alpha=0.6, linewidths=0, rasterized=many, label="candidate", zorder=2)


def _draw_front(axes: Axes, candidates: Sequence[tuple[int, float]]) -> None:
    _dots(axes, *zip(*candidates, strict=True))
    front = list(zip(*pareto(candidates), strict=True))
    axes.plot(*front, color=FRONT, marker=".", drawstyle="steps-post", label="Pareto front", zorder=3)


def _draw_candidates(axes: Axes, candidates: Sequence[tuple[int, float]], found: tuple[int, float] | None) -> None:
    _draw_front(axes, candidates)
    if found is not None:
        color, marker = COLORS["slim"], MARKERS["slim"]
        axes.plot(*found, marker, color=color, markersize=9, markeredgecolor="white", label="slim", zorder=4)
    axes.set_title("candidates of the search")
    axes.set_ylabel("score in the search")


def _draw_networks(axes: Axes, networks: Sequence[Point]) -> None:
    for point in networks:
        axes.errorbar(
            point.macs, point.accuracy, yerr=point.std, fmt=MARKERS[point.name], color=COLORS[point.name],
            markersize=8, capsize=4, zorder=4,
        )  # fmt: skip
    axes.margins(x=0.3, y=0.2)
    low, high = axes.get_ylim()
    ranked = sorted(networks, key=lambda point: point.accuracy)
    for point, height in zip(ranked, _spread([point.accuracy for point in ranked], 0.07 * (high - low)), strict=True):
        axes.annotate(
            LABELS[point.name], (point.macs, height), xytext=(12, 0), textcoords="offset points", va="center",
            color=COLORS[point.name], fontweight="bold" if point.name == "slim" else "normal",
        )  # fmt: skip
    axes.set_ylabel("accuracy")


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Rising `values` moved apart as little as keeps labels of height `gap` from covering each other."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and _evened(blocks[-1], gap)[0] - _evened(blocks[-2], gap)[-1] < gap:
            last = blocks.pop()
            blocks[-1] += last
    return [height for block in blocks for height in _evened(block, gap)]


def _evened(block: Sequence[float], gap: float) -> list[float]:
    middle = sum(block) / len(block)
    return [middle + gap * (place - (len(block) - 1) / 2) for place in range(len(block))]


def _label_macs(panels: Sequence[Axes]) -> None:
    """Label the x axes in thousands, millions or billions, the same in all panels."""
    largest = max(axes.get_xlim()[1] for axes in panels)
    scale, unit = next((size for size in ((1e9, " (G)"), (1e6, " (M)"), (1e3, " (K)")) if largest >= size[0]), (1, ""))
    for axes in panels:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda macs, _: f"{macs / scale:g}"))
        axes.set_xlabel(f"MACs per image{unit}")


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else "…" + name[1 - NAME_CHARACTERS :]


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever style the caller has set, which is restored."""
    with matplotlib.rc_context({
        **{key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")},
        "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8.5, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E5E7EB",
        "svg.hashsalt": "nni_cafenet",
    }):  # fmt: skip
        yield


def _svg(figure: Figure) -> bytes:
    """The same bytes for the same figure: no date, and ids that depend on the content alone."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")  # a foreign script in a name: a box will do
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
