"""Fashion-MNIST in memory: real images in four splits, the last of which is looked at once, at the end.

Wanted in a folder, either torchvision's or the four files alone:

    python -c "from torchvision.datasets import FashionMNIST; FashionMNIST('DIR', download=True)"
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from torchvision.datasets import FashionMNIST
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import extract_archive

from nni_cafenet import CafeNetError

MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images
CLASSES = 10
Batch = tuple[torch.Tensor, torch.Tensor]


class BadData(CafeNetError):
    """Images that are missing or damaged."""


@dataclass(frozen=True, eq=False)
class Batches:
    """Batches of (images of shape (N, 1, P, P), labels), from memory.

    Args:
        images: normalised.
        labels: 0 to 9.
        size: images a batch.
        augment: another order in each pass, mirrored and shifted by up to an eighth at random, from torch's generator;
            the last, incomplete batch is left out.
    """

    images: torch.Tensor
    labels: torch.Tensor
    size: int
    augment: bool = False

    def __len__(self) -> int:
        return len(self.labels) // self.size if self.augment else -(-len(self.labels) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        if not self.augment:
            yield from zip(self.images.split(self.size), self.labels.split(self.size), strict=True)
            return
        order = torch.randperm(len(self.labels)).to(self.labels.device)
        for chosen in order[: len(self) * self.size].split(self.size):
            yield _augmented(self.images[chosen]), self.labels[chosen]


@dataclass(frozen=True, eq=False)
class Splits:
    """`train` is learnt from, `valid` selects widths, `check` decides on methods and defaults, `test` is reported.

    The first three are parts of the 60,000 training images; `test` are the 10,000 others.
    """

    train: Batches
    valid: Batches
    check: Batches
    test: Batches


def load(
    folder: Path,
    *,
    pixels: int,
    train: int,
    valid: int,
    check: int,
    batch: int,
    device: torch.device | str = "cpu",
) -> Splits:
    """The first images of each split, padded from 28 to 32 pixels and, for 16 pixels, averaged over 2 x 2.

    Raises:
        BadData: a file is missing or damaged. The message says which, and how to get it.
    """
    images, labels = _read(folder, "train", pixels, device)
    if train + valid + check > len(labels):
        raise ValueError(f"{train} + {valid} + {check} images are asked for, but there are {len(labels)}")
    ends = train, train + valid, train + valid + check
    learnt, selecting, checking, _ = zip(images.tensor_split(ends), labels.tensor_split(ends), strict=True)
    return Splits(
        Batches(*learnt, batch, augment=True), Batches(*selecting, 500), Batches(*checking, 500),
        Batches(*_read(folder, "t10k", pixels, device), 500),
    )  # fmt: skip


def _read(folder: Path, part: str, pixels: int, device: torch.device | str) -> Batch:
    images = _unpacked(folder, f"{part}-images-idx3-ubyte.gz", read_image_file).unsqueeze(1).float() / 255
    labels = _unpacked(folder, f"{part}-labels-idx1-ubyte.gz", read_label_file)
    if len(images) != len(labels) or not 0 <= int(labels.min()) <= int(labels.max()) < CLASSES:
        raise BadData(f"{folder}: {len(images)} images, {len(labels)} labels of 0 to {labels.max()} in {part}-*.gz")
    padded = functional.pad((images - MEAN) / STD, (2, 2, 2, 2), value=-MEAN / STD)
    return functional.avg_pool2d(padded, 32 // pixels).to(device), labels.to(device)


def _unpacked(folder: Path, name: str, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """What torchvision's reader, which wants an unpacked file, finds in a packed one."""
    raw = folder / FashionMNIST.__name__ / "raw"
    path = (raw if raw.is_dir() else folder) / name
    remedy = f"""python -c "from torchvision.datasets import FashionMNIST; FashionMNIST('{folder}', download=True)\""""
    if not path.exists():
        raise BadData(f"{path} is missing: name the folder of Fashion-MNIST by --data, or get it by {remedy}")
    try:
        with tempfile.TemporaryDirectory() as place:
            extract_archive(str(path), place)  # gzip holds a checksum
            return read(str(Path(place) / path.stem))
    except (EOFError, OSError, ValueError, AssertionError, zlib.error) as error:
        raise BadData(
            f"{path} is damaged ({error}), perhaps an interrupted download: delete it and get it again by {remedy}"
        ) from error


def _augmented(images: torch.Tensor) -> torch.Tensor:
    """Each image mirrored or not, and shifted by up to an eighth of its size each way."""
    count, _, pixels, _ = images.shape
    most = pixels // 8
    padded = functional.pad(images, (most, most, most, most), value=-MEAN / STD)
    windows = padded.unfold(2, pixels, 1).unfold(3, pixels, 1).squeeze(1)  # (N, shifts, shifts, P, P)
    down, right = torch.randint(2 * most + 1, (2, count)).to(images.device)
    shifted = windows[torch.arange(count, device=images.device), down, right].unsqueeze(1)
    mirrored = (torch.rand(count) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], shifted.flip(3), shifted)
