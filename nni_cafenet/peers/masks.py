"""Which sub-network do the masks of NNI's pruners stand for?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from nni_cafenet.errors import InvalidChoice, UnsupportedModel, nearest
from nni_cafenet.layers import CONVOLUTION, axis_size, axis_tensors
from nni_cafenet.peers.choice import BoolArray, reason, some_of, subnetwork_of
from nni_cafenet.space import SearchSpace
from nni_cafenet.widths import SubNetwork, WidthGroup

LayerMasks = Mapping[str, torch.Tensor | None]  # by the parameter's name, of its shape; NNI has None for no parameter


def from_masks(
    model: nn.Module, space: SearchSpace, masks: Mapping[str, LayerMasks], *, merge: bool = False, round: bool = False
) -> SubNetwork:
    """The sub-network that keeps what `masks`, as NNI's pruners give them, keep.

    A layer's mask drops an output channel where it is 0 throughout, in the weight and, where that is masked, the bias.
    Layers that share channels must drop the same ones. Norms, depthwise and grouped convolutions without a mask follow
    the others; a convolution or linear layer without one keeps all of its channels, if another such layer is masked.

    Args:
        model: the one that `space` was built from, also where NNI's pruner has wrapped its layers.
        masks: by layer, such as ``L1NormPruner(...).compress()[1]``.
        merge: where layers that share channels disagree, drop what all of them drop, as NNI's ModelSpeedup does, and
            nothing of what the space holds at full width, instead of raising an error.
        round: where a group's bins cannot keep exactly these channels, take the nearest width, in the bins of which
            most is kept, instead of raising an error. In ``rebin(space, SingleChannels())`` there is hardly a need.

    Raises:
        InvalidChoice: single weights or inputs are masked instead of whole output channels, layers disagree, a layer
            is unknown or holds its width, or the bins do not allow it. The message says which.
    """
    layers = dict(model.named_modules())
    axes = {axis.layer: axis for axis in space.axes if axis.side == "out"}
    for name in axes:
        if name not in layers or axis_size(layers[name], "out") != axes[name].size:
            raise UnsupportedModel(f"{name!r} is not as the space has it: pass the model that the space was built from")
    votes: list[dict[str, BoolArray]] = [{} for _ in space.groups]  # by group and layer: the units that it keeps
    faults: list[str] = []
    for name, own in masks.items():
        if name not in layers:
            raise InvalidChoice(f"masks= names {name!r}, which the model does not have; {nearest(name, layers)}")
        kept = _kept_channels(name, layers[name], own)
        if kept is None:
            continue
        axis = axes.get(name)
        held = ~kept if axis is None else ~kept & (axis.groups < 0)
        if held.any():
            faults.append(f"{name} drops {held.sum()} channels that the space holds at full width{reason(space, name)}")
        for group, (here, units) in {} if axis is None else axis.by_group.items():
            votes[group][name] = np.zeros(space.groups[group].units, dtype=bool)
            votes[group][name][units[kept[here]]] = True
            if (votes[group][name][units] != kept[here]).any():
                faults.append(f"{name} drops a part of {space.groups[group].unit} channels that only go together")
    makers = [name for name in axes if _makes_channels(layers[name])]
    for group, cast in enumerate(votes):
        if any(name in cast for name in makers):
            silent = (name for name in makers if name not in cast and group in axes[name].by_group)
            cast.update({name: np.ones(space.groups[group].units, dtype=bool) for name in silent})
        faults += _disagreement(space.groups[group], cast)
    if faults and not merge:
        raise InvalidChoice(
            f"these masks are no sub-network: {some_of(faults)}: mask the layers that share channels alike, or pass "
            f"merge=True to drop only what all of them drop, as NNI's ModelSpeedup does"
        )
    kept_units = [np.logical_or.reduce(list(cast.values())) if cast else None for cast in votes]
    return subnetwork_of(space, kept_units, round=round)


def _makes_channels(layer: nn.Module) -> bool:
    """Whether a layer's output channels are new ones; norms and convolutions of several groups pass theirs on."""
    return isinstance(layer, (CONVOLUTION, nn.Linear)) and getattr(layer, "groups", 1) == 1


def _kept_channels(name: str, layer: nn.Module, masks: LayerMasks) -> BoolArray | None:
    """Which output channels stay, shape (channels,); None where the masks drop nothing."""
    dims = dict(axis_tensors(layer, "out"))
    given = {own: mask.detach().cpu() != 0 for own, mask in masks.items() if mask is not None}
    dropping = {own: mask for own, mask in given.items() if not mask.all()}
    if not dropping and "weight" not in given:
        return None
    kept: BoolArray | None = None
    for own, mask in given.items():
        if own not in dims:
            if own in dropping:
                raise InvalidChoice(
                    f"the mask of {own!r} of {name} ({type(layer).__name__}) cannot be read: only those of the weights "
                    f"and biases of layers with output channels can"
                )
            continue
        if mask.shape != (shape := getattr(layer, own).shape):
            raise InvalidChoice(f"the mask of {name}.{own} has shape {tuple(mask.shape)} instead of {tuple(shape)}")
        rows = mask.movedim(dims[own], 0).reshape(mask.shape[dims[own]], -1)
        if not (rows.all(1) | ~rows.any(1)).all():
            raise InvalidChoice(
                f"the mask of {name} drops single weights or input channels: only whole output channels can be "
                f"read, which pruners such as NNI's L1NormPruner drop by default, and LevelPruner does not"
            )
        stays = rows.any(1).numpy()
        kept = stays if kept is None else kept | stays
    if "weight" not in dropping:  # a bias without its weight drops no channel
        return None if kept is None else np.ones_like(kept)
    return kept


def _disagreement(group: WidthGroup, votes: Mapping[str, BoolArray]) -> list[str]:
    """What is to be said of layers that do not keep the same units."""
    if len({units.tobytes() for units in votes.values()}) < 2:
        return []
    common = np.logical_or.reduce(list(votes.values()))
    drops = some_of([f"{name} drops {(~units).sum() * group.unit}" for name, units in votes.items()], ", ")
    return [
        f"of the {group.channels} channels that they share, {drops}, and all of them the same "
        f"{(~common).sum() * group.unit} (group {group.name})"
    ]
