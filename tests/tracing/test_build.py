from __future__ import annotations

import copy
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import (
    SearchSpace,
    SubNetwork,
    Supernet,
    UnsupportedModel,
    Widths,
    build_space,
    count_macs,
    slice_model,
)
from tests import models
from tests.built import built, some_subnetworks
from tests.models import NETWORKS, PARTLY, SEARCHABLE, conv_bn, example, make
from tests.snapshots import Snapshot


def members(space: SearchSpace) -> set[str]:
    return {member for group in space.groups for member in group.members}


def frozen(space: SearchSpace) -> dict[str, str]:
    return {part.layer: part.reason for part in space.frozen}


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_equal_the_counts_of_sliced_models(name: str) -> None:
    model, space = built(name)
    for sub in some_subnetworks(space, 5):
        slim = slice_model(model, space, sub)
        assert space.cost.macs(sub.widths) == count_macs(slim, example())
        assert space.cost.params(sub.widths) == sum(parameter.numel() for parameter in slim.parameters())


@pytest.mark.parametrize("name", SEARCHABLE)
def test_every_layer_but_the_output_is_searchable(name: str) -> None:
    model, space = built(name)
    assert set(frozen(space).values()) == {"it is the model's output"}
    layers = {layer for layer, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    assert {f"{layer}.out" for layer in layers - set(frozen(space))} <= members(space)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_axis_of_a_group_is_listed_as_its_member(name: str) -> None:
    _, space = built(name)
    through = {(str(axis), int(group)) for axis in space.axes for group in axis.groups if group >= 0}
    assert through == {(member, i) for i, group in enumerate(space.groups) for member in group.members}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_caller_s_model_is_unchanged(name: str) -> None:
    model = make(NETWORKS[name])
    next(model.children()).eval()  # a mode that differs from its parent's
    model.register_forward_hook(lambda module, inputs, output: None)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = Snapshot(model)
    space = build_space(model, example())
    slice_model(model, space, SubNetwork.fixed(space.smallest))
    before.assert_unchanged()


@pytest.mark.parametrize("name", NETWORKS)
def test_building_and_slicing_leave_the_global_random_numbers_alone(name: str) -> None:
    model = make(NETWORKS[name])
    torch.manual_seed(5)
    before = torch.get_rng_state()
    np.random.seed(5)
    numpy_before = np.random.get_state()[1].copy()
    space = build_space(model, example())
    slice_model(model, space, SubNetwork.fixed(space.smallest))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_space_does_not_depend_on_the_weights_or_the_run(name: str) -> None:
    _, space = built(name)
    other = build_space(make(NETWORKS[name], seed=7), example(3, seed=8))
    assert other.fingerprint() == space.fingerprint()


# what cannot be searched


def test_tied_weights_are_frozen_with_the_layers_named() -> None:
    _, space = built("tied")
    assert [group.name for group in space.groups] == ["free.0"]
    assert frozen(space)["stem.0"] == "its weight is tied: left and right share one parameter"
    assert "left and right share one parameter" in space.describe()


def test_a_forward_that_slices_by_a_number_is_frozen_with_the_layer_named() -> None:
    _, space = built("hard_coded")
    assert [group.name for group in space.groups] == ["stem.0", "head.0"]
    assert "primary.0" in frozen(space)


@pytest.mark.parametrize("seed", range(6))
def test_a_forward_that_computes_with_the_number_of_channels_is_frozen_with_the_layer_named(seed: int) -> None:
    space = build_space(make(models.Counting, seed=seed), example())
    assert [group.name for group in space.groups] == ["stem.0", "head.0"]
    assert "the sliced network differs" in frozen(space)["middle.0"]


def test_a_parametrised_weight_is_frozen_with_the_reason() -> None:
    _, space = built("weight_normed")
    assert frozen(space)["stem"] == "its weight is computed by a parametrisation or a hook"


@pytest.mark.parametrize("name", PARTLY)
def test_describe_says_what_is_frozen_and_why(name: str) -> None:
    _, space = built(name)
    text = " ".join(space.describe().split())  # the report breaks its lines
    for part in space.frozen:
        assert part.layer in text
        assert part.reason.partition(" (")[0] in text
        assert part.hint in text


class NoGradStem(models.Plain):
    """A stem that runs without autograd, as frozen backbones often do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x))))))
        return self.fc(x.mean((2, 3)))


class Unused(models.Plain):
    """A layer that the forward never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Conv2d(8, 8, 1)


def test_a_layer_that_does_not_run_is_reported_as_frozen() -> None:
    space = build_space(make(Unused), example())
    assert "spare.out" not in members(space)
    assert frozen(space)["spare"].startswith("it does not run in the forward")


class Routed(models.Plain):
    """Values decide which of two layers runs."""

    def __init__(self) -> None:
        super().__init__()
        self.bright, self.dark = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = F.relu(self.bn1(self.conv1(x)))
        features = self.bright(features) if x.mean() > 0 else self.dark(features)
        features = F.relu(self.bn3(self.conv3(F.relu(self.bn2(self.conv2(features))))))
        return self.fc(features.mean((2, 3)))


def test_a_forward_that_decides_by_values_which_layers_run_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"reads values in the model.s own forward, .* does not run dark"):
        build_space(make(Routed), example().abs())
    with pytest.raises(UnsupportedModel, match="does not run bright: if values decide"):
        build_space(make(Routed), -example().abs())


class Scaled(models.Plain):
    """All layers run whatever the values, but what is done to the output depends on them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        return out / 2 if bool((out > 3).any()) else out


def test_a_forward_that_decides_by_values_what_to_do_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    build_space(make(Scaled), example())
    assert "the forward of Scaled reads values in the model's own forward: what it does with other" in caplog.text
    caplog.clear()
    build_space(make(models.Plain), example())
    assert caplog.text == ""


class Auxiliary(models.Plain):
    """A second head that runs in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> Any:
        features = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        classes = self.fc(F.relu(self.bn3(self.conv3(features))).mean((2, 3)))
        return (classes, self.auxiliary(features.mean((2, 3)))) if self.training else classes


def test_a_head_that_runs_in_train_mode_only_follows_what_it_reads() -> None:
    model = make(Auxiliary)
    space = build_space(model, example())
    for sub in some_subnetworks(space):
        slim = slice_model(model, space, sub).train()
        assert [out.shape for out in slim(example())] == [(2, 5), (2, 5)]


@pytest.mark.parametrize("factory", [NoGradStem, Unused])
def test_layers_without_a_gradient_are_sliced_and_counted(factory: Any) -> None:
    model = make(factory)
    space = build_space(model, example())
    assert {"conv1.out", "conv2.out"} <= members(space)
    for sub in some_subnetworks(space):
        slim = slice_model(model, space, sub)
        assert space.cost.params(sub.widths) == sum(parameter.numel() for parameter in slim.parameters())


class Attention(nn.Module):
    """A MultiheadAttention over positions, which is not sliced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_bn(3, 6), nn.Conv2d(6, 8, 3, stride=4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(F.relu(self.stem(x))).flatten(2).transpose(1, 2)
        return self.fc(self.attention(x, x, x)[0].mean(1))


def test_what_feeds_an_attention_is_frozen_and_the_rest_is_not() -> None:
    space = build_space(make(Attention), example())
    # what leaves the attention is an ordinary linear layer's
    assert [group.name for group in space.groups] == ["stem.0", "attention.out_proj"]
    assert frozen(space)["body"] == "it feeds a MultiheadAttention, which is not sliced"


# parameters without gradients


def test_parameters_without_gradients_are_searched_and_stay_without() -> None:
    model, space = built("frozen")
    assert [group.name for group in space.groups] == ["stem.0", "body.0", "head"]
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert not trainable["stem.0.weight"]
    assert trainable["body.0.weight"]
    for sub in some_subnetworks(space):
        slim = slice_model(model, space, sub)
        assert {name: parameter.requires_grad for name, parameter in slim.named_parameters()} == trainable


def test_a_model_without_any_gradient_has_the_same_space() -> None:
    model, space = built("residual")
    model.requires_grad_(False)
    assert build_space(model, example()).fingerprint() == space.fingerprint()


def test_a_space_can_be_built_without_autograd_around() -> None:
    model, space = built("residual")
    with torch.no_grad():
        assert build_space(model, example()).fingerprint() == space.fingerprint()


# options


@pytest.mark.parametrize("round_to", [2, 4, 8])
def test_round_to_makes_every_channel_count_a_multiple(round_to: int) -> None:
    model, _ = built("residual")
    space = build_space(model, example(), round_to=round_to)
    assert space.groups
    for group, bins in zip(space.groups, space.bins, strict=True):
        assert group.channels % round_to == 0
        assert all(edge % round_to == 0 for edge in bins.edges)
    for layer, reason in frozen(space).items():
        if layer != "fc":
            assert reason.endswith(f"channels are no multiple of round_to={round_to}")
    assert ("inner1.0" in frozen(space)) == (10 % round_to > 0)


def test_round_to_and_conv_groups_hold_together() -> None:
    model, _ = built("grouped")
    space = build_space(model, example(), round_to=4)
    assert [(group.name, group.unit) for group in space.groups] == [("reduce.0", 3), ("expand.0", 2)]
    assert [bins.size for bins in space.bins] == [12, 4]


@pytest.mark.parametrize("least", [1, 3, 5, 100])
def test_min_channels_are_kept_in_every_group(least: int) -> None:
    model, _ = built("residual")
    space = build_space(model, example(), min_channels=least)
    for group, channels in zip(space.groups, space.channels(space.smallest).values(), strict=True):
        assert channels >= min(least, group.channels)
    for sub in some_subnetworks(space, 4):
        slim = slice_model(model, space, sub)
        assert count_macs(slim, example()) == space.cost.macs(sub.widths)
        assert all(channels >= min(least, 8) for channels in space.channels(sub.widths).values())


@pytest.mark.parametrize("option", ["round_to", "min_channels"])
@pytest.mark.parametrize("number", [0, -1, 1.5, True, "2"])
def test_numbers_that_are_no_whole_number_from_1_are_refused(option: str, number: object) -> None:
    with pytest.raises(ValueError, match=f"{option} must be a whole number of at least 1, but got"):
        build_space(models.Plain(), example(), **{option: number})  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [0, -1, float("nan")])
def test_a_min_bin_that_is_not_above_0_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="min_bin must be above 0, but got"):
        build_space(models.Plain(), example(), min_bin=number)


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        (["stem.0"], ["inner1.0", "inner2.0", "outer2.0"]),
        ("stem.0", ["inner1.0", "inner2.0", "outer2.0"]),
        (["outer1"], ["inner1.0", "inner2.0", "outer2.0"]),
        (["inner*"], ["stem.0", "outer2.0"]),
        (["inner?.0", "project"], ["stem.0"]),
        (["*.1"], None),
        ([], ["stem.0", "inner1.0", "inner2.0", "outer2.0"]),
    ],
    ids=str,
)
def test_ignored_layers_keep_their_channels(ignore: Any, left: list[str] | None) -> None:
    model, _ = built("residual")
    if left is None:
        with pytest.raises(UnsupportedModel, match=r"nothing to search.*named in ignore="):
            build_space(model, example(), ignore=ignore)
        return
    space = build_space(model, example(), ignore=ignore)
    assert [group.name for group in space.groups] == left
    assert list(frozen(space).values()).count("named in ignore=") == 4 - len(left)


def test_modules_are_ignored_with_all_inside() -> None:
    model, _ = built("residual")
    space = build_space(model, example(), ignore=[model.inner1, model.get_submodule("project.0")])
    assert [group.name for group in space.groups] == ["stem.0", "inner2.0"]


def test_ignoring_the_whole_model_leaves_nothing_to_search() -> None:
    model, _ = built("residual")
    for ignore in (model, "*"):
        with pytest.raises(UnsupportedModel, match=r"nothing to search.*named in ignore="):
            build_space(model, example(), ignore=ignore)


def test_a_parameter_s_name_ignores_its_layer() -> None:
    model, _ = built("residual")
    space = build_space(model, example(), ignore=["inner1.0.weight"])
    assert "inner1.0" not in [group.name for group in space.groups]


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    model, _ = built("residual")
    with pytest.raises(ValueError, match=r"ignore= names 'inner1\.9', which matches no layer; the nearest: .*inner1"):
        build_space(model, example(), ignore=["stem", "inner1.9"])
    with pytest.raises(ValueError, match="holds a Conv2d that is not a module of this model"):
        build_space(model, example(), ignore=[nn.Conv2d(1, 1, 1)])


# inputs and outputs


@pytest.mark.parametrize("call", ["tuple", "list", "dict"])
def test_several_inputs_and_a_dict_of_outputs(call: str) -> None:
    model = make(models.TwoInputs)
    image, vector = example(), torch.randn(2, 4)
    inputs: Any = {"tuple": (image, vector), "list": [image, vector], "dict": {"vector": vector, "image": image}}[call]
    before = Snapshot(model)
    space = build_space(model, inputs)
    assert [group.name for group in space.groups] == ["image.0", "body.0"]
    assert set(frozen(space)) == {"fc"}  # a score of one channel is as narrow as can be
    for sub in some_subnetworks(space):
        slim = slice_model(model, space, sub)
        assert space.cost.macs(sub.widths) == count_macs(slim, inputs)
    before.assert_unchanged()


Pair = namedtuple("Pair", "classes features")


@dataclass
class Out:
    classes: torch.Tensor
    name: str = "x"


OUTPUTS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "named tuple": Pair,
    "list": lambda classes, features: [classes, None, features],
    "dataclass": lambda classes, features: Out(classes),
    "nested": lambda classes, features: ({"a": [classes]}, 3, features),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_of_any_structure_is_followed(kind: str) -> None:
    class Structured(models.Plain):
        def forward(self, x: torch.Tensor) -> Any:
            features = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
            classes = self.fc(F.relu(self.bn3(self.conv3(features))).mean((2, 3)))
            return OUTPUTS[kind](classes, features)

    space = build_space(make(Structured), example())
    # features that are returned cannot lose channels
    expected = ["conv1", "conv3"] if kind != "dataclass" else ["conv1", "conv2", "conv3"]
    assert [group.name for group in space.groups] == expected


def test_costs_are_per_image_whatever_the_batch() -> None:
    model, space = built("plain")
    assert build_space(model, example(7)).fingerprint() == space.fingerprint()
    assert count_macs(model, example(7)) == count_macs(model, example(1)) == space.cost.macs(space.largest)


def test_one_and_three_dimensional_convolutions_are_searched() -> None:
    for conv, norm, shape in (
        (nn.Conv1d, nn.BatchNorm1d, (2, 3, 20)),
        (nn.Conv3d, nn.BatchNorm3d, (2, 3, 6, 6, 6)),
    ):
        model = nn.Sequential(
            conv(3, 6, 3), norm(6), nn.ReLU(), conv(6, 8, 3), norm(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
        )
        inputs = torch.randn(*shape)
        model(inputs)
        space = build_space(model, inputs)
        assert [group.name for group in space.groups] == ["0", "3"]
        for sub in some_subnetworks(space):
            slim = slice_model(model, space, sub)
            assert space.cost.macs(sub.widths) == count_macs(slim, inputs)


def test_a_double_precision_model_is_searched_in_its_own_precision() -> None:
    model, space = built("plain")
    assert build_space(model.double(), example().double()).fingerprint() == space.fingerprint()


# refusals


def test_a_forward_that_fails_on_the_example_is_named_with_its_shapes() -> None:
    with pytest.raises(
        UnsupportedModel,
        match=r"forward of Plain fails on the example inputs of shapes \[\(1, 4, 12, 12\)\] .*RuntimeError",
    ):
        build_space(models.Plain(), torch.randn(2, 4, 12, 12))


def test_inputs_on_another_device_than_the_model_are_refused_with_the_remedy() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).to("meta")
    message = "the model is on meta and the inputs are on cpu: move them to one device"
    with pytest.raises(UnsupportedModel, match=message):
        build_space(model, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("inputs", [None, 3, "x", [], {}, ()])
def test_an_example_without_a_tensor_is_refused(inputs: Any) -> None:
    with pytest.raises(UnsupportedModel, match="example_inputs holds no tensor"):
        build_space(models.Plain(), inputs)


def test_a_model_of_one_layer_has_nothing_to_search() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 5))
    with pytest.raises(UnsupportedModel, match=r"nothing to search.*1: it is the model's output"):
        build_space(model, example())


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="ReLU"):
        build_space(nn.ReLU(), example())


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    class Uncopyable(models.Plain):
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            raise RuntimeError("a socket inside")

    with pytest.raises(UnsupportedModel, match=r"Uncopyable cannot be copied \(RuntimeError: a socket inside\)"):
        build_space(Uncopyable(), example())


def test_a_model_that_gives_nan_is_refused() -> None:
    model = make(models.Plain)
    with torch.no_grad():
        model.conv1.weight.fill_(torch.nan)
    with pytest.raises(UnsupportedModel, match="Plain gives NaN or infinity on the example inputs"):
        build_space(model, example())


def test_a_failed_build_leaves_the_model_unchanged() -> None:
    model = make(models.Plain)
    before = Snapshot(model)
    with pytest.raises(UnsupportedModel):
        build_space(model, torch.randn(2, 4, 12, 12))
    with pytest.raises(ValueError, match="ignore= names"):
        build_space(model, example(), ignore=["nothing"])
    before.assert_unchanged()


def test_the_space_of_one_model_does_not_fit_another() -> None:
    _, space = built("plain")
    other, _ = built("residual")
    for use in (lambda: Supernet(other, space), lambda: slice_model(other, space, SubNetwork.fixed(space.smallest))):
        with pytest.raises(UnsupportedModel, match=r"'conv[12]'"):
            use()
    narrower = copy.deepcopy(built("plain")[0])
    narrower.conv2 = nn.Conv2d(8, 6, 3, stride=2, padding=1, bias=False)
    full_but_one = SubNetwork.fixed(Widths(tuple(max(bins.count - 1, 1) for bins in space.bins)))
    with pytest.raises(UnsupportedModel, match="conv2"):
        slice_model(narrower, space, full_but_one)
