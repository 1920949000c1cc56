"""The contract of a sharing pattern."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nni_cafenet import Bins, SharingPattern

# few bins: a locally free pattern with a large offset has C(2r + 1, r + 1) choices
a_bins = st.builds(
    lambda channels, size, first: Bins.of_size(channels, size, first=first),
    st.integers(1, 10),
    st.integers(1, 5),
    st.integers(1, 4),
)

# a given test that several classes inherit is what hypothesis calls differing executors
INHERITED = settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])


class SharingContract:
    """Inherit it and define `pattern`."""

    pattern: SharingPattern

    @settings(INHERITED, max_examples=80)
    @given(bins=a_bins, data=st.data())
    def test_every_choice_keeps_as_many_bins_as_the_width_says(self, bins: Bins, data: st.DataObject) -> None:
        width = data.draw(st.integers(1, bins.count))
        choices = self.pattern.choices(bins, width)
        assert choices
        assert len(set(choices)) == len(choices)
        for kept in choices:
            assert len(kept) == width
            assert list(kept) == sorted(set(kept))
            assert kept[0] >= 0
            assert kept[-1] < bins.count

    @settings(INHERITED, max_examples=80)
    @given(bins=a_bins, data=st.data())
    def test_every_choice_of_one_width_has_the_same_channel_count(self, bins: Bins, data: st.DataObject) -> None:
        width = data.draw(st.integers(1, bins.count))
        counts = {len(bins.channel_indices(kept)) for kept in self.pattern.choices(bins, width)}
        assert counts == {bins.channels(width)}

    @settings(INHERITED, max_examples=40)
    @given(bins=a_bins, data=st.data())
    def test_the_first_choice_is_the_leftmost(self, bins: Bins, data: st.DataObject) -> None:
        width = data.draw(st.integers(1, bins.count))
        assert self.pattern.choices(bins, width)[0] == tuple(range(width))

    @settings(INHERITED, max_examples=40)
    @given(count=st.integers(1, 12))
    def test_the_full_width_has_one_choice(self, count: int) -> None:
        assert self.pattern.choices(count, count) == (tuple(range(count)),)

    @settings(INHERITED, max_examples=40)
    @given(bins=a_bins, data=st.data())
    def test_a_draw_keeps_the_width_and_its_channel_count(self, bins: Bins, data: st.DataObject) -> None:
        width = data.draw(st.integers(1, bins.count))
        kept = self.pattern.draw(bins, width, np.random.default_rng(data.draw(st.integers(0, 99))))
        assert len(kept) == width
        assert list(kept) == sorted(set(kept))
        assert len(bins.channel_indices(kept)) == bins.channels(width)

    def test_draws_repeat_with_the_seed(self) -> None:
        first = [self.pattern.draw(9, 4, np.random.default_rng(seed)) for seed in range(20)]
        assert first == [self.pattern.draw(9, 4, np.random.default_rng(seed)) for seed in range(20)]

    @pytest.mark.parametrize("width", [0, -1, 7])
    def test_a_width_out_of_range_is_refused(self, width: int) -> None:
        with pytest.raises(ValueError, match=f"width must be 1 to 6 bins, but got {width}"):
            self.pattern.choices(6, width)
        with pytest.raises(ValueError, match=f"width must be 1 to 6 bins, but got {width}"):
            self.pattern.draw(6, width, np.random.default_rng(0))

    def test_its_repr_names_its_settings_for_checkpoints(self) -> None:
        assert repr(self.pattern) == repr(type(self.pattern)(**vars(self.pattern)))
        assert "object at" not in repr(self.pattern)
