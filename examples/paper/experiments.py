"""What are the paper's classification experiments? Networks, budgets and training settings, as one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import mobilenetv2, vgg

from nni_cafenet import Recipe, accuracy, binary_cross_entropy, cross_entropy, label_accuracy


@dataclass(frozen=True)
class Training:
    """SGD with momentum 0.9 and a cosine from `lr` to 0, the paper's; `batch` images a step, of all processes."""

    epochs: int
    weight_decay: float
    batch: int = 256
    lr: float = 0.1

    def changed(self, **numbers: float | None) -> Training:
        """These settings but for the numbers that are given."""
        return replace(self, **{name: number for name, number in numbers.items() if number is not None})

    def recipe(self) -> Recipe:
        """For train_model."""
        sgd = partial(torch.optim.SGD, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay, nesterov=True)
        return Recipe(self.epochs, sgd)


@dataclass(frozen=True)
class Experiment:
    """A network and its data: the full one has `macs`, the slim ones `budgets`, multiply-adds an image of `size` px."""

    data: str
    network: Callable[..., nn.Module]
    classes: int
    size: int
    budgets: tuple[float, ...]
    supernet: Training
    final: Training
    distill: bool = False  # the slim ones learn from the dense one's answers too
    loss: Callable[..., torch.Tensor] = cross_entropy
    score: Callable[..., float] = accuracy
    random_epochs: int = 50  # of each of Random's draws


def mobilenet_v2_cifar(num_classes: int) -> nn.Module:
    """MobileNetV2 for 32 px: a stride of 4 instead of 32, 305M MACs; the paper's, not described, has 297M."""
    blocks = [
        [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 1], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1],
    ]  # fmt: skip
    model = mobilenetv2.MobileNetV2(num_classes=num_classes, inverted_residual_setting=blocks)
    model.features[0][0].stride = (1, 1)
    return model


def vgg19_cifar(num_classes: int) -> nn.Module:
    """VGG-19 with BN for 32 px: 20M parameters, 399M MACs, as the paper says."""
    head = [nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, num_classes)]
    return nn.Sequential(vgg.make_layers(vgg.cfgs["E"], batch_norm=True), *head)


# Supernets and final trainings are set as in the authors' related code (BCNet); where it is silent, for EfficientNet-B0
# and CelebA, as for their nearest relatives. Images of CelebA have 178 px, which gives the paper's MACs.
ON_IMAGENET = Training(300, 4e-5)
ON_CIFAR, ON_CIFAR_FINAL = Training(60, 5e-4), Training(500, 5e-4, batch=16)
ON_CELEBA = Training(60, 5e-5)
MOBILE = Training(300, 5e-5)
ATTRIBUTES: dict[str, Any] = {"loss": binary_cross_entropy, "score": label_accuracy}
EXPERIMENTS = {
    "imagenet-resnet50": Experiment(
        "imagenet", torchvision.models.resnet50, 1000, 224, (3.0e9, 2.0e9, 1.0e9, 570e6), ON_IMAGENET,
        Training(150, 1e-4),
    ),
    "imagenet-mobilenet_v2": Experiment(
        "imagenet", torchvision.models.mobilenet_v2, 1000, 224, (217e6, 150e6, 105e6, 50e6), ON_IMAGENET, MOBILE,
        distill=True,
    ),
    "imagenet-efficientnet_b0": Experiment(
        "imagenet", torchvision.models.efficientnet_b0, 1000, 224, (192e6,), ON_IMAGENET, MOBILE,
    ),
    "cifar10-mobilenet_v2": Experiment(
        "cifar10", mobilenet_v2_cifar, 10, 32, (188e6, 144e6, 44e6, 28e6), ON_CIFAR, ON_CIFAR_FINAL,
    ),
    "cifar10-vgg": Experiment(
        "cifar10", vgg19_cifar, 10, 32, (189e6, 154e6, 115e6, 76e6), ON_CIFAR, ON_CIFAR_FINAL,
    ),
    "celeba-mobilenet_v2": Experiment(
        "celeba", torchvision.models.mobilenet_v2, 40, 178, (162e6, 106e6, 51e6, 21e6), ON_CELEBA, ON_CELEBA,
        **ATTRIBUTES,
    ),
    "celeba-resnet18": Experiment(
        "celeba", torchvision.models.resnet18, 40, 178, (1.0e9, 619e6, 316e6, 130e6), ON_CELEBA, ON_CELEBA,
        **ATTRIBUTES,
    ),
}  # fmt: skip
