from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import SearchSpace, UnsupportedModel, WidthGroup, build_space, slice_model
from nni_cafenet.tracing.example import Example
from nni_cafenet.tracing.groups import GroupTable, find_groups
from tests import models
from tests.built import built, some_subnetworks
from tests.models import conv_bn, example, make


def group(space: SearchSpace, name: str) -> WidthGroup:
    return next(group for group in space.groups if group.name == name)


def axis_units(space: SearchSpace, key: str) -> list[list[int]]:
    """[group, unit] of each position."""
    axis = next(axis for axis in space.axes if str(axis) == key)
    return np.stack([axis.groups, axis.units], 1).tolist()


def test_residual_adds_tie_the_stem_to_every_branch_s_end() -> None:
    _, space = built("residual")
    assert set(group(space, "stem.0").members) == {
        "stem.0.out", "stem.1.out", "outer1.0.out", "outer1.1.out", "inner1.0.in", "inner2.0.in", "project.0.in",
    }  # fmt: skip
    assert set(group(space, "outer2.0").members) == {
        "outer2.0.out", "outer2.1.out", "project.0.out", "project.1.out", "fc.in",
    }  # fmt: skip
    assert [g.channels for g in space.groups] == [8, 10, 12, 16]


def test_a_depthwise_convolution_ties_its_input_to_its_output() -> None:
    _, space = built("depthwise")
    expand = group(space, "expand.0")
    assert {"expand.0.out", "depthwise.0.out", "depthwise.1.out", "reduce.0.in"} <= set(expand.members)
    assert (expand.channels, expand.unit) == (12, 1)


def test_a_concat_s_reader_has_every_group_in_its_place() -> None:
    _, space = built("concat")
    expected = [[0, i] for i in range(6)] + [[1, i] for i in range(4)] + [[2, i] for i in range(4)]
    assert axis_units(space, "fc.in") == axis_units(space, "norm3.out") == expected
    assert axis_units(space, "grow2.in") == expected[:10]


def test_a_flattened_channel_is_all_of_its_positions() -> None:
    _, space = built("flatten")
    assert axis_units(space, "fc1.in") == [[1, i // 9] for i in range(72)]


def test_a_unit_of_a_grouped_convolution_is_a_conv_group() -> None:
    _, space = built("grouped")
    reduce, expand = space.groups
    assert (reduce.channels, reduce.unit, reduce.units) == (12, 3, 4)
    assert (expand.channels, expand.unit, expand.units) == (8, 2, 4)
    assert axis_units(space, "widening.out") == [[1, i // 4] for i in range(16)]
    assert axis_units(space, "expand.0.out") == [[1, i // 2] for i in range(8)]


def test_a_grouped_convolution_keeps_valid_shapes_down_to_one_conv_group() -> None:
    """torch-pruning leaves invalid layers, and one conv-group left looks like a plain convolution."""
    model, space = built("grouped")
    slim = slice_model(model, space, some_subnetworks(space)[0])
    grouped, widening = slim.grouped[0], slim.widening
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (3, 3, 1)
    assert (widening.in_channels, widening.out_channels, widening.groups) == (2, 4, 1)
    assert grouped.weight.shape == (3, 3, 3, 3)
    assert slim(example()).shape == (2, 5)


def test_squeeze_and_excite_gates_follow_their_channels() -> None:
    _, space = built("squeeze_excite")
    assert {"squeeze.in", "excite.out", "head.0.in"} <= set(group(space, "body.0").members)
    assert set(group(space, "squeeze").members) == {"squeeze.out", "excite.in"}


def test_a_layer_that_runs_twice_has_one_width() -> None:
    _, space = built("reused")
    assert {"stem.0.out", "again.in", "again.out", "head.0.in"} <= set(group(space, "stem.0").members)


def test_a_bare_parameter_is_sliced_along() -> None:
    model, space = built("norms")
    assert "scale.dim0" in group(space, "expand").members
    slim = slice_model(model, space, some_subnetworks(space)[0])
    assert slim.scale.shape == (space.channels(space.smallest)["expand"], 1, 1)


def test_a_channel_shuffle_is_followed() -> None:
    _, space = built("shuffled")
    mixed = group(space, "mixed.0")
    assert (mixed.channels, mixed.unit) == (8, 2)
    # x.view(n, 2, 4, ...): channels i and i + 4 stay or go together, and are neighbours after the shuffle
    assert axis_units(space, "mixed.0.out") == [[1, i % 4] for i in range(8)]
    assert axis_units(space, "head.0.in") == [[1, i // 2] for i in range(8)]


def test_halves_that_gate_one_another_go_together() -> None:
    _, space = built("gated")
    both = next(index for index, found in enumerate(space.groups) if found.name == "both")
    assert axis_units(space, "both.out") == [[both, i % 8] for i in range(16)]
    assert axis_units(space, "head.in") == [[both, i] for i in range(8)]


def test_a_unit_of_a_group_norm_is_the_channels_of_one_statistic() -> None:
    model, space = built("group_normed")
    stem = group(space, "stem")
    assert (stem.channels, stem.unit) == (8, 4)
    slim = slice_model(model, space, some_subnetworks(space)[0])
    assert (slim.norm.num_channels, slim.norm.num_groups) == (4, 1)


def test_groups_come_in_the_order_of_the_model_with_unique_names() -> None:
    for name in ("residual", "concat", "depthwise", "flatten"):
        model, space = built(name)
        order = [layer for layer, _ in model.named_modules()]
        names = [g.name for g in space.groups]
        assert names == sorted(names, key=order.index)
        assert len(set(names)) == len(names)


def test_several_widths_out_of_one_layer_get_names_of_their_own() -> None:
    class TwoHalves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.left, self.right = conv_bn(3, 8), conv_bn(4, 6), conv_bn(4, 6)
            self.fc = nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left, right = F.relu(self.both(x)).chunk(2, dim=1)
            return self.fc(torch.cat([F.relu(self.left(left)), F.relu(self.right(right))], 1).mean((2, 3)))

    table = find_groups(TwoHalves().eval(), Example(example(1)))
    names = [*(g.name for g in table.groups), *(part.layer for part in table.frozen)]
    assert len({name for name in names if name.startswith("both")}) >= 1
    assert len({g.name for g in table.groups}) == len(table.groups)


def test_finding_groups_does_not_prune_the_model_it_is_given() -> None:
    model = make(models.Residual).eval()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    find_groups(model, Example(example(1)))
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes


def test_dropping_groups_renumbers_the_others_and_frees_their_positions() -> None:
    table = find_groups(copy.deepcopy(built("concat")[0]).eval(), Example(example(1)))
    less = table.without({1: "a reason"})
    assert [g.name for g in less.groups] == ["stem", "grow2"]
    assert (less.frozen[-1].layer, less.frozen[-1].channels, less.frozen[-1].reason) == ("grow1", 4, "a reason")
    fc = next(axis for axis in less.axes if str(axis) == "fc.in")
    assert fc.groups.tolist() == [0] * 6 + [-1] * 4 + [1] * 4
    assert fc.units.tolist() == [*range(6), *[-1] * 4, *range(4)]
    assert table.without({}) is table
    assert isinstance(less, GroupTable)


def test_a_depthwise_transposed_convolution_is_searched_and_one_of_several_groups_is_not() -> None:
    def network(groups: int) -> nn.Module:
        return nn.Sequential(
            conv_bn(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, stride=2, groups=groups), conv_bn(8, 6), nn.Flatten(),
            nn.Linear(6 * 24 * 24, 5),
        )  # fmt: skip

    space = build_space(make(lambda: network(8)), example())
    assert "2.out" in group(space, "0.0").members
    space = build_space(make(lambda: network(4)), example())
    assert [g.name for g in space.groups] == ["3.0"]
    reasons = {part.layer: part.reason for part in space.frozen}
    assert reasons["0.0"] == "it is a transposed convolution of several groups, which is not sliced"


def test_a_forward_that_folds_channels_into_the_batch_is_frozen_with_the_layer_named() -> None:
    class Folded(nn.Module):
        """Channels into the batch and back."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.fc = conv_bn(3, 8), conv_bn(4, 6), nn.Linear(12, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(self.stem(x))
            x = F.relu(self.head(x.reshape(-1, 4, *x.shape[2:])))
            return self.fc(x.mean((2, 3)).reshape(-1, 12))

    try:
        space = build_space(make(Folded), example())
    except UnsupportedModel as error:
        message = str(error)
    else:
        message = " ".join(part.layer for part in space.frozen)
    assert "stem" in message
