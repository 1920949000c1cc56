"""NNI's local training service confirms the best models: trials are processes, and none is left. About a minute."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

JUDGE = """
import os
import nni
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x)).relu()).relu().mean((2, 3)))


def judge(model, offset):
    assert type(model) is Net
    nni.report_intermediate_result(0.5)
    nni.report_final_result(float(model.a.out_channels + offset))
    with open(os.environ["PROCESSES"], "a") as file:
        file.write(f"{os.getpid()}\\n")
"""

PROGRAM = """
import json, sys, urllib.request, warnings
warnings.simplefilter("ignore")
import torch
from judge_for_trials import Net, judge
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni_cafenet import Budget, CafeNet, RandomSearch, WidthModelSpace

port = int(sys.argv[1])
config = NasExperimentConfig("ts", "simplified", "local")
config.experiment_working_directory = "."
config.trial_concurrency = 2
config.training_service.use_active_gpu = False
batches = [(torch.randn(32, 1, 8, 8), torch.randint(0, 10, (32,)))]
strategy = CafeNet(
    Budget("60%"), searcher=RandomSearch(evaluations=4), top_k=2, train_batches=batches, valid_batches=batches, epochs=1
)
space = WidthModelSpace(Net, example_shape=(1, 1, 8, 8))
experiment = NasExperiment(space, FunctionalEvaluator(judge, offset=100), strategy, config)
experiment.run(port=port)
found = {
    "channels": experiment.export_top_models(2, formatter="dict"),
    "metrics": [model.metric for model in experiment.export_top_models(2)],
    "types": [type(model).__name__ for model in experiment.export_top_models(2, formatter="instance")],
    "page": urllib.request.urlopen(f"http://localhost:{port}/").status,
    "trials": json.load(urllib.request.urlopen(f"http://localhost:{port}/api/v1/nni/trial-jobs")),
    "reports": json.load(urllib.request.urlopen(f"http://localhost:{port}/api/v1/nni/metric-data")),
}
experiment.stop()
print("FOUND" + json.dumps(found))
"""


def test_trials_of_a_training_service_have_the_last_word(tmp_path):
    (tmp_path / "judge_for_trials.py").write_text(JUDGE)
    (tmp_path / "program.py").write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PROCESSES": str(tmp_path / "processes"), "HOME": str(tmp_path)}
    started = subprocess.Popen(
        [sys.executable, "program.py", str(port)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = started.communicate(timeout=240)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    assert "FOUND" in output, output
    found = json.loads(output.rpartition("FOUND")[2].splitlines()[0])
    assert found["metrics"] == sorted((100.0 + channels["a"] for channels in found["channels"]), reverse=True)
    assert len(found["metrics"]) == 2
    assert found["types"] == ["Net", "Net"]
    assert found["page"] == 200
    assert [trial["status"] for trial in found["trials"]] == ["SUCCEEDED"] * 2
    assert sorted(report["type"] for report in found["reports"]) == ["FINAL"] * 2 + ["PERIODICAL"] * 2

    processes = {int(line) for line in (tmp_path / "processes").read_text().splitlines()}
    assert len(processes) == 2 and started.pid not in processes
    left = [name for name in Path("/proc").glob("[0-9]*/environ") if str(tmp_path).encode() in read(name)]
    assert left == []


def read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended, or is somebody else's
        return b""
