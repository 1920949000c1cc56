"""Two ranks find what one does."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nni_cafenet.distributed import (
    average_gradients,
    by_itself,
    from_all,
    from_first,
    mean_over_ranks,
    rank,
    world_size,
)
from tests import two_ranks


def run_ranks(out: Path, count: int) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    command = [sys.executable, *launch, "-m", "tests.two_ranks", str(out), *(["gloo"] if count > 1 else [])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads((out / f"rank{number}.json").read_text()) for number in range(count)]


def test_two_ranks_find_what_one_finds(tmp_path: Path) -> None:
    (alone,) = run_ranks(tmp_path / "one", 1)
    first, second = run_ranks(tmp_path / "two", 2)
    assert (alone["world"], first["world"]) == (1, 2)
    assert first == second
    assert first["widths"] == alone["widths"]
    assert first["swept"] == alone["swept"]
    assert first["several"] == alone["several"]
    assert first["alone"] == alone["alone"]
    assert len({score for *_, score in alone["alone"]}) == len(alone["alone"]) > 1
    assert first["predicted"] == pytest.approx(alone["predicted"], abs=1e-9)
    assert first["front"] == pytest.approx(alone["front"], abs=1e-12)
    assert first["scores"] == pytest.approx(alone["scores"], abs=1e-12)
    assert first["weights"] == pytest.approx(alone["weights"], rel=1e-4)
    untrained = [weight.double().square().sum().item() for weight in two_ranks.net().parameters()]
    assert alone["weights"] != pytest.approx(untrained, rel=1e-2)


def test_a_rank_that_takes_long_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    gathered_by: list[Any] = []

    def new_group(**options: Any) -> int:
        made.append(options)
        return len(made)

    def gather(found: list[Any], value: object, group: object) -> None:
        found[:] = [value] * len(found)
        gathered_by.append(group)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "new_group", new_group)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr("nni_cafenet.distributed._patient_groups", {})
    for world in ("first", "first", "second"):  # initialised anew, it is another group
        monkeypatch.setattr(torch.distributed, "group", SimpleNamespace(WORLD=world))
        assert from_all("own") == ["own", "own"]
    assert gathered_by == [1, 1, 2]
    assert all(options["backend"] == "gloo" and options["timeout"] > timedelta(days=7) for options in made)


def test_alone_nothing_is_exchanged() -> None:
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.grad.clone()
    average_gradients(model.parameters())
    assert torch.equal(model.weight.grad, before)
    assert (rank(), world_size()) == (0, 1)
    assert mean_over_ranks(torch.tensor(2.5)) == 2.5
    marker = object()
    assert from_first(marker) is marker
    assert from_all(marker) == [marker]


def test_by_itself_nothing_is_exchanged_where_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with by_itself():
        assert (rank(), world_size()) == (0, 1)
        assert from_all("own") == ["own"]
    assert (rank(), world_size()) == (1, 2)
    with pytest.raises(ZeroDivisionError), by_itself():
        _ = 1 / 0
    assert (rank(), world_size()) == (1, 2)
