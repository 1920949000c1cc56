"""search_widths: the one file that knows all steps, from a model to the best sub-network within a budget."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from nni_cafenet.checkpoint import Checkpoint
from nni_cafenet.cost import Budget, Limits
from nni_cafenet.distributed import from_first
from nni_cafenet.phases import check_numbers, check_parts, search_supernet, train_supernet, try_score
from nni_cafenet.result import Result
from nni_cafenet.search.evolution import Evolution
from nni_cafenet.search.searcher import Searcher
from nni_cafenet.search.stages import Stage, stage_space, within
from nni_cafenet.sharing import LocallyFree, SharingPattern
from nni_cafenet.space import SearchSpace
from nni_cafenet.supernet.candidates import Candidates, as_candidates
from nni_cafenet.supernet.evaluate import Scorer
from nni_cafenet.supernet.minmin import MinMin
from nni_cafenet.supernet.objectives import LossFn, ScoreFn, TorchLoss, accuracy, as_loss, cross_entropy
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.train import OptimizerFn, Recipe, ScheduleFn, cosine, count_batches, first_batches, sgd


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
    check_parts(sharing, searcher)
    training, scoring = as_candidates(candidates), as_candidates(score_candidates or candidates)
    loss_of = as_loss(loss_fn)
    batches = count_batches(train_batches)
    model = copy.deepcopy(model)
    try_score(Supernet(model, space), score_fn, valid_batches)
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
        train_supernet(
            supernet, train_batches, Recipe(epochs, optimizer_fn, schedule_fn), minmin, loss_of,
            checkpoint=_in_folder(folder, "supernet", settings), progress=progress,
        )  # fmt: skip
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


def _in_folder(folder: Path | None, name: str, settings: dict[str, Any]) -> Checkpoint | None:
    return None if folder is None else Checkpoint(folder, name, settings)
