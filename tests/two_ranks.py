"""What test_distributed.py runs on each rank: a search, whose outcome it writes down. Not a test itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from nni_cafenet import (
    Budget,
    Evolution,
    PredictorSearch,
    accuracy,
    build_space,
    cross_entropy,
    linear_stages,
    search_widths,
)
from nni_cafenet.distributed import rank, world_size

IMAGES = 32
SMALL = Evolution(population=6, generations=3)


def net() -> nn.Module:
    """Without BatchNorm, whose statistics are each rank's own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.GroupNorm(1, 8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(4, (IMAGES,), generator=generator)
    return TensorDataset(torch.randn(IMAGES, 3, 12, 12, generator=generator) + targets.view(-1, 1, 1, 1), targets)


def likelihood(model: nn.Module, batches: Iterable[list[torch.Tensor]]) -> float:
    """Of the targets, in logarithms; finer than accuracy."""
    return -float(torch.stack([cross_entropy(model, batch) for batch in batches]).mean())


def main(out: Path) -> None:
    sampler = DistributedSampler(data(), num_replicas=world_size(), rank=rank(), shuffle=True)
    train = DataLoader(data(), batch_size=8 // world_size(), sampler=sampler)
    space = build_space(net(), torch.zeros(1, 3, 12, 12))
    budget = Budget(max_macs="50%")
    result = search_widths(
        net(), space, train_batches=train, valid_batches=DataLoader(data(), batch_size=16), budget=budget,
        loss_fn=cross_entropy, score_fn=accuracy, searcher=Evolution(population=5, generations=2, parents=2), epochs=4,
        stages=linear_stages(budget, count=2), optimizer_fn=partial(torch.optim.SGD, lr=0.05),
        checkpoint=out / "checkpoint", progress=False,
    )  # fmt: skip
    sweep = search_widths(
        net(), space, train_batches=train, valid_batches=DataLoader(data(), batch_size=16),
        budgets=[Budget(max_macs="60%"), Budget(max_macs="30%")], searcher=Evolution(population=5, generations=2),
        epochs=2, optimizer_fn=partial(torch.optim.SGD, lr=0.05), checkpoint=out / "sweep", progress=False,
    )  # fmt: skip
    several = search_widths(
        [net(), net()], space, train_batches=train, valid_batches=DataLoader(data(), batch_size=16),
        budget=Budget(max_macs="40%"), searcher=PredictorSearch(evaluations=8, first=5, favourites=3, explorer=SMALL),
        epochs=2, optimizer_fn=partial(torch.optim.SGD, lr=0.05), checkpoint=out / "several", progress=False,
    )  # fmt: skip
    alone = search_widths(
        net(), space, train_batches=DataLoader(data(), batch_size=8, shuffle=True),
        valid_batches=DataLoader(data(), batch_size=16), budget=Budget(max_macs="40%"),
        searcher=PredictorSearch(evaluations=8, first=5, favourites=3, explorer=SMALL), train_each=2,
        score_fn=likelihood, optimizer_fn=partial(torch.optim.SGD, lr=0.05), checkpoint=out / "alone", progress=False,
    )  # fmt: skip
    found = {
        "widths": [list(candidate.subnetwork.widths.bins_kept) for candidate in result.history],
        "scores": [candidate.score for candidate in result.history],
        "swept": [[list(candidate.subnetwork.widths.bins_kept) for candidate in one.history] for one in sweep.results],
        "several": [list(candidate.subnetwork.widths.bins_kept) for candidate in several.history],
        "predicted": several.predicted,
        "alone": [[*candidate.subnetwork.widths.bins_kept, candidate.score] for candidate in alone.history],
        "front": [candidate.score for candidate in sweep.pareto],
        "weights": [weight.double().square().sum().item() for weight in result.supernet.parameters()],
        "world": world_size(),
    }
    (out / f"rank{rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        distributed.init_process_group("gloo")
    main(Path(sys.argv[1]))
    if distributed.is_initialized():
        distributed.destroy_process_group()
