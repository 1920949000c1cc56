"""The whole job from a factory to a report: dense, slim, Uniform and Random networks under one training recipe."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from tqdm.auto import tqdm

from nni_cafenet.checks import check_numbers
from nni_cafenet.cost import Budget, Limits
from nni_cafenet.errors import InfeasibleBudget, nearest
from nni_cafenet.export.slim_file import save_slim
from nni_cafenet.halving import finalists_of
from nni_cafenet.modes import evaluating
from nni_cafenet.networks import Factory, Network, random_network, uniform_network
from nni_cafenet.report import Report, write_report
from nni_cafenet.result import Result, width_rows
from nni_cafenet.run import SearchOptions, search_widths
from nni_cafenet.space import SearchSpace
from nni_cafenet.supernet.objectives import AnyLoss, ScoreFn, accuracy, checked_score, cross_entropy
from nni_cafenet.tracing.macs import count_macs
from nni_cafenet.train import Recipe, name_of
from nni_cafenet.trainings import Data, Teaching, Trainings
from nni_cafenet.widths import SubNetwork

Weights = Literal["scratch", "inherited"]


def compare_widths(
    factory: Factory,
    space: SearchSpace,
    data: Data,
    *,
    example_inputs: Any,
    budget: Budget,
    recipe: Recipe,
    folder: str | os.PathLike[str],
    runs: int = 3,
    weights: Weights | None = None,
    tuning: Recipe | None = None,
    teaching: Teaching | None = None,
    trained: bool = False,
    from_dense: bool = False,
    supernets: int = 1,
    finalists: int = 1,
    seed: int = 0,
    loss_fn: AnyLoss = cross_entropy,
    score_fn: ScoreFn = accuracy,
    command: str | None = None,
    progress: bool = True,
    **search_options: Any,
) -> Report:
    """Search `space` within `budget`, then train the found network, the dense one, Uniform and Random alike.

    Every network is trained with the same recipe, data and number of updates, `runs` times with the seeds seed,
    seed + 1, ...; Random is another draw in each. Uniform and Random are drawn channel by channel, not in bins, and
    fill the same budget. Called again with the same folder, it goes on where it was.

    Args:
        factory: makes the dense network, freshly initialised, or `trained`.
        space: of that network.
        data: for training, selection and the final score.
        example_inputs: for counting the exported network by fvcore.
        budget: of the slim networks.
        recipe: of every final training.
        folder: where result.json, widths.csv, history.csv, report.html, slim.safetensors and checkpoints go.
        runs: trainings of each network.
        weights: what final trainings start from. "scratch", the default, as in the paper; or "inherited", the default
            where the network is trained: the found network goes on from the supernet's weights, Uniform and Random from
            the dense network's most important channels, and the dense network from its own. That implies from_dense.
        tuning: the recipe of final trainings that inherit weights; unless given, `recipe`, by which the dense network
            was trained.
        teaching: makes of the trained dense network the loss of the slim networks' final trainings and of finalists,
            such as Distillation; `loss_fn` unless given.
        trained: whether what the factory makes is trained already: no dense network is trained before the search.
        from_dense: whether the supernet starts from the trained dense network of the first run, its most important
            channels first. Goes with a small learning rate, sandwich=True and distill=True.
        supernets: how many are trained; a score is the mean of theirs. Each has an initialisation of its own, or starts
            from the dense network of a run of its own.
        finalists: with more than 1, so many networks, the search's best and Uniform, are trained shortly and
            successively halved on the validation data, and the last one is the found network. The paper trusts the
            supernet; 16 finalists cost about five final trainings.
        seed: of the search and the first run.
        command: what to type to get the same, for the report.
        search_options: for :func:`nni_cafenet.search_widths`, such as epochs and searcher.

    Raises:
        InfeasibleBudget: before anything is trained, or where the exported network does not fit.
        ValueError: a number makes no sense, or a trained network is to be trained from scratch.
        TypeError: search_widths has no such option.
    """
    inherits = weights == "inherited" or (weights is None and trained)
    _check_weights(weights, tuning, inherits=inherits, trained=trained)
    from_dense = from_dense or inherits
    for name, number in (("runs", runs), ("supernets", supernets), ("finalists", finalists)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, but got {number}")
    _check_options(search_options)
    limits = space.limits(budget)
    folder = Path(folder)
    checkpoints = folder / "checkpoints"
    given = Network.full(space).make(factory, seed=seed) if trained else None
    trainings = Trainings(
        factory=factory, space=space, data=data, limits=limits, recipe=recipe, loss_fn=loss_fn, score_fn=score_fn,
        runs=runs, seed=seed, folder=checkpoints, progress=progress, given=given,
    )  # fmt: skip
    # another start is another supernet, another teacher another loss
    begun = "from-dense" if given is None else f"trained-{_hash_of_weights(given)}"
    searched = checkpoints / begun if from_dense else checkpoints
    ended = searched / "inherited" if inherits else checkpoints
    taught = "" if teaching is None else f"taught-{_hash(name_of(teaching).encode())}"

    start = time.perf_counter()
    if not from_dense:
        models = [Network.full(space).make(factory, seed=seed * supernets + number) for number in range(supernets)]
    elif trained:
        models = [trainings.sorted_dense(0)] * supernets
    else:
        models = [trainings.sorted_dense(number) for number in range(supernets)]
    slim_loss = loss_fn if teaching is None else trainings.taught_loss(teaching)
    seconds = {"dense": time.perf_counter() - start} if from_dense or teaching else {}
    result = search_widths(
        models, space, train_batches=data.train, valid_batches=data.valid, budget=budget, loss_fn=loss_fn,
        score_fn=score_fn, checkpoint=searched, seed=seed, progress=progress, **search_options,
    )  # fmt: skip
    seconds |= result.seconds
    start_of_slim, start_of_others = (_making(result.supernet), _making(models[0])) if inherits else (factory, factory)
    ending = tuning or recipe
    sub = result.best.subnetwork  # whose own channels have been scored; fresh ones are all alike
    found, said = Network(result.space, sub if inherits else SubNetwork.fixed(sub.widths)), None
    if finalists > 1:
        start = time.perf_counter()
        place = (ended if inherits else searched) / taught / f"finalists-{finalists}"
        found, said = trainings.best_of(finalists_of(result, finalists), ending, start_of_slim, place, slim_loss)
        seconds["finalists"] = time.perf_counter() - start
    start = time.perf_counter()
    networks = _networks(space, found, limits, runs=runs, seed=seed)
    scores: dict[str, list[float]] = {name: [] for name in networks}
    all_runs = [(name, run) for run in range(runs) for name in networks]
    for name, run in tqdm(all_runs, desc="training", unit="network", disable=None if progress else True, leave=False):
        network = networks[name][run]
        place, loss = (ended, loss_fn) if name == "dense" else (ended / taught, slim_loss)
        begin = start_of_slim if name == "slim" else start_of_others
        model = trainings.after(ending, name, run, network, begin, place, loss)
        scores[name].append(_scored(model, data, score_fn))
        if (name, run) == ("slim", 0):
            _check_fits(model, example_inputs, limits, space)
            save_slim(model, network.space, network.subnetwork, folder / "slim.safetensors")
    seconds["training"] = time.perf_counter() - start
    before = _scored(models[0], data, score_fn) if inherits else None
    report = _report(result, networks, scores, before, seconds, said, command, taught=bool(taught))
    write_report(folder, report)
    return report


def _check_weights(weights: object, tuning: object, *, inherits: bool, trained: bool) -> None:
    if weights not in (None, *get_args(Weights)):
        raise ValueError(f"weights must be one of {', '.join(get_args(Weights))}, but got {weights!r}")
    if trained and not inherits:
        raise ValueError(
            "trained=True says that the factory makes a trained network, and weights='scratch' wants a fresh one: "
            "leave out one of them"
        )
    if tuning is not None and not inherits:
        raise ValueError("tuning is for final trainings that inherit weights: give weights='inherited' too")


def _check_options(options: Mapping[str, Any]) -> None:
    """Of the search, which begins after the dense network's training."""
    known = [name for name in (*SearchOptions.__annotations__, "stages") if name != "checkpoint"]
    for name in options:
        if name not in known:
            raise TypeError(f"{name!r} is no option of compare_widths or search_widths; {nearest(name, known)}")
    check_numbers(**options)


def _hash_of_weights(model: nn.Module) -> str:
    """A short one of a model's tensors."""
    return _hash(*(
        name.encode() + tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ))  # fmt: skip


def _hash(*parts: bytes) -> str:
    """A short one, for the name of a folder."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:8]


def _making(model: nn.Module) -> Factory:
    """A factory that makes the same again and again, for networks to be cut out of."""
    return lambda: model


def _scored(model: nn.Module, data: Data, score_fn: ScoreFn) -> float:
    with evaluating(model):
        return checked_score(score_fn(model, data.test))


def _networks(space: SearchSpace, found: Network, limits: Limits, *, runs: int, seed: int) -> dict[str, list[Network]]:
    """Each network's widths in each run; fresh ones are all initialised and cut alike, by the fixed pattern."""
    return {
        "dense": [Network.full(space)] * runs,
        "slim": [found] * runs,
        "uniform": [uniform_network(space, limits)] * runs,
        "random": [random_network(space, limits, seed=seed + run) for run in range(runs)],
    }


def _check_fits(slim: nn.Module, example_inputs: Any, limits: Limits, space: SearchSpace) -> None:
    macs = count_macs(slim, example_inputs)
    if limits.max_macs is not None and macs > limits.max_macs:
        raise InfeasibleBudget(
            limit="max_macs", asked=limits.max_macs, smallest=space.cost.macs(space.smallest),
            largest=space.cost.macs(space.largest), reason=f"is exceeded by the exported network, {macs:,} by fvcore",
        )  # fmt: skip


def _report(
    result: Result,
    networks: Mapping[str, list[Network]],
    scores: Mapping[str, list[float]],
    before: float | None,
    seconds: Mapping[str, float],
    finalists: str | None,
    command: str | None,
    *,
    taught: bool,
) -> Report:
    base = result.report()
    summary = dict(base.summary)
    for name, of_runs in networks.items():
        summary[name] = {
            "macs": round(statistics.mean(network.macs for network in of_runs)),
            "params": round(statistics.mean(network.params for network in of_runs)),
            "accuracy": statistics.mean(scores[name]),
            "accuracy_std": statistics.stdev(scores[name]) if len(scores[name]) > 1 else 0.0,
            "accuracies": scores[name],
        }
    if before is not None:
        summary["before"] = {name: summary["dense"][name] for name in ("macs", "params")} | {"accuracy": before}
    summary["seconds"] = dict(seconds)
    summary["runs"] = len(scores["slim"])
    began = "from scratch" if before is None else "further from inherited weights"
    teacher = ", slim ones with the dense one as their teacher" if taught else ""
    summary["accuracy_of"] = f"networks trained {began} with one recipe{teacher}, on the test data"
    summary |= {name: text for name, text in (("finalists", finalists), ("command", command)) if text is not None}
    slim, uniform = networks["slim"][0], networks["uniform"][0]
    summary["widths"] = slim.space.channels(slim.subnetwork.widths)
    rows = width_rows(uniform.space, slim.space, slim.subnetwork.widths, uniform.space, uniform.subnetwork.widths)
    return replace(base, summary=summary, widths=rows)
