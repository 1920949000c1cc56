from __future__ import annotations

import math

import numpy as np
import pytest

from nni_cafenet import Budget, Candidate, Evolution, PredictorSearch, Searcher, SubNetwork, Widths, uniform_widths
from nni_cafenet.search.predictor import logarithms, regression, search_predictions
from nni_cafenet.search.searcher import draw_within, predictions
from tests.contracts.searcher import LIMITS, SPACE, SearcherContract, objective, scored, search
from tests.spaces import chain


class TestPredictorSearch(SearcherContract):
    asks_within_limits = False

    @staticmethod
    def make(seed: int = 0) -> Searcher:
        explorer = Evolution(population=8, generations=3, seed=seed)
        return PredictorSearch(evaluations=30, first=15, favourites=5, explorer=explorer, seed=seed)


SMALL = Evolution(population=8, generations=3)
DEEP = chain(16, 24, 24, 32, 32, 48)
HALF = DEEP.limits(Budget(max_macs="50%"))


def worth(widths: Widths) -> float:
    """Worth of a deep network: no layer should be too narrow, the later ones least of all."""
    logs = logarithms(DEEP, [widths])[0, : len(DEEP.groups)]
    return float(-(logs**2) @ np.linspace(0.2, 1, len(logs)))


def noisy(widths: Widths, seed: int) -> float:
    return worth(widths) + 0.3 * float(np.random.default_rng([seed, *widths.bins_kept]).normal())


def searched(searcher: Searcher, seed: int) -> list[Widths]:
    searcher.begin(DEEP, HALF)
    asked = []
    while one := searcher.ask(1):
        searcher.tell([scored_deep(one[0], noisy(one[0], seed))])
        asked += one
    return asked


def scored_deep(widths: Widths, score: float) -> Candidate:
    return Candidate(SubNetwork.fixed(widths), score, DEEP.cost.macs(widths), DEEP.cost.params(widths))


def test_where_scores_are_noisy_its_first_is_worth_more_than_evolution_s() -> None:
    gains = []
    for seed in range(5):
        predictor, evolution = PredictorSearch(evaluations=100, seed=seed), Evolution(population=10, generations=10)
        admitted = [widths for widths in searched(predictor, seed) if HALF.admit(DEEP.cost, widths)]
        best = admitted[int(np.argmax(predictor.predict(admitted)))]
        luckiest = max(searched(evolution, seed), key=lambda widths: noisy(widths, seed))
        gains.append(worth(best) - worth(luckiest))
    assert np.mean(gains) > 0
    assert sum(gain > 0 for gain in gains) >= 4


def test_it_starts_with_uniform_and_goes_on_to_what_it_thinks_best() -> None:
    searcher = PredictorSearch(evaluations=60, first=40, between=(0.1, 1), favourites=10)
    asked = searched(searcher, seed=0)
    assert asked[0] == uniform_widths(DEEP, HALF)
    assert len(asked) == 60
    admitted = [HALF.admit(DEEP.cost, widths) for widths in asked]
    values = np.array(searcher.predict(asked))
    assert all(admitted[40:]) and 5 < sum(admitted[:40]) < 35  # the random ones are smaller and larger
    assert values[50:].min() > np.quantile(values[:40][admitted[:40]], 0.9)


def test_its_random_widths_are_the_same_whatever_the_budget_and_fill_many() -> None:
    searcher = PredictorSearch(evaluations=40, between=(0.1, 0.6))
    drawn = []
    for share in ("20%", "50%"):
        searcher.begin(DEEP, DEEP.limits(Budget(max_macs=share)))
        first, *others = searcher.ask(32)
        assert first == uniform_widths(DEEP, Budget(max_macs=share))
        drawn.append(others)
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 31
    shares = [DEEP.cost.macs(widths) / DEEP.cost.macs(DEEP.largest) for widths in drawn[0]]
    assert 0.05 < min(shares) < 0.2 and 0.4 < max(shares) <= 0.6


def test_its_random_widths_reach_as_far_as_the_budget_where_that_is_out_of_the_usual() -> None:
    full = DEEP.cost.macs(DEEP.largest)
    searcher = PredictorSearch(evaluations=60)
    shares = {}
    for budget in ("20%", "50%", "90%", "1%"):
        searcher.begin(DEEP, DEEP.limits(Budget(max_macs=budget)))
        shares[budget] = [DEEP.cost.macs(widths) / full for widths in searcher.ask(48)[1:]]
    assert shares["20%"] == shares["50%"] and 0.02 < min(shares["20%"]) < 0.06 and 0.4 < max(shares["20%"]) <= 0.5
    assert 0.7 < max(shares["90%"]) <= 0.9 and 0.02 < min(shares["90%"]) < 0.06
    assert 0.4 < max(shares["1%"]) <= 0.5 and min(shares["1%"]) < 0.015


def test_a_regression_learns_what_is_a_square_of_logarithms() -> None:
    rng = np.random.default_rng(0)
    widths = [draw_within(DEEP, HALF, rng) for _ in range(80)]
    values = [worth(each) for each in widths]
    unseen = [draw_within(DEEP, HALF, rng) for _ in range(40)]
    predicted = regression(DEEP, widths, values)(unseen)
    assert np.corrcoef(predicted, [worth(each) for each in unseen])[0, 1] > 0.99


def test_caution_takes_off_most_where_no_score_is_near() -> None:
    rng = np.random.default_rng(0)
    widths = [draw_within(DEEP, HALF, rng) for _ in range(60)]
    values = [noisy(each, 0) for each in widths]
    far = Widths(tuple(1 if group % 2 else bins.count for group, bins in enumerate(DEEP.bins)))
    bold, cautious = (regression(DEEP, widths, values, caution=caution) for caution in (0, 2))
    taken_off = bold([*widths, far]) - cautious([*widths, far])
    assert taken_off.min() > 0
    assert taken_off[-1] > 3 * np.median(taken_off)
    errors = [worth(each) - bold([each])[0] for each in (draw_within(DEEP, HALF, rng) for _ in range(100))]
    assert 0.3 < np.std(errors) / np.median(taken_off / 2) < 3  # a deviation is what predictions are off by


def test_a_regression_of_one_score_says_that_score() -> None:
    assert list(regression(SPACE, [SPACE.largest], [0.7])([SPACE.smallest, SPACE.largest])) == [0.7, 0.7]


def test_predictions_do_not_depend_on_the_order_in_which_scores_were_told() -> None:
    forward, backward = (PredictorSearch(evaluations=30, first=30) for _ in range(2))
    for searcher, step in ((forward, 1), (backward, -1)):
        searcher.begin(SPACE, LIMITS["macs"])
        searcher.tell([scored(widths) for widths in searcher.ask(30)[::step]])
    assert forward.predict([SPACE.largest]) == backward.predict([SPACE.largest])


def test_widths_that_a_filter_refuses_are_no_scores() -> None:
    searcher, without = (PredictorSearch(evaluations=30, first=30) for _ in range(2))
    for each in (searcher, without):
        each.begin(SPACE, LIMITS["macs"])
    asked = searcher.ask(30)
    searcher.tell([scored(asked[0], lambda widths: -math.inf), *map(scored, asked[1:])])
    without.tell([scored(widths) for widths in asked[1:]])
    assert searcher.predict(asked) == without.predict(asked)


def test_all_that_a_prediction_is_asked_for_comes_back_highest_first() -> None:
    found = search_predictions(
        lambda some: np.array([objective(each) for each in some]),
        Evolution(population=6, generations=3),
        SPACE,
        LIMITS["macs"],
    )
    assert [one.score for one in found] == sorted((objective(one.subnetwork.widths) for one in found), reverse=True)
    assert len(found) > 6


def test_a_searcher_that_takes_scores_as_they_are_predicts_nothing() -> None:
    assert predictions(Evolution(), [SPACE.smallest]) is None


def test_a_resumed_search_predicts_what_an_unbroken_one_does() -> None:
    whole, first, second = (PredictorSearch(evaluations=20, favourites=4, explorer=SMALL) for _ in range(3))
    for each in (whole, first):
        each.begin(SPACE, LIMITS["macs"])
    second.begin(SPACE, LIMITS["macs"])
    asked = search(whole)
    before = search(first, most=13)
    second.load_state_dict(first.state_dict())
    assert before + search(second) == asked
    assert second.predict(asked) == whole.predict(asked)


@pytest.mark.parametrize("name", ["evaluations", "first", "favourites"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, but got 0"):
        PredictorSearch(**{name: 0})


def test_a_caution_below_none_is_refused() -> None:
    with pytest.raises(ValueError, match="caution must be a number of at least 0, but got -1"):
        PredictorSearch(caution=-1)


@pytest.mark.parametrize("between", [(0, 0.5), (0.5, 0.1), (0.1, 1.5)])
def test_shares_that_are_none_are_refused(between: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="between must be two shares"):
        PredictorSearch(between=between)


def test_predicting_before_beginning_is_an_internal_error() -> None:
    with pytest.raises(AssertionError, match=r"begin\(\) comes before predict\(\)"):
        PredictorSearch().predict([SPACE.smallest])
