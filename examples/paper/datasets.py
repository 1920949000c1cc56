"""Where do the images come from, and what is wrong if they do not? The paper's data sets, by torchvision's own classes.

Each is split into images to train on, to select by and to test on once; see README.md for how they lie on disk.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets import CIFAR10, CelebA, CocoDetection, ImageFolder
from torchvision.datasets.utils import check_integrity

from nni_cafenet import CafeNetError

Transform = Callable[[Any], torch.Tensor]
VALID_SHARE = 0.1  # of the training images, to select by, where a data set has no such split of its own
VALID_SHARE_IMAGENET = 0.01
IMAGENET = """ImageNet needs an account: get ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and \
ILSVRC2012_devkit_t12.tar.gz from https://image-net.org/challenges/LSVRC/2012, put them into {root} and unpack them by \
python -c "from torchvision.datasets import ImageNet as I; [I('{root}', split) for split in ('train', 'val')]\""""
CIFAR = """get it by python -c "from torchvision.datasets import CIFAR10; CIFAR10('{root}', download=True)\""""
CELEBA = """get it by python -c "from torchvision.datasets import CelebA; CelebA('{root}', download=True)" (needs \
gdown), or from http://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"""

COCO = """get train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org/#download and \
unpack them in {root}"""


class BadData(CafeNetError):
    """Images that are missing, damaged or not those that the network is made for."""


class Images(Dataset[Any]):
    """Some images of `source`, a torchvision data set without transforms, each as (transformed image, target)."""

    def __init__(self, source: Any, indices: Sequence[int], transform: Transform) -> None:
        self.source, self.indices, self.transform = source, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, Any]:
        image, target = _opened(self.source, self.indices[number])
        return self.transform(image), target

    def first(self, count: int) -> Images:
        """The first `count` of them."""
        return Images(self.source, self.indices[:count], self.transform)


class Detections(Dataset[Any]):
    """Some images of a CocoDetection, each as (image of shape (3, H, W), target), as torchvision's detectors take them.

    Args:
        source: without transforms.
        indices: into its images.
        flip: mirrors half of them, at random.
    """

    def __init__(self, source: CocoDetection, indices: Sequence[int], *, flip: bool) -> None:
        self.source, self.indices, self.flip = source, indices, flip

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, dict[str, Any]]:
        index = self.indices[number]
        image, annotations = _opened(self.source, index)
        pixels = transforms.functional.to_tensor(image)
        seen = [found for found in annotations if not found["iscrowd"] and min(found["bbox"][2:]) > 0]
        boxes = torch.tensor([found["bbox"] for found in seen], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # from (left, top, width, height) to (left, top, right, bottom)
        if self.flip and torch.rand(()) < 0.5:
            pixels = pixels.flip(-1)
            boxes[:, [0, 2]] = pixels.shape[-1] - boxes[:, [2, 0]]
        labels = torch.tensor([found["category_id"] for found in seen], dtype=torch.int64)
        return pixels, {"boxes": boxes, "labels": labels, "image_id": self.source.ids[index]}

    def first(self, count: int) -> Detections:
        """The first `count` of them."""
        return Detections(self.source, self.indices[:count], flip=self.flip)

    @property
    def image_ids(self) -> list[int]:
        """COCO's numbers of these images."""
        return [self.source.ids[index] for index in self.indices]

    @property
    def categories(self) -> int:
        """The highest number of a category: COCO's 80 go up to 90."""
        return max(self.source.coco.getCatIds())


@dataclass(frozen=True)
class Splits:
    """Images by their use.

    Args:
        train: what supernets learn from, augmented.
        valid: what widths are selected by: no part of `train`, not augmented.
        whole: what the networks of the final tables are trained on: `train`, and `valid` if it was taken from it.
        test: looked at once for each network, at the end.
    """

    train: Images
    valid: Images
    whole: Images
    test: Images

    def first(self, count: int) -> Splits:
        """The first `count` images of each."""
        return Splits(*(images.first(count) for images in (self.train, self.valid, self.whole, self.test)))


def imagenet(root: Path, *, size: int, classes: int, seed: int) -> Splits:
    """ROOT/train/CLASS/*.JPEG and ROOT/val/CLASS/*.JPEG: ImageNet, or images of your own."""
    how = IMAGENET.format(root=root)
    folders = {}
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise BadData(f"there is no folder {root / split}, with one folder of images for each class: {how}")
        if left := next((root / split).glob("*.tar"), None):
            raise BadData(f"{left} is still packed, so unpacking was interrupted: remove {root / split} and {how}")
        try:
            folders[split] = ImageFolder(str(root / split))
        except FileNotFoundError as error:  # no class, or one without images
            raise BadData(f"{root / split} is not complete: {error}; {how}") from error
        if (found := len(folders[split].classes)) != classes:
            raise BadData(
                f"{root / split} has {found} folders of classes, and the network's head has {classes}: is the data set "
                f"complete? For other data than ImageNet give --classes {found}; {how}"
            )
    train, test = folders["train"], folders["val"]
    if train.classes != test.classes:
        odd = sorted({*train.classes} ^ {*test.classes})
        raise BadData(f"{root / 'train'} and {root / 'val'} have other classes: {', '.join(odd[:5])} in one alone")
    augment = [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()]
    plain = [transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)]
    statistics = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return _split(train, test, augment, plain, statistics, VALID_SHARE_IMAGENET, seed)


def cifar10(root: Path, *, size: int, classes: int, seed: int) -> Splits:
    """ROOT/cifar-10-batches-py, as torchvision's CIFAR10 downloads it; images of 32 px."""
    files = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
    _check_files(root / CIFAR10.base_folder, files, CIFAR.format(root=root))
    train, test = CIFAR10(str(root), train=True), CIFAR10(str(root), train=False)
    _check_classes(root, len(train.classes), classes)
    augment = [transforms.RandomCrop(size, padding=4), transforms.RandomHorizontalFlip()]
    statistics = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    return _split(train, test, augment, [], statistics, VALID_SHARE, seed)


def celeba(root: Path, *, size: int, classes: int, seed: int) -> Splits:
    """ROOT/celeba: list_*.txt and img_align_celeba/, as torchvision's CelebA downloads it, in its own three splits."""
    folder, how = root / CelebA.base_folder, CELEBA.format(root=root)
    texts = [(name, md5) for _, md5, name in CelebA.file_list if not name.endswith(".zip")]
    _check_files(folder, texts, how)
    place = folder / "img_align_celeba"
    if not place.is_dir():
        raise BadData(f"there is no folder {place}: unpack img_align_celeba.zip there; {how}")
    train, valid, test = (CelebA(str(root), split=split) for split in ("train", "valid", "test"))
    _check_classes(root, len([name for name in train.attr_names if name]), classes)
    listed = {name for part in (train, valid, test) for name in part.filename}
    _check_images(place, listed, how)
    crop = [transforms.CenterCrop(178), *([] if size == 178 else [transforms.Resize(size)])]
    plain = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])
    augment = transforms.Compose([transforms.RandomHorizontalFlip(), plain])
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    learnt = Images(train, shuffled, augment)
    return Splits(learnt, Images(valid, range(len(valid)), plain), learnt, Images(test, range(len(test)), plain))


def coco(root: Path, *, classes: int) -> tuple[Detections, Detections]:
    """ROOT/train2017, ROOT/val2017 and ROOT/annotations/instances_*.json: images with boxes to train on, all of val."""
    how = COCO.format(root=root)
    sources = {}
    for split in ("train2017", "val2017"):
        listed = root / "annotations" / f"instances_{split}.json"
        for place, kind in ((root / split, "folder"), (listed, "file")):
            if not place.exists():
                raise BadData(f"there is no {kind} {place}: {how}")
        try:
            with redirect_stdout(io.StringIO()):  # pycocotools prints
                source = sources[split] = CocoDetection(str(root / split), str(listed))
        except ModuleNotFoundError as error:
            raise BadData("COCO needs pycocotools: pip install nni_cafenet[paper]") from error
        except (ValueError, KeyError) as error:
            raise BadData(f"{listed} is damaged ({error}): an interrupted download? Remove it and {how}") from error
        if (found := len(source.coco.cats)) != classes:
            raise BadData(f"{listed} has {found} categories, and {classes} are expected: for other data give --classes")
        names = {image["file_name"] for image in source.coco.imgs.values()}
        _check_images(root / split, names, how)
    train, val = sources["train2017"], sources["val2017"]
    shown = [index for index, image in enumerate(train.ids) if train.coco.getAnnIds(image, iscrowd=False)]
    return Detections(train, shown, flip=True), Detections(val, range(len(val)), flip=False)


CLASSIFICATION: dict[str, Callable[..., Splits]] = {"imagenet": imagenet, "cifar10": cifar10, "celeba": celeba}


def _split(
    train: Any, test: Any, augment: list[Any], plain: list[Any], statistics: Any, share: float, seed: int
) -> Splits:
    """The training set in two at random, and the test set."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = max(1, round(share * len(order)))
    augmented = transforms.Compose([*augment, transforms.ToTensor(), statistics])
    as_it_is = transforms.Compose([*plain, transforms.ToTensor(), statistics])
    return Splits(
        train=Images(train, order[held_out:], augmented), valid=Images(train, order[:held_out], as_it_is),
        whole=Images(train, order, augmented), test=Images(test, range(len(test)), as_it_is),
    )  # fmt: skip


def _check_files(folder: Path, files: Sequence[Sequence[str]], how: str) -> None:
    """Raise where one of (name, md5) is missing or another one: torchvision says for all of them "not found or"."""
    if not folder.is_dir():
        raise BadData(f"there is no folder {folder}: {how}")
    for name, md5 in files:
        if not (folder / name).is_file():
            raise BadData(f"there is no file {folder / name}: {how}")
        if not check_integrity(str(folder / name), md5):
            raise BadData(
                f"{folder / name} is damaged (its MD5 is not {md5}): an interrupted download? Remove it and {how}"
            )


def _check_images(folder: Path, listed: set[str], how: str) -> None:
    if missing := sorted(listed.difference(os.listdir(folder))):
        raise BadData(
            f"{folder} lacks {len(missing):,} of {len(listed):,} images, such as {missing[0]}: its download or "
            f"unpacking was interrupted; {how}"
        )


def _check_classes(root: Path, found: int, classes: int) -> None:
    if found != classes:
        raise BadData(f"the data set in {root} has {found} classes, and the network's head has {classes}")


def _opened(source: Any, index: int) -> tuple[Any, Any]:
    """An image of a torchvision data set, as PIL has it in RGB, and its target."""
    try:
        image, target = source[index]
        return image.convert("RGB"), target
    except (OSError, SyntaxError) as error:  # what PIL raises for files that are no image, or cut short
        raise BadData(
            f"{_file_of(source, index)} cannot be read ({error}): was its download or unpacking interrupted? "
            f"Get that file again"
        ) from error


def _file_of(source: Any, index: int) -> str:
    if isinstance(source, ImageFolder):
        return source.samples[index][0]
    if isinstance(source, CelebA):
        return str(Path(source.root) / source.base_folder / "img_align_celeba" / source.filename[index])
    if isinstance(source, CocoDetection):
        return str(Path(source.root) / source.coco.imgs[source.ids[index]]["file_name"])
    return f"image {index} of {source.root}"
