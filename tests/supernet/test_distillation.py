from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import Distillation, InvalidBatches, cross_entropy
from nni_cafenet.supernet.distillation import loss_and_logits
from nni_cafenet.train import Recipe, train_model
from tests.data import batches, net, shuffled
from tests.snapshots import Snapshot

BATCH = batches(1)[0]


def test_without_weight_it_is_cross_entropy() -> None:
    model, teacher = net().eval(), net().eval()
    torch.testing.assert_close(Distillation(teacher, weight=0)(model, BATCH), cross_entropy(model, BATCH))


def test_a_network_has_nothing_to_learn_from_itself() -> None:
    model = net().eval()
    assert Distillation(model, weight=1)(model, BATCH).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_teacher_s_part_is_the_divergence_of_softened_answers(temperature: float) -> None:
    model, teacher = net().eval(), net(seed=1).eval()
    student, taught = (F.softmax(m(BATCH[0]) / temperature, 1) for m in (model, teacher))
    by_hand = temperature**2 * (taught * (taught / student).log()).sum(1).mean()
    torch.testing.assert_close(Distillation(teacher, weight=1, temperature=temperature)(model, BATCH), by_hand)


def test_the_teacher_is_left_as_it_is_and_gets_no_gradient() -> None:
    model, teacher = net(), net(seed=1).train()
    before = Snapshot(teacher)
    Distillation(teacher)(model, BATCH).backward()
    before.assert_unchanged()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_student_comes_nearer_to_its_teacher() -> None:
    teacher, student = net(seed=1).eval(), net()
    loss = Distillation(teacher, weight=1)

    def distance() -> float:
        with torch.no_grad():
            return float(loss(student.eval(), BATCH))

    before = distance()
    train_model(student, shuffled(), Recipe(4), loss_fn=loss, progress=False)
    assert distance() < before / 2


def test_another_number_of_classes_is_refused() -> None:
    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(x), 7)

    with pytest.raises(InvalidBatches, match=r"a Wide, gives \(\d+, 7\) and the student"):
        Distillation(Wide())(net(), BATCH)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"weight": 1.5}, "weight must be 0 to 1, but got 1.5"), ({"temperature": 0}, "temperature must be above 0")],
)
def test_numbers_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(net(), **options)


class Answering(nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: torch.Tensor) -> Any:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "calls", "got"),
    [
        (torch.zeros(6, 3, 8, 8), 1, r"\[\(6, 3, 8, 8\)\]"),
        ({}, 1, r"\['dict'\]"),
        (torch.zeros(6, 3), 2, r"\(6, 3\), \(6, 3\)"),
    ],
)
def test_what_is_no_logits_cannot_be_distilled_in_place(answer: Any, calls: int, got: str) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        for _ in range(calls):
            model(batch)
        return torch.zeros((), requires_grad=True)

    model = Answering(answer)
    with pytest.raises(InvalidBatches, match=rf"distill=True compares the logits .* but it got .*{got}"):
        loss_and_logits(model, torch.zeros(1), loss_fn)
    assert not model._forward_hooks
