from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import (
    Budget,
    Coordinate,
    Fixed,
    InvalidBatches,
    LocallyFree,
    Sampled,
    SubNetwork,
    Supernet,
    Tied,
    TrainingDiverged,
    slice_model,
)
from nni_cafenet.search.searcher import draw_within
from nni_cafenet.supernet.minmin import MinMin, minmin_loss
from tests.built import built
from tests.models import CLASSES, example

BATCH = (example(6), torch.arange(6) % CLASSES)


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def candidates(supernet: Supernet, seed: int, count: int = 4) -> list[SubNetwork]:
    rng = np.random.default_rng(seed)
    widths = supernet.space.sample(rng).widths
    return Sampled(count).listed(supernet.space, widths, LocallyFree(offset=2), rng)


@pytest.fixture(params=["plain", "residual", "grouped", "frozen"])
def supernet(request: pytest.FixtureRequest) -> Supernet:
    return Supernet(*built(request.param))


def test_the_candidate_of_the_smallest_loss_learns(supernet: Supernet) -> None:
    chosen = set()
    for seed in range(12):
        listed = candidates(supernet, seed)
        with torch.no_grad():
            losses = [float(loss_fn(slice_model(supernet.model, supernet.space, sub), BATCH)) for sub in listed]
        sub, loss = minmin_loss(supernet, listed, BATCH, loss_fn)
        assert sub == listed[int(np.argmin(losses))]
        assert float(loss.detach()) == pytest.approx(min(losses), rel=1e-5)
        chosen.add(int(np.argmin(losses)))
    assert len(chosen) > 1


def test_the_gradient_is_that_of_training_the_chosen_one_alone(supernet: Supernet) -> None:
    model = supernet.model
    for seed in range(4):
        model.zero_grad()
        sub, loss = minmin_loss(supernet, candidates(supernet, seed), BATCH, loss_fn)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        twin = Supernet(copy.deepcopy(model), supernet.space)
        twin.model.zero_grad()
        with twin.running(sub):
            loss_fn(twin.model, BATCH).backward()
        for name, parameter in twin.model.named_parameters():
            expected = parameter.grad
            assert (gradients[name] is None) == (expected is None), name
            assert expected is None or torch.equal(gradients[name], expected), name


def test_one_forward_a_candidate_and_no_other(supernet: Supernet) -> None:
    calls = []
    listed = candidates(supernet, 1)

    def counted(model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        return loss_fn(model, batch)

    minmin_loss(supernet, listed, BATCH, counted)
    assert len(calls) == len(listed)


def test_the_model_s_statistics_are_left_alone(supernet: Supernet) -> None:
    before = {name: buffer.clone() for name, buffer in supernet.model.named_buffers()}
    minmin_loss(supernet, candidates(supernet, 1), BATCH, loss_fn)
    assert all(torch.equal(buffer, before[name]) for name, buffer in supernet.model.named_buffers())


def test_a_nan_is_returned_at_once() -> None:
    supernet = Supernet(*built("plain"))
    listed = candidates(supernet, 1)
    calls = []

    def second_is_nan(model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        return loss_fn(model, batch) * (torch.nan if len(calls) == 2 else 1)

    sub, loss = minmin_loss(supernet, listed, BATCH, second_is_nan)
    assert loss.isnan()
    assert sub == listed[1]
    assert len(calls) == 2


def test_an_infinite_loss_is_passed_over_for_a_finite_one() -> None:
    supernet = Supernet(*built("plain"))
    listed = candidates(supernet, 1)
    calls = []

    def first_is_infinite(model: nn.Module, batch: Any) -> torch.Tensor:
        calls.append(1)
        return loss_fn(model, batch) * (torch.inf if len(calls) == 1 else 1)

    sub, loss = minmin_loss(supernet, listed, BATCH, first_is_infinite)
    assert torch.isfinite(loss)
    assert sub in listed[1:]


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    supernet = Supernet(*built("plain"))
    with pytest.raises(InvalidBatches, match=r"a scalar tensor, but it returned a tensor of shape \(6, 5\)"):
        minmin_loss(supernet, candidates(supernet, 1), BATCH, lambda model, batch: model(batch[0]))


def test_a_loss_that_no_gradient_can_flow_from_is_refused() -> None:
    supernet = Supernet(*built("plain"))
    for cut in (lambda loss: loss.detach(), lambda loss: torch.tensor(float(loss.detach()))):
        with pytest.raises(InvalidBatches, match="gradient"):
            minmin_loss(supernet, candidates(supernet, 1), BATCH, lambda model, batch: cut(loss_fn(model, batch)))  # noqa: B023


# a whole training's steps


def test_a_step_s_draws_depend_on_its_number_and_the_seed_alone() -> None:
    supernet = Supernet(*built("residual"))

    def losses(seed: int, numbers: list[int]) -> list[float]:
        training = MinMin(supernet, LocallyFree(), Sampled(), seed=seed)
        return [float(training.loss(BATCH, number, loss_fn).detach()) for number in numbers]

    forward = losses(0, [0, 1, 2, 3])
    assert losses(0, [3, 2, 1, 0]) == forward[::-1]
    assert losses(1, [0, 1, 2, 3]) != forward
    assert len(set(forward)) > 2


def test_random_steps_train_a_random_candidate_and_then_the_best() -> None:
    supernet = Supernet(*built("residual"))
    ran: list[int] = []

    def counted(model: nn.Module, batch: Any) -> torch.Tensor:
        ran[-1] += 1
        return loss_fn(model, batch)

    training = MinMin(supernet, LocallyFree(), Tied(), random_steps=10)
    for number in range(20):
        ran.append(0)
        training.loss(BATCH, number, counted)
    assert ran[:10] == [1] * 10
    assert max(ran[10:]) == 3
    assert sum(ran[10:]) > 20


def test_the_random_candidate_is_not_always_the_first() -> None:
    supernet = Supernet(*built("residual"))
    training = MinMin(supernet, LocallyFree(), Tied(), random_steps=100)
    fixed = MinMin(supernet, Fixed(), Tied(), random_steps=100)
    same = [
        float(training.loss(BATCH, number, loss_fn).detach()) == float(fixed.loss(BATCH, number, loss_fn).detach())
        for number in range(12)
    ]
    assert True in same
    assert False in same


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 6), (0.5, 12, 28), (1.0, 40, 40)])
def test_widths_near_a_budget_fill_it(share: float, least: int, most: int) -> None:
    """One bin more in any group would break the limits; uniform draws do that by chance, and seldom."""
    supernet = Supernet(*built("residual"))
    space = supernet.space
    limits = space.limits(Budget(max_macs="40%"))
    ran: list[int] = []
    training = MinMin(supernet, Fixed(), Sampled(1), near=limits, near_share=share)

    def counted(model: nn.Module, batch: Any) -> torch.Tensor:
        ran.append(int(sum(parameter.numel() for parameter in model.parameters())))
        return loss_fn(model, batch)

    for number in range(40):
        training.loss(BATCH, number, counted)
    full = {
        space.cost.params(draw_within(space, limits, np.random.default_rng(seed))) for seed in range(3000)
    }  # fmt: skip
    assert least <= sum(params in full for params in ran) <= most


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_diverged_loss_names_step_and_widths(bad: float) -> None:
    supernet = Supernet(*built("plain"))
    training = MinMin(supernet, LocallyFree(), Sampled())
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step 7, at the widths \{'conv1': \d+, "):
        training.loss(BATCH, 7, lambda model, batch: loss_fn(model, batch) * bad)


def test_coordinate_cannot_train() -> None:
    supernet = Supernet(*built("plain"))
    with pytest.raises(ValueError, match="Coordinate candidates are for scoring only"):
        MinMin(supernet, LocallyFree(), Coordinate()).loss(BATCH, 0, loss_fn)


def logits_of(supernet: Supernet, sub: SubNetwork) -> torch.Tensor:
    return slice_model(supernet.model, supernet.space, sub)(BATCH[0])


def step(supernet: Supernet, **options: bool) -> tuple[SubNetwork, torch.Tensor]:
    """The candidate of step 0, the only one, and the loss."""
    minmin = MinMin(supernet, Fixed(), Sampled(1), seed=3, **options)
    widths = supernet.space.sample(np.random.default_rng([3, 0])).widths
    return SubNetwork.fixed(widths), minmin.loss(BATCH, 0, loss_fn)


def test_in_a_sandwich_the_largest_and_the_smallest_learn_too(supernet: Supernet) -> None:
    supernet.model.eval()
    sub, loss = step(supernet, sandwich=True)
    space = supernet.space
    trained = [SubNetwork.fixed(space.largest), sub, SubNetwork.fixed(space.smallest)]
    expected = torch.stack([F.cross_entropy(logits_of(supernet, one), BATCH[1]) for one in trained]).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    weight = next(p for p in supernet.model.parameters() if p.requires_grad)
    assert weight.grad is not None and weight.grad.abs().flatten(1).sum(1).all()


def test_distilled_sub_networks_learn_from_the_largest_one_s_answers(supernet: Supernet) -> None:
    supernet.model.eval()
    sub, loss = step(supernet, distill=True)
    full, small = (logits_of(supernet, one) for one in (SubNetwork.fixed(supernet.space.largest), sub))
    soft = (full.softmax(1) * (full.log_softmax(1) - small.log_softmax(1))).sum(1).mean()
    torch.testing.assert_close(loss, (F.cross_entropy(full, BATCH[1]) + soft) / 2)


def test_the_largest_learns_from_the_targets_alone(supernet: Supernet) -> None:
    """Nothing flows back through the answers that the others learn from."""
    supernet.model.eval()
    largest, smallest = (SubNetwork.fixed(w) for w in (supernet.space.largest, supernet.space.smallest))
    _, loss = step(supernet, distill=True, sandwich=True)
    gradients = torch.autograd.grad(
        loss, [p for p in supernet.model.parameters() if p.requires_grad], allow_unused=True
    )
    taught = logits_of(supernet, largest).detach()
    sub = SubNetwork.fixed(supernet.space.sample(np.random.default_rng([3, 0])).widths)

    def soft(one: SubNetwork) -> torch.Tensor:
        with supernet.running(one) as model:
            return F.kl_div(
                model(BATCH[0]).log_softmax(1), taught.log_softmax(1), reduction="batchmean", log_target=True
            )

    by_hand = (loss_fn(supernet.model, BATCH) + soft(sub) + soft(smallest)) / 3
    expected = torch.autograd.grad(
        by_hand, [p for p in supernet.model.parameters() if p.requires_grad], allow_unused=True
    )
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted)
