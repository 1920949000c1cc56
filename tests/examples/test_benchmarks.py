"""The studies of examples/benchmarks run on tiny data that lie on disk as the real ones do, and count right."""

from __future__ import annotations

import csv
import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nni_cafenet import (
    Budget,
    CafeNetError,
    Evolution,
    PredictorSearch,
    RandomSearch,
    Recipe,
    Widths,
    build_space,
    count_macs,
)
from tests.examples import on_disk

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
NAMES = (
    "tables", "fashion_mnist", "networks", "setting", "rivals", "compare", "again", "summarise", "overview", "versus",
    "agreement", "ranking", "ceiling", "searchers", "effects", "trainings",
)  # fmt: skip


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """As scripts import one another, and gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def tiny(modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a study that takes seconds."""
    setting = modules["setting"]
    size = setting.Size(
        pixels=16, share=0.125, compact_share=0.25, train=64, valid=16, check=16, batch=16, epochs=2,
        supernet_epochs=2, evaluations=16, recalibrate_batches=1, importance_batches=1, tries=2,
    )  # fmt: skip
    monkeypatch.setitem(setting.SIZES, "small", size)
    monkeypatch.setattr(modules["compare"], "FINALISTS", 4)
    monkeypatch.setattr(modules["compare"], "ALONE", 3)
    data = on_disk.fashion_mnist(tmp_path / "data")
    return ["--data", str(data), "--work", str(tmp_path / "work"), "--device", "cpu"]


def run(module: ModuleType, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
    module.main()


def test_splits_are_apart_and_normalised(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    data = on_disk.fashion_mnist(tmp_path / "data")
    splits = modules["fashion_mnist"].load(data, pixels=32, train=50, valid=20, check=20, batch=16)
    assert [len(getattr(splits, name).labels) for name in ("train", "valid", "check", "test")] == [50, 20, 20, 32]
    whole = torch.cat([splits.train.images, splits.valid.images, splits.check.images])
    assert len({image.numpy().tobytes() for image in whole}) == 90
    black = -modules["fashion_mnist"].MEAN / modules["fashion_mnist"].STD
    assert whole.shape[1:] == (1, 32, 32) and torch.allclose(whole[:, :, :2], torch.tensor(black))
    small = modules["fashion_mnist"].load(data, pixels=16, train=50, valid=20, check=20, batch=16)
    assert torch.allclose(small.valid.images[3, 0, 4, 5], splits.valid.images[3, 0, 8:10, 10:12].mean())


def test_training_batches_are_whole_shuffled_and_augmented(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    data = on_disk.fashion_mnist(tmp_path / "data")
    train = modules["fashion_mnist"].load(data, pixels=16, train=50, valid=20, check=20, batch=16).train
    torch.manual_seed(0)
    first, second = list(train), list(train)
    assert len(first) == len(train) == 3 and all(images.shape == (16, 1, 16, 16) for images, _ in first)
    assert not torch.equal(first[0][1], second[0][1])
    torch.manual_seed(0)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, train, strict=True))
    moved = modules["fashion_mnist"]._augmented(train.images[:1].expand(200, -1, -1, -1))
    assert len({image.numpy().tobytes() for image in moved}) > 40  # of 25 shifts, mirrored or not
    assert any(torch.equal(image, train.images[0]) for image in moved)


@pytest.mark.parametrize("part", ["train-images-idx3", "t10k-labels-idx1"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_damaged_file_is_named(modules: dict[str, ModuleType], tmp_path: Path, part: str, share: float) -> None:
    data = on_disk.fashion_mnist(tmp_path / "data")
    path = data / f"{part}-ubyte.gz"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CafeNetError, match=rf"{part}-ubyte.gz is damaged .* delete it and get it again by python -c"):
        modules["fashion_mnist"].load(data, pixels=16, train=8, valid=8, check=8, batch=8)


def test_missing_data_say_where_they_are_expected(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(CafeNetError, match=r"train-images-idx3-ubyte.gz is missing: name the folder .* by --data"):
        modules["fashion_mnist"].load(tmp_path, pixels=16, train=8, valid=8, check=8, batch=8)


def test_labels_that_do_not_fit_are_refused(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    data = on_disk.fashion_mnist(tmp_path / "data")
    (data / "train-labels-idx1-ubyte.gz").write_bytes((data / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(CafeNetError, match="96 images, 32 labels"):
        modules["fashion_mnist"].load(data, pixels=16, train=8, valid=8, check=8, batch=8)


def test_networks_have_the_known_sizes(modules: dict[str, ModuleType]) -> None:
    networks, example = modules["networks"].NETWORKS, torch.zeros(1, 1, 32, 32)
    macs = {name: round(count_macs(make(1.0), example) / 1e6) for name, make in networks.items()}
    assert macs == {"vgg13": 228, "vgg19": 398, "resnet18": 555, "mobilenet_v2": 91}  # the paper has 399 for its VGG
    assert all(count_macs(make(0.25), example) < 0.15 * 1e6 * macs[name] for name, make in networks.items())


def test_a_comparison_fits_its_budget_and_a_second_run_trains_nothing(
    modules: dict[str, ModuleType], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = [
        "uniform", "random", "cafenet-e", "cafenet-halving", "cafenet-predictor", "cafenet-predictor-halving",
        "fixed-r", "greedy", "alone-predictor", "tp-magnitude-global",
    ]  # fmt: skip
    out = tmp_path / "cells"
    asked = [*tiny, "--out", str(out), "--budgets", "40%", "--methods", *methods]
    run(modules["compare"], asked, monkeypatch)
    rows = {row["method"]: row for row in map(json.loads, (path.read_text() for path in out.glob("*/*/*.json")))}
    assert set(rows) == {"dense", *methods}
    most = 0.4 * rows.pop("dense")["macs"]
    assert all(row["macs"] <= most for row in rows.values())
    filling = [method for method in methods if "predictor" not in method]  # which scores smaller networks too
    assert all(0.8 * most < rows[method]["macs"] for method in filling)
    with (out / "small/vgg13/alone-scratch-0.csv").open(newline="") as file:
        known = list(csv.DictReader(file))
    assert 3 <= len({found["bins"] for found in known}) == len(known) <= 6
    assert 0 < rows["alone-predictor"]["search_seconds"] <= sum(float(found["seconds"]) for found in known) + 0.1
    assert all(0 <= row[split] <= 1 for row in rows.values() for split in ("check", "test"))
    monkeypatch.setattr(modules["compare"], "cell", None)
    run(modules["compare"], asked, monkeypatch)

    assert [modules["compare"].parts(method) for method in ("cafenet-halving", "fixed-trained-r", "greedy")] == [
        ("locally-free", "e", True), ("fixed-trained", "r", False), ("locally-free", "greedy", False)
    ]  # fmt: skip
    for unknown in ("cafenet", "cafenet-x", "tp-magnitude", "alone-predictor-halving"):
        with pytest.raises(SystemExit):
            run(modules["compare"], [*asked, unknown], monkeypatch)

    chosen = ["--methods", "uniform", "cafenet-e", "--times"]
    run(modules["again"], [*tiny, "--out", str(out), *chosen, "1"], monkeypatch)
    kept = (out / "small" / "vgg13" / "40-uniform-scratch-0.json").read_text()
    run(modules["again"], [*tiny, "--out", str(out), *chosen, "2"], monkeypatch)
    cells = {cell.method: cell for cell in modules["summarise"].read(out)}
    assert {method: cell.trainings for method, cell in cells.items() if cell.trainings > 1} == {
        "uniform": 3, "cafenet-e": 3,
    }  # fmt: skip
    row = json.loads((out / "small" / "vgg13" / "40-uniform-scratch-0.json").read_text())
    assert row["again"][:1] == json.loads(kept)["again"] and row["test"] == rows["uniform"]["test"]
    assert cells["uniform"].test == pytest.approx(np.mean([row["test"], *(other["test"] for other in row["again"])]))

    modules["summarise"].main.__globals__["print"] = lambda *_: None
    run(modules["summarise"], ["--out", str(out)], monkeypatch)
    del modules["summarise"].main.__globals__["print"]
    assert (out / "small-vgg13-scratch.svg").read_text().count("40% of the MACs") >= 1
    assert len((out / "compare.csv").read_text().splitlines()) == 1 + len(rows) + 1  # the dense network


def test_what_is_found_may_learn_from_the_dense_network(
    modules: dict[str, ModuleType], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: dict[str, torch.nn.Module | None] = {}
    longest: dict[str, int] = {}
    train = modules["setting"].train_model

    def watched(model: torch.nn.Module, batches: object, recipe: Recipe, *, label: str, **more: Any) -> None:
        method = re.sub(r"(again-\d-40-)?([a-z-]+[a-z]).*", r"\1\2", label)
        teachers[method], longest[method] = getattr(more["loss_fn"], "teacher", None), recipe.epochs
        train(model, batches, recipe, label=label, **more)

    monkeypatch.setattr(modules["setting"], "train_model", watched)
    asked = [*tiny, "--out", str(tmp_path)]
    methods = ["uniform", "uniform-taught", "uniform-longer-taught"]
    run(modules["compare"], [*asked, "--budgets", "40%", "--methods", *methods], monkeypatch)
    run(modules["again"], [*asked, "--times", "1", "--methods", "uniform", "uniform-taught"], monkeypatch)
    taught = {"uniform-taught", "uniform-longer-taught", "again-0-40-uniform-taught-scratch"}
    assert longest == {
        "dense": 2, "uniform": 2, "uniform-taught": 2, "uniform-longer-taught": 8, "again-0-40-uniform-scratch": 2,
        "again-0-40-uniform-taught-scratch": 2,
    }  # fmt: skip
    assert {method for method, teacher in teachers.items() if teacher is not None} == taught
    dense = torch.load(tmp_path / "work/small/vgg13/seed0/dense.pt")["state"]["model"]
    for method in taught:
        assert torch.equal(teachers[method].state_dict()["features.0.weight"], dense["features.0.weight"])


def test_a_supernet_is_timed_once(
    modules: dict[str, ModuleType], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of our own, on which nothing takes time but training, of the dense network and of the supernet."""
    now = [0.0]

    def timed(function: Callable[..., object], seconds: float) -> Callable[..., object]:
        def wrapped(*args: object, **more: object) -> object:
            now[0] += seconds
            return function(*args, **more)

        return wrapped

    for name, seconds in (("train_supernet", 1000), ("train_model", 10)):
        monkeypatch.setattr(modules["setting"], name, timed(getattr(modules["setting"], name), seconds))
    for module in ("setting", "compare"):
        monkeypatch.setattr(modules[module], "time", SimpleNamespace(perf_counter=lambda: now[0]))
    methods = ["uniform", "cafenet-r", "cafenet-halving", "tp-random-global"]
    run(
        modules["compare"],
        [*tiny, "--out", str(tmp_path / "cells"), "--budgets", "40%", "--methods", *methods],
        monkeypatch,
    )
    rows = [json.loads(path.read_text()) for path in (tmp_path / "cells").glob("*/*/*.json")]
    kinds = ("training_seconds", "search_seconds", "supernet_seconds")
    assert {row["method"]: [row[kind] for kind in kinds] for row in rows} == {
        "dense": [10, 0, 0], "uniform": [10, 0, 0], "tp-random-global": [10, 0, 0],
        "cafenet-r": [10, 0, 1000], "cafenet-halving": [10, 0, 1000],
    }  # fmt: skip


def test_searches_can_come_first(
    modules: dict[str, ModuleType], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cells"
    asked = [*tiny, "--out", str(out), "--budgets", "40%", "--methods", "alone-predictor"]
    run(modules["compare"], [*asked, "--search-only"], monkeypatch)
    assert [path.name for path in out.glob("*/*/*")] == ["alone-scratch-0.csv"]
    monkeypatch.setattr(modules["setting"].AloneScorer, "score", None)  # nothing is left to be scored
    run(modules["compare"], asked, monkeypatch)
    assert (out / "small" / "vgg13" / "40-alone-predictor-scratch-0.json").exists()
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    for options in (asked, [*asked, "uniform", "--search-only"]):
        with pytest.raises(SystemExit):
            run(modules["compare"], options, monkeypatch)


def test_inherited_weights_are_those_of_the_method(
    modules: dict[str, ModuleType], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, trained = {}, {}

    def train(self: object, model: torch.nn.Module, name: str, *, epochs: int, **_: object) -> torch.nn.Module:
        trained[name.rpartition("-")[0].rpartition("-")[0]] = epochs
        word = next((word for word in ("sorted", "longer") if word in name), name.split("-")[0])
        started[word] = model.features[0].weight.detach().clone()
        return model

    monkeypatch.setattr(modules["setting"].Setting, "train", train)
    methods = ["uniform", "uniform-sorted", "cafenet-r", "fixed-trained-distill-halving", "alone-predictor"]
    methods.append("uniform-longer")
    asked = [*tiny, "--out", str(tmp_path), "--budgets", "40%", "--methods", *methods, "--weights", "inherited"]
    run(modules["compare"], asked, monkeypatch)
    full, uniform, best, found, halved = (started[name] for name in ("dense", "uniform", "sorted", "cafenet", "fixed"))
    assert torch.equal(uniform, full[: len(uniform)]) and torch.equal(started["longer"], uniform)
    assert trained["uniform-longer"] == 4 * trained["uniform"] == 4 * trained["dense"] == 8
    kept = [next(place for place, other in enumerate(full) if torch.equal(channel, other)) for channel in best]
    assert len(set(kept)) == len(uniform) and kept != list(range(len(uniform)))  # the most important
    channels = {tuple(channel.flatten().tolist()) for channel in best}
    few = {tuple(channel.flatten().tolist()) for channel in started["alone"]}
    assert few <= channels or channels <= few  # the most important ones too
    for learnt in (found, halved):
        assert not any(torch.equal(channel, other) for channel in learnt for other in full)  # the supernet's


def test_differences_are_paired_by_seed(modules: dict[str, ModuleType]) -> None:
    summarise = modules["summarise"]
    cells = [
        summarise.Cell("small", "vgg13", "scratch", "10%", method, seed, macs=10, params=5, test=score)
        for method, scores in {"uniform": (0.5, 0.9, 0.1), "cafenet-e": (0.51, 0.93, 0.12)}.items()
        for seed, score in enumerate(scores)
    ]
    best, other = summarise.lines(cells, "test")
    assert (best.method, best.seeds, other.above) == ("cafenet-e", 3, None)
    mean, low, high = best.above
    assert mean == pytest.approx(0.02) and (low, high) == pytest.approx((0.02 - 0.02484, 0.02 + 0.02484), abs=1e-5)
    unreached = summarise.Cell("small", "vgg13", "scratch", "10%", "nni-l1", 0, unreachable="at least 12 %")
    assert [line.method for line in summarise.lines([*cells, unreached], "test")] == ["cafenet-e", "uniform"]
    dense = summarise.Cell("small", "vgg13", "scratch", "100%", "dense", 0, 99, 9, 1, 1)
    assert "cafenet-e | 3 | 10.1% |" in summarise.table([*cells, dense], "test")
    assert "cafenet-e | 3 | 10 |" in summarise.table(cells, "test"), "the dense network's cell may not be there yet"


def test_a_searcher_finds_what_is_worth_most_where_scores_are_true(modules: dict[str, ModuleType]) -> None:
    searchers = modules["searchers"]
    space = build_space(modules["networks"].NETWORKS["vgg13"](0.125), torch.zeros(1, 1, 16, 16))
    limits = space.limits(Budget(max_macs="50%"))

    def even(some: Sequence[Widths]) -> np.ndarray:
        return modules["ceiling"].shares(space, some).min(1)

    landscape = searchers.Landscape(space, limits, even, noise=0.0)
    true, opposite = (
        landscape.gains(
            searchers.Simulated(says, noise=0.0),
            Evolution(population=16, generations=8, from_uniform=True),
            np.random.default_rng(0),
        )
        for says in (even, lambda some: -even(some))
    )
    assert 0 <= true[0] == true[1] and opposite[0] < 0 == opposite[1], "without noise Uniform wins among finalists"


def test_two_methods_are_compared_by_seed_over_all_budgets(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = {("vgg13", "10%", 0): 1.0, ("vgg13", "5%", 0): 3.0, ("vgg13", "5%", 1): -1.0, ("resnet18", "5%", 1): 2.5}
    folder = {network: tmp_path / "small" / network for network, _, _ in points}
    for path in folder.values():
        path.mkdir(parents=True)

    def write(method: str, network: str, budget: str, seed: int, test: float) -> None:
        row = {"size": "small", "network": network, "weights": "scratch", "budget": budget, "method": method}
        (folder[network] / f"{budget}-{method}-{seed}.json").write_text(
            json.dumps({**row, "seed": seed, "macs": 9, "test": test})
        )

    for (network, budget, seed), more in points.items():
        write("uniform", network, budget, seed, 0.5)
        write("greedy", network, budget, seed, 0.5 + more / 100)
    write("greedy", "vgg13", "10%", 7, 0.9)  # without its pair
    asked = ["--out", str(tmp_path)]
    run(modules["versus"], ["greedy", "uniform", *asked], monkeypatch)
    assert capsys.readouterr().out.splitlines() == [
        "resnet18        5%  +2.50 (1)",
        "vgg13          10%  +1.00 (1)",
        "vgg13           5%  +1.00 (-24.41 to +26.41) (2)",
        "each network and seed  +1.17 (-3.54 to +5.87) (3)",  # 2.5, the mean of 1 and 3, and -1
    ]
    write("cafenet-r", "vgg13", "5%", 0, 0.9)
    write("cafenet-r", "resnet18", "25%", 4, 0.6)
    write("uniform", "resnet18", "25%", 4, 0.5)
    run(modules["versus"], ["greedy", "uniform", "--or", "cafenet-r", *asked], monkeypatch)
    assert capsys.readouterr().out.splitlines()[:4] == [
        "resnet18       25%  +10.00 (1)",
        "resnet18        5%  +2.50 (1)",
        "vgg13          10%  +1.00 (1)",
        "vgg13           5%  +1.00 (-24.41 to +26.41) (2)",
    ]
    run(modules["versus"], ["greedy", "uniform", "--budgets", "10%", "25%", *asked], monkeypatch)
    assert [line[:18] for line in capsys.readouterr().out.splitlines()[:2]] == [
        "vgg13          10%",
        "each network and s",
    ]
    with pytest.raises(SystemExit):
        run(modules["versus"], ["greedy", "random", *asked], monkeypatch)


def test_readmes_tables_are_what_the_cells_say(modules: dict[str, ModuleType]) -> None:
    overview, cells = modules["overview"], modules["summarise"].read(BENCHMARKS / "compare")
    shown = "".join((folder / "README.md").read_text() for folder in (BENCHMARKS.parents[1], BENCHMARKS))
    assert [name for name in (*overview.OVERVIEWS, overview.MINUTES) if f"<!-- {name} -->" not in shown] == []
    assert overview.written(shown, cells) == shown, "run examples/benchmarks/overview.py"
    few = [cell for cell in cells if (cell.network, cell.method) in {("vgg13", "uniform"), ("vgg13", "greedy")}]
    text = overview.written("x\n<!-- comparison-vgg13 -->\nold\n<!-- end -->\ny <!-- end -->\n", few)
    assert text.startswith("x\n<!-- comparison-vgg13 -->\n\n| method |") and text.endswith(
        "\n<!-- end -->\ny <!-- end -->\n"
    )
    rows = {row[0]: row[1:] for row in (line.strip(" |").split(" | ") for line in text.splitlines() if " | " in line)}
    assert list(rows) == ["method", "---", "Greedy (AutoSlim)", "Uniform"]
    of_uniform = [
        cell.test for cell in few
        if (cell.size, cell.weights, cell.budget, cell.method) == ("small", "scratch", "10%", "uniform")
    ]  # fmt: skip
    said = rows["Uniform"][rows["method"].index("VGG-13, 10 %")]
    assert said == f"**{100 * np.mean(of_uniform):.1f} ± {100 * np.std(of_uniform, ddof=1):.1f}** (5)"
    greedy = [cell for cell in few if cell.method == "greedy" and cell.weights == "scratch"]
    took = [np.median([getattr(cell, name) for cell in greedy]) / 60 for name in ("supernet_seconds", "search_seconds")]
    assert overview.minutes_of(few)[2:] == [
        f"| Greedy (AutoSlim) | {took[0]:.1f} + {took[1]:.1f} |  |  |", "| Uniform | 0.0 |  |  |"
    ]  # fmt: skip


def test_methods_are_of_a_family_however_what_they_find_is_trained(modules: dict[str, ModuleType]) -> None:
    family = modules["summarise"].family
    for ending in ("", "-longer", "-taught"):
        assert {family(f"{name}{ending}") for name in ("uniform", "uniform-sorted", "random", "dense")} == {"baseline"}
        assert family(f"tp-taylor-local{ending}") == "torch-pruning" and family(f"cafenet-e{ending}") == "CafeNet"


def test_a_plot_shows_differences_and_their_intervals(modules: dict[str, ModuleType]) -> None:
    overview, summarise = modules["overview"], modules["summarise"]
    scores = {
        "uniform": (0.5, 0.6), "cafenet-e": (0.51, 0.63), "greedy": (0.48,), "nni-slim": (0.1, 0.3),
        "dense": (0.9, 0.9), "unnamed": (0.5, 0.5),
    }  # fmt: skip
    cells = [
        summarise.Cell("small", "vgg13", "scratch", "10%", method, seed, macs=10, params=5, test=score)
        for method, of_seeds in scores.items() for seed, score in enumerate(of_seeds)
    ]  # fmt: skip
    (axes,) = overview.draw(overview.OVERVIEWS["comparison-vgg13"], cells).axes  # no panel of budgets that have not run
    labels = ["NNI, Slim", "Uniform", "Greedy (AutoSlim)", "CafeNet-E, from Uniform too"]
    assert [label.get_text() for label in axes.get_yticklabels()] == labels
    shown = {int(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "o"}
    assert shown == pytest.approx({1: 0.0, 2: -2.0, 3: 2.0})
    assert [text.get_text() for text in axes.texts] == [" ◂ -35.0"]
    (spread,) = axes.collections  # of what has two seeds and is not the reference
    assert spread.get_segments()[0][:, 0] == pytest.approx([2 - 12.706, 2 + 12.706], abs=0.01)


def test_trainings_that_agree_with_the_truth_lead_above_uniform(
    modules: dict[str, ModuleType], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings, ranking, out = modules["trainings"], modules["ranking"], tmp_path / "out"
    space = build_space(modules["networks"].NETWORKS["vgg13"](0.125), torch.zeros(1, 1, 16, 16))
    monkeypatch.setattr(trainings, "COUNTS", (2, 24))
    monkeypatch.setattr(trainings, "ALONE", 27)
    slopes = np.linspace(-1, 1, len(space.groups))  # some layers are worth their channels, others are not

    def score(widths: Widths) -> float:
        return float((np.log(modules["ceiling"].shares(space, [widths])) @ slopes)[0])

    drawn = enumerate(ranking.draw(space, 40, "10%"))
    alone = [ranking.Alone("vgg13", i, i < 20, 0, 0, score(each)) for i, each in drawn]
    modules["tables"].append_csv(out / "alone.csv", alone)
    cells = out / "small" / "vgg13"
    cells.mkdir(parents=True)
    for seed in range(2):
        searcher = PredictorSearch(evaluations=27, seed=seed)
        searcher.begin(space, space.limits(Budget(max_macs="40%")))
        rows = [f"{'-'.join(map(str, each.bins_kept))},{score(each)},1.0" for each in searcher.ask(27)]
        (cells / f"alone-scratch-{seed}.csv").write_text("\n".join(["bins,valid,seconds", *rows]) + "\n")
    asked = ["--out", str(out), "--widths", "40", "--cells", str(out), "--budgets", "40%", "10%"]
    run(trainings, asked, monkeypatch)
    with (out / "vgg13-trainings.csv").open(newline="") as file:
        found = {(int(row["trainings"]), row["measure"]): float(row["value"]) for row in csv.DictReader(file)}
    measures = ("tau", "tau of the band", "40%", "10%", "mean")
    assert list(found) == [(count, measure) for count in (2, 24) for measure in measures]
    assert found[24, "tau"] > max(found[2, "tau"], 0.8)
    assert found[24, "mean"] > found[2, "mean"] and min(found[24, "40%"], found[24, "10%"]) > 50
    for seed in range(2):  # supernets that know all but the level and the slope
        says = [ranking.Shared("vgg13", one.width, "fixed", seed, one.check / 2 - 1, 0.0) for one in alone]
        modules["tables"].append_csv(out / "shared.csv", says)
    run(trainings, [*asked, "--beside", "fixed"], monkeypatch)
    with (out / "vgg13-trainings-beside-fixed.csv").open(newline="") as file:
        beside = {(int(row["trainings"]), row["measure"]): float(row["value"]) for row in csv.DictReader(file)}
    assert beside[2, "tau"] > max(found[2, "tau"], 0.9) and beside[2, "mean"] > found[2, "mean"]
    ceiling = [*tiny, "--out", str(out), "--times", "2", "--budget", "40%", "--cells", str(out)]
    run(modules["ceiling"], ceiling, monkeypatch)
    highest = json.loads((out / "vgg13-ceiling-40-cells.json").read_text())
    assert highest["regressed"] == [2, 48] and min(highest["tau_of_the_regression"].values()) > 0.9
    channels, uniform = (list(highest[name]["channels"].values()) for name in ("found", "uniform"))
    assert all((one > other) == (slope > 0) for one, other, slope in zip(channels, uniform, slopes, strict=True))
    for unfit in (["--by", "fixed"], ["--by-seeds", "0"]):
        with pytest.raises(SystemExit):
            run(modules["ceiling"], [*ceiling, *unfit], monkeypatch)
    (cells / "alone-scratch-1.csv").unlink()
    with pytest.raises(SystemExit):
        run(trainings, asked, monkeypatch)


def test_agreement_is_kendalls_and_its_intervals_hold_it(
    modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = modules["agreement"]
    monkeypatch.setattr(agreement, "DRAWS", 200)
    assert agreement.tau(np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 4])) == pytest.approx(4 / 6)
    assert agreement.tau(np.ones(4), np.arange(4.0)) == 0
    rng = np.random.default_rng(0)
    one, other, drawn = rng.integers(9, size=(3, 9))
    fast = agreement.drawn_tau(agreement.order(one), agreement.order(other), np.bincount(drawn, minlength=9))
    assert fast == pytest.approx(agreement.tau(one[drawn], other[drawn])) and fast != 0
    truth = rng.normal(size=40)
    truths = truth + 0.1 * rng.normal(size=(4, 40))
    good, bad = truth + 0.3 * rng.normal(size=(3, 40)), truth + 2.0 * rng.normal(size=(3, 40))
    found = agreement.agreement("free", "all", good, truths, (good, bad))
    assert 0.6 < found.low < found.tau < found.high < 1
    assert 0 < found.gain_low < found.gain < found.gain_high
    assert found.tau < found.together < 1  # what errs by chance alone errs less on average
    assert agreement.agreement("free", "all", good[:1], truths).together is None
    same = agreement.agreement("free", "all", good, truths, (good, good))
    assert (same.gain, same.gain_low, same.gain_high) == (0, 0, 0)  # paired: A/A is no difference at all
    assert agreement.agreement("fixed", "all", bad, truths).gain is None
    ranking = modules["ranking"]
    rows = [
        ranking.Shared("vgg13", width, "free", seed, seed + width / 10, 0.0)
        for seed, widths in ((2, 3), (0, 3), (1, 2)) for width in range(widths)
    ]  # fmt: skip
    seeds = agreement.by_seed(rows, "accuracy")  # in order, so that arms are paired by seed; seed 1 is not whole
    assert list(seeds) == [0, 2] and seeds[2].tolist() == [2.0, 2.1, 2.2]
    assert agreement.split_half(truths) > 0.85 and math.isnan(agreement.split_half(truths[:1]))


def test_a_ranking_study_goes_on_and_reports(
    modules: dict[str, ModuleType], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ranking, out = modules["ranking"], tmp_path / "ranking"
    monkeypatch.setattr(modules["agreement"], "DRAWS", 100)
    asked = [*tiny, "--out", str(out), "--widths", "6", "--band", "30%"]
    run(ranking, ["truth", *asked, "--seeds", "0", "1"], monkeypatch)
    rows = modules["tables"].read_csv(out / "alone.csv", ranking.Alone)
    assert [(row.width, row.seed) for row in rows] == [(width, seed) for seed in (0, 1) for width in range(6)]
    assert [row.band for row in rows[:6]] == [True] * 3 + [False] * 3
    dense = ranking.setting_of.__globals__["NETWORKS"]["vgg13"](0.125)
    most = 0.3 * count_macs(dense, torch.zeros(1, 1, 16, 16))
    assert all(0.9 * most < row.macs <= most for row in rows[:3])
    lines = (out / "alone.csv").read_text().splitlines()
    (out / "alone.csv").write_text("\n".join(lines[:-2]) + "\n")  # as if it had been interrupted
    run(ranking, ["truth", *asked, "--seeds", "0", "1"], monkeypatch)
    assert (out / "alone.csv").read_text().splitlines() == lines

    run(modules["ceiling"], [*asked, "--times", "2"], monkeypatch)
    ceiling = json.loads((out / "vgg13-ceiling.json").read_text())
    assert ceiling["regressed"] == [2, 6]
    assert all(-1 <= ceiling[f"tau_of_{who}"]["band"] <= 1 for who in ("the_regression", "evenness"))
    assert all(ceiling[name]["macs"] <= most and len(ceiling[name]["trainings"]) == 2 for name in ("found", "uniform"))
    gains = [ceiling["found"]["trainings"][i]["test"] - ceiling["uniform"]["trainings"][i]["test"] for i in range(2)]
    assert ceiling["points_above_uniform_test"]["mean"] == pytest.approx(100 * np.mean(gains))
    run(modules["ceiling"], [*asked, "--times", "2", "--budget", "50%"], monkeypatch)
    half = json.loads((out / "vgg13-ceiling-50.json").read_text())
    assert half["budget"] == "50%" and most < half["uniform"]["macs"]

    run(ranking, ["supernets", *asked, "--seeds", "0", "--arms", "locally-free", "fixed", "uniform-bins"], monkeypatch)
    capsys.readouterr()
    run(ranking, ["report", "--out", str(out)], monkeypatch)
    assert "all: 6 widths, 2 seeds each" in capsys.readouterr().out
    run(ranking, ["report", "--out", str(out), "--against", "uniform-bins"], monkeypatch)
    lines = (out / "vgg13-accuracy-against-uniform-bins.csv").read_text().splitlines()
    assert [line.startswith("uniform-bins") == line.endswith(",,,") for line in lines[1:]] == [True] * 6
    assert (out / "vgg13-accuracy.csv").read_text().count("\n") == 1 + 2 * 3 and (out / "vgg13-accuracy.svg").exists()

    run(modules["ceiling"], [*asked, "--times", "2", "--by", "fixed"], monkeypatch)
    by = json.loads((out / "vgg13-ceiling-fixed.json").read_text())
    assert (by["by"], by["regressed"], by["uniform"]) == ("fixed", [1, 6], ceiling["uniform"])
    run(modules["ceiling"], [*asked, "--times", "2", "--by", "fixed", "--by-seeds", "0"], monkeypatch)
    assert json.loads((out / "vgg13-ceiling-fixed-0.json").read_text()) == by

    shared = modules["tables"].read_csv(out / "shared.csv", ranking.Shared)
    for arm in ("alone", "fixed"):
        run(ranking, ["supernets", *asked, "--seeds", "0", "1", "--arms", arm], monkeypatch)
    known = asked[asked.index("--out") :]  # what is asked of networks is known by now
    run(modules["effects"], known, monkeypatch)
    with (out / "vgg13-effects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(by, seeds) for by, seeds, group in map(itemgetter("by", "seeds", "group"), rows) if group == "mean"] == [
        (by, "2")
        for by in ("truth", "alone", "fixed")
        for _ in ("half", "twice")  # two seeds are the least
    ]
    assert (out / "vgg13-effects.svg").read_text().count("trained alone, shortly") == 1
    (out / "shared.csv").write_text("\n".join((out / "shared.csv").read_text().splitlines()[: 1 + len(shared)]) + "\n")

    made = [Evolution(population=4, generations=2), RandomSearch(evaluations=5)]
    monkeypatch.setattr(modules["searchers"], "SEARCHERS", [lambda _, searcher=searcher: searcher for searcher in made])
    run(modules["searchers"], [*known, "--times", "2"], monkeypatch)
    with (out / "vgg13-searchers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["evaluations"], row["searches"]) for row in rows] == [
        (arm, evaluations, "2") for arm in ("locally-free", "fixed") for evaluations in ("8", "5")
    ]
