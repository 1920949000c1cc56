"""The whole job as a function: where the supernet starts, and that a second call trains nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nni_cafenet.compare
import nni_cafenet.trainings
from nni_cafenet import (
    Budget,
    Distillation,
    InvalidBatches,
    RandomSearch,
    Recipe,
    accuracy,
    build_space,
    channel_importance,
    cross_entropy,
    slice_model,
    train_model,
)
from nni_cafenet.compare import Weights, compare_widths
from nni_cafenet.importance import few_images
from nni_cafenet.networks import Factory, uniform_network
from nni_cafenet.report import Report, read_report
from nni_cafenet.result import Result
from nni_cafenet.trainings import Data
from tests.data import EXAMPLE, Net, batches, net

DATA = Data(batches(4, 16), batches(2, 32, seed=5), batches(2, 32, seed=6))
SPACE = build_space(net(), EXAMPLE)


def compared(folder: Path, *, factory: Factory = net, **options: Any) -> Report:
    return compare_widths(
        factory, SPACE, DATA, example_inputs=EXAMPLE, budget=Budget(max_macs="50%"), recipe=Recipe(2), folder=folder,
        runs=1, epochs=1, searcher=RandomSearch(evaluations=3), recalibrate_batches=1, progress=False, **options,
    )  # fmt: skip


def searches(monkeypatch: pytest.MonkeyPatch) -> tuple[list[nn.Module], list[Result]]:
    """The models that searches start from, and what they find, from here on."""
    models: list[nn.Module] = []
    results: list[Result] = []
    search = nni_cafenet.compare.search_widths

    def seen(given: Sequence[nn.Module], *arguments: Any, **options: Any) -> Any:
        models.extend(given)
        results.append(search(given, *arguments, **options))
        return results[-1]

    monkeypatch.setattr(nni_cafenet.compare, "search_widths", seen)
    return models, results


def test_a_supernet_may_start_from_the_dense_network_with_its_best_channels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, _ = searches(monkeypatch)
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
    models, _ = searches(monkeypatch)
    report = compared(tmp_path, factory=Net, from_dense=from_dense, supernets=2, seed=1)
    first, second = (model.state_dict() for model in models)
    assert not torch.equal(first["0.weight"], second["0.weight"])
    searched = tmp_path / "checkpoints" / ("from-dense" if from_dense else "")
    assert {path.stem for path in searched.glob("supernet*.pt")} == {"supernet", "supernet-2"}
    assert report.summary["slim"]["macs"] <= report.summary["budget"]["max_macs"]


def test_several_supernets_of_a_trained_network_share_its_importance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimated: list[Any] = []
    estimate = nni_cafenet.trainings.channel_importance

    def counted(*given: Any, **options: Any) -> Any:
        estimated.append(given)
        return estimate(*given, **options)

    monkeypatch.setattr(nni_cafenet.trainings, "channel_importance", counted)
    compared(tmp_path, trained=True, factory=trained_net, supernets=2)
    assert len(estimated) == 1
    first, second = (torch.load(path)["state"]["model"] for path in sorted(tmp_path.rglob("supernet*.pt")))
    assert not torch.equal(first["0.weight"], second["0.weight"])  # trained by seeds of their own


def trainings(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[nn.Module, Recipe]]:
    """What each training starts from, by its label, from here on; the first of each."""
    seen: dict[str, tuple[nn.Module, Recipe]] = {}
    train = nni_cafenet.trainings.train_model

    def watched(model: nn.Module, batches: Any, recipe: Recipe, *, label: str, **options: Any) -> None:
        seen.setdefault(label, (copy.deepcopy(model).eval(), recipe))
        train(model, batches, recipe, label=label, **options)

    monkeypatch.setattr(nni_cafenet.trainings, "train_model", watched)
    return seen


def trained_net() -> nn.Module:
    model = net(seed=3)
    train_model(model, DATA.train, Recipe(3), loss_fn=cross_entropy, progress=False)
    return model


@pytest.mark.parametrize("trained", [False, True])
def test_networks_may_go_on_from_what_has_been_learnt(
    trained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (models, results), seen = searches(monkeypatch), trainings(monkeypatch)
    options: dict[str, Any] = {"trained": True, "factory": trained_net} if trained else {"weights": "inherited"}
    report = compared(tmp_path, tuning=Recipe(3), **options)
    before = {label: (model, recipe.epochs) for label, (model, recipe) in seen.items()}
    if not trained:  # the dense network's own training has its label, and came first
        assert before.pop("dense 1/1")[1] == 2
    assert {epochs for _, epochs in before.values()} == {3}
    assert set(before) == {f"{name} 1/1" for name in ("slim", "uniform", "random", *(["dense"] if trained else []))}

    [result], [start], images = results, models, DATA.test[0][0]
    uniform = uniform_network(SPACE, SPACE.limits(Budget(max_macs="50%")))
    expected = {
        "slim 1/1": slice_model(result.supernet, SPACE, result.best.subnetwork),
        "uniform 1/1": slice_model(start, uniform.space, uniform.subnetwork),
    }
    dense = trained_net() if trained else net()
    if trained:
        expected["dense 1/1"] = dense
    else:
        train_model(dense, DATA.train, Recipe(2), loss_fn=cross_entropy, progress=False)
    with torch.no_grad():
        for label, model in expected.items():
            torch.testing.assert_close(before[label][0](images), model.eval()(images))
    assert report.summary["before"]["accuracy"] == pytest.approx(accuracy(dense.eval(), DATA.test))
    assert report.summary["before"]["macs"] == report.summary["dense"]["macs"]
    assert "further from inherited weights" in report.summary["accuracy_of"] and read_report(tmp_path) == report
    assert "dense before" in (tmp_path / "report.html").read_text()
    assert report.summary["slim"]["macs"] <= report.summary["budget"]["max_macs"]


@pytest.mark.parametrize("options", [{}, {"weights": "inherited"}, {"trained": True, "factory": trained_net}])
def test_slim_networks_may_learn_from_the_dense_one(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: dict[str, Any] = {}
    teachers: list[nn.Module] = []

    def teaching(model: nn.Module) -> Distillation:
        teachers.append(copy.deepcopy(model).eval())
        return Distillation(model, weight=0.7)

    train = nni_cafenet.trainings.train_model

    def watched(*given: Any, label: str, loss_fn: Any, **settings: Any) -> None:
        losses.setdefault(label, loss_fn)
        train(*given, label=label, loss_fn=loss_fn, **settings)

    monkeypatch.setattr(nni_cafenet.trainings, "train_model", watched)
    report = compared(tmp_path, teaching=teaching, **options)
    dense = trained_net() if "trained" in options else net()
    if "trained" not in options:
        train_model(dense, DATA.train, Recipe(2), loss_fn=cross_entropy, progress=False)
    [teacher], images = teachers, DATA.test[0][0]
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), dense.eval()(images))
    taught = {label.split()[0] for label, loss in losses.items() if isinstance(loss, Distillation)}
    assert taught == {"slim", "uniform", "random"} == {label.split()[0] for label in losses} - {"dense"}
    assert "slim ones with the dense one as their teacher" in report.summary["accuracy_of"]

    trained, other = len(list(tmp_path.rglob("slim-0.pt"))), compared(tmp_path, **options)  # without a teacher
    assert len(list(tmp_path.rglob("slim-0.pt"))) == trained + 1 and "teacher" not in other.summary["accuracy_of"]
    assert len(list(tmp_path.rglob("supernet.pt"))) == 1


def test_a_teacher_of_other_classes_is_refused_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, _ = searches(monkeypatch)
    with pytest.raises(InvalidBatches, match="both must answer with logits for the same classes"):
        compared(tmp_path, teaching=lambda dense: Distillation(nn.Sequential(dense, nn.Linear(4, 7))))
    assert not models


def test_finalists_inherit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[nn.Module] = []
    halving = nni_cafenet.trainings.successive_halving

    def watched(factory: Factory, *given: Any, **options: Any) -> Any:
        made.append(factory())
        return halving(factory, *given, **options)

    monkeypatch.setattr(nni_cafenet.trainings, "successive_halving", watched)
    seen = trainings(monkeypatch)
    report = compared(tmp_path, weights="inherited", finalists=3)
    found = report.summary["widths"]
    slim, _ = seen["slim 1/1"]
    first = made[0].get_parameter("0.weight")
    assert torch.equal(slim.get_parameter("0.weight"), first[: found[SPACE.groups[0].name]])
    assert (tmp_path / "checkpoints" / "from-dense" / "inherited" / "finalists-3").is_dir()


def test_other_trained_weights_are_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, _ = searches(monkeypatch)
    compared(tmp_path, trained=True, factory=trained_net)
    compared(tmp_path, trained=True, factory=net)
    kept = list(tmp_path.glob("checkpoints/trained-*/supernet.pt"))
    assert len(kept) == 2 and len({model.state_dict()["0.weight"].sum().item() for model in models}) == 2
    compared(tmp_path, trained=True, factory=trained_net)
    assert list(tmp_path.glob("checkpoints/trained-*/supernet.pt")) == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "old"}, "weights must be one of scratch, inherited, but got 'old'"),
        ({"weights": "scratch", "trained": True}, "trained=True .* wants a fresh one: leave out one"),
        ({"tuning": Recipe(1)}, "give weights='inherited' too"),
        ({"random_share": 2}, "random_share must be 0 to 1, but got 2"),
        ({"ema": 1}, "ema must be at least 0 and below 1"),
        ({"sandwhich": True}, "'sandwhich' is no option of compare_widths or search_widths; .*sandwich"),
        ({"checkpoint": "runs"}, "'checkpoint' is no option of"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_trained(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    options = {"from_dense": True, **options}
    with pytest.raises((ValueError, TypeError), match=message):
        compared(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weights", ["scratch", "inherited"])
def test_a_second_call_trains_nothing_and_says_the_same(weights: Weights, tmp_path: Path) -> None:
    first = compared(tmp_path, from_dense=True, finalists=2, weights=weights)
    saved = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    second = compared(tmp_path, from_dense=True, finalists=2, weights=weights)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt") if "search" not in path.name} == {
        path: time for path, time in saved.items() if "search" not in path.name
    }
    for report in (first, second):
        report.summary.pop("seconds")
    assert first == second
    kept = {str(path.relative_to(tmp_path / "checkpoints")) for path in tmp_path.rglob("supernet*.pt")}
    assert kept == {"from-dense/supernet.pt"}  # another start is another supernet, and does not go on from this one
