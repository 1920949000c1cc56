"""The search space of a model: width groups, their bins, what they cost, and what cannot be searched. Pure data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from nni_cafenet.cost import Budget, CostModel, Limits
from nni_cafenet.errors import CafeNetError
from nni_cafenet.frozen import FrozenPart
from nni_cafenet.preflight import Preflight
from nni_cafenet.sharing import Fixed, SharingPattern
from nni_cafenet.widths import Axis, Bins, IntArray, SubNetwork, WidthGroup, Widths, kept_positions


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Everything that is known of a model's widths; made by :func:`nni_cafenet.build_space`.

    Args:
        groups: the width groups, the order of every Widths.
        bins: each group's bins.
        cost: MACs (per image) and parameters of every sub-network.
        axes: which group each channel position of each layer belongs to.
        frozen: what stays at full width.
        uncounted: operations that fvcore does not count, with how often they occur.
        data_dependent: layers that run as often as the data say, as a detector's heads do for each proposal; their
            MACs are those on the example in the full network.
        round_to: channel counts are multiples of this.
        min_channels: the least channels that a group keeps.
    """

    groups: tuple[WidthGroup, ...]
    bins: tuple[Bins, ...]
    cost: CostModel
    axes: tuple[Axis, ...]
    frozen: tuple[FrozenPart, ...] = ()
    uncounted: tuple[tuple[str, int], ...] = ()
    data_dependent: tuple[str, ...] = ()
    round_to: int = 1
    min_channels: int = 1

    @property
    def smallest(self) -> Widths:
        """One bin in every group."""
        return Widths((1,) * len(self.groups))

    @property
    def largest(self) -> Widths:
        """Every bin of every group: the full network."""
        return Widths(tuple(bins.count for bins in self.bins))

    def limits(self, budget: Budget) -> Limits:
        """`budget` in absolute numbers; raises InfeasibleBudget (see :meth:`Budget.limits`)."""
        return budget.limits(self.cost, smallest=self.smallest, largest=self.largest)

    def sample(
        self,
        rng: np.random.Generator,
        *,
        sharing: SharingPattern | None = None,
        widths: Widths | None = None,
    ) -> SubNetwork:
        """A sub-network: widths drawn uniformly unless given, bins by `sharing` (the fixed pattern unless given)."""
        sharing = sharing or Fixed()
        widths = widths or Widths(tuple(int(rng.integers(1, bins.count + 1)) for bins in self.bins))
        kept = (sharing.draw(bins, width, rng) for bins, width in zip(self.bins, widths.bins_kept, strict=True))
        return SubNetwork(widths, tuple(kept))

    def channels(self, widths: Widths) -> dict[str, int]:
        """How many channels each group keeps, by the group's name."""
        return {
            group.name: bins.channels(width)
            for group, bins, width in zip(self.groups, self.bins, widths.bins_kept, strict=True)
        }

    def kept_units(self, sub: SubNetwork) -> list[IntArray | None]:
        """For each group the units that `sub` keeps, ascending; None where it keeps all.

        Raises:
            ValueError: `sub` belongs to another space.
        """
        if len(sub.kept) != len(self.groups):
            raise ValueError(
                f"the sub-network has {len(sub.kept)} groups and this space {len(self.groups)}: "
                f"pass the space that the sub-network was drawn from"
            )
        units: list[IntArray | None] = []
        for group, bins, kept in zip(self.groups, self.bins, sub.kept, strict=True):
            if kept[-1] >= bins.count:
                raise ValueError(
                    f"group {group.name} has {bins.count} bins (0 to {bins.count - 1}), but the sub-network keeps bin "
                    f"{kept[-1]}: pass the space that the sub-network was drawn from"
                )
            whole = len(kept) == bins.count
            units.append(None if whole else np.unique(bins.channel_indices(kept) // group.unit))
        return units

    def positions(self, sub: SubNetwork) -> dict[tuple[str, str], IntArray]:
        """The channel positions that `sub` keeps, by (layer, side), for every axis that it narrows."""
        return kept_positions(self.axes, self.kept_units(sub))

    def fingerprint(self) -> str:
        """A short hash that tells spaces apart: groups, bins, axes and costs."""
        plain = [
            [(group.name, group.channels, group.unit) for group in self.groups],
            [bins.edges for bins in self.bins],
            [(term.layer, term.macs, term.params, term.groups) for term in self.cost.terms],
        ]
        digest = hashlib.sha256(json.dumps(plain).encode())
        for axis in self.axes:
            digest.update(str(axis).encode() + axis.groups.tobytes() + axis.units.tobytes())
        return digest.hexdigest()[:16]

    @property
    def searchable_share(self) -> float:
        """The share of the full network's MACs in layers whose cost depends on some width, from 0 to 1."""
        return self.preflight().searchable_share

    def preflight(self) -> Preflight:
        """What should be known of this space before anything is trained."""
        return Preflight(self.groups, self.bins, self.cost, self.frozen, self.uncounted, self.data_dependent)

    def describe(self) -> str:
        """The pre-flight report: what can be searched, in which bins, what stays as it is, why, and the remedy."""
        return self.preflight().text()


def uniform_widths(space: SearchSpace, budget: Budget | Limits) -> Widths:
    """The baseline "Uniform": one factor shrinks every group, the largest that meets `budget`.

    Each group keeps the number of bins whose channels come nearest to factor * channels. Where the next larger factor
    widens several groups at once and not all fit, those that do are widened, in the model's order, so that the
    baseline makes the most of its budget. In a space of coarse bins that is a rough shrink: rebin to SingleChannels
    for a fair baseline.

    Raises:
        InfeasibleBudget: no sub-network meets the budget, or it makes no sense.
    """
    limits = space.limits(budget) if isinstance(budget, Budget) else budget

    def shrunk(factor: float) -> Widths:
        nearest = (np.abs(np.array(bins.edges[1:]) - factor * bins.edges[-1]).argmin() for bins in space.bins)
        return Widths(tuple(1 + int(place) for place in nearest))

    low, high = 0.0, 1.0
    if limits.admit(space.cost, shrunk(high)):
        return shrunk(high)
    for _ in range(60):  # bisection: costs rise with the factor; 60 halvings reach the float's precision
        middle = (low + high) / 2
        low, high = (middle, high) if limits.admit(space.cost, shrunk(middle)) else (low, middle)
    found = shrunk(low)
    if not limits.admit(space.cost, found):
        raise CafeNetError("these limits admit no network of this space: make them with space.limits(budget)")
    for group, width in enumerate(shrunk(high).bins_kept):
        wider = Widths((*found.bins_kept[:group], width, *found.bins_kept[group + 1 :]))
        if limits.admit(space.cost, wider):
            found = wider
    return found
