"""search_widths: the one file that knows all steps, from a model to the best sub-network within a budget."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, overload

from torch import nn

from nni_cafenet.alone import AloneScorer
from nni_cafenet.checkpoint import Checkpoint
from nni_cafenet.checks import (
    as_models,
    check_numbers,
    check_parts,
    check_stages,
    check_train_each,
    limits_of,
    warn_of_coarse_bins,
)
from nni_cafenet.cost import Budget, Limits
from nni_cafenet.distributed import from_first
from nni_cafenet.phases import search_supernet, train_supernet, try_score
from nni_cafenet.result import Result
from nni_cafenet.search.predictor import PredictorSearch, evaluations_of
from nni_cafenet.search.searcher import Candidate, Searcher
from nni_cafenet.search.stages import Stage, stage_space, within
from nni_cafenet.sharing import LocallyFree, SharingPattern
from nni_cafenet.space import SearchSpace
from nni_cafenet.supernet.candidates import Candidates, as_candidates
from nni_cafenet.supernet.evaluate import Scorer
from nni_cafenet.supernet.minmin import MinMin
from nni_cafenet.supernet.objectives import AnyLoss, ScoreFn, accuracy, as_loss, cross_entropy
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.sweep import Sweep
from nni_cafenet.train import OptimizerFn, Recipe, ScheduleFn, cosine, count_batches, first_batches, sgd

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11


class SearchOptions(TypedDict, total=False):
    """What :func:`search_widths` takes for one budget as for several; it says what each is."""

    loss_fn: AnyLoss
    score_fn: ScoreFn
    sharing: SharingPattern | None
    searcher: Searcher | None
    epochs: int
    train_each: int
    candidates: Candidates | str
    score_candidates: Candidates | str | None
    random_share: float
    sandwich: bool
    distill: bool
    ema: float
    recalibrate_batches: int
    optimizer_fn: OptimizerFn
    schedule_fn: ScheduleFn
    checkpoint: str | os.PathLike[str] | None
    seed: int
    progress: bool


@overload
def search_widths(
    model: nn.Module | Sequence[nn.Module],
    space: SearchSpace,
    *,
    train_batches: Iterable[Any],
    valid_batches: Iterable[Any],
    budget: Budget,
    stages: Sequence[Stage] = (),
    **options: Unpack[SearchOptions],
) -> Result: ...


@overload
def search_widths(
    model: nn.Module | Sequence[nn.Module],
    space: SearchSpace,
    *,
    train_batches: Iterable[Any],
    valid_batches: Iterable[Any],
    budgets: Sequence[Budget],
    **options: Unpack[SearchOptions],
) -> Sweep: ...


def search_widths(
    model: nn.Module | Sequence[nn.Module],
    space: SearchSpace,
    *,
    train_batches: Iterable[Any],
    valid_batches: Iterable[Any],
    budget: Budget | None = None,
    budgets: Sequence[Budget] | None = None,
    loss_fn: AnyLoss = cross_entropy,
    score_fn: ScoreFn = accuracy,
    sharing: SharingPattern | None = None,
    searcher: Searcher | None = None,
    epochs: int = 60,
    train_each: int = 0,
    stages: Sequence[Stage] = (),
    candidates: Candidates | str = "sampled",
    score_candidates: Candidates | str | None = None,
    random_share: float = 0.0,
    sandwich: bool = False,
    distill: bool = False,
    ema: float = 0.0,
    recalibrate_batches: int = 20,
    optimizer_fn: OptimizerFn = sgd,
    schedule_fn: ScheduleFn = cosine,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Result | Sweep:
    """Train a supernet of `model`, then search it for the widths of the highest score within `budget`.

    A supernet knows no budget (min-min training draws widths from the whole space), so that of several `budgets` each
    is searched in the same one: the result of each is what a call with that `budget` alone would give, for one
    training, and no widths are scored twice.

    Where torch.distributed is initialised (torchrun), every rank calls it alike, with train_batches of its own share
    (DistributedSampler) and all of valid_batches: gradients are averaged, and the ranks share out what is scored. With
    train_each every rank trains networks of its own, on all of train_batches.

    Args:
        model: where the supernet starts from, left as it is; of a trained one :func:`nni_cafenet.sort_channels` brings
            the most important channels to the front first. Or several of the same architecture, such as of other
            initialisations: each becomes a supernet, with a seed of its own, and a score is the mean of theirs.
        space: from build_space(model, example_inputs).
        train_batches: what the supernet learns from, iterated anew every epoch (a DataLoader or a list).
        valid_batches: what sub-networks are scored on: a part of the training data, never the test set.
        budget: the most that the found network may cost. The outcome is a Result.
        budgets: or several of these, no two alike; `searcher` is begun anew for each. The outcome is a Sweep: a Result
            for each, in this order, and the Pareto front of all.
        loss_fn: (model, batch) -> scalar tensor, or a torch loss (nn.CrossEntropyLoss(), F.cross_entropy) for batches
            of (inputs, targets).
        score_fn: (model in eval mode, batches) -> number, higher is better.
        sharing: which bins stand for a width; LocallyFree(offset=1), the paper's, unless given.
        searcher: PredictorSearch(seed=seed) unless given, which finds more by as many scores than the paper's
            CafeNet-E, Evolution(seed=seed); its CafeNet-R is RandomSearch(seed=seed).
        epochs: of the supernet's training.
        train_each: with more than 0 there is no supernet: each network that the searcher asks for is trained by itself,
            from `model`, for so many epochs, and scored. To a PredictorSearch some sixty say enough, and the same ones
            for all budgets.
        stages: of a multi-stage search, such as linear_stages(budget, count=2); each has a supernet, and bins, of its
            own, and starts from the weights and the widths that the stage before found (eq. 10). Of one budget only.
        candidates: which joint choices a training step compares: "sampled", "sampled:5", "tied" or an object.
        score_candidates: which ones a score is the best of; "coordinate" too; those of training unless given.
        random_share: lambda of the paper: in this first share of the steps a random candidate is trained instead of
            the best one.
        sandwich: in every step the largest and the smallest network learn too, as in slimmable networks.
        distill: in every step the largest network learns too, and the others from its answers (for logits of shape
            (N, classes)).
        ema: with more than 0 the supernet has in the end the moving average of its weights with this decay, such as
            0.995; so have networks that train_each trains.
        recalibrate_batches: training batches from which each sub-network's BatchNorm statistics are re-estimated.
        optimizer_fn: parameters -> optimizer, for the supernet.
        schedule_fn: (optimizer, steps) -> scheduler, stepped every step.
        checkpoint: a folder; called again with the same one, training and search go on where they were. Of several
            budgets each has a file of its own there, so that a later call may add or leave out some.
        seed: of everything random. torch's global generators are used and restored.
        progress: bars on stderr, if that is a terminal.

    Raises:
        InfeasibleBudget: before anything is trained, whichever budget it is.
        InvalidBatches: a loader that yields nothing, or a loss that is not a scalar; with train_each a loader of a
            rank's share.
        InvalidScore: score_fn gives no finite number.
        TrainingDiverged: the loss is NaN or infinite; the message names the step and the widths.
        CheckpointMismatch: the checkpoint is damaged or belongs to other settings.
        ValueError: neither a budget nor budgets, or both; no budgets, two alike, or budgets with stages.
    """
    all_limits = limits_of(space, budget, budgets)
    check_numbers(random_share=random_share, recalibrate_batches=recalibrate_batches, ema=ema)
    check_stages(stages, space, all_limits[0] if budgets is None else None)
    models = as_models(model)
    check_train_each(train_each, models, sharing=sharing, random_share=random_share, sandwich=sandwich, distill=distill)
    sharing = sharing or LocallyFree(offset=1)
    searcher = searcher or PredictorSearch(evaluations=evaluations_of(train_each), seed=seed)
    check_parts(sharing, searcher)
    for limits in [] if stages else all_limits:
        warn_of_coarse_bins(space, limits)
    training, scoring = as_candidates(candidates), as_candidates(score_candidates or candidates)
    loss_of = as_loss(loss_fn)
    batches = count_batches(train_batches)
    for each in models:
        try_score(Supernet(each, space), score_fn, valid_batches)
    recalibration: list[Any] = []

    def train(space: SearchSpace, epochs: int, folder: Path | None) -> _Trained:
        """A supernet of each model, trained; `models` keep their weights."""
        steps = epochs * batches
        settings = {
            "space": space.fingerprint(), "sharing": repr(sharing), "candidates": repr(training), "epochs": epochs,
            "steps": steps, "random_share": random_share, "seed": seed,
            "sandwich": sandwich, "distill": distill, "ema": ema,
        }  # fmt: skip
        supernets = [Supernet(each, space) for each in models]
        start = time.perf_counter()
        for number, supernet in enumerate(supernets):
            own = seed * len(supernets) + number  # so that calls of other seeds share none
            name = f"supernet-{number + 1}" if number else "supernet"
            label = f"supernet {number + 1}/{len(supernets)}" if len(supernets) > 1 else "supernet"
            minmin = MinMin(
                supernet, sharing, training, int(random_share * steps), own, sandwich=sandwich, distill=distill
            )
            train_supernet(
                supernet, train_batches, Recipe(epochs, optimizer_fn, schedule_fn, ema), minmin, loss_of,
                checkpoint=_in_folder(folder, name, {**settings, "seed": own}), label=label, progress=progress,
            )  # fmt: skip
        seconds = time.perf_counter() - start
        if not recalibration:
            drawn = first_batches(train_batches, recalibrate_batches, seed=seed, model=models[0])
            recalibration.extend(from_first(drawn))
        scorer = Scorer(
            supernets[0], valid_batches, score_fn, recalibration, loss_of, sharing, scoring, seed, supernets[1:]
        )
        searching = {
            **settings, "score_candidates": repr(scoring), "recalibrate_batches": recalibrate_batches,
            "searcher": repr(searcher), "supernets": len(supernets),
        }  # fmt: skip
        return _Trained(scorer, searcher, searching, folder, {"supernet": seconds}, progress)

    def train_none(space: SearchSpace, epochs: int, folder: Path | None) -> _Trained:
        """No supernet: networks are trained when they are asked for."""
        settings = {
            "space": space.fingerprint(), "train_each": train_each, "steps": train_each * batches, "seed": seed,
            "ema": ema, "searcher": repr(searcher),
        }  # fmt: skip
        scorer = AloneScorer(
            models[0], space, train_batches, valid_batches, score_fn, loss_of,
            Recipe(train_each, optimizer_fn, schedule_fn, ema), seed,
        )  # fmt: skip
        return _Trained(scorer, searcher, settings, folder, {}, progress)

    begin = train_none if train_each else train
    folder = None if checkpoint is None else Path(checkpoint)
    if stages:
        return _in_stages(begin, space, stages, epochs, folder)
    trained = begin(space, epochs, folder)
    return trained.search(all_limits[0]) if budgets is None else _sweep(trained, all_limits)


@dataclass(frozen=True, eq=False)
class _Trained:
    """A trained supernet, or what takes its place, to be searched within any limits."""

    scorer: Scorer | AloneScorer
    searcher: Searcher
    settings: dict[str, Any]
    folder: Path | None
    seconds: Mapping[str, float]
    progress: bool

    def search(
        self, limits: Limits, *, most: int | None = None, name: str = "search", known: Iterable[Candidate] = ()
    ) -> Result:
        place = _in_folder(self.folder, name, {**self.settings, "limits": repr(limits)})
        return search_supernet(
            self.scorer, self.searcher, limits, most=most, checkpoint=place, progress=self.progress,
            seconds=self.seconds, known=known,
        )  # fmt: skip


def _sweep(trained: _Trained, all_limits: Sequence[Limits]) -> Sweep:
    results: list[Result] = []
    for limits in all_limits:
        known = [found for result in results for found in result.scored]
        results.append(trained.search(limits, name=f"search-{limits.label}", known=known))
    return Sweep(tuple(results))


def _in_stages(
    train: Callable[[SearchSpace, int, Path | None], _Trained],
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
        trained = train(stage_space(widest, stage, limits), of_stage, place)
        results.append(trained.search(limits, most=stage.evaluations))
    seconds = {phase: sum(result.seconds[phase] for result in results) for phase in results[-1].seconds}
    return replace(results[-1], dense=results[0].dense, seconds=seconds, whole=space)


def _in_folder(folder: Path | None, name: str, settings: dict[str, Any]) -> Checkpoint | None:
    return None if folder is None else Checkpoint(folder, name, settings)
