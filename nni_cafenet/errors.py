"""What can go wrong because of what the caller gave us: one small tree of exceptions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(asked: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: which known ones come nearest to it."""
    return f"the nearest: {', '.join(difflib.get_close_matches(asked, list(known), n=3, cutoff=0.0))}"


class CafeNetError(Exception):
    """Base of every error that nni_cafenet raises on purpose."""


class UnsupportedModel(CafeNetError):
    """The model cannot be traced, or nothing of it can be searched. The message names the layer and the remedy."""


class InfeasibleBudget(CafeNetError, ValueError):
    """A budget that no sub-network of the space can meet, or that makes no sense.

    Args:
        limit: the limit's name, such as ``max_macs``.
        asked: what the caller asked for.
        smallest: the smallest possible value in this space.
        largest: the largest possible value, that of the full network.
        reason: what is wrong with `asked`.
    """

    def __init__(self, *, limit: str, asked: object, smallest: int, largest: int, reason: str) -> None:
        self.limit, self.asked, self.smallest, self.largest, self.reason = limit, asked, smallest, largest, reason
        super().__init__(
            f"budget {limit}={asked!r} {reason}; in this space {limit} can be {smallest:,} "
            f"({100 * smallest / largest:.1f}%, smallest possible) to {largest:,} (100%, largest possible): "
            f'give a number in that range or a percentage such as "50%"'
        )

    def __reduce__(self) -> tuple[object, ...]:  # keyword-only arguments do not survive the default pickling
        fields = {name: getattr(self, name) for name in ("limit", "asked", "smallest", "largest", "reason")}
        return _rebuild_infeasible, (fields,)


def _rebuild_infeasible(fields: dict[str, object]) -> InfeasibleBudget:
    return InfeasibleBudget(**fields)  # type: ignore[arg-type]


class InvalidBatches(CafeNetError, ValueError):
    """A loader that yields nothing, or a loss or score function that does not fit its batches."""


class InvalidScore(CafeNetError, ValueError):
    """A score function returned something that is not a finite number."""


class TrainingDiverged(CafeNetError, ArithmeticError):
    """The training loss is NaN or infinite. The message names the step and the widths."""


class CheckpointMismatch(CafeNetError):
    """A checkpoint that is damaged, or that belongs to another space or other settings."""


class InvalidSlimFile(CafeNetError):
    """A file that save_slim did not write, that is damaged, or that does not fit the given factory."""


class InvalidChoice(CafeNetError, ValueError):
    """Another pruner's choice of channels that is no sub-network of the space. The message names layers and remedy."""
