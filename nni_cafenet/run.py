"""search_widths: the one file that knows all steps, from a model to the best sub-network within a budget."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from nni_cafenet.checkpoint import Checkpoint, Memory
from nni_cafenet.cost import Budget, Limits
from nni_cafenet.errors import CafeNetError, InvalidBatches
from nni_cafenet.modes import evaluating, seeded
from nni_cafenet.result import Result
from nni_cafenet.search.evolution import Evolution
from nni_cafenet.search.searcher import Candidate, Searcher, draw_within
from nni_cafenet.sharing import LocallyFree, SharingPattern
from nni_cafenet.space import SearchSpace, uniform_widths
from nni_cafenet.supernet.candidates import Candidates, as_candidates
from nni_cafenet.supernet.evaluate import Scorer
from nni_cafenet.supernet.minmin import MinMin
from nni_cafenet.supernet.objectives import LossFn, ScoreFn, TorchLoss, accuracy, as_loss, checked_score, cross_entropy
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.train import OptimizerFn, Recipe, ScheduleFn, StepFn, cosine, count_batches, first_batches, fit, sgd
from nni_cafenet.widths import SubNetwork, Widths

SECONDS_BETWEEN_SAVES = 5.0


def search_widths(
    model: nn.Module,
    space: SearchSpace,
    *,
    train_batches: Iterable[Any],
    valid_batches: Iterable[Any],
    budget: Budget,
    loss_fn: LossFn | TorchLoss | nn.Module = cross_entropy,
    score_fn: ScoreFn = accuracy,
    sharing: SharingPattern | None = None,
    searcher: Searcher | None = None,
    epochs: int = 60,
    candidates: Candidates | str = "sampled",
    score_candidates: Candidates | str | None = None,
    random_share: float = 0.0,
    recalibrate_batches: int = 20,
    optimizer_fn: OptimizerFn = sgd,
    schedule_fn: ScheduleFn = cosine,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Train a supernet of `model`, then search it for the widths of the highest score within `budget`.

    Args:
        model: where the supernet starts from, pretrained or not; left as it is.
        space: from build_space(model, example_inputs).
        train_batches: what the supernet learns from, iterated anew every epoch (a DataLoader or a list).
        valid_batches: what sub-networks are scored on: a part of the training data, never the test set.
        budget: the most that the found network may cost.
        loss_fn: (model, batch) -> scalar tensor, or a torch loss (nn.CrossEntropyLoss(), F.cross_entropy) for batches
            of (inputs, targets).
        score_fn: (model in eval mode, batches) -> number, higher is better.
        sharing: which bins stand for a width; LocallyFree(offset=1), the paper's, unless given.
        searcher: Evolution(seed=seed), CafeNet-E of the paper, unless given.
        epochs: of the supernet's training.
        candidates: which joint choices a training step compares: "sampled", "sampled:5", "tied" or an object.
        score_candidates: which ones a score is the best of; "coordinate" too; those of training unless given.
        random_share: lambda of the paper: in this first share of the steps a random candidate is trained instead of
            the best one.
        recalibrate_batches: training batches from which each sub-network's BatchNorm statistics are re-estimated.
        optimizer_fn: parameters -> optimizer, for the supernet.
        schedule_fn: (optimizer, steps) -> scheduler, stepped every step.
        checkpoint: a folder; called again with the same one, training and search go on where they were.
        seed: of everything random. torch's global generators are used and restored.
        progress: bars on stderr, if that is a terminal.

    Raises:
        InfeasibleBudget: before anything is trained.
        InvalidBatches: a loader that yields nothing, or a loss that is not a scalar.
        InvalidScore: score_fn gives no finite number.
        TrainingDiverged: the loss is NaN or infinite; the message names the step and the widths.
        CheckpointMismatch: the checkpoint is damaged or belongs to other settings.
    """
    limits = space.limits(budget)
    check_numbers(random_share, recalibrate_batches)
    sharing = sharing or LocallyFree(offset=1)
    searcher = searcher or Evolution(seed=seed)
    training, scoring = as_candidates(candidates), as_candidates(score_candidates or candidates)
    loss_of = as_loss(loss_fn)
    recipe = Recipe(epochs, optimizer_fn, schedule_fn)
    steps = epochs * count_batches(train_batches)
    supernet = Supernet(copy.deepcopy(model), space)
    _try_score(supernet, score_fn, valid_batches)
    settings = {
        "space": space.fingerprint(), "sharing": repr(sharing), "candidates": repr(training), "epochs": epochs,
        "steps": steps, "random_share": random_share, "seed": seed,
    }  # fmt: skip
    seconds: dict[str, float] = {}

    start = time.perf_counter()
    train_supernet(
        supernet, train_batches, recipe, MinMin(supernet, sharing, training, int(random_share * steps), seed), loss_of,
        checkpoint=_in_folder(checkpoint, "supernet", settings), progress=progress,
    )  # fmt: skip
    seconds["supernet"] = time.perf_counter() - start

    recalibration = first_batches(train_batches, recalibrate_batches, seed=seed, model=supernet.model)
    scorer = Scorer(supernet, valid_batches, score_fn, recalibration, loss_of, sharing, scoring, seed)
    searching = {
        **settings, "score_candidates": repr(scoring), "recalibrate_batches": recalibrate_batches,
        "searcher": repr(searcher), "limits": repr(limits),
    }  # fmt: skip
    return search_supernet(
        scorer, searcher, limits,
        checkpoint=_in_folder(checkpoint, "search", searching), progress=progress, seconds=seconds,
    )  # fmt: skip


def train_supernet(
    supernet: Supernet,
    train_batches: Iterable[Any],
    recipe: Recipe,
    training: MinMin,
    loss_fn: LossFn,
    *,
    checkpoint: Memory | None = None,
    progress: bool = True,
    on_epoch: Callable[[], None] | None = None,
) -> None:
    """The half of :func:`search_widths` that comes before the search: train by min-min, then set eval mode.

    Args:
        supernet: trained in place.
        training: its seed is that of the loader's shuffling too.
        checkpoint: goes on from the state in it.
        on_epoch: called after every epoch; it must not change the model.
    """
    fit(
        supernet.model.train(), train_batches, recipe, _supernet_step(training, loss_fn),
        seed=training.seed, checkpoint=checkpoint, label="supernet", progress=progress, on_epoch=on_epoch,
    )  # fmt: skip
    supernet.model.eval()


def search_supernet(
    scorer: Scorer,
    searcher: Searcher,
    limits: Limits,
    *,
    checkpoint: Memory | None = None,
    progress: bool = True,
    seconds: Mapping[str, float] | None = None,
) -> Result:
    """The half of :func:`search_widths` that comes after training: score what `searcher` asks for, and the baselines.

    Args:
        scorer: of a trained supernet; its seed is the result's.
        searcher: any, begun here.
        limits: from space.limits(budget).
        checkpoint: goes on from the state in it.
        progress: a bar on stderr, if that is a terminal.
        seconds: wall time of the phases before, for the result.
    """
    start = time.perf_counter()
    space = scorer.supernet.space
    drawn = draw_within(space, limits, np.random.default_rng([scorer.seed, 1]))
    references = [space.largest, uniform_widths(space, limits), drawn]
    (dense, uniform, random), history = _search(scorer, searcher, limits, references, checkpoint, progress)
    took = {**(seconds or {}), "search": time.perf_counter() - start}
    return Result(tuple(history), dense, uniform, random, space, scorer.supernet.model, limits, took, scorer.seed)


def check_numbers(random_share: float, recalibrate_batches: int) -> None:
    """Raise ValueError where a number that every front end takes makes no sense."""
    if not 0 <= random_share <= 1:
        raise ValueError(f"random_share must be 0 to 1, but got {random_share}")
    if recalibrate_batches < 1:
        raise ValueError(f"recalibrate_batches must be at least 1, but got {recalibrate_batches}")


def _in_folder(folder: str | os.PathLike[str] | None, name: str, settings: dict[str, Any]) -> Checkpoint | None:
    return None if folder is None else Checkpoint(folder, name, settings)


def _supernet_step(training: MinMin, loss_fn: LossFn) -> StepFn:
    def step(batch: Any, number: int) -> float:
        loss = training.loss(batch, number, loss_fn)
        loss.backward()
        return float(loss.detach())

    return step


def _search(
    scorer: Scorer,
    searcher: Searcher,
    limits: Limits,
    references: list[Widths],
    checkpoint: Memory | None,
    progress: bool,
) -> tuple[list[Candidate], list[Candidate]]:
    space = scorer.supernet.space
    searcher.begin(space, limits)
    history: list[Candidate] = []
    scored: list[Candidate] = []
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        searcher.load_state_dict(state["searcher"])
        history = [_from_plain(plain) for plain in state["history"]]
        scored = [_from_plain(plain) for plain in state["references"]]
    saved = time.monotonic()

    def save() -> None:
        if checkpoint is not None:
            checkpoint.save({
                "searcher": searcher.state_dict(), "history": [_to_plain(found) for found in history],
                "references": [_to_plain(found) for found in scored],
            })  # fmt: skip

    with tqdm(total=searcher.evaluations, initial=len(history), desc="search", unit="width",
              disable=None if progress else True, leave=False) as bar:  # fmt: skip
        scored += [scorer.evaluate(widths) for widths in references[len(scored) :]]
        while asked := searcher.ask(1):
            found = scorer.evaluate(asked[0])
            assert limits.admit(space.cost, asked[0]), "a searcher asks within the limits"
            searcher.tell([found])
            history.append(found)
            bar.update()
            bar.set_postfix(best=f"{max(other.score for other in history):.4f}", refresh=False)
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                save()
                saved = time.monotonic()
    save()
    if not history:
        raise CafeNetError(f"{searcher!r} asked for no widths at all")
    return scored, history


def _try_score(supernet: Supernet, score_fn: ScoreFn, valid_batches: Iterable[Any]) -> None:
    """Score the full network before anything is trained: a broken score function should not cost a night."""
    check_valid_batches(valid_batches, supernet.model)
    sub = SubNetwork.fixed(supernet.space.largest)
    with torch.no_grad(), supernet.running(sub) as model, evaluating(model), seeded(0, 0, model):
        checked_score(score_fn(model, valid_batches))


def check_valid_batches(valid_batches: Iterable[Any], model: nn.Module) -> None:
    """Raise InvalidBatches where there is nothing to score on, or nothing the second time."""
    once = isinstance(valid_batches, Iterator)
    if once or not first_batches(valid_batches, 1, seed=0, model=model):
        raise InvalidBatches("valid_batches yields nothing, or only once: give a DataLoader or a list of batches")


def _to_plain(found: Candidate) -> dict[str, Any]:
    kept = [list(bins) for bins in found.subnetwork.kept]
    return {"kept": kept, "score": found.score, "macs": found.macs, "params": found.params}


def _from_plain(plain: dict[str, Any]) -> Candidate:
    kept = tuple(tuple(bins) for bins in plain["kept"])
    sub = SubNetwork(Widths(tuple(map(len, kept))), kept)
    return Candidate(sub, plain["score"], plain["macs"], plain["params"])
