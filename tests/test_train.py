from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, IterableDataset

import nni_cafenet.train
from nni_cafenet import (
    CheckpointMismatch,
    InvalidBatches,
    Recipe,
    TrainingDiverged,
    accuracy,
    cross_entropy,
    train_model,
)
from nni_cafenet.checkpoint import Checkpoint
from nni_cafenet.train import count_batches, first_batches, sgd
from tests.data import Batch, Net, batches, images, net, shuffled

STEPS = 4  # an epoch
fast = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class Killed(BaseException):
    """As a signal would."""


def killed_at(call: int, loss_fn: Any = cross_entropy) -> Callable[[nn.Module, Any], torch.Tensor]:
    """`loss_fn` that dies at its call number `call`, from 0."""
    calls = iter(range(10**9))

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        if next(calls) == call:
            raise Killed
        return loss_fn(model, batch)

    return loss


def trained(
    loader: Iterable[Any] | None = None,
    *,
    epochs: int = 3,
    folder: Path | None = None,
    loss_fn: Any = cross_entropy,
    optimizer_fn: Any = fast,
    seed: int = 0,
    **recipe: Any,
) -> tuple[Net, list[float]]:
    model = net()
    checkpoint = None if folder is None else Checkpoint(folder, "dense", {"epochs": epochs, "seed": seed})
    losses = train_model(
        model, shuffled() if loader is None else loader, Recipe(epochs, optimizer_fn, **recipe), loss_fn=loss_fn,
        seed=seed, checkpoint=checkpoint, progress=False,
    )  # fmt: skip
    return model, losses


def assert_same(left: nn.Module, right: nn.Module) -> None:
    state = right.state_dict()
    for name, tensor in left.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_training_is_the_plain_loop() -> None:
    ours, losses = trained(batches(), seed=3)
    model = net().train()
    optimizer = fast(model.parameters())
    schedule = CosineAnnealingLR(optimizer, T_max=3 * STEPS)
    expected = []
    for epoch in range(3):
        torch.manual_seed(3 * 100_003 + epoch)
        total = 0.0
        for x, y in batches():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        expected.append(total / STEPS)
    assert_same(ours, model)
    assert losses == expected


def test_an_average_of_the_weights_is_what_the_network_has_in_the_end() -> None:
    seen: list[list[torch.Tensor]] = []

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        """Looks at the weights after each step."""
        weights = optimizer.param_groups[0]["params"]

        def factor(step: int) -> float:
            if step:
                seen.append([weight.detach().clone() for weight in weights])
            return 1.0

        return lr_scheduler.LambdaLR(optimizer, factor)

    ours, losses = trained(ema=0.7, schedule_fn=schedule)
    last, same = trained(schedule_fn=lambda optimizer, steps: lr_scheduler.ConstantLR(optimizer, 1.0))
    assert losses == same and len(seen) == 3 * STEPS
    expected = seen[0]
    for step in seen[1:]:
        expected = [0.7 * average + 0.3 * weight for average, weight in zip(expected, step, strict=True)]
    for name, average in zip(dict(ours.named_parameters()), expected, strict=True):
        torch.testing.assert_close(ours.state_dict()[name], average)
        assert not torch.allclose(ours.state_dict()[name], last.state_dict()[name])
    before, statistics = net().state_dict(), [name for name in ours.state_dict() if name.endswith("running_var")]
    assert statistics
    for name in statistics:
        values = [model[name] for model in (before, ours.state_dict(), last.state_dict())]
        assert not any(torch.equal(values[1], other) for other in (values[0], values[2]))


@pytest.mark.parametrize("call", [2, 7, 11])
def test_an_average_is_resumed_where_it_was(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nni_cafenet.train, "SECONDS_BETWEEN_SAVES", 0.0)
    whole, _ = trained(ema=0.7)
    with pytest.raises(Killed):
        trained(ema=0.7, folder=tmp_path, loss_fn=killed_at(call))
    assert_same(trained(ema=0.7, folder=tmp_path)[0], whole)
    assert_same(trained(ema=0.7, folder=tmp_path)[0], whole)  # and once it is finished


@pytest.mark.parametrize("decay", [-0.1, 1, 1.5, float("nan")])
def test_a_decay_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"ema must be at least 0 and below 1, such as 0\.995, but got"):
        Recipe(1, ema=decay)


def test_a_network_learns() -> None:
    model, losses = trained(shuffled(16), epochs=6)
    assert losses[-1] < 0.5 * losses[0]
    assert accuracy(model.eval(), batches(4, seed=9)) > 0.8


def test_the_same_seed_gives_the_same_network_and_another_another() -> None:
    first, losses = trained(seed=1)
    second, same = trained(seed=1)
    assert_same(first, second)
    assert losses == same
    assert losses != trained(seed=2)[1]


def test_the_global_random_numbers_are_left_alone_and_do_not_matter() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, _ = trained()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert_same(trained()[0], first)


def test_the_model_is_left_in_train_mode_without_gradients() -> None:
    model, _ = trained(epochs=1)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_epochs_train_nothing() -> None:
    model, losses = trained(epochs=0)
    assert losses == []
    assert_same(model, net())


def test_parameters_without_gradients_stay_as_they_are() -> None:
    model = net()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    train_model(model, batches(), Recipe(1), loss_fn=cross_entropy, progress=False)
    assert torch.equal(model[0].weight, before)
    assert not torch.equal(model[4].weight, net()[4].weight)


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy])
def test_torch_losses_are_accepted(loss: Any) -> None:
    assert_same(trained(loss_fn=loss)[0], trained()[0])


def test_the_default_recipe_is_nesterov_sgd_with_a_cosine() -> None:
    optimizer = sgd(net().parameters())
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]) == (0.1, 0.9, 5e-4, True)
    assert isinstance(Recipe(1).schedule_fn(optimizer, 10), CosineAnnealingLR)


# resuming


@pytest.mark.parametrize("call", [0, 1, 3, 4, 6, 8, 11])
@pytest.mark.parametrize("every_step", [False, True], ids=["by epoch", "by step"])
@pytest.mark.parametrize("loader", [batches, shuffled])
def test_a_killed_training_goes_on_as_if_unbroken(
    loader: Callable[[], Any], every_step: bool, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, losses = trained(loader())
    if every_step:
        monkeypatch.setattr(nni_cafenet.train, "SECONDS_BETWEEN_SAVES", -1.0)
    with pytest.raises(Killed):
        trained(loader(), folder=tmp_path, loss_fn=killed_at(call))
    resumed, same = trained(loader(), folder=tmp_path)
    assert_same(resumed, whole)
    assert same == losses


def test_a_resume_trains_only_on_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nni_cafenet.train, "SECONDS_BETWEEN_SAVES", -1.0)
    with pytest.raises(Killed):
        trained(folder=tmp_path, loss_fn=killed_at(6))
    with pytest.raises(Killed):
        trained(folder=tmp_path, loss_fn=killed_at(5))  # steps 6 to 10
    with pytest.raises(Killed):
        trained(folder=tmp_path, loss_fn=killed_at(0))
    resumed, losses = trained(folder=tmp_path)
    assert_same(resumed, trained()[0])
    assert losses == trained()[1]


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, losses = trained(folder=tmp_path)
    again, same = trained(folder=tmp_path, loss_fn=killed_at(0))
    assert_same(again, first)
    assert same == losses


def test_data_that_draws_random_numbers_goes_on_as_if_unbroken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Augmented(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.images = images(64)

        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Batch:
            x, y = self.images[index]
            return x + 0.1 * torch.randn_like(x), y

    def loader() -> DataLoader[Any]:
        return DataLoader(Augmented(), batch_size=16, shuffle=True)

    monkeypatch.setattr(nni_cafenet.train, "SECONDS_BETWEEN_SAVES", -1.0)
    with pytest.raises(Killed):
        trained(loader(), folder=tmp_path, loss_fn=killed_at(6))
    assert_same(trained(loader(), folder=tmp_path)[0], trained(loader())[0])


@pytest.mark.parametrize(
    "optimizer_fn",
    [
        torch.optim.AdamW,
        partial(torch.optim.RMSprop, lr=1e-3, momentum=0.9),
        partial(torch.optim.Adagrad, lr=1e-2),
        lambda parameters: torch.optim.Adam([{"params": list(parameters), "lr": 1e-3}]),
    ],
)
def test_any_optimizer_s_state_is_resumed(optimizer_fn: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nni_cafenet.train, "SECONDS_BETWEEN_SAVES", -1.0)
    with pytest.raises(Killed):
        trained(folder=tmp_path, loss_fn=killed_at(6), optimizer_fn=optimizer_fn)
    assert_same(trained(folder=tmp_path, optimizer_fn=optimizer_fn)[0], trained(optimizer_fn=optimizer_fn)[0])


SCHEDULES: dict[str, Any] = {
    "step": lambda optimizer, steps: lr_scheduler.StepLR(optimizer, 5),
    "milestones": lambda optimizer, steps: lr_scheduler.MultiStepLR(optimizer, [3, 7]),
    "lambda": lambda optimizer, steps: lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps),
    "one cycle": lambda optimizer, steps: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps + 1),
    "warm-up": lambda optimizer, steps: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, steps)], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_any_schedule_s_state_is_resumed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nni_cafenet.train, "SECONDS_BETWEEN_SAVES", -1.0)
    schedule_fn = SCHEDULES[name]
    with pytest.raises(Killed):
        trained(folder=tmp_path, loss_fn=killed_at(6), schedule_fn=schedule_fn)
    resumed, _ = trained(folder=tmp_path, schedule_fn=schedule_fn)
    assert_same(resumed, trained(schedule_fn=schedule_fn)[0])


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    trained(folder=tmp_path)
    with pytest.raises(CheckpointMismatch, match="epochs: 3 there, 4 here"):
        trained(folder=tmp_path, epochs=4)


# what callers get wrong


@pytest.mark.parametrize("epochs", [-1, 1.5, True, "3", None])
def test_epochs_that_are_no_whole_number_are_refused(epochs: Any) -> None:
    with pytest.raises(ValueError, match="epochs must be a whole number of at least 0, but got"):
        Recipe(epochs)


@pytest.mark.parametrize(
    "loader",
    [[], iter([]), DataLoader(images(8), batch_size=16, drop_last=True)],
    ids=["list", "iterator", "drop_last"],
)
def test_a_loader_that_yields_nothing_is_refused(loader: Any) -> None:
    with pytest.raises(InvalidBatches, match="the loader yields no batch"):
        trained(loader)


def test_a_generator_is_refused_before_or_after_it_is_used_up() -> None:
    with pytest.raises(InvalidBatches, match="generator"):
        trained(batch for batch in batches())


def test_a_loader_that_shrinks_is_refused() -> None:
    class Shrinking:
        def __init__(self) -> None:
            self.left = 5

        def __iter__(self) -> Iterator[Batch]:
            self.left -= 1
            return iter(batches(self.left))

    with pytest.raises(InvalidBatches, match="the loader yielded 3 batches in epoch 1 and 4 before"):
        trained(Shrinking())


class Stream(IterableDataset[Any]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[Batch]:
        dataset = images(64)
        return (dataset[i] for i in range(64))


def test_a_loader_without_a_length_is_counted_and_trained_on() -> None:
    class Loader:
        def __iter__(self) -> Iterator[Batch]:
            return iter(batches())

    assert count_batches(Loader()) == count_batches(batches()) == 4
    assert_same(trained(Loader())[0], trained(batches())[0])


def test_a_data_loader_over_a_stream_is_counted_and_trained_on() -> None:
    loader = DataLoader(Stream(), batch_size=16)
    before = torch.get_rng_state()
    assert count_batches(loader) == 4
    model, losses = trained(loader)
    assert len(losses) == 3
    assert not torch.equal(model[0].weight, net()[0].weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_diverged_loss_names_the_step() -> None:
    calls = iter(range(100))

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return cross_entropy(model, batch) * (torch.nan if next(calls) == 6 else 1)

    with pytest.raises(TrainingDiverged, match=r"training: the loss is nan at step 6: lower the learning rate"):
        trained(loss_fn=loss_fn)


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    with pytest.raises(InvalidBatches, match=r"must return a scalar tensor, but it returned a tensor of shape \(16,\)"):
        trained(loss_fn=nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(InvalidBatches, match="must return a scalar tensor, but it returned a NoneType"):
        trained(loss_fn=lambda model, batch: None)


def test_the_first_batches_are_the_same_for_the_same_seed() -> None:
    model, loader = net(), shuffled()
    first = first_batches(loader, 2, seed=1, model=model)
    again = first_batches(loader, 2, seed=1, model=model)
    other = first_batches(loader, 2, seed=2, model=model)
    assert [len(first), len(first_batches(loader, 99, seed=1, model=model))] == [2, 4]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_training_a_copy_leaves_the_original_alone() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    train_model(copy.deepcopy(model), batches(), Recipe(1), loss_fn=cross_entropy, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
