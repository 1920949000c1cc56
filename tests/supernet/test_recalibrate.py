from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nni_cafenet import Supernet, cross_entropy, recalibrate, slice_model
from tests.built import built, some_subnetworks
from tests.data import batches, net
from tests.models import NETWORKS, example


def fixed_loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return model(batch[0]).sum()


IMAGES = [(example(4, seed=seed), None) for seed in range(3)]


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "grouped", "tied"])
def test_it_equals_torch_s_update_bn(name: str) -> None:
    model, _ = built(name)
    twin = copy.deepcopy(model)
    recalibrate(model, IMAGES, fixed_loss)
    torch.optim.swa_utils.update_bn([images for images, _ in IMAGES], twin)
    for key, buffer in twin.named_buffers():
        torch.testing.assert_close(model.get_buffer(key), buffer, msg=key)


def test_the_last_batch_may_be_smaller() -> None:
    model, _ = built("plain")
    twin = copy.deepcopy(model)
    ragged = [(example(4), None), (example(2, seed=5), None)]
    recalibrate(model, ragged, fixed_loss)
    torch.optim.swa_utils.update_bn([images for images, _ in ragged], twin)
    torch.testing.assert_close(model.bn3.running_var, twin.bn3.running_var)


def test_it_forgets_what_was_there_before() -> None:
    model, _ = built("residual")
    twin = copy.deepcopy(model)
    for _ in range(3):
        twin(example(8) * 100)
    recalibrate(model, IMAGES, fixed_loss)
    recalibrate(twin, IMAGES, fixed_loss)
    assert all(torch.equal(statistics(model)[name], buffer) for name, buffer in twin.named_buffers())


def test_dropout_does_not_disturb_it() -> None:
    model = net(dropout=0.9)
    model[4] = nn.Sequential(nn.Dropout(0.9), model[4])
    twin = copy.deepcopy(model)
    recalibrate(model, batches(2), cross_entropy)
    torch.manual_seed(123)
    recalibrate(twin, batches(2), cross_entropy)
    assert all(torch.equal(statistics(model)[name], buffer) for name, buffer in twin.named_buffers())


def test_modes_and_momenta_are_restored_on_errors_too() -> None:
    model, _ = built("plain")
    model.bn1.eval()
    model.bn2.momentum = 0.3
    modes = [module.training for module in model.modules()]

    def check() -> None:
        assert [module.training for module in model.modules()] == modes
        assert (model.bn1.momentum, model.bn2.momentum) == (0.1, 0.3)

    recalibrate(model, IMAGES, fixed_loss)
    check()
    with pytest.raises(RuntimeError, match="channels"):
        recalibrate(model, [(torch.zeros(2, 5, 12, 12), None)], fixed_loss)
    check()


def test_parameters_and_gradients_are_left_alone() -> None:
    model, _ = built("plain")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    recalibrate(model, IMAGES, fixed_loss)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_norms_without_running_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4))

    def never(model: nn.Module, batch: object) -> torch.Tensor:
        raise AssertionError("no forward is needed")

    recalibrate(model, IMAGES, never)
    assert model[1].running_mean is None


@pytest.mark.parametrize("name", NETWORKS)
def test_a_running_sub_network_is_recalibrated_as_its_slice(name: str) -> None:
    model, space = built(name)
    model.eval()
    supernet = Supernet(model, space)
    before = statistics(model)
    for sub in some_subnetworks(space, 1):
        slim = slice_model(model, space, sub)
        recalibrate(slim, IMAGES, fixed_loss)
        with supernet.running(sub), torch.no_grad():
            recalibrate(model, IMAGES, fixed_loss)
            out = model(example())
        torch.testing.assert_close(out, slim(example()), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
