"""How do several processes, one a device, train and search one supernet? As torchrun starts them; a no-op for one.

Every rank holds the same weights and draws the same widths. Losses are averaged before candidates are compared, so that
all ranks choose alike, and gradients before the optimizer's step; the ranks share out the widths to be scored. Networks
that are trained alone are shared out whole, each to a rank that works by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")
PATIENCE = timedelta(days=30)
_by_itself = ContextVar("_by_itself", default=False)
_patient_groups: dict[object, Any] = {}  # one, by the group of all ranks that is initialised now


def world_size() -> int:
    """Processes that work together; 1 where no process group was initialised."""
    return distributed.get_world_size() if _is_on() else 1


def rank() -> int:
    """This process' number among them, from 0, which alone writes files and shows progress."""
    return distributed.get_rank() if _is_on() else 0


def mean_over_ranks(value: torch.Tensor) -> float:
    """The mean of a scalar over all ranks; NaN if it is NaN anywhere."""
    if world_size() == 1:
        return float(value.detach())
    total = value.detach().to(torch.float64).clone()
    distributed.all_reduce(total)
    return float(total) / world_size()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Set each gradient to its mean over all ranks. All ranks must have run the same sub-network."""
    if world_size() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])  # one message instead of hundreds
    distributed.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def from_first(value: T) -> T:
    """What the first rank gave."""
    if world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: T) -> list[T]:
    """What every rank gave, by rank; waits for a rank that still trains a network, however long that takes."""
    if world_size() == 1:
        return [value]
    gathered: list[T | None] = [None] * world_size()
    distributed.all_gather_object(gathered, value, group=_patient())
    return gathered  # type: ignore[return-value]


@contextmanager
def by_itself() -> Iterator[None]:
    """Inside, this process is the only one for all of the above: it exchanges nothing with others."""
    token = _by_itself.set(True)
    try:
        yield
    finally:
        _by_itself.reset(token)


def _patient() -> Any:
    """All ranks, with a timeout beyond those of the usual groups: ten minutes of NCCL, thirty of gloo."""
    world = distributed.group.WORLD
    if world not in _patient_groups:
        _patient_groups.clear()
        _patient_groups[world] = distributed.new_group(backend="gloo", timeout=PATIENCE)
    return _patient_groups[world]


def _is_on() -> bool:
    return not _by_itself.get() and distributed.is_available() and distributed.is_initialized()
