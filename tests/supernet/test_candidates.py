from __future__ import annotations

import numpy as np
import pytest

from nni_cafenet import Coordinate, Fixed, FullyFree, LocallyFree, Sampled, SubNetwork, Tied, Widths
from nni_cafenet.supernet.candidates import Candidates, as_candidates
from tests.spaces import chain

SPACE = chain(6, 4, 8)
WIDTHS = Widths((3, 1, 8))
LOCAL = LocallyFree(offset=1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_tied_takes_the_same_choice_everywhere_and_the_last_where_there_are_fewer() -> None:
    listed = Tied().listed(SPACE, WIDTHS, LOCAL, rng())
    assert [sub.kept for sub in listed] == [
        ((0, 1, 2), (0,), tuple(range(8))),
        ((0, 1, 3), (1,), tuple(range(8))),
        ((0, 2, 3), (1,), tuple(range(8))),
    ]


def test_sampled_draws_every_layer_on_its_own_and_always_has_the_fixed_one() -> None:
    seen = set()
    for seed in range(60):
        listed = Sampled(3).listed(SPACE, WIDTHS, LOCAL, rng(seed))
        assert 1 <= len(listed) <= 3
        assert listed[0] == SubNetwork.fixed(WIDTHS)
        seen.update(sub.kept[:2] for sub in listed)
    assert len(seen) == 3 * 2


@pytest.mark.parametrize("candidates", [Tied(), Sampled(), Sampled(10)])
@pytest.mark.parametrize("sharing", [Fixed(), LOCAL, LocallyFree(offset=2), FullyFree()])
def test_listed_candidates_have_the_widths_and_are_none_twice_with_the_fixed_one_first(
    candidates: Candidates, sharing: object
) -> None:
    for seed in range(20):
        widths = SPACE.sample(rng(seed)).widths
        listed = candidates.listed(SPACE, widths, sharing, rng(seed))
        assert listed[0] == SubNetwork.fixed(widths)
        assert len(set(listed)) == len(listed)
        assert {sub.widths for sub in listed} == {widths}


@pytest.mark.parametrize("candidates", [Tied(), Sampled()])
def test_the_fixed_pattern_has_one_candidate(candidates: Candidates) -> None:
    assert candidates.listed(SPACE, WIDTHS, Fixed(), rng()) == [SubNetwork.fixed(WIDTHS)]


def rightmost(sub: SubNetwork) -> float:
    """Prefers bins far to the right in the first group, far to the left in the second."""
    return sum(sub.kept[0]) - 10 * sum(sub.kept[1]) + 0.0


@pytest.mark.parametrize("candidates", [Tied(), Sampled(5)])
def test_the_best_listed_one_has_the_highest_score(candidates: Candidates) -> None:
    best, score = candidates.best(SPACE, WIDTHS, LOCAL, rng(1), rightmost)
    listed = candidates.listed(SPACE, WIDTHS, LOCAL, rng(1))
    assert score == max(map(rightmost, listed)) == rightmost(best)
    assert best in listed


def test_of_equal_scores_the_fixed_pattern_s_wins() -> None:
    for candidates in (Tied(), Sampled(5), Coordinate()):
        assert candidates.best(SPACE, WIDTHS, LOCAL, rng(), lambda sub: 1.0) == (SubNetwork.fixed(WIDTHS), 1.0)


def test_coordinate_finds_the_best_of_a_separable_score() -> None:
    best, score = Coordinate().best(SPACE, WIDTHS, LOCAL, rng(), rightmost)
    assert best.kept == ((0, 2, 3), (0,), tuple(range(8)))
    assert score == 5


def test_coordinate_scores_nothing_twice_and_the_fixed_one_first() -> None:
    scored: list[SubNetwork] = []

    def score(sub: SubNetwork) -> float:
        scored.append(sub)
        return rightmost(sub)

    Coordinate().best(SPACE, WIDTHS, LOCAL, rng(), score)
    assert scored[0] == SubNetwork.fixed(WIDTHS)
    assert len(set(scored)) == len(scored) == 1 + 2 + 1


def test_coordinate_is_refused_for_training() -> None:
    with pytest.raises(ValueError, match="Coordinate candidates are for scoring only: train with Sampled"):
        Coordinate().listed(SPACE, WIDTHS, LOCAL, rng())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tied", Tied()),
        ("sampled", Sampled(3)),
        ("sampled:7", Sampled(7)),
        ("coordinate", Coordinate()),
        (Tied(), Tied()),
    ],
)
def test_candidates_by_name(name: Candidates | str, expected: Candidates) -> None:
    assert as_candidates(name) == expected


@pytest.mark.parametrize("name", ["", "tide", "sampled:x", "sampled:-1", "tied:3", "coordinate:2"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r'candidates must be "tied", "sampled", "sampled:COUNT" or "coordinate", but got'
    ):
        as_candidates(name)


def test_a_count_below_1_is_refused() -> None:
    with pytest.raises(ValueError, match="count must be at least 1, but got 0"):
        as_candidates("sampled:0")
