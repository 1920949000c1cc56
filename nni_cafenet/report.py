"""Tables and plots of a run: result.json, widths.csv, history.csv and a self-contained report.html."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from nni_cafenet import page
from nni_cafenet.errors import CafeNetError
from nni_cafenet.files import replacing
from nni_cafenet.summary import (
    HEADER,
    LABELS,
    OPTIONAL,
    accuracy_text,
    budget_text,
    duration_facts,
    finalist_facts,
    lead_text,
    network_rows,
    networks_in,
    std_of,
)

Row = TypeVar("Row")


@dataclass(frozen=True)
class WidthRow:
    """Channels of one group: in the full network, in the found one, and in Uniform's."""

    group: str
    full: int
    slim: int
    uniform: int

    def __post_init__(self) -> None:
        if self.full < 1:
            raise ValueError(f"full must be at least 1, but got {self.full}")


@dataclass(frozen=True)
class HistoryRow:
    """One scored candidate of the search, in order, and what the searcher makes of its score, where it predicts."""

    macs: int
    params: int
    score: float
    predicted: float | None = None

    def __post_init__(self) -> None:
        for name, number in (("score", self.score), ("predicted", self.predicted)):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name} must be a finite number, but got {number}")

    @property
    def value(self) -> float:
        """What it is ranked by."""
        return self.score if self.predicted is None else self.predicted


@dataclass(frozen=True)
class Report:
    """All that a run's files show. `summary` is the content of result.json.

    Args:
        summary: macs, params, accuracy and perhaps accuracy_std by network ("dense" and "slim", perhaps "uniform",
            "random", and the dense network "before" its last training), budget, widths, seconds, seed, accuracy_of, and
            perhaps runs, finalists and command.
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
            partial.write_text(text, encoding="utf-8", newline="")
    return folder / "report.html"


def read_report(folder: str | os.PathLike[str]) -> Report:
    """What :func:`write_report` wrote into `folder`.

    Raises:
        CafeNetError: the folder or one of its files is missing or damaged.
    """
    folder = Path(folder)
    return Report(
        _read(folder / "result.json", _to_summary),
        _read(folder / "widths.csv", lambda text: _from_csv(WidthRow, text)),
        _read(folder / "history.csv", lambda text: _from_csv(HistoryRow, text)),
    )


def summary_table(report: Report) -> str:
    """The networks' MACs, parameters and accuracies as text for a terminal, and the budget."""
    rows = [HEADER, *network_rows(report.summary)]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * size for size in sizes))
    lines = [
        "  ".join([row[0].ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=True))])
        for row in rows
    ]
    facts = {"budget": budget_text(report.summary), **finalist_facts(report.summary)}
    return "\n".join([*lines, *(f"{name}: {text}" for name, text in facts.items())])


# ---------------------------------------------------------------------------------------------------- files


def _read(path: Path, parse: Callable[[str], Row]) -> Row:
    remedy = "give the folder of a finished run, or run it again"
    try:
        return parse(path.read_bytes().decode("utf-8"))
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
        raise ValueError("not an object")
    for name in LABELS:
        if name in summary or name not in OPTIONAL:
            _assert_numbers(summary, name, ("macs", "params", "accuracy"), others=("accuracy_std",))
    for name in ("budget", "widths", "seconds"):
        _assert_numbers(summary, name)
    for name in ("seed", "accuracy_of"):
        if name not in summary:
            raise ValueError(f"{name!r} is missing")
    if not isinstance(summary.get("runs", 1), int):
        raise ValueError("'runs' is not a number")
    return summary


def _assert_numbers(
    summary: Mapping[str, Any], name: str, required: Sequence[str] = (), *, others: Sequence[str] | None = None
) -> None:
    """Check the object `name`: its `required` values, and if present `others`, all of them unless given."""
    part = summary.get(name)
    if not isinstance(part, dict):
        raise ValueError(f"{name!r} is missing" if part is None else f"{name!r} is not an object")
    for key in (*required, *(key for key in part if others is None or key in others)):
        if not isinstance(part.get(key), (int, float)):
            raise ValueError(f"{key!r} of {name!r} is not a number")


def _to_csv(kind: type, rows: Sequence[Any]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    required, every = _columns(kind)
    names = [name for name in every if name in required or any(getattr(row, name) is not None for row in rows)]
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)
    return buffer.getvalue()


def _from_csv(kind: type[Row], text: str) -> tuple[Row, ...]:
    types = get_type_hints(kind)
    lines = csv.reader(io.StringIO(text, newline=""))
    if (names := next(lines, [])) not in _columns(kind):
        raise ValueError(f"the header is not {','.join(types)}")
    rows = []
    for line in lines:
        try:
            rows.append(kind(**{
                name: float(cell) if types[name] == float | None else types[name](cell)
                for name, cell in zip(names, line, strict=True)
            }))  # fmt: skip
        except ValueError as error:
            raise ValueError(f"line {lines.line_num}: {error}") from error
    return tuple(rows)


def _columns(kind: type) -> tuple[list[str], list[str]]:
    """Those that every table of such rows has, and all; the others are None in all rows or in none."""
    return [field.name for field in fields(kind) if field.default is not None], [field.name for field in fields(kind)]


# ---------------------------------------------------------------------------------------------------- page


def _page(report: Report) -> str:
    summary = report.summary
    return page.page(
        title=f"Widths within {budget_text(summary)}",
        lead=lead_text(summary),
        networks=page.table(HEADER, network_rows(summary), marked="slim"),
        facts={
            "budget": budget_text(summary),
            **finalist_facts(summary),
            **duration_facts(summary["seconds"]),
            "candidates scored": f"{len(report.history):,}",
            **({"candidates ranked by": "predicted scores"} if _predicts(report.history) else {}),
            "seed": str(summary["seed"]),
        },
        command=str(summary.get("command", "")),
        accuracy_of=accuracy_text(summary),
        sections="\n".join(_sections(report)),
    )


def _predicts(history: Sequence[HistoryRow]) -> bool:
    return any(row.predicted is not None for row in history)


def _sections(report: Report) -> Iterator[str]:
    """The figures with their headings; those that have something to show."""
    from nni_cafenet import plots  # matplotlib takes long to import, and most users of the package draw nothing

    summary = report.summary
    most = summary["budget"]
    admitted = [
        row
        for row in report.history  # some searchers pass through larger networks
        if row.macs <= most.get("max_macs", row.macs) and row.params <= most.get("max_params", row.params)
    ]
    slim = summary["slim"]["macs"], summary["slim"]["params"]
    chosen = [row for row in admitted if "finalists" not in summary or (row.macs, row.params) == slim]
    best = min(chosen, key=lambda row: (-row.value, row.macs), default=None)
    accuracy = plots.draw_accuracy(
        [(row.macs, row.score) for row in report.history],
        [
            plots.Point(name, entry["macs"], entry["accuracy"], std_of(summary, name))
            for name, entry in networks_in(summary)
        ],
        found=None if best is None else (best.macs, best.score),
        max_macs=most.get("max_macs"),
        accuracy_of=str(summary["accuracy_of"]),
    )
    yield page.figure("Accuracy over MACs", accuracy)
    if report.widths:
        shown = [name for name in ("slim", "uniform") if name == "slim" or name in summary]
        yield page.figure("Widths", plots.draw_widths(
            [row.group for row in report.widths], [row.full for row in report.widths],
            {name: [getattr(row, name) for row in report.widths] for name in shown},
        ))  # fmt: skip
        header = ("group", "full", *(name for kept in shown for name in (LABELS[kept], "% of full")))
        cells = [
            (row.group, f"{row.full:,}", *(
                cell for name in shown for cell in (f"{getattr(row, name):,}", f"{getattr(row, name) / row.full:.1%}")
            ))
            for row in report.widths
        ]  # fmt: skip
        yield page.folded("Channels of each group", page.table(header, cells))
    if admitted:
        predicted = [row.predicted for row in admitted if row.predicted is not None]
        yield page.figure("Search", plots.draw_history([row.score for row in admitted], predicted))
