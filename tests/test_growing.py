from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import nn

from nni_cafenet import UnsupportedModel
from nni_cafenet.growing import enlarged, find_growths, initialise, reorder_units, unclear_groups
from nni_cafenet.widths import Axis
from tests.models import Norms, make
from tests.snapshots import Snapshot

CONV, LAYER = ("0", "out"), ("1", "in")


def axis(text: str, layer: str = "0", side: str = "out") -> Axis:
    """ "a0 a1 b0 -" is an axis of groups 0 and 1 with a position that is always kept."""
    words = text.split()
    groups = ["ab".index(word[0]) if word != "-" else -1 for word in words]
    return Axis(layer, side, np.array(groups), np.array([int(word[1:]) if word != "-" else -1 for word in words]))


def text(axis: Axis) -> str:
    pairs = zip(axis.groups, axis.units, strict=True)
    return " ".join("-" if group < 0 else f"{'ab'[group]}{unit}" for group, unit in pairs)


def pair(*axes: Axis) -> tuple[nn.Module, dict]:
    """A convolution of 2 channels before a linear layer of 4 inputs, both with values that tell positions apart."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2]).view(2, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([-1.0, -2]))
        model[1].weight.copy_(torch.tensor([[10.0, 11, 20, 21]]))
    return model, find_growths(axes, [2], [3])


@pytest.mark.parametrize(
    ("before", "after", "places"),
    [
        ("a0 a1", "a0 a1 a2 a3", [0, 1]),
        ("a0 a1 b0 b1", "a0 a1 a2 a3 b0 b1 b2", [0, 1, 4, 5]),
        ("- a0 a1 - b0 b1 -", "- a0 a1 a2 a3 - b0 b1 b2 -", [0, 1, 2, 5, 6, 7, 9]),
        ("a0 a0 a0 a1 a1 a1", "a0 a0 a0 a1 a1 a1 a2 a2 a2 a3 a3 a3", [0, 1, 2, 3, 4, 5]),
        ("a0 a1 a0 a1", "a0 a1 a2 a3 a0 a1 a2 a3", [0, 1, 4, 5]),
        ("a0 a0 a1 a1 b0 b1 a0 a1", "a0 a0 a1 a1 a2 a2 a3 a3 b0 b1 b2 a0 a1 a2 a3", [0, 1, 2, 3, 8, 9, 11, 12]),
    ],
    ids=["plain", "concatenated", "partly frozen", "flattened", "halves", "all of it"],
)
def test_new_units_follow_the_old_ones_of_their_run(before: str, after: str, places: list[int]) -> None:
    old = axis(before)
    assert unclear_groups([old], [2, 2]) == {}
    growth = find_growths([old], [2, 2], [4, 3])[CONV]
    assert text(growth.wider) == after
    assert growth.places.tolist() == places


def test_axes_whose_groups_stay_are_left_out() -> None:
    assert list(find_growths([axis("a0 a1"), axis("b0 b1 -", "1")], [2, 2], [2, 3])) == [("1", "out")]


@pytest.mark.parametrize("order", ["a1 a0", "a0 b0 a1 b1", "a0 a0 a1", "a0 - a1"])
def test_an_order_that_does_not_tell_where_new_units_belong_is_named(order: str) -> None:
    unclear = unclear_groups([axis("a0 a1 b0 b1", "fine"), axis(order, "odd")], [2, 2])
    assert unclear[0] == "the order of its channels in odd.out does not tell where new ones belong"


def test_a_single_unit_of_several_positions_may_grow_either_way() -> None:
    assert list(unclear_groups([axis("a0 a0")], [1])) == [0]
    assert unclear_groups([axis("a0")], [1]) == {}


def test_old_values_stand_at_their_places_between_zeros() -> None:
    model, growths = pair(axis("a0 a1"), axis("a0 a0 a1 a1", "1", "in"))
    wide = enlarged(model, growths)
    assert (wide[0].out_channels, wide[1].in_features) == (3, 6)
    assert wide[0].weight.flatten().tolist() == [1, 2, 0]
    assert wide[0].bias.tolist() == [-1, -2, 0]
    assert wide[1].weight.tolist() == [[10, 11, 20, 21, 0, 0]]
    _, growths = pair(axis("a0 a1 a0 a1", "1", "in"))
    assert enlarged(model, growths)[1].weight.tolist() == [[10, 11, 0, 20, 21, 0]]


def test_a_tensor_grows_along_both_of_its_dimensions() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    kept = model[0].weight.detach().clone()
    growths = find_growths([axis("a0 a1"), axis("b0 b1", "0", "in")], [2, 2], [3, 4])
    wide = enlarged(model, growths)
    initialise(wide, model, growths, keep_weights=True)
    assert wide[0].weight.shape == (3, 4)
    assert torch.equal(wide[0].weight[:2, :2], kept)
    assert (wide[0].weight[2] != 0).all() and (wide[0].weight[:, 2:] != 0).all()


def test_a_grouped_convolution_grows_by_whole_conv_groups() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    growths = find_growths([axis("a0 a0 a0 a0 a1 a1 a1 a1"), axis("a0 a0 a1 a1", "0", "in")], [2], [5])
    wide = enlarged(model, growths)[0]
    assert (wide.in_channels, wide.out_channels, wide.groups) == (10, 20, 5)
    assert wide.weight.shape == (20, 2, 3, 3)
    assert wide(torch.randn(1, 10, 3, 3)).shape == (1, 20, 1, 1)


def test_units_are_reordered_along_every_axis() -> None:
    model, growths = pair(axis("a0 a1"), axis("a0 a0 a1 a1", "1", "in"))
    wide = enlarged(model, growths)
    reorder_units(wide, growths, {0: np.array([2, 0, 1])})
    assert wide[0].bias.tolist() == [0, -1, -2]
    assert wide[1].weight.tolist() == [[0, 0, 10, 11, 20, 21]]


def test_growing_leaves_the_model_unchanged() -> None:
    model, growths = pair(axis("a0 a1"), axis("a0 a0 a1 a1", "1", "in"))
    model.requires_grad_(False)[0].bias.requires_grad_(True)
    model[1].eval()
    before = Snapshot(model)
    wide = enlarged(model, growths)
    initialise(wide, model, growths, keep_weights=True)
    before.assert_unchanged()
    assert [module.training for module in wide.modules()] == [True, True, False]
    assert [parameter.requires_grad for parameter in wide.parameters()] == [False, True, False, False]


def fresh(model: nn.Module, axes: Iterable[Axis], *, keep_weights: bool = False) -> nn.Module:
    growths = find_growths(axes, [2], [500])
    wide = enlarged(model, growths)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        initialise(wide, model, growths, keep_weights=keep_weights)
    return wide


class Scaled(nn.Module):
    """A bare parameter, which no reset_parameters reaches."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(values), requires_grad=False)


def test_a_constant_bare_parameter_keeps_its_constant() -> None:
    wide = fresh(Scaled([1e-6, 1e-6]), [axis("a0 a1", "scale", "dim0")])
    assert torch.equal(wide.scale, torch.full((500,), 1e-6))


def test_another_bare_parameter_is_drawn_with_its_mean_and_deviation() -> None:
    model = Scaled([4.0, 6.0])
    wide = fresh(model, [axis("a0 a1", "scale", "dim0")])
    assert float(wide.scale.mean()) == pytest.approx(5, abs=0.3)
    assert float(wide.scale.std()) == pytest.approx(2**0.5, abs=0.2)
    assert 4.0 not in wide.scale
    wide = fresh(model, [axis("a0 a1", "scale", "dim0")], keep_weights=True)
    assert wide.scale[:2].tolist() == [4, 6]
    assert float(wide.scale[2:].mean()) == pytest.approx(5, abs=0.3)


def test_a_parent_s_reset_parameters_has_the_last_word() -> None:
    class Zeroed(nn.Sequential):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self[0].weight)

    wide = fresh(Zeroed(nn.BatchNorm2d(2)), [axis("a0 a1")])
    assert torch.equal(wide[0].weight, torch.zeros(500))


def test_old_weights_survive_a_parent_that_resets_its_children() -> None:
    class Resetting(Scaled):
        def reset_parameters(self) -> None:
            self.layer.reset_parameters()

    model = Resetting([1.0, 2.0])
    model.layer = nn.Linear(3, 3)
    wide = fresh(model, [axis("a0 a1", "scale", "dim0")], keep_weights=True)
    assert torch.equal(wide.layer.weight, model.layer.weight)


def test_a_reset_parameters_that_fails_is_named() -> None:
    class Demanding(nn.Linear):
        def reset_parameters(self, gain: float | None = None) -> None:
            if hasattr(self, "made") and gain is None:
                raise TypeError("gain is needed")
            super().reset_parameters()  # else the layer holds whatever lay in its memory, NaN at times
            self.made = True

    with pytest.raises(UnsupportedModel, match=r"reset_parameters of 0 \(Demanding\) fails \(TypeError: gain is neede"):
        fresh(nn.Sequential(Demanding(2, 2)), [axis("a0 a1")])


def test_what_has_not_grown_keeps_its_weights_only_if_asked_to() -> None:
    model = make(Norms)
    axes = [Axis("stem", "out", np.zeros(8, int), np.arange(8))]
    growths = find_growths(axes, [8], [9])
    for keep in (True, False):
        wide = enlarged(model, growths)
        initialise(wide, model, growths, keep_weights=keep)
        assert torch.equal(wide.fc.weight, model.fc.weight) == keep
        assert torch.equal(wide.instance.running_mean, model.instance.running_mean) == keep
        assert torch.equal(wide.scale, model.scale)  # a bare parameter, which did not grow
