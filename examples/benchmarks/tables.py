"""Rows of a dataclass, which is what every study collects: as a CSV, and as columns on the screen."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TypeVar

from nni_cafenet.files import replacing

Kind = TypeVar("Kind")
PLAIN = {"int": int, "float": float, "str": str, "bool": lambda text: text == "True"}


def read_csv(path: Path, kind: type[Kind]) -> list[Kind]:
    """Of a dataclass of plain fields; none where there is no file yet."""
    if not path.exists():
        return []
    names = {field.name: PLAIN[str(field.type)] for field in fields(kind)}  # type: ignore[arg-type]
    with path.open(newline="") as file:
        return [kind(**{name: plain(row[name]) for name, plain in names.items()}) for row in csv.DictReader(file)]


def write_csv(path: Path, kind: type[Any], rows: Iterable[Any], *, digits: int | None = None) -> None:
    """With the fields' names above; floats of so many digits, or all."""
    with replacing(path) as partial:
        partial.write_text(_lines([_names(kind), *(_texts(row, digits) for row in rows)]))


def append_csv(path: Path, rows: Sequence[Any]) -> None:
    """One write for all rows, so that processes side by side do not mix theirs; one of them writes the names above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), path.open("x") as file:
        file.write(_lines([_names(type(rows[0]))]))
    with path.open("a") as file:
        file.write(_lines(_texts(row, None) for row in rows))


def columns(kind: type[Any], rows: Iterable[Any], *, digits: int) -> str:
    """To be printed: the fields' names and, below them, the rows."""
    table = [_names(kind), *(_texts(row, digits) for row in rows)]
    longest = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(length) for text, length in zip(line, longest, strict=True)).rstrip() for line in table
    )


def _lines(table: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue()


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _texts(row: Any, digits: int | None) -> list[str]:
    return [_text(value, digits) for value in astuple(row)]


def _text(value: object, digits: int | None) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if digits is not None and isinstance(value, float) else str(value)
