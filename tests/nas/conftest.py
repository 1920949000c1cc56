"""NNI experiments in a temporary folder, on a part of scikit-learn's digits."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from nni_cafenet import Budget, RandomSearch
from nni_cafenet.demo import IMAGE_SHAPE, DigitsNet, digits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # NNI warns when it is imported, and here warnings are errors
    from nni.nas.evaluator.pytorch import Classification, DataLoader
    from nni.nas.experiment import NasExperiment
    from nni.tools.nnictl.config_utils import Experiments
    from pytorch_lightning import Callback

    from nni_cafenet import CafeNet, WidthModelSpace

TRAINER = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False, "num_sanity_val_steps": 0,
}  # fmt: skip


class Watch(Callback):
    """What Lightning saw: (the loss learned from, the loss logged) of every step, the accuracy of every epoch."""

    def __init__(self):
        self.losses, self.accuracies = [], []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append((outputs["loss"].item(), trainer.callback_metrics["train_loss"].item()))

    def on_validation_epoch_end(self, trainer, module):
        if trainer.state.fn == "fit":
            self.accuracies.append(trainer.callback_metrics["val_acc"].item())


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture(scope="session")
def loaders():
    data = digits()
    return SimpleNamespace(
        train=DataLoader(data.train.dataset, batch_size=64, shuffle=True), valid=DataLoader(data.valid.dataset, 512)
    )


@pytest.fixture(scope="session")
def make_space():
    def make(**options):
        torch.manual_seed(0)
        options = {"example_shape": IMAGE_SHAPE, "min_bin": 2, **options}
        return WidthModelSpace(DigitsNet, {"width": 8}, **options)

    return make


@pytest.fixture(scope="session")
def make_evaluator(loaders):
    def make(**options):
        data = {"train_dataloaders": loaders.train, "val_dataloaders": loaders.valid, "num_classes": 10}
        return Classification(**{**data, "learning_rate": 0.01, "max_epochs": 1, **TRAINER, **options})

    return make


@pytest.fixture(scope="session")
def make_strategy():
    def make(max_macs="50%", **options):
        options = {"searcher": RandomSearch(evaluations=2), "recalibrate_batches": 4, **options}
        return CafeNet(max_macs and Budget(max_macs=max_macs), **options)

    return make


@pytest.fixture(scope="session")
def make_experiment(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("nni"), []

    def make(space, evaluator, strategy, *, identity=None):
        experiment = NasExperiment(space, evaluator, strategy, id=identity)
        experiment.config.experiment_working_directory = folder
        made.append(experiment)
        return experiment

    with pytest.MonkeyPatch.context() as patch:
        # the list of all experiments is in the home folder, whatever the working directory
        patch.setattr(Experiments.__init__, "__defaults__", (str(folder),))
        yield make
        for experiment in made:
            experiment.stop()  # or NNI does when the interpreter exits, and logs to pytest's closed streams


@pytest.fixture(scope="session")
def searched(make_space, make_evaluator, make_strategy, make_experiment):
    """One experiment, run to its end."""
    space = make_space()
    initial = {name: tensor.clone() for name, tensor in space.net.state_dict().items()}
    strategy = make_strategy(searcher=RandomSearch(evaluations=6), recalibrate_batches=8)
    watch = Watch()
    evaluator = make_evaluator(max_epochs=6, callbacks=[watch])
    experiment = make_experiment(space, evaluator, strategy)
    experiment.run()
    return SimpleNamespace(
        space=space, initial=initial, strategy=strategy, evaluator=evaluator, experiment=experiment, watch=watch
    )
