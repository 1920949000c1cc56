"""How does a user's LightningModule train a supernet: its training_step, run once for every candidate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from nni.nas.evaluator.pytorch import LightningModule
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from torch import nn
from torch.utils import _pytree as pytree

from nni_cafenet.sharing import SharingPattern
from nni_cafenet.supernet.candidates import Candidates
from nni_cafenet.supernet.minmin import MinMin
from nni_cafenet.supernet.objectives import LossFn, checked_loss, to_device
from nni_cafenet.supernet.recalibrate import recalibrate
from nni_cafenet.supernet.supernet import Supernet

LogCall = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of one self.log


class MinMinModule(BaseOneShotLightningModule):
    """Wraps the evaluator's LightningModule: optimizers, schedulers and metrics stay its own, the loss is min-min's.

    What the winning candidate logs is logged. Metric objects that training_step updates count every candidate.

    Args:
        training_module: the evaluator's.
        supernet: of the model that `training_module` trains.
        sharing: see MinMin.
        candidates: see MinMin.
        random_share: of all steps, in which a random candidate learns.
        seed: see MinMin.

    Attributes:
        calibration: training batches for the full network's BatchNorm statistics, which training sub-networks alone
            never touches and without which the metrics of validation epochs would be noise.
    """

    def __init__(
        self,
        training_module: LightningModule,
        supernet: Supernet,
        sharing: SharingPattern,
        candidates: Candidates,
        random_share: float,
        seed: int,
    ) -> None:
        super().__init__(training_module)
        self.calibration: Sequence[Any] = ()
        self._supernet, self._sharing, self._candidates = supernet, sharing, candidates
        self._random_share, self._seed = random_share, seed
        self._minmin = MinMin(supernet, sharing, candidates, 0, seed)

    @property
    def automatic_optimization(self) -> bool:
        return True

    def on_train_start(self) -> Any:
        # of batches: Lightning's "stepping batches" are the optimizer's steps
        batches = self.trainer.estimated_stepping_batches * self.trainer.accumulate_grad_batches
        if self._random_share and batches in (float("inf"), -1):
            raise ValueError(
                f"random_share={self._random_share} is a share of all steps, and this trainer has no last one: "
                f"give it max_epochs or max_steps"
            )
        random_steps = int(self._random_share * batches) if self._random_share else 0
        self._minmin = MinMin(self._supernet, self._sharing, self._candidates, random_steps, self._seed)
        return super().on_train_start()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss of the best candidate; what that candidate logged is logged, and nothing of the others."""
        logged: dict[int, list[LogCall]] = {}

        def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
            with _held_log(self.training_module) as calls:
                loss = _loss_of(self.training_module.training_step(batch, batch_idx))
            logged[id(loss)] = calls
            return loss

        # counts on through epochs and accumulation, and Lightning's checkpoints hold it
        loss = self._minmin.loss(batch, self.trainer.fit_loop.total_batch_idx, loss_fn)
        for args, kwargs in logged[id(loss)]:
            self.log(*args, **kwargs)
        return loss

    def on_validation_start(self) -> Any:
        recalibrate(self._supernet.model, self.calibration, quiet_loss(self.training_module))
        return super().on_validation_start()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self.training_module.validation_step(*args, **kwargs)

    def on_validation_epoch_end(self) -> Any:
        return self.training_module.on_validation_epoch_end()

    def teardown(self, stage: str) -> Any:
        self.training_module.__dict__.pop("log", None)  # NNI's setup has sent it here; from now on it stands alone
        return super().teardown(stage)


def quiet_loss(module: LightningModule) -> LossFn:
    """`module.training_step` on the model that is set in it, outside of training: nothing is logged."""

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        with _held_log(module):
            return _loss_of(module.training_step(to_device(batch, model), 0))

    return loss_fn


def _loss_of(output: Any) -> torch.Tensor:
    """The loss in what a training_step returns: a tensor, or a dict that holds it.

    Raises:
        InvalidBatches: there is none.
    """
    return checked_loss(output.get("loss") if isinstance(output, Mapping) else output)


@contextmanager
def _held_log(module: LightningModule) -> Iterator[list[LogCall]]:
    """Calls of module.log inside of the block, kept instead of logged; without the graphs of what they log."""
    calls: list[LogCall] = []

    def hold(*args: Any, **kwargs: Any) -> None:
        calls.append(pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs)))

    before = module.__dict__.get("log")
    module.log = hold
    try:
        yield calls
    finally:
        module.__dict__.pop("log")
        if before is not None:
            module.log = before
