"""How is a model space written by hand, whose layers have nni.choice widths, searched like any other model?

NNI makes the network of the largest choices, of which build_space finds out what its channels do; each choice then is a
width of the groups that it decides, as NNI's own frozen networks show. What NNI would freeze and what is sliced are
compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from nni.mutable import Mutable
from nni.nas.nn.pytorch import ModelSpace, MutableModule, ParametrizedModule
from torch import nn
from torch.utils import _pytree as pytree

from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.export.slicing import slice_model
from nni_cafenet.layers import axis_size
from nni_cafenet.nas.model_space import Sample, WidthModelSpace
from nni_cafenet.space import SearchSpace
from nni_cafenet.tied import Tie, tied
from nni_cafenet.tracing.build import build_space
from nni_cafenet.tracing.example import Example, output_tensors
from nni_cafenet.widths import SubNetwork, Widths

CHANNELS = (  # arguments of torch's layers that are numbers of channels, or follow from them
    "out_channels", "out_features", "num_features", "num_channels", "num_parameters", "normalized_shape",
    "in_channels", "in_features", "groups", "num_groups",
)  # fmt: skip
COMPARED = 3  # random samples for which what is sliced is held against what NNI freezes

Decided = Mapping[str, tuple[str, tuple[int, ...]]]  # layer -> its choice, and its channels at each width


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
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    several = isinstance(inputs, (tuple, list)) and all(isinstance(one, torch.Tensor) for one in inputs)
    if not (isinstance(inputs, torch.Tensor) or (several and inputs)):
        raise TypeError(
            f"CafeNet needs to know what {type(model_space).__name__} takes, and a training batch of the evaluator "
            f"starts with a {type(inputs).__name__} instead of a tensor, or a list of them: give NasExperiment "
            f"ChoiceModelSpace(space, example_inputs), of nni_cafenet.nas.choices"
        )
    # one argument, as NNI's evaluators call a model, also where it is a list
    return ChoiceModelSpace(model_space, (pytree.tree_map(lambda tensor: tensor[:1], inputs),))


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
        listed = {label: list(getattr(mutable, "values", ())) for label, mutable in choices.items()}
        if endless := [label for label, values in listed.items() if not values]:
            raise UnsupportedModel(_no_width(endless, "has no list of values"))
        self.constants = {label: values[0] for label, values in listed.items() if len(values) == 1}
        if len(self.constants) == len(listed):
            raise UnsupportedModel(
                f"{type(written).__name__} has no nni.choice of several values: give its layers some, or search every "
                f"width of it by WidthModelSpace(factory, example_shape=...)"
            )
        _check_uses(written, self.constants)
        order, decided = _ascending(written, listed)
        self.values = tuple(order.values())
        self.net = written.freeze(self.constants | {label: values[-1] for label, values in order.items()})
        self.space = _space_of(self.net, example_inputs, order, decided)
        self.best: dict[Widths, SubNetwork] = {}
        for mutable in choices.values():
            self.add_mutable(mutable)
        self._compare(Example(example_inputs).first_image())

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
        return self.constants | {group.name: values[width - 1] for group, values, width in chosen}

    def _compare(self, example: Example) -> None:
        """Raise UnsupportedModel where NNI freezes another network than is sliced."""
        rng = np.random.default_rng(0)
        drawn = [self.space.sample(rng).widths for _ in range(COMPARED)]
        for widths in (self.space.smallest, *drawn):
            sample = self.sample_of(widths)
            slim = slice_model(self.net, self.space, SubNetwork.fixed(widths)).eval()
            frozen = self.written.freeze(sample).eval()
            ours = _described(slim)
            for name, theirs in _described(frozen).items():
                if ours.get(name) != theirs:
                    raise UnsupportedModel(
                        f"with {sample} {name} is {theirs} as NNI freezes it, and {ours.get(name)} as it is sliced: "
                        f"give every layer that carries these channels the same nni.choice, or freeze it first"
                    )
            frozen.load_state_dict(slim.state_dict())
            with torch.no_grad():
                outputs = zip(output_tensors(example.run(slim)), output_tensors(example.run(frozen)), strict=True)
            if not all(torch.allclose(own, other, rtol=1e-4, atol=1e-5, equal_nan=True) for own, other in outputs):
                raise UnsupportedModel(
                    f"with {sample} the network as NNI freezes it gives other outputs than as it is sliced, with the "
                    f"same weights: a choice decides more than channels, in a module of its own; freeze it first"
                )


def _check_uses(written: ModelSpace, constants: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel where a choice decides what a module is, or of one of torch's more than its channels."""
    for name, module in written.named_modules():
        if isinstance(module, ParametrizedModule):
            if not getattr(module._bound_type, "__module__", "").startswith("torch.nn"):
                continue  # somebody's own arguments: what they decide is seen in what NNI freezes
            arguments = {**dict(enumerate(module.trace_args)), **module.trace_kwargs}
            uses = [(f"argument {key}" if isinstance(key, int) else key, of) for key, of in arguments.items()]
        elif isinstance(module, MutableModule) and not isinstance(module, ModelSpace):
            uses = [("what to run", mutable) for mutable in module.mutables]
        else:
            continue
        for use, mutable in uses:
            if (
                isinstance(mutable, Mutable)
                and use not in CHANNELS
                and (labels := mutable.simplify().keys() - constants)
            ):
                raise UnsupportedModel(_no_width(labels, f"decides {use} of {name} ({type(module).__name__})"))


def _no_width(labels: Iterable[str], what: str) -> str:
    return (
        f"the choice {', '.join(map(repr, sorted(labels)))} {what}, and CafeNet searches widths alone: put one of its "
        f"values there, or freeze it first"
    )


def _described(net: nn.Module) -> dict[str, str]:
    """Torch's own layers in words, and the shapes of all tensors, by name."""
    layers = {
        name: repr(layer)
        for name, layer in net.named_modules()
        if type(layer).__module__.startswith("torch.nn") and not any(layer.children())
    }
    return layers | {name: f"of shape {tuple(tensor.shape)}" for name, tensor in net.state_dict().items()}


def _ascending(written: ModelSpace, listed: Mapping[str, list[Any]]) -> tuple[dict[str, list[Any]], Decided]:
    """The values of every choice that has several, from the fewest channels to the most, and what they decide.

    Raises:
        UnsupportedModel: a choice decides no channels or which layers there are, or a layer's channels depend on
            several choices, or do not rise with the one.
    """
    several = {label: values for label, values in listed.items() if len(values) > 1}
    last = {label: values[-1] for label, values in listed.items()}
    largest = _sizes(written.freeze(last))
    deciders: dict[str, str] = {}  # of a layer
    for label, values in several.items():
        sizes = _sizes(written.freeze({**last, label: values[0]}))
        if sizes.keys() != largest.keys():
            raise UnsupportedModel(_no_width([label], "decides which layers there are"))
        if sizes == largest:
            raise UnsupportedModel(_no_width([label], "decides no layer's number of channels"))
        for name in (name for name, size in sizes.items() if size != largest[name]):
            if deciders.setdefault(name, label) != label:
                raise UnsupportedModel(
                    f"the channels of {name} depend on several choices, {deciders[name]!r}, {label!r}: give it a "
                    f"choice of its own"
                )
    # every choice at its first value, then at its second, and so on: networks are made only as often as this takes
    steps = range(max(map(len, several.values())))
    diagonal = [
        _sizes(written.freeze(last | {label: values[min(step, len(values) - 1)] for label, values in several.items()}))
        for step in steps
    ]
    order: dict[str, list[Any]] = {}
    decided: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, label in deciders.items():
        values = several[label]
        counts = [sizes.get(name, 0) for sizes in diagonal[: len(values)]]
        if len(set(counts)) < len(counts) or min(counts) < 1:
            raise UnsupportedModel(
                f"the choice {label!r} gives {name} {counts} channels: its values must give different numbers of them, "
                f"1 or more"
            )
        ascending = [values[place] for place in np.argsort(counts)]
        if order.setdefault(label, ascending) != ascending:
            raise UnsupportedModel(
                f"the choice {label!r} makes some layers wider and others narrower: CafeNet searches choices that make "
                f"layers wider or narrower together"
            )
        decided[name] = label, tuple(sorted(counts))
    return {label: order[label] for label in several}, decided


def _sizes(net: nn.Module) -> dict[str, int]:
    """The channels that each layer of torch makes."""
    sizes = {name: axis_size(layer, "out") for name, layer in net.named_modules()}
    return {name: size for name, size in sizes.items() if size is not None}


def _space_of(net: nn.Module, example_inputs: Any, order: Mapping[str, list[Any]], decided: Decided) -> SearchSpace:
    """The space of `net` with the groups tied by the choices that decide them."""
    ignored = "named in ignore="
    why_ignored = "it carries the channels of a layer without a choice"
    try:
        space = build_space(net, example_inputs, ignore=[name for name in _sizes(net) if name not in decided])
    except UnsupportedModel as error:
        why = str(error).replace(ignored, why_ignored)
        labels = ", ".join(map(repr, order))
        raise UnsupportedModel(f"the choices {labels}, at their largest values, cannot be searched: {why}") from error
    held = {part.layer: part.reason.replace(ignored, why_ignored) for part in space.frozen}
    by_label: dict[str, dict[int, tuple[int, ...]]] = {label: {} for label in order}
    deciders: dict[int, dict[str, str]] = defaultdict(dict)  # of a group: label -> a layer
    for axis in space.axes:
        if axis.side != "out" or axis.layer not in decided:
            continue
        label, counts = decided[axis.layer]
        if (axis.groups < 0).any() or len(axis.by_group) > 1:
            why = held.get(axis.layer, "it carries channels of several widths")
            raise UnsupportedModel(f"the choice {label!r} decides {axis.layer}, which cannot have its own width: {why}")
        (group,) = axis.by_group
        deciders[group][label] = axis.layer
        known = by_label[label].setdefault(group, counts)
        if len(deciders[group]) > 1 or known != counts:
            layers = ", ".join(f"{layer} ({label!r})" for label, layer in deciders[group].items())
            raise UnsupportedModel(f"{layers} share their channels, but not their choice: give them the same one")
    for name, (label, _) in decided.items():
        if name in held:
            raise UnsupportedModel(f"the choice {label!r} decides {name}, which must keep its width: {held[name]}")
    try:
        return tied(space, [Tie(label, groups) for label, groups in by_label.items()])
    except ValueError as error:
        raise UnsupportedModel(f"the choices cannot be searched: {error}") from error
