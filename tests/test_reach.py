"""Third-party networks of every kind, sliced at random and compared: a sample of examples/benchmarks/reach.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).parents[1] / "examples" / "benchmarks" / "reach.py"

# the share of the MACs in layers with a searchable side, at least
MODELS = {
    ("torchvision", "shufflenet_v2_x0_5"): 0.99,  # split and shuffled channels
    ("torchvision", "densenet121"): 1.0,  # concatenations all the way
    ("torchvision", "squeezenet1_1"): 1.0,
    ("torchvision", "regnet_y_400mf"): 1.0,  # grouped convolutions, squeeze and excitation
    ("torchvision", "lraspp_mobilenet_v3_large"): 0.95,  # segmentation, a dict of outputs
    ("torchvision", "ssdlite320_mobilenet_v3_large"): 0.5,  # detection: heads over six feature maps
    ("torchvision", "mnasnet0_5"): 1.0,
    ("timm", "convnextv2_atto"): 1.0,  # LayerNorm over channels last, statistics over places, bare parameters
    ("timm", "ghostnet_050"): 0.9,  # slices in the forward
    ("timm", "cs3darknet_s"): 0.9,  # halves in the forward
    ("timm", "nf_regnet_b0"): 0.9,  # weights standardised in the forward
    ("timm", "poolformerv2_s12"): 0.9,  # GroupNorm
    ("timm", "mobilevit_xxs"): 0.7,  # attention between convolutions
}


@pytest.fixture(scope="module")
def reach() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reach", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reach"] = module  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PATH.parent)  # as it is for a script
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("library", "name"), MODELS)
def test_a_third_party_network_is_sliced_rightly(reach: ModuleType, library: str, name: str) -> None:
    row = reach.examine(library, name)
    assert row.verdict in ("ok", "frozen"), row.reason
    assert row.error <= reach.TOLERANCE
    assert row.searchable >= MODELS[library, name]


def test_rows_survive_the_file(reach: ModuleType, tmp_path: Path) -> None:
    rows = [
        reach.Row("timm", "a", "one", 64, "ok", 1.0, 0.25, 3, 1, 0.5, 0.0, "ok", 'a "reason", with a comma'),
        reach.Row("timm", "b", "two", reason="no reason"),
    ]
    reach.write_csv(tmp_path / "reach.csv", reach.Row, rows)
    assert reach.read_csv(tmp_path / "reach.csv", reach.Row) == rows
    assert "2 models of 2 families: 1 crashed, 1 ok; 1 (50%) with more than half" in reach.summary(rows)
    assert reach.read_csv(tmp_path / "missing.csv", reach.Row) == []
