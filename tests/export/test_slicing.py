from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch_pruning.pruner import function

from nni_cafenet import (
    FullyFree,
    LocallyFree,
    SubNetwork,
    Supernet,
    UniformBins,
    UnsupportedModel,
    Widths,
    build_space,
    rebin,
    slice_model,
)
from nni_cafenet.export.slicing import slice_layers
from nni_cafenet.layers import axis_size
from tests import models
from tests.built import built, some_subnetworks
from tests.models import NETWORKS, example, make
from tests.snapshots import Snapshot

# a statistic over channels changes with their number, so masks say something else of these
MASKABLE = [name for name in NETWORKS if name not in ("norms", "across_channels")]


def masked(model: nn.Module, positions: dict[tuple[str, str], np.ndarray]) -> nn.Module:
    """The full network whose readers get zeros for the channels that are not kept."""
    model = copy.deepcopy(model)
    layers = dict(model.named_modules())
    for (name, side), kept in positions.items():
        layer = layers[name]
        if side == "in" and getattr(layer, "groups", 1) == 1:
            mask = torch.zeros(axis_size(layer, "in"), dtype=torch.float64)
            mask[kept] = 1
            mask = mask if isinstance(layer, nn.Linear) else mask.view(1, -1, 1, 1)
            layer.register_forward_pre_hook(lambda module, inputs, mask=mask: (inputs[0] * mask,))
    return model


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", MASKABLE)
def test_a_sliced_model_equals_the_masked_full_one(name: str, train: bool) -> None:
    model, space = built(name)
    model.double().train(train)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    images = example(4).double()
    for pattern in (LocallyFree(offset=1), FullyFree()):
        for sub in some_subnetworks(space, 2, sharing=pattern):
            expected = masked(model, space.positions(sub))(images)
            torch.testing.assert_close(slice_model(model, space, sub)(images), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_slice_is_a_copy_of_the_original_class_with_its_keys_modes_and_attributes(name: str) -> None:
    model, space = built(name)
    next(model.children()).eval()
    model(example()).sum().backward()
    for sub in some_subnetworks(space):
        slim = slice_model(model, space, sub)
        assert type(slim) is type(model)
        assert list(slim.state_dict()) == list(model.state_dict())
        assert [module.training for module in slim.modules()] == [module.training for module in model.modules()]
        assert all(parameter.grad is None and parameter.is_leaf for parameter in slim.parameters())
        originals = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        assert originals.isdisjoint(tensor.data_ptr() for tensor in [*slim.parameters(), *slim.buffers()])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_s_numbers_match_its_tensors(name: str) -> None:
    model, space = built(name)
    for sub in some_subnetworks(space):
        for module in slice_model(model, space, sub).modules():
            if isinstance(module, nn.ConvTranspose2d):
                assert module.weight.shape[:2] == (module.in_channels, module.out_channels // module.groups)
            elif isinstance(module, nn.Conv2d):
                assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
            elif isinstance(module, nn.Linear):
                assert module.weight.shape == (module.out_features, module.in_features)
            elif isinstance(module, (nn.BatchNorm2d, nn.InstanceNorm2d)):
                assert {
                    len(tensor) for tensor in (module.weight, module.bias, module.running_mean, module.running_var)
                } == {module.num_features}
            elif isinstance(module, nn.LayerNorm):
                assert module.weight.shape == module.bias.shape == module.normalized_shape
            elif isinstance(module, nn.PReLU):
                assert module.weight.shape == (module.num_parameters,)


@pytest.mark.parametrize("name", NETWORKS)
def test_slicing_leaves_the_model_unchanged(name: str) -> None:
    model, space = built(name)
    model(example()).sum().backward()
    before = Snapshot(model)
    for sub in some_subnetworks(space):
        slice_model(model, space, sub)
    before.assert_unchanged()


def test_the_full_sub_network_is_the_model() -> None:
    for name in NETWORKS:
        model, space = built(name)
        model.eval()
        slim = slice_model(model, space, SubNetwork.fixed(space.largest))
        assert torch.equal(slim(example()), model(example()))


def test_kept_channels_hold_the_original_s_values() -> None:
    model, space = built("plain")
    sub = SubNetwork(Widths((2, 1, 1)), ((1, 3), (0,), (2,)))
    space = rebin(space, UniformBins(4))  # of 2, 3 and 4 channels
    slim = slice_model(model, space, sub)
    assert torch.equal(slim.conv1.weight, model.conv1.weight[[2, 3, 6, 7]])
    assert torch.equal(slim.bn1.running_mean, model.bn1.running_mean[[2, 3, 6, 7]])
    assert torch.equal(slim.conv2.weight, model.conv2.weight[:3][:, [2, 3, 6, 7]])
    assert torch.equal(slim.conv3.bias, model.conv3.bias[8:12])
    assert torch.equal(slim.fc.weight, model.fc.weight[:, 8:12])
    assert torch.equal(slim.fc.bias, model.fc.bias)
    assert slim.bn1.num_batches_tracked == model.bn1.num_batches_tracked


def test_trainable_parameters_stay_so_and_the_others_not() -> None:
    """torch-pruning gives every parameter that it cuts requires_grad=True."""
    model, space = built("frozen")
    for sub in some_subnetworks(space):
        slim = slice_model(model, space, sub)
        found = {name for name, parameter in slim.named_parameters() if not parameter.requires_grad}
        assert found == {"stem.0.weight", "stem.1.weight", "stem.1.bias", "head.bias"}


def test_an_instance_norm_s_running_statistics_are_cut() -> None:
    """torch-pruning leaves them at full width."""
    model, space = built("norms")
    slim = slice_model(model, space, SubNetwork.fixed(space.smallest))
    assert slim.instance.running_mean.shape == slim.instance.running_var.shape == slim.instance.weight.shape
    assert len(slim.instance.running_mean) < 8


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_slicing_does_not_depend_on_what_else_used_torch_pruning(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pruners are shared by all callers and keep the dimension that the last one pruned."""
    for pruner in function.PrunerBox.values():
        monkeypatch.setattr(pruner, "pruning_dim", dim)
    slim = slice_layers(nn.Sequential(nn.LayerNorm((3, 4)), nn.Linear(4, 2)), {
        ("0", "out"): np.array([0, 2]), ("1", "in"): np.array([0, 2]),
    })  # fmt: skip
    assert slim[0].normalized_shape == (3, 2)
    assert slim[0].weight.shape == (3, 2)
    assert slim[1].weight.shape == (2, 2)


def test_slices_of_slices_are_slices() -> None:
    model, space = built("residual")
    wide = SubNetwork.fixed(Widths(tuple(max(bins.count // 2, 1) for bins in space.bins)))
    half = slice_model(model, space, wide)
    inner = build_space(half, example())
    again = slice_model(half, inner, SubNetwork.fixed(inner.smallest))
    channels = inner.channels(inner.smallest)
    assert again.stem[0].out_channels == channels["stem.0"]
    assert torch.equal(again.stem[0].weight, model.stem[0].weight[: channels["stem.0"]])


def test_a_sliced_model_can_be_pickled_saved_and_trained() -> None:
    model, space = built("residual")
    slim = slice_model(model, space, SubNetwork.fixed(space.smallest))
    twin = pickle.loads(pickle.dumps(slim))
    assert torch.equal(twin.eval()(example()), slim.eval()(example()))
    optimizer = torch.optim.SGD(slim.parameters(), lr=0.1)
    slim(example()).sum().backward()
    optimizer.step()
    assert not torch.equal(twin(example()), slim(example()))


@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_channels_last_weights_are_sliced_like_others_and_stay_so(name: str) -> None:
    model, space = built(name)
    model.eval()
    sub = some_subnetworks(space)[2]
    expected = slice_model(model, space, sub)(example())
    model = model.to(memory_format=torch.channels_last)
    slim = slice_model(model, space, sub)
    torch.testing.assert_close(slim(example()), expected, rtol=1e-5, atol=1e-6)
    as_torch_would = [each.stride() for each in copy.deepcopy(slim).to(memory_format=torch.channels_last).parameters()]
    assert [each.stride() for each in slim.parameters()] == as_torch_would
    with Supernet(model, space).running(sub):
        assert [each.stride() for each in model.parameters()] == as_torch_would
        torch.testing.assert_close(model(example()), expected, rtol=1e-5, atol=1e-6)


def test_positions_of_an_unknown_layer_or_beyond_a_layer_are_refused() -> None:
    model = make(models.Plain)
    with pytest.raises(UnsupportedModel, match="'nothing'"):
        slice_layers(model, {("nothing", "dim0"): np.array([0])})
    with pytest.raises(UnsupportedModel, match="conv1"):
        slice_layers(model, {("conv1", "out"): np.array([0, 8])})
    with pytest.raises(UnsupportedModel, match="nothing"):
        slice_layers(model, {("nothing", "out"): np.array([0])})


def test_a_sub_network_of_another_space_is_refused() -> None:
    model, space = built("plain")
    with pytest.raises(ValueError, match="the sub-network has 1 groups and this space 3"):
        slice_model(model, space, SubNetwork.fixed(Widths((1,))))


def test_a_wide_layer_norm_keeps_the_order_of_its_channels() -> None:
    """torch-pruning takes the indices that stay in the order of a set, which is not theirs above some hundred."""
    norm = nn.LayerNorm(1000)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1000.0))
    kept = np.sort(np.random.default_rng(0).choice(1000, 290, replace=False))
    slim = slice_layers(nn.Sequential(norm), {("0", "out"): kept})[0]
    assert slim.weight.tolist() == kept.tolist()
    assert slim.normalized_shape == (290,)
