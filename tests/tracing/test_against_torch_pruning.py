"""torch-pruning's dependency graph, which follows autograd, as an independent witness of what we see operations do.

Both say which channels of which layers go when some channels of one layer go. A norm and a depthwise convolution have
one axis with us, and an "in" and an "out" side that are cut alike with torch-pruning.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
import pytest
import torch
import torch_pruning
import torchvision
from torch import nn
from torch_pruning.pruner import function

from nni_cafenet import SearchSpace, WidthGroup, build_space
from nni_cafenet.layers import CONVOLUTION, NORMS_PER_CHANNEL
from tests.models import NETWORKS, example, make

SMALL = ["plain", "residual", "depthwise", "concat", "flatten", "squeeze_excite"]
CLASSIC = ["resnet18", "mobilenet_v2", "densenet121"]

Reached = dict[tuple[str, str], set[int]]  # (layer, side) -> channels


@cache
def network(name: str) -> tuple[nn.Module, SearchSpace, torch_pruning.DependencyGraph]:
    if name in SMALL:
        model, images = make(NETWORKS[name]), example(1)
    else:
        model = make(lambda: getattr(torchvision.models, name)(num_classes=10))
        images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.eval()
    space = build_space(model, images)
    return model, space, torch_pruning.DependencyGraph().build_dependency(model, example_inputs=images)


def by_torch_pruning(name: str, group: WidthGroup, channels: list[int]) -> Reached:
    """What goes with `channels` of the layer that gave the group its name."""
    model, _, graph = network(name)
    layers = dict(model.named_modules())
    names = {layer: name for name, layer in layers.items()}
    root = layers[group.name]
    cut = function.PrunerBox[torch_pruning.ops.module2type(root)].prune_out_channels
    found: Reached = defaultdict(set)
    for dependency, positions in graph.get_pruning_group(root, cut, channels):
        layer = dependency.target.module
        if layer not in names:
            continue  # an operation: a concat, a view
        assert isinstance(layer, (CONVOLUTION, nn.Linear, *NORMS_PER_CHANNEL)), layer
        one_axis = isinstance(layer, NORMS_PER_CHANNEL) or getattr(layer, "groups", 1) > 1
        side = "in" if graph.is_in_channel_pruning_fn(dependency.handler) and not one_axis else "out"
        found[names[layer], side].update(positions)
    return found


def by_us(name: str, index: int, units: np.ndarray) -> Reached:
    """The positions of these units of a group, on every axis that holds any."""
    _, space, _ = network(name)
    positions = {axis.key: np.flatnonzero((axis.groups == index) & np.isin(axis.units, units)) for axis in space.axes}
    return {key: set(here.tolist()) for key, here in positions.items() if here.size}


@pytest.mark.parametrize("name", [*SMALL, *CLASSIC])
def test_a_whole_group_reaches_the_same_layers_and_channels(name: str) -> None:
    _, space, _ = network(name)
    assert space.groups
    for index, group in enumerate(space.groups):
        ours = by_us(name, index, np.arange(group.units))
        root = sorted(ours[group.name, "out"])
        assert len(root) == group.channels
        theirs = by_torch_pruning(name, group, root)
        assert {f"{layer}.{side}" for layer, side in theirs} == set(group.members)
        assert theirs == ours


@pytest.mark.parametrize("name", [*SMALL, "resnet18", "mobilenet_v2"])
def test_some_units_reach_the_same_channels(name: str) -> None:
    """So not only the layers agree, but which of their channels belong together."""
    _, space, _ = network(name)
    rng = np.random.default_rng(0)
    for index, group in enumerate(space.groups):
        units = rng.choice(group.units, size=max(group.units // 2, 1), replace=False)
        ours = by_us(name, index, units)
        assert by_torch_pruning(name, group, sorted(ours[group.name, "out"])) == ours
