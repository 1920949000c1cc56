"""Constrained: what NNI's filter refuses is never scored, and its engine's budget ends any search."""

import pytest
import torch

from nni_cafenet import Budget, Candidate, Evolution, RandomSearch, SubNetwork, build_space
from nni_cafenet.demo import IMAGE_SHAPE, DigitsNet
from nni_cafenet.nas.constraints import Constrained

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's own


@pytest.fixture(scope="module")
def space():
    return build_space(DigitsNet(), torch.zeros(IMAGE_SHAPE))


def even(widths):
    return widths.bins_kept[0] % 2 == 0


def run(searcher, space):
    searcher.begin(space, space.limits(Budget("50%")))
    asked = []
    while batch := searcher.ask(3):
        asked += batch
        searcher.tell([Candidate(SubNetwork.fixed(widths), 0.5, 1, 1) for widths in batch])
    return asked


@pytest.mark.parametrize(
    "make", [lambda: RandomSearch(evaluations=30), lambda: Evolution(population=10, generations=3)]
)
def test_asks_only_for_what_is_admitted(make, space):
    plain = run(make(), space)
    asked = run(Constrained(make(), even, lambda: True), space)
    assert asked and all(map(even, asked))
    assert len(asked) < len(plain)


def test_ends_when_the_budget_does(space):
    left = iter([True, True, False])
    asked = run(Constrained(RandomSearch(evaluations=30), lambda widths: True, lambda: next(left)), space)
    assert len(asked) == 6


def test_ends_where_nothing_is_admitted(space):
    assert run(Constrained(RandomSearch(evaluations=30), lambda widths: False, lambda: True), space) == []


def test_goes_on_from_its_state(space):
    def make():
        searcher = Constrained(RandomSearch(evaluations=20), even, lambda: True)
        searcher.begin(space, space.limits(Budget("50%")))
        return searcher

    first, second = make(), make()
    first.ask(4)
    second.load_state_dict(first.state_dict())
    assert second.ask(4) == first.ask(4)
    assert second.evaluations == 20
