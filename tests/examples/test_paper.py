"""Every recipe of examples/paper runs on tiny data that lie on disk as the real ones do, and says what is wrong."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from examples.paper import ablations, classification, detection
from examples.paper.datasets import cifar10
from examples.paper.experiments import EXPERIMENTS
from examples.paper.launch import in_bf16
from nni_cafenet import (
    Budget,
    FlopsSensitiveBins,
    InvalidBatches,
    RandomSearch,
    SearchSpace,
    accuracy,
    build_space,
    count_macs,
    cross_entropy,
    load_slim,
    rebin,
    search_widths,
)
from tests.data import EXAMPLE, batches, net
from tests.examples import on_disk

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    on_disk.imagenet(tmp_path / "imagenet")
    on_disk.cifar10(tmp_path / "cifar10", monkeypatch)
    on_disk.celeba(tmp_path / "celeba", monkeypatch)
    return tmp_path


def command(name: str, data: Path, *more: str) -> list[str]:
    place = name.partition("-")[0]
    classes = ["--classes", "3"] if place == "imagenet" else []
    return [
        name, "--data", str(data / place), "--out", str(data / "out"), "--dry-run", "--workers", "0", *classes, *more
    ]  # fmt: skip


def results(data: Path) -> dict[str, dict[str, Any]]:
    """The rows that were written, by method."""
    rows = [json.loads(path.read_text()) for path in (data / "out").glob("*/result.json")]
    return {row["method"]: row for row in rows if "method" in row}


# CelebA: test_all_methods_share_a_supernet... and test_an_interrupted_command_goes_on
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "celeba" not in name])
def test_every_experiment_dry_runs_on_its_own_data(name: str, data: Path) -> None:
    methods = ["dense", "cafenet-e"] if EXPERIMENTS[name].distill else ["cafenet-r"]
    more = ["--widen", "1.5"] if "efficientnet" in name else []
    assert classification.main(command(name, data, "--method", *methods, *more)) == 0
    (folder,) = (data / "out").glob("cafenet-*")
    row = json.loads((folder / "result.json").read_text())
    assert 0 <= row["accuracy"] <= 1
    if not more:
        classes = 3 if "imagenet" in name else EXPERIMENTS[name].classes
        slim = load_slim(folder / "slim.safetensors", EXPERIMENTS[name].network, num_classes=classes)
        assert count_macs(slim, torch.zeros(1, 3, 32, 32)) == row["macs"]
        assert sum(parameter.numel() for parameter in slim.parameters()) == row["params"]


def test_all_methods_share_a_supernet_and_a_second_run_trains_nothing(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = []

    def counting(*arguments: Any, label: str, **named: Any) -> list[float]:
        trained.append(label)
        return fit(*arguments, label=label, **named)

    import nni_cafenet.phases
    import nni_cafenet.train

    fit = nni_cafenet.train.fit
    monkeypatch.setattr(nni_cafenet.train, "fit", counting)
    monkeypatch.setattr(nni_cafenet.phases, "fit", counting)
    steps = count_steps(monkeypatch)
    asked = command("celeba-mobilenet_v2", data)
    assert classification.main(asked) == 0
    rows = results(data)
    assert set(rows) == set(classification.METHODS)
    dense = rows.pop("dense")
    assert all(0.45 * dense["macs"] < row["macs"] <= 0.5 * dense["macs"] for row in rows.values())
    # 2 steps each: dense, one supernet and two searched networks, Uniform, two draws of Random, of which one ends there
    assert len(steps) == 2 * (1 + 1 + 2 + 1 + 2)
    assert trained.count("supernet") == 2  # the second one only loads

    printed = capsys.readouterr().out.splitlines()[-5:]
    monkeypatch.setattr(classification, "evaluating", None)  # nothing is looked at again either
    assert classification.main(asked) == 0
    assert len(steps) == 14
    assert capsys.readouterr().out.splitlines()[-5:] == printed


def count_steps(monkeypatch: pytest.MonkeyPatch, *, interrupt_at: int | None = None) -> list[int]:
    steps: list[int] = []
    step = torch.optim.SGD.step

    def counting(self: torch.optim.SGD, *arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == interrupt_at:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", counting)
    return steps


def test_two_processes_of_torchrun_write_one_result(tmp_path: Path) -> None:
    on_disk.imagenet(tmp_path / "imagenet")
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "examples.paper.classification"]
    asked = command("imagenet-mobilenet_v2", tmp_path, "--method", "dense", "uniform")
    done = subprocess.run(
        [sys.executable, "-m", *launch, *asked], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert set(results(tmp_path)) == {"dense", "uniform"}
    assert done.stdout.count('"method": "uniform"') == 1


def test_the_paper_s_networks_have_the_paper_s_size() -> None:
    macs = {
        name: count_macs(e.network(num_classes=e.classes), torch.zeros(1, 3, e.size, e.size)) / 1e6
        for name, e in EXPERIMENTS.items()
    }
    paper = {
        "imagenet-resnet50": 4100, "imagenet-mobilenet_v2": 300, "imagenet-efficientnet_b0": 386,
        "cifar10-mobilenet_v2": 297, "cifar10-vgg": 399, "celeba-mobilenet_v2": 213, "celeba-resnet18": 1300,
    }  # fmt: skip
    assert macs == pytest.approx(paper, rel=0.05)


def test_what_is_selected_by_is_not_trained_on(data: Path) -> None:
    splits = cifar10(data / "cifar10", size=32, classes=10, seed=0)
    assert not {*splits.train.indices} & {*splits.valid.indices}
    assert sorted([*splits.train.indices, *splits.valid.indices]) == sorted(splits.whole.indices) == list(range(40))
    assert splits.test.source is not splits.train.source
    image = splits.valid[0][0]
    assert torch.equal(image, splits.valid[0][0])
    assert any(not torch.equal(splits.train[0][0], splits.train[0][0]) for _ in range(5))
    other = cifar10(data / "cifar10", size=32, classes=10, seed=1)
    assert other.valid.indices != splits.valid.indices


def test_bf16_casts_the_arithmetic_and_not_the_weights() -> None:
    model = net()
    seen: list[torch.dtype] = []
    next(module for module in model.modules() if isinstance(module, nn.Conv2d)).register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).float().square().mean()

    images = torch.zeros(2, 3, 8, 8) if next(model.parameters()).shape[1] == 3 else torch.zeros(2, 1, 8, 8)
    in_bf16(loss, enabled=True)(model, images).backward()
    in_bf16(loss, enabled=False)(model, images)
    assert seen == [torch.bfloat16, torch.float32]
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters() if parameter.grad is not None)


def test_supernets_train_and_search_in_bf16() -> None:
    def best(enabled: bool) -> tuple[float, torch.dtype]:
        result = search_widths(
            net(), build_space(net(), EXAMPLE), train_batches=batches(), valid_batches=batches(seed=5), epochs=15,
            budget=Budget(max_macs="60%"), loss_fn=in_bf16(cross_entropy, enabled=enabled),
            score_fn=in_bf16(accuracy, enabled=enabled), searcher=RandomSearch(evaluations=10), progress=False,
            recalibrate_batches=4,
        )  # fmt: skip
        return result.best.score, next(result.supernet.parameters()).dtype

    (score, dtype), (exact, _) = best(True), best(False)
    assert dtype == torch.float32
    assert score > 0.6 and score == pytest.approx(exact, abs=0.15)


def test_an_interrupted_command_goes_on(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count_steps(monkeypatch, interrupt_at=3)  # the first one after the supernet's two
    asked = command("celeba-resnet18", data, "--method", "cafenet-r")
    assert classification.main(asked) == 130
    assert not results(data)
    assert classification.main(asked) == 0
    assert len(steps) == 3 + 2
    assert set(results(data)) == {"cafenet-r"}


def test_the_readme_s_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {module.__name__: module for module in (classification, ablations, detection)}
    for module in modules.values():
        monkeypatch.setattr(module, "guarded", lambda run: 0)
    text = (ROOT / "examples" / "paper" / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"-m (examples\.paper\.\w+) (.+)", text)
    assert {name for name, _ in commands} == set(modules)
    for name, arguments in commands:
        assert modules[name].main(shlex.split(arguments)) == 0
    for name, e in EXPERIMENTS.items():
        rows = re.findall(rf"^\| .*`{name} .*--macs (\S+)`", text, re.M)
        assert set(e.budgets) <= {float(macs) for macs in rows}


def refusal(name: str, data: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert classification.main(command(name, data, "--method", "uniform", *more)) == 1
    return capsys.readouterr().err


def test_missing_data_are_named_with_how_to_get_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal("imagenet-resnet50", tmp_path, capsys)
    assert f"there is no folder {tmp_path / 'imagenet' / 'train'}" in message and "image-net.org" in message
    message = refusal("cifar10-vgg", tmp_path, capsys)
    assert (
        f"there is no folder {tmp_path / 'cifar10' / 'cifar-10-batches-py'}" in message and "download=True" in message
    )
    message = refusal("celeba-resnet18", tmp_path, capsys)
    assert f"there is no folder {tmp_path / 'celeba' / 'celeba'}" in message and "gdown" in message


def test_interrupted_downloads_are_recognised(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "cifar10/cifar-10-batches-py/data_batch_3").write_bytes(b"half")
    assert "data_batch_3 is damaged" in refusal("cifar10-vgg", data, capsys)
    (data / "cifar10/cifar-10-batches-py/data_batch_3").unlink()
    assert "there is no file" in refusal("cifar10-vgg", data, capsys)

    (data / "celeba/celeba/img_align_celeba/000007.jpg").unlink()
    assert "lacks 1 of 30 images, such as 000007.jpg" in refusal("celeba-resnet18", data, capsys)

    (data / "imagenet/train/n00000001.tar").touch()
    assert "n00000001.tar is still packed, so unpacking was interrupted" in refusal("imagenet-resnet50", data, capsys)


def test_other_classes_than_the_head_s_are_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal("imagenet-resnet50", data, capsys, "--classes", "1000")
    assert "train has 3 folders of classes, and the network's head has 1000" in message and "--classes 3" in message
    assert "has 10 classes, and the network's head has 12" in refusal("cifar10-vgg", data, capsys, "--classes", "12")
    (data / "imagenet/val/n00000000").rename(data / "imagenet/val/other")
    assert "have other classes: n00000000, other" in refusal("imagenet-resnet50", data, capsys)
    for image in (data / "imagenet/train/n00000000").iterdir():
        image.unlink()
    assert "is not complete: Found no valid file for the classes n00000000" in refusal(
        "imagenet-resnet50", data, capsys
    )


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_corrupt_image_is_named(workers: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = list((data / "celeba/celeba/img_align_celeba").iterdir())
    for image in images:
        image.write_bytes(image.read_bytes()[:600])
    (message,) = refusal("celeba-resnet18", data, capsys, "--workers", workers).splitlines()
    assert re.search(r"^error: .*\d{6}.jpg cannot be read .* interrupted\?", message)


def test_a_student_without_its_teacher_is_refused_before_anything_is_trained(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = build_space(net(), EXAMPLE)
    monkeypatch.setattr(classification, "build_space", lambda *_, **__: small)
    message = refusal("imagenet-mobilenet_v2", data, capsys)
    assert "learn from the dense one" in message and "--method dense" in message


def test_a_budget_that_cannot_be_met_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is more than the full network has" in refusal("celeba-resnet18", data, capsys, "--macs", "9e9")


def test_fresh_copies_differ_in_weights_alone() -> None:
    model = net()
    before = [parameter.clone() for parameter in model.parameters()]
    factory = partial(classification.fresh, model)
    one, other = factory(), factory()
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_each_ablation_changes_what_its_name_says(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, dict[str, Any]] = {}
    whole = build_space(torchvision.models.resnet18(num_classes=40), torch.zeros(1, 3, 32, 32))

    def spaces(model: nn.Module, example: torch.Tensor, *, min_bin: float, bins: Any) -> SearchSpace:
        return rebin(whole, bins or FlopsSensitiveBins(min_bin))

    def searching(model: nn.Module, space: SearchSpace, **settings: Any) -> None:
        settings["bins"] = max(space.largest.bins_kept)
        seen[Path(settings["checkpoint"]).parts[-3]] = settings
        raise InvalidBatches("stop")

    monkeypatch.setattr(classification, "build_space", spaces)
    monkeypatch.setattr(classification, "search_widths", searching)
    for arm in ("r=1", "r=3", "lambda=0.5", "fixed,training*3,search*2", "bins=10", "min_bin=4"):
        assert ablations.main(command("celeba-resnet18", data, "--arm", arm)) == 1
    base = seen["r=1"]
    assert (base["sharing"].offset, base["random_share"], base["epochs"]) == (1, 0, 1)
    assert base["searcher"].evaluations == 4 and base["budget"] == Budget(max_macs="50%")

    def changed(arm: str) -> set[str]:
        rest = {"checkpoint", "train_batches", "valid_batches", "optimizer_fn", "loss_fn", "score_fn"}
        return {name for name in base if name not in rest and repr(seen[arm][name]) != repr(base[name])}

    assert changed("r=3") == {"sharing"} and seen["r=3"]["sharing"].offset == 3
    assert changed("lambda=0.5") == {"random_share"} and seen["lambda=0.5"]["random_share"] == 0.5
    fixed = seen["fixed,training*3,search*2"]
    assert changed("fixed,training*3,search*2") == {"sharing", "epochs", "searcher"}
    assert (fixed["sharing"].offset, fixed["epochs"], fixed["searcher"].evaluations) == (0, 3, 8)
    assert changed("bins=10") == changed("min_bin=4") == {"bins"}
    assert seen["bins=10"]["bins"] <= 11 < seen["min_bin=4"]["bins"] < base["bins"]


def test_ablations_dry_run_into_a_table(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablations.main(command("celeba-resnet18", data, "--arm", "lambda=1.0")) == 0
    head, line = capsys.readouterr().out.splitlines()[-2:]
    assert head.split() == ["arm", "MACs", "accuracy"]
    assert line.split()[0] == "lambda=1.0"
