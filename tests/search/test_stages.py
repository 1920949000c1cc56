"""Multi-stage search: its budgets and bins are eq. 10's, and a narrowed space is one of the same model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nni_cafenet import (
    Budget,
    FullyFree,
    InfeasibleBudget,
    LocallyFree,
    SingleChannels,
    Stage,
    SubNetwork,
    Supernet,
    Widths,
    build_space,
    count_macs,
    linear_stages,
    slice_model,
)
from nni_cafenet.search.stages import stage_space, within
from nni_cafenet.tracing.bins import rebin
from tests import models
from tests.models import NETWORKS, example, make
from tests.spaces import chain

SPACE = chain(32, 48, 24)


def test_budgets_fall_linearly_to_the_last_and_bins_are_halved() -> None:
    """Equation 10."""
    stages = linear_stages(Budget(max_macs="40%"), count=3, alpha=2)
    full = SPACE.cost.macs(SPACE.largest)
    assert [stage.limits(SPACE).max_macs / full for stage in stages] == pytest.approx([0.8, 0.6, 0.4], abs=1e-3)
    assert [stage.min_bin for stage in stages] == [4, 2, 1]
    assert stages[-1].limits(SPACE) == SPACE.limits(Budget(max_macs="40%"))


def test_absolute_budgets_and_parameters_fall_alike() -> None:
    macs, params = (count(SPACE.largest) for count in (SPACE.cost.macs, SPACE.cost.params))
    first, last = linear_stages(Budget(max_macs=macs // 2, max_params="30%"), count=2, alpha=3, min_bin=0.5)
    assert first.limits(SPACE).max_macs == pytest.approx(0.75 * macs, abs=1)
    assert first.limits(SPACE).max_params == pytest.approx(0.65 * params, abs=1)
    assert (first.min_bin, last.min_bin) == (1.5, 0.5)


def test_an_infeasible_last_budget_is_one_in_every_stage() -> None:
    with pytest.raises(InfeasibleBudget, match=r"max_macs='0.001%' is infeasible"):
        linear_stages(Budget(max_macs="0.001%"), count=4)[0].limits(SPACE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0}, "share must be above 0 and at most 1, but got 0"),
        ({"share": 1.1}, "share must be above 0 and at most 1, but got 1.1"),
        ({"min_bin": 0}, "min_bin must be above 0, but got 0"),
        ({"epochs": -1}, "epochs must be at least 0, but got -1"),
        ({"evaluations": 0}, "evaluations must be at least 1, but got 0"),
    ],
)
def test_numbers_of_a_stage_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stage(Budget(max_macs="50%"), **options)


@pytest.mark.parametrize(("options", "message"), [({"count": 0}, "count"), ({"count": 2, "alpha": 0.5}, "alpha")])
def test_stages_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} must be at least 1, but got"):
        linear_stages(Budget(max_macs="50%"), **options)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_narrowed_space_is_a_space_of_the_same_model(name: str) -> None:
    model = make(NETWORKS[name]).eval()
    space = rebin(build_space(model, example()), SingleChannels())
    rng = np.random.default_rng(0)
    outer = space.sample(rng, sharing=FullyFree())
    narrowed = within(space, outer)
    whole = SubNetwork.fixed(narrowed.largest)
    torch.testing.assert_close(
        slice_model(model, narrowed, whole)(example()), slice_model(model, space, outer)(example()), rtol=0, atol=0
    )
    supernet = Supernet(model, narrowed)
    for _ in range(3):
        sub = narrowed.sample(rng, sharing=LocallyFree(offset=1))
        slim = slice_model(model, narrowed, sub)
        assert count_macs(slim, example()) == narrowed.cost.macs(sub.widths)
        assert sum(parameter.numel() for parameter in slim.parameters()) == narrowed.cost.params(sub.widths)
        with supernet.running(sub) as running:
            torch.testing.assert_close(running(example()), slim(example()), rtol=0, atol=0)
        again = within(narrowed, sub)
        torch.testing.assert_close(
            slice_model(model, again, SubNetwork.fixed(again.largest))(example()), slim(example()), rtol=0, atol=0
        )


def test_a_narrowed_space_keeps_none_but_the_channels_of_its_network() -> None:
    space = rebin(SPACE, SingleChannels())
    kept = ((0, 3, 5), (1, 2), (23,))
    narrowed = within(space, SubNetwork(Widths((3, 2, 1)), kept))
    assert [group.channels for group in narrowed.groups] == [3, 2, 1]
    assert narrowed.cost.macs(narrowed.largest) == space.cost.macs(Widths((3, 2, 1)))
    positions = narrowed.positions(SubNetwork(Widths((2, 1, 1)), ((0, 2), (1,), (0,))))
    assert positions["conv0", "out"].tolist() == [0, 5]
    assert positions["conv1", "out"].tolist() == [2]
    assert positions["conv2", "out"].tolist() == [23]
    assert ("conv3", "out") not in positions


def test_what_limits_channel_counts_holds_in_every_stage() -> None:
    space = build_space(make(models.Residual), example(), round_to=2, min_channels=4)
    narrowed = within(space, SubNetwork.fixed(space.largest))
    for min_bin in (1, 4):
        cut = stage_space(
            narrowed, Stage(Budget(max_macs="90%"), min_bin=min_bin), space.limits(Budget(max_macs="90%"))
        )
        assert all(edge % 2 == 0 for bins in cut.bins for edge in bins.edges)
        assert all(bins.edges[1] >= 4 for bins in cut.bins)


def test_bins_too_coarse_for_the_budget_are_made_finer(caplog: pytest.LogCaptureFixture) -> None:
    limits = SPACE.limits(Budget(max_macs="5%"))
    cut = stage_space(SPACE, Stage(Budget(max_macs="5%"), min_bin=24), limits)
    assert limits.admit(cut.cost, cut.smallest)
    assert "bins of min_bin=24 admit no network within the stage's budget" in caplog.text
    assert max(bins.size for bins in cut.bins) > 1
