from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from nni_cafenet import UnsupportedModel
from nni_cafenet.tracing.example import Example, output_tensors


def test_the_first_image_cuts_the_batch_of_every_tensor_that_has_it() -> None:
    inputs = (torch.zeros(4, 3, 8, 8), {"boxes": torch.zeros(4, 2), "scale": torch.zeros(7)}, 5)
    example = Example(inputs)
    assert example.batch == 4
    assert [tuple(tensor.shape) for tensor in example.first_image().tensors] == [(1, 3, 8, 8), (1, 2), (7,)]
    assert [tuple(tensor.shape) for tensor in example.tensors] == [(4, 3, 8, 8), (4, 2), (7,)]
    assert example.first_image().args[2] == 5


def test_casting_leaves_integers_alone() -> None:
    doubled = Example({"x": torch.zeros(2, 3), "index": torch.zeros(2, dtype=torch.long)}).double()
    assert [tensor.dtype for tensor in doubled.tensors] == [torch.float64, torch.int64]


@pytest.mark.parametrize("structure", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"input": x}])
def test_a_model_is_called_as_its_inputs_say(structure: Callable[[torch.Tensor], Any]) -> None:
    images = torch.randn(2, 3)
    assert torch.equal(Example(structure(images)).run(nn.ReLU()), images.relu())


def test_an_example_without_a_tensor_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="example_inputs holds no tensor, but got str: give a tensor of shape"):
        Example("image.png")


def test_outputs_are_the_floating_point_tensors_in_a_fixed_order() -> None:
    @dataclass
    class Out:
        scores: torch.Tensor
        labels: torch.Tensor
        name: str

    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    labels = torch.zeros(4, dtype=torch.long)
    found = output_tensors({"x": [a, (b, None)], "out": Out(c, labels, "n"), "labels": labels})
    assert sorted(tensor.shape[0] for tensor in found) == [1, 2, 3]
    again = output_tensors({"x": [a, (b, None)], "out": Out(c, labels, "n"), "labels": labels})
    assert [id(tensor) for tensor in again] == [id(tensor) for tensor in found]
