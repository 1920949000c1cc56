"""Small user-written networks, one peculiarity each, for inputs of shape (N, 3, 12, 12) and 5 classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet.tracing.verify import randomise

CLASSES = 5


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options), nn.BatchNorm2d(outputs)
    )


class Plain(nn.Module):
    """A chain of convolutions with stride and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.conv3 = nn.Conv2d(12, 16, 1)
        self.bn3 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))


class Residual(nn.Module):
    """Two blocks with identity adds and one with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.inner1, self.outer1 = conv_bn(8, 10), conv_bn(10, 8)
        self.inner2, self.outer2, self.project = conv_bn(8, 12, stride=2), conv_bn(12, 16), conv_bn(8, 16, 1, stride=2)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.outer1(F.relu(self.inner1(x))))
        x = F.relu(self.project(x) + self.outer2(F.relu(self.inner2(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Depthwise(nn.Module):
    """An inverted residual block of MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.expand, self.depthwise, self.reduce = conv_bn(6, 12, 1), conv_bn(12, 12, groups=12), conv_bn(12, 6, 1)
        self.head = conv_bn(6, 10, 1)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.stem(x))
        x = x + self.reduce(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return self.fc(F.relu6(self.head(x)).mean((2, 3)))


class Concat(nn.Module):
    """Dense connections: every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1, self.grow1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
        self.norm2, self.grow2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1)
        self.norm3, self.fc = nn.BatchNorm2d(14), nn.Linear(14, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.grow1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.grow2(F.relu(self.norm2(x)))], 1)
        return self.fc(F.relu(self.norm3(x)).mean((2, 3)))


class Flatten(nn.Module):
    """A channel is 9 inputs of the linear layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc1, self.drop, self.fc2 = nn.Linear(8 * 9, 10), nn.Dropout(0.5), nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return self.fc2(self.drop(F.relu(self.fc1(torch.flatten(x, 1)))))


class SqueezeExcite(nn.Module):
    """A gate that multiplies the channels it was computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_bn(3, 12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.head = conv_bn(12, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.body(x))
        x = x * torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc(F.relu(self.head(x)).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution as in ResNeXt, and one with a different number of inputs and outputs per conv-group."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.grouped, self.expand = conv_bn(3, 12, 1), conv_bn(12, 12, groups=4), conv_bn(12, 8, 1)
        self.widening = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.expand(F.relu(self.grouped(F.relu(self.reduce(x))))))
        return self.fc(F.relu(self.widening(x)).mean((2, 3)))


class Gated(nn.Module):
    """GLU: one half of the channels gates the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.both = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.both(F.relu(self.stem(x))).chunk(2, dim=1)
        return self.fc(F.relu(self.head(value * torch.sigmoid(gate))).mean((2, 3)))


class Tied(nn.Module):
    """Two layers that share one weight, next to one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.left = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.right = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.right.weight = self.left.weight
        self.free = conv_bn(8, 10)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.right(F.relu(self.left(F.relu(self.stem(x))))))
        return self.fc(F.relu(self.free(x)).mean((2, 3)))


class Reused(nn.Module):
    """One layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.head = conv_bn(8, 10)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.again(F.relu(self.again(F.relu(self.stem(x))))))
        return self.fc(F.relu(self.head(x)).mean((2, 3)))


class Shuffled(nn.Module):
    """A channel shuffle between two halves, as in ShuffleNet; the head behind it is ordinary."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.mixed = conv_bn(8, 8, 1)
        self.head = conv_bn(8, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.mixed(F.relu(self.stem(x))))
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(F.relu(self.head(x)).mean((2, 3)))


class SplitShuffled(nn.Module):
    """A unit of ShuffleNetV2: half of the channels pass by, then both are shuffled; the head is ordinary."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.branch = conv_bn(4, 4)
        self.head = conv_bn(8, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = F.relu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([left, F.relu(self.branch(right))], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.fc(F.relu(self.head(x)).mean((2, 3)))


class HardCoded(nn.Module):
    """A forward that slices by a number of channels, as in GhostNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.primary, self.cheap = conv_bn(8, 6, 1), conv_bn(6, 6, groups=6)
        self.head = conv_bn(10, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.primary(F.relu(self.stem(x))))
        x = torch.cat([x, self.cheap(x)], 1)[:, :10]
        return self.fc(F.relu(self.head(x)).mean((2, 3)))


class AcrossChannels(nn.Module):
    """A normalisation over the channels by hand: as with a LayerNorm, those that are left make up the statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.normalize(self.middle(F.relu(self.stem(x))), dim=1)
        return self.fc(F.relu(self.head(x)).mean((2, 3)))


class Counting(nn.Module):
    """A forward that computes with the number of its channels, as nothing but slicing changes it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.head = conv_bn(3, 8), conv_bn(8, 8), conv_bn(8, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(F.relu(self.stem(x)))
        return self.fc(F.relu(self.head(x * x.shape[1])).mean((2, 3)))


class Frozen(nn.Module):
    """A pretrained stem without gradients under a head that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 8), conv_bn(8, 10)
        self.head = nn.Conv2d(10, 12, 1)
        self.fc = nn.Linear(12, CLASSES)
        self.stem.requires_grad_(False)
        self.head.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.body(F.relu(self.stem(x))))
        return self.fc(F.relu(self.head(x)).mean((2, 3)))


class DataDependent(nn.Module):
    """A branch on the values of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 8), conv_bn(8, 10)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bright = bool(x.mean() > 0)
        x = self.stem(x)
        x = F.relu(x) if bright else torch.tanh(x)
        return self.fc(F.relu(self.body(x)).mean((2, 3)))


class GroupNormed(nn.Module):
    """A GroupNorm, whose statistics span several channels, in front of a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8)
        self.head = conv_bn(8, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.head(F.relu(self.norm(self.stem(x))))).mean((2, 3)))


class Norms(nn.Module):
    """A LayerNorm over channels last, an InstanceNorm with running statistics, a PReLU and a bare layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.instance = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.prelu = nn.PReLU(8)
        self.expand, self.layer_norm = nn.Conv2d(8, 12, 1), nn.LayerNorm(12)
        self.scale = nn.Parameter(torch.full((12, 1, 1), 0.5))
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.instance(self.stem(x)))
        x = self.layer_norm(self.expand(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fc(F.relu(x * self.scale).mean((2, 3)))


class Transposed(nn.Module):
    """Down, up again by a transposed convolution, and a skip between."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv_bn(3, 8, stride=2), nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.skip = conv_bn(3, 6)
        self.head = conv_bn(6, 10)
        self.fc = nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.up(F.relu(self.down(x))) + self.skip(x))
        return self.fc(F.relu(self.head(x)).mean((2, 3)))


class WeightNormed(nn.Module):
    """A weight that a parametrisation computes anew at every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3, padding=1))
        self.head = conv_bn(8, 12)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.head(F.relu(self.stem(x)))).mean((2, 3)))


class TwoInputs(nn.Module):
    """An image, a vector, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector = conv_bn(3, 8), nn.Linear(4, 8)
        self.body = conv_bn(8, 10)
        self.fc, self.score = nn.Linear(10, CLASSES), nn.Linear(10, 1)

    def forward(self, image: torch.Tensor, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        x = F.relu(self.image(image) + self.vector(vector)[:, :, None, None])
        x = F.relu(self.body(x)).mean((2, 3))
        return {"classes": self.fc(x), "score": self.score(x)}


# every layer of these can be searched, but for the output layer
SEARCHABLE: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "depthwise": Depthwise,
    "concat": Concat,
    "flatten": Flatten,
    "squeeze_excite": SqueezeExcite,
    "grouped": Grouped,
    "frozen": Frozen,
    "data_dependent": DataDependent,
    "norms": Norms,
    "transposed": Transposed,
    "reused": Reused,
    "gated": Gated,
    "shuffled": Shuffled,
    "split_shuffled": SplitShuffled,
    "across_channels": AcrossChannels,
    "group_normed": GroupNormed,
}
# a part of these cannot
PARTLY: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "hard_coded": HardCoded,
    "counting": Counting,
    "weight_normed": WeightNormed,
}
NETWORKS = {**SEARCHABLE, **PARTLY}


def example(batch: int = 2, *, seed: int = 0) -> torch.Tensor:
    """Images of shape (batch, 3, 12, 12)."""
    return torch.randn(batch, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def make(factory: Callable[[], nn.Module], *, seed: int = 0) -> nn.Module:
    """A network with random BatchNorm statistics, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = factory()
    randomise(model, seed=seed)
    return model
