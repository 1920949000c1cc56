from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import (
    Coordinate,
    FullyFree,
    InvalidScore,
    LocallyFree,
    Sampled,
    SharingPattern,
    SubNetwork,
    Supernet,
    Tied,
    accuracy,
    recalibrate,
    slice_model,
)
from nni_cafenet.supernet.candidates import Candidates
from nni_cafenet.supernet.evaluate import Scorer
from tests.built import built, some_subnetworks
from tests.models import CLASSES, NETWORKS, example
from tests.snapshots import Snapshot

TRAIN = [(example(8, seed=seed), torch.arange(8) % CLASSES) for seed in range(3)]
VALID = [(example(16, seed=seed), torch.arange(16) % CLASSES) for seed in (7, 8)]


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def confidence(model: nn.Module, batches: Iterable[Any]) -> float:
    """Finer than accuracy: no two networks are equal by chance."""
    assert not model.training
    return float(torch.stack([-loss_fn(model, batch) for batch in batches]).mean())


def scorer(
    supernet: Supernet,
    *,
    candidates: Candidates | None = None,
    sharing: SharingPattern | None = None,
    score_fn: Any = confidence,
    seed: int = 0,
) -> Scorer:
    sharing, candidates = sharing or LocallyFree(offset=1), candidates or Sampled()
    return Scorer(supernet, VALID, score_fn, TRAIN, loss_fn, sharing, candidates, seed)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_supernet_s_score_is_the_exported_model_s_exactly(name: str) -> None:
    model, space = built(name)
    supernet = Supernet(model, space)
    ours = scorer(supernet)
    for sub in some_subnetworks(space, 2):
        slim = slice_model(model, space, sub).eval()
        recalibrate(slim, TRAIN, loss_fn)
        with torch.no_grad():
            assert ours.score(sub) == confidence(slim, VALID)


@pytest.mark.parametrize("sharing", [LocallyFree(offset=2), FullyFree()])
@pytest.mark.parametrize("candidates", [Tied(), Sampled(4)])
def test_widths_are_worth_what_their_best_candidate_is_worth(candidates: Candidates, sharing: SharingPattern) -> None:
    supernet = Supernet(*built("residual"))
    ours = scorer(supernet, candidates=candidates, sharing=sharing)
    for seed in range(5):
        widths = supernet.space.sample(np.random.default_rng(seed)).widths
        found = ours.evaluate(widths)
        rng = np.random.default_rng([0, *widths.bins_kept])
        scores = {sub: ours.score(sub) for sub in candidates.listed(supernet.space, widths, sharing, rng)}
        assert found.score == max(scores.values()) == scores[found.subnetwork]
        assert found.subnetwork.widths == widths
        assert (found.macs, found.params) == (supernet.space.cost.macs(widths), supernet.space.cost.params(widths))


def test_coordinate_is_never_worse_than_the_fixed_pattern() -> None:
    supernet = Supernet(*built("residual"))
    ours = scorer(supernet, candidates=Coordinate())
    for seed in range(3):
        widths = supernet.space.sample(np.random.default_rng(seed)).widths
        assert ours.evaluate(widths).score >= ours.score(SubNetwork.fixed(widths))


def test_scores_do_not_depend_on_the_order_of_questions() -> None:
    supernet = Supernet(*built("residual"))
    asked = [supernet.space.sample(np.random.default_rng(seed)).widths for seed in range(6)]
    forward = [scorer(supernet).evaluate(widths) for widths in asked]
    ours = scorer(supernet)
    assert [ours.evaluate(widths) for widths in reversed(asked)] == forward[::-1]
    assert [ours.evaluate(widths) for widths in asked] == forward


def test_another_seed_draws_other_candidates() -> None:
    supernet = Supernet(*built("residual"))
    asked = [supernet.space.sample(np.random.default_rng(seed)).widths for seed in range(8)]
    first = [scorer(supernet).evaluate(widths).subnetwork for widths in asked]
    assert first != [scorer(supernet, seed=1).evaluate(widths).subnetwork for widths in asked]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_scoring_leaves_the_supernet_as_it_was(train: bool) -> None:
    supernet = Supernet(*built("residual"))
    supernet.model.train(train)
    before = Snapshot(supernet.model)
    random = torch.get_rng_state()
    scorer(supernet, score_fn=accuracy).evaluate(supernet.space.smallest)
    before.assert_unchanged()
    assert torch.equal(torch.get_rng_state(), random)


def test_a_broken_score_leaves_the_supernet_as_it_was() -> None:
    supernet = Supernet(*built("residual"))
    before = Snapshot(supernet.model)
    with pytest.raises(InvalidScore, match="must return a number, higher is better, but it returned None"):
        scorer(supernet, score_fn=lambda model, batches: None).evaluate(supernet.space.smallest)
    with pytest.raises(InvalidScore, match="must return a finite number, but it returned nan"):
        scorer(supernet, score_fn=lambda model, batches: float("nan")).evaluate(supernet.space.smallest)
    before.assert_unchanged()


def test_recalibration_is_what_scores_are_taken_after() -> None:
    supernet = Supernet(*built("residual"))
    sub = some_subnetworks(supernet.space)[2]
    with supernet.running(sub) as model, torch.no_grad():
        raw = confidence(model.eval(), VALID)
    assert scorer(supernet).score(sub) != raw
