"""What are the two phases of a search? A supernet is trained, then searched; run.py and nas/ put them together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from nni_cafenet.alone import AloneScorer
from nni_cafenet.checkpoint import Memory
from nni_cafenet.cost import Limits
from nni_cafenet.distributed import from_all, rank, world_size
from nni_cafenet.errors import CafeNetError, InvalidBatches
from nni_cafenet.modes import evaluating, seeded
from nni_cafenet.result import Result
from nni_cafenet.search.searcher import Candidate, Searcher, draw_within, predictions
from nni_cafenet.space import uniform_widths
from nni_cafenet.supernet.evaluate import Scorer
from nni_cafenet.supernet.minmin import MinMin
from nni_cafenet.supernet.objectives import LossFn, ScoreFn, checked_score
from nni_cafenet.supernet.supernet import Supernet
from nni_cafenet.train import Recipe, StepFn, first_batches, fit
from nni_cafenet.widths import SubNetwork, Widths

SECONDS_BETWEEN_SAVES = 5.0


def train_supernet(
    supernet: Supernet,
    train_batches: Iterable[Any],
    recipe: Recipe,
    training: MinMin,
    loss_fn: LossFn,
    *,
    checkpoint: Memory | None = None,
    progress: bool = True,
    label: str = "supernet",
    on_epoch: Callable[[], None] | None = None,
) -> None:
    """The half of :func:`search_widths` that comes before the search: train by min-min, then set eval mode.

    Args:
        supernet: trained in place.
        training: its seed is that of the loader's shuffling too.
        checkpoint: goes on from the state in it.
        label: of the progress bar.
        on_epoch: called after every epoch; it must not change the model.
    """
    fit(
        supernet.model.train(), train_batches, recipe, _supernet_step(training, loss_fn),
        seed=training.seed, checkpoint=checkpoint, label=label, progress=progress, on_epoch=on_epoch,
    )  # fmt: skip
    supernet.model.eval()


def search_supernet(
    scorer: Scorer | AloneScorer,
    searcher: Searcher,
    limits: Limits,
    *,
    most: int | None = None,
    checkpoint: Memory | None = None,
    progress: bool = True,
    seconds: Mapping[str, float] | None = None,
    known: Iterable[Candidate] = (),
) -> Result:
    """The half of :func:`search_widths` that comes after training: score what `searcher` asks for, and the baselines.

    Args:
        scorer: of a trained supernet, or of networks trained alone; its seed is the result's.
        searcher: any, begun here.
        limits: from space.limits(budget).
        most: widths to score, where the searcher would ask for more.
        checkpoint: goes on from the state in it.
        progress: a bar on stderr, if that is a terminal.
        seconds: wall time of the phases before, for the result.
        known: what `scorer` gave in other searches, and need not score again; the result is the same without it.
    """
    start = time.perf_counter()
    space = scorer.space
    if most is not None and hasattr(searcher, "at_most"):
        searcher = searcher.at_most(most)
    drawn = draw_within(space, limits, np.random.default_rng([scorer.seed, 1]))
    references = [space.largest, uniform_widths(space, limits), drawn]
    of_references, history = _search(scorer, searcher, limits, references, known, most, checkpoint, progress)
    dense, uniform, random = of_references
    took = {**(seconds or {}), "search": time.perf_counter() - start}
    predicted = predictions(searcher, [found.subnetwork.widths for found in history])
    return Result(
        tuple(history), dense, uniform, random, space, scorer.model, limits, took, scorer.seed,
        scores_of=scorer.scores_of, predicted=predicted,
    )  # fmt: skip


def _supernet_step(training: MinMin, loss_fn: LossFn) -> StepFn:
    def step(batch: Any, number: int) -> float:
        loss = training.loss(batch, number, loss_fn)
        loss.backward()
        return float(loss.detach())

    return step


def _search(
    scorer: Scorer | AloneScorer,
    searcher: Searcher,
    limits: Limits,
    references: list[Widths],
    known: Iterable[Candidate],
    most: int | None,
    checkpoint: Memory | None,
    progress: bool,
) -> tuple[list[Candidate], list[Candidate]]:
    space = scorer.space
    searcher.begin(space, limits)
    history: list[Candidate] = []
    scored: list[Candidate] = []
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        searcher.load_state_dict(state["searcher"])
        history = [_from_plain(plain) for plain in state["history"]]
        scored = [_from_plain(plain) for plain in state["references"]]
    evaluated = {found.subnetwork.widths: found for found in (*known, *scored, *history)}

    def share_out(asked: list[Widths]) -> list[Candidate]:
        """At most one for each process, scored."""
        own = None
        if rank() < len(asked):
            own = evaluated.get(asked[rank()]) or scorer.evaluate(asked[rank()])
        found = [candidate for candidate in from_all(own) if candidate is not None]
        evaluated.update((candidate.subnetwork.widths, candidate) for candidate in found)
        return found

    saved = time.monotonic()

    def save(every: float = 0.0) -> None:
        nonlocal saved
        if checkpoint is not None and time.monotonic() - saved >= every:
            checkpoint.save({
                "searcher": searcher.state_dict(), "history": [_to_plain(found) for found in history],
                "references": [_to_plain(found) for found in scored],
            })  # fmt: skip
            saved = time.monotonic()

    most = searcher.evaluations if most is None else min(most, searcher.evaluations)
    with tqdm(total=len(references) + most, initial=len(scored) + len(history), desc="search", unit="width",
              disable=None if progress and rank() == 0 else True, leave=False) as bar:  # fmt: skip
        while left := references[len(scored) :]:
            found = share_out(left[: world_size()])
            scored += found
            bar.update(len(found))
            save(SECONDS_BETWEEN_SAVES)
        while len(history) < most and (asked := searcher.ask(min(world_size(), most - len(history)))):
            found = share_out(asked)
            searcher.tell(found)
            history += found
            bar.update(len(found))
            bar.set_postfix(best=f"{max(other.score for other in history):.4f}", refresh=False)
            save(SECONDS_BETWEEN_SAVES)
    save()
    if not any(limits.admit(space.cost, found.subnetwork.widths) for found in history):
        raise CafeNetError(f"{searcher!r} asked for no widths within {limits}, but for {len(history)} larger")
    return scored, history


def try_score(supernet: Supernet, score_fn: ScoreFn, valid_batches: Iterable[Any]) -> None:
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
