"""The baselines that found networks are compared with."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from nni_cafenet import Budget, Recipe, SearchSpace, accuracy, build_space, cross_entropy
from nni_cafenet.compare import best_of_random, random_network, uniform_network
from nni_cafenet.cost import Limits
from tests.data import EXAMPLE, batches, net

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
