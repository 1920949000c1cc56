"""CafeNet and its rivals on Fashion-MNIST: the widths that each finds, trained alike, and tested once.

    python examples/benchmarks/compare.py --data DIR --network vgg13 --budgets 10% 5% --seeds 0 1 2 3 4 --out OUT
    python examples/benchmarks/summarise.py --out OUT

For each seed, one dense network is trained; every method starts from it or from a supernet of the same network, and
finds widths within the same MACs, by our counter. The networks of these widths are trained by one recipe on the same
images with the same number of updates: from scratch, all initialised alike, or with --weights inherited from what the
method itself trained. Searches select on images that nothing is trained on; decisions on methods and defaults are made
on `check`, another part of the training images; `test` is looked at once for each network, and reported.

A cell, one method at one budget with one seed, is a JSON file in OUT: the same command goes on where it was, and
several may run side by side on other seeds. summarise.py makes a table, a CSV and a plot of them.

Searches that train networks alone can be shared out to processes first, from which the command above goes on:

    torchrun --nproc-per-node 16 examples/benchmarks/compare.py ... --methods alone-predictor --search-only
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rivals import RIVALS, Unreachable, choose
from setting import (
    ALONE_ARM,
    ARMS,
    RememberingScorer,
    Setting,
    add_setting,
    found_by,
    scores,
    setting_of,
    write_json,
)
from torch import distributed, nn
from tqdm.auto import tqdm

from nni_cafenet import (
    Budget,
    Evolution,
    Greedy,
    PredictorSearch,
    RandomSearch,
    Searcher,
    SearchSpace,
    SubNetwork,
    slice_model,
)
from nni_cafenet.alone import AloneScorer
from nni_cafenet.checkpoint import Checkpoint
from nni_cafenet.cost import Limits
from nni_cafenet.halving import best_of_random, finalists_of, short_rounds, successive_halving
from nni_cafenet.networks import Network, uniform_network
from nni_cafenet.phases import search_supernet
from nni_cafenet.search.predictor import TRAININGS
from nni_cafenet.supernet.evaluate import Scorer

BASELINES = ("uniform", "random")
SORTED = "uniform-sorted"  # Uniform of the dense network's most important channels; from scratch the same as Uniform
# ARM-SEARCHER, of setting.ARMS: e is Evolution from Uniform, paper from random widths alone, r is random search,
# predictor a regression of scores; halving trains the best of these, or of e, and Uniform shortly and goes on with the
# better half; trained: a supernet from the dense network; the arm alone: no supernet, all that is asked for is trained
# by itself
SEARCHES = (
    "cafenet-trained-e", "cafenet-trained-distill-e", "fixed-trained-distill-e", "cafenet-trained-distill-halving",
    "fixed-trained-distill-halving",
    "cafenet-e", "cafenet-paper", "cafenet-halving", "cafenet-r", "cafenet-predictor", "cafenet-predictor-halving",
    "fixed-e", "fixed-r", "fixed-predictor", "greedy", "alone-predictor",
)  # fmt: skip
LOCAL = ("local", "l1", "fpgm")  # the same share of every layer: Uniform's widths
HALVING = "-halving"
SHORT = 0.1  # of the epochs, after which Random's best is chosen
FINALISTS = 16  # of successive halving
GENERATIONS = 12  # of CafeNet-E
ALONE = TRAININGS  # evaluations, where each is one
RIVAL_BATCHES = 20  # that pruners learn from
# by its word, for so many evaluations, groups of channels, and a seed
SEARCHERS: dict[str, Callable[[int, int, int], Searcher]] = {
    "e": lambda count, groups, seed: _evolution(count, from_uniform=True, seed=seed),
    "paper": lambda count, groups, seed: _evolution(count, from_uniform=False, seed=seed),
    "r": lambda count, groups, seed: RandomSearch(evaluations=count, seed=seed),
    "greedy": lambda count, groups, seed: Greedy(steps=max(1, count // groups)),
    "predictor": lambda count, groups, seed: PredictorSearch(evaluations=count, seed=seed),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--budgets", nargs="+", default=["50%", "25%", "10%", "5%"], help="of the MACs")
    parser.add_argument("--methods", nargs="+", help="all unless given; from scratch, no local pruners: see README.md")
    parser.add_argument("--weights", choices=("scratch", "inherited"), default="scratch")
    parser.add_argument("--search-only", action="store_true", help="find widths, and train nothing with them")
    options = parser.parse_args()
    if distributed.is_torchelastic_launched():
        if not options.search_only or any(not name.startswith(ALONE_ARM) for name in options.methods or [""]):
            parser.error(f"processes share out --search-only --methods {ALONE_ARM}-predictor, and nothing else")
        distributed.init_process_group("gloo")
    rivals = [name for name in RIVALS if options.weights == "inherited" or not name.endswith(LOCAL)]
    baselines = [*BASELINES, SORTED] if options.weights == "inherited" else BASELINES
    methods = options.methods or [*baselines, *SEARCHES, *rivals]
    try:
        for method in set(map(found_by, methods)) - {"dense", *BASELINES, SORTED, *RIVALS}:
            parts(method)
    except ValueError as error:
        parser.error(str(error))
    asked = [("dense", "100%"), *((method, budget) for budget in options.budgets for method in methods)]
    for seed in options.seeds:
        setting = setting_of(options, seed)
        for method, budget in tqdm(asked, desc=f"seed {seed}", unit="cell"):
            name = f"{budget.rstrip('%')}-{method}-{options.weights}-{seed}.json"
            path = options.out / options.size / options.network / name
            if path.exists():
                continue
            if options.search_only:
                if method != "dense":
                    limits = setting.space.limits(Budget(max_macs=budget))
                    find(setting, found_by(method), limits, options.weights, path.parent)
                continue
            row = {"size": options.size, "network": options.network, "budget": budget, "method": method, "seed": seed}
            row |= cell(setting, method, Budget(max_macs=budget), options.weights, path.parent)
            write_json(path, row)


def cell(setting: Setting, method: str, budget: Budget, weights: str, folder: Path) -> dict[str, Any]:
    """One method at one budget with one seed: its widths, trained and looked at."""
    limits = setting.space.limits(budget)
    ending = setting.ending(method)
    name = "dense" if (method, weights) == ("dense", "scratch") else f"{method}-{limits.max_macs}-{weights}"
    row: dict[str, Any] = {"weights": weights}
    if found_by(method) == "random":
        start = time.perf_counter()
        short = max(1, round(SHORT * ending["epochs"]))
        network, model = best_of_random(
            setting.factory, setting.space, limits, train_batches=setting.splits.train,
            valid_batches=setting.splits.valid, recipe=setting.recipe(short),
            folder=setting.work / name, tries=setting.size.tries, device=setting.device, seed=setting.seed,
        )  # fmt: skip
        ending["epochs"] -= short
        row |= {"search_seconds": time.perf_counter() - start}
    else:
        try:
            found = find(setting, found_by(method), limits, weights, folder)
        except Unreachable as error:
            return {**row, "unreachable": str(error)}
        network = Network(found.space, found.subnetwork)
        if weights == "inherited":
            model = slice_model(found.trained, network.space, network.subnetwork)
        else:  # channels are interchangeable before training, so that widths are all that counts
            network = Network(found.space, SubNetwork.fixed(found.subnetwork.widths))
            model = network.make(setting.factory, seed=setting.seed)
        row |= {"supernet_seconds": found.supernet_seconds, "search_seconds": found.search_seconds}
    row |= {
        "macs": network.macs, "params": network.params,
        "widths": network.space.channels(network.subnetwork.widths),
    }  # fmt: skip
    start = time.perf_counter()
    setting.train(model, name, trained=weights == "inherited", **ending)
    row |= {"training_seconds": time.perf_counter() - start}
    return row | scores(model, setting)


@dataclass(frozen=True, eq=False)
class Found:
    """What a method has chosen, and the full-width model whose weights that would inherit."""

    space: SearchSpace
    subnetwork: SubNetwork
    trained: nn.Module
    search_seconds: float = 0.0  # of trainings alone, as long as they took when they were made, for whichever budget
    supernet_seconds: float = 0.0  # the training of the supernet, which its searches share


def parts(method: str) -> tuple[str, str, bool]:
    """Of a search the arm, the searcher's word, and whether it has finalists.

    Raises:
        ValueError: no search has that name.
    """
    name = "locally-free-greedy" if method == "greedy" else method.replace("cafenet", "locally-free")
    searched = name.removesuffix(HALVING)
    finalists = name != searched
    arm, _, word = (f"{searched}-e" if finalists and searched in ARMS else searched).rpartition("-")
    known = arm in ARMS or (arm == ALONE_ARM and not finalists)  # which has trained all that it scored
    if not known or word not in SEARCHERS:
        others = f"{', '.join(BASELINES)}, {SORTED}, {', '.join(RIVALS)}"
        raise ValueError(
            f"{method!r} is no method: they are {others}, and searches such as {', '.join(SEARCHES)}: an arm of "
            f"setting.py and one of {', '.join(SEARCHERS)}"
        )
    return arm, word, finalists


def find(setting: Setting, method: str, limits: Limits, weights: str, folder: Path) -> Found:
    """The widths that a method finds within the limits, for networks that start from `weights`.

    Args:
        folder: of the cells, which keeps the scores of networks trained alone too.
    """
    if method == "dense":
        dense = setting.dense if weights == "inherited" else setting.fresh()
        return Found(setting.space, SubNetwork.fixed(setting.space.largest), dense)
    if method in ("uniform", SORTED):
        network = uniform_network(setting.space, limits)
        return Found(network.space, network.subnetwork, setting.sorted if method == SORTED else setting.dense)
    if method in RIVALS:
        dense, batches = setting.dense, setting.first_batches(RIVAL_BATCHES)
        start = time.perf_counter()
        sub = choose(method, dense, setting.channels, limits, batches, example=setting.example, seed=setting.seed)
        return Found(setting.channels, sub, dense, time.perf_counter() - start)
    arm, word, finalists = parts(method)
    evaluations = setting.size.evaluations
    scorer: Scorer | AloneScorer
    if arm == ALONE_ARM:
        trainings = setting.alone(setting.size.epochs, trained=weights == "inherited")
        scorer, seconds = RememberingScorer.of(trainings, folder / f"alone-{weights}-{setting.seed}.csv"), 0.0
        evaluations = ALONE
        settings = {"arm": arm, **trainings.recipe.settings()}
    else:
        scorer, seconds = setting.scorer(arm, limits)
        settings = {"arm": repr(ARMS[arm])}
    space = scorer.space
    searcher = SEARCHERS[word](evaluations, len(space.groups), setting.seed)
    settings |= {"searcher": repr(searcher), "limits": repr(limits)}
    started = f"-{weights}" if arm == ALONE_ARM else ""
    name = f"{arm}{started}-{word}-{limits.max_macs}"
    start = time.perf_counter()
    result = search_supernet(scorer, searcher, limits, checkpoint=Checkpoint(setting.work, f"search-{name}", settings))
    if isinstance(scorer, RememberingScorer):
        return Found(space, result.best.subnetwork, result.supernet, scorer.seconds(result.history))
    if not finalists:
        return Found(space, result.best.subnetwork, result.supernet, time.perf_counter() - start, seconds)
    factory = partial(copy.deepcopy, result.supernet) if weights == "inherited" else setting.factory
    recipe = setting.recipe(setting.size.epochs, trained=weights == "inherited")
    best, _ = successive_halving(
        factory, finalists_of(result, FINALISTS), rounds=short_rounds(recipe),
        train_batches=setting.splits.train, valid_batches=setting.splits.valid, device=setting.device,
        folder=setting.work / f"halving-{name}-{weights}", seed=setting.seed,
    )  # fmt: skip
    return Found(best.space, best.subnetwork, result.supernet, time.perf_counter() - start, seconds)


def _evolution(evaluations: int, *, from_uniform: bool, seed: int) -> Searcher:
    population = max(1, evaluations // GENERATIONS)
    return Evolution(population=population, generations=GENERATIONS, from_uniform=from_uniform, seed=seed)


if __name__ == "__main__":
    main()
