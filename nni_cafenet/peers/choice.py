"""Which bins stand for the channels that somebody else's pruner chose, and how is it said that none do?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nni_cafenet.errors import InvalidChoice
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import Bins, IntArray, SubNetwork, Widths

BoolArray = npt.NDArray[np.bool_]

ORIGIN = "use the space built from the model before it was pruned"
SHOWN = 5  # layers or groups that a message names


def subnetwork_of(space: SearchSpace, kept_units: Sequence[BoolArray | None], *, round: bool) -> SubNetwork:
    """What keeps these units of each group (None: all)."""
    found: list[tuple[int, ...]] = []
    faults: list[str] = []
    for group, bins, units in zip(space.groups, space.bins, kept_units, strict=True):
        kept = np.ones(group.channels, dtype=bool) if units is None else np.repeat(units, group.unit)
        if not kept.any():
            raise InvalidChoice(f"nothing is left of {group.name}: a network keeps at least {bins.channels(1)} of it")
        in_bin = np.add.reduceat(kept, bins.edges[:-1], dtype=np.int64)
        whole = in_bin == np.diff(bins.edges)
        holds = in_bin[whole].sum() == bins.channels(int(whole.sum()))
        if (whole | (in_bin == 0)).all() and (whole[0] or not bins.first_is_kept) and holds:
            found.append(tuple(np.flatnonzero(whole).tolist()))
        else:
            found.append(_nearest(bins, in_bin))
            faults.append(f"{group.name} (bins of {bins.size}, the first of {bins.edges[1]})")
    if faults and not round:
        raise InvalidChoice(
            f"the bins of this space cannot keep just these channels of {some_of(faults)}: read them in "
            f"rebin(space, SingleChannels()), or pass round=True for the nearest widths"
        )
    return SubNetwork(Widths(tuple(map(len, found))), tuple(found))


def _nearest(bins: Bins, in_bin: IntArray) -> tuple[int, ...]:
    """The bins that stand for in_bin[k] channels out of each bin k: as many as come nearest, those that keep most."""
    width = 1 + int(np.abs(np.array(bins.edges[1:]) - in_bin.sum()).argmin())
    share = in_bin / np.diff(bins.edges)
    if bins.first_is_kept:
        share[0] = np.inf
    return tuple(sorted(np.argsort(-share, kind="stable")[:width].tolist()))


def reason(space: SearchSpace, layer: str) -> str:
    """Why the space holds a layer at full width, in brackets; nothing where it does not."""
    reasons = [part.reason for part in space.frozen if part.layer == layer]
    return f" ({reasons[0]})" if reasons else ""


def some_of(items: Sequence[str], separator: str = "; ") -> str:
    """The first few items of a list that may be long."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return separator.join(items[:SHOWN]) + more
