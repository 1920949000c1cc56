"""The command line: parse, load the user's factories, call the library, print what it made."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import logging
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from nni_cafenet.compare import Weights, compare_widths
from nni_cafenet.cost import Budget
from nni_cafenet.errors import CafeNetError, nearest
from nni_cafenet.report import Report, read_report, summary_table, write_report
from nni_cafenet.search.evolution import Evolution
from nni_cafenet.search.greedy import Greedy
from nni_cafenet.search.predictor import SCORES, TRAININGS, PredictorSearch, evaluations_of
from nni_cafenet.search.random_search import RandomSearch
from nni_cafenet.search.searcher import Searcher
from nni_cafenet.sharing import LocallyFree
from nni_cafenet.supernet.distillation import Distillation
from nni_cafenet.tracing.bins import BinRule
from nni_cafenet.tracing.build import build_space
from nni_cafenet.train import Recipe, sgd
from nni_cafenet.trainings import Data

POPULATION = 20  # of evolution, which scores as many networks as others in so many generations
SEARCHERS_OF = {  # whose an option is
    "evaluations": ("predictor", "random"), "from_uniform": ("evolution",), "population": ("evolution",),
    "generations": ("evolution", "greedy"),
}  # fmt: skip


class BadArgument(Exception):
    """An argument that argparse cannot check by itself."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `nni-cafenet`; the exit status: 0, 1 where the library refuses, 2 for a wrong command line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    options.command = shlex.join(["nni-cafenet", *arguments])
    try:
        options.run(options)
    except BadArgument as error:
        parser.error(str(error))
    except (CafeNetError, ValueError, FileNotFoundError) as error:
        print(f"nni-cafenet: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nni-cafenet: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nni-cafenet", description="Slim convolutional networks by width search.")
    parser.add_argument("--verbose", action="store_true", help="log what happens, epoch by epoch")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="the whole job on scikit-learn's digits: minutes on two CPU cores")
    demo.set_defaults(run=_demo, trained=False)
    _add_out(demo)
    _add_job(demo, budget="35%", epochs=60, train_epochs=30, runs=5)

    inspect = commands.add_parser("inspect", help="what can be searched in a model, what cannot, and why")
    inspect.set_defaults(run=_inspect)
    _add_model(inspect, input_required=True)
    inspect.add_argument("--json", action="store_true", help="the report for programs, alone on the standard output")

    search = commands.add_parser("search", help="slim your own model on your own data")
    search.set_defaults(run=_search)
    _add_model(search, input_required=False)
    search.add_argument(
        "--trained", action="store_true",
        help="what --model makes is trained already: all networks go on from what it knows",
    )  # fmt: skip
    search.add_argument(
        "--data", required=True, metavar="WHERE:NAME",
        help="a function that returns loaders of (inputs, targets): (train, valid, test), the test set's optional",
    )  # fmt: skip
    _add_out(search)
    _add_job(search, budget=None, epochs=60, train_epochs=60, runs=1)

    report = commands.add_parser("report", help="draw report.html anew from the files of a run")
    report.set_defaults(run=_redraw)
    report.add_argument("folder", metavar="DIR", help="what --out was")
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="DIR", help="results and checkpoints; the same one goes on")


def _add_model(parser: argparse.ArgumentParser, *, input_required: bool) -> None:
    parser.add_argument(
        "--model", required=True, metavar="WHERE:NAME",
        help="what makes the model: PKG.MOD:NAME, such as torchvision.models:resnet18, or path.py:NAME",
    )  # fmt: skip
    parser.add_argument(
        "--model-args", nargs="*", default=[], metavar="KEY=VALUE", help="for it, such as num_classes=10"
    )
    parser.add_argument(
        "--input", required=input_required, metavar="1,3,224,224", help="shape of an example"
        + ("" if input_required else "; that of the first training batch unless given"),
    )  # fmt: skip
    parser.add_argument("--ignore", nargs="*", default=[], metavar="LAYER", help="names or globs that keep their width")
    parser.add_argument("--round-to", type=int, default=1, metavar="N", help="channel counts are multiples of N")
    parser.add_argument("--min-channels", type=int, default=1, metavar="N", help="the least channels of a group")
    parser.add_argument("--min-bin", type=float, default=1, metavar="BETA", help="smallest bin (eq. 9 of the paper)")
    parser.add_argument(
        "--bins", nargs="*", default=[], metavar="LAYER=SIZE",
        help="bins of SIZE channels for these names or globs; the first that matches counts",
    )  # fmt: skip


def _add_job(parser: argparse.ArgumentParser, *, budget: str | None, epochs: int, train_epochs: int, runs: int) -> None:
    parser.add_argument("--budget", default=budget, help='MACs: a number, or a percentage such as "50%%"')
    parser.add_argument("--max-params", help="parameters, likewise")
    parser.add_argument("--epochs", type=int, default=epochs, help="of the supernet (default %(default)s)")
    parser.add_argument(
        "--train-epochs", type=int, default=train_epochs, help="of every network at the end (default %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=runs, help="trainings of each network (default %(default)s)")
    parser.add_argument(
        "--finalists", type=int, default=1, metavar="N",
        help="train the N - 1 best and Uniform shortly, and go on with the better half (default: trust the supernet)",
    )  # fmt: skip
    parser.add_argument("--lr", type=_rate, default=0.1, help="learning rate of SGD (default %(default)s)")
    parser.add_argument("--offset", type=int, help="r of locally free sharing (default 1); 0 is the fixed pattern")
    parser.add_argument("--candidates", default="sampled", help="sampled, sampled:COUNT or tied (default %(default)s)")
    parser.add_argument(
        "--score-candidates", help="a score is the best of these; sampled:1 is the fixed pattern's (default: the same)"
    )
    parser.add_argument(
        "--random-share", type=float, default=0.0, metavar="LAMBDA",
        help="in this first share of the steps a random candidate learns, not the best (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", choices=get_args(Weights),
        help="what networks start from at the end: scratch, or what the supernet and the dense network have learnt "
        "(default scratch; inherited with --trained)",
    )  # fmt: skip
    parser.add_argument("--tune-epochs", type=int, help="of inherited weights, at the end (default: --train-epochs)")
    parser.add_argument("--tune-lr", type=_rate, help="of inherited weights, at the end (default: a third of --lr)")
    parser.add_argument(
        "--teach", action="store_true",
        help="slim networks learn from the trained dense network's answers too, at the end",
    )  # fmt: skip
    parser.add_argument(
        "--from-dense", action="store_true",
        help="the supernet starts from the trained dense network, its most important channels first; as it does with "
        "inherited weights",
    )  # fmt: skip
    parser.add_argument(
        "--supernet-lr", type=_rate, help="of the supernet (default: --lr, or a third of it from the dense network)"
    )
    parser.add_argument("--sandwich", action="store_true", help="the largest and smallest learn in every step")
    parser.add_argument("--distill", action="store_true", help="networks learn from the largest one's answers")
    parser.add_argument(
        "--ema", type=float, default=0.0, metavar="DECAY",
        help="the supernet has the moving average of its weights in the end, with this decay (default: the last ones)",
    )  # fmt: skip
    parser.add_argument(
        "--train-each", type=int, default=0, metavar="N",
        help="no supernet: train what the searcher asks for by itself, N epochs",
    )  # fmt: skip
    parser.add_argument("--supernets", type=int, default=1, metavar="N", help="score by the mean of N (default 1)")
    parser.add_argument(
        "--searcher", choices=("predictor", "evolution", "random", "greedy"), default="predictor",
        help="evolution and random are CafeNet-E and CafeNet-R of the paper (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluations", type=int, metavar="N",
        help=f"of predictor and random (default {SCORES}; {TRAININGS} with --train-each)",
    )  # fmt: skip
    parser.add_argument("--from-uniform", action="store_true", help="evolution starts from Uniform too")
    parser.add_argument("--population", type=int, help=f"of evolution's generations (default {POPULATION})")
    parser.add_argument(
        "--generations", type=int, help=f"of evolution; steps of greedy (default {SCORES // POPULATION})"
    )
    parser.add_argument("--seed", type=int, default=0)


def _demo(options: argparse.Namespace) -> None:
    from nni_cafenet.demo import IMAGE_SHAPE, DigitsNet, digits

    torch.set_num_threads(1)  # its layers are so small that threads only wait for each other
    _run_job(options, DigitsNet, digits(seed=options.seed), torch.zeros(IMAGE_SHAPE))


def _inspect(options: argparse.Namespace) -> None:
    example = torch.zeros(_shape(options.input))
    with redirect_stdout(sys.stderr if options.json else sys.stdout):  # a user's factory may print
        space = _space(options, _model_factory(options), example)
    print(json.dumps(space.preflight().as_dict(), indent=2) if options.json else space.describe())


def _search(options: argparse.Namespace) -> None:
    if options.budget is None and options.max_params is None:
        raise BadArgument("give --budget, --max-params or both")
    factory = _model_factory(options)
    loaders = tuple(_load(options.data, "--data")())
    if len(loaders) not in (2, 3):
        raise BadArgument(
            f"{options.data} must return (train, valid) or (train, valid, test), but it returned {len(loaders)} values"
        )
    if len(loaders) == 2:
        print("no test loader: accuracies are those on the validation data, by which the widths were selected")
    data = Data(loaders[0], loaders[1], loaders[-1])
    example = torch.zeros(_shape(options.input)) if options.input else next(iter(data.train))[0][:1]
    _run_job(options, factory, data, example)


def _redraw(options: argparse.Namespace) -> None:
    print(f"{write_report(options.folder, read_report(options.folder))}")


def _run_job(options: argparse.Namespace, factory: Callable[[], Any], data: Data, example: torch.Tensor) -> None:
    searcher, tuning = _searcher(options), _tuning(options)
    space = _space(options, factory, example)
    print(f"{len(space.groups)} groups, {space.cost.macs(space.largest):,} MACs; results go to {options.out}")
    from_dense = options.from_dense or tuning is not None
    supernet_lr = options.supernet_lr or (_gentle(options) if from_dense else options.lr)
    report = compare_widths(
        factory, space, data, example_inputs=example,
        budget=Budget(max_macs=_number(options.budget), max_params=_number(options.max_params)),
        recipe=Recipe(options.train_epochs, partial(sgd, lr=options.lr)), folder=options.out, runs=options.runs,
        weights=options.weights, tuning=tuning, teaching=Distillation if options.teach else None,
        trained=options.trained, from_dense=from_dense, supernets=options.supernets,
        finalists=options.finalists, seed=options.seed, command=options.command,
        sharing=None if options.offset is None else LocallyFree(offset=options.offset),
        searcher=searcher, epochs=options.epochs, train_each=options.train_each,
        candidates=options.candidates, score_candidates=options.score_candidates, random_share=options.random_share,
        sandwich=options.sandwich, distill=options.distill, ema=options.ema, optimizer_fn=partial(sgd, lr=supernet_lr),
    )  # fmt: skip
    _print(report, options.out)


def _print(report: Report, folder: str) -> None:
    print(summary_table(report))
    print(f"\n{Path(folder) / 'report.html'}: widths, search history, accuracy over MACs")
    print(f"{Path(folder) / 'slim.safetensors'}: the slim network; load it with nni_cafenet.load_slim")


def _space(options: argparse.Namespace, factory: Callable[[], Any], example: torch.Tensor) -> Any:
    names = ("ignore", "round_to", "min_channels", "min_bin")
    given = {name: getattr(options, name) for name in names if name in options}
    return build_space(factory(), example, bins=_bin_sizes(options) or None, **given)


def _bin_sizes(options: argparse.Namespace) -> dict[str, BinRule | int]:
    sizes: dict[str, BinRule | int] = {}
    for pair in getattr(options, "bins", ()):
        name, _, size = pair.rpartition("=")
        if not name or not size.isdecimal():
            raise BadArgument(f"--bins takes LAYER=SIZE, such as conv1=8, but got {pair!r}")
        sizes[name] = int(size)
    return sizes


def _tuning(options: argparse.Namespace) -> Recipe | None:
    """How networks that inherit weights are trained at the end; None where they start from scratch."""
    if options.weights != "inherited" and not options.trained:
        if (options.tune_epochs, options.tune_lr) != (None, None):
            raise BadArgument("--tune-epochs and --tune-lr are for networks that inherit weights: --weights inherited")
        return None
    epochs = _given(options.tune_epochs, options.train_epochs)
    return Recipe(epochs, partial(sgd, lr=options.tune_lr or _gentle(options)))


def _gentle(options: argparse.Namespace) -> float:
    """A learning rate that trained weights bear."""
    lr: float = options.lr / 3
    return lr


def _searcher(options: argparse.Namespace) -> Searcher:
    name = options.searcher
    for option, whose in SEARCHERS_OF.items():
        if getattr(options, option) not in (None, False) and name not in whose:
            flag = option.replace("_", "-")
            raise BadArgument(f"--{flag} is for --searcher {' or '.join(whose)}, but the searcher is {name}")
    evaluations = _given(options.evaluations, evaluations_of(options.train_each))
    generations = _given(options.generations, SCORES // POPULATION)
    if name == "random":
        return RandomSearch(evaluations=evaluations, seed=options.seed)
    if name == "predictor":
        return PredictorSearch(evaluations=evaluations, seed=options.seed)
    if name == "greedy":
        return Greedy(steps=generations)
    return Evolution(
        population=_given(options.population, POPULATION), generations=generations, from_uniform=options.from_uniform,
        seed=options.seed,
    )  # fmt: skip


def _given(number: int | None, default: int) -> int:
    """0 is given, and refused by those who take it."""
    return default if number is None else number


def _model_factory(options: argparse.Namespace) -> Callable[[], Any]:
    arguments = {}
    for pair in options.model_args:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise BadArgument(f"--model-args takes KEY=VALUE, such as num_classes=10, but got {pair!r}")
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value  # a bare word is a string
    return partial(_load(options.model, "--model"), **arguments)


def _load(where: str, option: str) -> Callable[..., Any]:
    """What PKG.MOD:NAME or path.py:NAME names."""
    module_name, colon, name = where.rpartition(":")
    if not colon or not module_name or not name:
        raise BadArgument(f"{option} takes PKG.MOD:NAME or path.py:NAME, but got {where!r}")
    if module_name.endswith(".py"):
        path = Path(module_name)
        if not path.is_file():
            raise BadArgument(f"{option}: there is no file {module_name}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # so that data loaders' worker processes can pickle what it defines
        sys.path.insert(0, str(path.parent))
        spec.loader.exec_module(module)
    else:
        sys.path.insert(0, "")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise BadArgument(f"{option}: cannot import {module_name!r}: {error}") from error
    if not callable(getattr(module, name, None)):
        known = [other for other, value in vars(module).items() if callable(value)]
        raise BadArgument(f"{option}: {module_name} has no function or class {name!r}; {nearest(name, known)}")
    return getattr(module, name)  # type: ignore[no-any-return]


def _rate(text: str) -> float:
    """A learning rate, for argparse."""
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, but got {text!r}")
    return rate


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise BadArgument(f"--input takes a shape such as 1,3,224,224, but got {text!r}")
    return tuple(map(int, parts))


def _number(text: str | None) -> str | float | None:
    """A budget as the library takes it: a number where it is one, else the text, which the library judges."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    sys.exit(main())
