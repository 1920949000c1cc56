from __future__ import annotations

import numpy as np
import pytest
import torch

from nni_cafenet import SubNetwork, Supernet, Widths, build_space, count_macs, slice_model
from nni_cafenet.tied import Tie, tied
from tests import models
from tests.models import example, make
from tests.spaces import chain

SPACE = chain(8, 16, 4)


def test_tied_groups_have_one_width_and_cost_what_they_cost_together() -> None:
    space = tied(SPACE, [Tie("both", {0: (2, 4, 8), 1: (4, 8, 16)}), Tie("last", {2: (1, 4)})])
    assert [(group.name, group.channels, group.unit) for group in space.groups] == [("both", 8, 2), ("last", 4, 1)]
    assert [bins.edges for bins in space.bins] == [(0, 2, 4, 8), (0, 1, 4)]
    fine = SPACE.cost
    for width, (first, second) in enumerate([(2, 4), (4, 8), (8, 16)], 1):
        for end, last in enumerate([1, 4], 1):
            widths = Widths((width, end))
            assert space.cost.macs(widths) == fine.macs(Widths((first, second, last)))
            assert space.cost.params(widths) == fine.params(Widths((first, second, last)))


def test_a_tied_space_is_a_space_of_the_same_model() -> None:
    model = make(models.Residual).eval()
    full = build_space(model, example())
    groups = {index: tuple(range(2, group.channels + 1, 2)) for index, group in enumerate(full.groups)}
    sizes = {len(channels) for channels in groups.values()}
    ties = [Tie(f"of {size}", {i: c for i, c in groups.items() if len(c) == size}) for size in sorted(sizes)]
    space = tied(full, ties)
    rng = np.random.default_rng(0)
    for _ in range(4):
        sub = space.sample(rng)
        slim = slice_model(model, space, sub)
        assert count_macs(slim, example()) == space.cost.macs(sub.widths)
        with Supernet(model, space).running(sub) as running:
            assert torch.equal(running(example()), slim(example()))
    assert slice_model(model, space, SubNetwork.fixed(space.largest)).state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("ties", "message"),
    [
        ([Tie("a", {0: (8,)})], "ties must name every group"),
        (
            [Tie("a", {0: (8,), 1: (16,)}), Tie("b", {1: (16,), 2: (4,)})],
            "ties must name every group",
        ),
        (
            [Tie("a", {0: (4, 8), 1: (4, 16)}), Tie("b", {2: (4,)})],
            r"a: \(4, 16\) channels of conv1 are not prop",
        ),
        ([Tie("a", {0: (2, 4), 1: (16,)}), Tie("b", {2: (4,)})], r"the channels of conv0 must rise to 8, not \(2, 4\)"),
        ([Tie("a", {0: (8, 4), 1: (16,)}), Tie("b", {2: (4,)})], r"the channels of conv0 must rise to 8, not \(8, 4\)"),
    ],
)
def test_what_cannot_be_tied_is_refused(ties: list[Tie], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tied(SPACE, ties)


def test_conv_groups_are_not_cut_apart() -> None:
    space = build_space(make(models.Grouped), example())
    (index,) = [i for i, group in enumerate(space.groups) if group.unit > 1][:1]
    group = space.groups[index]
    ties = [Tie(g.name, {i: (g.channels,)}) for i, g in enumerate(space.groups) if i != index]
    with pytest.raises(ValueError, match=f"{group.name} cannot have .* they go together by {group.unit}"):
        tied(space, [*ties, Tie("odd", {index: (1, group.channels)})])
