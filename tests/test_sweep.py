"""Several budgets from one supernet: each as if alone, for one training."""

from __future__ import annotations

import csv
import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from torch import nn

from nni_cafenet import (
    Budget,
    Candidate,
    Evolution,
    Greedy,
    InfeasibleBudget,
    RandomSearch,
    Result,
    Sweep,
    Widths,
    cross_entropy,
    linear_stages,
    plots,
    search_widths,
)
from nni_cafenet.report import read_report
from nni_cafenet.run import SearchOptions
from nni_cafenet.supernet.evaluate import Scorer
from tests.test_report import images_of
from tests.test_run import HALF, assert_same, killed_score, run, save_always, space, unbroken
from tests.test_train import Killed, killed_at

__all__ = ["save_always"]  # the fixture

BUDGETS = (Budget(max_macs="80%"), HALF, Budget(max_macs="60%", max_params="40%"))


def sweep(**options: Any) -> Sweep:
    return run(**{"budget": None, "budgets": BUDGETS, **options})


@cache
def whole() -> Sweep:
    return sweep()


def assert_same_sweeps(left: Sweep, right: Sweep) -> None:
    for mine, other in zip(left.results, right.results, strict=True):
        assert_same(mine, other)
    assert left.pareto == right.pareto


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[Widths]:
    """The widths of every evaluation, in order."""
    asked: list[Widths] = []
    evaluate = Scorer.evaluate

    def counted(scorer: Scorer, widths: Widths) -> Candidate:
        asked.append(widths)
        return evaluate(scorer, widths)

    monkeypatch.setattr(Scorer, "evaluate", counted)
    return asked


# each as if alone


def test_each_result_is_that_of_a_search_for_its_budget_alone() -> None:
    assert [result.limits for result in whole().results] == [space().limits(budget) for budget in BUDGETS]
    for budget, result in zip(BUDGETS, whole().results, strict=True):
        assert_same(result, run(budget=budget))


@pytest.mark.parametrize("searcher", [RandomSearch(evaluations=5), Greedy(steps=3)], ids=repr)
def test_any_searcher_is_begun_anew_for_each_budget(searcher: Any) -> None:
    several = sweep(searcher=searcher, epochs=0)
    for budget, result in zip(BUDGETS, several.results, strict=True):
        assert_same(result, run(budget=budget, searcher=searcher, epochs=0))


def test_a_sweep_of_one_budget_is_that_search() -> None:
    (result,) = sweep(budgets=[HALF]).results
    assert_same(result, unbroken())


def test_the_order_of_the_budgets_does_not_matter() -> None:
    turned = sweep(budgets=BUDGETS[::-1])
    assert_same_sweeps(Sweep(turned.results[::-1]), whole())


def test_the_supernet_is_trained_once() -> None:
    def steps(**options: Any) -> int:
        calls: list[int] = []

        def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
            calls.append(torch.is_grad_enabled())
            return cross_entropy(model, batch)

        run(loss_fn=loss_fn, searcher=RandomSearch(evaluations=1), **options)
        return sum(calls)

    assert steps(budget=None, budgets=BUDGETS) == steps() > 0
    assert all(result.supernet is whole().supernet for result in whole().results)


@pytest.mark.parametrize("searcher", [Evolution(population=4, generations=2), Greedy(steps=2)], ids=repr)
def test_nothing_is_scored_twice(searcher: Any, evaluated: list[Widths]) -> None:
    found = sweep(searcher=searcher, epochs=0)
    assert len(set(evaluated)) == len(evaluated)
    assert set(evaluated) == {one.subnetwork.widths for result in found.results for one in result.scored}
    assert len(evaluated) < sum(len(result.scored) for result in found.results)


# the front


def test_the_candidates_are_those_of_all_budgets_once() -> None:
    several = sweep(searcher=Greedy(steps=3), epochs=0)
    asked = [found for result in several.results for found in result.history]
    assert set(several.candidates) == set(asked)
    assert len(several.candidates) == len({found.subnetwork.widths for found in asked}) < len(asked)


def test_the_pareto_front_is_what_nothing_beats_in_any_search() -> None:
    expected = [
        found
        for found in whole().candidates
        if not any(
            (other.macs < found.macs and other.score >= found.score)
            or (other.macs == found.macs and other.score > found.score)
            for other in whole().candidates
        )
    ]
    assert list(whole().pareto) == sorted(expected, key=lambda found: found.macs)
    of_each: set[Candidate] = set().union(*(result.pareto for result in whole().results))
    assert set(whole().pareto) <= of_each


def test_wall_time_counts_the_supernet_once() -> None:
    several = whole()
    assert several.seconds["supernet"] == several.results[0].seconds["supernet"]
    assert several.seconds["search"] == sum(result.seconds["search"] for result in several.results)


# resuming


@pytest.mark.parametrize("call", [0, 7, 16])
@pytest.mark.usefixtures("save_always")
def test_a_sweep_killed_in_training_goes_on_as_if_unbroken(call: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        sweep(checkpoint=tmp_path, loss_fn=killed_at(call))
    assert_same_sweeps(sweep(checkpoint=tmp_path), whole())


@pytest.mark.parametrize("call", [0, 5, 20, 27, 40, 52, 59])
@pytest.mark.usefixtures("save_always")
def test_a_sweep_killed_in_any_search_goes_on_as_if_unbroken(call: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        sweep(checkpoint=tmp_path, score_fn=killed_score(call))
    assert_same_sweeps(sweep(checkpoint=tmp_path), whole())


@pytest.mark.usefixtures("save_always")
def test_a_sweep_killed_again_and_again_ends_as_if_unbroken(tmp_path: Path) -> None:
    kills = 0
    for _ in range(40):
        try:
            result = sweep(checkpoint=tmp_path, loss_fn=killed_at(30), score_fn=killed_score(13))
            break
        except Killed:
            kills += 1
    assert kills > 4
    assert_same_sweeps(result, whole())


def test_a_finished_sweep_is_not_repeated_nor_are_its_budgets_beside_others(
    tmp_path: Path, evaluated: list[Widths]
) -> None:
    first = sweep(checkpoint=tmp_path, budgets=BUDGETS[:2])
    labels = [result.limits.label for result in first.results]
    assert {path.name for path in tmp_path.iterdir()} == {"supernet.pt", *(f"search-{label}.pt" for label in labels)}
    evaluated.clear()
    again = sweep(checkpoint=tmp_path, budgets=BUDGETS[:2], loss_fn=killed_at(0), score_fn=killed_score(1))
    assert_same_sweeps(again, first)
    assert evaluated == []
    more = sweep(checkpoint=tmp_path, budgets=(BUDGETS[2], *BUDGETS[:2]))
    assert_same_sweeps(Sweep((*more.results[1:], more.results[0])), whole())
    assert set(evaluated) <= {found.subnetwork.widths for found in more.results[0].scored}


def test_the_supernet_of_a_single_search_is_gone_on_with(tmp_path: Path) -> None:
    run(checkpoint=tmp_path)
    assert_same_sweeps(sweep(checkpoint=tmp_path, loss_fn=without_gradients), whole())


def without_gradients(model: nn.Module, batch: Any) -> torch.Tensor:
    """As in re-estimating BatchNorm, where cross_entropy only runs the forward."""
    assert not torch.is_grad_enabled()
    return cross_entropy(model, batch)


# what callers get wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": None}, "give either budget= or budgets=, but got neither"),
        ({"budget": HALF}, "give either budget= or budgets=, but got both"),
        ({"budgets": []}, "budgets must hold at least one budget, but got none"),
        (
            {"stages": linear_stages(HALF, count=2)},
            r"stages cannot be combined with budgets: .*call search_widths\(budget=\.\.\., stages=\.\.\.\) for each",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep(**options, loss_fn=killed_at(0), score_fn=killed_score(0))


def test_budgets_that_come_to_the_same_are_refused() -> None:
    same = Budget(max_macs=space().limits(HALF).max_macs)
    with pytest.raises(
        ValueError, match=r"budgets must differ, but Budget\(max_macs='50%'.* and Budget.* are both Lim"
    ):
        sweep(budgets=[HALF, BUDGETS[0], same], loss_fn=killed_at(0), score_fn=killed_score(0))


def test_every_budget_is_checked_before_anything_runs() -> None:
    with pytest.raises(InfeasibleBudget, match="smallest possible"):
        sweep(budgets=[HALF, Budget(max_macs="0.1%")], loss_fn=killed_at(0), score_fn=killed_score(0))


# saving


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a saved sweep; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    assert whole().save(folder) == folder / "report.html"
    return folder


def test_each_budget_has_a_report_of_its_own(saved: Path) -> None:
    labels = [result.limits.label for result in whole().results]
    assert {path.name for path in saved.iterdir()} == {"report.html", "pareto.csv", *labels}
    for label, result in zip(labels, whole().results, strict=True):
        assert read_report(saved / label) == result.report()


def test_the_front_is_written_with_channels(saved: Path) -> None:
    with open(saved / "pareto.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(whole().pareto) > 1
    for row, found in zip(rows, whole().pareto, strict=True):
        channels = space().channels(found.subnetwork.widths)
        expected = {"macs": found.macs, "params": found.params, "score": found.score, **channels}
        assert row == {name: str(number) for name, number in expected.items()}


def test_the_page_shows_the_front_and_leads_to_the_reports(saved: Path) -> None:
    html = (saved / "report.html").read_text()
    (drawing,) = images_of(html)
    assert all(text in drawing for text in ("Pareto front", "the best of a budget", "Uniform", "dense", "50%", "80%"))
    links = re.findall(r'(?:src|href)="(?!data:)([^"]*)"', html)
    assert len(links) == len(BUDGETS)
    assert all((saved / unquote(link)).is_file() for link in links)
    for result in whole().results:
        assert f"{result.best.macs:,}" in html
    assert "http" not in html
    assert "<script" not in html


def test_a_budget_of_parameters_alone_is_saved_too(tmp_path: Path) -> None:
    budgets = [Budget(max_params="50%"), Budget(max_params="30%")]
    page = sweep(budgets=budgets, epochs=0, searcher=RandomSearch(evaluations=2)).save(tmp_path)
    assert "parameters (50.0% of dense)" in page.read_text()


def test_the_drawing_is_the_same_every_time_and_needs_no_budget_of_macs() -> None:
    networks = [plots.Point("dense", 90, 0.9), plots.Point("slim", 40, 0.7), plots.Point("uniform", 40, 0.6)]

    def draw(**lines: str) -> bytes:
        return plots.draw_pareto(
            [(40, 0.7), (39, 0.2)], networks, max_macs={int(most[1:]): text for most, text in lines.items()}
        )

    assert draw(m45="50%") == draw(m45="50%") != draw()
    assert b"50%" not in draw()


# types


def test_one_budget_gives_a_result_and_several_a_sweep() -> None:
    assert type(unbroken()) is Result
    assert type(whole()) is Sweep


def test_the_options_of_both_are_those_that_the_function_has() -> None:
    either = {"model", "space", "train_batches", "valid_batches", "budget", "budgets", "stages"}
    assert set(inspect.signature(search_widths).parameters) == either | set(SearchOptions.__annotations__)
