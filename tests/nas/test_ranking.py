"""Metrics as scores: NNI's penalties, errors of which lower ones are better, and metrics that are none."""

import math
import warnings

import pytest
import torch
from torch import nn

from nni_cafenet import InvalidScore, RandomSearch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nni
    from nni.nas.evaluator.pytorch import ClassificationModule, DataLoader, Lightning, Regression, Trainer
    from nni.nas.oneshot.pytorch.profiler import ExpectationProfilerPenalty, SampleProfilerPenalty

    from nni_cafenet import WidthFlopsProfiler, WidthModelSpace
    from nni_cafenet.nas.ranking import Ranking

from tests.nas.conftest import TRAINER

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's and Lightning's own


class Stem:
    def profile(self, sample):
        return sample["stem.0"]


# ---- penalties


@pytest.mark.parametrize("aggregate", ["add", "mul"])
def test_a_penalty_changes_a_metric_as_in_nni(aggregate):
    penalty = SampleProfilerPenalty(Stem(), baseline=4, scale=-0.5, aggregate=aggregate)
    sample = {"stem.0": 6}
    assert Ranking(penalty=penalty).penalised(0.8, sample) == float(penalty(0.8, sample)[0]) < 0.8
    # of an error the scale is positive, and a larger error is a lower score
    penalty = SampleProfilerPenalty(Stem(), baseline=4, scale=0.5, aggregate=aggregate)
    ranking = Ranking(lower_is_better=True, penalty=penalty)
    assert ranking.penalised(ranking.score(0.8), sample) == -float(penalty(0.8, sample)[0]) < -0.8


def test_a_penalty_that_gives_no_number_is_an_error():
    ranking = Ranking(penalty=SampleProfilerPenalty(Stem(), baseline=4, scale=math.nan))
    with pytest.raises(InvalidScore, match=r"the penalty makes nan of the metric 0.8: .*normalized_penalty"):
        ranking.penalised(0.8, {"stem.0": 6})


@pytest.mark.parametrize("form", ["object", "dict"])
def test_the_penalised_score_is_what_is_searched_by(form, make_space, make_evaluator, make_strategy, make_experiment):
    space = make_space()
    arguments = {"profiler": Stem(), "baseline": 1, "scale": -100.0}  # drowns every difference of accuracies
    strategy = make_strategy(
        penalty=SampleProfilerPenalty(**arguments) if form == "object" else arguments,
        searcher=RandomSearch(evaluations=8),
    )
    make_experiment(space, make_evaluator(limit_train_batches=1), strategy).run()
    history = strategy.result.history
    stems = [space.sample_of(found.subnetwork.widths)["stem.0"] for found in history]
    assert space.sample_of(strategy.result.best.subnetwork.widths)["stem.0"] == min(stems) < max(stems)
    assert all(0 <= found.score + 100 * (stem - 1) <= 1 for found, stem in zip(history, stems, strict=True))


def test_refuses_penalties_of_distributions(make_space, make_strategy):
    profiler = WidthFlopsProfiler(make_space())
    with pytest.raises(TypeError, match=r"must be a SampleProfilerPenalty .* but got a ExpectationProfilerPenalty"):
        make_strategy(penalty=ExpectationProfilerPenalty(profiler, baseline=1))


# ---- errors, of which lower ones are better


class Line(nn.Module):
    """A small regression network."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu()).flatten(1)


@pytest.fixture
def regression():
    x = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    data = DataLoader(torch.utils.data.TensorDataset(x, x.flatten(1).sin()), batch_size=16)
    torch.manual_seed(0)
    space = WidthModelSpace(Line, example_shape=(1, 1, 2, 2))
    return space, Regression(train_dataloaders=data, val_dataloaders=data, learning_rate=0.05, max_epochs=3, **TRAINER)


@pytest.mark.parametrize(("lower_is_better", "chosen"), [(None, min), (True, min), (False, max)])
def test_the_smallest_error_of_nnis_regression_wins(
    lower_is_better, chosen, regression, make_strategy, make_experiment
):
    space, evaluator = regression
    strategy = make_strategy(searcher=RandomSearch(evaluations=6), lower_is_better=lower_is_better)
    experiment = make_experiment(space, evaluator, strategy)
    experiment.run()
    (model,) = experiment.export_top_models()
    errors = [abs(found.score) for found in strategy.result.history]
    assert len(set(errors)) > 1
    assert abs(model.metric) == chosen(errors)
    with torch.no_grad():
        batches = list(evaluator.val_dataloaders)
        slim = model.executable_model().eval()
        error = sum(nn.functional.mse_loss(slim(x), y).item() for x, y in batches) / len(batches)
    assert abs(model.metric) == pytest.approx(error, rel=1e-4)


# ---- metrics that are none


class Reports(ClassificationModule):
    """Trains never: reports what it is told, and only by the hooks that it is told."""

    def __init__(self, metric, hook):
        super().__init__(num_classes=10)
        self.metric, self.hook = metric, hook

    def training_step(self, batch, batch_idx):
        raise AssertionError("nothing must be trained")

    def on_validation_epoch_end(self):
        if self.hook == "intermediate":
            nni.report_intermediate_result(self.metric)

    def on_validation_end(self):
        if self.hook == "final":
            nni.report_final_result(self.metric)


@pytest.mark.parametrize("metric", [math.nan, math.inf])
def test_a_metric_that_is_no_finite_number_is_an_error_before_training(
    metric, loaders, make_space, make_strategy, make_experiment
):
    evaluator = Lightning(Reports(metric, "final"), Trainer(**TRAINER), loaders.train, loaders.valid)
    with pytest.raises(InvalidScore, match=rf"Reports reports the metric {metric}, and sub-networks cannot be ranked"):
        make_experiment(make_space(), evaluator, make_strategy()).run()


def test_the_last_intermediate_metric_counts_where_none_is_final(loaders, make_space, make_strategy, make_experiment):
    class Learner(Reports):
        training_step = ClassificationModule.training_step

    trainer = Trainer(max_epochs=1, limit_train_batches=1, **TRAINER)
    evaluator = Lightning(Learner(0.25, "intermediate"), trainer, loaders.train, loaders.valid)
    strategy = make_strategy()
    make_experiment(make_space(), evaluator, strategy).run()
    assert strategy.result.best.score == 0.25
