"""The baselines, and the choice among networks by training them shortly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nni_cafenet.halving
from nni_cafenet import (
    Budget,
    Candidate,
    RandomSearch,
    Recipe,
    Result,
    SearchSpace,
    SubNetwork,
    Widths,
    accuracy,
    build_space,
    count_macs,
    cross_entropy,
    slice_model,
    train_model,
)
from nni_cafenet.compare import compare_widths
from nni_cafenet.cost import Limits
from nni_cafenet.halving import best_of_random, finalists_of, short_rounds, successive_halving
from nni_cafenet.networks import Network, random_network, uniform_network
from nni_cafenet.report import Report, summary_table
from nni_cafenet.search.searcher import draw_within
from nni_cafenet.train import sgd
from nni_cafenet.trainings import Data
from tests.data import EXAMPLE, batches, net
from tests.snapshots import Snapshot

TRAIN, VALID = batches(4, 16), batches(2, 32, seed=5)


@cache
def space() -> SearchSpace:
    return build_space(net(), EXAMPLE)


def limits() -> Limits:
    return space().limits(Budget(max_macs="40%"))


def test_baselines_fill_the_budget() -> None:
    networks = [
        uniform_network(space(), limits()),
        *(random_network(space(), limits(), seed=seed) for seed in range(5)),
    ]
    assert networks[0].macs > 0.8 * limits().max_macs
    assert all(0.5 * limits().max_macs < network.macs <= limits().max_macs for network in networks)
    assert len({network.subnetwork.widths for network in networks}) > 3
    again = random_network(space(), limits(), seed=3)
    assert again.subnetwork == networks[4].subnetwork


def test_random_goes_on_with_the_best_of_its_draws(tmp_path: Path) -> None:
    scores: list[float] = []

    def scoring(model: torch.nn.Module, valid: object) -> float:
        assert not model.training and valid is VALID
        scores.append(accuracy(model, VALID))
        return scores[-1]

    def best(tries: int) -> tuple[float, int]:
        network, model = best_of_random(
            net, space(), limits(), train_batches=TRAIN, valid_batches=VALID, recipe=Recipe(4), tries=tries,
            loss_fn=cross_entropy, score_fn=scoring, folder=tmp_path, seed=3, progress=False,
        )  # fmt: skip
        assert model.training
        with torch.no_grad():
            return accuracy(model.eval(), VALID), network.macs

    score, macs = best(5)
    assert len(scores) == 5 and score == max(scores) > min(scores)
    assert macs <= limits().max_macs
    saved = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert best(5) == (score, macs)  # from its checkpoints
    assert scores[5:] == scores[:5] and len(saved) == 5
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == saved


def test_no_draw_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tries must be at least 1, but got 0"):
        best_of_random(
            net, space(), limits(), train_batches=TRAIN, valid_batches=VALID, recipe=Recipe(1), tries=0, folder=tmp_path
        )


def test_the_better_half_goes_on_from_where_it_was_and_a_second_call_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = [random_network(space(), limits(), seed=seed) for seed in range(5)]
    quality = dict(zip([network.params for network in networks], [0.1, 0.5, 0.3, 0.4, 0.2], strict=True))
    trained: list[str] = []
    train = nni_cafenet.halving.train_model

    def counting(*arguments: Any, label: str, checkpoint: Any, **named: Any) -> list[float]:
        if checkpoint.load() is None:
            trained.append(label)
        return train(*arguments, label=label, checkpoint=checkpoint, **named)

    def score(model: torch.nn.Module, _: object) -> float:
        return quality[sum(parameter.numel() for parameter in model.parameters())]

    def best() -> tuple[Network, torch.nn.Module]:
        return successive_halving(
            net, networks, rounds=[Recipe(1), Recipe(2), Recipe(1)], train_batches=TRAIN, valid_batches=VALID,
            score_fn=score, folder=tmp_path, seed=7, progress=False,
        )  # fmt: skip

    monkeypatch.setattr(nni_cafenet.halving, "train_model", counting)
    network, model = best()
    assert network is networks[1]
    rounds = [[label[8] for label in trained if f"round {number}/3" in label] for number in (1, 2, 3)]
    assert rounds == [["1", "2", "3", "4", "5"], ["2", "4"], ["2"]]

    alone = networks[1].make(net, seed=8)
    for place, epochs in enumerate((1, 2, 1)):
        train_model(alone, TRAIN, Recipe(epochs), loss_fn=cross_entropy, seed=8 + 5 * place, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), model.parameters(), strict=True))

    trained.clear()
    _, again = best()
    assert not trained
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_networks_inherit_the_weights_that_the_factory_gives(tmp_path: Path) -> None:
    full, networks = net(seed=4), [random_network(space(), limits(), seed=seed) for seed in range(3)]
    before = Snapshot(full)
    network, model = successive_halving(
        partial(copy.deepcopy, full), networks, rounds=[Recipe(0)], train_batches=TRAIN, valid_batches=VALID,
        folder=tmp_path, progress=False,
    )  # fmt: skip
    before.assert_unchanged()
    slices = {each: slice_model(full, each.space, each.subnetwork).eval() for each in networks}
    assert accuracy(model.eval(), VALID) == max(accuracy(slim, VALID) for slim in slices.values())
    inherited = slices[network].parameters()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), inherited, strict=True))


def candidate(widths: Widths, score: float) -> Candidate:
    cost = space().cost
    return Candidate(SubNetwork.fixed(widths), score, cost.macs(widths), cost.params(widths))


def test_finalists_are_the_best_of_a_search_and_uniform() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_within(space(), limits(), rng) for _ in range(6)]
    history = [candidate(widths, score) for widths, score in zip(drawn, (0.3, 0.9, 0.1, 0.8, 0.2, 0.5), strict=True)]
    too_large = candidate(space().largest, 1.0)
    result = Result(
        (*history, history[1], too_large), too_large, history[0], history[0], space(), net(), limits(), {}, 0
    )
    *best, uniform = finalists_of(result, 4)
    assert [network.subnetwork for network in best] == [history[place].subnetwork for place in (1, 3, 5)]
    expected = uniform_network(space(), limits())
    assert uniform.macs == expected.macs and uniform.subnetwork.widths == expected.subnetwork.widths
    assert len(finalists_of(result, 100)) == len(set(drawn)) + 1
    with pytest.raises(ValueError, match="count must be at least 2, a candidate and Uniform, but got 1"):
        finalists_of(result, 1)


def test_short_rounds_are_shares_of_a_recipe() -> None:
    recipe = Recipe(60, partial(sgd, lr=0.3))
    assert [each.epochs for each in short_rounds(recipe)] == [6, 12, 24]
    assert all(each.optimizer_fn is recipe.optimizer_fn for each in short_rounds(recipe))
    assert [each.epochs for each in short_rounds(Recipe(3))] == [1, 1, 1]


def test_the_found_network_is_the_last_of_the_finalists(tmp_path: Path) -> None:
    def report(score: Callable[[torch.nn.Module, object], float], count: int) -> Report:
        return compare_widths(
            net, space(), Data(TRAIN, VALID, VALID), example_inputs=EXAMPLE, budget=Budget(max_macs="40%"),
            recipe=Recipe(1), folder=tmp_path / str(count), runs=1, finalists=count, epochs=1,
            searcher=RandomSearch(evaluations=4), score_fn=score, recalibrate_batches=1, progress=False,
        )  # fmt: skip

    even = uniform_network(space(), limits())

    def as_uniform(model: torch.nn.Module, _: object) -> float:
        """Uniform is the best of those that are trained; in the supernet all look alike."""
        return float(count_macs(model, EXAMPLE) == even.macs and model[0].out_channels == even_channels[0])

    even_channels = list(even.space.channels(even.subnetwork.widths).values())
    halved, trusted = report(as_uniform, 3), report(as_uniform, 1)
    assert list(halved.summary["widths"].values()) == even_channels
    assert halved.summary["slim"]["macs"] == halved.summary["uniform"]["macs"] == even.macs
    assert [row.slim for row in halved.widths] == [row.uniform for row in halved.widths]
    assert list(trusted.summary["widths"].values()) != even_channels
    assert "finalists: 3, the best of them Uniform: slim is Uniform" in summary_table(halved)
    assert "the best of them Uniform" in (tmp_path / "3" / "report.html").read_text()
    assert "finalists" not in summary_table(trusted)
    found = report(lambda model, _: float(len(model[0].weight) != even_channels[0]), 2)
    assert found.summary["finalists"] == "2, the best of them found by the search"
    with pytest.raises(ValueError, match="finalists must be at least 1, but got 0"):
        report(as_uniform, 0)


def test_nothing_to_choose_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 networks and 1 rounds were given: there must be one of each"):
        successive_halving(
            net, [], rounds=[Recipe(1)], train_batches=TRAIN, valid_batches=VALID, folder=tmp_path, progress=False
        )
