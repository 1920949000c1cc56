"""The contract of a searcher."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from nni_cafenet import Budget, Candidate, Searcher, SearchSpace, SubNetwork, Widths
from nni_cafenet.checkpoint import assert_plain
from nni_cafenet.cost import Limits
from tests.spaces import all_widths, chain

SPACE = chain(8, 10, 6)
LIMITS = {
    "macs": SPACE.limits(Budget(max_macs="40%")),
    "params": SPACE.limits(Budget(max_params="50%")),
    "both": SPACE.limits(Budget(max_macs="60%", max_params="45%")),
    "tight": SPACE.limits(Budget(max_macs=SPACE.cost.macs(SPACE.smallest))),
    "all": SPACE.limits(Budget(max_macs="100%")),
}


def objective(widths: Widths) -> float:
    """A smooth score with its peak at some uneven widths."""
    peak = (0.2, 0.9, 0.6)
    shares = (width / bins.count for width, bins in zip(widths.bins_kept, SPACE.bins, strict=True))
    return -sum((share - best) ** 2 for share, best in zip(shares, peak, strict=True))


def scored(widths: Widths, score: Callable[[Widths], float] = objective) -> Candidate:
    return Candidate(SubNetwork.fixed(widths), score(widths), SPACE.cost.macs(widths), SPACE.cost.params(widths))


def search(searcher: Searcher, *, score: Callable[[Widths], float] = objective, most: int = 10_000) -> list[Widths]:
    """Ask and tell one by one, at most `most` times; everything that was asked."""
    history: list[Widths] = []
    while len(history) < most and (asked := searcher.ask(1)):
        history += asked
        searcher.tell([scored(widths, score) for widths in asked])
    return history


def stored(state: dict[str, object]) -> dict[str, object]:
    """`state` after a checkpoint file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, object] = torch.load(file, weights_only=True)
    return loaded


class SearcherContract:
    """Inherit it and define `make`: a new searcher of about 30 evaluations, another one for another seed."""

    asks_within_limits = True  # or for larger ones too

    @staticmethod
    def make(seed: int = 0) -> Searcher:
        raise NotImplementedError

    def begun(self, limits: str = "macs", *, seed: int = 0, space: SearchSpace = SPACE) -> Searcher:
        searcher = self.make(seed)
        searcher.begin(space, LIMITS[limits])
        return searcher

    @pytest.mark.parametrize("limits", LIMITS)
    def test_it_asks_within_the_limits(self, limits: str) -> None:
        asked = search(self.begun(limits))
        assert asked
        admitted = [LIMITS[limits].admit(SPACE.cost, widths) for widths in asked]
        assert all(admitted) if self.asks_within_limits else any(admitted)

    @pytest.mark.parametrize("limits", LIMITS)
    def test_it_asks_nothing_twice(self, limits: str) -> None:
        asked = search(self.begun(limits))
        assert len(set(asked)) == len(asked)

    def test_its_widths_are_of_the_space(self) -> None:
        assert set(search(self.begun())) <= set(all_widths(SPACE))

    def test_it_asks_at_most_as_often_as_it_says(self) -> None:
        searcher = self.begun()
        asked = search(searcher)
        assert 0 < len(asked) <= searcher.evaluations
        assert searcher.ask(1) == []
        assert searcher.ask(5) == []

    def test_it_ends_where_one_network_is_all_there_is(self) -> None:
        asked = search(self.begun("tight"))
        assert SPACE.smallest in asked
        assert len(asked) == 1 or not self.asks_within_limits

    def test_it_ends_in_a_space_smaller_than_its_evaluations(self) -> None:
        small = chain(3, 2)
        searcher = self.make()
        searcher.begin(small, small.limits(Budget(max_macs="75%")))
        asked = [widths for _ in range(200) for widths in self.tell_all(searcher, small)]
        assert 0 < len(asked) <= 6
        assert len(set(asked)) == len(asked)
        assert searcher.ask(1) == []

    @staticmethod
    def tell_all(searcher: Searcher, space: SearchSpace) -> list[Widths]:
        asked = searcher.ask(1)
        searcher.tell([Candidate(SubNetwork.fixed(w), 0.0, space.cost.macs(w), space.cost.params(w)) for w in asked])
        return asked

    def test_the_same_seed_asks_the_same(self) -> None:
        assert search(self.begun(seed=3)) == search(self.begun(seed=3))
        assert search(self.begun(seed=3)) != search(self.begun(seed=4))

    def test_it_can_be_begun_again(self) -> None:
        searcher = self.begun()
        first = search(searcher)
        searcher.begin(SPACE, LIMITS["macs"])
        assert search(searcher) == first

    @pytest.mark.parametrize("most", [5, 10_000])
    def test_begun_again_within_other_limits_it_is_as_new(self, most: int) -> None:
        searcher = self.begun("macs")
        search(searcher, most=most)
        searcher.begin(SPACE, LIMITS["params"])
        assert search(searcher) == search(self.begun("params"))

    def test_it_asks_for_several_at_once(self) -> None:
        searcher = self.begun()
        asked: list[Widths] = []
        while batch := searcher.ask(4):
            assert len(batch) <= 4
            asked += batch
            searcher.tell([scored(widths) for widths in reversed(batch)])
        assert len(set(asked)) == len(asked) > 4
        assert len(asked) <= searcher.evaluations

    def test_its_state_is_plain_and_survives_json_and_weights_only_loading(self) -> None:
        searcher = self.begun()
        search(searcher, most=13)
        state = searcher.state_dict()
        assert_plain(state)
        assert json.loads(json.dumps(state)) == json.loads(json.dumps(stored(state)))

    def test_a_resumed_search_equals_an_unbroken_one_at_every_cut(self) -> None:
        unbroken = search(self.begun())
        for cut in range(len(unbroken) + 1):
            first = self.begun()
            before = search(first, most=cut)
            second = self.begun()
            second.load_state_dict(stored(first.state_dict()))
            assert before + search(second) == unbroken, f"cut after {cut}"

    def test_a_state_does_not_change_with_the_searcher_it_was_taken_from(self) -> None:
        searcher = self.begun()
        search(searcher, most=5)
        state = searcher.state_dict()
        kept = json.dumps(state)
        search(searcher, most=9)
        assert json.dumps(state) == kept

    def test_its_repr_names_its_settings_for_checkpoints(self) -> None:
        assert repr(self.make(1)) == repr(self.make(1))
        assert repr(self.make(1)) != repr(self.make(2))
        assert "object at" not in repr(self.make())

    def test_it_needs_no_limits(self) -> None:
        searcher = self.make()
        searcher.begin(replace(SPACE), Limits())
        assert SPACE.largest in search(searcher)
