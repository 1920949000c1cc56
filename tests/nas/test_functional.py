"""A FunctionalEvaluator: CafeNet trains the supernet by its own loaders, and the user's function has the last word."""

import warnings

import pytest
import torch

from nni_cafenet import (
    Budget,
    CafeNet,
    InvalidBatches,
    InvalidScore,
    RandomSearch,
    build_space,
    search_widths,
)
from nni_cafenet.demo import IMAGE_SHAPE, DigitsNet

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nni
    from nni.nas.evaluator import FunctionalEvaluator

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's own


@pytest.fixture(scope="module")
def data(loaders):
    """Few batches, the same in every epoch."""
    return {"train_batches": list(loaders.train)[:4], "valid_batches": list(loaders.valid)}


class Judge:
    """A user's function: likes wide stems, and notes what it was given."""

    def __init__(self, sign=1):
        self.sign, self.models = sign, []

    def __call__(self, model, offset=0):
        self.models.append(model)
        with torch.no_grad():
            model.head.bias.fill_(7.0)  # as if it had trained the model
        nni.report_intermediate_result(0.5)
        nni.report_final_result(self.sign * model.stem[0].out_channels + offset)


@pytest.fixture
def run(data, make_space, make_strategy, make_experiment):
    def run(judge, *, space=None, **options):
        options = {"searcher": RandomSearch(evaluations=8), "top_k": 4, "epochs": 1, **data, **options}
        strategy = make_strategy(**options)
        experiment = make_experiment(space or make_space(), FunctionalEvaluator(judge, offset=100), strategy)
        experiment.run()
        return experiment

    return run


@pytest.fixture(scope="module")
def judged(data, make_space, make_strategy, make_experiment):
    """An experiment that was run to its end, and its judge."""
    judge = Judge()
    strategy = make_strategy(searcher=RandomSearch(evaluations=8), top_k=4, epochs=2, **data)
    experiment = make_experiment(make_space(), FunctionalEvaluator(judge, offset=100), strategy)
    experiment.run()
    return experiment, judge


def test_the_function_gets_the_best_slim_models_and_no_others(judged):
    experiment, judge = judged
    strategy = experiment.strategy
    best = sorted(strategy.result.history, key=lambda found: (-found.score, found.macs))[:4]
    expected = [strategy.supernet.sample_of(found.subnetwork.widths) for found in best]
    given = [{name: model.get_submodule(name).out_channels for name in expected[0]} for model in judge.models]
    assert given == expected
    assert all(type(model) is DigitsNet for model in judge.models)


def test_its_metric_ranks_the_models(judged):
    experiment, judge = judged
    metrics = [model.metric for model in experiment.export_top_models(4)]
    assert metrics == sorted((100 + model.stem[0].out_channels for model in judge.models), reverse=True)
    assert len(set(metrics)) > 1
    assert [model.metric for model in experiment.strategy.list_models(limit=2)] == metrics[:2]


def test_exports_the_models_as_the_function_left_them(judged):
    experiment, judge = judged
    (slim,) = experiment.export_top_models(formatter="instance")
    (channels,) = experiment.export_top_models(formatter="dict")
    assert any(slim is model for model in judge.models)
    assert slim.head.bias.eq(7).all()
    assert slim.stem[0].out_channels == channels["stem.0"]


def test_every_epoch_and_every_trial_reports_to_nni(judged):
    experiment, _ = judged
    engine, strategy = experiment._engine, experiment.strategy
    supernet = strategy._mutated_model_space
    assert len(supernet.metrics.intermediates) == 2  # epochs
    assert supernet.metric == supernet.metrics.intermediates[-1] == pytest.approx(strategy.result.dense.score)
    confirmed = [model for model in engine.list_models() if model.sample is not None]
    assert [list(model.metrics.intermediates) for model in confirmed] == [[0.5]] * 4


def test_the_search_is_search_widths(judged, data):
    experiment, _ = judged
    torch.manual_seed(0)
    net = DigitsNet(width=8)
    result = search_widths(
        net, build_space(net, torch.zeros(IMAGE_SHAPE), min_bin=2), **data, epochs=2, budget=Budget("50%"),
        searcher=RandomSearch(evaluations=8), recalibrate_batches=4,
    )  # fmt: skip
    assert experiment.strategy.result.history == result.history


def test_lower_metrics_win_where_they_are_better(run):
    judge = Judge()
    experiment = run(judge, lower_is_better=True)
    stems = [model.stem[0].out_channels for model in judge.models]
    assert experiment.export_top_models(formatter="instance")[0].stem[0].out_channels == min(stems) < max(stems)
    assert experiment.strategy.result.best.score > 0  # score_fn's is an accuracy, whatever the function reports


def test_a_penalty_counts_in_the_last_word_too(run):
    class Stem:
        def profile(self, sample):
            return sample["stem.0"]

    judge = Judge()
    experiment = run(judge, penalty={"profiler": Stem(), "baseline": 1, "scale": -3.0})
    stems = sorted(model.stem[0].out_channels for model in judge.models)
    assert [model.metric for model in experiment.export_top_models(4)] == [103 - 2 * stem for stem in stems]


def test_one_failure_leaves_the_others(run, caplog):
    class Moody(Judge):
        def __call__(self, model, offset=0):
            self.models.append(model)
            if len(self.models) != 2:
                nni.report_final_result(float("nan") if len(self.models) == 1 else 5)

    experiment = run(Moody())
    assert [model.metric for model in experiment.export_top_models(4)] == [5, 5]


def test_a_function_that_reports_nothing_is_an_error(run):
    with pytest.raises(InvalidScore, match=r"none of the 4 best models was confirmed: every trial failed, or reported"):
        run(lambda model, offset: None)


@pytest.mark.parametrize("left", [2, 0])
def test_the_engines_budget_bounds_the_trials(left, run, monkeypatch):
    left_over = iter([True] * left + [False])
    monkeypatch.setattr(CafeNet, "wait_for_resource", lambda strategy: next(left_over))
    judge = Judge()
    experiment = run(judge)
    assert len(judge.models) == left
    # without any trial the supernet's scores are the last word
    metrics = [model.metric for model in experiment.export_top_models(4)]
    best = sorted((found.score for found in experiment.strategy.result.history), reverse=True)[:4]
    assert metrics == (sorted((100 + model.stem[0].out_channels for model in judge.models), reverse=True) or best)


def test_refuses_a_function_without_data(make_space, make_strategy, make_experiment):
    with pytest.raises(TypeError, match=r"not how a supernet is trained: give CafeNet\(train_batches=\.\.\., valid_ba"):
        make_experiment(make_space(), FunctionalEvaluator(print), make_strategy()).run()


def test_refuses_batches_that_come_once(data, make_space, make_strategy, make_experiment):
    strategy = make_strategy(**{**data, "valid_batches": iter(data["valid_batches"])})
    with pytest.raises(InvalidBatches, match="yields nothing, or only once"):
        make_experiment(make_space(), FunctionalEvaluator(print), strategy).run()


def test_refuses_batches_beside_those_of_lightning(data, make_space, make_evaluator, make_strategy, make_experiment):
    with pytest.raises(TypeError, match="train_batches and valid_batches are for a FunctionalEvaluator"):
        make_experiment(make_space(), make_evaluator(), make_strategy(**data)).run()
