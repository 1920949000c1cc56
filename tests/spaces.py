"""A small search space made by hand: no model, no torch."""

from __future__ import annotations

from itertools import product

import numpy as np

from nni_cafenet import Bins, SearchSpace, WidthGroup, Widths
from nni_cafenet.cost import CostModel, CostTerm
from nni_cafenet.frozen import FrozenPart
from nni_cafenet.widths import Axis


def chain(*channels: int, size: int = 1, frozen: bool = True) -> SearchSpace:
    """Convolutions one after the other, of 1x1 kernels on 10 positions, from 3 inputs to 5 outputs."""
    groups = tuple(WidthGroup(f"conv{i}", n, (f"conv{i}.out", f"conv{i + 1}.in")) for i, n in enumerate(channels))
    bins = tuple(Bins.of_size(n, size) for n in channels)
    last = len(channels)
    terms = [CostTerm("conv0", 30, 3, (0,))]
    terms += [CostTerm(f"conv{i}", 10, 1, (i - 1, i)) for i in range(1, last)]
    terms += [CostTerm(f"conv{last}", 50, 5, (last - 1,)), CostTerm(f"conv{last}", 0, 5)]
    axes = [Axis("conv0", "in", np.full(3, -1), np.full(3, -1))]
    for i, n in enumerate(channels):
        axes.append(Axis(f"conv{i}", "out", np.full(n, i), np.arange(n)))
        axes.append(Axis(f"conv{i + 1}", "in", np.full(n, i), np.arange(n)))
    axes.append(Axis(f"conv{last}", "out", np.full(5, -1), np.full(5, -1)))
    parts = (FrozenPart(f"conv{last}", 5, "it is the model's output"),) if frozen else ()
    return SearchSpace(groups, bins, CostModel(tuple(terms), tuple(cut.edges for cut in bins)), tuple(axes), parts)


def all_widths(space: SearchSpace) -> list[Widths]:
    return [Widths(bins) for bins in product(*(range(1, cut.count + 1) for cut in space.bins))]
