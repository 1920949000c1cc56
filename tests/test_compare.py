"""The whole job as a function: where the supernet starts, and that a second call trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nni_cafenet.compare
from nni_cafenet import Budget, RandomSearch, Recipe, build_space, channel_importance, cross_entropy, train_model
from nni_cafenet.compare import Data, compare_widths
from nni_cafenet.importance import few_images
from nni_cafenet.networks import Factory
from nni_cafenet.report import Report
from tests.data import EXAMPLE, Net, batches, net

DATA = Data(batches(4, 16), batches(2, 32, seed=5), batches(2, 32, seed=6))
SPACE = build_space(net(), EXAMPLE)


def compared(folder: Path, *, factory: Factory = net, **options: Any) -> Report:
    return compare_widths(
        factory, SPACE, DATA, example_inputs=EXAMPLE, budget=Budget(max_macs="50%"), recipe=Recipe(2), folder=folder,
        runs=1, epochs=1, searcher=RandomSearch(evaluations=3), recalibrate_batches=1, progress=False, **options,
    )  # fmt: skip


def started_from(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that searches start from, from here on."""
    models: list[nn.Module] = []
    search = nni_cafenet.compare.search_widths

    def seen(given: Sequence[nn.Module], *arguments: Any, **options: Any) -> Any:
        models.extend(given)
        return search(given, *arguments, **options)

    monkeypatch.setattr(nni_cafenet.compare, "search_widths", seen)
    return models


def test_a_supernet_may_start_from_the_dense_network_with_its_best_channels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = started_from(monkeypatch)
    fresh, begun = compared(tmp_path / "fresh"), compared(tmp_path / "begun", from_dense=True)
    dense = net()
    train_model(dense, DATA.train, Recipe(2), loss_fn=cross_entropy, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), net().parameters(), strict=True))
    with torch.no_grad():
        expected, images = dense.eval(), DATA.test[0][0]
        torch.testing.assert_close(models[1].eval()(images), expected(images))
    for values in channel_importance(models[1], SPACE, few_images(DATA.train)):
        assert values[0] == values.max() and (values[:-1] >= 0.99 * values[1:]).all()
    assert begun.summary["dense"]["accuracy"] == fresh.summary["dense"]["accuracy"]  # trained once, and alike
    assert set(begun.summary["seconds"]) - set(fresh.summary["seconds"]) == {"dense"}


@pytest.mark.parametrize("from_dense", [False, True])
def test_each_of_several_supernets_starts_from_a_network_of_its_own(
    from_dense: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = started_from(monkeypatch)
    report = compared(tmp_path, factory=Net, from_dense=from_dense, supernets=2, seed=1)
    first, second = (model.state_dict() for model in models)
    assert not torch.equal(first["0.weight"], second["0.weight"])
    searched = tmp_path / "checkpoints" / ("from-dense" if from_dense else "")
    assert {path.stem for path in searched.glob("supernet*.pt")} == {"supernet", "supernet-2"}
    assert report.summary["slim"]["macs"] <= report.summary["budget"]["max_macs"]


def test_a_second_call_trains_nothing_and_says_the_same(tmp_path: Path) -> None:
    first = compared(tmp_path, from_dense=True, finalists=2)
    saved = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    second = compared(tmp_path, from_dense=True, finalists=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt") if "search" not in path.name} == {
        path: time for path, time in saved.items() if "search" not in path.name
    }
    for report in (first, second):
        report.summary.pop("seconds")
    assert first == second
    kept = {str(path.relative_to(tmp_path / "checkpoints")) for path in tmp_path.rglob("supernet*.pt")}
    assert kept == {"from-dense/supernet.pt"}  # another start is another supernet, and does not go on from this one
