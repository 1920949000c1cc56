"""What does CafeNet use of a Lightning evaluator: its data, and its validation as a trial of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nni.nas.evaluator import Evaluator
from nni.nas.evaluator.pytorch import Lightning, RegressionModule
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn

from nni_cafenet.errors import InvalidBatches
from nni_cafenet.nas.training import MinMinModule, quiet_loss
from nni_cafenet.supernet.minmin import MinMin
from nni_cafenet.supernet.objectives import LossFn
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.train import first_batches

KEPT = "lightning"  # name of the checkpoint that is kept for resuming


class Work(Protocol):
    """What the strategy needs of an evaluator, of whatever kind."""

    confirms: bool  # whether the evaluator has the last word on the best slim models
    reporter: str  # of metrics, for messages
    training: Evaluator  # executed once, trains the supernet
    validation: Evaluator  # executed often, reports the metric of a model as it is
    loss_fn: LossFn  # runs a model's forward on training batches

    def prepare(self) -> list[Any]:
        """Make ready for recalibrating and scoring; the batches from which BatchNorm statistics are estimated."""
        ...

    def place(self, model: nn.Module) -> None:
        """Make `model` the next one that `loss_fn` runs."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class LightningWork:
    """The work of a Lightning evaluator.

    Args:
        evaluator: see checked_evaluator.
        supernet: to be trained.
        training: see MinMinModule.
        recalibrate_batches: see CafeNet.
        folder: where Lightning keeps a checkpoint of the training, of the end of the last epoch.
    """

    def __init__(
        self,
        evaluator: Any,
        supernet: Supernet,
        training: Callable[[float], MinMin],
        recalibrate_batches: int,
        folder: str | os.PathLike[str] | None,
    ) -> None:
        self.evaluator: Lightning = checked_evaluator(evaluator)
        self.supernet, self.recalibrate_batches = supernet, recalibrate_batches
        self.seed = training(0).seed
        self.confirms, self.reporter = False, type(evaluator.module).__name__
        self.loss_fn, self.validation = quiet_loss(evaluator), Validation(evaluator)
        self.training = Lightning(
            MinMinModule(evaluator.module, supernet, training, self.loss_fn), evaluator.trainer,
            train_dataloaders=evaluator.train_dataloaders, val_dataloaders=evaluator.val_dataloaders,
            datamodule=evaluator.datamodule, fit_kwargs=dict(evaluator.fit_kwargs),
            detect_interrupt=evaluator.detect_interrupt,
        )  # fmt: skip
        if folder is not None:
            keeper = ModelCheckpoint(
                folder, filename=KEPT, save_on_train_epoch_end=True, enable_version_counter=False
            )  # fmt: skip
            evaluator.trainer.callbacks.append(keeper)
            if (kept := Path(folder) / f"{KEPT}.ckpt").exists():
                self.training.fit_kwargs.setdefault("ckpt_path", str(kept))

    def prepare(self) -> list[Any]:
        evaluator = self.evaluator
        # a run that is resumed has not been through trainer.fit, which does all this
        evaluator.module.trainer = evaluator.trainer
        evaluator.trainer.precision_plugin.convert_module(self.supernet.model)
        batches = training_batches(evaluator, self.recalibrate_batches, seed=self.seed, model=self.supernet.model)
        self.training.module.calibration = batches
        return batches

    def place(self, model: nn.Module) -> None:
        self.evaluator.module.set_model(model)
        model.to(self.evaluator.trainer.strategy.root_device)  # Lightning leaves it on the CPU

    def state_dict(self) -> dict[str, Any]:
        """The path of Lightning's last checkpoint or, until there is one, of that which training goes on from."""
        keeper = self.evaluator.trainer.checkpoint_callback
        paths = (getattr(keeper, name, None) for name in ("last_model_path", "best_model_path"))
        path = next(filter(None, paths), self.training.fit_kwargs.get("ckpt_path"))
        return {} if path is None else {"ckpt_path": str(path)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if (path := state.get("ckpt_path")) is not None:
            self.training.fit_kwargs.setdefault("ckpt_path", path)


class Validation(Evaluator):
    """Validates a model as it is, with `evaluator`'s module, trainer, callbacks and data; nothing is trained."""

    def __init__(self, evaluator: Lightning) -> None:
        self.evaluator = evaluator

    def evaluate(self, model: nn.Module) -> None:
        evaluator = self.evaluator
        evaluator.module.set_model(model)
        evaluator.trainer.validate(evaluator.module, evaluator.datamodule or evaluator.val_dataloaders, verbose=False)


def metric_is_an_error(evaluator: Any) -> bool:
    """Whether lower metrics of `evaluator` are better: NNI's Regression reports its mean squared error as it is."""
    return isinstance(evaluator, Lightning) and isinstance(evaluator.module, RegressionModule)


def checked_evaluator(evaluator: Any) -> Lightning:
    """`evaluator`, if CafeNet can train and score with it.

    Raises:
        TypeError: it is no Lightning evaluator, or it holds choices.
        InvalidBatches: it has no training or no validation data.
    """
    if not isinstance(evaluator, Lightning):
        raise TypeError(
            f"CafeNet needs a Lightning evaluator or a FunctionalEvaluator, but got a {type(evaluator).__name__}: "
            f"give one of nni.nas.evaluator.pytorch, such as Classification(...)"
        )
    if evaluator.is_mutable():
        raise TypeError(
            f"the {type(evaluator).__name__} evaluator holds choices of its own, and CafeNet searches widths alone: "
            f"give it fixed values"
        )
    data = evaluator.datamodule
    for part in ("train", "val"):
        if data is None:
            given = getattr(evaluator, f"{part}_dataloaders") is not None
        else:
            given = is_overridden(f"{part}_dataloader", data, LightningDataModule)
        if not given or getattr(evaluator.trainer, f"limit_{part}_batches") == 0:
            raise InvalidBatches(
                f"the {type(evaluator).__name__} evaluator has no {part} data, and CafeNet trains on the one and "
                f"scores on the other: give it {part}_dataloaders=, and a trainer without limit_{part}_batches=0"
            )
    return evaluator


def training_batches(evaluator: Lightning, count: int, *, seed: int, model: nn.Module) -> list[Any]:
    """The first `count` training batches, combined as the trainer would where there are several loaders."""
    loaders = evaluator.train_dataloaders
    if evaluator.datamodule is not None:
        # a search that is resumed has not been through trainer.fit, which would set the data up
        evaluator.datamodule.prepare_data()
        evaluator.datamodule.setup("fit")
        loaders = evaluator.datamodule.train_dataloader()
    combined = CombinedLoader(loaders, "max_size_cycle")
    return [batch for batch, *_ in first_batches(combined, count, seed=seed, model=model)]
