"""The cost model of a network: fvcore counts, and a few counts at random widths tell what each count depends on.

Every count of fvcore (a layer's convolution, a pooling inside a forward, ...) is a constant, proportional to the size
of one axis, or to the product of a layer's two axes (eq. 6). Which of these it is, is read off a handful of sliced
copies; axes may hold several groups (after a concat), so products are expanded into terms of at most two groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain, combinations, takewhile
from math import prod

import numpy as np
from torch import nn

from nni_cafenet.cost import CostTerm
from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.export.slicing import slice_layers
from nni_cafenet.layers import axis_size, axis_tensors
from nni_cafenet.tracing.example import Example
from nni_cafenet.tracing.groups import GroupTable
from nni_cafenet.tracing.macs import Count, counts_of
from nni_cafenet.tracing.private import resizers, small_images
from nni_cafenet.widths import Axis, IntArray, WidthGroup, kept_positions

PRODUCTS = {"conv", "linear", "addmm", "matmul"}  # fvcore's names for what costs inputs times outputs
PROBES = 3  # random widths that a dependence must explain; verify.py checks the outcome at another one

Form = tuple[int, dict[int, int]]  # an axis' size: constant + sum of positions per unit * units of a group


@dataclass(frozen=True)
class Costs:
    """What is known of a network's cost, as SearchSpace says it."""

    terms: tuple[CostTerm, ...]
    uncounted: tuple[tuple[str, int], ...]
    data_dependent: tuple[str, ...]


def cost_terms(
    model: nn.Module, table: GroupTable, example: Example, *, rng: np.random.Generator, small: Example | None = None
) -> Costs:
    """What `model` costs at any widths.

    Args:
        small: the example with smaller images, on which the same counts depend on the widths in the same way.

    Raises:
        UnsupportedModel: a count depends on the widths in another way; the message names the layer.
    """
    fit = _Fit(model, table, example, small or example, rng)
    totals: dict[tuple[str, tuple[int, ...]], list[Fraction]] = defaultdict(lambda: [Fraction(0), Fraction(0)])
    for layer, operation in sorted(fit.full, key=lambda count: not fit.is_plain(count[0])):
        for groups, coefficient in fit.macs(layer, operation).items():
            totals[layer, groups][0] += coefficient
    for layer, parameter, axes in _parameters(model, table):
        for groups, coefficient in fit.product(axes, parameter.numel()).items():
            totals[layer, groups][1] += coefficient
    terms = []
    for (layer, groups), (macs, params) in totals.items():
        if macs.denominator != 1 or params.denominator != 1:
            raise UnsupportedModel(f"the cost of {layer} is not a whole number for each channel: name it in ignore=")
        if macs or params:
            terms.append(CostTerm(layer, int(macs), int(params), groups))
    return Costs(tuple(terms), fit.uncounted, tuple(sorted(fit.data_dependent)))


class _Fit:
    """Finds out what a count depends on, and expands it into products of units."""

    def __init__(
        self, model: nn.Module, table: GroupTable, example: Example, small: Example, rng: np.random.Generator
    ) -> None:
        self.model, self.table, self.example = model, table, example
        self.full, self.uncounted = counts_of(model, example)
        drawn = [[_random_units(group, rng) for group in table.groups] for _ in range(PROBES)]
        self._probes = [[np.arange(group.units) for group in table.groups], *drawn]
        self.forms = {axis.key: _form(axis) for axis in table.axes}
        self.sizes = {
            key: [constant + sum(k * len(probe[group]) for group, k in parts.items()) for probe in self._probes]
            for key, (constant, parts) in self.forms.items()
        }
        self._by_ratios: dict[tuple[Fraction, ...], list[tuple[str, str]]] = defaultdict(list)
        for key, sizes in self.sizes.items():
            self._by_ratios[_ratios(sizes)].append(key)
        self.data_dependent: set[str] = set()
        self._layers = dict(model.named_modules())
        self._slopes: dict[int, dict[Count, int]] | None = None
        if small is not example or resizers(model):
            with small_images(model):
                self._series = [counts_of(model, small)[0], *self._probed(small)]
        if (small is example and not resizers(model)) or self._series[0].keys() != self.full.keys():
            self._series = self._full_series

    def _probed(self, example: Example) -> list[dict[Count, int]]:
        """The counts on the sliced copies."""
        positions = [kept_positions(self.table.axes, probe) for probe in self._probes[1:]]
        return [counts_of(slice_layers(self.model, kept, share=True), example)[0] for kept in positions]

    @cached_property
    def _full_series(self) -> list[dict[Count, int]]:
        return [self.full, *self._probed(self.example)]

    def macs(self, layer: str, operation: str) -> dict[tuple[int, ...], Fraction]:
        """The coefficients of a module's operation."""
        count = self.full[layer, operation]
        series = [counts.get((layer, operation), 0) for counts in self._series]
        own = [key for key in self.sizes if key[0] == layer or key[0].rpartition(".")[0] == layer]
        for keys in chain([(), *combinations(own, 2), *((key,) for key in own)], self._elsewhere(layer, series)):
            sizes = [prod(self.sizes[key][i] for key in keys) for i in range(len(series))]
            if all(value * sizes[0] == series[0] * size for value, size in zip(series, sizes, strict=True)):
                return self.product(keys, count)
        sides = [key for key in own if key in ((layer, "out"), (layer, "in"))]
        if self.is_plain(layer) or self.data_dependent:
            # a plain layer's cost is bilinear, so it ran another number of times; and so does what is around it
            self.data_dependent.add(layer)
            return self.product(sides if operation in PRODUCTS else sides[:1], count)
        linear = self._by_difference(layer, operation)
        pair = None if self._explains(linear, layer, operation) else self._elsewhere_twice(series)
        return self.product(pair, count) if pair else linear

    def is_plain(self, layer: str) -> bool:
        """Whether it is one of the layers that are sliced, whose costs are known to be bilinear."""
        return axis_size(self._layers[layer], "out") is not None

    def _elsewhere(self, layer: str, series: list[int]) -> Iterator[tuple[tuple[str, str]]]:
        """Axes of other layers that shrink as `series` does; the nearest first, a small one far away may by chance."""
        alike = self._by_ratios.get(_ratios(series), [])
        path = layer.split(".")

        def shared(key: tuple[str, str]) -> int:
            return sum(
                1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path, key[0].split("."), strict=False))
            )

        return ((key,) for key in sorted(alike, key=shared, reverse=True))

    def _elsewhere_twice(self, series: list[int]) -> tuple[tuple[str, str], tuple[str, str]] | None:
        """Two axes of other layers, or one of them twice, in whose product `series` shrinks, as channels times channels
        in an attention among them."""
        wanted = _ratios(series)
        for ratios, keys in self._by_ratios.items():
            rest = tuple(whole / one for whole, one in zip(wanted, ratios, strict=True))
            if rest in self._by_ratios:
                return keys[0], self._by_ratios[rest][0]
        return None

    def _explains(self, coefficients: dict[tuple[int, ...], Fraction], layer: str, operation: str) -> bool:
        return all(
            counts.get((layer, operation), 0)
            == sum(factor * prod(len(probe[group]) for group in groups) for groups, factor in coefficients.items())
            for counts, probe in zip(self._full_series, self._probes, strict=True)
        )

    def product(self, keys: Sequence[tuple[str, str]], value: int) -> dict[tuple[int, ...], Fraction]:
        """`value` at full width, proportional to the sizes of the axes `keys`, as products of groups' units."""
        coefficient = Fraction(value)
        expanded: dict[tuple[int, ...], Fraction] = {(): Fraction(1)}
        for key in keys:
            coefficient /= self.sizes[key][0]
            constant, parts = self.forms[key]
            factors = [((), constant), *(((group,), k) for group, k in parts.items())]
            product: dict[tuple[int, ...], Fraction] = defaultdict(Fraction)
            for groups, left in expanded.items():
                for more, right in factors:
                    product[tuple(sorted((*groups, *more)))] += left * right
            expanded = product
        return {groups: factor * coefficient for groups, factor in expanded.items() if factor}

    def _by_difference(self, layer: str, operation: str) -> dict[tuple[int, ...], Fraction]:
        """A count that mixes several axes, such as two poolings in one forward: linear, one unit at a time."""
        if self._slopes is None:
            self._slopes = {}
            for index, group in enumerate(self.table.groups):
                kept: list[IntArray | None] = [None] * len(self.table.groups)
                kept[index] = np.arange(group.units - 1)
                if group.units > group.least_units:
                    slim = slice_layers(self.model, kept_positions(self.table.axes, kept), share=True)
                    less, _ = counts_of(slim, self.example)
                    self._slopes[index] = {key: self.full[key] - less.get(key, 0) for key in self.full}
        slopes = {index: slope for index, counts in self._slopes.items() if (slope := counts[layer, operation])}
        constant = self.full[layer, operation] - sum(
            slope * self.table.groups[index].units for index, slope in slopes.items()
        )
        return {(): Fraction(constant), **{(index,): Fraction(slope) for index, slope in slopes.items()}}


def _form(axis: Axis) -> Form:
    """The axis' size as a function of the groups' units."""
    parts = {}
    for group, (_, units) in axis.by_group.items():
        positions_per_unit = np.bincount(units)
        assert (positions_per_unit == positions_per_unit[0]).all(), f"units of {axis} differ in size"
        parts[group] = int(positions_per_unit[0])
    return int((axis.groups < 0).sum()), parts


def _ratios(series: Sequence[int]) -> tuple[Fraction, ...]:
    return tuple(Fraction(value, series[0]) for value in series)


def _random_units(group: WidthGroup, rng: np.random.Generator) -> IntArray:
    """The first few units, at most half of them where that is possible: narrow networks are counted quickly."""
    return np.arange(int(rng.integers(group.least_units, max(group.units // 2, group.least_units) + 1)))


def _parameters(model: nn.Module, table: GroupTable) -> list[tuple[str, nn.Parameter, list[tuple[str, str]]]]:
    """Each parameter once, with its layer and the axes that slice it."""
    by_layer: dict[str, list[Axis]] = defaultdict(list)
    for axis in table.axes:
        by_layer[axis.layer].append(axis)
    layers = dict(model.named_modules())
    found = []
    for name, parameter in model.named_parameters():
        layer, _, attribute = name.rpartition(".")
        axes = [axis.key for axis in by_layer[name]]  # a bare parameter
        axes += [axis.key for axis in by_layer[layer] if attribute in dict(axis_tensors(layers[layer], axis.side))]
        found.append((layer, parameter, axes))
    return found
