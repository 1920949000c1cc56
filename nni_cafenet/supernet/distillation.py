"""How does a network learn from the answers of another one? Knowledge distillation (Hinton et al., 2015) as a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet.errors import InvalidBatches
from nni_cafenet.modes import evaluating
from nni_cafenet.supernet.objectives import to_device


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
        soft = F.kl_div(
            F.log_softmax(logits / self.temperature, 1),
            F.log_softmax(taught / self.temperature, 1),
            reduction="batchmean",
            log_target=True,
        )
        hard = F.cross_entropy(logits, targets)
        return (1 - self.weight) * hard + self.weight * self.temperature**2 * soft
