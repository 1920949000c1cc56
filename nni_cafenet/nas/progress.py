"""What has a run under NNI done so far? Parts in plain types, for NNI to save, and in a folder that outlives a kill."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from nni_cafenet.checkpoint import Checkpoint, assert_plain
from nni_cafenet.errors import CheckpointMismatch


class Progress:
    """Named parts of a run's state.

    Args:
        settings: what a state belongs to, in plain types.
        folder: every part is written there as soon as it is set, atomically; NNI itself saves when an experiment starts
            and stops, and a kill leaves it no time for that.
    """

    def __init__(self, settings: Mapping[str, Any], folder: str | os.PathLike[str] | None) -> None:
        self.settings, self.folder = dict(settings), folder
        self._parts: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """The part of this name, or None; the folder's where there is one, which is never older.

        Raises:
            CheckpointMismatch: the folder holds the state of other settings.
        """
        if self.folder is not None and (saved := self._file(self.folder, name).load()) is not None:
            return saved["value"]
        return self._parts.get(name)

    def set(self, name: str, value: Any) -> None:
        """Keep a copy of `value`: tensors that go on learning would no longer fit the rest of the state."""
        assert_plain(value, name)
        self._parts[name] = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu().clone(), value)
        if self.folder is not None:
            self._file(self.folder, name).save({"value": self._parts[name]})

    def part(self, name: str) -> Part:
        """The part of this name as a Memory."""
        return Part(self, name)

    def state_dict(self) -> dict[str, Any]:
        return {"settings": self.settings, "parts": dict(self._parts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            CheckpointMismatch: `state` is of other settings.
        """
        theirs = state.get("settings", {})
        for name, own in self.settings.items():
            if theirs.get(name) != own:
                raise CheckpointMismatch(
                    f"the experiment's checkpoint has the {name} {theirs.get(name)!r}, but this strategy {own!r}: "
                    f"resume with the same model and settings, or start a new experiment"
                )
        self._parts = dict(state["parts"])

    def _file(self, folder: str | os.PathLike[str], name: str) -> Checkpoint:
        return Checkpoint(folder, f"nni_{name}", self.settings)


@dataclass(frozen=True)
class Part:
    """One part of a Progress, as something that loads and saves."""

    progress: Progress
    name: str

    def load(self) -> dict[str, Any] | None:
        return self.progress.get(self.name)  # type: ignore[no-any-return]

    def save(self, state: Mapping[str, Any]) -> None:
        self.progress.set(self.name, dict(state))
