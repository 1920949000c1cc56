"""Each operation between two layers: what of the first one's channels goes together, and that slices are right."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import (
    FullyFree,
    SearchSpace,
    SingleChannels,
    SubNetwork,
    Supernet,
    build_space,
    count_macs,
    slice_model,
)
from nni_cafenet.tracing.example import Example
from nni_cafenet.tracing.groups import find_groups
from nni_cafenet.tracing.verify import verified
from tests.models import CLASSES, conv_bn, example, make

CHANNELS = 8
Operation = Callable[[torch.Tensor], torch.Tensor]


class Between(nn.Module):
    """An operation between a stem of 8 channels and a head, which reads the last dimension if it is linear."""

    def __init__(self, operation: Operation | type[nn.Module], reads: int, linear: bool) -> None:
        super().__init__()
        self.stem = conv_bn(3, CHANNELS)
        self.between = operation() if isinstance(operation, type) else operation
        self.head = nn.Linear(reads, 6) if linear else nn.Conv2d(reads, 6, 1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(self.between(F.relu(self.stem(x))))
        if isinstance(self.head, nn.Conv2d):
            return self.fc(x.mean((2, 3)))
        return self.fc(x.flatten(1, -2).mean(1) if x.dim() > 2 else x)


# modules between the two


class PaddedShortcut(nn.Module):
    """ResNet's shortcut without parameters: zeros in the place of new channels."""

    def __init__(self) -> None:
        super().__init__()
        self.other = conv_bn(CHANNELS, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, 0, 0, 0, 0, 4)) + self.other(x)


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(CHANNELS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.weight.view(1, -1, 1, 1)


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nc,cd->nd", x.mean((2, 3)), self.weight)


class Attention(nn.Module):
    """One head, by matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(CHANNELS, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(x, 3).flatten(2).transpose(1, 2)
        query, key = self.query(x), self.key(x)
        return (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(2) @ self.value(x)


class FusedAttention(Attention):
    """Two heads, by torch's own function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(x, 3).flatten(2).transpose(1, 2)
        heads = [layer(x).unflatten(2, (2, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


class MultiheadAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(x, 3).flatten(2).transpose(1, 2)
        return self.attention(x, x, x, need_weights=False)[0]


class Reordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([3, 1, 0, 2, 7, 5, 4, 6]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_select(1, self.order)


class Warped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.rand(1, 5, 5, 2) * 2 - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(x, self.grid.expand(len(x), -1, -1, -1), align_corners=False)


class WarpedByItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(CHANNELS, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(x, self.offsets(x).permute(0, 2, 3, 1).tanh(), align_corners=False)


class StandardisedConv(nn.Conv2d):
    """As timm's ScaledStdConv2d: each filter is normalised over what it reads."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None, weight=self.gain.view(-1), training=True,
            momentum=0.0, eps=1e-6,
        ).reshape_as(self.weight)  # fmt: skip
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = StandardisedConv(CHANNELS, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class BareKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, CHANNELS, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.kernel, padding=1)


class BareDepthwiseKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(CHANNELS, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.kernel, padding=1, groups=x.shape[1])


class Blurred(nn.Module):
    """One kernel for all channels, as an anti-aliasing pooling has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.rand(1, 1, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.kernel.expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1])


class EfficientChannelAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.conv(x.mean((2, 3))[:, None]).sigmoid()[:, 0, :, None, None]


# operations without parameters, written as one does


def swap_halves(x: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, 1)
    return torch.cat([right, left], 1)


def shuffle(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def layer_norm(x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],)).permute(0, 3, 1, 2)


def gate_by_mean_and_maximum(x: torch.Tensor) -> torch.Tensor:
    """The spatial attention of CBAM, without its convolution."""
    return x * torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1).sum(1, keepdim=True).sigmoid()


def add_into_a_half(x: torch.Tensor) -> torch.Tensor:
    zeros = torch.zeros_like(x)
    zeros[:, : x.shape[1] // 2] += x[:, x.shape[1] // 2 :]
    return zeros + x


def double_a_half_in_place(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[:, : x.shape[1] // 2] *= 2
    return x


def shift_in_time(x: torch.Tensor) -> torch.Tensor:
    """A quarter of the channels moves by a row, as in a temporal shift module."""
    return torch.cat([x[:, : x.shape[1] // 4].roll(1, 2), x[:, x.shape[1] // 4 :]], 1)


def with_coordinates(x: torch.Tensor) -> torch.Tensor:
    rows = torch.linspace(-1, 1, x.shape[2]).view(1, 1, -1, 1)
    return torch.cat([x, rows.expand(len(x), 1, -1, x.shape[3])], 1)


def through_a_constant(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3)) @ torch.ones(x.shape[1], x.shape[1]).tril()


def attend_among_channels(x: torch.Tensor) -> torch.Tensor:
    rows = x.flatten(2)
    return ((rows @ rows.transpose(1, 2)).softmax(2) @ rows).view_as(x)


ONES = list(range(8))  # each channel is a unit
PAIRS = [0, 0, 1, 1, 2, 2, 3, 3]
HALVES = [0, 1, 2, 3, 0, 1, 2, 3]


@dataclass(frozen=True)
class Case:
    """What is expected of an operation.

    Args:
        operation: between stem and head.
        reads: the stem's unit that each input of the head belongs to, -1 for none.
        stem: the stem's unit of each of its channels.
        linear: whether the head is a linear layer.
        frozen: by layer, a pattern of the reason why it keeps its width.
        least: the fewest channels that the stem keeps.
    """

    operation: Operation | type[nn.Module]
    reads: list[int]
    stem: list[int] | None = None
    linear: bool = False
    frozen: dict[str, str] | None = None
    least: int = 1


def searched(
    operation: Operation | type[nn.Module], reads: list[int] = ONES, stem: list[int] = ONES, **options: Any
) -> Case:
    return Case(operation, reads, stem, **options)


def fixed(operation: Operation | type[nn.Module], reason: str, *, reads: int = 8, **options: Any) -> Case:
    return Case(operation, [-1] * reads, frozen={"stem.0": reason}, **options)


CASES = {
    # one place, one channel
    "relu": searched(F.relu),
    "square": searched(lambda x: x * x),
    "where": searched(lambda x: torch.where(x > 0.5, x, x * 0.1)),
    "stack and sum": searched(lambda x: torch.stack([x, x * 2]).sum(0)),
    "a factor that depends on the channel's number": fixed(
        lambda x: x * torch.arange(1, x.shape[1] + 1)[:, None, None], "reordering its channels changes the output"
    ),
    # places
    "max pooling": searched(lambda x: F.max_pool2d(x, 2)),
    "adaptive pooling to 1": searched(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "adaptive pooling to 2": searched(lambda x: F.adaptive_avg_pool2d(x, 2)),
    "pooling and flattening": searched(
        lambda x: F.adaptive_avg_pool2d(x, 2).flatten(1), [i // 4 for i in range(32)], linear=True
    ),
    "nearest neighbours": searched(lambda x: F.interpolate(x, scale_factor=2)),
    "bilinear interpolation": searched(lambda x: F.interpolate(x, size=(7, 5), mode="bilinear")),
    "padded with zeros": searched(lambda x: F.pad(x, (1, 0, 2, 1))),
    "padded by reflection": searched(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "padded all around": fixed(
        lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"), "it is written into a part of another tensor in between"
    ),
    "places rolled": searched(lambda x: x.roll((1, 2), (2, 3))),
    "softmax over places": searched(lambda x: x.flatten(2).softmax(2).view_as(x)),
    "sampled on a grid": searched(Warped),
    "sampled where it says": Case(
        WarpedByItself, ONES, ONES, frozen={"between.offsets": "it says where to sample in between"}
    ),
    "windows": searched(lambda x: x.unfold(2, 3, 1).mean(-1)),
    "windows as columns": fixed(
        lambda x: F.unfold(x, 3).transpose(1, 2), r"it runs through aten\.im2col in between", reads=72, linear=True
    ),
    # statistics over channels
    "softmax over channels": searched(lambda x: x.softmax(1)),
    "normalised to length 1": searched(lambda x: F.normalize(x, dim=1)),
    "standard deviation over channels": searched(lambda x: x / (x.std(1, keepdim=True) + 1), least=2),
    "mean and maximum over channels": searched(gate_by_mean_and_maximum),
    "layer norm": searched(layer_norm),
    "rms norm": searched(RMSNorm),
    "instance norm": searched(F.instance_norm),
    "group norm of runs of two": searched(lambda x: F.group_norm(x, x.shape[1] // 2), PAIRS, PAIRS),
    "group norm of one run": searched(lambda x: F.group_norm(x, 1)),
    "group norm of a fixed number": fixed(lambda x: F.group_norm(x, 4), r"the forward fails when it is sliced .*=4"),
    "neighbouring channels": fixed(
        lambda x: F.local_response_norm(x, 3), "its channels are mixed as if they were places in between"
    ),
    # who is where
    "glu": searched(lambda x: F.glu(x, 1), [0, 1, 2, 3], HALVES),
    "chunk and mul": searched(lambda x: torch.mul(*x.chunk(2, 1)), [0, 1, 2, 3], HALVES),
    "halves swapped": searched(swap_halves, HALVES, HALVES),
    "halves added": searched(lambda x: x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :], [0, 1, 2, 3], HALVES),
    "one half": searched(lambda x: x[:, : x.shape[1] // 2], [0, 1, 2, 3], HALVES),
    "a fixed half": fixed(lambda x: x[:, :4], "the forward fails when it is sliced", reads=4),
    "every other and the rest": searched(lambda x: x[:, ::2] + x[:, 1::2], [0, 1, 2, 3], PAIRS),
    "every other": searched(lambda x: x[:, 1::2], [0, 1, 2, 3], PAIRS),
    "every fourth": searched(lambda x: x[:, ::4], [0, 1], [0, 0, 0, 0, 1, 1, 1, 1]),
    "a quarter shifted": searched(shift_in_time, [0, 1] * 4, [0, 1] * 4),
    "a half in place": searched(double_a_half_in_place, HALVES, HALVES),
    "shuffled by view": searched(shuffle, PAIRS, HALVES),
    "shuffled by torch": searched(lambda x: F.channel_shuffle(x, 2), PAIRS, HALVES),
    "unflattened": searched(lambda x: x.unflatten(1, (2, -1)).sum(1), [0, 1, 2, 3], HALVES),
    "maximum of two": searched(lambda x: x.view(len(x), -1, 2, *x.shape[2:]).amax(2), [0, 1, 2, 3], PAIRS),
    # unflatten tells torch numbers alone, of which the last is taken for the one that changes
    "unflattened by twos": fixed(
        lambda x: x.unflatten(1, (-1, 2)).amax(2), "the forward fails when it is sliced", reads=4
    ),
    "pixel shuffle": searched(lambda x: F.pixel_shuffle(x, 2), [0, 1], [0, 0, 0, 0, 1, 1, 1, 1]),
    "pixel unshuffle": searched(lambda x: F.pixel_unshuffle(x, 2), [i // 4 for i in range(32)]),
    "beside itself": searched(lambda x: torch.cat([x, x.tanh()], 1), ONES + ONES),
    "beside coordinates": searched(with_coordinates, [*ONES, -1]),
    "each twice": searched(lambda x: x.repeat_interleave(2, 1), [i // 2 for i in range(16)]),
    "backwards": searched(lambda x: x.flip(1), ONES[::-1]),
    "folded into the batch": searched(lambda x: F.avg_pool2d(x.reshape(-1, 1, 12, 12), 2).reshape(len(x), -1, 6, 6)),
    "padded channels": Case(
        PaddedShortcut, [*ONES, -1, -1, -1, -1], ONES,
        frozen={"between.other.0": "it is added to channels that are no layer's, as padding"},
    ),
    "rolled": fixed(lambda x: x.roll(1, 1), "its channels are taken in order in between"),
    "rolled by hand": fixed(
        lambda x: torch.cat([x[:, 3:], x[:, :3]], 1), "the sliced network differs from the full one that ignores"
    ),
    "running sum": fixed(lambda x: x.cumsum(1), "its channels are taken in order in between"),
    "sorted": fixed(lambda x: x.sort(1)[0], "its channels are taken in order in between"),
    "the largest four": fixed(lambda x: x.topk(4, 1)[0], "its channels are taken in order in between", reads=4),
    "reordered": fixed(Reordered, "the forward fails when it is sliced"),
    "some listed": Case(
        lambda x: x[:, [0, 2, 4]], [-1, -1, -1],
        frozen={"stem.0": "slice", "stem.0#2": "slice"},  # it fails, or gives another output, as the cut falls
    ),
    "the last": fixed(lambda x: x[:, -1:], "a single one of its channels is picked out in between", reads=1),
    "added into a half of zeros": fixed(add_into_a_half, "it is written into a part of another tensor in between"),
    # products
    # the oracle cannot tell a bare parameter to ignore what it reads
    "einsum": Case(
        Einsum, [-2] * 4, linear=True, frozen={"stem.0": "the sliced network differs from the full one"}
    ),
    "a constant matrix": fixed(through_a_constant, "it is multiplied with a tensor of fixed size", linear=True),
    "attention among channels": searched(attend_among_channels),  # costs channels times channels
    "a matrix of all pairs": fixed(
        lambda x: torch.einsum("nc,nd->ncd", x.mean((2, 3)), x.mean((2, 3))).flatten(1),
        "the forward fails when it is sliced", reads=64, linear=True,
    ),
    "attention": Case(
        Attention, [-2] * 8, ONES, linear=True, frozen={"between.query": "the sliced network differs from the full one"}
    ),
    "attention of torch": Case(
        FusedAttention, [-2] * 8, ONES, linear=True,
        frozen={"between.query": "the sliced network differs from the full one"},
    ),
    "multi-head attention": Case(
        MultiheadAttention, [-2] * 8, linear=True,
        frozen={"stem.0": "it feeds a MultiheadAttention", "between.attention.in_proj_weight": "it feeds a Multihead"},
    ),
    "a standardised convolution": searched(Standardised, [-2] * 8),
    "a bare kernel": Case(BareKernel, [-2] * 8, frozen={"stem.0": "the sliced network differs from the full one"}),
    "a bare depthwise kernel": searched(BareDepthwiseKernel),
    "one kernel for all": fixed(Blurred, "it is convolved with a weight of fixed size in between"),
    "a convolution over channels": fixed(
        EfficientChannelAttention, r"its channels are mixed as if they were places in between\.conv"
    ),
    "a Fourier transform": fixed(
        lambda x: torch.fft.rfft2(x).abs(), r"it runs through aten\._fft_r2c in between, which is not followed"
    ),
}  # fmt: skip


class Function(nn.Module):
    """A module, so that reasons say where."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operation(x)


def network(case: Case) -> nn.Module:
    operation = case.operation if isinstance(case.operation, type) else Function(case.operation)
    return make(lambda: Between(operation, len(case.reads), case.linear)).eval()


@cache
def built(name: str) -> tuple[nn.Module, SearchSpace]:
    model = network(CASES[name])
    return model, build_space(model, example(1), bins=SingleChannels())


@pytest.mark.parametrize("name", CASES)
def test_channels_that_meet_in_an_operation_go_together(name: str) -> None:
    case = CASES[name]
    _, space = built(name)
    index = {group.name: place for place, group in enumerate(space.groups)}
    axes = {str(axis): axis for axis in space.axes}
    reasons = {part.layer: part.reason for part in space.frozen if part.layer != "fc"}
    assert set(reasons) == set(case.frozen or {})
    for layer, reason in (case.frozen or {}).items():
        assert re.search(reason, reasons[layer]), reasons[layer]
    if case.stem is None:
        assert "stem.0" not in index
    else:
        assert axes["stem.0.out"].units.tolist() == case.stem
        assert space.groups[index["stem.0"]].least == case.least
    if -2 not in case.reads:  # the head reads another layer
        reader = axes.get("head.in")
        expected = [index["stem.0"] if unit >= 0 else -1 for unit in case.reads]
        assert (reader.groups.tolist() if reader else [-1] * len(case.reads)) == expected
        assert (reader.units.tolist() if reader else [-1] * len(case.reads)) == case.reads


@pytest.mark.parametrize("name", CASES)
def test_a_sliced_network_equals_the_running_supernet(name: str) -> None:
    model, space = built(name)
    supernet, rng = Supernet(model, space), np.random.default_rng(0)
    subs = [SubNetwork.fixed(space.smallest), *(space.sample(rng, sharing=FullyFree()) for _ in range(2))]
    for sub in subs:
        slim = slice_model(model, space, sub)
        with torch.no_grad(), supernet.running(sub):
            out = model(example())
        assert torch.isfinite(out).all()
        assert space.cost.macs(sub.widths) == count_macs(slim, example(1))
        torch.testing.assert_close(slim(example()), out, rtol=1e-5, atol=1e-6)


HARD_CODED = ["rolled by hand", "a fixed half", "some listed", "group norm of a fixed number", "reordered",
              "a factor that depends on the channel's number"]  # fmt: skip


@pytest.mark.parametrize("name", HARD_CODED)
def test_what_no_rule_can_know_is_frozen_whatever_cut_is_tried(name: str) -> None:
    """The innocent head behind it stays searchable, too: it is cut alike while a culprit is looked for."""
    model, images = network(CASES[name]), Example(example(1))
    table = find_groups(model, images)
    for seed in range(10):
        left = verified(model, table, images, rng=np.random.default_rng(seed))
        assert [group.name for group in left.groups] == ["head"]
