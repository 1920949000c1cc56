"""A user's own LightningModule trains the supernet: its hooks, optimizer, schedulers, callbacks and precision."""

import math
import warnings

import pytest
import torch
from torch import nn

import nni_cafenet.supernet.minmin as minmin
from nni_cafenet import InvalidBatches, WidthModelSpace

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.nas.evaluator.pytorch import ClassificationModule, Lightning, Trainer
    from pytorch_lightning import Callback, LightningDataModule
    from pytorch_lightning.callbacks import EarlyStopping

from tests.nas.conftest import TRAINER

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's and Lightning's own


class Own(ClassificationModule):
    """Everything that a module may say of its training, and notes of what was called."""

    def __init__(self):
        super().__init__(num_classes=10)
        self.called, self.steps, self.norms, self.rates = set(), 0, [], []

    def configure_optimizers(self):
        weights = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.parameters() if parameter.ndim <= 1]
        groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "lr": 0.01}]
        optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "frequency": 2}}

    def configure_callbacks(self):
        self.called.add("configure_callbacks")
        return []

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        self.steps += 1
        self.rates.append(optimizer.param_groups[0]["lr"])
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        self.called.add("optimizer_zero_grad")
        super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def lr_scheduler_step(self, scheduler, metric):
        self.called.add("lr_scheduler_step")
        super().lr_scheduler_step(scheduler, metric)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        grads = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        self.norms.append(torch.nn.utils.get_total_norm(grads).item())

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.called.add("on_after_batch_transfer")
        images, labels = batch
        return images * 2, labels

    def on_validation_epoch_start(self):
        self.called.add("on_validation_epoch_start")

    def on_save_checkpoint(self, checkpoint):
        checkpoint["own"] = self.steps


def lightning(module, loaders, **trainer):
    limits = {"max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1}
    return Lightning(module, Trainer(**{**TRAINER, **limits, **trainer}), loaders.train, loaders.valid)


def test_hooks_optimizer_scheduler_clipping_and_accumulation_are_the_users(
    loaders, make_space, make_strategy, make_experiment
):
    options = {"gradient_clip_val": 1e-3, "accumulate_grad_batches": 2}
    module, plain = Own(), Own()
    make_experiment(make_space(), lightning(module, loaders, **options), make_strategy()).run()
    lightning(plain, loaders, **options).evaluate(make_space().net)  # Lightning alone, no supernet
    assert module.called == plain.called and len(plain.called) == 5
    assert module.rates == plain.rates and len(set(plain.rates)) > 1
    assert module.steps == plain.steps == 4  # two epochs of four batches, accumulated by two
    assert len(module.norms) == 4
    assert all(norm <= 1e-3 * 1.01 for norm in module.norms)


def test_batch_statistics_come_from_batches_as_they_are_in_training(
    loaders, make_space, make_strategy, make_experiment
):
    space, strategy = make_space(), make_strategy(recalibrate_batches=1)
    make_experiment(space, lightning(Own(), loaders), strategy).run()
    (model,) = strategy.list_models()
    slim = model.executable_model()
    ((images, _),) = strategy._calibration
    expected = slim.stem[0](images * 2).mean((0, 2, 3))  # Own doubles every image on its way to the device
    torch.testing.assert_close(slim.stem[1].running_mean, expected)


def test_callbacks_see_the_users_module_behind_the_wrapper(loaders, make_space, make_strategy, make_experiment):
    class Looks(Callback):
        seen = None

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.seen = module.criterion, module.learning_rate_of_mine

    looks, module = Looks(), Own()
    module.learning_rate_of_mine = 0.5
    stop = EarlyStopping("val_acc", mode="max", patience=0, min_delta=1.0)  # nothing is ever good enough
    evaluator = lightning(module, loaders, callbacks=[looks, stop], max_epochs=50)
    make_experiment(make_space(), evaluator, make_strategy()).run()
    assert looks.seen == (module.criterion, 0.5)
    assert evaluator.trainer.current_epoch == 2


def test_logs_dicts_of_the_winning_candidate(loaders, make_space, make_strategy, make_experiment, monkeypatch):
    class Logs(Own):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log_dict({"mine": loss})
            return {"loss": loss}

    class Watch(Callback):
        pairs = ()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.pairs += ((outputs["loss"].item(), trainer.callback_metrics["mine"].item()),)

    watch = Watch()
    make_experiment(make_space(), lightning(Logs(), loaders, callbacks=[watch]), make_strategy()).run()
    assert len(watch.pairs) == 8
    assert all(learned == pytest.approx(logged) for learned, logged in watch.pairs)


@pytest.mark.parametrize(("output", "got"), [({"lost": 1}, "a dict of 'lost'"), (None, "None")])
def test_refuses_a_training_step_without_a_loss(output, got, loaders, make_space, make_strategy, make_experiment):
    class Lossless(Own):
        def training_step(self, batch, batch_idx):
            return output

    message = f"Lossless.training_step returned {got}, .* return the loss, or a dict with it as 'loss'"
    with pytest.raises(InvalidBatches, match=message):
        make_experiment(make_space(), lightning(Lossless(), loaders), make_strategy()).run()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("64-true", torch.float64)])
def test_trains_and_scores_in_the_trainers_precision(
    precision, dtype, loaders, make_space, make_strategy, make_experiment
):
    class Types(Own):
        seen = frozenset()

        def training_step(self, batch, batch_idx):
            self.seen |= {self(batch[0]).dtype}
            return super().training_step(batch, batch_idx)

    module, strategy = Types(), make_strategy()
    make_experiment(make_space(), lightning(module, loaders, precision=precision), strategy).run()
    assert module.seen == {dtype}
    assert all(math.isfinite(found.score) for found in strategy.result.history)


class Branching(nn.Module):
    """A part of it learns by an optimizer of its own, in the user's head."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        return self.last(self.first(x).relu().mean((2, 3)))


@pytest.mark.parametrize("schedule", [False, True])
def test_refuses_several_optimizers_before_training(schedule, loaders, make_strategy, make_experiment, monkeypatch):
    class Several(ClassificationModule):
        def configure_optimizers(self):
            parts = (self.model.net.first, self.model.net.last)
            optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]
            return (optimizers, []) if schedule else optimizers

    monkeypatch.setattr(minmin, "minmin_loss", None)  # nothing may be trained
    space = WidthModelSpace(Branching, example_shape=(1, 1, 8, 8))
    with pytest.raises(
        TypeError,
        match=r"Several\.configure_optimizers\(\) returns 2 optimizers.*= False and step.*a parameter group for",
    ):
        make_experiment(space, lightning(Several(num_classes=10), loaders), make_strategy()).run()


def test_a_data_modules_own_transfer_counts(loaders, make_space, make_strategy, make_experiment):
    class Doubling(LightningDataModule):
        def train_dataloader(self):
            return loaders.train

        def val_dataloader(self):
            return loaders.valid

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 3, batch[1]

    trainer = Trainer(**TRAINER, max_epochs=1, limit_train_batches=1)
    evaluator = Lightning(ClassificationModule(num_classes=10), trainer, datamodule=Doubling())
    strategy = make_strategy(recalibrate_batches=1)
    make_experiment(make_space(), evaluator, strategy).run()
    (model,) = strategy.list_models()
    slim = model.executable_model()
    ((images, _),) = strategy._calibration
    torch.testing.assert_close(slim.stem[1].running_mean, slim.stem[0](images * 3).mean((0, 2, 3)))
