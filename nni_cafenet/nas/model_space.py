"""How does any model's SearchSpace look to NNI: one nni.choice of channels a width group, frozen by slicing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import nni
import torch
from nni.nas.nn.pytorch import ModelSpace
from torch import nn

from nni_cafenet.export.slicing import slice_model
from nni_cafenet.space import SearchSpace
from nni_cafenet.tracing.bins import BinRule
from nni_cafenet.tracing.build import build_space
from nni_cafenet.widths import SubNetwork, Widths

Sample = Mapping[str, Any]  # NNI's: what was chosen, by label


class WidthModelSpace(ModelSpace):
    """The widths of the model that `factory` makes, as a model space of NNI.

    Every width group is one choice, labelled with the group's name; its values are channel counts. The forward is
    that of the full model. All arguments are recorded, so a trial in another process can make the model again.

    Args:
        factory: makes the model; importable by name where the space is to be serialised. Or the model itself, of which
            a copy with its weights is searched; NNI cannot send one to trials in other processes, only a factory.
        kwargs: what `factory` is called with.
        example_shape: (N, C, H, W) of an input; MACs are counted per image at this size.
        example_inputs: instead of `example_shape`, for models that take something else (see build_space).
        ignore: names or globs of layers whose output channels stay as they are.
        round_to: channel counts are multiples of this.
        min_channels: the least channels that a group keeps.
        min_bin: the bin size of the group with the highest FLOPs sensitivity.
        bins: another rule for the bins, or other bins for some layers (see build_space).

    Attributes:
        net: the full model, whose weights frozen models keep.
        space: its SearchSpace.
        best: the sub-network that stands for widths, where a strategy has found out which does best.

    Raises:
        TypeError: `factory` makes something else than a torch.nn.Module.
        ValueError: not exactly one of `example_shape` and `example_inputs` is given, or the shape is none.
        UnsupportedModel: see build_space.
    """

    def __init__(
        self,
        factory: Callable[..., nn.Module] | nn.Module,
        kwargs: Mapping[str, Any] | None = None,
        *,
        example_shape: Sequence[int] | None = None,
        example_inputs: Any = None,
        ignore: Iterable[str] = (),
        round_to: int = 1,
        min_channels: int = 1,
        min_bin: float = 1,
        bins: BinRule | Mapping[str, BinRule | int] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.space = _build(
            factory, kwargs, example_shape=example_shape, example_inputs=example_inputs,
            ignore=ignore, round_to=round_to, min_channels=min_channels, min_bin=min_bin, bins=bins,
        )  # fmt: skip
        self.best: dict[Widths, SubNetwork] = {}
        for group, cut in zip(self.space.groups, self.space.bins, strict=True):
            self.add_mutable(nni.choice(group.name, list(cut.edges[1:])))

    @classmethod
    def create_fixed_module(cls, sample: Sample, *args: Any, **kwargs: Any) -> nn.Module:
        """What NNI makes of this space inside of a trial: the slim model itself, of the factory's own class."""
        net, space = _build(*args, **kwargs)
        return slice_model(net, space, SubNetwork.fixed(_widths(space, sample)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)

    def freeze(self, sample: Sample) -> nn.Module:
        """The slim model of `sample`: of the factory's class, plain layers, its weights copied from `net`.

        It keeps the bins of the best sub-network known for these widths, and the leftmost ones (the fixed pattern)
        where none is known. BatchNorm statistics are those of `net`: run recalibrate() before evaluating it.

        Raises:
            SampleValidationError: a label is missing, or a number of channels is not among its choices.
        """
        return slice_model(self.net, self.space, self.subnetwork(sample))

    def subnetwork(self, sample: Sample) -> SubNetwork:
        """The sub-network that :meth:`freeze` cuts out."""
        widths = self.widths_of(sample)
        return self.best.get(widths, SubNetwork.fixed(widths))

    def widths_of(self, sample: Sample) -> Widths:
        """The inverse of :meth:`sample_of`; raises SampleValidationError (see :meth:`freeze`)."""
        self.validate(sample)
        return _widths(self.space, sample)

    def sample_of(self, widths: Widths) -> dict[str, int]:
        """`widths` as NNI writes them: channels by label."""
        return self.space.channels(widths)


def _build(
    factory: Callable[..., nn.Module] | nn.Module,
    kwargs: Mapping[str, Any] | None = None,
    *,
    example_shape: Sequence[int] | None = None,
    example_inputs: Any = None,
    **options: Any,
) -> tuple[nn.Module, SearchSpace]:
    if (example_shape is None) == (example_inputs is None):
        raise ValueError(
            "WidthModelSpace needs example_shape=(N, C, H, W), or example_inputs= where the model takes something "
            "else than one tensor, and not both"
        )
    if isinstance(factory, nn.Module):
        if kwargs:
            raise ValueError("kwargs= are for a factory, and this is a model already: leave them out")
        factory = partial(copy.deepcopy, factory)
    net = factory(**(kwargs or {}))
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"factory must make a torch.nn.Module, but {factory!r} made a {type(net).__name__}: "
            f"give the model's class, or a function that returns the model"
        )
    if example_shape is not None:
        whole = isinstance(example_shape, Sequence) and all(isinstance(size, int) for size in example_shape)
        if not whole or min(example_shape, default=0) < 1:
            raise ValueError(f"example_shape must be whole numbers (N, C, H, W), but got {example_shape!r}")
        example_inputs = torch.randn(tuple(example_shape), generator=torch.Generator().manual_seed(0))
        if (parameter := next(net.parameters(), None)) is not None:
            example_inputs = example_inputs.to(parameter)  # its device and precision
    return net, build_space(net, example_inputs, **options)


def _widths(space: SearchSpace, sample: Sample) -> Widths:
    groups = zip(space.groups, space.bins, strict=True)
    return Widths(tuple(bins.edges.index(sample[group.name]) for group, bins in groups))
