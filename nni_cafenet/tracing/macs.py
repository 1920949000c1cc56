"""How many multiply-adds does a model take? fvcore counts them, by module and operation."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.modes import evaluating
from nni_cafenet.tracing.example import Example, output_tensors

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # importing fvcore scripts a loss by torch.jit
    from fvcore.nn import FlopCountAnalysis

Count = tuple[str, str]  # (module, operation)


def count_macs(model: nn.Module, example_inputs: Any) -> int:
    """Multiply-adds per image of `model` in eval mode, counted by fvcore; the one counter of every budget.

    Args:
        model: left as it is.
        example_inputs: as for :func:`nni_cafenet.build_space`.
    """
    return total_macs(model, Example(example_inputs).first_image())


def total_macs(model: nn.Module, example: Example, *, without: Collection[str] = ()) -> int:
    """The same for an example of one image, without those of some layers."""
    return sum(count for (layer, _), count in counts_of(model, example)[0].items() if layer not in without)


def counts_of(model: nn.Module, example: Example) -> tuple[dict[Count, int], tuple[tuple[str, int], ...]]:
    """fvcore's counts of each module's own operations (not its children's), and what it did not count."""
    with evaluating(model), torch.no_grad():
        analysis = FlopCountAnalysis(_Traceable(model, example), tuple(example.tensors))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        quiet = logging.getLogger("fvcore.nn.jit_analysis")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            by_module = analysis.by_module_and_operator()
            uncounted = analysis.unsupported_ops()
        except KeyError as error:  # fvcore reads names off a graph, where "/" separates them
            raise UnsupportedModel(
                f"fvcore cannot count the MACs of {type(model).__name__} ({error.args[0]}): a module's name must not "
                f"hold a '/'"
            ) from error
        finally:
            quiet.setLevel(level)
    own = {name: Counter(counts) for name, counts in by_module.items()}
    for name, counts in by_module.items():
        if name:
            own[name.rpartition(".")[0]].subtract(counts)
    return {
        (name.removeprefix("model").removeprefix("."), operation): int(count)
        for name, counts in own.items()
        for operation, count in counts.items()
        if count
    }, tuple(sorted(uncounted.items()))


class _Traceable(nn.Module):
    """The model as torch.jit.trace, by which fvcore counts, wants it: tensors in, a tuple of tensors out."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.model, self._example = model, example

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(tensors)
        return tuple(output_tensors(self._example.map(lambda _: next(given)).run(self.model)))
