"""Several supernets: each is the one that a search of its own would train, and a score is the mean of theirs."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nni_cafenet import (
    Budget,
    CheckpointMismatch,
    Evolution,
    LocallyFree,
    PredictorSearch,
    Result,
    Sampled,
    Supernet,
    cross_entropy,
    linear_stages,
)
from nni_cafenet.supernet.evaluate import Scorer
from nni_cafenet.train import first_batches
from tests.data import net, shuffled
from tests.snapshots import Snapshot
from tests.test_run import HALF, VALID, assert_same, confidence, killed_score, run, save_always, space
from tests.test_train import Killed, killed_at

__all__ = ["save_always"]  # the fixture


def three() -> list[nn.Module]:
    """Of initialisations of their own."""
    models = [net() for _ in range(3)]
    for seed, model in enumerate(models[1:], 1):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return models


@cache
def together() -> Result:
    return run(model=three(), seed=2)


def test_each_supernet_is_that_of_a_search_with_its_seed_and_a_score_is_the_mean_of_theirs() -> None:
    result = together()
    alone = [run(model=model, seed=3 * 2 + number) for number, model in enumerate(three())]
    for name, tensor in alone[0].supernet.state_dict().items():
        assert torch.equal(tensor, result.supernet.state_dict()[name])
    recalibration = first_batches(shuffled(), 3, seed=2, model=net())
    choices = (LocallyFree(offset=1), Sampled())
    scorers = [
        Scorer(Supernet(one.supernet, space()), VALID, confidence, recalibration, cross_entropy, *choices, 2)
        for one in alone
    ]
    for found in result.scored:
        each = [scorer.score(found.subnetwork) for scorer in scorers]
        assert len(set(each)) == 3
        assert found.score == statistics.fmean(each)


def test_widths_are_worth_what_the_best_candidate_is_worth_on_average() -> None:
    models = [Supernet(model.eval(), space()) for model in three()]
    recalibration = first_batches(shuffled(), 2, seed=0, model=net())
    sharing, candidates = LocallyFree(offset=1), Sampled(4)
    scorer = Scorer(models[0], VALID, confidence, recalibration, cross_entropy, sharing, candidates, 0, models[1:])
    widths = space().sample(np.random.default_rng(3)).widths
    listed = candidates.listed(space(), widths, sharing, np.random.default_rng([0, *widths.bins_kept]))
    of_each = [replace(scorer, supernet=one, others=()) for one in models]
    means = {sub: statistics.fmean(each.score(sub) for each in of_each) for sub in listed}
    found = scorer.evaluate(widths)
    assert len(listed) > 1
    assert found.score == max(means.values()) == means[found.subnetwork]


def test_one_model_in_a_list_is_that_model() -> None:
    assert_same(run(model=[net()]), run(model=net()))


def test_the_caller_s_models_are_unchanged() -> None:
    models = three()
    before = [Snapshot(model) for model in models]
    run(model=models, epochs=1)
    for snapshot in before:
        snapshot.assert_unchanged()


@pytest.mark.parametrize("call", [3, 30, 50, 70])
@pytest.mark.usefixtures("save_always")
def test_killed_in_the_training_of_any_of_them_it_goes_on_as_if_unbroken(call: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(model=three(), seed=2, checkpoint=tmp_path, loss_fn=killed_at(call))
    assert_same(run(model=three(), seed=2, checkpoint=tmp_path), together())


@pytest.mark.usefixtures("save_always")
def test_killed_in_scoring_it_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(model=three(), seed=2, checkpoint=tmp_path, score_fn=killed_score(40))
    assert_same(run(model=three(), seed=2, checkpoint=tmp_path), together())
    assert {path.stem for path in tmp_path.iterdir()} == {"supernet", "supernet-2", "supernet-3", "search"}
    with pytest.raises(CheckpointMismatch, match="seed: 6 there, 4 here"):
        run(model=three()[:2], seed=2, checkpoint=tmp_path)


def test_several_budgets_and_stages_are_searched_in_all_of_them() -> None:
    sweep = run(model=three(), seed=2, budget=None, budgets=[HALF, Budget(max_macs="70%")])
    assert sweep.results[0].history == together().history
    staged = run(model=three(), seed=2, stages=linear_stages(HALF, count=2))
    assert staged.best.macs <= together().limits.max_macs
    assert staged.history != run(model=three()[0], seed=2, stages=linear_stages(HALF, count=2)).history


def lottery(model: nn.Module, given: Any) -> float:
    """Nothing but noise, the same whenever the same sub-network is asked about."""
    shapes = [size for weight in model.parameters() for size in weight.shape]
    return float(np.random.default_rng(shapes).normal())


def test_a_result_is_ranked_by_what_its_searcher_predicts(tmp_path: Path) -> None:
    searcher = PredictorSearch(evaluations=16, first=12, between=(0.2, 1), favourites=2)
    options: dict[str, Any] = {"searcher": searcher, "epochs": 0, "score_fn": lottery}
    result = run(**options)
    assert result.predicted is not None
    values = dict(zip(result.history, result.predicted, strict=True))
    assert 1 < len(result.admitted) < len(result.history)
    assert list(result.ranked) == sorted(result.admitted, key=lambda found: (-values[found], found.macs))
    assert result.best == result.ranked[0]
    assert result.best.score != max(found.score for found in result.admitted)
    with pytest.raises(Killed):
        run(**{**options, "score_fn": killed_score(20, lottery)}, checkpoint=tmp_path)
    again = run(**options, checkpoint=tmp_path)
    assert_same(again, result)
    assert again.predicted == result.predicted


def test_no_models_and_others_than_the_space_s_are_refused() -> None:
    with pytest.raises(ValueError, match="model must be a model, or several, but got none"):
        run(model=iter([]))
    for wrong in ("resnet18", net, [net(), None]):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, or several, but got "):
            run(model=wrong)
    other = net()
    other[0] = nn.Conv2d(1, 5, 3)
    with pytest.raises(ValueError, match=r"must be of one architecture, .* 2 is \[5, 1, 3, 3\], and of model 1 "):
        run(model=[net(), other])


def test_evolution_takes_scores_as_they_are() -> None:
    assert run(epochs=0, searcher=Evolution(population=3, generations=1)).predicted is None
