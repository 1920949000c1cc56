from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.nn import functional as F

from nni_cafenet import UnsupportedModel, build_space, count_macs, slice_model
from nni_cafenet.export.slicing import slice_layers
from nni_cafenet.widths import kept_positions
from tests import models
from tests.built import built, some_subnetworks
from tests.models import NETWORKS, example, make
from tests.snapshots import Snapshot


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_fvcore_s_in_eval_mode(name: str) -> None:
    model, _ = built(name)
    analysis = FlopCountAnalysis(model.eval(), example(1)).unsupported_ops_warnings(False)
    assert count_macs(model, example()) == analysis.total()


def test_a_convolution_costs_one_multiply_add_for_each_weight_and_position() -> None:
    """Equation 6."""
    model = nn.Conv2d(3, 8, 5, stride=2, padding=2)
    assert count_macs(model, torch.randn(4, 3, 12, 12)) == 3 * 8 * 6 * 6 * 5 * 5
    assert count_macs(nn.Conv2d(8, 8, 3, groups=4), torch.randn(1, 8, 5, 5)) == 2 * 8 * 3 * 3 * 3 * 3
    assert count_macs(nn.Linear(10, 7), torch.randn(3, 10)) == 70


def test_counting_leaves_the_model_unchanged() -> None:
    model = make(models.Residual)
    model.stem.eval()
    before = Snapshot(model)
    count_macs(model, example())
    before.assert_unchanged()


def test_a_model_in_train_mode_is_counted_as_in_eval_mode() -> None:
    model = make(models.Residual)
    assert count_macs(model.train(), example()) == count_macs(model.eval(), example())


def test_counting_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    model = make(models.Concat)
    level = logging.getLogger("fvcore.nn.jit_analysis").level
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("error")
        count_macs(model, example())
    assert [record for record in caplog.records if "fvcore" in record.name] == []
    assert logging.getLogger("fvcore.nn.jit_analysis").level == level


def test_a_slash_in_a_layer_s_name_is_refused() -> None:
    """fvcore reads names off a graph, where it separates them."""
    model = nn.Sequential()
    model.add_module("conv/1", nn.Conv2d(3, 4, 3))
    with pytest.raises(UnsupportedModel, match=r"fvcore cannot count the MACs of Sequential .* must not hold a '/'"):
        count_macs(model, example())


def test_what_fvcore_does_not_count_is_reported() -> None:
    class Activated(models.Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.sigmoid(torch.sigmoid(x)))

    space = build_space(make(Activated), example())
    assert dict(space.uncounted)["aten::sigmoid"] == 2


def test_keyword_inputs_cost_what_positional_ones_do() -> None:
    model = make(models.TwoInputs)
    image, vector = example(), torch.randn(2, 4)
    assert count_macs(model, {"image": image, "vector": vector}) == count_macs(model, (image, vector))
    keyword = build_space(model, {"vector": vector, "image": image})
    assert keyword.fingerprint() == build_space(model, (image, vector)).fingerprint()


def test_layer_macs_are_the_counts_by_module() -> None:
    model, space = built("residual")
    for sub in some_subnetworks(space):
        slim = slice_model(model, space, sub).eval()
        by_module = FlopCountAnalysis(slim, example(1)).unsupported_ops_warnings(False).by_module()
        layers = space.cost.layer_macs(sub.widths)
        for layer in ("stem.0", "inner1.0", "outer2.1", "fc"):
            assert layers[layer] == by_module[layer]


def test_two_poolings_of_different_groups_in_one_forward_are_told_apart() -> None:
    class TwoPools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 10, 3)
            self.fc = nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = F.adaptive_avg_pool2d(self.left(x), 1), F.adaptive_avg_pool2d(self.right(x), 1)
            return self.fc(torch.cat([left, right], 1).flatten(1))

    model = make(TwoPools)
    space = build_space(model, example())
    assert [group.name for group in space.groups] == ["left", "right"]
    for sub in some_subnetworks(space, 5):
        assert space.cost.macs(sub.widths) == count_macs(slice_model(model, space, sub), example())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("reused", "split_shuffled")])
def test_sensitivities_are_what_one_unit_costs(name: str) -> None:
    """Equation 7, by counting without the unit; a layer within one group is quadratic in it, so left out."""
    model, space = built(name)
    full = count_macs(model, example())
    for index, group in enumerate(space.groups):
        kept = [None] * len(space.groups)
        kept[index] = np.arange(1, group.units)
        less = count_macs(slice_layers(model, kept_positions(space.axes, kept)), example())
        assert space.cost.macs_per_unit()[index] == full - less
