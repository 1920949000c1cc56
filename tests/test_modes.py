from __future__ import annotations

import pytest
import torch
from torch import nn

from nni_cafenet.modes import evaluating, replaced, seeded


def mixed() -> nn.Module:
    """A network in train mode with a part in eval mode, and a part of that in train mode again."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2))))
    model[1].eval()
    model[1][1].train()
    return model


def test_every_module_s_own_mode_is_restored_on_errors_too() -> None:
    model = mixed()
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    with evaluating(model) as same:
        assert same is model
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before
    with pytest.raises(KeyboardInterrupt), evaluating(model):
        raise KeyboardInterrupt
    assert [module.training for module in model.modules()] == before


def test_seeded_draws_repeat_and_differ_by_seed_and_epoch() -> None:
    def draw(seed: int, epoch: int) -> float:
        with seeded(seed, epoch, nn.Linear(1, 1)):
            return float(torch.rand(()))

    drawn = {(seed, epoch): draw(seed, epoch) for seed in range(4) for epoch in range(4)}
    assert len(set(drawn.values())) == 16
    torch.manual_seed(9)
    assert draw(2, 3) == drawn[2, 3]


def test_the_caller_s_random_numbers_go_on_as_if_nothing_was_drawn() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(RuntimeError, match="shapes"), seeded(5, 0, nn.ReLU()):
        torch.rand(7) @ torch.rand(3, 3)
    assert torch.equal(torch.rand(3), expected)


def test_replaced_methods_are_those_of_one_object_and_gone_on_errors_too() -> None:
    one, other = mixed(), mixed()
    one.extra = "own"
    with replaced(one, extra_repr=lambda: "another", extra="another"):
        assert (one.extra_repr(), one.extra, other.extra_repr()) == ("another", "another", "")
    with pytest.raises(KeyboardInterrupt), replaced(one, extra_repr=str, extra=1):
        raise KeyboardInterrupt
    assert (one.extra_repr(), one.extra) == ("", "own")
    assert "extra_repr" not in vars(one)
