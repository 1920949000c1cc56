"""What a sub-network costs: MACs and parameters as a bilinear form of the widths, and the budget that bounds them.

Pure arithmetic: no torch, exact integers, some microseconds a query.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nni_cafenet.errors import InfeasibleBudget
from nni_cafenet.widths import Widths


@dataclass(frozen=True)
class CostTerm:
    """`macs` (per image) and `params` for each product of the kept units of `groups`: none, one or two (eq. 6)."""

    layer: str
    macs: int
    params: int
    groups: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.groups) > 2:
            raise ValueError(f"{self.layer}: a cost term has at most 2 groups, but got {self.groups}")


@dataclass(frozen=True)
class CostModel:
    """MACs and parameters of every sub-network of a space.

    Args:
        terms: what the layers cost.
        units: units[i][w] is the number of units that group i keeps at a width of w bins; units[i][0] is 0.
    """

    terms: tuple[CostTerm, ...]
    units: tuple[tuple[int, ...], ...]

    def macs(self, widths: Widths) -> int:
        """Multiply-adds per image, exactly what fvcore counts on the sliced network in eval mode."""
        return self._total(self._macs, widths)

    def params(self, widths: Widths) -> int:
        """Parameters, exactly the sum of numel() over the sliced network."""
        return self._total(self._params, widths)

    def macs_per_unit(self) -> npt.NDArray[np.float64]:
        """d MACs / d (units of a group) at full width, the sensitivity e_i of eq. 7; shape (groups,)."""
        full = self._kept_units(Widths(tuple(len(table) - 1 for table in self.units)))
        slopes = np.zeros(len(full))
        left, right = self._left_right
        np.add.at(slopes, left, self._macs * full[right])
        np.add.at(slopes, right, self._macs * full[left])
        return slopes[:-1]

    def layer_macs(self, widths: Widths) -> dict[str, int]:
        """MACs of each layer at `widths`."""
        kept = self._kept_units(widths)
        left, right = self._left_right
        totals: dict[str, int] = {}
        for term, product in zip(self.terms, kept[left] * kept[right], strict=True):
            totals[term.layer] = totals.get(term.layer, 0) + term.macs * int(product)
        return totals

    def _total(self, coefficients: npt.NDArray[np.float64], widths: Widths) -> int:
        kept = self._kept_units(widths)
        left, right = self._left_right
        return int(coefficients @ (kept[left] * kept[right]))

    def _kept_units(self, widths: Widths) -> npt.NDArray[np.float64]:
        if len(widths.bins_kept) != len(self.units):
            raise ValueError(f"expected the widths of {len(self.units)} groups, but got {len(widths.bins_kept)}")
        # the last entry, 1, stands in for the groups that a term does not have
        kept = [table[width] for table, width in zip(self.units, widths.bins_kept, strict=True)]
        return np.array([*kept, 1], dtype=np.float64)

    # float64 holds integers up to 2^53 exactly: 9e15 MACs
    @cached_property
    def _macs(self) -> npt.NDArray[np.float64]:
        return np.array([term.macs for term in self.terms], dtype=np.float64)

    @cached_property
    def _params(self) -> npt.NDArray[np.float64]:
        return np.array([term.params for term in self.terms], dtype=np.float64)

    @cached_property
    def _left_right(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        none = len(self.units)
        padded = [(*term.groups, none, none)[:2] for term in self.terms]
        pairs = np.array(padded, dtype=np.int64).reshape(len(padded), 2)
        return pairs[:, 0], pairs[:, 1]


@dataclass(frozen=True)
class Limits:
    """A budget in absolute numbers; None does not bound."""

    max_macs: int | None = None
    max_params: int | None = None

    def admit(self, cost: CostModel, widths: Widths) -> bool:
        """Whether `widths` meet every limit."""
        return (self.max_macs is None or cost.macs(widths) <= self.max_macs) and (
            self.max_params is None or cost.params(widths) <= self.max_params
        )

    @property
    def label(self) -> str:
        """For names of files: max_macs-1000000, or with both max_macs-1000000-max_params-5000."""
        return "-".join(f"{name}-{limit}" for name, limit in vars(self).items() if limit is not None)


@dataclass(frozen=True)
class Budget:
    """The most that a network may cost: an absolute number or a percentage of the full network, such as "50%".

    What is asked is judged against a space, by :meth:`limits`, which every search calls before anything is trained:
    only there can the error say what would be possible.

    Args:
        max_macs: multiply-adds per image, as fvcore counts them.
        max_params: parameters.
    """

    max_macs: int | float | str | None = None
    max_params: int | float | str | None = None

    def limits(self, cost: CostModel, *, smallest: Widths, largest: Widths) -> Limits:
        """This budget in absolute numbers.

        Raises:
            InfeasibleBudget: a limit is not a number or percentage, is not above 0, is above the full network, or is
                under the smallest one. It carries `asked`, `smallest` and `largest`.
        """
        counters = {"max_macs": cost.macs, "max_params": cost.params}
        if self.max_macs is None and self.max_params is None:
            raise InfeasibleBudget(
                limit="max_macs", asked=None, smallest=cost.macs(smallest), largest=cost.macs(largest),
                reason="bounds nothing (give max_macs, max_params or both)",
            )  # fmt: skip
        return Limits(
            **{
                name: _absolute(name, asked, smallest=count(smallest), largest=count(largest))
                for name, count in counters.items()
                if (asked := getattr(self, name)) is not None
            }
        )


def _absolute(limit: str, asked: object, *, smallest: int, largest: int) -> int:
    def refuse(reason: str) -> InfeasibleBudget:
        return InfeasibleBudget(limit=limit, asked=asked, smallest=smallest, largest=largest, reason=reason)

    value = _number(asked, largest)
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise refuse("is neither a number nor a percentage")
    if value <= 0:
        raise refuse("must be above 0")
    if value > largest:
        raise refuse("is more than the full network has, so it would bound nothing")
    if math.floor(value) < smallest:
        raise refuse("is infeasible: less than the smallest network has")
    return math.floor(value)


def _number(asked: object, largest: int) -> int | float | None:
    if isinstance(asked, str):
        match = re.fullmatch(r"\s*([-+]?\d+(?:\.\d*)?|[-+]?\.\d+)\s*%\s*", asked)
        # multiplied before divided, so that "100%" is exactly the full network
        return float(match[1]) * largest / 100 if match else None
    if isinstance(asked, (int, np.integer)) and not isinstance(asked, bool):
        return int(asked)
    return float(asked) if isinstance(asked, (float, np.floating)) else None
