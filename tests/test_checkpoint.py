from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nni_cafenet import CheckpointMismatch
from nni_cafenet.checkpoint import Checkpoint, assert_plain

SETTINGS = {"space": "abc", "epochs": 3}
STATE = {
    "step": 3,
    "loss": 0.25,
    "name": "x",
    "nothing": None,
    "yes": True,
    "list": [1, [2.5, "a"], (3,)],
    "weights": OrderedDict(w=torch.arange(3.0)),
    7: {"nested": {}},
}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "new" / "folder", "search", SETTINGS).save(STATE)
    loaded = Checkpoint(tmp_path / "new" / "folder", "search", SETTINGS).load()
    assert loaded is not None
    assert torch.equal(loaded["weights"]["w"], torch.arange(3.0))
    assert {key: value for key, value in loaded.items() if key != "weights"} == {
        key: value for key, value in STATE.items() if key != "weights"
    }


def test_there_is_nothing_to_load_before_the_first_save(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path / "missing", "search", SETTINGS).load() is None
    assert not (tmp_path / "missing").exists()


def test_the_last_save_wins_and_leaves_no_other_file(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, "search", SETTINGS)
    for step in range(3):
        checkpoint.save({"step": step})
    assert checkpoint.load() == {"step": 2}
    assert os.listdir(tmp_path) == ["search.pt"]


def test_a_kill_while_saving_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path, "search", SETTINGS)
    checkpoint.save({"step": 1})

    def killed(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save({"step": 2})
    assert checkpoint.load() == {"step": 1}
    assert os.listdir(tmp_path) == ["search.pt"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "other", "bare"])
def test_a_damaged_file_is_refused_with_its_path_and_the_remedy(tmp_path: Path, damage: str) -> None:
    checkpoint = Checkpoint(tmp_path, "search", SETTINGS)
    checkpoint.save(STATE)
    whole = checkpoint.path.read_bytes()
    if damage in ("other", "bare"):
        torch.save({"weights": 1} if damage == "other" else [1, 2], checkpoint.path)
    else:
        checkpoint.path.write_bytes(
            {"truncated": whole[: len(whole) // 2], "empty": b"", "noise": b"\x80" * 99}[damage]
        )
    with pytest.raises(CheckpointMismatch, match=r"search\.pt is damaged or no checkpoint .* remove it to start over"):
        checkpoint.load()


def test_a_file_that_runs_code_when_unpickled_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    checkpoint = Checkpoint(tmp_path, "search", SETTINGS)
    torch.save({"version": 1, "settings": SETTINGS, "state": Evil()}, checkpoint.path)
    with pytest.raises(CheckpointMismatch, match="damaged"):
        checkpoint.load()
    assert not (tmp_path / "ran").exists()


def test_a_file_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    Checkpoint(tmp_path, "search", SETTINGS).save(STATE)
    with pytest.raises(CheckpointMismatch, match=r"other settings.*epochs: 3 there, 5 here"):
        Checkpoint(tmp_path, "search", {**SETTINGS, "epochs": 5}).load()
    with pytest.raises(CheckpointMismatch, match="seed: None there, 1 here"):
        Checkpoint(tmp_path, "search", {**SETTINGS, "seed": 1}).load()


def test_a_file_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(tmp_path, "search", SETTINGS)
    monkeypatch.setattr("nni_cafenet.checkpoint.VERSION", 99)
    checkpoint.save(STATE)
    monkeypatch.undo()
    with pytest.raises(CheckpointMismatch, match="has version 99, and this nni_cafenet writes version 1"):
        checkpoint.load()


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ({"a": [1, {2, 3}]}, r"state\['a'\]\[1\] is a set"),
        ({"a": {"b": object()}}, r"state\['a'\]\['b'\] is a object"),
        ({"a": np.zeros(2)}, r"state\['a'\] is a ndarray"),
        ({(1, 2): 3}, "state has a key of type tuple"),
        ({"f": test_what_was_saved_is_loaded}, r"state\['f'\] is a function"),
    ],
)
def test_only_plain_types_are_saved(tmp_path: Path, value: Any, where: str) -> None:
    with pytest.raises(TypeError, match=where):
        Checkpoint(tmp_path, "search", SETTINGS).save(value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [np.float64(0.5), np.float32(0.5), np.int64(3)])
def test_what_is_taken_for_plain_can_be_loaded_again(tmp_path: Path, value: Any) -> None:
    checkpoint = Checkpoint(tmp_path, "search", SETTINGS)
    try:
        checkpoint.save({"score": value})
    except TypeError:
        assert not checkpoint.path.exists()
    else:
        assert checkpoint.load() == {"score": value}


def test_assert_plain_names_the_place() -> None:
    assert_plain(STATE)
    with pytest.raises(TypeError, match=r"searcher\['x'\] is a complex"):
        assert_plain({"x": 1j}, "searcher")
