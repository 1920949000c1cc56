"""Ended at any moment, a run goes on to the result of the unbroken run; no good checkpoint is written over."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from nni_cafenet import CheckpointMismatch, RandomSearch, accuracy, cross_entropy
from nni_cafenet.demo import digits

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nni
    from nni.nas.evaluator import FunctionalEvaluator
    from nni.nas.evaluator.pytorch import DataLoader
    from pytorch_lightning import Callback
    from pytorch_lightning.callbacks import ModelCheckpoint

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's and Lightning's own

EPOCHS, BATCHES, SCORED = 3, 5, 6


class Killed(BaseException):
    """Nobody catches it, as nobody catches a signal."""


class Fuse:
    """Goes off at the given count of what is counted: training steps, or scores."""

    def __init__(self, what=None, count=0):
        self.what, self.left = what, count

    def burn(self, what):
        if what == self.what:
            self.left -= 1
            if self.left == 0:
                raise Killed


class LightningFuse(Callback):
    def __init__(self, fuse):
        self.fuse = fuse

    def on_train_batch_end(self, *args):
        self.fuse.burn("step")

    def on_fit_end(self, *args):
        self.fuse.burn("fit")

    def on_validation_start(self, trainer, module):
        if trainer.state.fn == "validate":
            self.fuse.burn("score")


@pytest.fixture(scope="module")
def shuffled():
    data = digits().train.dataset
    part = torch.utils.data.Subset(data, range(32 * BATCHES))
    return DataLoader(part, batch_size=32, shuffle=True)


@pytest.fixture(scope="module")
def experiments(shuffled, loaders, make_space, make_evaluator, make_strategy, make_experiment):
    """(kind of evaluator, fuse, ...) -> an experiment whose supernet has dropout-like randomness in its batches."""

    def make(kind, fuse=None, *, identity=None, folder=None, keeper=None, **options):
        fuse = fuse or Fuse()
        options = {
            "searcher": RandomSearch(evaluations=SCORED), "score_candidates": "sampled:1", "checkpoint": folder,
            **options,
        }  # fmt: skip
        space = make_space()

        if kind == "lightning":
            callbacks = [LightningFuse(fuse), *([keeper] if keeper else [])]
            evaluator = make_evaluator(
                train_dataloaders=shuffled, max_epochs=EPOCHS, callbacks=callbacks, enable_checkpointing=bool(keeper)
            )
        else:

            def loss_fn(model, batch):
                if torch.is_grad_enabled():
                    fuse.burn("step")
                return cross_entropy(model, batch)

            def score_fn(model, batches):
                fuse.burn("score")
                return accuracy(model, batches)

            def judge(model):
                fuse.burn("trial")
                nni.report_final_result(float(model.stem[0].out_channels) + model.head.weight.sum().item())

            evaluator = FunctionalEvaluator(judge)
            options = {
                "train_batches": shuffled, "valid_batches": loaders.valid, "loss_fn": loss_fn, "score_fn": score_fn,
                "epochs": EPOCHS, "top_k": 3, **options,
            }  # fmt: skip
        return make_experiment(space, evaluator, make_strategy(**options), identity=identity)

    return make


def outcome(experiment):
    strategy = experiment.strategy
    weights = {name: tensor.clone() for name, tensor in strategy.supernet.net.named_parameters()}
    metrics = [model.metric for model in strategy.list_models(limit=3)]
    return SimpleNamespace(history=strategy.result.history, weights=weights, metrics=metrics)


def assert_same(one, other):
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    assert one.history == other.history
    assert one.metrics == other.metrics


@pytest.fixture(scope="module")
def unbroken(experiments):
    def run(kind):
        experiment = experiments(kind)
        torch.manual_seed(1)
        experiment.run()
        return outcome(experiment)

    return {kind: run(kind) for kind in ("lightning", "functional")}


def kill(experiment):
    torch.manual_seed(1)
    with pytest.raises(Killed):
        experiment.run()


# steps are batches for Lightning, and forwards of candidates for the loss function; scores count the first try
MOMENTS = [("step", 12), ("score", 3), ("score", 8)]


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
@pytest.mark.parametrize("kind", ["lightning", "functional"])
def test_a_killed_run_goes_on_from_its_folder(kind, moment, experiments, unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr("nni_cafenet.phases.SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr("nni_cafenet.train.SECONDS_BETWEEN_SAVES", 0.0)
    kill(experiments(kind, Fuse(*moment), folder=tmp_path))
    torch.manual_seed(99)
    again = experiments(kind, folder=tmp_path)  # another experiment: NNI had no time to save the first
    again.run()
    assert_same(outcome(again), unbroken[kind])


def test_a_run_that_is_killed_after_its_last_epoch_has_nothing_left_to_train(experiments, unbroken, tmp_path):
    kill(experiments("lightning", Fuse("fit", 1), folder=tmp_path))
    again = experiments("lightning", Fuse("step", 1), folder=tmp_path)  # a step would end it
    again.run()
    assert_same(outcome(again), unbroken["lightning"])


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        ("lightning", ("step", 12)),
        ("lightning", ("score", 8)),
        ("functional", ("step", 28)),
        ("functional", ("score", 8)),
    ],
    ids=str,
)
def test_an_interrupted_experiment_is_resumed_by_nni(kind, moment, experiments, unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr("nni_cafenet.phases.SECONDS_BETWEEN_SAVES", 0.0)
    keeper = ModelCheckpoint(tmp_path, save_last=True) if kind == "lightning" else None
    first = experiments(kind, Fuse(*moment), keeper=keeper)
    kill(first)
    first.stop()  # NNI's own hook at the end of the process: it saves
    parts = first.strategy.state_dict()["parts"]
    assert "begun" in parts and ("supernet" in parts) == (moment[0] == "score")
    assert kind == "lightning" or "training" in parts  # of the last epoch's end, though training had gone on
    torch.manual_seed(99)
    again = experiments(kind, identity=first.id)
    again.resume()
    assert_same(outcome(again), unbroken[kind])


def test_trials_that_were_confirmed_are_not_run_again(experiments, unbroken, tmp_path):
    kill(experiments("functional", Fuse("trial", 3), folder=tmp_path))
    again = experiments("functional", Fuse("trial", 2), folder=tmp_path)  # a second trial would end it
    again.run()
    assert_same(outcome(again), unbroken["functional"])


def test_a_failed_resume_leaves_the_checkpoint_as_it_was(experiments):
    first = experiments("functional", Fuse("score", 8))
    kill(first)
    first.stop()
    path = first._checkpoint_directory / "state.ckpt.torch"
    saved = path.read_bytes()

    other = experiments("functional", identity=first.id, recalibrate_batches=5)
    with pytest.raises(CheckpointMismatch, match=r"settings .*recalibrate_batches=4.* but this strategy .*=5"):
        other.resume()
    other.stop()
    assert path.read_bytes() == saved

    other = experiments("functional", identity=first.id, train_batches=None, valid_batches=None)
    with pytest.raises(TypeError, match="give CafeNet"):
        other.resume()
    other.stop()
    assert path.read_bytes() == saved


def test_a_resume_that_is_interrupted_again_still_knows_lightnings_checkpoint(experiments, unbroken, tmp_path):
    first = experiments("lightning", Fuse("step", 7), keeper=ModelCheckpoint(tmp_path, save_last=True))
    kill(first)
    first.stop()
    second = experiments("lightning", Fuse("step", 2), identity=first.id)  # ends before Lightning saves
    with pytest.raises(Killed):
        second.resume()
    second.stop()
    third = experiments("lightning", identity=first.id)
    third.resume()
    assert_same(outcome(third), unbroken["lightning"])


def test_a_folder_of_other_settings_is_refused(experiments, tmp_path):
    kill(experiments("functional", Fuse("step", 7), folder=tmp_path))
    with pytest.raises(CheckpointMismatch, match=r"belongs to other settings \(settings: .*recalibrate_batches=4"):
        experiments("functional", folder=tmp_path, recalibrate_batches=5).run()
    with pytest.raises(CheckpointMismatch, match=r"belongs to other settings \(recipe: .*'epochs': 3"):
        experiments("functional", folder=tmp_path, epochs=4).run()
