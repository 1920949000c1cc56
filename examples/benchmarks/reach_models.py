"""The networks that reach.py tries: of torchvision, of timm, and of libraries for segmentation, detection, medicine.

The third family needs what nothing else here does:

    pip install segmentation-models-pytorch monai ultralytics transformers efficientnet_pytorch
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn


@dataclass
class Catalogue:
    """A library's models: their names, the family of each, and (model, example, pixels)."""

    names: Callable[[], list[str]]
    group: Callable[[str], str]
    make: Callable[[str], tuple[nn.Module, Any, int]]


SIZE = re.compile(
    r"([a-z]{0,2}\d+[a-z]{0,2}|\d+x\d+\w*|tiny|small|base|large|xlarge|huge|giant|nano|pico|femto|atto|zepto"
    r"|x{0,2}[smltb]|medium|little|mini|micro|minus|plus|rw|tv|tf)"
)  # words of a model's name that say how large it is


def _timm_family(name: str) -> str:
    import timm

    module = timm.models.model_entrypoint(name).__module__.rpartition(".")[2]
    return f"{module}/" + "_".join(word for word in name.split("_") if not SIZE.fullmatch(word))


def _timm_names() -> list[str]:
    """The smallest variant, below 60 million parameters, of each convolutional or hybrid kind of network in timm."""
    return Path(__file__).with_name("reach_timm.txt").read_text().split()


def _timm_make(name: str) -> tuple[nn.Module, Any, int]:
    import timm

    return _at_a_size(lambda: timm.create_model(name), timm.get_pretrained_cfg(name).input_size[-1])


def _at_a_size(factory: Callable[[], nn.Module], usual: int) -> tuple[nn.Module, Any, int]:
    """The model, an example of the smallest of a few sizes that it takes, and that size."""
    model = factory()
    for pixels in sorted({64, 128, usual}):
        example = torch.randn(2, 3, pixels, pixels)
        try:
            with torch.no_grad():
                model.train()(example)
                model.eval()(example)
        except Exception:
            continue
        return model, example, pixels
    raise RuntimeError(f"takes no images of {usual} pixels")


def _torchvision_names() -> list[str]:
    import torchvision

    return [name for name in torchvision.models.list_models() if not name.startswith(("quantized_", "raft"))]


def _torchvision_make(name: str) -> tuple[nn.Module, Any, int]:
    import torchvision

    builder = torchvision.models.get_model_builder(name)
    module = builder.__module__
    arguments = {"weights": None}
    if "detection" in module or "segmentation" in module:
        arguments["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = False
    if "detection" in module:
        return builder(**arguments).eval(), ([torch.rand(3, 128, 128)],), 128
    if "mvit" in name:  # its builders fix 16 frames of 224 pixels, on which it takes a quarter of an hour
        with mock.patch.object(torchvision.models.video.mvit, "MViT", _small_mvit):
            return builder(**arguments).eval(), torch.randn(1, 3, 8, 64, 64), 64
    if "video" in module:
        pixels = 224 if name == "s3d" else 64
        return builder(**arguments).eval(), torch.randn(1, 3, 16, pixels, pixels), pixels
    return _at_a_size(lambda: builder(**arguments), 299 if name == "inception_v3" else 224)


def _small_mvit(**arguments: Any) -> nn.Module:
    from torchvision.models.video import MViT

    return MViT(**arguments | {"spatial_size": (64, 64), "temporal_size": 8})


def _torchvision_family(name: str) -> str:
    import torchvision

    return torchvision.models.get_model_builder(name).__module__.partition("models.")[2]


def _smp(name: str) -> nn.Module:
    return _of("segmentation_models_pytorch", name)(encoder_name="resnet18", encoder_weights=None)


def _yolo(name: str) -> nn.Module:
    return _of("ultralytics.nn.tasks", "DetectionModel")(f"{name}.yaml", verbose=False)


def _monai(name: str) -> nn.Module:
    name, _, dims = name.partition("/")
    options = {"channels": (16, 32, 64), "strides": (2, 2), "num_res_units": 2} if name == "UNet" else {}
    return _of("monai.networks.nets", name)(spatial_dims=int(dims[0]), in_channels=3, out_channels=2, **options)


def _transformers(name: str) -> nn.Module:
    return _of("transformers", f"{name}ForImageClassification")(_of("transformers", f"{name}Config")())


def _efficientnet(name: str) -> nn.Module:
    return _of("efficientnet_pytorch", "EfficientNet").from_name(name, image_size=None)


def _of(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


OTHERS: dict[str, tuple[Callable[[str], nn.Module], list[str]]] = {
    "segmentation_models_pytorch": (
        _smp, ["Unet", "UnetPlusPlus", "FPN", "PSPNet", "DeepLabV3Plus", "Linknet", "MAnet", "PAN", "UPerNet"],
    ),
    "ultralytics": (_yolo, ["yolov5n", "yolov8n", "yolo11n", "yolov10n", "yolov9t"]),
    "monai": (_monai, ["UNet/2d", "UNet/3d", "SegResNet/2d", "DenseNet121/2d", "BasicUNet/2d"]),
    "transformers": (_transformers, ["ResNet", "ConvNext", "ConvNextV2", "MobileNetV1", "MobileNetV2", "RegNet"]),
    "efficientnet_pytorch": (_efficientnet, ["efficientnet-b0"]),
}  # fmt: skip


def _others_names() -> list[str]:
    return [f"{library}:{name}" for library, (_, names) in OTHERS.items() for name in names]


def _others_make(name: str) -> tuple[nn.Module, Any, int]:
    library, _, own = name.partition(":")
    if own.endswith("/3d"):
        return OTHERS[library][0](own).eval(), torch.randn(2, 3, 32, 32, 32), 32
    return _at_a_size(lambda: OTHERS[library][0](own), 256)


FAMILIES = {
    "torchvision": Catalogue(_torchvision_names, _torchvision_family, _torchvision_make),
    "timm": Catalogue(_timm_names, _timm_family, _timm_make),
    "others": Catalogue(_others_names, lambda name: name.partition(":")[0], _others_make),
}
