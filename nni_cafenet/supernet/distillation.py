"""How does a network learn from the answers of another one? Knowledge distillation (Hinton et al., 2015).

From a trained teacher, as a loss; or in place, from the largest sub-network of the same supernet.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet.errors import InvalidBatches
from nni_cafenet.modes import evaluating
from nni_cafenet.supernet.objectives import LossFn, checked_loss, to_device


class Distillation:
    """Cross entropy with the targets and with a teacher's answers, for batches of (inputs, targets).

    loss = (1 - weight) * CE(student, targets) + weight * T^2 * KL(softmax(teacher / T) || softmax(student / T))

    Args:
        teacher: gives logits of shape (N, classes), as the student does; run in eval mode, without gradients, on the
            student's device; left as it is.
        weight: of the teacher's answers, 0 to 1.
        temperature: T; above 1 it softens them.
    """

    def __init__(self, teacher: nn.Module, *, weight: float = 0.5, temperature: float = 4.0) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be 0 to 1, but got {weight}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, but got {temperature}")
        self.teacher, self.weight, self.temperature = teacher, weight, temperature

    def __repr__(self) -> str:
        name = type(self.teacher).__name__
        return f"Distillation({name}, weight={self.weight}, temperature={self.temperature})"

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss of `model` on `batch`.

        Raises:
            InvalidBatches: the teacher's logits have another shape than the model's.
        """
        inputs, targets = to_device(batch, model)
        logits = model(inputs)
        with torch.no_grad(), evaluating(self.teacher):
            taught = self.teacher(inputs)
        if taught.shape != logits.shape:
            raise InvalidBatches(
                f"the teacher, a {type(self.teacher).__name__}, gives {tuple(taught.shape)} and the student "
                f"{tuple(logits.shape)}: both must answer with logits for the same classes"
            )
        soft = divergence(logits / self.temperature, taught / self.temperature)
        hard = F.cross_entropy(logits, targets)
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft


def divergence(logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """KL(softmax(taught) || softmax(logits)), the mean over the batch; both of shape (N, classes)."""
    return F.kl_div(F.log_softmax(logits, 1), F.log_softmax(taught, 1), reduction="batchmean", log_target=True)


def loss_and_logits(model: nn.Module, batch: Any, loss_fn: LossFn) -> tuple[torch.Tensor, torch.Tensor]:
    """loss_fn(model, batch), and what the model answered in it.

    Raises:
        InvalidBatches: it did not answer once, with logits of shape (N, classes).
    """
    answers: list[Any] = []
    handle = model.register_forward_hook(lambda module, inputs, output: answers.append(output))
    try:
        loss = checked_loss(loss_fn(model, batch))
    finally:
        handle.remove()
    if len(answers) != 1 or not isinstance(answers[0], torch.Tensor) or answers[0].dim() != 2:
        got = [tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__ for answer in answers]
        raise InvalidBatches(
            f"distill=True compares the logits of sub-networks, so loss_fn must call the model once and get logits of "
            f"shape (N, classes), but it got {got}: leave distill=False for other tasks"
        )
    return loss, answers[0]
