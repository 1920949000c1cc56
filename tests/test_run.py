from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import nni_cafenet.phases
import nni_cafenet.train
from nni_cafenet import (
    Budget,
    CafeNetError,
    Candidate,
    CheckpointMismatch,
    Coordinate,
    Evolution,
    Fixed,
    FullyFree,
    Greedy,
    InfeasibleBudget,
    InvalidBatches,
    InvalidScore,
    LocallyFree,
    PredictorSearch,
    RandomSearch,
    Result,
    Sampled,
    SearchSpace,
    Stage,
    TrainingDiverged,
    UniformBins,
    UnsupportedModel,
    accuracy,
    build_space,
    count_macs,
    cross_entropy,
    linear_stages,
    recalibrate,
    search_widths,
    slice_model,
    uniform_widths,
)
from nni_cafenet.cost import Limits
from nni_cafenet.supernet.objectives import ScoreFn
from nni_cafenet.train import first_batches
from tests.data import EXAMPLE, batches, images, net, shuffled
from tests.snapshots import Snapshot
from tests.test_train import Killed, killed_at

HALF = Budget(max_macs="50%")
VALID = batches(2, 32, seed=5)


@cache
def space() -> SearchSpace:
    return build_space(net(), EXAMPLE, bins=UniformBins(6))


def confidence(model: nn.Module, given: Iterable[Any]) -> float:
    """Finer than accuracy: no two networks are equal by chance."""
    with torch.no_grad():
        return float(torch.stack([-cross_entropy(model, batch) for batch in given]).mean())


def run(**options: Any) -> Result:
    defaults: dict[str, Any] = {
        "train_batches": shuffled(),
        "valid_batches": VALID,
        "budget": HALF,
        "score_fn": confidence,
        "searcher": Evolution(population=4, generations=2, parents=2),
        "epochs": 2,
        "recalibrate_batches": 3,
        "optimizer_fn": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        "progress": False,
    }
    return search_widths(options.pop("model", None) or net(), space(), **{**defaults, **options})


@cache
def unbroken() -> Result:
    return run()


def plain(result: Result) -> list[Candidate]:
    return [*result.history, result.dense, result.uniform, result.random]


def assert_same(left: Result, right: Result) -> None:
    assert left.history == right.history
    assert plain(left) == plain(right)
    assert left.best == right.best
    state = right.supernet.state_dict()
    for name, tensor in left.supernet.state_dict().items():
        assert torch.equal(tensor, state[name]), name


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nni_cafenet.train, "SECONDS_BETWEEN_SAVES", -1.0)
    monkeypatch.setattr(nni_cafenet.phases, "SECONDS_BETWEEN_SAVES", -1.0)


def killed_score(call: int, score_fn: ScoreFn = confidence) -> Callable[[nn.Module, Any], float]:
    calls = iter(range(10**9))

    def score(model: nn.Module, given: Iterable[Any]) -> float:
        if next(calls) == call:
            raise Killed
        return score_fn(model, given)

    return score


# the result


def test_every_candidate_is_within_the_budget_and_none_is_scored_twice() -> None:
    result = unbroken()
    limits = space().limits(HALF)
    assert 4 < len(result.history) <= 8
    assert len({found.subnetwork.widths for found in result.history}) == len(result.history)
    for found in [*result.history, result.uniform, result.random]:
        assert found.macs <= limits.max_macs
        assert found.macs == space().cost.macs(found.subnetwork.widths)
        assert found.params == space().cost.params(found.subnetwork.widths)
    assert result.limits == limits


def test_the_best_has_the_highest_score_and_the_references_are_what_they_say() -> None:
    result = unbroken()
    assert result.best.score == max(found.score for found in result.history)
    assert result.dense.subnetwork.widths == space().largest
    assert result.uniform.subnetwork.widths == uniform_widths(space(), HALF)
    assert result.space is space()
    assert result.seed == 0
    assert set(result.seconds) == {"supernet", "search"}


def test_the_pareto_front_is_what_nothing_beats() -> None:
    result = unbroken()
    expected = [
        found
        for found in result.history
        if not any(
            (other.macs < found.macs and other.score >= found.score)
            or (other.macs == found.macs and other.score > found.score)
            for other in result.history
        )
    ]
    assert list(result.pareto) == sorted(expected, key=lambda found: found.macs)
    assert result.best in result.pareto


def test_of_equal_scores_the_cheapest_is_the_best() -> None:
    result = run(score_fn=lambda model, given: 1.0, epochs=0)
    assert result.best.macs == min(found.macs for found in result.history)


def test_the_exported_model_fits_the_budget_by_fvcore_and_scores_the_same() -> None:
    result = unbroken()
    slim = slice_model(result.supernet, result.space, result.best.subnetwork)
    assert count_macs(slim, EXAMPLE) == result.best.macs <= 0.5 * count_macs(net(), EXAMPLE)
    assert sum(parameter.numel() for parameter in slim.parameters()) == result.best.params
    recalibrate(slim, first_batches(shuffled(), 3, seed=0, model=slim), cross_entropy)
    assert confidence(slim.eval(), VALID) == result.best.score


@pytest.mark.parametrize(
    "budget", [Budget(max_params="40%"), Budget(max_macs="60%", max_params=900), Budget(max_macs=6_000)]
)
def test_any_budget_holds(budget: Budget) -> None:
    result = run(budget=budget, epochs=0, searcher=RandomSearch(evaluations=4))
    slim = slice_model(result.supernet, result.space, result.best.subnetwork)
    limits = space().limits(budget)
    assert limits.max_macs is None or count_macs(slim, EXAMPLE) <= limits.max_macs
    assert limits.max_params is None or sum(p.numel() for p in slim.parameters()) <= limits.max_params


def test_a_search_that_passes_through_large_networks_finds_one_within_the_budget() -> None:
    result = run(epochs=0, searcher=Greedy(steps=3), score_fn=lambda model, given: count_macs(model, EXAMPLE))
    assert result.history[0].macs == result.dense.macs > result.best.macs
    assert result.best in result.admitted
    assert all(found.macs <= result.limits.max_macs for found in result.admitted)
    assert result.report().summary["slim"]["macs"] == result.best.macs


def test_a_search_that_never_comes_within_the_budget_is_an_error() -> None:
    class Stubborn(RandomSearch):
        def begin(self, space: SearchSpace, limits: Limits) -> None:
            super().begin(space, Limits(max_macs=space.cost.macs(space.largest)))

    with pytest.raises(CafeNetError, match=r"asked for no widths within Limits\(max_macs=.*, but for 1 larger"):
        run(epochs=0, searcher=Stubborn(evaluations=2), budget=Budget(max_macs=6_000))


def test_the_supernet_learns() -> None:
    result = run(epochs=12, train_batches=shuffled(8), score_fn=accuracy, seed=1)
    untrained = run(epochs=0, score_fn=accuracy, seed=1)
    assert result.dense.score > 0.8 > untrained.dense.score
    assert result.best.score > untrained.best.score
    assert not result.supernet.training


def test_the_supernet_is_as_it_was_after_no_epochs() -> None:
    result = run(epochs=0)
    assert all(torch.equal(tensor, net().state_dict()[name]) for name, tensor in result.supernet.state_dict().items())


# repeatability, and what is left alone


def test_the_same_seed_gives_the_same_result_and_another_another() -> None:
    assert_same(run(), unbroken())
    other = run(seed=1)
    assert other.history != unbroken().history


def test_the_default_searcher_is_a_predictor_of_the_same_seed() -> None:
    small = {"epochs": 0, "score_fn": lambda model, given: 1.0}
    assert run(searcher=None, seed=3, **small).history == run(searcher=PredictorSearch(seed=3), seed=3, **small).history


def test_the_caller_s_model_is_unchanged() -> None:
    model = net()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = Snapshot(model)
    result = run(model=model)
    before.assert_unchanged()
    assert result.supernet is not model


@pytest.mark.parametrize(
    "valid", [VALID, shuffled(2, seed=5), DataLoader(images(32), batch_size=8)], ids=["list", "shuffled", "loader"]
)
def test_the_global_random_numbers_are_left_alone_and_do_not_matter(valid: Any) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = run(valid_batches=valid)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    torch.manual_seed(2)
    assert_same(run(valid_batches=valid), first)


def test_an_error_leaves_the_model_and_the_random_numbers_alone() -> None:
    model = net()
    snapshot, before = Snapshot(model), torch.get_rng_state()
    for options in ({"loss_fn": killed_at(5)}, {"score_fn": killed_score(3)}):
        with pytest.raises(Killed):
            run(model=model, **options)
        snapshot.assert_unchanged()
        assert torch.equal(torch.get_rng_state(), before)


# resuming


@pytest.mark.parametrize("call", [0, 3, 7, 11, 16, 21])
@pytest.mark.parametrize("by", ["epoch", "step"])
def test_a_search_killed_in_training_goes_on_as_if_unbroken(
    call: int, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "step":
        monkeypatch.setattr(nni_cafenet.train, "SECONDS_BETWEEN_SAVES", -1.0)
    with pytest.raises(Killed):
        run(checkpoint=tmp_path, loss_fn=killed_at(call))
    assert_same(run(checkpoint=tmp_path), unbroken())


@pytest.mark.parametrize("call", [0, 1, 4, 9, 14, 20, 23])
@pytest.mark.usefixtures("save_always")
def test_a_search_killed_in_scoring_goes_on_as_if_unbroken(call: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(checkpoint=tmp_path, score_fn=killed_score(call))
    assert_same(run(checkpoint=tmp_path), unbroken())


@pytest.mark.usefixtures("save_always")
def test_a_search_killed_again_and_again_ends_as_if_unbroken(tmp_path: Path) -> None:
    kills = 0
    for _ in range(30):
        try:
            result = run(checkpoint=tmp_path, loss_fn=killed_at(30), score_fn=killed_score(11))
            break
        except Killed:
            kills += 1
    assert kills > 2
    assert_same(result, unbroken())


@pytest.mark.parametrize("searcher", [RandomSearch(evaluations=6), Evolution(population=3, generations=2)], ids=repr)
@pytest.mark.usefixtures("save_always")
def test_any_searcher_is_resumed_where_it_was(searcher: Any, tmp_path: Path) -> None:
    whole = run(searcher=searcher)
    with pytest.raises(Killed):
        run(searcher=searcher, checkpoint=tmp_path, score_fn=killed_score(16))
    scored: list[int] = []

    def counted(model: nn.Module, given: Iterable[Any]) -> float:
        scored.append(1)
        return confidence(model, given)

    assert_same(run(searcher=searcher, checkpoint=tmp_path, score_fn=counted), whole)
    assert len(scored) < 1 + 3 * (3 + 6) - 10


def test_a_sandwich_that_distils_is_another_search_and_is_resumed_where_it_was(tmp_path: Path) -> None:
    whole = run(sandwich=True, distill=True)
    assert whole.dense.score != unbroken().dense.score
    with pytest.raises(Killed):
        run(sandwich=True, distill=True, checkpoint=tmp_path, loss_fn=killed_at(17))
    assert_same(run(sandwich=True, distill=True, checkpoint=tmp_path), whole)
    with pytest.raises(CheckpointMismatch, match="sandwich"):
        run(checkpoint=tmp_path)


def test_a_supernet_of_averaged_weights_is_another_search_and_is_resumed_where_it_was(tmp_path: Path) -> None:
    whole = run(ema=0.9)
    assert whole.dense.score != unbroken().dense.score
    with pytest.raises(Killed):
        run(ema=0.9, checkpoint=tmp_path, loss_fn=killed_at(17))
    assert_same(run(ema=0.9, checkpoint=tmp_path), whole)
    with pytest.raises(CheckpointMismatch, match=r"ema: 0\.9 there, 0\.0 here"):
        run(checkpoint=tmp_path)
    with pytest.raises(ValueError, match="ema must be at least 0"):
        run(ema=1)


# in stages


def staged(**options: Any) -> Result:
    return run(stages=linear_stages(HALF, count=2), **options)


def test_every_stage_is_within_the_network_that_the_one_before_found(tmp_path: Path) -> None:
    result = staged(checkpoint=tmp_path)
    first = run(stages=linear_stages(HALF, count=2)[:1], budget=Budget(max_macs=stage_macs(1)))
    outer = slice_model(first.supernet, first.space, first.best.subnetwork)
    assert [group.channels for group in result.space.groups] == list(
        first.space.channels(first.best.subnetwork.widths).values()
    )
    assert first.best.macs <= stage_macs(1)
    assert result.best.macs <= space().limits(HALF).max_macs < first.best.macs
    slim = slice_model(result.supernet, result.space, result.best.subnetwork)
    assert count_macs(slim, EXAMPLE) == result.best.macs
    assert all(a.shape >= b.shape for a, b in zip(outer.parameters(), slim.parameters(), strict=True))
    assert result.dense == first.dense
    assert {path.name for path in tmp_path.iterdir()} == {"stage-1", "stage-2"}
    assert [row.full for row in result.report().widths] == [group.channels for group in space().groups]


def stage_macs(number: int) -> int:
    return linear_stages(HALF, count=2)[number - 1].limits(space()).max_macs


def test_a_stage_s_best_network_scores_as_the_exported_one() -> None:
    result = staged()
    slim = slice_model(result.supernet, result.space, result.best.subnetwork).train()
    recalibrate(slim, first_batches(shuffled(), 3, seed=0, model=slim), cross_entropy)
    assert confidence(slim.eval(), VALID) == result.best.score


@pytest.mark.parametrize("call", [5, 40, 60])
@pytest.mark.usefixtures("save_always")
def test_a_search_in_stages_goes_on_as_if_unbroken(call: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        staged(checkpoint=tmp_path, loss_fn=killed_at(call))
    assert_same(staged(checkpoint=tmp_path), staged())


def test_a_stage_has_epochs_and_evaluations_of_its_own() -> None:
    losses: list[int] = []

    def counted(model: nn.Module, batch: Any) -> torch.Tensor:
        losses.append(1)
        return cross_entropy(model, batch)

    stages = (Stage(HALF, 0.5, epochs=0), Stage(HALF, epochs=1, evaluations=3))
    result = run(stages=stages, loss_fn=counted, candidates="sampled:1", recalibrate_batches=1)
    assert len(result.history) == 3
    trained = len(losses)
    losses.clear()
    run(stages=(Stage(HALF, 0.5, epochs=0), Stage(HALF, epochs=0, evaluations=3)), loss_fn=counted,
        candidates="sampled:1", recalibrate_batches=1)  # fmt: skip
    assert trained - len(losses) == len(list(shuffled()))


def test_a_predictor_plans_for_what_a_stage_allows() -> None:
    small = {"epochs": 0, "score_fn": lambda model, given: count_macs(model, EXAMPLE)}
    result = run(stages=(Stage(HALF, evaluations=18),), searcher=PredictorSearch(evaluations=400), **small)
    planned = run(stages=(Stage(HALF),), searcher=PredictorSearch(evaluations=18), **small)
    assert len(result.history) == 18 and (result.history, result.predicted) == (planned.history, planned.predicted)


def test_stages_that_end_elsewhere_than_at_the_budget_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the last stage must end at the budget, .*, but ends at Limits"):
        run(stages=linear_stages(Budget(max_macs="70%"), count=2))


def test_a_finished_search_is_not_repeated(tmp_path: Path) -> None:
    first = run(checkpoint=tmp_path)
    assert_same(first, unbroken())
    again = run(checkpoint=tmp_path, loss_fn=killed_at(0), score_fn=killed_score(1))
    assert_same(again, first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"epochs": 3}, "epochs: 2 there, 3 here"),
        ({"sharing": Fixed()}, r"sharing: 'LocallyFree\(offset=1\)' there, 'Fixed\(\)' here"),
        ({"candidates": "tied"}, "candidates: .*Tied"),
        ({"random_share": 0.5}, "random_share: 0.0 there, 0.5 here"),
        ({"train_batches": batches(3)}, "steps: 8 there, 6 here"),
        ({"budget": Budget(max_macs="60%")}, "limits: "),
        ({"searcher": RandomSearch(evaluations=3)}, "searcher: .*Evolution.* there, .*RandomSearch"),
        ({"recalibrate_batches": 2}, "recalibrate_batches: 3 there, 2 here"),
        ({"score_candidates": "coordinate"}, "score_candidates: .*Coordinate"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_other_settings_is_refused(options: dict[str, Any], message: str, finished: Path) -> None:
    with pytest.raises(CheckpointMismatch, match=f"belongs to other settings.*{message}"):
        run(checkpoint=finished, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a finished search; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    run(checkpoint=folder)
    return folder


def test_a_checkpoint_of_another_space_is_refused(finished: Path) -> None:
    other = build_space(net(), EXAMPLE, bins=UniformBins(2))
    with pytest.raises(
        CheckpointMismatch, match=f"space: '{space().fingerprint()}' there, '{other.fingerprint()}' here"
    ):
        search_widths(
            net(), other, train_batches=batches(), valid_batches=VALID, budget=HALF, epochs=2, checkpoint=finished
        )


@pytest.mark.parametrize("name", ["supernet.pt", "search.pt"])
def test_a_damaged_checkpoint_is_refused_with_its_path(name: str, tmp_path: Path) -> None:
    run(checkpoint=tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointMismatch, match=f"{name} is damaged"):
        run(checkpoint=tmp_path)
    assert path.stat().st_size == 200


def test_another_budget_reuses_the_supernet_in_another_search_folder(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "supernet.pt").write_bytes((finished / "supernet.pt").read_bytes())
    wide = run(checkpoint=tmp_path, budget=Budget(max_macs="80%"))
    assert_same(wide, run(budget=Budget(max_macs="80%")))


# what callers get wrong


def test_an_infeasible_budget_is_refused_before_anything_runs() -> None:
    with pytest.raises(InfeasibleBudget, match="smallest possible"):
        run(budget=Budget(max_macs="0.1%"), loss_fn=killed_at(0), score_fn=killed_score(0))


def test_a_space_of_another_model_is_refused_before_anything_runs() -> None:
    with pytest.raises(UnsupportedModel, match="space built from"):
        run(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), loss_fn=killed_at(0), score_fn=killed_score(0))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_random_share_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="random_share must be 0 to 1, but got"):
        run(random_share=share)


def test_recalibrating_on_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="recalibrate_batches must be at least 1, but got 0"):
        run(recalibrate_batches=0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"sharing": "locally_free"}, r"sharing must be an object .* LocallyFree\(offset=1\), but got 'locally_free'"),
        ({"sharing": LocallyFree}, "sharing must be an object .* but got <class"),
        ({"searcher": "evolution"}, r"searcher must be an object .* Evolution\(seed=0\), but got 'evolution'"),
        ({"searcher": RandomSearch}, "searcher must be an object .* but got <class"),
        ({"candidates": Sampled}, r"candidates must be an object such as Sampled\(3\), or a name of one, but got"),
    ],
)
def test_names_and_classes_in_the_place_of_parts_are_refused(part: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        run(**part)


def test_training_by_coordinate_is_refused() -> None:
    with pytest.raises(ValueError, match="Coordinate candidates are for scoring only"):
        run(candidates=Coordinate())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_diverged_loss_names_the_step_and_the_widths(bad: float) -> None:
    steps = iter(range(1000))

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return cross_entropy(model, batch) * (bad if next(steps) >= 4 else 1)

    with pytest.raises(
        TrainingDiverged, match=r"supernet: the loss is (nan|inf) at step \d, at the widths \{'0': \d, '4': \d"
    ):
        run(loss_fn=loss_fn, sharing=Fixed())


@pytest.mark.parametrize("name", ["train_batches", "valid_batches"])
@pytest.mark.parametrize("kind", ["empty", "generator", "used up"])
def test_a_loader_that_yields_nothing_or_once_is_refused(name: str, kind: str) -> None:
    loader: Any = [] if kind == "empty" else iter(batches())
    if kind == "used up":
        list(loader)
    with pytest.raises(InvalidBatches, match=r"yields no(thing| batch)|generator"):
        run(**{name: loader})


@pytest.mark.parametrize("score", [None, "good", [0.5], float("nan"), float("inf"), torch.ones(3)])
def test_a_score_that_is_no_number_is_refused_before_training(score: Any) -> None:
    with pytest.raises(InvalidScore, match=r"score_fn\(model, batches\) must return a"):
        run(score_fn=lambda model, given: score, loss_fn=killed_at(0))


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(InvalidBatches, match=r"must return a scalar tensor, but it returned a tensor of shape \(16,\)"):
        run(loss_fn=nn.CrossEntropyLoss(reduction="none"))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy])
def test_torch_losses_are_accepted(loss: Any) -> None:
    assert_same(run(loss_fn=loss), unbroken())


# options


def test_batches_of_any_structure_are_handed_to_the_caller_s_functions() -> None:
    train = [{"image": x, "label": y} for x, y in batches()]

    def loss_fn(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(model(batch["image"]), batch["label"])

    def score_fn(model: nn.Module, given: list[dict[str, torch.Tensor]]) -> float:
        with torch.no_grad():
            return -float(sum(loss_fn(model, batch) for batch in given))

    result = run(train_batches=train, valid_batches=train, loss_fn=loss_fn, score_fn=score_fn)
    assert 4 < len(result.history) <= 8


def counted_losses(**options: Any) -> int:
    """Forwards in training alone: scoring runs without gradients."""
    calls: list[int] = []

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            calls.append(1)
        return cross_entropy(model, batch)

    run(loss_fn=loss_fn, searcher=RandomSearch(evaluations=1), **options)
    return len(calls)


def test_random_share_trains_one_random_candidate_in_the_first_steps() -> None:
    steps = 2 * 4
    assert counted_losses(random_share=1.0) == steps
    half, none = counted_losses(random_share=0.5), counted_losses(random_share=0.0)
    assert steps < half < none <= 3 * steps


def test_the_fixed_pattern_trains_one_candidate_a_step() -> None:
    assert counted_losses(sharing=Fixed()) == 2 * 4


def test_random_share_changes_what_is_learned() -> None:
    result = run(random_share=1.0)
    assert not torch.equal(result.supernet[4].weight, unbroken().supernet[4].weight)


@pytest.mark.parametrize("sharing", [Fixed(), LocallyFree(offset=0), LocallyFree(offset=2), FullyFree()], ids=repr)
@pytest.mark.parametrize(("candidates", "scoring"), [("tied", None), ("sampled:2", "coordinate"), ("sampled", "tied")])
def test_every_pattern_and_way_of_choosing_runs(sharing: Any, candidates: str, scoring: str | None) -> None:
    result = run(
        sharing=sharing, candidates=candidates, score_candidates=scoring, searcher=RandomSearch(evaluations=2), epochs=1
    )
    assert len(result.history) == 2
    for found in result.history:
        for kept, bins in zip(found.subnetwork.kept, space().bins, strict=True):
            assert isinstance(sharing, FullyFree) or kept in sharing.choices(bins, len(kept))


def test_offset_0_is_the_fixed_pattern() -> None:
    assert_same(run(sharing=LocallyFree(offset=0)), run(sharing=Fixed()))


def test_parameters_without_gradients_are_not_trained() -> None:
    model = net()
    model[0].requires_grad_(False)
    result = run(model=model)
    assert torch.equal(result.supernet[0].weight, model[0].weight)
    assert not result.supernet[0].weight.requires_grad
    assert not torch.equal(result.supernet[4].weight, model[4].weight)


def test_what_a_custom_searcher_asks_is_scored() -> None:
    class Smallest:
        """Asks for the smallest network and ends."""

        evaluations = 1

        def begin(self, space: SearchSpace, limits: Any) -> None:
            self.left = [space.smallest]

        def ask(self, n: int = 1) -> list[Any]:
            asked, self.left = self.left[:n], self.left[n:]
            return asked

        def tell(self, candidates: Any) -> None:
            self.told = candidates

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    searcher = Smallest()
    result = run(searcher=searcher, epochs=0)
    assert [found.subnetwork.widths for found in result.history] == [space().smallest]
    assert searcher.told == [result.best]
