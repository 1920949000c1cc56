"""How does a user's LightningModule train a supernet: its training_step, run once for every candidate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from nni.nas.evaluator.pytorch import Lightning, LightningModule
from nni.nas.oneshot.pytorch.base_lightning import BaseOneShotLightningModule
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from nni_cafenet.errors import InvalidBatches
from nni_cafenet.modes import replaced
from nni_cafenet.nas.by_hand import learning, rehearsal
from nni_cafenet.supernet.minmin import MinMin
from nni_cafenet.supernet.objectives import LossFn, checked_loss
from nni_cafenet.supernet.recalibrate import recalibrate
from nni_cafenet.supernet.supernet import Supernet

LogCall = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of one self.log

# hooks of the user's module that NNI's wrapper leaves to Lightning's defaults
FORWARDED = (
    "configure_callbacks", "configure_gradient_clipping", "lr_scheduler_step", "optimizer_step", "optimizer_zero_grad",
    "on_before_optimizer_step", "on_before_zero_grad", "on_validation_epoch_start", "on_validation_batch_start",
    "on_validation_batch_end", "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer",
)  # fmt: skip
RANDOM_STATE = "nni_cafenet_random_state"  # key in Lightning's checkpoints


class MinMinModule(BaseOneShotLightningModule):
    """Wraps the evaluator's LightningModule: optimizers, schedulers and metrics stay its own, the loss is min-min's.

    What the winning candidate logs is logged. Metric objects that training_step updates count every candidate.

    Args:
        training_module: the evaluator's.
        supernet: of the model that `training_module` trains.
        training: steps in all -> how they are done.
        loss_fn: runs a model's forward on training batches, as quiet_loss does.

    Attributes:
        calibration: training batches for the full network's BatchNorm statistics, which training sub-networks alone
            never touches and without which the metrics of validation epochs would be noise.
    """

    def __init__(
        self,
        training_module: LightningModule,
        supernet: Supernet,
        training: Callable[[float], MinMin],
        loss_fn: LossFn,
    ) -> None:
        super().__init__(training_module)
        self.calibration: Sequence[Any] = ()
        self._supernet, self._training, self._quiet_loss = supernet, training, loss_fn
        self._minmin = training(0)
        self._begun = self._restored = False

    @property
    def automatic_optimization(self) -> bool:
        """As the user's module has it."""
        return bool(self.training_module.automatic_optimization)

    def __getattr__(self, name: str) -> Any:
        """What this wrapper lacks is the user's module's: callbacks are handed the wrapper."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "training_module":  # what Lightning keeps of a module, and not set yet
                raise
            return getattr(self.training_module, name)

    def configure_optimizers(self) -> Any:
        """The user's own.

        Raises:
            TypeError: several optimizers, which Lightning leaves to manual optimization, without that.
        """
        configured = self.training_module.configure_optimizers()
        if not self.automatic_optimization:
            return configured
        listed = configured[0] if isinstance(configured, tuple) and len(configured) == 2 else configured
        if (
            isinstance(listed, Sequence)
            and len(listed) > 1
            and all(isinstance(one, Optimizer | dict) for one in listed)
        ):
            raise TypeError(
                f"{type(self.training_module).__name__}.configure_optimizers() returns {len(listed)} optimizers, which "
                f"Lightning steps by manual optimization only: set automatic_optimization = False and step them in "
                f"training_step, or return one optimizer, with a parameter group for each part of the model"
            )
        return configured

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning keeps no random state, and shuffling after a resume should be that of the unbroken run
        checkpoint[RANDOM_STATE] = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        self.training_module.on_save_checkpoint(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored = True
        if RANDOM_STATE in checkpoint:
            state, *cuda = checkpoint[RANDOM_STATE]
            torch.set_rng_state(state.cpu())
            for device, other in zip(range(torch.cuda.device_count()), cuda, strict=False):
                torch.cuda.set_rng_state(other.cpu(), device)
        self.training_module.on_load_checkpoint(checkpoint)

    def on_train_start(self) -> Any:
        # of batches: Lightning's "stepping batches" are the optimizer's steps
        batches = self.trainer.estimated_stepping_batches * self.trainer.accumulate_grad_batches
        self._minmin = self._training(batches)
        self._begun = True
        return super().on_train_start()

    def on_fit_end(self) -> Any:
        """The user's own, unless nothing is left to train: the run ended after the last checkpoint of its training.

        Raises:
            InvalidBatches: there was nothing to train from the start.
        """
        if self._begun:
            return super().on_fit_end()
        if not self._restored:
            raise InvalidBatches(
                f"the evaluator's trainer trained nothing: its max_epochs={self.trainer.max_epochs}, its train data "
                f"holds no batch, or it has trained {self.trainer.current_epoch} epochs in another experiment already: "
                f"give a new evaluator, with epochs and batches to train"
            )
        return None  # metrics are of the fit that was ended, and not known any more

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss of the best candidate; what that candidate logged is logged, and nothing of the others.

        Where the user's module optimizes by hand, its step is rehearsed for every candidate, and run for the best one.
        """
        if not self.automatic_optimization:
            module, number = self.training_module, self.trainer.fit_loop.total_batch_idx
            best = self._minmin.choice(batch, number, lambda _, batch: _rehearsed_loss(module, batch, batch_idx))
            with learning(module, self._supernet, best):
                return module.training_step(batch, batch_idx)
        logged: dict[int, list[LogCall]] = {}

        def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
            with _held_log(self.training_module) as calls:
                loss = _loss_of(self.training_module, self.training_module.training_step(batch, batch_idx))
            logged[id(loss)] = calls
            return loss

        # counts on through epochs and accumulation, and Lightning's checkpoints hold it
        loss = self._minmin.loss(batch, self.trainer.fit_loop.total_batch_idx, loss_fn)
        for args, kwargs in logged[id(loss)]:
            self.log(*args, **kwargs)
        return loss

    def on_validation_start(self) -> Any:
        recalibrate(self._supernet.model, self.calibration, self._quiet_loss)
        return super().on_validation_start()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        return self.training_module.validation_step(*args, **kwargs)

    def on_validation_epoch_end(self) -> Any:
        return self.training_module.on_validation_epoch_end()

    def teardown(self, stage: str) -> Any:
        self.training_module.__dict__.pop("log", None)  # NNI's setup has sent it here; from now on it stands alone
        return super().teardown(stage)


def _forwarded(name: str) -> Callable[..., Any]:
    def hook(self: MinMinModule, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.training_module, name)(*args, **kwargs)

    return hook


for _name in FORWARDED:
    setattr(MinMinModule, _name, _forwarded(_name))


def quiet_loss(evaluator: Lightning) -> LossFn:
    """The evaluator's training_step on the model that is set in its module, outside of training: nothing is logged.

    Batches take the way to the device that the evaluator's precision, module and data give them in training.
    """
    module, precision, data = evaluator.module, evaluator.trainer.precision_plugin, evaluator.datamodule

    def hook(name: str, *args: Any) -> Any:
        owner = data if data is not None and is_overridden(name, data, LightningDataModule) else module
        return getattr(owner, name)(*args)

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        batch = hook("on_before_batch_transfer", precision.convert_input(batch), 0)
        batch = hook("on_after_batch_transfer", hook("transfer_batch_to_device", batch, device, 0), 0)
        with precision.forward_context():
            return _rehearsed_loss(module, batch, 0)

    return loss_fn


def _rehearsed_loss(module: LightningModule, batch: Any, batch_idx: int) -> torch.Tensor:
    """The loss of `module`'s training_step, which neither logs nor steps an optimizer."""
    with _held_log(module), rehearsal(module) as losses:
        output = module.training_step(batch, batch_idx)
    return _loss_of(module, output, losses)


def _loss_of(module: LightningModule, output: Any, losses: Sequence[torch.Tensor] = ()) -> torch.Tensor:
    """The loss in what `module`'s training_step returns: a tensor, or a dict that holds it.

    Args:
        losses: what it has learnt from by hand, of which the sum stands for a loss that it does not return.

    Raises:
        InvalidBatches: there is none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if loss is None and losses:
        loss = torch.stack([checked_loss(each) for each in losses]).sum()
    if loss is None:
        got = f"a dict of {', '.join(map(repr, output))}" if isinstance(output, Mapping) else "None"
        raise InvalidBatches(
            f"{type(module).__name__}.training_step returned {got}, and candidates are compared by their losses: "
            f"return the loss, or a dict with it as 'loss', for every batch"
        )
    return checked_loss(loss)


@contextmanager
def _held_log(module: LightningModule) -> Iterator[list[LogCall]]:
    """Calls of module.log inside of the block, kept instead of logged; without the graphs of what they log."""
    calls: list[LogCall] = []

    def hold(*args: Any, **kwargs: Any) -> None:
        calls.append(pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs)))

    with replaced(module, log=hold):
        yield calls
