"""search_widths: the one file that knows all steps, from a model to the best sub-network within a budget."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from nni_cafenet.checkpoint import Checkpoint
from nni_cafenet.cost import Budget, Limits
from nni_cafenet.distributed import from_all, from_first, rank, world_size
from nni_cafenet.errors import CafeNetError, InvalidBatches
from nni_cafenet.modes import evaluating, seeded
from nni_cafenet.result import Result
from nni_cafenet.search.evolution import Evolution
from nni_cafenet.search.searcher import Candidate, Searcher, draw_within
from nni_cafenet.search.stages import Stage, stage_space, within
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
    stages: Sequence[Stage] = (),
    candidates: Candidates | str = "sampled",
    score_candidates: Candidates | str | None = None,
    random_share: float = 0.0,
    sandwich: bool = False,
    distill: bool = False,
    recalibrate_batches: int = 20,
    optimizer_fn: OptimizerFn = sgd,
    schedule_fn: ScheduleFn = cosine,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result:
    """Train a supernet of `model`, then search it for the widths of the highest score within `budget`.

    Where torch.distributed is initialised (torchrun), every rank calls it alike, with train_batches of its own share
    (DistributedSampler) and all of valid_batches: gradients are averaged, and the ranks share out what is scored.

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
        stages: of a multi-stage search, such as linear_stages(budget, count=2); each has a supernet, and bins, of its
            own, and starts from the weights and the widths that the stage before found (eq. 10).
        candidates: which joint choices a training step compares: "sampled", "sampled:5", "tied" or an object.
        score_candidates: which ones a score is the best of; "coordinate" too; those of training unless given.
        random_share: lambda of the paper: in this first share of the steps a random candidate is trained instead of
            the best one.
        sandwich: in every step the largest and the smallest network learn too, as in slimmable networks.
        distill: in every step the largest network learns too, and the others from its answers (for logits of shape
            (N, classes)).
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
    if stages and (ends := stages[-1].limits(space)) != limits:
        raise ValueError(f"the last stage must end at the budget, {limits}, but ends at {ends}")
    sharing = sharing or LocallyFree(offset=1)
    searcher = searcher or Evolution(seed=seed)
    training, scoring = as_candidates(candidates), as_candidates(score_candidates or candidates)
    loss_of = as_loss(loss_fn)
    batches = count_batches(train_batches)
    model = copy.deepcopy(model)
    _try_score(Supernet(model, space), score_fn, valid_batches)
    recalibration: list[Any] = []

    def run(space: SearchSpace, limits: Limits, epochs: int, most: int | None, folder: Path | None) -> Result:
        """One supernet, trained and searched; `model` keeps its weights."""
        steps = epochs * batches
        settings = {
            "space": space.fingerprint(), "sharing": repr(sharing), "candidates": repr(training), "epochs": epochs,
            "steps": steps, "random_share": random_share, "seed": seed,
            "sandwich": sandwich, "distill": distill,
        }  # fmt: skip
        supernet = Supernet(model, space)
        minmin = MinMin(
            supernet, sharing, training, int(random_share * steps), seed, sandwich=sandwich, distill=distill
        )
        start = time.perf_counter()
        fit(
            model.train(), train_batches, Recipe(epochs, optimizer_fn, schedule_fn),
            _supernet_step(minmin, loss_of),
            seed=seed, checkpoint=_in_folder(folder, "supernet", settings), label="supernet", progress=progress,
        )  # fmt: skip
        model.eval()
        seconds = {"supernet": time.perf_counter() - start}
        if not recalibration:
            drawn = first_batches(train_batches, recalibrate_batches, seed=seed, model=model)
            recalibration.extend(from_first(drawn))
        scorer = Scorer(supernet, valid_batches, score_fn, recalibration, loss_of, sharing, scoring, seed)
        searching = {
            **settings, "score_candidates": repr(scoring), "recalibrate_batches": recalibrate_batches,
            "searcher": repr(searcher), "limits": repr(limits),
        }  # fmt: skip
        return search_supernet(
            scorer, searcher, limits, most=most,
            checkpoint=_in_folder(folder, "search", searching), progress=progress, seconds=seconds,
        )  # fmt: skip

    folder = None if checkpoint is None else Path(checkpoint)
    if not stages:
        return run(space, limits, epochs, None, folder)
    return _in_stages(run, space, stages, epochs, folder)


def _in_stages(
    run: Callable[[SearchSpace, Limits, int, int | None, Path | None], Result],
    space: SearchSpace,
    stages: Sequence[Stage],
    epochs: int,
    folder: Path | None,
) -> Result:
    """The last stage's result; the dense network is the first one's, and the seconds are of all."""
    results: list[Result] = []
    for number, stage in enumerate(stages, 1):
        limits = stage.limits(space)
        widest = within(results[-1].space, results[-1].best.subnetwork) if results else space
        of_stage = epochs if stage.epochs is None else stage.epochs
        place = None if folder is None else folder / f"stage-{number}"
        results.append(run(stage_space(widest, stage, limits), limits, of_stage, stage.evaluations, place))
    seconds = {phase: sum(result.seconds[phase] for result in results) for phase in results[-1].seconds}
    return replace(results[-1], dense=results[0].dense, seconds=seconds, whole=space)


class Memory(Protocol):
    """Where a search keeps its state: a Checkpoint, or anything that gives back what it was given."""

    def load(self) -> dict[str, Any] | None: ...

    def save(self, state: Mapping[str, Any]) -> None: ...


def search_supernet(
    scorer: Scorer,
    searcher: Searcher,
    limits: Limits,
    *,
    most: int | None = None,
    checkpoint: Memory | None = None,
    progress: bool = True,
    seconds: Mapping[str, float] | None = None,
) -> Result:
    """The half of :func:`search_widths` that comes after training: score what `searcher` asks for, and the baselines.

    Args:
        scorer: of a trained supernet; its seed is the result's.
        searcher: any, begun here.
        limits: from space.limits(budget).
        most: widths to score, where the searcher would ask for more.
        checkpoint: goes on from the state in it.
        progress: a bar on stderr, if that is a terminal.
        seconds: wall time of the phases before, for the result.
    """
    start = time.perf_counter()
    space = scorer.supernet.space
    drawn = draw_within(space, limits, np.random.default_rng([scorer.seed, 1]))
    references = [space.largest, uniform_widths(space, limits), drawn]
    (dense, uniform, random), history = _search(scorer, searcher, limits, references, most, checkpoint, progress)
    took = {**(seconds or {}), "search": time.perf_counter() - start}
    return Result(tuple(history), dense, uniform, random, space, scorer.supernet.model, limits, took, scorer.seed)


def check_numbers(random_share: float, recalibrate_batches: int) -> None:
    """Raise ValueError where a number that every front end takes makes no sense."""
    if not 0 <= random_share <= 1:
        raise ValueError(f"random_share must be 0 to 1, but got {random_share}")
    if recalibrate_batches < 1:
        raise ValueError(f"recalibrate_batches must be at least 1, but got {recalibrate_batches}")


def _in_folder(folder: Path | None, name: str, settings: dict[str, Any]) -> Checkpoint | None:
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
    most: int | None,
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

    most = searcher.evaluations if most is None else min(most, searcher.evaluations)
    with tqdm(total=most, initial=len(history), desc="search", unit="width",
              disable=None if progress and rank() == 0 else True, leave=False) as bar:  # fmt: skip
        scored += [scorer.evaluate(widths) for widths in references[len(scored) :]]
        while len(history) < most and (asked := searcher.ask(min(world_size(), most - len(history)))):
            own = scorer.evaluate(asked[rank()]) if rank() < len(asked) else None
            found = [candidate for candidate in from_all(own) if candidate is not None]
            searcher.tell(found)
            history += found
            bar.update(len(found))
            bar.set_postfix(best=f"{max(other.score for other in history):.4f}", refresh=False)
            if time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                save()
                saved = time.monotonic()
    save()
    if not any(limits.admit(space.cost, found.subnetwork.widths) for found in history):
        raise CafeNetError(f"{searcher!r} asked for no widths within {limits}, but for {len(history)} larger")
    return scored, history


def _try_score(supernet: Supernet, score_fn: ScoreFn, valid_batches: Iterable[Any]) -> None:
    """Score the full network before anything is trained: a broken score function should not cost a night."""
    once = isinstance(valid_batches, Iterator)
    if once or not first_batches(valid_batches, 1, seed=0, model=supernet.model):
        raise InvalidBatches("valid_batches yields nothing, or only once: give a DataLoader or a list of batches")
    sub = SubNetwork.fixed(supernet.space.largest)
    with torch.no_grad(), supernet.running(sub) as model, evaluating(model), seeded(0, 0, model):
        checked_score(score_fn(model, valid_batches))


def _to_plain(found: Candidate) -> dict[str, Any]:
    kept = [list(bins) for bins in found.subnetwork.kept]
    return {"kept": kept, "score": found.score, "macs": found.macs, "params": found.params}


def _from_plain(plain: dict[str, Any]) -> Candidate:
    kept = tuple(tuple(bins) for bins in plain["kept"])
    sub = SubNetwork(Widths(tuple(map(len, kept))), kept)
    return Candidate(sub, plain["score"], plain["macs"], plain["params"])
