"""The example inputs: called with, copied, cut to one image and cast, whatever their structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from nni_cafenet.errors import UnsupportedModel


class Example:
    """Inputs for one forward of a model: a tensor, a tuple or list of positional ones, or a dict of keyword ones."""

    def __init__(self, inputs: Any) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if isinstance(inputs, dict):
            self.kwargs = dict(inputs)
        elif isinstance(inputs, (tuple, list)):
            self.args = tuple(inputs)
        else:
            self.args = (inputs,)
        if not self.tensors:
            raise UnsupportedModel(
                f"example_inputs holds no tensor, but got {type(inputs).__name__}: give a tensor of shape "
                f"(N, C, H, W), a tuple of positional inputs or a dict of keyword inputs"
            )

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, torch.Tensor)]

    @property
    def batch(self) -> int:
        """N, the first dimension of the first tensor."""
        first = self.tensors[0]
        return first.shape[0] if first.dim() else 1

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Example:
        """The same structure with every tensor changed."""
        return self._with(pytree.tree_map_only(torch.Tensor, change, (self.args, self.kwargs)))

    @staticmethod
    def _with(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Example:
        example = Example.__new__(Example)
        example.args, example.kwargs = arguments
        return example

    def first_image(self) -> Example:
        """The same with a batch of one: lists of images, as detectors take, and tensors of N entries keep the first."""
        batch = self.batch

        def first(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return value[:1] if value.dim() and value.shape[0] == batch else value
            return value[:1] if _is_list_of_images(value) else value

        def is_leaf(value: Any) -> bool:
            return isinstance(value, torch.Tensor) or _is_list_of_images(value)

        return self._with(pytree.tree_map(first, (self.args, self.kwargs), is_leaf=is_leaf))

    def twice(self) -> Example:
        """An example of one image, as a batch of two: BatchNorm in train mode wants several values."""
        return self.map(lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() and len(tensor) == 1 else tensor)

    def cropped(self, pixels: int) -> Example:
        """The same with images (and videos) of at most so many pixels in height and in width."""
        return self.map(lambda tensor: tensor[..., :pixels, :pixels] if tensor.dim() >= 4 else tensor)

    def double(self) -> Example:
        """The same in float64, but for integer inputs."""
        return self.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)

    def run(self, model: nn.Module) -> Any:
        """model(inputs)."""
        return model(*self.args, **self.kwargs)


def _is_list_of_images(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, torch.Tensor) and one.dim() == 3 for one in value)
    )


def output_tensors(output: Any) -> list[torch.Tensor]:
    """Every floating-point tensor of a model's output, in a fixed order."""
    leaves = pytree.tree_leaves(_plain(output))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def _plain(output: Any) -> Any:
    # output classes that pytree does not know (dataclasses, and dicts of another type)
    if hasattr(output, "__dataclass_fields__"):
        return {name: _plain(getattr(output, name)) for name in output.__dataclass_fields__}
    if isinstance(output, dict):
        return {key: _plain(value) for key, value in output.items()}
    return output
