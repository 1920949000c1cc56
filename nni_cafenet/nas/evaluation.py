"""What does CafeNet use of a Lightning evaluator: its data, and its validation as a trial of its own."""

from __future__ import annotations

from typing import Any

from nni.nas.evaluator import Evaluator
from nni.nas.evaluator.pytorch import Lightning
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn

from nni_cafenet.errors import InvalidBatches
from nni_cafenet.train import first_batches


class Validation(Evaluator):
    """Validates a model as it is, with `evaluator`'s module, trainer, callbacks and data; nothing is trained."""

    def __init__(self, evaluator: Lightning) -> None:
        self.evaluator = evaluator

    def evaluate(self, model: nn.Module) -> None:
        evaluator = self.evaluator
        evaluator.module.set_model(model)
        evaluator.trainer.validate(evaluator.module, evaluator.datamodule or evaluator.val_dataloaders, verbose=False)


def checked_evaluator(evaluator: Any) -> Lightning:
    """`evaluator`, if CafeNet can train and score with it.

    Raises:
        TypeError: it is no Lightning evaluator, or its module optimizes by hand.
        InvalidBatches: it has no training or no validation data.
    """
    if not isinstance(evaluator, Lightning):
        raise TypeError(
            f"CafeNet needs a Lightning evaluator, but got a {type(evaluator).__name__}: give one of "
            f"nni.nas.evaluator.pytorch, such as Classification(...), or use nni_cafenet.search_widths without NNI"
        )
    if not evaluator.module.automatic_optimization:
        raise TypeError(
            f"{type(evaluator.module).__name__} optimizes by hand, and CafeNet chooses the loss to learn from: "
            f"set automatic_optimization = True and return the loss from training_step"
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
