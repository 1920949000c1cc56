"""Profilers of widths, and NNI's filters that hold them: exact costs, budgets by way of a filter, bounded tries."""

import warnings

import pytest
import torch
from nni.mutable import SampleValidationError

from nni_cafenet import Budget, CafeNetError, Evolution, InfeasibleBudget, RandomSearch, Widths, count_macs
from nni_cafenet.demo import IMAGE_SHAPE
from nni_cafenet.nas.constraints import limits_under
from tests.nas import hand_written

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.nas.oneshot.pytorch.profiler import RangeProfilerFilter

    from nni_cafenet import WidthFlopsProfiler, WidthParamsProfiler

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's own


@pytest.fixture(scope="module")
def space(make_space):
    return make_space()


def test_profiles_what_the_frozen_model_has(space):
    for _ in range(5):
        sample = {}
        space.random(memo=sample)
        slim = space.freeze(sample)
        assert WidthFlopsProfiler(space).profile(sample) == count_macs(slim, torch.zeros(IMAGE_SHAPE))
        assert WidthParamsProfiler(space).profile(sample) == sum(parameter.numel() for parameter in slim.parameters())


def test_refuses_another_space_and_samples_of_another(space):
    with pytest.raises(TypeError, match="a WidthModelSpace or a hand-written one, but got a Linear: give it the"):
        WidthFlopsProfiler(torch.nn.Linear(1, 1))
    with pytest.raises(SampleValidationError, match="999 not found in"):
        WidthParamsProfiler(space).profile({**space.sample_of(space.space.smallest), "stem.0": 999})


def test_a_hand_written_space_is_profiled_too_and_its_filter_is_a_budget(
    make_strategy, make_evaluator, make_experiment
):
    torch.manual_seed(0)
    written, images = hand_written.Simple(), torch.zeros(IMAGE_SHAPE)
    profiler = WidthFlopsProfiler(written, images)
    sample = {"first": 8, "second": 6, "third": 8}
    assert profiler.profile(sample) == count_macs(written.freeze(sample), images)
    params = sum(parameter.numel() for parameter in written.freeze(sample).parameters())
    assert WidthParamsProfiler(written, images).profile(sample) == params
    most = 0.6 * profiler.profile({"first": 16, "second": 8, "third": 16})
    samples = scored(
        written, make_strategy, make_evaluator, make_experiment,
        max_macs=None, filter=RangeProfilerFilter(profiler, max=most), searcher=RandomSearch(evaluations=4),
    )  # fmt: skip
    assert samples
    assert all(profiler.profile(sample) <= most for sample in samples)
    with pytest.raises(TypeError, match="needs example_inputs= to count in a hand-written space, such as this Simple"):
        WidthFlopsProfiler(written)


class Channels:
    """A profiler of the user's own, which knows nothing of budgets."""

    def profile(self, sample):
        return sum(sample.values())


def scored(space, make_strategy, make_evaluator, make_experiment, **options):
    """The samples that an experiment has scored."""
    strategy = make_strategy(score_candidates="tied", **options)
    make_experiment(space, make_evaluator(limit_train_batches=1, limit_val_batches=1), strategy).run()
    return [model.sample for model in strategy.list_models(limit=100)]


@pytest.mark.parametrize(("form", "profiler"), [("filter", WidthFlopsProfiler), ("dict", WidthParamsProfiler)])
def test_the_max_of_a_filter_is_a_budget(form, profiler, space, make_strategy, make_evaluator, make_experiment):
    measure = profiler(space)
    most = 0.4 * measure.profile(space.sample_of(space.space.largest))
    made = RangeProfilerFilter(measure, max=most) if form == "filter" else {"profiler": measure, "max": most}
    samples = scored(
        space, make_strategy, make_evaluator, make_experiment,
        max_macs=None, filter=made, searcher=RandomSearch(evaluations=8),
    )  # fmt: skip
    costs = [measure.profile(sample) for sample in samples]
    assert len(costs) == 8
    assert all(0.7 * most < cost <= most for cost in costs)  # made the most of, as of a budget


@pytest.mark.parametrize(
    ("made", "searcher"),
    [
        ({"profiler": Channels(), "max": 66}, RandomSearch(evaluations=8)),
        (lambda sample: Channels().profile(sample) <= 66, Evolution(population=4, generations=2)),
    ],
    ids=["dict", "function"],
)
def test_other_filters_are_met_by_every_draw(made, searcher, space, make_strategy, make_evaluator, make_experiment):
    samples = scored(space, make_strategy, make_evaluator, make_experiment, filter=made, searcher=searcher)
    assert len(samples) == 8  # none refused, though few draws that fill the budget would meet the filter by chance
    assert all(Channels().profile(sample) <= 66 for sample in samples)


def test_a_range_has_a_lower_end_too(space, make_strategy, make_evaluator, make_experiment):
    made = RangeProfilerFilter(Channels(), min=80, max=90)
    searcher = RandomSearch(evaluations=20)
    samples = scored(space, make_strategy, make_evaluator, make_experiment, filter=made, searcher=searcher)
    assert samples
    assert all(80 <= Channels().profile(sample) <= 90 for sample in samples)


@pytest.mark.parametrize("made", [{"profiler": Channels(), "max": 1}, lambda sample: False], ids=["dict", "function"])
def test_a_filter_that_admits_nothing_is_an_error_before_training(
    made, space, make_strategy, make_evaluator, make_experiment
):
    strategy = make_strategy(filter=made)
    with pytest.raises(CafeNetError, match=r"the filter admits none of 1000 widths .*loosen the filter .*'stem.0': 2"):
        make_experiment(space, make_evaluator(max_epochs=10**6), strategy).run()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda sample: sample["conv"] > 3, "KeyError: 'conv'"),
        ({"profiler": WidthFlopsProfiler, "max": 9}, r"TypeError: WidthFlopsProfiler\.profile\(\) missing 1"),
    ],
    ids=["unknown label", "class"],
)
def test_a_filter_that_fails_is_an_error_that_shows_a_sample(
    made, message, make_strategy, make_evaluator, make_experiment
):
    strategy = make_strategy("90%", filter=made)
    with pytest.raises(CafeNetError, match=rf"the filter fails on .*'second': 2.* with {message}.*channels by label"):
        make_experiment(hand_written.Simple(), make_evaluator(), strategy).run()


def test_a_filter_below_the_smallest_network_is_an_infeasible_budget(space):
    with pytest.raises(InfeasibleBudget, match=r"max_params=3 is infeasible"):
        limits_under(space.space, None, RangeProfilerFilter(WidthParamsProfiler(space), max=3))


def test_the_tighter_of_budget_and_filter_counts(space):
    full = WidthFlopsProfiler(space).profile(space.sample_of(space.space.largest))
    for share, tighter in ((0.4, 0.4), (0.6, 0.5)):
        made = RangeProfilerFilter(WidthFlopsProfiler(space), max=share * full)
        assert limits_under(space.space, Budget("50%"), made).max_macs == int(tighter * full)


def test_something_must_bound(space):
    with pytest.raises(TypeError, match=r"needs a budget, such as .* unless its filter"):
        limits_under(space.space, None, RangeProfilerFilter(Channels(), max=3))


def test_refuses_what_is_no_filter(make_strategy):
    with pytest.raises(TypeError, match="filter must be a function of a sample, a RangeProfilerFilter or a dict"):
        make_strategy(filter=0.5)


def test_widths_and_samples_are_inverse(space):
    widths = Widths(tuple(max(1, bins.count // 2) for bins in space.space.bins))
    assert space.widths_of(space.sample_of(widths)) == widths
