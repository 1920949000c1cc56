"""How is a model space written by hand, whose layers have nni.choice widths, searched like any other model?

NNI makes the network of the largest choices, of which build_space finds out what its channels do; each choice then is a
width of the groups that it decides. What NNI would freeze and what is sliced are compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from nni.mutable import Mutable
from nni.nas.nn.pytorch import ModelSpace
from torch import nn

from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.export.slicing import slice_model
from nni_cafenet.layers import axis_size
from nni_cafenet.nas.model_space import Sample, WidthModelSpace
from nni_cafenet.space import SearchSpace
from nni_cafenet.tied import Tie, tied
from nni_cafenet.tracing.build import build_space
from nni_cafenet.widths import SubNetwork, Widths

MAKES = ("out_channels", "out_features", "num_features", "num_channels", "num_parameters")  # a layer's own channels
READS = ("in_channels", "in_features", "groups")  # what follows from others'
COMPARED = 3  # random samples for which what is sliced is held against what NNI freezes


def as_width_space(model_space: Any, first_batch: Callable[[], Any]) -> WidthModelSpace:
    """`model_space`, if it is a WidthModelSpace, or the ChoiceModelSpace of one that was written by hand.

    Args:
        first_batch: gives a training batch, whose first image is the example of a hand-written space.

    Raises:
        TypeError: it is no model space.
        UnsupportedModel: see ChoiceModelSpace.
    """
    if isinstance(model_space, WidthModelSpace):
        return model_space
    if not isinstance(model_space, ModelSpace):
        raise TypeError(
            f"CafeNet searches the widths of a model space, but got a {type(model_space).__name__}: give NasExperiment "
            f"a WidthModelSpace(factory, kwargs=..., example_shape=...), which makes one of any network"
        )
    batch = first_batch()
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(inputs, torch.Tensor):
        raise TypeError(
            f"CafeNet needs to know what {type(model_space).__name__} takes, and a training batch of the evaluator "
            f"starts with a {type(inputs).__name__} instead of a tensor: give NasExperiment "
            f"ChoiceModelSpace(space, example_inputs)"
        )
    return ChoiceModelSpace(model_space, inputs[:1])


class ChoiceModelSpace(WidthModelSpace):
    """The widths of a hand-written model space: MutableConv2d, MutableLinear, ... with nni.choice numbers of channels.

    A choice may decide several layers, directly or by an expression such as ``width * 2``. Samples are the space's own:
    the values chosen, by label. CafeNet makes one of any hand-written space that it is given, with a batch of the
    evaluator as the example.

    Args:
        written: the space; left as it is.
        example_inputs: what the forward takes, see build_space.

    Raises:
        UnsupportedModel: a choice is no width (as of a layer, a depth or a kernel), does not decide widths alone, or
            decides layers that must keep theirs, or have the channels of another choice. The message names it.
    """

    def __init__(self, written: ModelSpace, example_inputs: Any) -> None:
        super(WidthModelSpace, self).__init__()
        self._written = (written,)  # in a tuple, for its layers are no part of what is trained
        choices = written.simplify()
        if not choices:
            raise UnsupportedModel(
                f"{type(written).__name__} has no nni.choice: give its layers some, or search every width of it by "
                f"WidthModelSpace(factory, example_shape=...)"
            )
        made = _made_channels(written, choices)
        order = {label: _ascending(label, mutable, made) for label, mutable in choices.items()}
        self.values = tuple(order.values())
        self.net = written.freeze({label: values[-1] for label, values in order.items()})
        self.space = _space_of(self.net, example_inputs, order, made)
        self.best: dict[Widths, SubNetwork] = {}
        for mutable in choices.values():
            self.add_mutable(mutable)
        self._compare()

    @property
    def written(self) -> ModelSpace:
        return self._written[0]

    def widths_of(self, sample: Sample) -> Widths:
        self.validate(sample)
        groups = zip(self.space.groups, self.values, strict=True)
        return Widths(tuple(1 + values.index(sample[group.name]) for group, values in groups))

    def sample_of(self, widths: Widths) -> dict[str, Any]:
        """The choices that `widths` stand for, by label."""
        chosen = zip(self.space.groups, self.values, widths.bins_kept, strict=True)
        return {group.name: values[width - 1] for group, values, width in chosen}

    def _compare(self) -> None:
        """Raise UnsupportedModel where NNI freezes layers of other sizes than are sliced."""
        rng = np.random.default_rng(0)
        drawn = [self.space.sample(rng).widths for _ in range(COMPARED)]
        for widths in (self.space.smallest, *drawn):
            sample = self.sample_of(widths)
            slim = dict(slice_model(self.net, self.space, SubNetwork.fixed(widths)).named_parameters())
            for name, parameter in self.written.freeze(sample).named_parameters():
                if slim[name].shape != parameter.shape:
                    raise UnsupportedModel(
                        f"with {sample} {name} has shape {tuple(parameter.shape)} as NNI freezes it, and "
                        f"{tuple(slim[name].shape)} as it is sliced: give every layer that carries these channels the "
                        f"same nni.choice, or freeze it first"
                    )


def _made_channels(written: ModelSpace, choices: Mapping[str, Mutable]) -> dict[str, Mutable | int]:
    """The channels that each layer makes, as an expression of the choices, or a number.

    Raises:
        UnsupportedModel: a choice is used for something else, or for nothing that is a width.
    """
    made: dict[str, Mutable | int] = {}
    used: set[str] = set()
    for name, layer, arguments in _layers(written):
        for argument, value in arguments.items():
            if isinstance(value, Mutable):
                labels = sorted(value.simplify())
                used.update(labels)
                if argument not in (*MAKES, *READS):
                    raise UnsupportedModel(_no_width(labels, f"decides {argument} of {name} ({type(layer).__name__})"))
        found = [arguments[argument] for argument in MAKES if argument in arguments]
        if found:
            made[name] = found[0]
    others = [label for label in choices if label not in used]
    if others:
        raise UnsupportedModel(_no_width(others, "decides no layer's number of channels"))
    return made


def _no_width(labels: list[str], what: str) -> str:
    return (
        f"the choice {', '.join(map(repr, labels))} {what}, and CafeNet searches widths alone: put one of its values "
        f"there, or freeze it first"
    )


def _layers(written: ModelSpace) -> Iterator[tuple[str, nn.Module, Mapping[str, Any]]]:
    """The layers with the arguments that they were made with."""
    for name, layer in written.named_modules():
        arguments = getattr(layer, "args", None)
        if name and isinstance(arguments, Mapping):
            yield name, layer, arguments


def _ascending(label: str, mutable: Mutable, made: Mapping[str, Mutable | int]) -> list[Any]:
    """The values of a choice, from the fewest channels to the most.

    Raises:
        UnsupportedModel: a layer's channels depend on other choices too, or do not rise with this one.
    """
    values = list(getattr(mutable, "values", ()))
    orders = []
    for name, channels in made.items():
        if not isinstance(channels, Mutable) or label not in (labels := channels.simplify()):
            continue
        if len(labels) > 1:
            raise UnsupportedModel(
                f"the channels of {name} depend on several choices, {', '.join(map(repr, labels))}: give it a choice "
                f"of its own"
            )
        counts = [channels.freeze({label: value}) for value in values]
        if len(set(counts)) < len(counts) or not all(isinstance(count, int) and count > 0 for count in counts):
            raise UnsupportedModel(
                f"the choice {label!r} gives {name} {counts} channels: its values must give different numbers of them"
            )
        orders.append([values[place] for place in np.argsort(counts)])
    if not orders or any(order != orders[0] for order in orders):
        raise UnsupportedModel(
            f"the choice {label!r} "
            + ("makes some layers wider and others narrower" if orders else "decides the inputs of layers alone")
            + ": CafeNet searches choices that make layers wider or narrower together"
        )
    return orders[0]


def _space_of(
    net: nn.Module, example_inputs: Any, order: Mapping[str, list[Any]], made: Mapping[str, Mutable | int]
) -> SearchSpace:
    """The space of `net` with the groups tied by the choices that decide them."""
    decided = {name: channels for name, channels in made.items() if isinstance(channels, Mutable)}
    fixed = [name for name, layer in net.named_modules() if name not in decided and axis_size(layer, "out") is not None]
    space = build_space(net, example_inputs, ignore=fixed)
    held = {part.layer: part.reason for part in space.frozen}
    by_label: dict[str, dict[int, tuple[int, ...]]] = {label: {} for label in order}
    deciders: dict[int, dict[str, str]] = defaultdict(dict)  # of a group: label -> a layer
    for axis in space.axes:
        if axis.side != "out" or axis.layer not in decided:
            continue
        ((label, _),) = decided[axis.layer].simplify().items()
        counts = [decided[axis.layer].freeze({label: value}) for value in order[label]]
        if (axis.groups < 0).any() or len(axis.by_group) > 1:
            why = held.get(axis.layer, "it carries channels of several widths")
            raise UnsupportedModel(f"the choice {label!r} decides {axis.layer}, which cannot have its own width: {why}")
        (group,) = axis.by_group
        deciders[group][label] = axis.layer
        known = by_label[label].setdefault(group, tuple(counts))
        if len(deciders[group]) > 1 or known != tuple(counts):
            layers = ", ".join(f"{layer} ({label!r})" for label, layer in deciders[group].items())
            raise UnsupportedModel(f"{layers} share their channels, but not their choice: give them the same one")
    for name, channels in decided.items():
        if name in held:
            labels = ", ".join(map(repr, channels.simplify()))
            raise UnsupportedModel(f"the choice {labels} decides {name}, which must keep its width: {held[name]}")
    try:
        return tied(space, [Tie(label, groups) for label, groups in by_label.items()])
    except ValueError as error:
        raise UnsupportedModel(f"the choices cannot be searched: {error}") from error
