"""CafeNet as a strategy of NNI: an experiment trains by min-min, searches within the budget and exports slim models."""

import pytest
import torch
from nni.nas.evaluator import Evaluator
from nni.nas.evaluator.pytorch import Classification, ClassificationModule, DataLoader, Lightning, Trainer
from nni.nas.execution import Middleware
from nni.nas.experiment.config import SimplifiedModelFormatConfig
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.space import RawFormatModelSpace
from pytorch_lightning import LightningDataModule
from torch import nn

import nni_cafenet.supernet.minmin as minmin
from nni_cafenet import (
    Budget,
    CafeNet,
    CheckpointMismatch,
    InfeasibleBudget,
    InvalidBatches,
    InvalidScore,
    PredictorSearch,
    RandomSearch,
    Supernet,
    UnsupportedModel,
    WidthModelSpace,
    accuracy,
    count_macs,
    cross_entropy,
    recalibrate,
    slice_model,
)
from nni_cafenet.checkpoint import assert_plain
from nni_cafenet.demo import IMAGE_SHAPE, DigitsNet
from nni_cafenet.modes import evaluating

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's and Lightning's own


# ---- one experiment, looked at from all sides


def test_exports_a_plain_slim_model_within_the_budget(searched):
    (slim,) = searched.experiment.export_top_models(formatter="instance")
    image = torch.zeros(IMAGE_SHAPE)
    assert type(slim) is DigitsNet
    assert all(type(module).__module__.startswith(("torch.nn", "nni_cafenet.demo")) for module in slim.modules())
    assert count_macs(slim, image) <= count_macs(DigitsNet(width=8), image) / 2
    assert count_macs(slim, image) == searched.strategy.result.best.macs


def test_exports_the_channels_as_a_dict(searched):
    (channels,) = searched.experiment.export_top_models(formatter="dict")
    (slim,) = searched.experiment.export_top_models(formatter="instance")
    assert {name: slim.get_submodule(name).out_channels for name in channels} == channels
    assert channels == searched.space.space.channels(searched.strategy.result.best.subnetwork.widths)


def test_the_slim_model_is_the_winning_subnetwork(searched, loaders):
    best, space = searched.strategy.result.best.subnetwork, searched.space
    (slim,) = searched.experiment.export_top_models(formatter="instance")
    cut = slice_model(space.net, space.space, best)
    assert all(torch.equal(own, other) for own, other in zip(slim.parameters(), cut.parameters(), strict=True))

    calibration, batch = list(loaders.train)[:4], next(iter(loaders.valid))
    recalibrate(slim, calibration, cross_entropy)
    with torch.no_grad(), Supernet(space.net, space.space).running(best) as running, evaluating(running):
        recalibrate(running, calibration, cross_entropy)
        expected = running(batch[0])
    torch.testing.assert_close(slim.eval()(batch[0]), expected)


def test_freezing_the_exported_dict_gives_the_winner_too(searched):
    (channels,) = searched.experiment.export_top_models(formatter="dict")
    assert searched.space.subnetwork(channels) == searched.strategy.result.best.subnetwork


def test_the_metric_is_the_validation_accuracy_of_the_exported_model(searched, loaders):
    (model,) = searched.experiment.export_top_models()
    slim = model.executable_model().eval()
    assert model.metric == pytest.approx(accuracy(slim, loaders.valid), abs=1e-6)
    assert model.metric > 0.5  # of ten classes, after 6 epochs on a thousand images


def test_the_supernet_has_learned_and_is_whole_again(searched):
    before, after = searched.initial, searched.space.net.state_dict()
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    assert not any(torch.equal(after[name], before[name]) for name, _ in searched.space.net.named_parameters())


def test_lists_models_by_score(searched):
    metrics = [model.metric for model in searched.strategy.list_models(limit=6)]
    assert metrics == sorted(metrics, reverse=True)
    assert len(metrics) == 6 == len(searched.strategy.result.history)
    assert [model.metric for model in searched.strategy.list_models()] == metrics[:1]
    unsorted = [model.metric for model in searched.strategy.list_models(sort=False, limit=6)]
    assert unsorted == [found.score for found in searched.strategy.result.history]


def test_validation_epochs_see_the_full_network_with_its_own_statistics(searched):
    assert len(searched.watch.accuracies) == 6
    assert searched.watch.accuracies[-1] > 0.5
    supernet = searched.strategy._mutated_model_space
    assert list(supernet.metrics.intermediates) == pytest.approx(searched.watch.accuracies)


def test_the_evaluators_module_is_its_own_again(searched):
    assert "log" not in vars(searched.evaluator.module)


# ---- training


@pytest.fixture
def compared(monkeypatch):
    """The losses of the candidates of every step, the chosen one's last."""
    steps = []
    original = minmin.minmin_loss

    def spy(supernet, candidates, batch, loss_fn):
        losses = []

        def noted(model, batch):
            loss = loss_fn(model, batch)
            losses.append(loss.item())
            return loss

        sub, loss = original(supernet, candidates, batch, noted)
        steps.append((losses, loss.item()))
        return sub, loss

    monkeypatch.setattr(minmin, "minmin_loss", spy)
    return steps


def test_trains_on_and_logs_the_smallest_loss_of_the_candidates(
    compared, watch, make_space, make_evaluator, make_strategy, make_experiment
):
    evaluator = make_evaluator(max_epochs=2, limit_train_batches=3, callbacks=[watch])
    make_experiment(make_space(), evaluator, make_strategy(candidates="sampled:4")).run()
    assert len(compared) == 6
    assert all(len(losses) > 1 for losses, _ in compared)
    assert [chosen for _, chosen in compared] == [min(losses) for losses, _ in compared]
    assert watch.losses == [(pytest.approx(chosen), pytest.approx(chosen)) for _, chosen in compared]


def test_random_share_trains_a_random_candidate_in_the_first_steps(
    compared, make_space, make_evaluator, make_strategy, make_experiment
):
    evaluator = make_evaluator(max_epochs=2, limit_train_batches=4, accumulate_grad_batches=2)
    make_experiment(make_space(), evaluator, make_strategy(random_share=0.5, candidates="sampled:4")).run()
    assert [len(losses) == 1 for losses, _ in compared] == [True] * 4 + [False] * 4


class Digits(LightningDataModule):
    def __init__(self, loaders):
        super().__init__()
        self.loaders, self.stages = loaders, []

    def setup(self, stage):
        self.stages.append(stage)

    def train_dataloader(self):
        return self.loaders.train

    def val_dataloader(self):
        return self.loaders.valid


def test_takes_a_data_module(loaders, make_space, make_evaluator, make_strategy, make_experiment):
    data = Digits(loaders)
    evaluator = make_evaluator(train_dataloaders=None, val_dataloaders=None, datamodule=data, limit_train_batches=2)
    experiment = make_experiment(make_space(), evaluator, make_strategy())
    experiment.run()
    assert data.stages[0] == "fit"
    assert type(experiment.export_top_models(formatter="instance")[0]) is DigitsNet


# ---- constraints of NNI


def test_the_engines_budget_ends_the_search(make_space, make_evaluator, make_strategy, make_experiment):
    strategy = make_strategy(searcher=RandomSearch(evaluations=100), score_candidates="sampled:1")
    experiment = make_experiment(make_space(), make_evaluator(limit_train_batches=1), strategy)
    experiment.config.max_trial_number = 1 + 1 + 3 + 4  # a try, the supernet, the baselines, the search
    experiment.run()
    assert len(strategy.result.history) == 4


def test_models_come_in_the_order_that_the_searcher_predicts(
    make_space, make_evaluator, make_strategy, make_experiment
):
    strategy = make_strategy(searcher=PredictorSearch(evaluations=10, first=8, between=(0.3, 1), favourites=2))
    make_experiment(make_space(), make_evaluator(limit_train_batches=1), strategy).run()
    result = strategy.result
    assert result.predicted is not None
    values = dict(zip(result.history, result.predicted, strict=True))
    best_first = sorted(result.admitted, key=lambda found: (-values[found], found.macs))
    expected = [strategy.supernet.sample_of(found.subnetwork.widths) for found in best_first]
    assert [model.sample for model in strategy.list_models(limit=10)] == expected


# ---- state


def test_the_state_is_plain_and_goes_on_where_it_was(
    searched, watch, tmp_path, make_space, make_evaluator, make_strategy, make_experiment
):
    state = searched.strategy.state_dict()
    assert_plain(state)
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True).keys() == state.keys()

    searched.experiment.save_checkpoint()
    strategy = make_strategy(searcher=RandomSearch(evaluations=6), recalibrate_batches=8)
    resumed = make_experiment(
        make_space(), make_evaluator(callbacks=[watch]), strategy, identity=searched.experiment.id
    )
    resumed.resume()
    assert watch.losses == []  # nothing was trained again
    assert strategy.result.history == searched.strategy.result.history
    ours, theirs = (run.export_top_models(formatter="instance")[0] for run in (resumed, searched.experiment))
    assert all(torch.equal(own, other) for own, other in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_state_of_other_settings_is_refused(searched, make_space, make_evaluator, make_strategy, make_experiment):
    strategy = make_strategy(max_macs="40%")
    experiment = make_experiment(make_space(), make_evaluator(), strategy)
    experiment._action = "create"
    strategy.initialize(*_wired(experiment))
    with pytest.raises(CheckpointMismatch, match=r"settings .*50%.* but this strategy .*40%.*start a new experiment"):
        strategy.load_state_dict(searched.strategy.state_dict())


def _wired(experiment):
    config = experiment.config.canonical_copy()
    engine = experiment.execution_engine_factory(config.execution_engine)
    return experiment.executable_model_factory(config.model_format), engine


# ---- bad input, before anything is trained


class Untrainable(ClassificationModule):
    def training_step(self, batch, batch_idx):
        raise AssertionError("nothing must be trained")


class Silent(Untrainable):
    def on_validation_epoch_end(self):
        pass

    on_validation_end = on_validation_epoch_end


def untrainable(loaders, module=None, **trainer):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    module = module or Untrainable(num_classes=10)
    return Lightning(module, Trainer(**quiet, **trainer), loaders.train, loaders.valid)


class Branches(ModelSpace):
    def __init__(self):
        super().__init__()
        self.branch = LayerChoice([nn.Identity(), nn.ReLU()], label="branch")


def test_refuses_a_model_space_of_other_choices(loaders, make_strategy, make_experiment):
    with pytest.raises(UnsupportedModel, match=r"the choice 'branch' decides what to run of branch \(LayerChoice\)"):
        make_experiment(Branches(), untrainable(loaders), make_strategy()).run()


def test_refuses_a_space_without_widths():
    with pytest.raises(UnsupportedModel, match="nothing"):
        WidthModelSpace(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), example_shape=(1, 1, 2, 2))


def test_refuses_a_raw_model_on_a_training_service(make_space, make_evaluator, make_strategy):
    model = RawFormatModelSpace.from_model(make_space(), make_evaluator())
    with pytest.raises(TypeError, match=r"RawFormatModelSpace on a Middleware: .*NasExperimentConfig"):
        make_strategy().initialize(model, Middleware())


def test_a_simplified_model_runs_here_too(make_space, make_evaluator, make_strategy, make_experiment):
    experiment = make_experiment(make_space(), make_evaluator(limit_train_batches=1), make_strategy())
    experiment.config.model_format = SimplifiedModelFormatConfig()
    experiment.run()
    assert type(experiment.export_top_models(formatter="instance")[0]) is DigitsNet


def test_refuses_an_infeasible_budget(loaders, make_space, make_strategy, make_experiment):
    with pytest.raises(InfeasibleBudget, match="smallest possible"):
        make_experiment(make_space(), untrainable(loaders), make_strategy(max_macs="0.1%")).run()


def test_bins_that_are_too_coarse_for_the_budget_are_told(make_space, loaders, make_strategy, make_experiment, caplog):
    for min_bin, is_told in ((4, True), (1, False)):
        caplog.clear()
        strategy = make_strategy(max_macs="40%")
        experiment = make_experiment(make_space(min_bin=min_bin), untrainable(loaders), strategy)
        experiment._action = "create"
        strategy.initialize(*_wired(experiment))
        assert ("a single bin in" in caplog.text) is is_told


def test_refuses_another_evaluator(make_space, make_strategy, make_experiment):
    with pytest.raises(TypeError, match=r"needs a Lightning evaluator or a FunctionalEvaluator, but got a Evaluator"):
        make_experiment(make_space(), Evaluator(), make_strategy()).run()


def test_refuses_an_evaluator_without_validation_data(loaders, make_space, make_strategy, make_experiment):
    evaluator = Classification(train_dataloaders=loaders.train, num_classes=10, accelerator="cpu", logger=False)
    with pytest.raises(InvalidBatches, match=r"has no val data, .*give it val_dataloaders="):
        make_experiment(make_space(), evaluator, make_strategy()).run()


def test_refuses_a_trainer_that_skips_validation(loaders, make_space, make_strategy, make_experiment):
    with pytest.raises(InvalidBatches, match=r"a trainer without limit_val_batches=0"):
        make_experiment(make_space(), untrainable(loaders, limit_val_batches=0), make_strategy()).run()


def test_refuses_a_data_module_without_validation_data(loaders, make_space, make_strategy, make_experiment):
    data = LightningDataModule.from_datasets(loaders.train.dataset)
    evaluator = Classification(datamodule=data, num_classes=10, accelerator="cpu", logger=False)
    with pytest.raises(InvalidBatches, match="has no val data"):
        make_experiment(make_space(), evaluator, make_strategy()).run()


def test_refuses_a_module_that_reports_no_metric_before_training_it(
    loaders, make_space, make_strategy, make_experiment
):
    with pytest.raises(InvalidScore, match=r"Silent reports no metric.*nni\.report_final_result"):
        make_experiment(make_space(), untrainable(loaders, Silent(num_classes=10)), make_strategy()).run()


def test_refuses_validation_data_without_a_batch(loaders, make_space, make_evaluator, make_strategy, make_experiment):
    empty = DataLoader(torch.utils.data.Subset(loaders.valid.dataset, []))
    with pytest.raises(InvalidScore, match=r"reports no metric .*its validation data holds no batch"):
        make_experiment(make_space(), make_evaluator(val_dataloaders=empty), make_strategy()).run()


def test_refuses_a_trainer_that_trains_nothing(loaders, make_space, make_evaluator, make_strategy, make_experiment):
    empty = DataLoader(torch.utils.data.Subset(loaders.valid.dataset, []))
    for nothing in ({"max_epochs": 0}, {"train_dataloaders": empty}):
        with pytest.raises(InvalidBatches, match=r"trained nothing: its max_epochs=\d, its train data"):
            make_experiment(make_space(), make_evaluator(**nothing), make_strategy()).run()


def test_refuses_an_evaluator_that_has_trained_another_supernet(
    make_space, make_evaluator, make_strategy, make_experiment
):
    evaluator = make_evaluator(limit_train_batches=1)
    make_experiment(make_space(), evaluator, make_strategy()).run()
    with pytest.raises(InvalidBatches, match="trained 1 epochs in another experiment already: give a new"):
        make_experiment(make_space(), evaluator, make_strategy()).run()


def test_refuses_a_random_share_of_endless_training(loaders, make_space, make_strategy, make_experiment):
    with pytest.raises(ValueError, match="give it max_epochs or max_steps"):
        make_experiment(
            make_space(), untrainable(loaders, max_epochs=-1, num_sanity_val_steps=0), make_strategy(random_share=0.1)
        ).run()


def test_refuses_settings_that_make_no_sense():
    with pytest.raises(TypeError, match=r'Budget\(max_macs="50%"\), but got \'50%\''):
        CafeNet("50%")
    with pytest.raises(ValueError, match="random_share must be 0 to 1, but got 2"):
        CafeNet(Budget("50%"), random_share=2)
    for top_k in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"top_k must be a whole number of at least 1, but got {top_k}"):
            CafeNet(Budget("50%"), top_k=top_k)
    with pytest.raises(TypeError, match=r"searcher must be an object .* but got 'evolution'"):
        CafeNet(Budget("50%"), searcher="evolution")
    with pytest.raises(TypeError, match="takes no mutation_hooks: it trains the model's own layers"):
        CafeNet(Budget("50%"), mutation_hooks=[print])


def test_lists_nothing_before_the_run():
    with pytest.raises(RuntimeError, match="run the experiment"):
        next(CafeNet(Budget("50%")).list_models())
