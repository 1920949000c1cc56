"""Other people's pruners keep to a budget by our counter, and leave the dense network as it was."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from nni_cafenet import Budget, SearchSpace, SingleChannels, build_space, count_macs, rebin, slice_model
from tests.snapshots import Snapshot

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
EXAMPLE = torch.zeros(1, 1, 8, 8)
BATCHES = [(torch.randn(8, 1, 8, 8), torch.arange(8) % 4) for _ in range(3)]


class Net(nn.Module):
    """A residual block of 24 channels, and two convolutions of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.conv, self.bn2 = nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.wide, self.bn3 = nn.Conv2d(24, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.stem(x)).relu()
        x = (x + self.bn2(self.conv(x))).relu()
        return self.head(self.bn3(self.wide(x)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def rivals() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("rivals")
    sys.modules.pop("rivals", None)


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    model = Net()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    return model.eval()


def space_of(model: nn.Module) -> SearchSpace:
    return rebin(build_space(model, EXAMPLE), SingleChannels())


NAMES = [
    *(f"tp-{kind}-{where}" for kind in ("magnitude", "slimming", "taylor", "hessian", "random")
      for where in ("global", "local")),
    *(f"nni-{kind}" for kind in ("l1", "fpgm", "slim", "taylor")),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_rival_fits_the_budget_and_changes_nothing(rivals: ModuleType, dense: nn.Module, name: str) -> None:
    space = space_of(dense)
    limits = space.limits(Budget(max_macs="45%"))
    before, state = Snapshot(dense), torch.random.get_rng_state()
    chosen = [rivals.choose(name, dense, space, limits, BATCHES, example=EXAMPLE, seed=1) for _ in range(2)]
    before.assert_unchanged()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert chosen[0] == chosen[1]
    macs = count_macs(slice_model(dense, space, chosen[0]), EXAMPLE)
    assert macs == space.cost.macs(chosen[0].widths)
    assert 0.8 * limits.max_macs < macs <= limits.max_macs


@pytest.mark.parametrize("name", ["tp-magnitude-global", "tp-magnitude-local", "nni-l1", "nni-fpgm"])
def test_magnitudes_decide(rivals: ModuleType, dense: nn.Module, name: str) -> None:
    """Channels of next to no weight go first; for FPGM, which looks for what is near to others, equal ones do."""
    with torch.no_grad():
        dense.wide.weight[::2] *= 1e-3
        dense.bn3.weight[::2] *= 1e-3
        dense.head.weight[:, ::2] *= 1e-3
    space = space_of(dense)
    place = [group.name for group in space.groups].index("wide")
    sub = rivals.choose(name, dense, space, space.limits(Budget(max_macs="55%")), BATCHES, example=EXAMPLE, seed=0)
    kept, heavy = set(sub.kept[place]), set(range(1, 32, 2))
    assert kept < heavy or kept > heavy


def test_nni_s_masks_of_layers_that_are_added_up_agree(rivals: ModuleType, dense: nn.Module) -> None:
    """Else merging them would keep nearly all channels: two independent halves leave three quarters."""
    space = space_of(dense)
    sub = rivals.choose("nni-l1", dense, space, space.limits(Budget(max_macs="25%")), BATCHES, example=EXAMPLE, seed=0)
    shares = [len(kept) / group.units for kept, group in zip(sub.kept, space.groups, strict=True)]
    assert max(shares) - min(shares) < 0.1


def test_what_cannot_be_reached_is_said(rivals: ModuleType, dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    space = space_of(dense)
    limits = space.limits(Budget(max_macs="20%"))
    monkeypatch.setitem(rivals.RIVALS, "tp-magnitude-global", lambda task: stopped(task))

    def stopped(task: Any) -> None:
        raise task.unreachable(space.largest)

    reason = f"comes down to {space.cost.macs(space.largest):,} MACs, and the budget is {limits.max_macs:,}"
    with pytest.raises(rivals.Unreachable, match=reason):
        rivals.choose("tp-magnitude-global", dense, space, limits, BATCHES, example=EXAMPLE, seed=0)


def test_an_unknown_rival_is_told_the_nearest(rivals: ModuleType, dense: nn.Module) -> None:
    space = space_of(dense)
    with pytest.raises(ValueError, match="tp-taylor-global"):
        rivals.choose(
            "tp-tailor-global", dense, space, space.limits(Budget(max_macs="50%")), [], example=EXAMPLE, seed=0
        )
