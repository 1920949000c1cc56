"""The networks of the studies: torchvision's own, for small grey images, at any share of their channels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torchvision.models import VGG, MobileNetV2, ResNet
from torchvision.models.resnet import BasicBlock
from torchvision.models.vgg import cfgs, make_layers

CLASSES = 10


def mobilenet_v2(share: float) -> nn.Module:
    """MobileNetV2 with the strides that are usual for CIFAR: 2 in three places instead of five."""
    setting = [
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    model = MobileNetV2(num_classes=CLASSES, width_mult=share, inverted_residual_setting=setting)
    stem = model.features[0]
    stem[0] = nn.Conv2d(1, stem[0].out_channels, 3, stride=1, padding=1, bias=False)
    return _initialised(model)


def vgg(share: float, *, layers: str) -> nn.Module:
    """A VGG with BatchNorm and one linear layer, without the last pooling, as usual for CIFAR.

    Args:
        layers: torchvision's letter, "B" of VGG-13 and "E" of VGG-19.
    """
    sizes = [size if isinstance(size, str) else int(size * share) for size in cfgs[layers][:-1]]
    features = make_layers(sizes, batch_norm=True)
    features[0] = nn.Conv2d(1, sizes[0], 3, padding=1)
    model = VGG(features, num_classes=CLASSES, init_weights=False)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(sizes[-1], CLASSES)
    return _initialised(model)


class _ResNet(ResNet):
    def __init__(self, share: float) -> None:
        self.share = share
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=CLASSES)
        channels = int(64 * share)
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1, self.maxpool = nn.BatchNorm2d(channels), nn.Identity()
        self.fc = nn.Linear(self.inplanes, CLASSES)

    def _make_layer(self, block: type[BasicBlock], planes: int, *arguments: int, **named: object) -> nn.Sequential:
        if planes == 64:
            self.inplanes = int(64 * self.share)
        return super()._make_layer(block, int(planes * self.share), *arguments, **named)


def resnet18(share: float) -> nn.Module:
    """ResNet-18 with a stem of 3 x 3, stride 1, without pooling."""
    return _initialised(_ResNet(share))


NETWORKS: dict[str, Callable[[float], nn.Module]] = {
    "vgg13": partial(vgg, layers="B"),
    "vgg19": partial(vgg, layers="E"),  # the paper's, by its MACs
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
}
COMPACT = {"mobilenet_v2"}


def _initialised(model: nn.Module) -> nn.Module:
    """Of one kind for all: He's for convolutions; narrow linear layers would start too large by torchvision's.

    Channels last, in which depthwise convolutions train in two thirds of the time on CPUs.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
    return model.to(memory_format=torch.channels_last)
