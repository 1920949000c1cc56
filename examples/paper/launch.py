"""How does a recipe run on one device or, by torchrun, on many? Processes, loaders, mixed precision, errors."""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from examples.paper.datasets import BadData
from nni_cafenet import CafeNetError
from nni_cafenet.distributed import rank, world_size


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that all recipes have."""
    parser.add_argument("--data", required=True, metavar="DIR", help="where the data set lies; see README.md")
    parser.add_argument("--out", required=True, metavar="DIR", help="results and checkpoints; the same one goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=8, help="processes that load images (default %(default)s)")
    parser.add_argument("--no-bf16", action="store_true", help="float32 on CUDA too, instead of bfloat16")
    parser.add_argument(
        "--dry-run", action="store_true", help="some images, one epoch, small images: does everything run?"
    )


def guarded(run: Callable[[], Any]) -> int:
    """Run, in a process group where torchrun started this; the exit status, with errors in one line."""
    try:
        with processes():
            run()
    except BadData as error:
        print(f"error: {str(error).splitlines()[-1]}", file=sys.stderr)  # from a loader's worker, a traceback precedes
        return 1
    except (CafeNetError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


@contextmanager
def processes() -> Iterator[None]:
    """A process group, where torchrun started this process: NCCL with a CUDA device for each, gloo without."""
    if "LOCAL_RANK" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        distributed.barrier()  # who ends first closes connections that others may still read from
    finally:
        distributed.destroy_process_group()


def device() -> torch.device:
    """Where this process computes."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def loader(
    images: Dataset[Any], *, batch: int, workers: int, train: bool, collate: Callable[..., Any] | None = None
) -> DataLoader[Any]:
    """Batches of `images`: shuffled, whole and shared out to all processes to train on; all of them to score on.

    Args:
        batch: images in one step of all processes together.
    """
    if batch % world_size():
        raise ValueError(f"a batch of {batch} images cannot be shared out evenly to {world_size()} processes")
    share: DistributedSampler[Any] | None = (
        DistributedSampler(images, world_size(), rank(), shuffle=True, drop_last=True)
        if train and world_size() > 1
        else None
    )
    return DataLoader(
        images, batch_size=batch // world_size(), shuffle=train and share is None, sampler=share, drop_last=train,
        num_workers=workers, pin_memory=torch.cuda.is_available(), collate_fn=collate,
    )  # fmt: skip


def in_bf16(function: Callable[..., Any], *, enabled: bool) -> Callable[..., Any]:
    """A loss or score function of (model, ...) under bfloat16 autocast, on the model's device; weights stay float32."""
    if not enabled:
        return function

    @functools.wraps(function, updated=())
    def cast(model: nn.Module, *arguments: Any) -> Any:
        with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            return function(model, *arguments)

    return cast


def say(*words: object, sep: str = " ") -> None:
    """Print, in one process of all."""
    if rank() == 0:
        print(*words, sep=sep, flush=True)
