"""What the summary of a run says, in words and in the cells of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABELS = {"dense": "dense", "before": "dense before", "slim": "slim", "uniform": "Uniform", "random": "Random"}
OPTIONAL = ("uniform", "random", "before")
HEADER = ("network", "MACs", "% of dense", "params", "% of dense", "accuracy")


def networks_in(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The networks that the summary has, in the order of LABELS."""
    return [(name, summary[name]) for name in LABELS if name in summary]


def network_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of cells for each network, under HEADER."""
    dense = summary["dense"]
    return [
        (
            LABELS[name], f"{entry['macs']:,}", f"{entry['macs'] / dense['macs']:.1%}",
            f"{entry['params']:,}", f"{entry['params'] / dense['params']:.1%}", _accuracy(summary, name),
        )
        for name, entry in networks_in(summary)
    ]  # fmt: skip


def std_of(summary: Mapping[str, Any], name: str) -> float | None:
    """None where there was but one run: its deviation is not zero but unknown."""
    std: float | None = summary[name].get("accuracy_std")
    return std if summary.get("runs", 2) > 1 else None


def _accuracy(summary: Mapping[str, Any], name: str) -> str:
    """In the scale of the score function, which may be a share, a percentage or a negative loss."""
    digits = 4 if all(abs(entry["accuracy"]) < 10 for _, entry in networks_in(summary)) else 2
    std = std_of(summary, name)
    return f"{summary[name]['accuracy']:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


def budget_text(summary: Mapping[str, Any]) -> str:
    """The bounds, absolute and relative to the dense network."""
    parts = []
    for limit, of, unit in (("max_macs", "macs", "MACs"), ("max_params", "params", "parameters")):
        if (most := summary["budget"].get(limit)) is not None:
            parts.append(f"{most:,} {unit} ({most / summary['dense'][of]:.1%} of dense)")
    return " and ".join(parts) or "no bound"


def finalist_facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """How many networks were trained shortly, and whose the best was; nothing where the supernet was trusted."""
    return {"finalists": str(summary["finalists"])} if "finalists" in summary else {}


def accuracy_text(summary: Mapping[str, Any]) -> str:
    """What the accuracies are."""
    runs = summary.get("runs", 1)
    return str(summary["accuracy_of"]) + (f"; mean ± standard deviation of {runs} runs" if runs > 1 else "")


def lead_text(summary: Mapping[str, Any]) -> str:
    """The outcome in a sentence."""
    share = summary["slim"]["macs"] / summary["dense"]["macs"]
    labels = {name: label for name, label in LABELS.items() if name in summary and name != "slim"}
    others = ", ".join(f"{label} {_accuracy(summary, name)}" for name, label in labels.items())
    slim = _accuracy(summary, "slim")
    return f"The slim network takes {share:.1%} of the dense network's MACs: accuracy {slim} ({others})."


def duration_text(seconds: float) -> str:
    """Seconds as a person would say them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def duration_facts(seconds: Mapping[str, float]) -> dict[str, str]:
    """The wall time in all and by phase, by name."""
    phases = {f"- {phase}": duration_text(took) for phase, took in seconds.items()}
    return {"time": duration_text(sum(seconds.values())), **phases}
