"""Tables and plots of a run: result.json, widths.csv, history.csv and a self-contained report.html."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, TypeVar

from nni_cafenet.errors import CafeNetError
from nni_cafenet.files import replacing

NETWORKS = ("dense", "slim", "uniform", "random")
HEADER = ("network", "MACs", "% of dense", "params", "% of dense", "accuracy")

Row = TypeVar("Row")


@dataclass(frozen=True)
class WidthRow:
    """Channels of one group: in the full network, in the found one, and in Uniform's."""

    group: str
    full: int
    slim: int
    uniform: int


@dataclass(frozen=True)
class HistoryRow:
    """One scored candidate of the search, in order."""

    macs: int
    params: int
    score: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ValueError(f"score must be a finite number, but got {self.score}")


@dataclass(frozen=True)
class Report:
    """All that a run's files show. `summary` is the content of result.json.

    Args:
        summary: macs, params, accuracy and perhaps accuracy_std by network ("dense" and "slim", perhaps "uniform" and
            "random"), budget, widths, seconds, seed, accuracy_of, and perhaps runs and command.
        widths: a row for each group.
        history: a row for each scored candidate.
    """

    summary: Mapping[str, Any]
    widths: tuple[WidthRow, ...]
    history: tuple[HistoryRow, ...]


def write_report(folder: str | os.PathLike[str], report: Report) -> Path:
    """Write result.json, widths.csv, history.csv and report.html, each whole or not at all; the report's path.

    Raises:
        ValueError: a number is NaN or infinite. Nothing is written then.
    """
    folder = Path(folder)
    texts = {
        "result.json": json.dumps(report.summary, indent=2, allow_nan=False) + "\n",
        "widths.csv": _to_csv(WidthRow, report.widths),
        "history.csv": _to_csv(HistoryRow, report.history),
        "report.html": _page(report),
    }
    for name, text in texts.items():
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    return folder / "report.html"


def read_report(folder: str | os.PathLike[str]) -> Report:
    """What :func:`write_report` wrote into `folder`.

    Raises:
        CafeNetError: the folder or one of its files is missing or damaged.
    """
    folder = Path(folder)
    return Report(
        _read(folder / "result.json", _to_summary),
        _read(folder / "widths.csv", lambda text: _from_csv(WidthRow, (str, int, int, int), text)),
        _read(folder / "history.csv", lambda text: _from_csv(HistoryRow, (int, int, float), text)),
    )


def summary_table(report: Report) -> str:
    """The networks' MACs, parameters and accuracies as text for a terminal, and the budget."""
    rows = [HEADER, *_network_rows(report.summary)]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(size) if place else cell.ljust(size) for place, (cell, size) in enumerate(zip(row, sizes, strict=True)))
        for row in rows
    ]  # fmt: skip
    lines.insert(1, "  ".join("-" * size for size in sizes))
    return "\n".join([*lines, f"budget: {_budget(report.summary)}"])


# ---------------------------------------------------------------------------------------------------- files


def _read(path: Path, parse: Callable[[str], Row]) -> Row:
    remedy = "give the folder of a finished run, or run it again"
    try:
        return parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        missing = path.parent if not path.parent.is_dir() else path
        raise CafeNetError(f"{missing} cannot be read ({error.strerror}): {remedy}") from error
    except (ValueError, csv.Error) as error:
        raise CafeNetError(f"{path} is damaged ({error}): {remedy}") from error


def _to_summary(text: str) -> dict[str, Any]:
    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is no number of JSON")

    summary = json.loads(text, parse_constant=reject)
    if not isinstance(summary, dict):
        raise ValueError("it holds no object")
    for name in ("budget", "widths", "seconds", "dense", "slim", *NETWORKS):
        if name not in summary:
            if name in ("uniform", "random"):
                continue
            raise ValueError(f"{name!r} is missing")
        if not isinstance(summary[name], dict):
            raise ValueError(f"{name!r} is no object")
        if name in NETWORKS:
            for key in ("macs", "params", "accuracy"):
                if not isinstance(summary[name].get(key), (int, float)):
                    raise ValueError(f"{name!r} has no number {key!r}")
    return summary


def _to_csv(kind: type[Any], rows: Sequence[Any]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(field.name for field in fields(kind))
    writer.writerows(astuple(row) for row in rows)
    return buffer.getvalue()


def _from_csv(kind: Callable[..., Row], types: Sequence[Callable[[str], Any]], text: str) -> tuple[Row, ...]:
    pass
