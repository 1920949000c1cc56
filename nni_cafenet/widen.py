"""widen: how is a uniformly wider copy of a model made, to be searched down again?

The groups of build_space go on beyond their full width: the cost model says by which factor, the order of the units
along each axis says where the new channels belong, and a trial in float64 says whether the forward agrees.
"""

from __future__ import annotations

import copy
import itertools
import logging
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.growing import enlarged, find_growths, initialise, reorder_units, unclear_groups
from nni_cafenet.modes import seeded
from nni_cafenet.space import SearchSpace
from nni_cafenet.tracing.build import build_space
from nni_cafenet.tracing.example import Example, output_tensors
from nni_cafenet.tracing.macs import total_macs
from nni_cafenet.tracing.trial import randomise
from nni_cafenet.widths import IntArray

logger = logging.getLogger(__name__)

TOLERANCE = 0.02  # how far the MACs may be from those asked for
CLOSE = 1e-7  # relative; float64 rounding is near 1e-12, one misplaced channel far above

Units = Sequence[int]  # how many each group has, in the order of the space's groups


def widen(
    model: nn.Module,
    example_inputs: Any,
    *,
    macs: float = 1.5,
    keep_weights: bool = False,
    round_to: int = 1,
    ignore: Iterable[str | nn.Module] = (),
    seed: int | None = None,
) -> nn.Module:
    """A copy of `model` with `macs` times its MACs, in which one factor widens every group of channels.

    For networks that have little to spare: the paper searches EfficientNet-B0 in a supernet that is widened uniformly
    to 1.5x FLOPs. The copy has the original's class, state_dict keys, modes, requires_grad, dtypes and devices, and is
    searched like any model: the same groups, with more channels. A group whose growth the forward refuses keeps its
    channels, which is logged.

    Its weights are fresh: every module that has a ``reset_parameters`` is initialised by it, children before parents.
    What the model's constructor does beyond that (zeros in the last norm of a block, say) is lost: where that matters,
    run the model's own initialisation on the copy. A tensor that has grown and has no ``reset_parameters``, such as a
    layer scale, keeps its value if it is constant, and is else drawn from the normal distribution of its mean and
    deviation. All other values are copied.

    Args:
        model: any model that build_space accepts; left as it is.
        example_inputs: as for :func:`nni_cafenet.build_space`; MACs are counted per image at this size.
        macs: the MACs asked for as a multiple of the model's, above 1; met within 2 %.
        keep_weights: every old value stays with its channel, and only new channels are fresh. They are read by the
            layers behind them, so the copy computes something else than `model` until it is trained.
        round_to: the channels of every group that can grow become a multiple of this (8 suits most hardware).
        ignore: layers whose output channels stay as they are, as for :func:`nni_cafenet.build_space`.
        seed: of the fresh weights; None draws from torch's global generator, as building a network does.

    Raises:
        UnsupportedModel: build_space refuses the model, or too few of its layers can grow.
        ValueError: `macs` is not a number above 1 or is not met by whole channels, `round_to` is not a whole number of
            at least 1, or a name in `ignore` is unknown.
    """
    if isinstance(macs, bool) or not isinstance(macs, numbers.Real) or not 1 < macs < math.inf:
        raise ValueError(f"macs must be a number above 1, a multiple of the model's MACs such as 1.5, but got {macs!r}")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to must be a whole number of at least 1, but got {round_to!r}")
    space = build_space(model, example_inputs, ignore=ignore)
    example = Example(example_inputs).first_image()
    units, stuck = _accepted_units(model, space, example, float(macs), round_to)
    for index, reason in stuck.items():
        logger.info("%s keeps its %d channels: %s", space.groups[index].name, space.groups[index].channels, reason)
    growths = find_growths(space.axes, _own_units(space), units)
    wide = enlarged(model, growths)
    with nullcontext() if seed is None else seeded(seed, 0, wide):
        initialise(wide, model, growths, keep_weights=keep_weights)
    counted, predicted = total_macs(wide, example), _macs(space, units)
    if counted != predicted:
        raise UnsupportedModel(
            f"the cost model says {predicted:,} MACs of the widened {type(model).__name__} and fvcore counts "
            f"{counted:,}: its cost is not bilinear beyond full width; name the layers with unusual arithmetic in "
            f"ignore="
        )
    return wide


def _own_units(space: SearchSpace) -> list[int]:
    return [group.units for group in space.groups]


def _macs(space: SearchSpace, units: Units) -> int:
    """MACs per image where each group has so many units, be it more than it has."""
    return sum(term.macs * math.prod(units[group] for group in term.groups) for term in space.cost.terms)


def _accepted_units(
    model: nn.Module, space: SearchSpace, example: Example, macs: float, round_to: int
) -> tuple[list[int], dict[int, str]]:
    """The units of each group at `macs` times the MACs, and the groups that cannot grow with the reason."""
    trial = _Trial(model, space, example)
    stuck = unclear_groups(space.axes, trial.own)
    while True:  # each round adds a group to those that are stuck, or is the last
        units = _widened_units(space, macs, round_to, stuck)
        accepted = units if trial.fault(units) is None else trial.own
        for index, wider in enumerate(units):
            if wider > accepted[index]:
                tried = [*accepted[:index], wider, *accepted[index + 1 :]]
                fault = trial.fault(tried)
                if fault is None:
                    accepted = tried
                else:
                    stuck[index] = fault
        if accepted == units:
            return units, stuck


class _Trial:
    """Does the forward agree to a wider network? Asked of a private float64 copy in eval mode with random values."""

    def __init__(self, model: nn.Module, space: SearchSpace, example: Example) -> None:
        self.axes, self.own, self.example = space.axes, _own_units(space), example.double()
        self.model = copy.deepcopy(model).double().eval()
        self.shapes = [out.shape for out in self._outputs(self.model)]

    def fault(self, units: Units) -> str | None:
        """What is wrong with growing each group to `units`, or None.

        It is the permutation oracle of tracing/verify.py: reordering units everywhere must not change the output,
        which tells whether the new channels stand where the forward produces and reads them.
        """
        growths = find_growths(self.axes, self.own, units)
        orders = {index: _cycle(count) for index, count in enumerate(units) if count > self.own[index]}
        try:
            wide = enlarged(self.model, growths)
            with seeded(0, 0, wide):
                initialise(wide, self.model, growths, keep_weights=True)
            randomise(wide, seed=0)
            before = self._outputs(wide)
            reorder_units(wide, growths, orders)
            after = self._outputs(wide)
        except UnsupportedModel:
            raise
        except Exception as error:  # a third-party forward may raise anything at other widths
            return f"the forward fails when it is widened ({type(error).__name__}: {error})"
        if [out.shape for out in before] != self.shapes:
            return "widening it changes the shape of the output"
        for one, other in zip(before, after, strict=True):
            if one.numel() and float((one - other).abs().max()) > CLOSE * max(float(one.abs().max()), 1e-30):
                return "the forward does not read its new channels where they are produced"
        return None

    def _outputs(self, model: nn.Module) -> list[torch.Tensor]:
        with torch.no_grad(), seeded(0, 0, model):  # a forward may draw random numbers, in eval mode too
            return output_tensors(self.example.run(model))


def _cycle(count: int) -> IntArray:
    """A random order of so many units in which none keeps its place."""
    units = np.random.default_rng(0).permutation(count)
    order = np.empty_like(units)
    order[units] = np.roll(units, 1)
    return order


def _widened_units(space: SearchSpace, macs: float, round_to: int, stuck: Mapping[int, str]) -> list[int]:
    """The units of each group at `macs` times the MACs; those in `stuck`, with the reason, keep theirs.

    One factor for all groups, found by bisection; then single groups are moved to the next multiple above or below
    their share while that comes nearer to the MACs asked for. Where the tolerance is missed even so (few channels,
    large steps), pairs of groups are moved, within two multiples, to the least uneven widths that meet it.
    """
    own = _own_units(space)
    steps = [math.lcm(group.unit, round_to) // group.unit for group in space.groups]
    # sqrt(macs) where both sides of every layer grow, macs where one does; beyond macs**2 little would be uniform
    most = macs**2

    def choices(factor: float, reach: int) -> list[list[int]]:
        """For each group the multiples next to factor * units, `reach` of them on either side."""
        around = [
            {
                max(math.floor(factor * units / step) + i, math.ceil(units / step)) * step
                for i in range(1 - reach, reach + 1)
            }
            for units, step in zip(own, steps, strict=True)
        ]
        return [[own[index]] if index in stuck else sorted(found) for index, found in enumerate(around)]

    def nearest(factor: float) -> list[int]:
        shares = [factor * units for units in own]
        return [min(c, key=lambda n: abs(n - share)) for c, share in zip(choices(factor, 1), shares, strict=True)]

    target = macs * _macs(space, own)

    def error(units: Units) -> float:
        return abs(_macs(space, units) / target - 1)

    low, high = 1.0, most
    for _ in range(60):  # bisection: MACs rise with the factor; 60 halvings reach the float's precision
        middle = (low + high) / 2
        low, high = (middle, high) if _macs(space, nearest(middle)) < target else (low, middle)

    def unevenness(units: Units) -> tuple[float, float]:
        return max(error(units), TOLERANCE), sum(abs(n / (high * u) - 1) for n, u in zip(units, own, strict=True))

    units = _descended(nearest(high), choices(high, 1), 1, error)
    if error(units) > TOLERANCE:
        units = _descended(units, choices(high, 2), 2, unevenness)
    if error(units) <= TOLERANCE:
        return units
    reached = _macs(space, units) / _macs(space, own)
    if high < most:
        raise ValueError(
            f"macs={macs:g} cannot be met within {TOLERANCE:.0%} by whole channels in multiples of "
            f"round_to={round_to}; near it is macs={reached:.4g}: ask for that, or lower round_to"
        )
    fixed = {space.groups[index].name: reason for index, reason in stuck.items()}
    fixed |= {part.layer: part.reason for part in space.frozen}
    raise UnsupportedModel(
        f"too few layers can grow for macs={macs:g}: {reached:.4g} is reached where all others have {most:.3g} times "
        f"their channels, which is the most; lower macs. These stay as they are: "
        + "; ".join(f"{name} ({reason})" for name, reason in list(fixed.items())[:10])
    )


def _descended(
    units: list[int], choices: Sequence[Sequence[int]], together: int, cost: Callable[[Units], Any]
) -> list[int]:
    """`units` with `together` groups at a time moved to others of their choices, the best ones, while `cost` falls."""
    moves = [(index, count) for index, counts in enumerate(choices) for count in counts]
    while True:
        neighbours = (
            [dict(chosen).get(index, count) for index, count in enumerate(units)]
            for chosen in itertools.combinations(moves, together)
        )
        best = min(neighbours, key=cost, default=units)
        if cost(best) >= cost(units):
            return units
        units = best
