"""The one training loop: of supernets, dense networks and slim ones; seeded by epoch, resumable at any step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from nni_cafenet.checkpoint import Memory
from nni_cafenet.distributed import average_gradients, rank, world_size
from nni_cafenet.errors import InvalidBatches, TrainingDiverged
from nni_cafenet.modes import seeded
from nni_cafenet.supernet.objectives import AnyLoss, as_loss, checked_loss

logger = logging.getLogger(__name__)

OptimizerFn = Callable[[Iterable[nn.Parameter]], Optimizer]
ScheduleFn = Callable[[Optimizer, int], LRScheduler]  # (optimizer, steps in all) -> scheduler, stepped every step
StepFn = Callable[[Any, int], float]  # (batch, step) -> loss, with gradients in the parameters
SECONDS_BETWEEN_SAVES = 300.0
RANKS_APART = 1_000_003  # seeds of the processes that train together


def sgd(parameters: Iterable[nn.Parameter], *, lr: float = 0.1) -> Optimizer:
    """The default optimizer: SGD, Nesterov momentum 0.9, weight decay 5e-4."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)


def cosine(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The default schedule: cosine from the optimizer's learning rate to 0."""
    return CosineAnnealingLR(optimizer, T_max=max(steps, 1))


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Args:
        epochs: passes over the training batches.
        optimizer_fn: makes the optimizer from the parameters.
        schedule_fn: makes the scheduler from the optimizer and the number of steps.
        ema: the decay of the moving average of weights and statistics that the network has in the end; in each step
            the average keeps so much of itself. With 0 it has the last ones.
    """

    epochs: int
    optimizer_fn: OptimizerFn = sgd
    schedule_fn: ScheduleFn = cosine
    ema: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be at least 0 and below 1, such as 0.995, but got {self.ema!r}")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 0:
            raise ValueError(f"epochs must be a whole number of at least 0, but got {self.epochs!r}")

    def settings(self) -> dict[str, Any]:
        """What a checkpoint is compared by: plain values, the same in every process."""
        return {
            "epochs": self.epochs, "optimizer": name_of(self.optimizer_fn), "schedule": name_of(self.schedule_fn),
            "ema": self.ema,
        }  # fmt: skip


def train_model(
    model: nn.Module,
    batches: Iterable[Any],
    recipe: Recipe,
    *,
    loss_fn: AnyLoss,
    seed: int = 0,
    checkpoint: Memory | None = None,
    label: str = "training",
    progress: bool = True,
) -> list[float]:
    """Train `model` in place; the mean loss of each epoch.

    Args:
        model: left in train mode.
        batches: anything that can be iterated anew every epoch, such as a DataLoader or a list.
        loss_fn: (model, batch) -> scalar, or a torch loss for batches of (inputs, targets).
        seed: of shuffling, augmentation and dropout, which draw from torch's generator; its state is restored.

    Raises:
        InvalidBatches: no batches, or a loss that is not a scalar.
        TrainingDiverged: a loss that is NaN or infinite.
    """
    loss_of = as_loss(loss_fn)
    model.train()

    def step(batch: Any, number: int) -> float:
        loss = checked_loss(loss_of(model, batch))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDiverged(f"{label}: the loss is {value} at step {number}: lower the learning rate")
        loss.backward()
        return value

    return fit(model, batches, recipe, step, seed=seed, checkpoint=checkpoint, label=label, progress=progress)


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    recipe: Recipe,
    step: StepFn,
    *,
    seed: int,
    checkpoint: Memory | None,
    label: str,
    progress: bool,
    on_epoch: Callable[[], None] | None = None,
) -> list[float]:
    """Run `step` on every batch of every epoch; see :func:`train_model`.

    Every epoch seeds torch anew, inside a fork of its generators, so that epoch 7 is the same whether or not the six
    before it ran in this process; a resume in the middle of an epoch skips the batches that were trained on. Where
    several processes train together, each draws other random numbers, and states are saved after epochs only. What
    `on_epoch` does at the end of each must not change the model.
    """
    per_epoch = count_batches(batches)
    optimizer = recipe.optimizer_fn([parameter for parameter in model.parameters() if parameter.requires_grad])
    schedule = recipe.schedule_fn(optimizer, recipe.epochs * per_epoch)
    kept: dict[str, nn.Module | Optimizer | LRScheduler] = {
        "model": model, "optimizer": optimizer, "schedule": schedule,
    }  # fmt: skip
    averaged: AveragedModel | None = None
    if recipe.ema:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
        kept["averaged"] = averaged
    place = _Place()
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        for name, part in kept.items():
            part.load_state_dict(state[name])
        place = _Place(**state["place"])
    saved = time.monotonic()

    def save(rng: torch.Tensor | None) -> None:
        if checkpoint is not None:
            place.rng = rng
            states = {name: part.state_dict() for name, part in kept.items()}
            checkpoint.save({**states, "place": vars(place)})

    total = recipe.epochs * per_epoch
    with tqdm(total=total, initial=place.epoch * per_epoch + place.step, desc=label, unit="step",
              disable=None if progress and rank() == 0 else True, leave=False) as bar:  # fmt: skip
        while place.epoch < recipe.epochs:
            _set_epoch(batches, place.epoch)
            with seeded(seed + RANKS_APART * rank(), place.epoch, model):
                for batch in _from(batches, place, per_epoch):
                    optimizer.zero_grad(set_to_none=True)
                    loss = step(batch, place.epoch * per_epoch + place.step)
                    average_gradients(model.parameters())
                    optimizer.step()
                    schedule.step()
                    if averaged is not None:
                        averaged.update_parameters(model)
                    place.step += 1
                    place.loss_sum += loss
                    bar.update()
                    bar.set_postfix(loss=f"{place.loss_sum / place.step:.3f}", refresh=False)
                    due = time.monotonic() - saved > SECONDS_BETWEEN_SAVES
                    if due and place.step < per_epoch and world_size() == 1:
                        save(torch.get_rng_state())
                        saved = time.monotonic()
            logger.info("%s: epoch %d of %d, mean loss %.4f", label, place.epoch + 1, recipe.epochs,
                        place.loss_sum / max(place.step, 1))  # fmt: skip
            place.losses.append(place.loss_sum / max(place.step, 1))
            place.epoch, place.step, place.loss_sum = place.epoch + 1, 0, 0.0
            save(None)
            saved = time.monotonic()
            if on_epoch is not None:
                on_epoch()
    optimizer.zero_grad(set_to_none=True)
    if averaged is not None:
        model.load_state_dict(averaged.module.state_dict())
    return place.losses


def count_batches(batches: Iterable[Any]) -> int:
    """How many batches an epoch has; a loader without a length is iterated once.

    Raises:
        InvalidBatches: none.
    """
    try:
        count = len(batches)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader has a __len__ that fails where its data set is a stream
        with torch.random.fork_rng(devices=[]):
            count = sum(1 for _ in batches)
    if not count:
        raise InvalidBatches(
            "the loader yields no batch: is the data set smaller than the batch size with drop_last=True, "
            "or a generator that was used up? Give a DataLoader or a list"
        )
    return count


def first_batches(batches: Iterable[Any], count: int, *, seed: int, model: nn.Module) -> list[Any]:
    """The first `count` batches of an epoch, the same ones for the same seed."""
    with seeded(seed, 0, model):
        return [batch for _, batch in zip(range(count), batches, strict=False)]


def _set_epoch(batches: Iterable[Any], epoch: int) -> None:
    """Tell a DistributedSampler the epoch: it shuffles by nothing else."""
    set_epoch = getattr(getattr(batches, "sampler", None), "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)


def name_of(function: Callable[..., Any]) -> str:
    """A function by its name and bound arguments: its repr holds an address, another one in every process."""
    if isinstance(function, partial):
        bound = [*map(repr, function.args), *(f"{key}={value!r}" for key, value in function.keywords.items())]
        return f"{name_of(function.func)}({', '.join(bound)})"
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


@dataclass
class _Place:
    """Where a training is: what a checkpoint holds beside the weights."""

    epoch: int = 0
    step: int = 0  # of this epoch
    loss_sum: float = 0.0  # of this epoch
    losses: list[float] = field(default_factory=list)  # of the epochs before
    rng: torch.Tensor | None = None  # of torch's generator, in the middle of an epoch


def _from(batches: Iterable[Any], place: _Place, per_epoch: int) -> Iterator[Any]:
    """The batches of an epoch from where training is; those before are drawn again, for the loader's own randomness."""
    skip = place.step
    seen = 0
    for batch in batches:
        seen += 1
        if seen == skip and place.rng is not None:
            torch.set_rng_state(place.rng)
        if seen > skip:
            yield batch
    if seen != per_epoch:
        raise InvalidBatches(
            f"the loader yielded {seen} batches in epoch {place.epoch + 1} and {per_epoch} before: a generator is used "
            f"up after one epoch; give a DataLoader or a list"
        )
