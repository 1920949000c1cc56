"""Predictor search, beyond the paper: scores of random widths are regressed, and the regression says what is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from nni_cafenet.cost import Limits
from nni_cafenet.search.evolution import Evolution
from nni_cafenet.search.searcher import MOST_TRIES, Candidate, Searcher, draw_within
from nni_cafenet.space import SearchSpace, uniform_widths
from nni_cafenet.widths import Widths

Predict = Callable[[Sequence[Widths]], npt.NDArray[np.float64]]  # of each width a score, shape (widths,)
USUAL = (0.03, 0.5)  # budgets, as shares of the full network
SCORES = 400  # of a supernet: as many as our benchmarks asked for
TRAININGS = 72  # were enough for all budgets of our benchmarks, where networks are trained one by one
ALPHAS = np.logspace(-1, 3, 9)  # of the ridge; which one, the scores say


def evaluations_of(train_each: int) -> int:
    """How many evaluations a search has unless told: of a supernet, or where each is a training of so many epochs."""
    return TRAININGS if train_each else SCORES


class PredictorSearch:
    """Scores random widths, then, in rounds, those that a regression of all scores so far thinks best.

    A supernet's score errs by more than good networks differ by, so that the highest of many scores is mostly the
    luckiest. The regression says what many scores agree on: a result is ranked by its predictions, not by the scores.
    Networks of one budget differ by little, so it learns from those of many: the random ones fill budgets between two
    shares of the full network, the same for all limits up to one half, so that searches of these share their scores.

    Args:
        evaluations: widths scored in all; SCORES unless given. For networks that are trained one by one TRAININGS do.
        first: of these Uniform's and random ones, before the first regression; eight ninths unless given.
        between: the shares of the full network's MACs, or parameters, which the random ones have; 0.03 and 0.5 unless
            given, or what the limits ask for where that is less or more.
        favourites: those that a regression thinks best, scored before the next one; one ninth unless given.
        caution: so many standard deviations are taken off what a regression says: of many widths, those that it likes
            best are mostly such as it knows little about.
        explorer: looks for these by the regression, which takes no time; Evolution(from_uniform=True, seed=seed)
            unless given.
        seed: of all draws.
    """

    def __init__(
        self,
        *,
        evaluations: int = SCORES,
        first: int | None = None,
        between: tuple[float, float] | None = None,
        favourites: int | None = None,
        caution: float = 2.0,
        explorer: Searcher | None = None,
        seed: int = 0,
    ) -> None:
        first = max(1, 8 * evaluations // 9) if first is None else first
        favourites = max(1, evaluations // 9) if favourites is None else favourites
        self.explorer = explorer or Evolution(from_uniform=True, seed=seed)
        for name, number in (("evaluations", evaluations), ("first", first), ("favourites", favourites)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, but got {number}")
        if between is not None and not 0 < between[0] <= between[1] <= 1:
            raise ValueError(f"between must be two shares, 0 < low <= high <= 1, but got {between}")
        if not 0 <= caution < math.inf:
            raise ValueError(f"caution must be a number of at least 0, but got {caution}")
        self.evaluations, self.first, self.between, self.favourites = evaluations, first, between, favourites
        self.caution, self.seed = caution, seed
        self._queue: list[Widths] = []  # of this round, not asked for yet
        self._asked: set[Widths] = set()  # ever, the queue counted
        self._told: dict[Widths, float] = {}
        self._over = False  # nothing is left that is new, or may be asked for
        self._space: SearchSpace | None = None
        self._limits = Limits()

    def __repr__(self) -> str:
        return (
            f"PredictorSearch(evaluations={self.evaluations}, first={self.first}, between={self.between}, "
            f"favourites={self.favourites}, caution={self.caution}, explorer={self.explorer!r}, seed={self.seed})"
        )

    def at_most(self, evaluations: int) -> PredictorSearch:
        """The same search in fewer evaluations, as many of its random ones and favourites fewer."""
        share = min(1.0, evaluations / self.evaluations)
        return PredictorSearch(
            evaluations=min(evaluations, self.evaluations), first=max(1, round(share * self.first)),
            between=self.between, favourites=max(1, round(share * self.favourites)), caution=self.caution,
            explorer=self.explorer, seed=self.seed,
        )  # fmt: skip

    def begin(self, space: SearchSpace, limits: Limits) -> None:
        self._space, self._limits = space, limits
        self._queue, self._asked, self._told, self._over = [], set(), {}, False

    def ask(self, n: int = 1) -> list[Widths]:
        waiting = len(self._asked) - len(self._queue) - len(self._told)
        if not self._queue and waiting == 0 and not self._over:
            self._queue = self._drawn() if not self._asked else self._thought_best()
            self._asked.update(self._queue)
            self._over = not self._queue
        asked, self._queue = self._queue[:n], self._queue[n:]
        return asked

    def tell(self, candidates: Sequence[Candidate]) -> None:
        for candidate in candidates:
            self._told[candidate.subnetwork.widths] = candidate.score

    def predict(self, widths: Sequence[Widths]) -> list[float]:
        """What the regression of all scores so far says of each of `widths`, less what caution takes off."""
        return [float(score) for score in self._regression()(widths)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "queue": [list(widths.bins_kept) for widths in self._queue],
            "asked": sorted(list(widths.bins_kept) for widths in self._asked),
            "told": [[list(widths.bins_kept), score] for widths, score in self._told.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._queue = [Widths(tuple(bins)) for bins in state["queue"]]
        self._asked = {Widths(tuple(bins)) for bins in state["asked"]}
        self._told = {Widths(tuple(bins)): score for bins, score in state["told"]}

    def _drawn(self) -> list[Widths]:
        """Uniform's widths and random ones, none twice."""
        assert self._space is not None, "begin() comes before ask()"
        rng = np.random.default_rng(self.seed)
        low, high = self.between or _around(self._space, self._limits)
        drawn = {uniform_widths(self._space, self._limits): None}
        for _ in range(MOST_TRIES * self.first):
            if len(drawn) >= min(self.first, self.evaluations):
                break
            share = math.exp(rng.uniform(math.log(low), math.log(high)))
            drawn[draw_within(self._space, _filled(self._space, self._limits, share), rng)] = None
        return list(drawn)

    def _thought_best(self) -> list[Widths]:
        """Of what the explorer finds by the regression, the best that were not asked for; none where nothing is new."""
        assert self._space is not None, "begin() comes before ask()"
        if (left := self.evaluations - len(self._asked)) <= 0:
            return []
        found = search_predictions(self._regression(), self.explorer, self._space, self._limits)
        new = [one.subnetwork.widths for one in found if one.subnetwork.widths not in self._asked]
        return new[: min(self.favourites, left)]

    def _regression(self) -> Predict:
        assert self._space is not None, "begin() comes before predict()"
        # in an order of its own, so that which of several was told first makes no difference
        known = sorted((widths.bins_kept, score) for widths, score in self._told.items() if math.isfinite(score))
        widths, scores = [Widths(bins) for bins, _ in known], [score for _, score in known]
        return regression(self._space, widths, scores, caution=self.caution)


def _around(space: SearchSpace, limits: Limits) -> tuple[float, float]:
    """Shares of the full network that are usual budgets, and what `limits` ask for."""
    shares = [most / count(space.largest) for most, count in _bounds(space, limits).values()]
    return min([USUAL[0], *shares]), min(max([USUAL[1], *shares]), 1.0)


def _filled(space: SearchSpace, limits: Limits, share: float) -> Limits:
    """`share` of what the full network has in the place of each of the limits; not less than the smallest one has."""
    counts = {name: count for name, (_, count) in _bounds(space, limits).items()}
    bounds = {name: max(int(share * count(space.largest)), count(space.smallest)) for name, count in counts.items()}
    return replace(limits, **bounds)


def _bounds(space: SearchSpace, limits: Limits) -> dict[str, tuple[int, Callable[[Widths], int]]]:
    """Those of `limits` that are given, and what counts them."""
    given = {"max_macs": (limits.max_macs, space.cost.macs), "max_params": (limits.max_params, space.cost.params)}
    return {name: (most, count) for name, (most, count) in given.items() if most is not None}


def regression(
    space: SearchSpace, widths: Sequence[Widths], scores: Sequence[float], *, caution: float = 0.0
) -> Predict:
    """A ridge regression of `scores` on the logarithms of the shares of channels that `widths` keep, and their squares.

    With about as many scores as numbers to learn, a ridge is needed; how strong, leave-one-out errors say. One score
    is what all widths get.

    Args:
        caution: so many standard deviations of a prediction are taken off it. They are those of a Gaussian prior of
            which the ridge is the maximum, and large where no score is near.
    """
    if len(widths) < 2:
        return lambda some: np.full(len(some), np.mean(scores))
    from sklearn.linear_model import RidgeCV  # takes long to import
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    known = scaler.fit_transform(logarithms(space, widths))
    fitted = RidgeCV(alphas=ALPHAS).fit(known, scores)
    noise = max(-fitted.best_score_, 0.0)  # the mean squared error of leaving one out
    covariance = noise * np.linalg.inv(known.T @ known + fitted.alpha_ * np.eye(known.shape[1]))

    def predict(some: Sequence[Widths]) -> npt.NDArray[np.float64]:
        given = scaler.transform(logarithms(space, some))
        deviations = np.sqrt(np.einsum("ni,ij,nj->n", given, covariance, given))
        return np.asarray(fitted.predict(given) - caution * deviations, dtype=np.float64)

    return predict


def logarithms(space: SearchSpace, widths: Sequence[Widths]) -> npt.NDArray[np.float64]:
    """Of the share of its channels that each group keeps, and the squares of these; shape (widths, 2 * groups)."""
    logs = np.log(shares(space, widths))
    return np.hstack([logs, logs**2])


def shares(space: SearchSpace, widths: Sequence[Widths]) -> npt.NDArray[np.float64]:
    """The share of its channels that each group keeps; shape (widths, groups)."""
    full = np.array([group.channels for group in space.groups])
    kept = np.array([list(space.channels(each).values()) for each in widths])
    return np.asarray(kept / full, dtype=np.float64)


def search_predictions(predict: Predict, searcher: Searcher, space: SearchSpace, limits: Limits) -> list[Candidate]:
    """All that `searcher`, begun here, asks for, scored by what `predict` says of it; the highest first."""
    searcher.begin(space, limits)
    seen: list[Candidate] = []
    while asked := searcher.ask(searcher.evaluations):
        scores = predict(asked)
        told = [Candidate.fixed(space, each, float(score)) for each, score in zip(asked, scores, strict=True)]
        searcher.tell(told)
        seen += told
    return sorted(seen, key=lambda candidate: -candidate.score)
