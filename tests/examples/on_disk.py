"""Tiny data sets as the real ones lie on disk: ImageNet's folders, CIFAR-10's pickles, CelebA's lists, COCO's json."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CelebA

RNG = np.random.default_rng(0)


def jpeg(path: Path, *, width: int = 48, height: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, "JPEG")


def imagenet(root: Path, *, classes: int = 3, train: int = 8, val: int = 6) -> Path:
    for number in range(classes):
        for split, count in (("train", train), ("val", val)):
            for image in range(count):
                jpeg(root / split / f"n{number:08}" / f"n{number:08}_{image}.JPEG")
    return root


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The class' own check of MD5s goes on, with those of these files."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [name for name, _ in (*CIFAR10.train_list, *CIFAR10.test_list)]
    for name in names:
        images = RNG.integers(0, 256, (8, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": RNG.integers(10, size=8).tolist()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(folder / name)] for name in names[:-1]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[-1], md5(folder / names[-1])]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(folder / "batches.meta")})
    return root


def celeba(root: Path, monkeypatch: pytest.MonkeyPatch, *, attributes: int = 40) -> Path:
    folder = root / "celeba"
    names = [f"{number:06}.jpg" for number in range(1, 31)]
    for name in names:
        jpeg(folder / "img_align_celeba" / name, width=178, height=218)

    def write(file: str, rows: list[list[object]], header: list[str] | None = None) -> None:
        lines = [" ".join([name, *map(str, row)]) for name, row in zip(names, rows, strict=True)]
        head = [] if header is None else [str(len(names)), " ".join(header) + " "]
        (folder / file).write_text("\n".join([*head, *lines]) + "\n")

    signs = RNG.choice([-1, 1], (len(names), attributes)).tolist()
    write("list_attr_celeba.txt", signs, [f"Attribute_{number}" for number in range(attributes)])
    write("list_eval_partition.txt", [[number * 3 // len(names)] for number in range(len(names))])
    write("identity_CelebA.txt", [[1]] * len(names))
    write("list_bbox_celeba.txt", [[0, 0, 9, 9]] * len(names), ["image_id", "x_1", "y_1", "width", "height"])
    write("list_landmarks_align_celeba.txt", [[1] * 10] * len(names), [f"point_{number}" for number in range(10)])
    files = [
        (link, known if name.endswith(".zip") else md5(folder / name), name) for link, known, name in CelebA.file_list
    ]
    monkeypatch.setattr(CelebA, "file_list", files)
    return root


def coco(root: Path, *, images: int = 6) -> Path:
    """COCO 2017: train2017/, val2017/ and annotations/; the last training image shows nothing."""
    kinds = [{"id": number, "name": f"kind {number}"} for number in (1, 2, 90)]
    for split in ("train2017", "val2017"):
        listed, boxes = [], []
        for number in range(1, images + 1):
            name = f"{number:012}.jpg"
            jpeg(root / split / name, width=64, height=48)
            listed.append({"id": number, "file_name": name, "width": 64, "height": 48})
            if split == "train2017" and number == images:
                continue
            box = [4 * number, 5, 20, 30]
            boxes.append({
                "id": len(boxes) + 1, "image_id": number, "category_id": kinds[number % 3]["id"], "bbox": box,
                "area": box[2] * box[3], "iscrowd": 0, "segmentation": [[4, 5, 24, 5, 24, 35]],
            })  # fmt: skip
        crowd = {
            "bbox": [0, 0, 60, 40],
            "area": 2400,
            "iscrowd": 1,
            "segmentation": {"counts": [3072], "size": [48, 64]},
        }
        boxes.append({"id": len(boxes) + 1, "image_id": 1, "category_id": 1, **crowd})
        (root / "annotations").mkdir(exist_ok=True)
        content = {"images": listed, "annotations": boxes, "categories": kinds}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def fashion_mnist(root: Path, *, train: int = 96, test: int = 32) -> Path:
    """The four packed files alone; a class is a bright square of its own, so that little training suffices."""
    root.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("t10k", test)):
        labels = RNG.integers(0, 10, count, dtype=np.uint8)
        images = RNG.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label // 4 * 9 : label // 4 * 9 + 9, label % 4 * 7 : label % 4 * 7 + 7] = 255
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            magic = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)  # IDX, unsigned bytes
            (root / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(magic + values.tobytes()))
    return root


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
