"""Checkpoints that survive a kill: versioned, atomic, plain types and tensors only, tied to their settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from nni_cafenet.distributed import rank
from nni_cafenet.errors import CheckpointMismatch
from nni_cafenet.files import replacing

logger = logging.getLogger(__name__)

VERSION = 1
PLAIN = (str, int, float, bool, type(None))  # exactly: numpy's float64 is a float, and torch.load refuses it


class Memory(Protocol):
    """Where something keeps its state: a Checkpoint, or anything that gives back what it was given."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: Mapping[str, Any]) -> None: ...


class Checkpoint:
    """A named state in a folder, with the settings that it belongs to.

    Args:
        folder: made if it does not exist.
        name: the file is folder/name.pt.
        settings: plain values by name; a file written under other settings is refused.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str, settings: Mapping[str, Any]) -> None:
        self.path = Path(folder) / f"{name}.pt"
        self.settings = dict(settings)

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None where there is none yet.

        Raises:
            CheckpointMismatch: the file is damaged, of another version, or was written under other settings.
        """
        if not self.path.exists():
            return None
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            version, settings, state = content["version"], content["settings"], content["state"]
        except Exception as error:  # torch.load raises whatever unpickling damaged bytes raises
            raise CheckpointMismatch(
                f"{self.path} is damaged or no checkpoint of nni_cafenet ({type(error).__name__}): "
                f"remove it to start over, or give another checkpoint folder"
            ) from error
        if version != VERSION:
            raise CheckpointMismatch(
                f"{self.path} has version {version}, and this nni_cafenet writes version {VERSION}: "
                f"remove it to start over, or give another checkpoint folder"
            )
        differing = [
            f"{name}: {settings.get(name)!r} there, {self.settings.get(name)!r} here"
            for name in sorted({*settings, *self.settings})
            if settings.get(name) != self.settings.get(name)
        ]
        if differing:
            raise CheckpointMismatch(
                f"{self.path} belongs to other settings ({'; '.join(differing)}): "
                f"restore them to go on, remove the file to start over, or give another checkpoint folder"
            )
        logger.info("going on from %s", self.path)
        return state  # type: ignore[no-any-return]

    def save(self, state: Mapping[str, Any]) -> None:
        """Write `state`; a kill at any moment leaves the old file or the new one, whole. Only the first rank writes.

        Raises:
            TypeError: `state` holds something else than plain types and tensors.
        """
        assert_plain(state)
        if rank() > 0:
            return
        content = {"version": VERSION, "settings": self.settings, "state": dict(state)}
        with replacing(self.path) as partial, open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())


def assert_plain(value: Any, where: str = "state") -> None:
    """Raise TypeError where `value` holds anything but plain types and tensors, naming the place."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, (str, int)):
                raise TypeError(f"{where} has a key of type {type(key).__name__}: checkpoints hold plain types only")
            assert_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            assert_plain(item, f"{where}[{index}]")
    elif type(value) not in PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}: checkpoints hold plain types and tensors only")
