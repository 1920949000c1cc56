"""Tables and plots of a run: result.json, widths.csv and a self-contained report.html."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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


@dataclass(frozen=True)
class Report:
    """All that a run's files show. `summary` is the content of result.json."""

    summary: Mapping[str, Any]
    widths: tuple[WidthRow, ...]
    history: tuple[HistoryRow, ...]


def write_report(folder: str | os.PathLike[str], report: Report) -> Path:
    """Write result.json, widths.csv, history.csv and report.html, each whole or not at all; the report's path."""
    raise NotImplementedError
