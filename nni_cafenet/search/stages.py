"""What is a multi-stage search (eq. 10)? From a mild budget and coarse bins to the one that is asked for and fine ones.

Every stage searches what is no wider than the network that the stage before found, so a space of fine bins stays small.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np

from nni_cafenet.cost import Budget, CostModel, Limits
from nni_cafenet.space import SearchSpace
from nni_cafenet.tracing.bins import FlopsSensitiveBins, rebin, units_of
from nni_cafenet.widths import NEVER, Axis, Bins, IntArray, SubNetwork

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One stage of a search.

    Args:
        budget: where the last stage ends.
        share: how much of the way from the full network to `budget` has been gone when this stage ends, t / T.
        min_bin: beta of eq. 9 in this stage, the bin size of the group with the highest FLOPs sensitivity.
        epochs: of this stage's supernet training; those of the search unless given.
        evaluations: of this stage's search at the most; as many as the searcher asks for unless given.
    """

    budget: Budget
    share: float = 1.0
    min_bin: float = 1.0
    epochs: int | None = None
    evaluations: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, but got {self.share}")
        if not self.min_bin > 0:
            raise ValueError(f"min_bin must be above 0, but got {self.min_bin}")
        for name, number, least in (("epochs", self.epochs, 0), ("evaluations", self.evaluations, 1)):
            if number is not None and number < least:
                raise ValueError(f"{name} must be at least {least}, but got {number}")

    def limits(self, space: SearchSpace) -> Limits:
        """FLOPs(t) of eq. 10, from the full network of `space`; parameters alike.

        Raises:
            InfeasibleBudget: `space` holds no network within the whole budget.
        """
        end, cost = space.limits(self.budget), space.cost

        def on_the_way(full: int, limit: int | None) -> int | None:
            return None if limit is None else full - math.floor((full - limit) * self.share)

        return Limits(
            max_macs=on_the_way(cost.macs(space.largest), end.max_macs),
            max_params=on_the_way(cost.params(space.largest), end.max_params),
        )


def linear_stages(budget: Budget, *, count: int, alpha: float = 2, min_bin: float = 1) -> tuple[Stage, ...]:
    """The paper's stages (eq. 10): budgets fall linearly, bins shrink by `alpha` from stage to stage.

    Args:
        budget: that of the last stage.
        count: T, how many stages.
        alpha: by what the bins of a stage are finer than those of the stage before; 2 in the paper.
        min_bin: beta of the last stage.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, but got {count}")
    if alpha < 1:
        raise ValueError(f"alpha must be at least 1, but got {alpha}")
    return tuple(Stage(budget, t / count, min_bin * alpha ** (count - t)) for t in range(1, count + 1))


def within(space: SearchSpace, sub: SubNetwork) -> SearchSpace:
    """The space of the networks that are no wider than `sub` and keep none but its channels, in single units.

    It is a space of the same model: Supernet, slice_model and the cost model go on as before.

    Raises:
        ValueError: `sub` belongs to another space.
    """
    kept = [
        np.arange(group.units) if units is None else units
        for group, units in zip(space.groups, space.kept_units(sub), strict=True)
    ]
    groups = tuple(
        replace(group, channels=len(units) * group.unit, least=min(group.least, len(units) * group.unit))
        for group, units in zip(space.groups, kept, strict=True)
    )
    axes = tuple(_narrowed(axis, kept) for axis in space.axes)
    bins = tuple(Bins.of_size(group.channels, group.unit, first=group.least) for group in groups)
    return replace(space, groups=groups, axes=axes, bins=bins, cost=CostModel(space.cost.terms, units_of(groups, bins)))


def stage_space(space: SearchSpace, stage: Stage, limits: Limits) -> SearchSpace:
    """`space` in the bins of `stage`; in finer ones, where those are too coarse for any network within `limits`."""
    min_bin = stage.min_bin
    while True:
        rule = FlopsSensitiveBins(min_bin)
        cut = rebin(space, rule, round_to=space.round_to, min_channels=space.min_channels)
        if limits.admit(cut.cost, cut.smallest) or all(size <= 1 for size in _bin_sizes(cut)):
            break
        min_bin /= 2
    if min_bin != stage.min_bin:
        logger.warning(
            "bins of min_bin=%g admit no network within the stage's budget: %g instead", stage.min_bin, min_bin
        )
    return cut


def _bin_sizes(space: SearchSpace) -> list[float]:
    """In the least steps that are possible."""
    steps = (math.lcm(group.unit, space.round_to) for group in space.groups)
    return [bins.size / step for bins, step in zip(space.bins, steps, strict=True)]


def _narrowed(axis: Axis, kept: list[IntArray]) -> Axis:
    groups, units = axis.groups.copy(), axis.units.copy()
    for group, (here, own) in axis.by_group.items():
        place = np.full(int(own.max()) + 1, -1)
        place[kept[group]] = np.arange(len(kept[group]))
        gone = place[own] < 0
        units[here] = place[own]
        groups[here[gone]] = NEVER
    return replace(axis, groups=groups, units=units)
