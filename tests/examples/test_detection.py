"""The searched backbone inside torchvision's detectors, on COCO's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from examples.paper import detection
from examples.paper.datasets import BadData, Detections, coco
from nni_cafenet import SubNetwork, build_space, save_slim, slice_model
from nni_cafenet.tracing.trial import randomise
from tests.examples import on_disk

pytest.importorskip("pycocotools")


def slim_resnet(path: Path) -> nn.Module:
    """Half the channels of a ResNet-18, which is quicker to look at than a ResNet-50 and built alike."""
    model = torchvision.models.resnet18(num_classes=3)
    randomise(model, seed=0)
    space = build_space(model, torch.zeros(1, 3, 32, 32))
    widths = type(space.largest)(tuple((bins + 1) // 2 for bins in space.largest.bins_kept))
    slim = slice_model(model, space, SubNetwork.fixed(widths))
    save_slim(slim, space, SubNetwork.fixed(widths), path)
    return slim


def command(detector: str, data: Path, *more: str) -> list[str]:
    return [
        detector, "--network", "resnet50", "--backbone", str(data / "slim.safetensors"), "--backbone-classes", "3",
        "--data", str(data / "coco"), "--out", str(data / "out" / detector), "--classes", "3", "--dry-run",
        "--workers", "0", *more,
    ]  # fmt: skip


def test_both_detectors_dry_run_and_keep_their_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_disk.coco(tmp_path / "coco")
    slim_resnet(tmp_path / "slim.safetensors")
    monkeypatch.setitem(detection.NETWORKS, "resnet50", torchvision.models.resnet18)
    for kind in detection.LR:
        assert detection.main(command(kind, tmp_path)) == 0
        row = json.loads((tmp_path / "out" / kind / "result.json").read_text())
        assert row["detector"] == kind and 0 <= row["mAP"] <= 1
        capsys.readouterr()
        monkeypatch.setattr(detection, "train_model", None)
        assert detection.main(command(kind, tmp_path)) == 0  # done: nothing is trained
        assert json.loads(capsys.readouterr().out) == row
        monkeypatch.undo()
        monkeypatch.setitem(detection.NETWORKS, "resnet50", torchvision.models.resnet18)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_feature_maps_are_those_of_the_classifier(name: str) -> None:
    model = getattr(torchvision.models, name)(num_classes=3)
    randomise(model, seed=0)
    model.eval()
    inside: dict[str, torch.Tensor] = {}
    layers = dict(getattr(model, "features", model).named_children())
    body, levels = detection.feature_maps(model)
    for layer, _ in levels:
        layers[layer].register_forward_hook(lambda module, inputs, out, layer=layer: inside.update({layer: out}))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        model(images)
        before = dict(inside)
        detection.freeze(body, until=levels[0][0])
        maps = detection.pyramid(body, levels, LastLevelMaxPool()).eval().body(images)
    assert [tuple(out.shape[1:]) for out in maps.values()] == [
        (channels, 64 // stride, 96 // stride) for (_, channels), stride in zip(levels, (4, 8, 16, 32), strict=True)
    ]
    for out, (layer, _) in zip(maps.values(), levels, strict=True):
        torch.testing.assert_close(out, before[layer], rtol=1e-4, atol=1e-4)


def test_norms_and_the_first_layers_are_frozen() -> None:
    body, levels = detection.feature_maps(torchvision.models.resnet18())
    detection.freeze(body, until=levels[0][0])
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in body.modules()) == 20
    learning = {name.partition(".")[0] for name, weight in body.named_parameters() if weight.requires_grad}
    assert learning == {"layer2", "layer3", "layer4"}


def test_boxes_are_corners_and_follow_a_flip(tmp_path: Path) -> None:
    train, val = coco(on_disk.coco(tmp_path), classes=3)
    assert (len(train), len(val), train.categories) == (5, 6, 90)  # the image that shows nothing is not trained on
    image, target = val[0]
    assert image.shape == (3, 48, 64) and target["boxes"].tolist() == [[4, 5, 24, 35]] and target["image_id"] == 1
    seen = [Detections(val.source, [0], flip=True)[0] for _ in range(30)]
    boxes = {tuple(target["boxes"][0].tolist()) for _, target in seen}
    assert boxes == {(4, 5, 24, 35), (40, 5, 60, 35)}
    assert all(
        torch.equal(other, image if target["boxes"][0, 0] == 4 else image.flip(-1)) for other, target in seen
    )  # fmt: skip


def test_perfect_detections_have_an_map_of_one(tmp_path: Path) -> None:
    _, val = coco(on_disk.coco(tmp_path), classes=3)

    class Oracle(nn.Module):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            targets = [next(target for image, target in val if torch.equal(image, seen)) for seen in images]
            return [{**target, "scores": torch.ones(len(target["boxes"]))} for target in targets]

    batches = [detection.as_lists([val[0], val[1]]), detection.as_lists([val[2]])]
    found = detection.detections(Oracle(), batches)
    assert len(found) == 3
    assert detection.mean_ap(val.first(3), found) == pytest.approx(1)
    assert detection.mean_ap(val, found) < 1
    assert detection.mean_ap(val, []) == 0


def test_the_schedule_warms_up_and_falls_twice() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = detection.in_three_steps(optimizer, 12_000)
    rates = []
    for _ in range(12_000):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-3) and rates[1000] == rates[7999] == 1
    assert rates[8000] == pytest.approx(0.1) and rates[11_000] == pytest.approx(0.01)


def test_damaged_coco_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"there is no folder .*train2017: get train2017.zip"):
        coco(tmp_path, classes=3)
    on_disk.coco(tmp_path)
    with pytest.raises(BadData, match=r"instances_train2017.json has 3 categories, and 80 are expected"):
        coco(tmp_path, classes=80)
    (tmp_path / "val2017" / f"{2:012}.jpg").write_bytes(b"no image")
    with pytest.raises(BadData, match=r"000000000002.jpg cannot be read"):
        list(coco(tmp_path, classes=3)[1])
    (tmp_path / "val2017" / f"{3:012}.jpg").unlink()
    with pytest.raises(BadData, match=r"val2017 lacks 1 of 6 images, such as 000000000003.jpg"):
        coco(tmp_path, classes=3)
    listed = tmp_path / "annotations" / "instances_train2017.json"
    listed.write_text(listed.read_text()[:200])
    with pytest.raises(BadData, match=r"instances_train2017.json is damaged .* interrupted download"):
        coco(tmp_path, classes=3)


def test_a_missing_backbone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on_disk.coco(tmp_path / "coco")
    assert detection.main(command("retinanet", tmp_path)) == 1
    assert "there is no file" in capsys.readouterr().err
