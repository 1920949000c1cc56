"""The demo's network and data: a small residual CNN with a depthwise block, on scikit-learn's handwritten digits."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nni_cafenet.trainings import Data

IMAGE_SHAPE = (1, 1, 8, 8)
TEST, VALID = 450, 450  # of 1797 images; the other 897 are for training


class DigitsNet(nn.Module):
    """Two residual stages, the second of them an inverted bottleneck around a depthwise convolution.

    Shapes: (N, 1, 8, 8) -> (N, 10).
    """

    def __init__(self, *, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        wide = 2 * width
        self.stem = _conv(1, width)
        self.plain = nn.Sequential(_conv(width, width), _conv(width, width, activate=False))
        self.down = _conv(width, wide, stride=2)
        self.bottleneck = nn.Sequential(
            _conv(wide, 2 * wide, kernel=1), _conv(2 * wide, 2 * wide, groups=2 * wide),
            _conv(2 * wide, wide, kernel=1, activate=False),
        )  # fmt: skip
        self.last = _conv(wide, 2 * wide)
        self.head = nn.Linear(2 * wide, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of shape (N, classes) for images of shape (N, 1, 8, 8)."""
        x = self.stem(images)
        x = torch.relu(x + self.plain(x))
        x = self.down(x)
        x = torch.relu(x + self.bottleneck(x))
        return self.head(self.last(x).mean((2, 3)))  # type: ignore[no-any-return]


def digits(*, seed: int = 0, batch_size: int = 64) -> Data:
    """scikit-learn's 1797 real 8 x 8 images, shuffled and split by `seed` into training, validation and test images."""
    from sklearn.datasets import load_digits  # slow to import, and only the demo needs it

    loaded = load_digits()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(loaded.target)))
    images = torch.from_numpy(loaded.images).float().unsqueeze(1)[order]
    targets = torch.from_numpy(loaded.target).long()[order]
    images = (images - 4.884) / 6.017  # the mean and standard deviation of all pixels, 0 to 16

    def part(start: int, stop: int | None, *, shuffle: bool = False) -> DataLoader[tuple[torch.Tensor, ...]]:
        return DataLoader(
            TensorDataset(images[start:stop], targets[start:stop]),
            batch_size=batch_size if shuffle else 512, shuffle=shuffle, drop_last=shuffle,
        )  # fmt: skip

    return Data(train=part(TEST + VALID, None, shuffle=True), valid=part(TEST, TEST + VALID), test=part(0, TEST))


def _conv(
    into: int, out: int, *, kernel: int = 3, stride: int = 1, groups: int = 1, activate: bool = True
) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out),
    ]  # fmt: skip
    return nn.Sequential(*layers, nn.ReLU()) if activate else nn.Sequential(*layers)
