from __future__ import annotations

import numpy as np
import pytest

from nni_cafenet import Budget, Candidate, Evolution, RandomSearch, Searcher, SubNetwork, Widths, uniform_widths
from tests.contracts.searcher import LIMITS, SPACE, SearcherContract, scored
from tests.spaces import chain


class TestEvolution(SearcherContract):
    @staticmethod
    def make(seed: int = 0) -> Searcher:
        return Evolution(population=6, generations=5, parents=3, mutation=0.3, seed=seed)


class TestEvolutionFromUniform(SearcherContract):
    @staticmethod
    def make(seed: int = 0) -> Searcher:
        return Evolution(population=6, generations=5, parents=3, mutation=0.3, from_uniform=True, seed=seed)


LARGE = chain(*[16] * 8)
HALF = LARGE.limits(Budget(max_macs="50%"))


def landscape(seed: int, widths: Widths) -> float:
    """Every layer has a weight: diminishing returns of its width, as accuracy has."""
    weights = np.random.default_rng(seed).uniform(0, 1, len(widths.bins_kept)) ** 3
    return float((weights * np.sqrt(widths.bins_kept)).sum())


def best_found(searcher: Searcher, seed: int) -> float:
    searcher.begin(LARGE, HALF)
    best = -np.inf
    while asked := searcher.ask(1):
        score = landscape(seed, asked[0])
        best = max(best, score)
        searcher.tell([Candidate(SubNetwork.fixed(asked[0]), score, 0, 0)])
    return float(best)


def test_evolution_beats_random_search_at_equal_evaluations() -> None:
    evolved = [best_found(Evolution(population=20, generations=10, parents=5, seed=s), s) for s in range(5)]
    random = [best_found(RandomSearch(evaluations=200, seed=s), s) for s in range(5)]
    assert all(ours > theirs for ours, theirs in zip(evolved, random, strict=True))


def test_the_first_generation_is_drawn_at_random_and_the_next_waits_for_its_scores() -> None:
    searcher = Evolution(population=6, generations=2, parents=2)
    searcher.begin(SPACE, LIMITS["macs"])
    first = searcher.ask(100)
    assert len(first) == 6
    assert searcher.ask(1) == []
    searcher.tell([scored(widths) for widths in first[:5]])
    assert searcher.ask(1) == []
    searcher.tell([scored(first[5])])
    assert len(searcher.ask(100)) > 0


def test_the_first_generation_may_hold_uniform_once() -> None:
    limits = LARGE.limits(Budget(max_macs="50%"))
    searcher = Evolution(population=6, generations=1, from_uniform=True)
    searcher.begin(LARGE, limits)
    first = searcher.ask(100)
    assert len(first) == 6 and first[0] == uniform_widths(LARGE, limits)
    assert first.count(first[0]) == 1
    drawn = Evolution(population=6, generations=1)
    drawn.begin(LARGE, limits)
    assert uniform_widths(LARGE, limits) not in drawn.ask(100)


def test_later_generations_come_closer_to_the_best() -> None:
    searcher = Evolution(population=20, generations=8, parents=5)
    searcher.begin(LARGE, HALF)
    means = []
    while asked := searcher.ask(20):
        scores = [landscape(0, widths) for widths in asked]
        means.append(np.mean(scores))
        searcher.tell([Candidate(SubNetwork.fixed(w), s, 0, 0) for w, s in zip(asked, scores, strict=True)])
    assert len(means) == 8
    assert means[-1] > means[0]


def test_evaluations_are_population_times_generations() -> None:
    assert Evolution(population=7, generations=3).evaluations == 21


@pytest.mark.parametrize("name", ["population", "generations", "parents"])
def test_numbers_below_1_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, but got 0"):
        Evolution(**{name: 0})


@pytest.mark.parametrize("mutation", [0, -0.1, 1.1])
def test_a_mutation_that_is_no_probability_is_refused(mutation: float) -> None:
    with pytest.raises(ValueError, match="mutation must be above 0 and at most 1, but got"):
        Evolution(mutation=mutation)


def test_a_population_of_one_goes_on() -> None:
    searcher = Evolution(population=1, generations=10, parents=1, seed=2)
    searcher.begin(LARGE, HALF)
    asked = []
    while batch := searcher.ask(1):
        asked += batch
        searcher.tell([Candidate(SubNetwork.fixed(w), landscape(0, w), 0, 0) for w in batch])
    assert len(asked) == 10
