"""How does a LightningModule that optimizes by hand train a sub-network? Its training_step, rehearsed, and then run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from nni.nas.evaluator.pytorch import LightningModule

from nni_cafenet.modes import replaced
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.widths import SubNetwork


@contextmanager
def rehearsal(module: LightningModule) -> Iterator[list[torch.Tensor]]:
    """Inside of the block `module`'s training_step learns nothing; the losses that it would have learnt from are told.

    A module that does not optimize by hand learns nothing there anyway, and tells no losses.
    """
    losses: list[torch.Tensor] = []

    def backward(loss: torch.Tensor, *_: Any, **__: Any) -> None:
        losses.append(loss.detach())

    def nothing(*_: Any, **__: Any) -> None:
        return None

    if module.automatic_optimization:
        yield losses
        return
    strategy = module.trainer.strategy
    if not strategy.optimizers:  # a run that is resumed after its training has not been through trainer.fit
        strategy.connect(module)
        strategy.setup_optimizers(module.trainer)
    optimizers, schedulers = module.optimizers, module.lr_schedulers
    with replaced(
        module,
        manual_backward=backward,
        optimizers=lambda *args, **kwargs: _each(optimizers(*args, **kwargs), _Idle),
        lr_schedulers=lambda: _each(schedulers(), _Idle),
        toggle_optimizer=nothing,
        untoggle_optimizer=nothing,
        clip_gradients=nothing,
    ):
        yield losses


@contextmanager
def learning(module: LightningModule, supernet: Supernet, sub: SubNetwork) -> Iterator[None]:
    """Inside of the block `supernet` runs as `sub`, for a training_step of `module` that optimizes by hand.

    A step of an optimizer changes the full weights, and toggling one what requires gradients: the slices of the
    sub-network are cut anew after either, so that what the module computes next is what a plain network would.
    """
    optimizers, toggle, untoggle = module.optimizers, module.toggle_optimizer, module.untoggle_optimizer
    with ExitStack() as running:

        def cut() -> None:
            running.close()
            running.enter_context(supernet.running(sub))

        def toggled(by: Callable[[Any], None]) -> Callable[[Any], None]:
            def toggling(optimizer: Any) -> None:
                by(optimizer.own if isinstance(optimizer, _Watched) else optimizer)
                cut()

            return toggling

        cut()
        with replaced(
            module,
            optimizers=lambda *args, **kwargs: _each(optimizers(*args, **kwargs), lambda own: _Watched(own, cut)),
            toggle_optimizer=toggled(toggle),
            untoggle_optimizer=toggled(untoggle),
        ):
            yield


def _each(parts: Any, make: Callable[[Any], Any]) -> Any:
    """One, several or none, as Lightning hands them out."""
    return [make(part) for part in parts] if isinstance(parts, list) else None if parts is None else make(parts)


class _Idle:
    """An optimizer or a schedule that does nothing."""

    def __init__(self, own: Any) -> None:
        self.own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def step(self, closure: object = None, **_: Any) -> None:
        if callable(closure):  # a schedule takes a metric in its place
            closure()

    def zero_grad(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    @contextmanager
    def toggle_model(self, *_: Any, **__: Any) -> Iterator[None]:
        yield


class _Watched:
    """An optimizer that says when it has changed the weights."""

    def __init__(self, own: Any, changed: Callable[[], None]) -> None:
        self.own, self._changed = own, changed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        returned = self.own.step(*args, **kwargs)
        self._changed()
        return returned

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        with self.own.toggle_model(sync_grad):
            self._changed()
            yield
        self._changed()
