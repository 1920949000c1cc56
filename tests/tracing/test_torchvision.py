"""torchvision's classics, in small images: costs, and running a sub-network against slicing it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from nni_cafenet import (
    LocallyFree,
    SearchSpace,
    SubNetwork,
    Supernet,
    build_space,
    count_macs,
    slice_model,
)
from nni_cafenet.tracing.verify import randomise
from tests.snapshots import Snapshot

GROUPS = {"resnet18": 12, "resnet50": 37, "mobilenet_v2": 25, "vgg16_bn": 15, "efficientnet_b0": 40,
          "shufflenet_v2_x0_5": 20}  # fmt: skip
PIXELS = 32


class Built(NamedTuple):
    name: str
    model: nn.Module
    images: torch.Tensor
    space: SearchSpace
    before: Snapshot


@pytest.fixture(scope="module", params=list(GROUPS))
def built(request: pytest.FixtureRequest) -> Built:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(torchvision.models, request.param)(num_classes=10)
        if request.param == "vgg16_bn":  # its head is made for 224 pixels and has 120 million weights
            model.avgpool = nn.AdaptiveAvgPool2d(2)
            model.classifier[0], model.classifier[3] = nn.Linear(2048, 128), nn.Linear(128, 128)
            model.classifier[6] = nn.Linear(128, 10)
        images = torch.randn(2, 3, PIXELS, PIXELS)
    randomise(model, seed=0)
    next(model.children()).eval()
    before = Snapshot(model)
    return Built(request.param, model, images, build_space(model, images), before)


@pytest.fixture(scope="module")
def subs(built: Built) -> list[SubNetwork]:
    rng = np.random.default_rng(0)
    drawn = [built.space.sample(rng, sharing=LocallyFree(offset=1)) for _ in range(2)]
    return [SubNetwork.fixed(built.space.smallest), *drawn]


@pytest.fixture(scope="module")
def slim_ones(built: Built, subs: list[SubNetwork]) -> list[nn.Module]:
    return [slice_model(built.model, built.space, sub) for sub in subs]


def test_every_layer_but_the_last_is_searchable(built: Built) -> None:
    assert len(built.space.groups) == GROUPS[built.name]
    others = [part.reason for part in built.space.frozen if part.reason != "it is the model's output"]
    # the halves of a unit of ShuffleNet, shuffled eight times over
    assert set(others) <= ({"all of its channels hang together"} if "shufflenet" in built.name else set())
    assert all(part.layer in built.space.describe() for part in built.space.frozen)


def test_the_caller_s_model_is_unchanged(built: Built, slim_ones: list[nn.Module]) -> None:
    assert slim_ones
    built.before.assert_unchanged()


def test_costs_equal_the_counts_of_sliced_models(
    built: Built, subs: list[SubNetwork], slim_ones: list[nn.Module]
) -> None:
    cost = built.space.cost
    assert cost.macs(built.space.largest) == count_macs(built.model, built.images)
    assert cost.params(built.space.largest) == sum(parameter.numel() for parameter in built.model.parameters())
    for sub, slim in zip(subs, slim_ones, strict=True):
        assert cost.macs(sub.widths) == count_macs(slim, built.images)
        assert cost.params(sub.widths) == sum(parameter.numel() for parameter in slim.parameters())


def test_a_sliced_model_is_of_the_same_class_with_the_same_keys(built: Built, slim_ones: list[nn.Module]) -> None:
    for slim in slim_ones:
        assert type(slim) is type(built.model)
        assert list(slim.state_dict()) == list(built.model.state_dict())


def test_a_sliced_model_equals_the_running_supernet(
    built: Built, subs: list[SubNetwork], slim_ones: list[nn.Module]
) -> None:
    supernet = Supernet(built.model, built.space)
    for sub, slim in zip(subs, slim_ones, strict=True):
        for mode in (False, True):  # train last: it changes the slim one's statistics
            slim.train(mode)
            modes = [module.training for module in built.model.modules()]
            outputs = []
            with supernet.running(sub) as model, torch.no_grad():
                model.train(mode)
                for network in (model, slim):
                    torch.manual_seed(0)  # dropout
                    outputs.append(network(built.images))
            for module, training in zip(built.model.modules(), modes, strict=True):
                module.training = training
            torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)
    built.before.assert_unchanged()
