from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from nni_cafenet import (
    InvalidBatches,
    SingleChannels,
    SubNetwork,
    TrainingDiverged,
    UnsupportedModel,
    Widths,
    build_space,
    channel_importance,
    cross_entropy,
    rebin,
    slice_model,
    sort_channels,
)
from nni_cafenet.errors import CafeNetError
from nni_cafenet.importance import few_images
from nni_cafenet.space import SearchSpace
from tests.built import built
from tests.models import CLASSES, NETWORKS, Plain, example, make
from tests.snapshots import Snapshot


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    targets = torch.randint(0, CLASSES, (count, 2), generator=torch.Generator().manual_seed(0))
    return [(example(seed=number), targets[number]) for number in range(count)]


def drawn(space: SearchSpace) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random(group.units) for group in space.groups]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_sorted_network_computes_the_same(name: str) -> None:
    model, space = built(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0  # it draws by position
    ordered = sort_channels(model, space, drawn(space)).double()
    model.double()
    with torch.no_grad():
        for training in (False, True):
            x = example(4).double()
            expected, got = model.train(training)(x), ordered.train(training)(x)
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), ordered.parameters(), strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_its_leftmost_units_are_the_most_important_of_the_model(name: str) -> None:
    model, space = built(name)
    space, importance = rebin(space, SingleChannels()), drawn(space)
    half = Widths(tuple(max(1, bins.count // 2) for bins in space.bins))
    best = tuple(
        tuple(sorted(np.argsort(-values)[:width].tolist()))
        for values, width in zip(importance, half.bins_kept, strict=True)
    )
    left = slice_model(sort_channels(model, space, importance), space, SubNetwork.fixed(half)).eval()
    with torch.no_grad():
        expected = slice_model(model, space, SubNetwork(half, best)).eval()(example())
        torch.testing.assert_close(left(example()), expected, rtol=1e-4, atol=1e-5)


def test_importance_is_squared_weights_times_mean_squared_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    space = rebin(build_space(model, torch.randn(1, 2)), SingleChannels())
    data = [(torch.randn(1, 2), torch.tensor([number % 2])) for number in range(4)]
    found = channel_importance(model, space, data)
    expected = torch.zeros(3)
    for batch in data:
        grads = torch.autograd.grad(cross_entropy(model, batch), list(model.parameters()))
        made, bias, read, _ = ((g * p).detach().square() / 4 for g, p in zip(grads, model.parameters(), strict=True))
        expected += made.sum(1) + bias + read.sum(0)
    assert len(found) == 1
    np.testing.assert_allclose(found[0], expected.numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_importance_moves_with_the_channels(name: str) -> None:
    model, space = built(name)
    importance = channel_importance(model, space, batches())
    again = channel_importance(sort_channels(model, space, importance), space, batches())
    for before, after in zip(importance, again, strict=True):
        np.testing.assert_allclose(after, -np.sort(-before), rtol=1e-2, atol=1e-6 * before.max())


def test_a_unit_that_nothing_reads_is_of_no_importance_for_those_who_make_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.LazyLinear(CLASSES))
    with torch.no_grad():
        model(example())
        model[2].weight[:, 4] = 0
    space = rebin(build_space(model, example()), SingleChannels())
    importance = channel_importance(model, space, batches())
    assert importance[0][4] == 0
    assert (np.delete(importance[0], 4) > 0).all()


def test_neither_changes_the_model() -> None:
    model, space = built("residual")
    model.stem.requires_grad_(False)
    model.inner1.eval()
    cross_entropy(model, batches()[0]).backward()
    before, state = Snapshot(model), torch.get_rng_state()
    ordered = sort_channels(model, space, channel_importance(model, space, batches()))
    before.assert_unchanged()
    assert torch.equal(torch.get_rng_state(), state)
    modes = [[module.training for module in each.modules()] for each in (model, ordered)]
    trained = [[parameter.requires_grad for parameter in each.parameters()] for each in (model, ordered)]
    assert modes[0] == modes[1]
    assert trained[0] == trained[1]
    assert all(parameter.grad is None for parameter in ordered.parameters())


def test_a_frozen_model_has_importances_too() -> None:
    model, space = built("plain")
    expected = channel_importance(model, space, batches())
    frozen = copy.deepcopy(model).requires_grad_(False)
    for found, same in zip(channel_importance(frozen, space, batches()), expected, strict=True):
        np.testing.assert_array_equal(found, same)


def test_batches_come_in_pieces_of_few_images() -> None:
    images, targets = torch.randn(10, 3, 4, 4), torch.arange(10)
    pieces = list(few_images([(images, targets)]))
    assert [len(piece[0]) for piece in pieces] == [4, 4, 2]
    assert all(
        torch.equal(torch.cat(parts), whole)
        for parts, whole in zip(zip(*pieces, strict=True), (images, targets), strict=True)
    )
    others = [{"images": images}, (images, targets, targets), ([images], targets), (images, targets[:5]), images]
    assert all(given is kept for given, kept in zip(others, few_images(others), strict=True))


def test_bad_input_is_named() -> None:
    model, space = built("plain")
    with pytest.raises(InvalidBatches, match="batches yields nothing"):
        channel_importance(model, space, [])
    with pytest.raises(TrainingDiverged, match="the loss is nan on batch 1"):
        channel_importance(model, space, [batches()[0], (example() * math.nan, batches()[0][1])])
    with pytest.raises(InvalidBatches, match="must return a scalar"):
        channel_importance(model, space, batches(), loss_fn=lambda model, batch: model(batch[0]))
    importance = drawn(space)
    with pytest.raises(ValueError, match="each of the space's 3 groups, but holds 2"):
        sort_channels(model, space, importance[:2])
    with pytest.raises(ValueError, match=r"importance of conv2 must be 12 numbers, .* but got shape \(8,\)"):
        sort_channels(model, space, [importance[0], importance[0], importance[2]])
    importance[1][3] = math.nan
    with pytest.raises(ValueError, match="importance of conv2 must be 12 numbers, one for a unit, but got NaN"):
        sort_channels(model, space, importance)


def test_the_space_of_another_model_is_refused() -> None:
    _, space = built("plain")
    wider = make(Plain)
    wider.conv2, wider.bn2 = nn.Conv2d(8, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24)
    wider.conv3 = nn.Conv2d(24, 16, 1)
    with pytest.raises(UnsupportedModel, match=r"conv2.out has 12 channels in the space and 24 in the model"):
        sort_channels(wider, space, drawn(space))
    with pytest.raises(CafeNetError, match="no layer, parameter or buffer"):
        channel_importance(nn.Linear(3, CLASSES), space, batches())
