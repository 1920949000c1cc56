"""What is asked before a search, of hand-made spaces: those that a budget leaves little of."""

from __future__ import annotations

from dataclasses import replace

import pytest

import nni_cafenet.checks
from nni_cafenet import Budget, SearchSpace
from nni_cafenet.checks import warn_of_coarse_bins
from tests.spaces import chain

COARSE = chain(24, 24, 24, 24, size=8)


def told(space: SearchSpace, share: str, caplog: pytest.LogCaptureFixture) -> str:
    caplog.clear()
    warn_of_coarse_bins(space, space.limits(Budget(max_macs=share)))
    return caplog.text


def test_a_budget_that_leaves_a_single_bin_to_most_groups_is_told(caplog: pytest.LogCaptureFixture) -> None:
    said = told(COARSE, "15%", caplog)
    assert "a single bin in 4 of 4 groups (conv0, ...)" in said and "give min_bin=0.5" in said
    assert not told(COARSE, "60%", caplog)


def test_of_several_processes_one_tells(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(nni_cafenet.checks, "rank", lambda: 1)
    assert not told(COARSE, "15%", caplog)


def test_bins_that_cannot_be_finer_are_not_to_blame(caplog: pytest.LogCaptureFixture) -> None:
    assert not told(chain(24, 24, 24, 24), "1%", caplog)
    assert not told(replace(COARSE, round_to=8), "15%", caplog)
    least = tuple(replace(group, least=8) for group in COARSE.groups)
    assert not told(replace(COARSE, groups=least), "15%", caplog)
