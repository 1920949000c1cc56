"""The baselines, and the choice among networks by training them shortly."""

from __future__ import annotations

import copy
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

import nni_cafenet.halving
from nni_cafenet import Budget, Recipe, SearchSpace, accuracy, build_space, cross_entropy, slice_model, train_model
from nni_cafenet.cost import Limits
from nni_cafenet.halving import best_of_random, successive_halving
from nni_cafenet.networks import Network, random_network, uniform_network
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


def test_nothing_to_choose_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 networks and 1 rounds were given: there must be one of each"):
        successive_halving(
            net, [], rounds=[Recipe(1)], train_batches=TRAIN, valid_batches=VALID, folder=tmp_path, progress=False
        )
