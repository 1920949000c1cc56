"""The command line: the demo end to end, a user's own factories, a kill in the middle, and mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from nni_cafenet import Evolution, PredictorSearch, RandomSearch, cli, count_macs, load_slim
from nni_cafenet.cli import main
from nni_cafenet.demo import IMAGE_SHAPE, DigitsNet

SHORT = ["--epochs", "2", "--train-epochs", "1", "--runs", "1"]
SMALL = [*SHORT, "--evaluations", "6"]

OWN = """
import torch
from torch import nn

def net(width=6):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))

def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(48, 3, 8, 8, generator=generator)
    batches = list(zip(images.split(16), (images.mean((1, 2, 3)) > 0).long().split(16)))
    return batches[:2], batches[2:]

def four():
    return [], [], [], []
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def test_demo_makes_a_slim_network_within_the_budget(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), *SMALL]) == 0
    result = json.loads((out / "result.json").read_text())
    assert set(result) >= {"dense", "budget", "slim", "uniform", "random", "widths", "seconds", "seed"}
    assert result["budget"]["max_macs"] == int(0.35 * result["dense"]["macs"])
    slim = load_slim(out / "slim.safetensors", DigitsNet)
    assert count_macs(slim, torch.zeros(IMAGE_SHAPE)) == result["slim"]["macs"] <= result["budget"]["max_macs"]
    assert result["widths"]["stem.0"] == slim.stem[0].out_channels
    for name in ("uniform", "random"):
        assert 0.8 * result["budget"]["max_macs"] <= result[name]["macs"] <= result["budget"]["max_macs"]
    assert {path.name for path in out.iterdir()} >= {"widths.csv", "history.csv", "report.html", "slim.safetensors"}
    printed = capsys.readouterr().out
    assert "Uniform" in printed and "report.html" in printed

    before = (out / "result.json").read_text()
    (out / "report.html").unlink()
    assert main(["report", str(out)]) == 0
    assert (out / "report.html").is_file() and (out / "result.json").read_text() == before


@pytest.mark.parametrize("phase", ["supernet", "dense-0"])
def test_killed_demo_goes_on_to_the_same_result(tmp_path, phase):
    command = [sys.executable, "-m", "nni_cafenet.cli", "demo", *SMALL, "--epochs", "12", "--train-epochs", "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "unbroken")], env=environment, check=True, capture_output=True)

    broken = tmp_path / "broken"
    running = subprocess.Popen([*command, "--out", str(broken)], env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 120
    while not (broken / "checkpoints" / f"{phase}.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (broken / "result.json").exists()
    subprocess.run([*command, "--out", str(broken)], env=environment, check=True, capture_output=True)

    results = [json.loads((folder / "result.json").read_text()) for folder in (tmp_path / "unbroken", broken)]
    for result in results:
        del result["seconds"], result["command"]
    assert results[0] == results[1]
    histories = [(folder / "history.csv").read_text() for folder in (tmp_path / "unbroken", broken)]
    assert histories[0] == histories[1]


def test_inspect_prints_the_report(own, capsys):
    assert main(["inspect", "--model", f"{own}:net", "--model-args", "width=8", "--input", "1,3,8,8"]) == 0
    printed = capsys.readouterr().out
    assert "2 groups" in printed and "it is the model's output" in printed


def test_inspect_as_json_prints_nothing_else(own, capsys):
    loud = own.read_text().replace("def net(width=6):", "def net(width=6):\n    print('made')")
    own.write_text(loud)
    assert main(["inspect", "--model", f"{own}:net", "--input", "1,3,8,8", "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert "made" in printed.err
    assert [group["name"] for group in report["groups"]] == ["0", "3"]
    assert report["model"]["params"] == 3 * 6 * 9 + 6 + 12 + 6 * 6 * 9 + 6 + 6 * 2 + 2
    assert report["frozen"][0]["reason"] == "it is the model's output"


def test_bins_of_single_layers_come_from_the_command_line(own, capsys):
    arguments = ["inspect", "--model", f"{own}:net", "--input", "1,3,8,8", "--json"]
    assert main([*arguments, "--bins", "3=2", "*=3"]) == 0
    assert [group["bin_size"] for group in json.loads(capsys.readouterr().out)["groups"]] == [3, 2]
    assert main([*arguments, "--bins", "4=2"]) == 1
    assert "bins= names '4', which matches no searchable layer; the nearest: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [
        ["--searcher", "random", "--evaluations", "6"],
        ["--searcher", "greedy", "--generations", "2"],
        ["--searcher", "evolution", "--population", "3", "--generations", "2"],
        ["--evaluations", "6", "--finalists", "3"],
        ["--evaluations", "6", "--from-dense"],
        ["--evaluations", "6", "--weights", "inherited", "--tune-epochs", "1"],
        ["--evaluations", "6", "--trained", "--finalists", "3", "--teach"],
        ["--evaluations", "6", "--supernets", "2"],
        ["--train-each", "1", "--evaluations", "9"],
    ],
)
def test_search_runs_a_users_own_factories(own, tmp_path, capsys, options):
    out = tmp_path / "run"
    arguments = ["search", "--model", f"{own}:net", "--data", f"{own}:data", "--budget", "60%", "--out", str(out)]
    assert main([*arguments, *SHORT, *options]) == 0
    result = json.loads((out / "result.json").read_text())
    assert ("finalists" in result["seconds"], "dense" in result["seconds"]) == (
        "--finalists" in options, not {"--from-dense", "--weights", "--trained"}.isdisjoint(options),
    )  # fmt: skip
    assert ("as their teacher" in result["accuracy_of"]) == ("--teach" in options)
    assert ("before" in result) == (not {"--weights", "--trained"}.isdisjoint(options))
    assert result["slim"]["macs"] <= 0.6 * result["dense"]["macs"]
    assert "no test loader" in capsys.readouterr().out


def test_searchers_ask_for_as_many_networks_as_told(own, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "compare_widths", lambda *_, **options: asked.append(options["searcher"]))
    monkeypatch.setattr(cli, "_print", lambda *_: None)
    arguments = ["search", "--model", f"{own}:net", "--data", f"{own}:data", "--budget", "60%", "--out", str(tmp_path)]
    evolution = ["--searcher", "evolution"]
    for flags in ([], ["--searcher", "random"], ["--train-each", "5"], ["--train-each", "5", "--evaluations", "30"],
                  evolution, [*evolution, "--population", "10"], ["--evaluations", "500"]):  # fmt: skip
        assert main([*arguments, *flags]) == 0
    assert [(type(searcher), searcher.evaluations) for searcher in asked] == [
        (PredictorSearch, 400), (RandomSearch, 400), (PredictorSearch, 72), (PredictorSearch, 30), (Evolution, 400),
        (Evolution, 200), (PredictorSearch, 500),
    ]  # fmt: skip
    assert main([*arguments, "--evaluations", "0"]) == main([*arguments, *evolution, "--generations", "0"]) == 1

    for flags, message in {
        ("--evaluations", "30", *evolution): "--evaluations is for --searcher predictor or random, .* is evolution",
        ("--generations", "30"): "--generations is for --searcher evolution or greedy, .* is predictor",
        ("--population", "30", "--searcher", "random"): "--population is for --searcher evolution, .* is random",
        ("--from-uniform", "--train-each", "5"): "--from-uniform is for --searcher evolution, .* is predictor",
    }.items():
        with pytest.raises(SystemExit):
            main([*arguments, *flags])
        assert re.search(message, capsys.readouterr().err)


def test_what_is_beyond_the_paper_is_a_flag_each(own, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cli, "compare_widths", lambda *_, **options: asked.append(options))
    monkeypatch.setattr(cli, "_print", lambda *_: None)
    arguments = ["search", "--model", f"{own}:net", "--data", f"{own}:data", "--budget", "60%", "--out", str(tmp_path)]
    arguments += ["--searcher", "evolution"]
    flags = ["--from-dense", "--sandwich", "--distill", "--from-uniform"]
    assert main(arguments) == main([*arguments, *flags]) == main([*arguments, *flags, "--supernet-lr", "0.2"]) == 0
    assert main([*arguments, "--random-share", "1", "--score-candidates", "sampled:1", "--ema", "0.9"]) == 0

    def seen(options):
        made = options["optimizer_fn"]([torch.nn.Parameter(torch.zeros(1))])
        names = ("from_dense", "sandwich", "distill")
        return (*(options[name] for name in names), options["searcher"].from_uniform, made.param_groups[0]["lr"])

    *others, last = asked
    plain, beyond, quick = map(seen, others)
    assert plain == (False, False, False, False, 0.1)
    assert beyond == (True, True, True, True, pytest.approx(0.1 / 3))
    assert quick == (True, True, True, True, 0.2)
    assert [(each["random_share"], each["score_candidates"], each["ema"]) for each in (others[0], last)] == [
        (0, None, 0), (1, "sampled:1", 0.9)
    ]  # fmt: skip


def test_inherited_weights_are_trained_gently(own, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli, "compare_widths", lambda *_, **options: asked.append(options))
    monkeypatch.setattr(cli, "_print", lambda *_: None)
    arguments = ["search", "--model", f"{own}:net", "--data", f"{own}:data", "--budget", "60%", "--out", str(tmp_path)]
    arguments += ["--train-epochs", "9"]
    for flags in ([], ["--weights", "inherited"], ["--trained"], ["--trained", "--tune-epochs", "2", "--tune-lr", "1"]):
        assert main([*arguments, *flags]) == 0

    def lr(make):
        return make([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]

    assert asked[0]["tuning"] is None
    assert [
        (each["weights"], each["trained"], each["from_dense"], each["tuning"].epochs, lr(each["tuning"].optimizer_fn),
         lr(each["optimizer_fn"]), lr(each["recipe"].optimizer_fn))
        for each in asked[1:]
    ] == [
        ("inherited", False, True, 9, pytest.approx(0.1 / 3), pytest.approx(0.1 / 3), 0.1),
        (None, True, True, 9, pytest.approx(0.1 / 3), pytest.approx(0.1 / 3), 0.1),
        (None, True, True, 2, 1, pytest.approx(0.1 / 3), 0.1),
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        main([*arguments, "--tune-lr", "1"])
    assert "--weights inherited" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--model": "torchvision.models"}, "PKG.MOD:NAME or path.py:NAME"),
        ({"--model": "torchvision.models:resnet81"}, "has no function or class 'resnet81'; the nearest: resnet18"),
        ({"--model": "no_such_package:net"}, "cannot import 'no_such_package'"),
        ({"--model": "missing.py:net"}, "there is no file missing.py"),
        ({"--data": "{own}:four"}, "must return"),
        ({"--input": "1,3,x"}, "--input takes a shape"),
        ({"--model-args": "width"}, "KEY=VALUE"),
        ({"--bins": "0=wide"}, "--bins takes LAYER=SIZE"),
        ({"--bins": "0"}, "--bins takes LAYER=SIZE"),
        ({"--supernet-lr": "0"}, "--supernet-lr: must be a number above 0, but got '0'"),
        ({"--lr": "small"}, "--lr: must be a number above 0, but got 'small'"),
    ],
)
def test_wrong_command_line_says_what_is_wrong(own, tmp_path, capsys, changed, message):
    options = {"--model": f"{own}:net", "--data": f"{own}:data", "--budget": "60%", "--out": str(tmp_path / "run")}
    options.update({key: value.format(own=own) for key, value in changed.items()})
    with pytest.raises(SystemExit, match="2"):
        main(["search", *(word for pair in options.items() for word in pair)])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("budget", ["1%", "150%", "0", "-5%", "half", "nan"])
def test_impossible_budget_says_what_is_possible(own, tmp_path, capsys, budget):
    arguments = ["search", "--model", f"{own}:net", "--data", f"{own}:data", "--out", str(tmp_path / "run")]
    assert main([*arguments, f"--budget={budget}"]) == 1
    error = capsys.readouterr().err
    assert "smallest possible" in error and "largest possible" in error
    assert not (tmp_path / "run").exists()


def test_report_of_a_folder_without_a_run_is_an_error(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err
