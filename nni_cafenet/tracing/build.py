"""build_space: from a model and an example to its search space; groups, oracle, cost and bins in turn."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch import nn

from nni_cafenet.cost import CostModel
from nni_cafenet.errors import UnsupportedModel, nearest
from nni_cafenet.space import SearchSpace
from nni_cafenet.tracing.bins import BinRule, FlopsSensitiveBins, bin_rule, rebin, units_of
from nni_cafenet.tracing.example import Example
from nni_cafenet.tracing.groups import GroupTable, find_groups
from nni_cafenet.tracing.private import private_copy, small_example, small_images
from nni_cafenet.tracing.terms import cost_terms
from nni_cafenet.tracing.verify import check_cost, verified
from nni_cafenet.widths import Bins


def build_space(
    model: nn.Module,
    example_inputs: Any,
    *,
    ignore: Iterable[str | nn.Module] = (),
    round_to: int = 1,
    min_channels: int = 1,
    min_bin: float = 1,
    bins: BinRule | Mapping[str, BinRule | int] | None = None,
) -> SearchSpace:
    """The widths that can be searched in `model`, verified by slicing it at random.

    Args:
        model: any convolutional network; left as it is (mode, buffers, requires_grad, hooks).
        example_inputs: what the forward takes: a tensor of shape (N, C, H, W), a tuple of positional inputs or a dict
            of keyword inputs. MACs are counted per image at this size.
        ignore: layers whose output channels stay as they are: names, globs such as "stem.*", or modules.
        round_to: channel counts are multiples of this; layers whose full width is not one stay at full width.
        min_channels: the least channels that a group keeps.
        min_bin: beta of eq. 9, the bin size of the group with the highest FLOPs sensitivity.
        bins: another rule for the bins, such as UniformBins(8); FlopsSensitiveBins(min_bin) unless given. Or other bins
            for some groups alone, as for :func:`nni_cafenet.rebin`: {"layer4.*": UniformBins(4), "conv1": 8}.

    Raises:
        UnsupportedModel: the forward fails on the example, the model cannot be traced, or nothing can be searched.
        ValueError: an unknown name in `ignore` or `bins`, or a number below 1.
    """
    for name, number in (("round_to", round_to), ("min_channels", min_channels)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, but got {number!r}")
    rule = bin_rule(bins, rest=FlopsSensitiveBins(min_bin))
    ignored = _ignored_names(model, ignore)
    example = Example(example_inputs).first_image()
    rng = np.random.default_rng(0)  # the checks are random, the space is not
    private = private_copy(model, example)
    with small_images(private):
        small = small_example(private, example)
        table = find_groups(private, example, ignored=ignored)
        table = table.without(_misfits(table, round_to))
        if table.groups:
            table = verified(private, table, example, small=small, rng=rng)
    if not table.groups:
        raise UnsupportedModel(_nothing_to_search(model, table))
    single = tuple(Bins.of_size(group.channels, group.unit, first=group.least) for group in table.groups)
    costs = cost_terms(private, table, example, small=small, rng=rng)
    cost = CostModel(costs.terms, units_of(table.groups, single))
    check_cost(private, table, cost, example, rng=rng, data_dependent=costs.data_dependent)
    space = SearchSpace(table.groups, single, cost, table.axes, table.frozen, costs.uncounted, costs.data_dependent)
    return rebin(space, rule, round_to=round_to, min_channels=min_channels)


def _ignored_names(model: nn.Module, ignore: Iterable[str | nn.Module]) -> list[str]:
    if isinstance(ignore, (str, nn.Module)):
        ignore = (ignore,)
    modules = {module: name for name, module in model.named_modules()}
    parameters = {name for name, _ in model.named_parameters()}
    names = [*modules.values(), *sorted(parameters)]
    found: set[str] = set()
    for entry in ignore:
        if isinstance(entry, nn.Module):
            if entry not in modules:
                raise ValueError(f"ignore= holds a {type(entry).__name__} that is not a module of this model")
            matches = [modules[entry]]
        else:
            matches = fnmatch.filter(names, entry)
            if not matches:
                raise ValueError(f"ignore= names {entry!r}, which matches no layer; {nearest(entry, names)}")
        for match in matches:
            if match in parameters:
                found |= {match, match.rpartition(".")[0]}  # and the layer that it belongs to
            else:
                inside = f"{match}." if match else ""  # "" is the model itself
                found.update(name for name in names if name == match or name.startswith(inside))
    return sorted(found)


def _misfits(table: GroupTable, round_to: int) -> dict[int, str]:
    return {
        index: f"{group.channels} channels are no multiple of round_to={round_to}"
        for index, group in enumerate(table.groups)
        if group.channels % round_to
    }


def _nothing_to_search(model: nn.Module, table: GroupTable) -> str:
    if not table.frozen:
        return f"{type(model).__name__} has no convolution or linear layer whose channels reach what it returns"
    reasons = "; ".join(f"{part.layer}: {part.reason}" for part in table.frozen[:10])
    return f"{type(model).__name__} has nothing to search: every layer must keep its width ({reasons})"
