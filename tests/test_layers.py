from __future__ import annotations

import pytest
from torch import nn

from nni_cafenet.layers import axis_size, axis_tensors, owns_its_tensors, resized_attributes

LAYERS = {
    "conv": nn.Conv2d(6, 4, 3),
    "conv without bias": nn.Conv1d(6, 4, 3, bias=False),
    "transposed": nn.ConvTranspose2d(6, 4, 3),
    "grouped": nn.Conv2d(6, 4, 3, groups=2),
    "transposed depthwise": nn.ConvTranspose2d(6, 6, 3, groups=6),
    "linear": nn.Linear(6, 4),
    "batch norm": nn.BatchNorm2d(4),
    "plain batch norm": nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    "instance norm": nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "layer norm": nn.LayerNorm((3, 4)),
    "prelu": nn.PReLU(4),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("side", ["in", "out"])
def test_a_tensor_of_an_axis_has_a_slice_for_each_channel(name: str, side: str) -> None:
    layer = LAYERS[name]
    size = axis_size(layer, side)
    one_sided = "norm" in name or name == "prelu"
    assert size == (6 if name == "transposed depthwise" or (side == "in" and not one_sided) else 4)
    for tensor, dim in axis_tensors(layer, side):
        assert getattr(layer, tensor).shape[dim] == size


@pytest.mark.parametrize("name", LAYERS)
def test_all_tensors_have_the_output_axis(name: str) -> None:
    layer = LAYERS[name]
    held = {key for key, tensor in layer.state_dict().items() if tensor.dim()}
    assert {tensor for tensor, _ in axis_tensors(layer, "out")} == held


def test_a_grouped_convolution_keeps_whole_conv_groups() -> None:
    assert axis_tensors(LAYERS["grouped"], "in") == ()
    assert resized_attributes(LAYERS["grouped"], "out", 2) == {"out_channels": 2, "in_channels": 3, "groups": 1}
    assert resized_attributes(LAYERS["grouped"], "in", 3) == {}


@pytest.mark.parametrize(
    ("name", "side", "attributes"),
    [
        ("conv", "in", {"in_channels": 2}),
        ("transposed", "out", {"out_channels": 2}),
        ("linear", "in", {"in_features": 2}),
        ("batch norm", "out", {"num_features": 2}),
        ("layer norm", "out", {"normalized_shape": (3, 2)}),
        ("prelu", "out", {"num_parameters": 2}),
    ],
)
def test_a_narrower_axis_changes_the_layer_s_numbers(name: str, side: str, attributes: dict[str, object]) -> None:
    assert resized_attributes(LAYERS[name], side, 2) == attributes


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.PReLU(), nn.Embedding(3, 4), nn.Dropout()])
def test_other_layers_have_no_axis(layer: nn.Module) -> None:
    assert axis_size(layer, "out") is None
    assert axis_size(layer, "in") is None


def test_a_computed_weight_is_not_the_layer_s_own() -> None:
    assert owns_its_tensors(nn.Conv2d(1, 1, 1))
    assert owns_its_tensors(nn.BatchNorm2d(1, affine=False))
    assert not owns_its_tensors(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert not owns_its_tensors(nn.utils.spectral_norm(nn.Linear(2, 2)))
