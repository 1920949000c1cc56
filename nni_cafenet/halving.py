"""Which of several networks is the best? All are trained shortly, the better half goes on, and so forth."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from nni_cafenet.checkpoint import Checkpoint
from nni_cafenet.cost import Limits
from nni_cafenet.distributed import from_first, rank
from nni_cafenet.modes import evaluating
from nni_cafenet.networks import Factory, Network, random_network, uniform_network
from nni_cafenet.result import Result
from nni_cafenet.space import SearchSpace
from nni_cafenet.supernet.objectives import AnyLoss, ScoreFn, accuracy, checked_score, cross_entropy
from nni_cafenet.train import Recipe, train_model
from nni_cafenet.widths import SubNetwork

SHARES = (0.1, 0.2, 0.4)  # of a final training's epochs, in the rounds before it


def successive_halving(
    factory: Factory,
    networks: Sequence[Network],
    *,
    rounds: Sequence[Recipe],
    train_batches: Iterable[Any],
    valid_batches: Iterable[Any],
    folder: str | os.PathLike[str],
    loss_fn: AnyLoss = cross_entropy,
    score_fn: ScoreFn = accuracy,
    device: torch.device | str = "cpu",
    seed: int = 0,
    progress: bool = True,
) -> tuple[Network, nn.Module]:
    """The best of `networks` by training them: after each of `rounds` the better half goes on, from where it was.

    Beyond the paper, which trusts the supernet: a second look at the networks that it puts first.

    Args:
        factory: makes the full network, freshly initialised; or trained, such as
            ``functools.partial(copy.deepcopy, result.supernet)``, for networks that inherit its weights.
        networks: such as those of the best candidates of a search; of equal scores the earlier one is better.
        rounds: how all that are left are trained in each round; after the last one the best is taken.
        valid_batches: what networks are compared on: a part of the training data, never the test set.
        folder: of the checkpoints; called again with the same one, it goes on where it was.
        device: where they are trained, and where the best one lies.
        seed: of the first network; the second one has the next, and so on.

    Returns:
        The best one's widths, and the model as all rounds have trained it, in train mode.
    """
    if not networks or not rounds:
        raise ValueError(f"{len(networks)} networks and {len(rounds)} rounds were given: there must be one of each")

    def trained(number: int, depth: int) -> nn.Module:
        """A network after the rounds up to `depth`, those before from their checkpoints."""
        network = networks[number]
        model = network.make(factory, seed=seed + number).to(device)
        widths = list(network.subnetwork.widths.bins_kept)
        for place, recipe in enumerate(rounds[: depth + 1]):
            settings = {**recipe.settings(), "round": place, "widths": widths, "seed": seed + number}
            train_model(
                model, train_batches, recipe, loss_fn=loss_fn, seed=seed + number + place * len(networks),
                checkpoint=Checkpoint(folder, f"network-{number}-round-{place}", settings),
                label=f"network {number + 1}/{len(networks)}, round {place + 1}/{len(rounds)}", progress=progress,
            )  # fmt: skip
        return model

    left = list(range(len(networks)))
    for depth in range(len(rounds)):
        scores: dict[int, float] = {}
        disable = None if progress and rank() == 0 else True
        for number in tqdm(left, desc=f"round {depth + 1}/{len(rounds)}", unit="network", disable=disable, leave=False):
            with evaluating(trained(number, depth)) as model:
                scores[number] = from_first(checked_score(score_fn(model, valid_batches)))
        left = sorted(left, key=lambda number: -scores[number])[: max(1, len(left) // 2)]
    return networks[left[0]], trained(left[0], len(rounds) - 1)


def finalists_of(result: Result, count: int) -> list[Network]:
    """The networks worth a second look: a search's `count` - 1 best candidates by the supernet's score, and Uniform.

    Uniform comes last, channel by channel, as :func:`uniform_network` draws it; of a search that scored fewer there are
    fewer.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2, a candidate and Uniform, but got {count}")
    widths = list(dict.fromkeys(found.subnetwork.widths for found in result.ranked))[: count - 1]
    uniform = uniform_network(result.whole or result.space, result.limits)
    return [*(Network(result.space, SubNetwork.fixed(each)) for each in widths), uniform]


def short_rounds(recipe: Recipe) -> list[Recipe]:
    """Rounds of a tenth, a fifth and two fifths of the epochs of `recipe`, or of one epoch where that is less."""
    return [replace(recipe, epochs=max(1, round(share * recipe.epochs))) for share in SHARES]


def best_of_random(
    factory: Factory,
    space: SearchSpace,
    limits: Limits,
    *,
    recipe: Recipe,
    tries: int = 20,
    seed: int = 0,
    **options: Any,
) -> tuple[Network, nn.Module]:
    """The paper's Random: of `tries` random networks, each trained by a short `recipe`, the best; to be trained on.

    Args:
        options: as of :func:`successive_halving`: train_batches, valid_batches, folder and so on.

    Returns:
        The widths, and the model as it was trained, in train mode.
    """
    if tries < 1:
        raise ValueError(f"tries must be at least 1, but got {tries}")
    networks = [random_network(space, limits, seed=seed * tries + number) for number in range(tries)]
    return successive_halving(factory, networks, rounds=[recipe], seed=seed, **options)
