"""A tiny classification task that a tiny network learns in seconds."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 4
SIZE = 8
Batch = tuple[torch.Tensor, torch.Tensor]


def images(count: int, *, seed: int = 0) -> TensorDataset:
    """Noise with a brighter quadrant, whose place is the class; images of shape (count, 1, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    x = 0.5 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    half = SIZE // 2
    for i, target in enumerate(targets.tolist()):
        row, column = divmod(target, 2)
        x[i, 0, row * half : (row + 1) * half, column * half : (column + 1) * half] += 0.7
    return TensorDataset(x, targets)


def batches(count: int = 4, size: int = 16, *, seed: int = 0) -> list[Batch]:
    """The same `count` batches of `size` images every time; no random number is drawn, as a DataLoader would."""
    x, y = images(count * size, seed=seed).tensors
    return list(zip(x.split(size), y.split(size), strict=True))


def shuffled(count: int = 4, size: int = 16, *, seed: int = 0) -> DataLoader[Batch]:
    """Reshuffled every epoch by torch's global generator."""
    return DataLoader(images(count * size, seed=seed), batch_size=size, shuffle=True)


class Net(nn.Sequential):
    """Three convolutions, BatchNorm and dropout."""

    def __init__(self, *, dropout: float = 0.2) -> None:
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(12, 12, 1), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(12 * 4, CLASSES),
        )  # fmt: skip


def net(*, seed: int = 0, dropout: float = 0.2) -> Net:
    """A network, the same one for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(dropout=dropout)


EXAMPLE = torch.zeros(1, 1, SIZE, SIZE)
