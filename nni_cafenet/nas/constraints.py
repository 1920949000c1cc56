"""How do NNI's filters bind any Searcher: what they bound from above are limits, and the rest refuses samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from nni.nas.oneshot.pytorch.profiler import RangeProfilerFilter

from nni_cafenet.cost import Budget, CostModel, Limits
from nni_cafenet.errors import CafeNetError
from nni_cafenet.nas.model_space import WidthModelSpace
from nni_cafenet.nas.profiler import WidthFlopsProfiler, WidthParamsProfiler
from nni_cafenet.search.searcher import Candidate, Searcher, draw_within, predictions
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import Widths

logger = logging.getLogger(f"nni.{__name__}")  # under nni, so that NNI's log files hold it

Filter = Callable[[dict[str, int]], bool]  # of a sample: channels by label
Admits = Callable[[Widths], bool]
MOST_DRAWS = 1000  # of widths, until a filter counts as one that admits nothing


def as_filter(filter: Filter | Mapping[str, Any] | None) -> Filter | None:
    """`filter` as a callable: NNI's users also write a dict of profiler, min and max.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(filter, Mapping):
        return RangeProfilerFilter(**filter)  # type: ignore[no-any-return]
    if filter is not None and not callable(filter):
        raise TypeError(
            f"filter must be a function of a sample, a RangeProfilerFilter or a dict of profiler, min and max, "
            f"but got {filter!r}"
        )
    return filter


def limits_under(space: SearchSpace, budget: Budget | None, filter: Filter | None) -> Limits:
    """The limits of `budget`, and of `filter` where it is a range of WidthFlopsProfiler or WidthParamsProfiler.

    Raises:
        InfeasibleBudget: see Budget.limits.
        TypeError: neither bounds anything.
    """
    name = _limit_of(filter)
    bound = Budget(**{name: filter.max_value}) if name else None  # type: ignore[arg-type, union-attr]
    found = [space.limits(asked) for asked in (budget, bound) if asked is not None]
    if not found:
        raise TypeError(
            'CafeNet needs a budget, such as Budget(max_macs="50%"), unless its filter is a range of a '
            "WidthFlopsProfiler or WidthParamsProfiler with a max"
        )
    lowest = {
        field.name: min((limit for limits in found if (limit := getattr(limits, field.name)) is not None), default=None)
        for field in fields(Limits)
    }
    return Limits(**lowest)


class Constrained:
    """A Searcher that asks what `searcher` asks, less what `admits` refuses.

    What is refused is told to `searcher` at once, with the score minus infinity, and counts as one of its evaluations.
    Where `below` admits the smallest network, `searcher` draws within it as within the limits, so that little is
    refused: searchers fill their limits, and would hardly ever meet a filter that asks for less.

    Args:
        searcher: does the searching.
        admits: whether widths may be scored.
        goes_on: asked before every question; False ends the search.
        below: what of `admits` bounds widths from above; all of it unless given.
    """

    def __init__(
        self, searcher: Searcher, admits: Admits, goes_on: Callable[[], bool], *, below: Admits | None = None
    ) -> None:
        self.searcher, self.admits, self.goes_on, self.below = searcher, admits, goes_on, below or admits
        self._space: SearchSpace | None = None
        self._best = -math.inf

    def __repr__(self) -> str:
        return f"{self.searcher!r} under NNI's constraints"

    @property
    def evaluations(self) -> int:
        return self.searcher.evaluations

    def begin(self, space: SearchSpace, limits: Limits) -> None:
        self._space = space
        self.searcher.begin(space, self._narrowed(space, limits))

    def check(self, space: SearchSpace, limits: Limits, *, seed: int, sample: Mapping[str, Any]) -> None:
        """Raise CafeNetError where the filter fails, or admits none of many widths within `limits`.

        Args:
            space: to be searched.
            limits: of the budget.
            seed: of the widths drawn.
            sample: of the smallest network, to tell in messages what a filter gets.
        """
        try:
            self.admits(space.smallest)
        except Exception as error:  # whatever a user's filter or profiler raises
            raise CafeNetError(
                f"the filter fails on {sample} with {type(error).__name__}: {error}: it gets such samples, channels by "
                f"label, and returns True or False; a profiler has profile(sample)"
            ) from error
        rng = np.random.default_rng([seed, 2])
        narrowed = self._narrowed(space, limits)
        if not any(self.admits(draw_within(space, narrowed, rng)) for _ in range(MOST_DRAWS)):
            raise CafeNetError(
                f"the filter admits none of {MOST_DRAWS} widths drawn within the budget ({limits}): loosen the filter "
                f"or the budget; filter(sample) gets channels by label, such as {sample}"
            )

    def ask(self, n: int = 1) -> list[Widths]:
        while self.goes_on() and (asked := self.searcher.ask(n)):
            admitted = [widths for widths in asked if self.admits(widths)]
            self.searcher.tell([self._refused(widths) for widths in asked if widths not in admitted])
            if admitted:
                return admitted
        return []

    def tell(self, candidates: Sequence[Candidate]) -> None:
        self.searcher.tell(candidates)
        for candidate in candidates:
            if candidate.score > self._best:
                self._best = candidate.score
                logger.info("best so far: %s", candidate)

    def predict(self, widths: Sequence[Widths]) -> tuple[float, ...] | None:
        return predictions(self.searcher, widths)

    def state_dict(self) -> dict[str, Any]:
        return self.searcher.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.searcher.load_state_dict(state)

    def _narrowed(self, space: SearchSpace, limits: Limits) -> Limits:
        return _Below(**vars(limits), below=self.below) if self.below(space.smallest) else limits

    def _refused(self, widths: Widths) -> Candidate:
        assert self._space is not None, "begin() comes before ask()"
        return Candidate.fixed(self._space, widths, -math.inf)


def on_widths(filter: Filter | None, model_space: WidthModelSpace) -> Admits:
    """`filter` as a question about widths, but for what of it is among the limits; None admits all."""
    if filter is None:
        return lambda widths: True
    if _limit_of(filter):
        # which a searcher heeds, or passes on its way down, as a greedy one does
        least = -math.inf if filter.min_value is None else filter.min_value  # type: ignore[attr-defined]
        profiler = filter.profiler  # type: ignore[attr-defined]
        return lambda widths: bool(profiler.profile(model_space.sample_of(widths)) >= least)
    return lambda widths: bool(filter(model_space.sample_of(widths)))


def _limit_of(filter: Filter | None) -> str | None:
    """The name of the limit that `filter` sets, where it sets one."""
    if not isinstance(filter, RangeProfilerFilter) or filter.max_value is None:
        return None
    return {WidthFlopsProfiler: "max_macs", WidthParamsProfiler: "max_params"}.get(type(filter.profiler))


def upper_part(filter: Filter | None) -> Filter | None:
    """What of `filter` bounds samples from above: of a range its max, of a function all of it."""
    if not isinstance(filter, RangeProfilerFilter):
        return filter
    largest = math.inf if filter.max_value is None else filter.max_value
    return lambda sample: bool(filter.profiler.profile(sample) <= largest)


@dataclass(frozen=True)
class _Below(Limits):
    below: Admits = lambda widths: True

    def admit(self, cost: CostModel, widths: Widths) -> bool:
        return super().admit(cost, widths) and self.below(widths)
