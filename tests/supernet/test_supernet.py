from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import (
    Fixed,
    FullyFree,
    LocallyFree,
    SearchSpace,
    SharingPattern,
    SubNetwork,
    Supernet,
    UniformBins,
    UnsupportedModel,
    Widths,
    rebin,
    slice_model,
)
from tests.built import built, some_subnetworks
from tests.models import CLASSES, NETWORKS, example
from tests.snapshots import Snapshot

PATTERNS = {"fixed": Fixed(), "locally_free": LocallyFree(offset=1), "fully_free": FullyFree()}


def origins(model: nn.Module, space: SearchSpace, sub: SubNetwork) -> dict[str, torch.Tensor]:
    """For each parameter of the sliced network the places in the full one's flat parameter that it was taken from."""
    numbered = copy.deepcopy(model).double()
    for parameter in numbered.parameters():
        parameter.data = torch.arange(parameter.numel(), dtype=torch.float64).view_as(parameter)
    return {name: places.detach().long() for name, places in slice_model(numbered, space, sub).named_parameters()}


def outputs_and_gradients(model: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
    torch.manual_seed(0)  # dropout
    out = model(example(4).double())
    loss = F.cross_entropy(out, torch.arange(4) % CLASSES)
    loss.backward()
    return out.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("name", NETWORKS)
def test_sliced_model_equals_running_supernet_in_output_and_gradients(name: str, pattern: str, train: bool) -> None:
    model, space = built(name)
    model.double().train(train)
    supernet = Supernet(model, space)
    for sub in some_subnetworks(space, 3, sharing=PATTERNS[pattern]):
        slim = slice_model(model, space, sub)
        expected, slim_gradients = outputs_and_gradients(slim)
        model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        with supernet.running(sub):
            out = model(example(4).double())
        F.cross_entropy(out, torch.arange(4) % CLASSES).backward()
        torch.testing.assert_close(out.detach(), expected, rtol=1e-11, atol=1e-13)
        places = origins(model, space, sub)
        for key, parameter in model.named_parameters():
            gradient = slim_gradients[key]
            if gradient is None:
                assert parameter.grad is None, key
                continue
            assert parameter.grad is not None, key
            whole = torch.zeros(parameter.numel(), dtype=torch.float64)
            whole[places[key].flatten()] = gradient.flatten()
            outside = torch.ones(parameter.numel(), dtype=torch.bool)
            outside[places[key].flatten()] = False
            assert (parameter.grad.flatten()[outside] == 0).all(), key
            torch.testing.assert_close(parameter.grad.flatten(), whole, rtol=1e-10, atol=1e-13, msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_outputs_equal_the_sliced_model_s(name: str) -> None:
    model, space = built(name)
    model.eval()
    supernet = Supernet(model, space)
    for sub in some_subnetworks(space, 2):
        with supernet.running(sub), torch.no_grad():
            out = model(example())
        torch.testing.assert_close(out, slice_model(model, space, sub)(example()), rtol=1e-6, atol=1e-6)


def scattered(space: SearchSpace) -> SubNetwork:
    """Every other unit: as many runs as there can be, more than are copied in blocks."""
    return SubNetwork(
        Widths(tuple((bins.count + 1) // 2 for bins in space.bins)),
        tuple(tuple(range(0, bins.count, 2)) for bins in space.bins),
    )


@pytest.mark.parametrize("most_blocks", [0, 3, 64, 10_000])
@pytest.mark.parametrize("name", ["residual", "flatten", "concat", "norms", "transposed"])
def test_slices_are_the_same_whether_copied_in_blocks_or_by_index(
    name: str, most_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nni_cafenet.supernet.slices.MOST_BLOCKS", most_blocks)
    model, space = built(name)
    space = rebin(space, UniformBins(100))
    model.double().eval()
    sub = scattered(space)
    expected, slim_gradients = outputs_and_gradients(slice_model(model, space, sub))
    with Supernet(model, space).running(sub):
        out = model(example(4).double())
        F.cross_entropy(out, torch.arange(4) % CLASSES).backward()
    assert torch.equal(out.detach(), expected)
    places = origins(model, space, sub)
    for key, parameter in model.named_parameters():
        whole = torch.zeros(parameter.numel(), dtype=torch.float64)
        whole[places[key].flatten()] = slim_gradients[key].flatten()
        torch.testing.assert_close(parameter.grad.flatten(), whole, rtol=1e-10, atol=1e-13, msg=key)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_full_sub_network_is_the_full_network(name: str) -> None:
    model, space = built(name)
    model.eval()
    with Supernet(model, space).running(SubNetwork.fixed(space.largest)) as running:
        assert running is model
        inside = model(example())
    assert torch.equal(inside, model(example()))


# what is left behind


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_is_as_before_after_the_block(name: str, train: bool) -> None:
    model, space = built(name)
    model.train(train)
    next(model.children()).train(not train)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    supernet = Supernet(model, space)
    before = Snapshot(model)
    for sub in some_subnetworks(space, 2):
        with supernet.running(sub):
            model(example(4))
    before.assert_unchanged()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_is_as_before_after_an_error_inside(name: str) -> None:
    model, space = built(name)
    supernet = Supernet(model, space)
    before = Snapshot(model)
    sub = some_subnetworks(space)[2]
    with pytest.raises(RuntimeError, match="channels"):
        with supernet.running(sub):
            model(torch.zeros(1, 99, 12, 12))
    before.assert_unchanged()
    with pytest.raises(KeyboardInterrupt):
        with supernet.running(sub):
            raise KeyboardInterrupt
    before.assert_unchanged()
    with supernet.running(sub):  # and it can run again
        assert model(example()).shape == (2, CLASSES)


def test_batch_norm_statistics_are_kept_to_the_end_of_the_block_and_then_forgotten() -> None:
    model, space = built("plain")
    supernet = Supernet(model, space)
    before = model.bn1.running_mean.clone()
    with supernet.running(SubNetwork.fixed(space.smallest)):
        inside = model.bn1.running_mean.clone()
        assert torch.equal(inside, before[: len(inside)])
        model(example(4))
        assert not torch.equal(model.bn1.running_mean, inside)
        assert model.bn1.num_batches_tracked == 1
    assert torch.equal(model.bn1.running_mean, before)
    assert model.bn1.num_batches_tracked == 0


def test_constructing_a_supernet_changes_nothing_and_takes_the_model_itself() -> None:
    model, space = built("residual")
    before = Snapshot(model)
    supernet = Supernet(model, space)
    assert supernet.model is model
    assert supernet.space is space
    before.assert_unchanged()


# gradients


@contextmanager
def no_more_forwards(model: nn.Module) -> Iterator[None]:
    def fail(module: nn.Module, inputs: object) -> None:
        raise AssertionError("another forward")

    handle = model.register_forward_pre_hook(fail)
    yield
    handle.remove()


def test_backward_gives_the_same_inside_and_after_the_block() -> None:
    model, space = built("residual")
    supernet = Supernet(model, space)
    model.eval()
    sub = some_subnetworks(space)[2]
    with supernet.running(sub):
        model(example()).sum().backward()
    inside = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with supernet.running(sub):
        loss = model(example()).sum()
    with no_more_forwards(model):
        loss.backward()
    assert all(torch.equal(parameter.grad, inside[name]) for name, parameter in model.named_parameters())


def test_gradients_of_several_sub_networks_add_up() -> None:
    model, space = built("residual")
    model.double().eval()
    supernet = Supernet(model, space)
    single = []
    for sub in some_subnetworks(space)[2:4]:
        model.zero_grad()
        with supernet.running(sub):
            model(example().double()).sum().backward()
        single.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    model.zero_grad()
    for sub in some_subnetworks(space)[2:4]:
        with supernet.running(sub):
            model(example().double()).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, single[0][name] + single[1][name])


def test_running_without_autograd_makes_no_graph() -> None:
    model, space = built("residual")
    with torch.no_grad(), Supernet(model, space).running(SubNetwork.fixed(space.smallest)):
        assert not model(example()).requires_grad
        assert not any(parameter.requires_grad for parameter in (model.stem[0].weight, model.inner1[0].weight))


def test_parameters_without_gradients_get_none() -> None:
    model, space = built("frozen")
    with Supernet(model, space).running(some_subnetworks(space)[2]):
        model(example()).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_a_plain_sgd_step_changes_the_slice_alone() -> None:
    model, space = built("residual")
    supernet = Supernet(model, space)
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sub = SubNetwork.fixed(Widths(tuple(max(bins.count // 2, 1) for bins in space.bins)))
    with supernet.running(sub):
        loss = F.cross_entropy(model(example(8)), torch.arange(8) % CLASSES)
    loss.backward()
    optimizer.step()
    places = origins(model, space, sub)
    for name, parameter in model.named_parameters():
        inside = torch.zeros(parameter.numel(), dtype=torch.bool)
        inside[places[name].flatten()] = True
        changed = (parameter != before.get_parameter(name)).flatten()
        assert not changed[~inside].any(), name
        assert changed[inside].any(), name


def test_a_step_of_the_optimizer_shows_in_the_next_run_of_the_same_sub_network() -> None:
    model, space = built("plain")
    model.eval()
    supernet = Supernet(model, space)
    sub = SubNetwork.fixed(space.smallest)
    for _ in range(2):
        with supernet.running(sub):
            out = model(example())
        assert torch.equal(out, slice_model(model, space, sub)(example()))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5)


def test_parameters_that_were_replaced_or_cast_since_are_found() -> None:
    model, space = built("plain")
    model.eval()
    supernet = Supernet(model, space)
    sub = SubNetwork.fixed(space.smallest)
    with supernet.running(sub):
        model(example())
    model.conv2.weight = nn.Parameter(torch.randn_like(model.conv2.weight))
    model.double()
    with supernet.running(sub):
        out = model(example().double())
    assert torch.equal(out, slice_model(model, space, sub)(example().double()))


def test_more_sub_networks_than_are_cached_run_right() -> None:
    model, space = built("plain")
    model.eval()
    supernet = Supernet(model, space)
    subs = some_subnetworks(space, 60)
    for sub in [*subs, *subs[:5]]:
        with supernet.running(sub), torch.no_grad():
            out = model(example())
        assert torch.equal(out, slice_model(model, space, sub)(example()))


# refusals


def test_running_inside_of_running_is_refused_and_the_outer_one_goes_on() -> None:
    model, space = built("plain")
    supernet = Supernet(model, space)
    before = Snapshot(model)
    small, full = SubNetwork.fixed(space.smallest), SubNetwork.fixed(space.largest)
    with supernet.running(small):
        with pytest.raises(RuntimeError, match="a sub-network is running already: leave its block"):
            with supernet.running(full):
                pass
        assert model.conv1.out_channels == 1
        assert model(example()).shape == (2, CLASSES)
    before.assert_unchanged()


def test_a_sub_network_of_another_space_is_refused() -> None:
    model, space = built("plain")
    supernet = Supernet(model, space)
    before = Snapshot(model)
    with pytest.raises(ValueError, match="the sub-network has 2 groups and this space 3"):
        with supernet.running(SubNetwork.fixed(Widths((1, 1)))):
            pass
    with pytest.raises(ValueError, match="keeps bin 999"):
        with supernet.running(SubNetwork(Widths((1, 1, 1)), ((0,), (0,), (999,)))):
            pass
    before.assert_unchanged()


def test_a_space_of_another_model_is_refused_at_once() -> None:
    model, _ = built("plain")
    _, space = built("residual")
    with pytest.raises(UnsupportedModel, match="space built from"):
        Supernet(model, space)


def test_the_trained_model_s_state_dict_is_the_full_network_s() -> None:
    model, space = built("concat")
    keys, shapes = list(model.state_dict()), [tensor.shape for tensor in model.state_dict().values()]
    supernet = Supernet(model, space)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    rng = np.random.default_rng(0)
    for _ in range(3):
        with supernet.running(space.sample(rng)):
            loss = model(example()).sum()
        loss.backward()
        optimizer.step()
    assert list(model.state_dict()) == keys
    assert [tensor.shape for tensor in model.state_dict().values()] == shapes
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())


def test_patterns_are_of_the_protocol() -> None:
    patterns: list[SharingPattern] = list(PATTERNS.values())
    assert all(pattern.choices(3, 2)[0] == (0, 1) for pattern in patterns)
