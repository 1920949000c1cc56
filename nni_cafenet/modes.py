"""Running somebody's model in another mode, with other random numbers or methods, and leaving all as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """`model` in eval mode; each module's own mode, which may differ from its parent's, is restored on exit."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield model.eval()
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def running_modules(model: nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are running at any moment inside the block, innermost last.

    When a forward raises, the list ends with the module that did.
    """
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(*_: object) -> None:
        running.pop()

    handles = []
    for name, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(owner: object, **attributes: Any) -> Iterator[None]:
    """Attributes, or methods, of `owner` alone in front of those of its class; as it was on exit."""
    own = vars(owner)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            own.pop(name, None)
        own.update(before)


@contextmanager
def seeded(seed: int, epoch: int, model: nn.Module) -> Iterator[None]:
    """torch's generators seeded for an epoch and restored afterwards: nobody else's random numbers change."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    devices: Sequence[torch.device] = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed * 100_003 + epoch)  # a prime apart, so that seeds do not share epochs
        yield
