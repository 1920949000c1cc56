"""The paper's table 5: a searched backbone in RetinaNet and in Faster R-CNN with FPN, fine-tuned on COCO.

python -m examples.paper.detection retinanet --network resnet50 --backbone OUT/cafenet-e-2000M-seed0/slim.safetensors \
    --data DIR --out DIR
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from examples.paper.datasets import Detections, coco
from examples.paper.launch import add_options, device, guarded, in_bf16, loader, say
from nni_cafenet import Recipe, load_slim, train_model
from nni_cafenet.checkpoint import Checkpoint
from nni_cafenet.distributed import from_first, rank
from nni_cafenet.modes import evaluating
from nni_cafenet.supernet.objectives import to_device

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet50": torchvision.models.resnet50,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
}
EPOCHS, BATCH, WEIGHT_DECAY, WARMUP = 12, 16, 1e-4, 1000  # the usual "1x" schedule; the paper does not tell its own
LR = {"retinanet": 0.01, "faster-rcnn": 0.02}
PYRAMID = 256  # channels of the FPN


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", choices=LR)
    add_options(parser)
    parser.add_argument("--network", required=True, choices=NETWORKS, help="what the backbone was cut from")
    parser.add_argument(
        "--backbone", required=True, metavar="FILE", help="slim.safetensors of classification.py, of any of its methods"
    )
    parser.add_argument("--backbone-classes", type=int, default=1000, help="of its own head (default %(default)s)")
    parser.add_argument("--classes", type=int, default=80, help="categories of the data (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default %(default)s")
    options = parser.parse_args(arguments)
    return guarded(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Train the detector on train2017, score it on val2017 once; OUT/result.json."""
    train, val = coco(Path(options.data), classes=options.classes)
    slim = load_slim(options.backbone, NETWORKS[options.network], num_classes=options.backbone_classes)
    sizes = {"min_size": 64, "max_size": 96} if options.dry_run else {"min_size": 800, "max_size": 1333}
    epochs, batch = (1, 2) if options.dry_run else (options.epochs, BATCH)
    if options.dry_run:
        train, val = train.first(4), val.first(4)
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        model = detector(options.detector, slim, categories=train.categories, **sizes).to(device())
    sgd = partial(torch.optim.SGD, lr=LR[options.detector], momentum=0.9, weight_decay=WEIGHT_DECAY)
    recipe = Recipe(epochs, sgd, in_three_steps)
    settings = {
        **recipe.settings(), "detector": options.detector, "backbone": str(options.backbone), "seed": options.seed,
        "dry_run": options.dry_run,
    }  # fmt: skip
    done = Checkpoint(options.out, "done", settings)
    row = done.load()
    if row is None:
        cast = partial(in_bf16, enabled=device().type == "cuda" and not options.no_bf16)
        batches = partial(loader, workers=options.workers, collate=as_lists)
        train_model(
            model, batches(train, batch=batch, train=True), recipe, loss_fn=cast(detection_loss), seed=options.seed,
            checkpoint=Checkpoint(options.out, "training", settings), label=options.detector,
        )  # fmt: skip
        with evaluating(model):
            found = from_first(detections(model, batches(val, batch=batch, train=False)))
        row = {"detector": options.detector, "backbone": str(options.backbone), "mAP": mean_ap(val, found)}
        if rank() == 0:
            (Path(options.out) / "result.json").write_text(json.dumps(row, indent=2) + "\n")
        done.save(row)
    say(json.dumps(row))


def detector(kind: str, classifier: nn.Module, *, categories: int, **sizes: int) -> nn.Module:
    """torchvision's detector on the feature maps of `classifier` at strides 4 to 32, however wide they are.

    BatchNorm is frozen, and so is all up to stride 4, as is usual for fine-tuning with few images a device.

    Args:
        categories: the highest category's number; 0 is the background.
        sizes: min_size and max_size of images, in pixels.
    """
    body, levels = feature_maps(classifier)
    freeze(body, until=levels[0][0])
    if kind == "retinanet":
        backbone = pyramid(body, levels[1:], LastLevelP6P7(PYRAMID, PYRAMID))
        return RetinaNet(backbone, categories + 1, **sizes)
    return FasterRCNN(pyramid(body, levels, LastLevelMaxPool()), categories + 1, **sizes)


def feature_maps(classifier: nn.Module) -> tuple[nn.Sequential, list[tuple[str, int]]]:
    """A network's layers up to its pooling, and the last one at each stride from 4 to 32 with its channels."""
    features = getattr(classifier, "features", None)  # MobileNetV2's; a ResNet's stand beside its pooling and its head
    layers = OrderedDict((features or classifier).named_children())
    body = nn.Sequential(OrderedDict((name, layer) for name, layer in layers.items() if name not in ("avgpool", "fc")))
    last: dict[int, tuple[str, int]] = {}
    with torch.no_grad(), evaluating(body):
        maps = torch.zeros(1, 3, 64, 64)
        for name, layer in body.named_children():
            maps = layer(maps)
            last[64 // maps.shape[-1]] = (name, maps.shape[1])
    return body, [last[stride] for stride in (4, 8, 16, 32)]


def pyramid(body: nn.Module, levels: Sequence[tuple[str, int]], extra: nn.Module) -> BackboneWithFPN:
    names = {name: str(number) for number, (name, _) in enumerate(levels)}
    return BackboneWithFPN(body, names, [channels for _, channels in levels], PYRAMID, extra)


def freeze(body: nn.Sequential, *, until: str) -> None:
    """BatchNorm as constants everywhere, and no gradients up to the layer `until`."""
    for parent in list(body.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                constant = FrozenBatchNorm2d(norm.num_features, norm.eps)
                constant.load_state_dict(norm.state_dict())
                setattr(parent, name, constant)
    for name, layer in body.named_children():
        layer.requires_grad_(False)
        if name == until:
            return


def in_three_steps(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """A linear warm-up; then a tenth after 8 of 12 epochs, and a hundredth after 11."""
    warmup = min(WARMUP, steps)
    return LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * 0.1 ** sum(step >= steps * at / 12 for at in (8, 11))
    )


def as_lists(batch: Iterable[tuple[Any, Any]]) -> list[list[Any]]:
    """Images differ in size, so they are not stacked."""
    return [list(part) for part in zip(*batch, strict=True)]


def detection_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """The sum of what torchvision's detectors return in train mode."""
    images, targets = to_device(batch, model)
    return torch.stack([loss.float() for loss in model(images, targets).values()]).sum()


def detections(model: nn.Module, batches: Iterable[Any]) -> list[dict[str, Any]]:
    """What the model finds, as COCO's results format has it: boxes are (x, y, width, height) in pixels."""
    found = []
    for images, targets in batches:
        with torch.no_grad():
            answers = model(to_device(images, model))
        for target, answer in zip(targets, answers, strict=True):
            columns = [answer[key].tolist() for key in ("boxes", "labels", "scores")]
            for (left, top, right, bottom), label, score in zip(*columns, strict=True):
                box = [left, top, right - left, bottom - top]
                found.append({"image_id": target["image_id"], "category_id": label, "bbox": box, "score": score})
    return found


def mean_ap(images: Detections, found: list[dict[str, Any]]) -> float:
    """COCO's mAP over IoU 0.5 to 0.95, 0 to 1, by pycocotools."""
    from pycocotools.cocoeval import COCOeval

    if not found:
        return 0.0
    with redirect_stdout(io.StringIO()):  # pycocotools prints
        judge = COCOeval(images.source.coco, images.source.coco.loadRes(found), "bbox")
        judge.params.imgIds = images.image_ids
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])


if __name__ == "__main__":
    sys.exit(main())
