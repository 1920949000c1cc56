"""The paper's tables 1 to 4: ImageNet, CIFAR-10 and CelebA, from a folder of images to the accuracy of each network.

python -m examples.paper.classification imagenet-resnet50 --data DIR --out DIR --macs 2.0e9 --method cafenet-e uniform
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.paper.datasets import CLASSIFICATION, BadData, Splits
from examples.paper.experiments import EXPERIMENTS, Experiment
from examples.paper.launch import add_options, device, guarded, in_bf16, loader, say
from nni_cafenet import (
    Budget,
    Distillation,
    Evolution,
    LocallyFree,
    RandomSearch,
    Searcher,
    SearchSpace,
    SubNetwork,
    build_space,
    linear_stages,
    load_slim,
    save_slim,
    search_widths,
    train_model,
    widen,
)
from nni_cafenet.checkpoint import Checkpoint
from nni_cafenet.distributed import from_first, rank
from nni_cafenet.halving import best_of_random
from nni_cafenet.modes import evaluating
from nni_cafenet.networks import Network, uniform_network
from nni_cafenet.tracing.bins import BinRule

METHODS = ("dense", "cafenet-e", "cafenet-r", "uniform", "random")
POPULATION, GENERATIONS, PARENTS, MUTATION = 50, 40, 10, 0.1  # of CafeNet-E; CafeNet-R scores as many widths
RANDOM_TRIES = 20


@dataclass(frozen=True)
class Search:
    """What the ablations change: r, lambda, how many times the training and the search, and the bins."""

    offset: int = 1
    random_share: float = 0.0
    training: int = 1
    searching: int = 1
    min_bin: float = 1
    bins: BinRule | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    add_job(parser)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS, help="all unless given")
    options = parser.parse_args(arguments)
    return guarded(lambda: run(EXPERIMENTS[options.experiment], options, Search()))


def add_job(parser: argparse.ArgumentParser) -> None:
    """The options that the ablations share."""
    add_options(parser)
    parser.add_argument(
        "--macs", nargs="+", metavar="N", help="budgets, such as 2.0e9 or 50%%; the paper's unless given"
    )
    parser.add_argument("--classes", type=int, help="of images of your own, in folders as ImageNet's")
    parser.add_argument("--supernet-epochs", type=int, help="instead of the paper's")
    parser.add_argument("--epochs", type=int, help="of the final trainings, instead of the paper's")
    parser.add_argument("--widen", type=float, default=1.0, help="search in a network of so many times the MACs")
    parser.add_argument(
        "--stages", type=int, default=1, help="of a multi-stage search (eq. 10), the paper's on CIFAR-10"
    )


def run(experiment: Experiment, options: argparse.Namespace, search: Search) -> list[dict[str, Any]]:
    """A row for each method and budget, printed, and kept in OUT/METHOD-MACS-SEED/result.json."""
    job = prepare(experiment, options, search)
    budgets = options.macs or (["50%"] if options.dry_run else job.experiment.budgets)
    rows = []
    for method in options.method:
        for macs in ["100%"] if method == "dense" else budgets:
            budget = Budget(max_macs=macs if str(macs).endswith("%") else float(macs))
            rows.append(evaluate(job, method, budget))
            say(json.dumps(rows[-1]))
    return rows


@dataclass(frozen=True, eq=False)
class Job:
    """What all networks of a command share."""

    experiment: Experiment
    search: Search
    options: argparse.Namespace
    splits: Splits
    factory: Callable[[], nn.Module]
    space: SearchSpace

    def folder(self, name: str) -> Path:
        return Path(self.options.out) / f"{name}-seed{self.options.seed}"

    def batches(self, split: str, size: int = 256) -> Any:
        images = getattr(self.splits, split)
        return loader(images, batch=size, workers=self.options.workers, train=split in ("train", "whole"))

    def cast(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return in_bf16(function, enabled=device().type == "cuda" and not self.options.no_bf16)


def prepare(experiment: Experiment, options: argparse.Namespace, search: Search) -> Job:
    """Data and space. A dry run differs by numbers alone: 8 images of 32 px in each split, one epoch, a few widths."""
    e = replace(
        experiment, classes=options.classes or experiment.classes,
        supernet=experiment.supernet.changed(epochs=options.supernet_epochs),
        final=experiment.final.changed(epochs=options.epochs),
    )  # fmt: skip
    if options.dry_run:
        once = {"epochs": 1, "batch": 4, "lr": 1e-12}  # BatchNorm over 4 images explodes gradients
        e = replace(e, size=32, supernet=e.supernet.changed(**once), final=e.final.changed(**once), random_epochs=1)
    splits = CLASSIFICATION[e.data](Path(options.data), size=e.size, classes=e.classes, seed=options.seed)
    factory, example = partial(e.network, num_classes=e.classes), torch.zeros(1, 3, e.size, e.size)
    if options.widen != 1:
        factory = partial(fresh, widen(factory(), example, macs=options.widen, seed=options.seed))
    space = build_space(factory(), example, min_bin=search.min_bin, bins=search.bins)
    say(space.describe())
    return Job(e, search, options, splits.first(8) if options.dry_run else splits, factory, space)


def fresh(model: nn.Module) -> nn.Module:
    """A copy of `model` with new weights."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def evaluate(job: Job, method: str, budget: Budget) -> dict[str, Any]:
    """Find the widths, train the network as the dense one is trained, score it on the test set, once."""
    e, options = job.experiment, job.options
    limits = job.space.limits(budget)
    folder = job.folder(f"{method}-{limits.max_macs / 1e6:.0f}M" if method != "dense" else method)
    settings = {
        "space": job.space.fingerprint(), "method": method, "macs": limits.max_macs, "search": repr(job.search),
        "experiment": repr((e.data, e.size, e.supernet, e.final)), "stages": options.stages, "dry_run": options.dry_run,
    }  # fmt: skip
    done = Checkpoint(folder, "done", settings)
    if (row := done.load()) is not None:
        return row
    loss = e.loss
    if e.distill and method != "dense":
        loss = Distillation(teacher(job))
    epochs = e.final.epochs
    if method == "random":
        network, model = best_of_random(
            job.factory, job.space, limits, train_batches=job.batches("train", e.final.batch),
            valid_batches=job.batches("valid"), recipe=e.final.changed(epochs=e.random_epochs).recipe(),
            folder=folder / "tries", tries=2 if options.dry_run else RANDOM_TRIES, loss_fn=job.cast(loss),
            score_fn=job.cast(e.score), device=device(), seed=options.seed,
        )  # fmt: skip
        epochs = max(epochs - e.random_epochs, 0)  # the best goes on: as many updates as the others'
    else:
        network = uniform_network(job.space, limits) if method == "uniform" else searched(job, method, budget, folder)
        model = network.make(job.factory, seed=options.seed).to(device())
    recipe = e.final.changed(epochs=epochs).recipe()
    widths = {**recipe.settings(), "widths": list(network.subnetwork.widths.bins_kept)}
    train_model(
        model, job.batches("whole", e.final.batch), recipe, loss_fn=job.cast(loss), seed=options.seed,
        checkpoint=Checkpoint(folder, "training", {**settings, **widths}), label=f"training {folder.name}",
    )  # fmt: skip
    with evaluating(model):
        score = from_first(float(job.cast(e.score)(model, job.batches("test"))))
    row = {"method": method, "macs": network.macs, "params": network.params, "accuracy": score}
    if rank() == 0:
        save_slim(model.cpu(), network.space, network.subnetwork, folder / "slim.safetensors")
        (folder / "result.json").write_text(json.dumps(row, indent=2) + "\n")
    done.save(row)
    return from_first(row)  # nobody goes on before the files are written


def teacher(job: Job) -> nn.Module:
    """The dense network, trained by an earlier command or just before."""
    path = job.folder("dense") / "slim.safetensors"
    if not path.exists():
        raise BadData(f"slim networks learn from the dense one here, and there is no {path}: run --method dense first")
    return load_slim(path, job.factory).to(device())


def searched(job: Job, method: str, budget: Budget, folder: Path) -> Network:
    """The full network for "dense"; else the best one of a search."""
    if method == "dense":
        return Network.full(job.space)
    e, search, seed = job.experiment, job.search, job.options.seed
    population, generations = (2, 2) if job.options.dry_run else (POPULATION, GENERATIONS)
    generations *= search.searching
    if method == "cafenet-e":
        searcher: Searcher = Evolution(
            population=population, generations=generations, parents=PARENTS, mutation=MUTATION, seed=seed
        )
    else:
        searcher = RandomSearch(evaluations=population * generations, seed=seed)
    training = e.supernet.changed(epochs=e.supernet.epochs * search.training).recipe()
    stages = linear_stages(budget, count=job.options.stages) if job.options.stages > 1 else ()
    shared = job.folder("supernet") / "supernet.pt"  # it knows neither budget nor searcher: trained once for all
    copied(shared, folder / "search" / "supernet.pt")
    model = Network.full(job.space).make(job.factory, seed=seed)
    result = search_widths(
        model.to(device()), job.space, train_batches=job.batches("train", e.supernet.batch),
        valid_batches=job.batches("valid"), budget=budget, loss_fn=job.cast(e.loss), score_fn=job.cast(e.score),
        sharing=LocallyFree(offset=search.offset), searcher=searcher, epochs=training.epochs, stages=stages,
        random_share=search.random_share, recalibrate_batches=1 if job.options.dry_run else 20,
        optimizer_fn=training.optimizer_fn, checkpoint=folder / "search", seed=seed,
    )  # fmt: skip
    copied(folder / "search" / "supernet.pt", shared)
    if rank() == 0:
        result.save(folder / "search")
    return Network(result.space, SubNetwork.fixed(result.best.subnetwork.widths))


def copied(source: Path, target: Path) -> None:
    """Copy a checkpoint, where there is one and none at its target; all processes go on after that."""
    if rank() == 0 and source.exists() and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    from_first(None)


if __name__ == "__main__":
    sys.exit(main())
