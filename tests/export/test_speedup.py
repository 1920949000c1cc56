"""NNI's ModelSpeedup with our masks cuts out what slice_model does, or an error says so."""

import copy
import logging

import numpy as np
import pytest
import torch
import torchvision
from nni.compression.speedup import ModelSpeedup
from torch import nn

from nni_cafenet import LocallyFree, SubNetwork, UniformBins, UnsupportedModel, Widths, build_space, slice_model
from nni_cafenet.export import speedup as export_speedup
from nni_cafenet.export.speedup import masks, speedup
from nni_cafenet.nas import compat
from nni_cafenet.tracing.trial import randomise
from tests.built import built, some_subnetworks
from tests.models import example, make
from tests.snapshots import Snapshot


def vgg16_bn():
    model = torchvision.models.VGG(
        torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True), init_weights=False
    )
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))
    return model


FACTORIES = {
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "vgg16_bn": vgg16_bn,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
}


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 5)

    def forward(self, image, scale):
        return self.fc((self.conv2(self.conv1(image).relu()) * scale).mean((2, 3)))


# with these NNI can do what it does with all it can do, whatever Python's version
SMALL = ("plain", "residual", "depthwise", "concat", "flatten", "squeeze_excite", "grouped", "frozen", "reused")


def free_subnetwork(space):
    """Locally free, and not the leftmost bins everywhere."""
    sub = space.sample(np.random.default_rng(0), sharing=LocallyFree(offset=2))
    assert sub != SubNetwork.fixed(sub.widths)
    return sub


def assert_equal_networks(quick, slim, x):
    assert type(quick) is type(slim)
    assert quick.state_dict().keys() == slim.state_dict().keys()
    assert all(torch.equal(tensor, quick.state_dict()[name]) for name, tensor in slim.state_dict().items())
    assert [module.training for module in quick.modules()] == [module.training for module in slim.modules()]
    assert [p.requires_grad for p in quick.parameters()] == [p.requires_grad for p in slim.parameters()]
    with torch.no_grad():
        torch.testing.assert_close(quick.eval()(x), slim.eval()(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FACTORIES)
def test_networks_of_torchvision_come_out_as_slice_model_cuts_them(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = FACTORIES[name](), torch.randn(2, 3, 32, 32)
    randomise(model, seed=0)
    next(model.parameters()).requires_grad_(False)
    list(model.children())[1].eval()
    space = build_space(model, x, bins=UniformBins(8))
    sub = free_subnetwork(space)
    assert_equal_networks(speedup(model, space, sub, example_inputs=x), slice_model(model, space, sub), x)


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_come_out_as_slice_model_cuts_them(name):
    model, space = built(name)
    for count in model.buffers():
        if not count.is_floating_point():
            count.fill_(7)  # the batches that a BatchNorm has seen
    for sub in some_subnetworks(space, 1):
        quick = speedup(model, space, sub, example_inputs=example())
        assert_equal_networks(quick, slice_model(model, space, sub), example())


def test_masks_are_what_model_speedup_takes():
    compat.patch()
    model, space = built("depthwise")
    sub, x = free_subnetwork(space), example()
    quick = copy.deepcopy(model).eval()
    ModelSpeedup(quick, x, masks(model, space, sub)).speedup_model()
    slim = slice_model(model, space, sub).eval()
    torch.testing.assert_close(quick.eval()(x), slim(x), rtol=1e-5, atol=1e-6)
    assert quick.depthwise[0].weight.shape == slim.depthwise[0].weight.shape
    assert slim.depthwise[0].groups < model.depthwise[0].groups


def test_a_masked_model_gives_the_sliced_one_s_outputs():
    model, space = built("grouped")
    sub = free_subnetwork(space)
    masked = copy.deepcopy(model).eval()
    with torch.no_grad():
        for layer, own in masks(model, space, sub).items():
            for name, mask in own.items():
                parameter = masked.get_submodule(layer).get_parameter(name)
                assert mask.shape == parameter.shape and not mask.requires_grad
                assert set(mask.unique().tolist()) <= {0.0, 1.0}
                parameter.mul_(mask)
        expected = slice_model(model, space, sub).eval()(example())
        assert (model.eval()(example()) - expected).abs().max() > 1e-2
        torch.testing.assert_close(masked(example()), expected, rtol=1e-5, atol=1e-6)


def test_masks_name_the_same_layers_for_every_sub_network():
    model, space = built("residual")
    small, full = (masks(model, space, SubNetwork.fixed(widths)) for widths in (space.smallest, space.largest))
    assert list(small) == list(full)
    assert "fc" not in full and "stem.1" in full and full["project.0"].keys() == {"weight"}
    assert all(mask.all() for own in full.values() for mask in own.values())
    assert small["inner1.0"]["weight"].flatten(1).any(1).sum() == space.channels(space.smallest)["inner1.0"]


def test_nothing_of_the_caller_s_is_changed(capfd):
    model, space = built("residual")
    model(example()).sum().backward()
    model.outer1.eval()
    before, state, level = Snapshot(model), torch.random.get_rng_state(), logging.getLogger("nni").level
    speedup(model, space, free_subnetwork(space), example_inputs=example())
    before.assert_unchanged()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert logging.getLogger("nni").level == level
    assert capfd.readouterr() == ("", "")


def test_gradients_do_not_come_along():
    model, space = built("norms")
    model(example()).sum().backward()
    assert model.scale.grad is not None
    quick = speedup(model, space, SubNetwork.fixed(space.largest), example_inputs=example())
    assert all(parameter.grad is None for parameter in quick.parameters())


def test_keyword_inputs_are_handed_to_nni_in_the_forward_s_order():
    model = make(Scaled)
    inputs = {"scale": torch.rand(2, 1, 1, 1), "image": example()}
    space = build_space(model, inputs)
    sub = SubNetwork.fixed(space.smallest)
    quick = speedup(model, space, sub, example_inputs=inputs).eval()
    expected = slice_model(model, space, sub).eval()(**inputs)
    assert torch.equal(quick(**inputs), expected)


def test_what_nni_fails_on_is_an_error_with_the_remedy():
    model, space = built("transposed")
    before = Snapshot(model)
    with pytest.raises(UnsupportedModel, match=r"fails on Transposed \(RuntimeError: .*use slice_model"):
        speedup(model, space, free_subnetwork(space), example_inputs=example())
    before.assert_unchanged()
    assert logging.getLogger("nni").level != logging.CRITICAL


def test_another_network_than_asked_for_is_an_error_that_names_the_tensors(monkeypatch):
    """NNI silently keeps the channels of a residual add that not all layers mask."""
    model, space = built("residual")
    sub = free_subnetwork(space)
    incomplete = masks(model, space, sub)
    del incomplete["project.0"]
    kept = space.positions(sub)["outer2.0", "out"]
    assert len(kept) < 16
    monkeypatch.setattr(export_speedup, "masks", lambda *_: incomplete)
    with pytest.raises(UnsupportedModel, match=r"cuts another network out of Residual: .*use slice_model"):
        speedup(model, space, sub, example_inputs=example())


@pytest.mark.parametrize("network", ["tied", "weights", "outputs"])
def test_a_network_of_the_right_widths_that_is_another_one_is_an_error(monkeypatch, network):
    model, space = built("tied" if network == "tied" else "plain")
    run = export_speedup._run_nni
    what = {"tied": "does not have the same tensors", "weights": "bn2.bias has other values", "outputs": "its outputs"}

    def otherwise(quick, *rest):
        run(quick, *rest)
        if network == "weights":
            quick.bn2.bias.data[0] += 1
        if network == "outputs":
            quick.bn2.eps = 1.0

    monkeypatch.setattr(export_speedup, "_run_nni", otherwise)
    with pytest.raises(UnsupportedModel, match=f"{what[network]}.*use slice_model"):
        speedup(model, space, SubNetwork.fixed(space.smallest), example_inputs=example())


def test_a_narrowed_bare_parameter_has_no_mask():
    model, space = built("norms")
    with pytest.raises(UnsupportedModel, match=r"narrows scale, .*use slice_model"):
        masks(model, space, SubNetwork.fixed(space.smallest))


def test_masks_of_another_space_or_model_are_refused():
    model, space = built("plain")
    with pytest.raises(ValueError, match="the sub-network has 1 groups and this space 3"):
        masks(model, space, SubNetwork.fixed(Widths((1,))))
    with pytest.raises(UnsupportedModel, match="use the space built from this model"):
        masks(nn.Sequential(nn.Conv2d(3, 8, 3)), space, SubNetwork.fixed(space.largest))
