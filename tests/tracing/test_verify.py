"""The oracles catch wrong groups: deliberately broken tables are fed to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import SingleChannels, SubNetwork, UnsupportedModel, build_space, slice_model
from nni_cafenet.cost import CostModel
from nni_cafenet.tracing.example import Example
from nni_cafenet.tracing.groups import GroupTable, find_groups
from nni_cafenet.tracing.trial import enliven, randomise
from nni_cafenet.tracing.verify import check_cost, verified
from nni_cafenet.widths import Axis
from tests import models
from tests.built import built
from tests.models import NETWORKS, SEARCHABLE, conv_bn, example, make

EXAMPLE = Example(example(1))


def table_of(factory: Callable[[], nn.Module], *, seed: int = 0) -> tuple[nn.Module, GroupTable]:
    model = make(factory, seed=seed).eval().requires_grad_(True)
    return model, find_groups(copy.deepcopy(model), EXAMPLE)


def verified_with(model: nn.Module, table: GroupTable, seed: int = 0) -> GroupTable:
    return verified(model, table, EXAMPLE, rng=np.random.default_rng(seed))


def names(table: GroupTable) -> list[str]:
    return [group.name for group in table.groups]


def with_axis(table: GroupTable, key: str, change: Callable[[Axis], Axis | None]) -> GroupTable:
    assert key in map(str, table.axes)
    axes = [change(axis) if str(axis) == key else axis for axis in table.axes]
    return replace(table, axes=tuple(axis for axis in axes if axis is not None))


def dropped(axis: Axis) -> None:
    return None


def swapped(axis: Axis) -> Axis:
    """Two positions of the last group exchanged."""
    units, last = axis.units.copy(), axis.size - 1
    other = np.flatnonzero((axis.groups == axis.groups[last]) & (units != units[last]))[0]
    units[[other, last]] = units[[last, other]]
    return replace(axis, units=units)


def unsliced(axis: Axis) -> Axis:
    return replace(axis, groups=np.full(axis.size, -1), units=np.full(axis.size, -1))


@pytest.mark.parametrize("name", SEARCHABLE)
def test_right_tables_pass(name: str) -> None:
    model, table = table_of(SEARCHABLE[name])
    for seed in range(3):
        assert verified_with(model, table, seed) == table


@pytest.mark.parametrize("damage", [dropped, swapped, unsliced])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("plain", "conv2.in"),
        ("plain", "bn2.out"),
        ("plain", "fc.in"),
        ("depthwise", "depthwise.0.out"),
        ("concat", "norm2.out"),
        ("concat", "fc.in"),
        ("flatten", "fc1.in"),
        ("squeeze_excite", "excite.out"),
        ("grouped", "expand.0.in"),
        ("transposed", "up.in"),
        ("shuffled", "head.0.in"),
        ("gated", "both.out"),
        ("group_normed", "norm.out"),
        ("norms", "prelu.out"),
        ("norms", "scale.dim0"),
    ],
)
def test_the_groups_of_a_wrong_axis_are_frozen_and_no_other(
    name: str, key: str, damage: Callable[[Axis], Axis | None]
) -> None:
    model, table = table_of(NETWORKS[name])
    axis = next(axis for axis in table.axes if str(axis) == key)
    hit = {int(axis.groups[-1])} if damage is swapped else set(axis.groups.tolist())
    left = [group.name for index, group in enumerate(table.groups) if index not in hit]
    assert names(verified_with(model, with_axis(table, key, damage))) == left


def test_a_wrong_axis_of_a_layer_that_gets_no_gradient_is_found_too() -> None:
    model, table = table_of(models.Frozen)
    model.stem.requires_grad_(False)
    assert names(verified_with(model, with_axis(table, "stem.1.out", swapped))) == ["body.0", "head"]


def test_zero_initialised_weights_hide_no_wrong_group() -> None:
    """Residual branches often start as zero (the last BatchNorm's weight): equality would prove nothing."""
    model, table = table_of(models.Residual)
    with torch.no_grad():
        for branch in (model.outer1, model.outer2, model.project):
            branch[1].weight.zero_()
            branch[1].bias.zero_()
    assert names(verified_with(model, with_axis(table, "outer1.1.out", swapped))) == [
        "inner1.0",
        "inner2.0",
        "outer2.0",
    ]
    with torch.no_grad():
        model.fc.weight.zero_()
    assert names(verified_with(model, with_axis(table, "inner1.1.out", swapped))) == ["stem.0", "inner2.0", "outer2.0"]


def test_default_batch_norm_statistics_hide_no_wrong_group() -> None:
    model, table = table_of(models.Plain)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
            module.reset_running_stats()
    assert names(verified_with(model, with_axis(table, "bn2.out", swapped))) == ["conv1", "conv3"]


class DeepCounting(nn.Module):
    """Thin layers of ReLU behind the faulty one, any of which may be dead when it is cut down to a channel or two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = conv_bn(3, 8), conv_bn(8, 8)
        self.tail = nn.Sequential(*(nn.Sequential(conv_bn(8, 8), nn.ReLU()) for _ in range(5)))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(F.relu(self.stem(x)))
        return self.fc(self.tail(x * x.shape[1]).mean((2, 3)))


@pytest.mark.parametrize("factory", [models.Counting, DeepCounting])
def test_a_network_that_dies_when_it_is_cut_hides_no_wrong_group(factory: Callable[[], nn.Module]) -> None:
    """Removal is checked on outputs that still depend on the input: equal constants prove nothing."""
    model, table = table_of(factory)
    missed = [seed for seed in range(10) if "middle.0" in names(verified_with(model, table, seed))]
    assert missed == []


class Separable(nn.Module):
    """Depthwise layers initialised for as many inputs as they have channels, as torchvision's EfficientNets are: in
    eval mode each passes on a fifth of the signal, and its BatchNorm adds a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.tail = nn.Sequential(*(self.block() for _ in range(24)))
        self.fc = nn.Linear(16, 5)

    @staticmethod
    def block() -> nn.Sequential:
        depthwise = conv_bn(16, 16, groups=16)
        nn.init.kaiming_normal_(depthwise[0].weight, mode="fan_out")
        return nn.Sequential(depthwise, nn.SiLU(), conv_bn(16, 16), nn.SiLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.tail(self.stem(x)).mean((2, 3)))


def test_a_long_way_to_the_output_hides_no_wrong_group() -> None:
    model, table = table_of(Separable)
    wrong = with_axis(table, "stem.1.out", swapped)
    for seed in range(5):
        assert "stem.0" not in names(verified_with(model, wrong, seed))


def test_an_enlivened_network_shows_its_input_in_its_output() -> None:
    model = make(Separable).double().eval()
    randomise(model, seed=0)
    first, second = torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)

    def shown() -> float:
        with torch.no_grad():
            return float((model(first) - model(second)).abs().max() / model(first).abs().max())

    before = shown()
    enliven(model, lambda: model(first))
    assert before < 1e-8
    assert shown() > 1e-3


def test_of_groups_that_fail_only_together_the_later_is_frozen() -> None:
    class Joined(nn.Module):
        """Works while both have the same width, or one of them is full."""

        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.fc = conv_bn(3, 8), conv_bn(3, 8), nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = F.relu(self.left(x)).mean((2, 3)), F.relu(self.right(x)).mean((2, 3))
            if left.shape[1] < 8 and right.shape[1] < 8:
                left = left * 2
            return self.fc(torch.cat([left, right], 1))

    model, table = table_of(Joined)
    left = verified_with(model, table)
    assert names(left) == ["left.0"]
    assert left.frozen[-1].layer == "right.0"
    assert left.frozen[-1].reason.startswith("together with other layers the sliced network differs")


def test_a_group_that_fails_at_one_channel_keeps_two() -> None:
    class Standardised(models.Plain):
        """Its deviation over one channel is not a number."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
            x = x / (x.std(1, keepdim=True) + 1)
            return self.fc(F.relu(self.bn3(self.conv3(x))).mean((2, 3)))

    model, table = table_of(Standardised)
    assert [group.least for group in verified_with(model, table).groups] == [1, 2, 1]
    space = build_space(model, EXAMPLE.args[0], bins=SingleChannels())
    assert list(space.channels(space.smallest).values()) == [1, 2, 1]
    slim = slice_model(model, space, SubNetwork.fixed(space.smallest))
    assert torch.isfinite(slim(EXAMPLE.args[0])).all()


@pytest.mark.parametrize(("wanted", "least"), [(1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, None)])
def test_a_group_keeps_as_many_channels_as_its_forward_wants_up_to_eight(wanted: int, least: int | None) -> None:
    class Demanding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.fc = conv_bn(3, 64), conv_bn(64, 8), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.stem(x))
            if x.shape[1] < wanted:
                raise RuntimeError(f"wants {wanted} channels")
            return self.fc(F.relu(self.body(x)).mean((2, 3)))

    model, table = table_of(Demanding)
    left = verified_with(model, table)
    expected = {"body.0": 1} if least is None else {"stem.0": least, "body.0": 1}
    assert {group.name: group.least for group in left.groups} == expected
    if least is None:
        assert left.frozen[-1].reason == "the forward fails at few channels (RuntimeError: wants 9 channels)"


def test_the_oracle_changes_neither_the_model_nor_the_global_random_numbers() -> None:
    model, table = table_of(models.Residual)
    state = copy.deepcopy(model.state_dict())
    before = torch.get_rng_state()
    verified_with(model, with_axis(table, "stem.1.out", swapped))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_forward_that_draws_random_numbers_in_eval_mode_passes() -> None:
    class Noisy(models.Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + 0.1 * torch.randn_like(x))

    model, table = table_of(Noisy)
    assert verified_with(model, table) == table


@pytest.mark.parametrize("change", ["macs", "params"])
def test_a_wrong_cost_model_is_refused(change: str) -> None:
    model, space = built("plain")
    model.eval()
    _, table = table_of(models.Plain)
    right = CostModel(space.cost.terms, tuple(tuple(range(group.units + 1)) for group in space.groups))
    check_cost(model, table, right, EXAMPLE, rng=np.random.default_rng(0))
    first, *rest = right.terms
    wrong = replace(right, terms=(replace(first, **{change: getattr(first, change) + 1}), *rest))
    with pytest.raises(UnsupportedModel, match=r"the cost model says .* fvcore counts"):
        check_cost(model, table, wrong, EXAMPLE, rng=np.random.default_rng(0))


def test_randomise_leaves_no_constant_behind_and_repeats_with_its_seed() -> None:
    model = models.Norms()
    randomise(model, seed=3)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.numel() > 1:
            assert tensor.unique().numel() > 1, name
    assert (model.instance.running_var > 0).all()
    torch.manual_seed(0)
    first, second = models.Norms(), models.Norms()
    second.load_state_dict(first.state_dict())
    randomise(first, seed=1)
    randomise(second, seed=1)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
