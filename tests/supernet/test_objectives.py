from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import InvalidBatches, InvalidScore, accuracy, binary_cross_entropy, cross_entropy, label_accuracy
from nni_cafenet.supernet.objectives import as_loss, checked_loss, checked_score, to_device
from tests.data import batches, net

BATCH = batches(1)[0]


def test_the_default_loss_is_cross_entropy() -> None:
    model = net().eval()
    assert torch.equal(cross_entropy(model, BATCH), F.cross_entropy(model(BATCH[0]), BATCH[1]))


def test_accuracy_is_the_share_of_right_answers_over_all_batches() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.one_hot(x.long(), 3).float()

    given = [(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 0])), (torch.tensor([1]), torch.tensor([1]))]
    assert accuracy(Fixed(), given) == 3 / 4


def test_several_labels_an_image_are_learnt_and_scored_one_by_one() -> None:
    class Logits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    logits, targets = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 1.0, 1.0]]), torch.tensor([[1, 0, 0], [0, 1, 1]])
    assert label_accuracy(Logits(), [(logits[:1], targets[:1]), (logits[1:], targets[1:])]) == 5 / 6
    loss = binary_cross_entropy(Logits(), (logits, targets))
    by_hand = -(targets * logits.sigmoid().log() + (1 - targets) * (1 - logits.sigmoid()).log()).mean()
    torch.testing.assert_close(loss, by_hand)
    with pytest.raises(InvalidBatches, match="hold no label"):
        label_accuracy(Logits(), [])


def test_accuracy_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidBatches, match="hold no example"):
        accuracy(net(), [])


def test_accuracy_makes_no_graph() -> None:
    model = net()
    accuracy(model, [BATCH])
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(), F.cross_entropy, cross_entropy, partial(F.cross_entropy, label_smoothing=0.0)],
    ids=["module", "function", "ours", "partial"],
)
def test_torch_losses_are_applied_to_outputs_and_targets(loss: Any) -> None:
    model = net().eval()
    assert torch.equal(as_loss(loss)(model, BATCH), F.cross_entropy(model(BATCH[0]), BATCH[1]))


def test_a_loss_of_model_and_batch_is_used_as_it_is() -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch["x"]).mean()

    assert as_loss(loss) is loss


def test_a_class_in_the_place_of_a_loss_is_refused() -> None:
    with pytest.raises(TypeError, match="loss_fn must be a function or a module, but got the class CrossEntropyLoss"):
        as_loss(nn.CrossEntropyLoss)  # type: ignore[arg-type]


def test_a_scalar_loss_of_any_shape_passes() -> None:
    for loss in (torch.tensor(1.0, requires_grad=True), torch.ones(1, 1, requires_grad=True)):
        assert checked_loss(loss) is loss


@pytest.mark.parametrize(
    ("loss", "got"),
    [
        (torch.ones(3, requires_grad=True), r"a tensor of shape \(3,\)"),
        (torch.ones(0), r"a tensor of shape \(0,\)"),
        (0.5, "a float"),
        (None, "a NoneType"),
        ({"loss": torch.tensor(1.0)}, "a dict"),
        (np.float64(1), "a float64"),
    ],
)
def test_a_loss_that_is_no_scalar_tensor_is_refused(loss: Any, got: str) -> None:
    with pytest.raises(InvalidBatches, match=rf"must return a scalar tensor, but it returned {got}"):
        checked_loss(loss)


@pytest.mark.parametrize("score", [1, 0.5, -3, np.float32(0.5), np.int64(2), torch.tensor(0.5), torch.tensor([2])])
def test_a_score_is_any_number(score: Any) -> None:
    assert checked_score(score) == float(score)
    assert type(checked_score(score)) is float


@pytest.mark.parametrize(
    "score", [None, "0.9", True, [0.9], {"accuracy": 1}, torch.ones(2), np.ones(2), 1j, object], ids=repr
)
def test_a_score_that_is_no_number_is_refused(score: Any) -> None:
    with pytest.raises(InvalidScore, match=r"score_fn\(model, batches\) must return a number, higher is better"):
        checked_score(score)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), torch.tensor(float("-inf"))])
def test_a_score_that_is_not_finite_is_refused(score: Any) -> None:
    with pytest.raises(InvalidScore, match="must return a finite number, but it returned"):
        checked_score(score)


def test_batches_of_any_structure_go_to_the_model_s_device() -> None:
    batch = {"x": [torch.ones(2)], "name": "a"}
    moved = to_device(batch, net())
    assert torch.equal(moved["x"][0], torch.ones(2))
    assert moved["name"] == "a"
    assert to_device(batch, nn.ReLU()) is batch
