"""Slim networks on disk: widths and weights in one safetensors file, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from nni_cafenet.errors import InvalidSlimFile, UnsupportedModel
from nni_cafenet.export.slicing import slice_layers
from nni_cafenet.files import replacing
from nni_cafenet.layers import axis_size
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import IntArray, SubNetwork, contiguous_runs

FORMAT = "nni_cafenet.slim"
VERSION = 1


def save_slim(slim: nn.Module, space: SearchSpace, sub: SubNetwork, path: str | os.PathLike[str]) -> None:
    """Write `slim`, which slice_model(model, space, sub) made and which may have been trained since, to `path`.

    The file is whole or, on an error, as it was before.

    Raises:
        ValueError: `slim` does not have the widths of `sub`.
    """
    positions = space.positions(sub)
    layers = dict(slim.named_modules())
    for (name, side), kept in positions.items():
        size = axis_size(layers[name], side) if name in layers else None
        if size is not None and size != len(kept):
            raise ValueError(
                f"{name} has {size} channels on side {side!r}, but the sub-network keeps {len(kept)}: "
                f"pass the slim model with the space and the sub-network that it was sliced by"
            )
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "model": type(slim).__name__,
        "widths": json.dumps(space.channels(sub.widths)),
        "positions": json.dumps([[name, side, contiguous_runs(kept)] for (name, side), kept in positions.items()]),
    }
    # safetensors refuses tensors that share memory: tied ones are written once for each name
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in slim.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def load_slim(path: str | os.PathLike[str], factory: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    """The network that save_slim wrote: factory(*args, **kwargs), sliced to the saved widths, with the saved weights.

    Args:
        path: the file.
        factory: makes the full-width model that the slim one was cut from, such as torchvision.models.mobilenet_v2.
        args, kwargs: for the factory, such as num_classes=10.

    Raises:
        FileNotFoundError: no such file.
        InvalidSlimFile: the file is truncated, of another kind, or does not fit what the factory makes.
    """
    metadata, tensors = _read(path)
    model = factory(*args, **kwargs)
    try:
        positions = {(name, side): _positions(runs) for name, side, runs in json.loads(metadata["positions"])}
        slim = slice_layers(model, positions)
        slim.load_state_dict(tensors)
    except (UnsupportedModel, RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()
        raise InvalidSlimFile(
            f"{os.fspath(path)} holds a slim {metadata.get('model')}, which does not fit what the factory made, a "
            f"{type(model).__name__}: use the factory and the arguments of the full model ({' '.join(reason[:3])})"
        ) from error
    return slim


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {os.fspath(path)}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InvalidSlimFile(
            f"{os.fspath(path)} is truncated or no safetensors file ({error}): save it again with save_slim"
        ) from error
    if metadata.get("format") != FORMAT or "positions" not in metadata:
        raise InvalidSlimFile(
            f"{os.fspath(path)} is a safetensors file, but save_slim did not write it: it does not say which widths "
            f"the network has"
        )
    if metadata.get("version") != str(VERSION):
        raise InvalidSlimFile(
            f"{os.fspath(path)} has version {metadata.get('version')} and this nni_cafenet reads version {VERSION}: "
            f"use the version that wrote it"
        )
    return metadata, tensors


def _positions(runs: list[list[int]]) -> IntArray:
    return np.concatenate([np.arange(start, start + length) for start, length in runs])
