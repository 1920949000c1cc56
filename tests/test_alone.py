"""Networks that are trained one by one in the place of a supernet."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from nni_cafenet import (
    Budget,
    CheckpointMismatch,
    Fixed,
    InvalidBatches,
    PredictorSearch,
    Recipe,
    Result,
    SubNetwork,
    TrainingDiverged,
    cross_entropy,
    linear_stages,
    slice_model,
    train_model,
)
from tests.data import net, shuffled
from tests.snapshots import Snapshot
from tests.test_run import HALF, VALID, assert_same, confidence, killed_score, run, save_always, space
from tests.test_train import Killed

__all__ = ["save_always"]  # the fixture

SEARCHER = PredictorSearch(evaluations=6, first=4, favourites=2)
sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


@cache
def alone() -> Result:
    return run(train_each=2, searcher=SEARCHER, seed=3)


def test_every_network_is_scored_as_its_slice_is_after_a_training_of_its_own() -> None:
    result = alone()
    for found in [*result.history[:2], result.best, result.dense]:
        slim = slice_model(net(), space(), SubNetwork.fixed(found.subnetwork.widths))
        train_model(
            slim, shuffled(), Recipe(2, sgd), loss_fn=cross_entropy, seed=3, progress=False
        )  # fmt: skip
        assert found.score == confidence(slim.eval(), VALID)
    assert len({found.score for found in result.history}) == len(result.history)


def test_what_it_starts_from_is_left_as_it_was() -> None:
    model = net()
    before, random = Snapshot(model), torch.get_rng_state()
    result = run(model=model, train_each=1, searcher=SEARCHER)
    before.assert_unchanged()
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in result.supernet.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_the_result_says_what_its_scores_are_and_has_no_supernet_s_time() -> None:
    summary = alone().report().summary
    assert summary["accuracy_of"] == "networks of the search after 2 epochs each, by score_fn on valid_batches"
    assert set(summary["seconds"]) == {"search"}
    assert alone().best.macs <= alone().limits.max_macs


@pytest.mark.usefixtures("save_always")
def test_killed_in_scoring_it_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(train_each=2, searcher=SEARCHER, seed=3, checkpoint=tmp_path, score_fn=killed_score(6))
    again = run(train_each=2, searcher=SEARCHER, seed=3, checkpoint=tmp_path)
    assert_same(again, alone())
    assert again.predicted == alone().predicted
    for options in ({"train_each": 1}, {}):
        with pytest.raises(CheckpointMismatch, match="train_each"):
            run(**{"searcher": SEARCHER, "seed": 3, "checkpoint": tmp_path, **options})


def test_unless_told_a_predictor_asks_for_them() -> None:
    assert run(train_each=1, searcher=None).predicted is not None


def test_several_budgets_and_stages_work_alike() -> None:
    sweep = run(train_each=2, searcher=SEARCHER, seed=3, budget=None, budgets=[Budget(max_macs="70%"), HALF])
    assert sweep.results[1].history == alone().history
    staged = run(train_each=1, searcher=SEARCHER, stages=linear_stages(HALF, count=2))
    assert staged.best.macs <= alone().limits.max_macs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_each": -1}, "train_each must be a whole number of at least 0, but got -1"),
        ({"train_each": 0.5}, r"train_each must be a whole number of at least 0, but got 0\.5"),
        ({"train_each": 1, "sharing": Fixed(), "distill": True}, "which sharing and distill would be for: give either"),
        ({"train_each": 1, "model": [net(), net()]}, "from one model, but got 2"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_a_training_that_diverges_names_the_widths() -> None:
    with pytest.raises(TrainingDiverged, match=r"widths \[\d+, \d+, \d+\]: the loss is nan at step"):
        run(train_each=1, searcher=SEARCHER, optimizer_fn=partial(torch.optim.SGD, lr=1e30))


def test_a_process_share_of_the_images_is_refused() -> None:
    loader = shuffled()
    share = DataLoader(loader.dataset, batch_size=8, sampler=DistributedSampler(loader.dataset, 2, 0))
    with pytest.raises(InvalidBatches, match="one of 2 shares of the images: give a loader without Distributed"):
        run(train_each=1, searcher=SEARCHER, train_batches=share)
    whole = DataLoader(loader.dataset, batch_size=8, sampler=DistributedSampler(loader.dataset, 1, 0))
    run(train_each=1, searcher=SEARCHER, train_batches=whole)
