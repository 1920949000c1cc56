"""Which sub-network does somebody else's pruner choose within a budget? Each by its own code, from one trained network.

    pip install torch-pruning "nni>=3,<4" "setuptools<81" nvidia-modelopt torchprofile==0.0.4

A rival gets what helps it: fine steps, so that it comes as close below the budget as it can, fresh gradients on fresh
BatchNorm statistics, and our groups where its own way to find layers that belong together fails. The budget is always
met by our counter, never by theirs, and what cannot meet it says so.

- tp-KIND-global, tp-KIND-local: torch-pruning's pruners in small steps, importances anew in each. A local one takes the
  same share of every layer: its widths are about those of Uniform, and only the channels differ.
- nni-KIND: NNI ranks once, and the ratio is bisected. l1 and fpgm take the same share of every layer; slim and taylor
  rank over all layers, but for those that are added up, which NNI can then only mask by the same share.
- modelopt-fastnas: NVIDIA's FastNAS. Its widths can be read, its channels cannot: the leftmost stand for them, which is
  fair where networks are trained from scratch, and not where they inherit weights.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import CafeNetError, SearchSpace, SubNetwork, Widths, accuracy, cross_entropy
from nni_cafenet.cost import Limits
from nni_cafenet.errors import nearest
from nni_cafenet.modes import evaluating, seeded
from nni_cafenet.peers import from_masks, from_torch_pruning, widths_of
from nni_cafenet.supernet.recalibrate import recalibrate

Batch = tuple[torch.Tensor, torch.Tensor]

LARGEST_STEP = 0.02  # of the channels that are left, in a step of torch-pruning; the last steps are of single channels
STALE = 0.05  # of the MACs gone since gradients were taken: time for new ones
GRADIENT_BATCHES = 2  # of which gradients are taken at once; the next ones the next time
HESSIAN_IMAGES = 32  # the same for squares of gradients, which need a backward for each image
SPARSE_LR = 0.01  # of the training before slimming, and while NNI looks on
SHRINKING = 0.1  # what that training takes from a BatchNorm scale that the loss does not hold
SLIM_STEPS = 100  # of NNI's slimming: its Adam brings a factor that the loss does not hold from 1 to 0, by 0.01 a step
BISECTIONS = 20  # of NNI's ratio: finer than a channel of 1,000,000
FASTNAS_ASKED = 8  # bisections of what modelopt is asked for
FASTNAS_BATCHES = 4  # by which it scores: thousands of times


class Unreachable(CafeNetError):
    """A pruner that cannot make the network as small as the budget.

    Args:
        rival: its name in RIVALS.
        least: the fewest MACs (per image) that it came to.
        max_macs: the budget.
    """

    def __init__(self, rival: str, least: int, max_macs: int) -> None:
        self.rival, self.least, self.max_macs = rival, least, max_macs
        super().__init__(f"{rival} comes down to {least:,} MACs, and the budget is {max_macs:,}")


@dataclass(frozen=True, eq=False)
class Task:
    """What a rival is given.

    Args:
        name: the rival's.
        dense: trained, and not to be changed.
        batches: images and labels, on the model's device.
        example: an input (1, C, H, W), there too.
    """

    name: str
    dense: nn.Module
    space: SearchSpace
    limits: Limits
    batches: Sequence[Batch]
    example: torch.Tensor

    def copy(self) -> nn.Module:
        """The network to work on; all of it can learn, for torch-pruning does not see what cannot."""
        model = copy.deepcopy(self.dense).requires_grad_(True)
        model.zero_grad()
        return model

    def macs(self, widths: Widths) -> int:
        return self.space.cost.macs(widths)

    def admits(self, widths: Widths) -> bool:
        return self.limits.admit(self.space.cost, widths)

    def unreachable(self, least: Widths) -> Unreachable:
        assert self.limits.max_macs is not None
        return Unreachable(self.name, self.macs(least), self.limits.max_macs)


Rival = Callable[[Task], SubNetwork]


def choose(
    name: str,
    dense: nn.Module,
    space: SearchSpace,
    limits: Limits,
    batches: Sequence[Batch],
    *,
    example: torch.Tensor,
    seed: int,
) -> SubNetwork:
    """What the rival `name` keeps of a trained network, which stays as it is; the same for the same seed.

    Args:
        dense: a trained classifier.
        space: of `dense`, in bins of single channels.
        limits: with max_macs.
        batches: training images and labels, for those that learn from data.
        example: an input (N, C, H, W).

    Raises:
        ValueError: there is no such rival, or `limits` do not bound the MACs.
        ModuleNotFoundError: the rival's library is not installed; the message says how to.
        Unreachable: the smallest network that it makes is above the limits.
    """
    if name not in RIVALS:
        raise ValueError(f"there is no rival {name!r}; {nearest(name, RIVALS)}")
    if limits.max_macs is None:
        raise ValueError("rivals are compared within a budget of MACs: give limits with max_macs")
    _check_installed(name)
    device = next(dense.parameters()).device
    here = [(images.to(device), labels.to(device)) for images, labels in batches]
    with seeded(seed, 0, dense), torch.enable_grad(), _quiet():
        sub = RIVALS[name](Task(name, dense, space, limits, here, example[:1].to(device)))
    assert limits.admit(space.cost, sub.widths), f"{name} is above the budget"
    return sub


# ---------------------------------------------------------------------------------------------------- torch-pruning


def _torch_pruning(task: Task, *, kind: str, everywhere: bool) -> SubNetwork:
    """Steps of one channel (local: of the least share) at the end, of more before, until the budget is met."""
    import torch_pruning

    importances: dict[str, Callable[[], Any]] = {
        "magnitude": partial(torch_pruning.importance.GroupMagnitudeImportance, p=2),
        "slimming": torch_pruning.importance.BNScaleImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
        "hessian": torch_pruning.importance.GroupHessianImportance,
        "random": torch_pruning.importance.RandomImportance,
    }
    space, model, max_macs = task.space, task.copy(), task.limits.max_macs
    assert max_macs is not None
    free = {axis.layer for axis in space.axes if axis.side == "out" and (axis.groups >= 0).all()}
    channels = [group.units for group in space.groups]
    slimming = kind == "slimming"
    make = torch_pruning.pruner.BNScalePruner if slimming else torch_pruning.pruner.BasePruner
    pruner = make(
        model, task.example, importance=importances[kind](), global_pruning=everywhere, pruning_ratio=1.0,
        iterative_steps=sum(channels) if everywhere else max(channels),
        ignored_layers=[layer for name, layer in model.named_modules() if _has_outputs(layer) and name not in free],
    )  # fmt: skip
    if slimming:
        _train_sparse(model, pruner, task.batches)
    model.eval()
    feed = cycle(task.batches)
    widths, seen = widths_of(space, model), float("inf")
    while not task.admits(widths) and pruner.current_step < pruner.iterative_steps:
        macs = task.macs(widths)
        if kind in ("taylor", "hessian") and macs < (1 - STALE) * seen:
            _take_gradients(model, list(islice(feed, GRADIENT_BATCHES)), squared=kind == "hessian")
            seen = macs
        share = min(LARGEST_STEP, (1 - max_macs / macs) / 8)  # slower and slower, not to step over the budget
        left = pruner.iterative_steps - pruner.current_step
        pruner.current_step += max(1, int(share * left)) - 1
        for group in pruner.step(interactive=True):
            group.prune()
            widths = widths_of(space, model)
            if task.admits(widths):
                break
    if not task.admits(widths):
        raise task.unreachable(widths)
    return from_torch_pruning(space, pruner)


def _has_outputs(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear))


def _train_sparse(model: nn.Module, pruner: Any, batches: Sequence[Batch]) -> None:
    """A pass over the batches with a penalty on BatchNorm's scales, by the pruner's own rule."""
    optimizer = torch.optim.SGD(model.parameters(), lr=SPARSE_LR)
    model.train()
    pruner.update_regularizer()
    for batch in batches:
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        pruner.regularize(model, reg=SHRINKING / (SPARSE_LR * len(batches)))
        optimizer.step()


def _take_gradients(model: nn.Module, batches: Sequence[Batch], *, squared: bool) -> None:
    """Leave the gradients of the loss in the parameters; or the mean over images of their squares.

    torch-pruning's own accumulate_grad keeps the squares of the last image alone, for it looks parameters up by
    their names among themselves. Its importance reads what lies in `grad` where nothing was accumulated.
    """
    recalibrate(model, batches, cross_entropy)  # the statistics of the network before it was pruned tell nothing
    model.zero_grad()
    if not squared:
        for batch in batches:
            cross_entropy(model, batch).backward()
        return
    images, labels = (torch.cat(parts)[:HESSIAN_IMAGES] for parts in zip(*batches, strict=True))
    parameters = list(model.parameters())
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(image), label), parameters, materialize_grads=True)
        for square, gradient in zip(squares, gradients, strict=True):
            square.addcmul_(gradient, gradient, value=1 / len(images))
    for parameter, square in zip(parameters, squares, strict=True):
        parameter.grad = square


# -------------------------------------------------------------------------------------------------------------- NNI


def _nni(task: Task, *, kind: str) -> SubNetwork:
    """NNI ranks once, and the least ratio that meets the budget is found by bisection; what is left over is filled."""
    from nni.compression import pruning

    base = {
        "l1": pruning.L1NormPruner, "fpgm": pruning.FPGMPruner, "slim": pruning.SlimPruner,
        "taylor": pruning.TaylorPruner,
    }[kind]  # fmt: skip

    class Remembering(base):  # type: ignore[valid-type, misc]
        """Keeps what it ranks by, for NNI would train again for each ratio."""

        def _calculate_metrics(self, data: Any) -> Any:
            self.metrics = super()._calculate_metrics(data)
            return self.metrics

        def masks(self, ratio: float) -> dict[str, dict[str, torch.Tensor]]:
            for module in self._target_spaces.values():
                for target in module.values():
                    if target.sparse_ratio is not None:
                        target.sparse_ratio = ratio
            return {
                name: {"weight": _not_empty(own["weight"], self.metrics[name]["weight"]).expand(shapes[name])}
                for name, own in self._generate_sparsity(self.metrics).items()
            }

    model = task.copy()
    shapes = {name: layer.weight.shape for name, layer in model.named_modules() if hasattr(layer, "weight")}
    learning = kind in ("slim", "taylor")
    config = _nni_config(task, norms=kind == "slim", everywhere=learning)
    if not config:
        raise task.unreachable(task.space.largest)  # no layer of the kind that it ranks
    steps = SLIM_STEPS if kind == "slim" else len(task.batches)
    extra = {"evaluator": _evaluator(model, task.batches), "training_steps": steps} if learning else {}
    pruner = Remembering(model, config, **extra)
    pruner.compress()

    def kept(ratio: float) -> SubNetwork:
        return from_masks(task.dense, task.space, pruner.masks(ratio), merge=True)

    low, high = 0.0, 1.0 - 2**-BISECTIONS  # of all channels none could be kept
    wide, narrow = SubNetwork.fixed(task.space.largest), kept(high)
    if not task.admits(narrow.widths):
        raise task.unreachable(narrow.widths)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        sub = kept(middle)
        low, high, wide, narrow = (low, middle, wide, sub) if task.admits(sub.widths) else (middle, high, sub, narrow)
    return _filled(task, narrow, wide)


def _nni_config(task: Task, *, norms: bool, everywhere: bool) -> list[dict[str, Any]]:
    """Which layers are masked: convolutions or their norms; those that share channels alike.

    Our groups say which do. NNI's auto_set_denpendency_group_ids needs tensorboard, which NNI does not install, and
    gives every layer a dependency group, so that nothing could be ranked over all layers.
    """
    layers = dict(task.dense.named_modules())
    config: list[dict[str, Any]] = []
    for number, group in enumerate(task.space.groups):
        own = [
            axis.layer
            for axis in task.space.axes
            if axis.side == "out" and number in axis.by_group and (axis.groups == number).all()
        ]
        makers = [name for name in own if _has_outputs(layers[name]) and getattr(layers[name], "groups", 1) == 1]
        if norms:
            scales = [name for name in own if isinstance(layers[name], nn.modules.batchnorm._BatchNorm)]
            # of a pair around a depthwise convolution the last, which scales what is read
            makers = scales if len(makers) > 1 else scales[-1:]
        if not makers:
            continue
        tied = {"dependency_group_id": group.name} if len(makers) > 1 else {}
        config.append(
            {"op_names": makers, "sparse_ratio": 0.5} | (tied or ({"global_group_id": "all"} if everywhere else {}))
        )
    return config


def _not_empty(mask: torch.Tensor, metric: torch.Tensor) -> torch.Tensor:
    """Ranked over all layers, a layer can lose all of its channels to NNI: then its best one stays."""
    if mask.any():
        return mask
    best = torch.zeros_like(metric).flatten()
    best[metric.argmax()] = 1
    return best.reshape(metric.shape)


def _evaluator(model: nn.Module, batches: Sequence[Batch]) -> Any:
    """Training on the batches, over and over, as NNI wants to be told of it."""
    import nni
    from nni.compression import TorchEvaluator

    def training(network: nn.Module, optimizer: Any, step: Any, schedule: Any, max_steps: int, epochs: Any) -> None:
        network.train()
        for batch in islice(cycle(batches), max_steps):
            optimizer.zero_grad()
            step(batch, network).backward()
            optimizer.step()

    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=SPARSE_LR)
    return TorchEvaluator(training, optimizer, lambda batch, network: cross_entropy(network, batch))


def _filled(task: Task, narrow: SubNetwork, wide: SubNetwork) -> SubNetwork:
    """`narrow`, with as many groups of `wide`, in the model's order, as the budget allows: Uniform is filled alike."""
    kept = list(narrow.kept)
    for group, more in enumerate(wide.kept):
        tried = [*kept[:group], more, *kept[group + 1 :]]
        if task.admits(Widths(tuple(map(len, tried)))):
            kept = tried
    return SubNetwork(Widths(tuple(map(len, kept))), tuple(kept))


# --------------------------------------------------------------------------------------------------------- modelopt


def _fastnas(task: Task) -> SubNetwork:
    """FastNAS, asked for more or less until our counter agrees; what each layer's widths score is measured once."""
    import modelopt.torch.prune

    few = task.batches[:FASTNAS_BATCHES]
    assert task.limits.max_macs is not None

    def scored(model: nn.Module) -> float:
        with evaluating(model):
            return accuracy(model, few)

    # its own least step of 32 channels would leave narrow networks whole, and of 1 a depthwise convolution that fails
    shares = tuple(step / 20 for step in range(1, 21))
    fine = {"nn.Conv2d": {"*": {"channels_ratio": shares, "channel_divisor": 2, "kernel_size": ()}}}
    fine |= {kind: {"*": {"features_ratio": shares, "feature_divisor": 2}} for kind in ("nn.BatchNorm2d", "nn.Linear")}

    def found(asked: float) -> Widths | None:
        """What it makes of its own count of FLOPs, 2 to a MAC; None where it says that there is no such network."""
        constraints = {"flops": 2 * asked}
        try:
            pruned, _ = modelopt.torch.prune.prune(
                task.copy().to(memory_format=torch.contiguous_format),  # it refuses channels last
                mode=[("fastnas", fine)], constraints=constraints, dummy_input=task.example,
                config={
                    "data_loader": few, "collect_func": lambda batch: batch[0], "score_func": scored,
                    "checkpoint": str(folder / "sensitivities"), "verbose": False,
                },
            )  # fmt: skip
        except ValueError as error:
            if "constraints can be satisfied" not in str(error):
                raise
            return None
        return widths_of(task.space, pruned)

    low, high = 0.0, 2.0 * task.limits.max_macs
    best, least = None, task.space.largest
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(name)
        for _ in range(FASTNAS_ASKED):
            middle = (low + high) / 2
            widths = found(middle)
            if widths is not None and task.macs(widths) < task.macs(least):
                least = widths
            if widths is None or task.admits(widths):
                low, best = middle, best if widths is None else widths
            else:
                high = middle
    if best is None:
        raise task.unreachable(least)
    return SubNetwork.fixed(best)


RIVALS: dict[str, Rival] = {
    **{
        f"tp-{kind}-{where}": partial(_torch_pruning, kind=kind, everywhere=where == "global")
        for kind in ("magnitude", "slimming", "taylor", "hessian", "random")
        for where in ("global", "local")
    },
    **{f"nni-{kind}": partial(_nni, kind=kind) for kind in ("l1", "fpgm", "slim", "taylor")},
    "modelopt-fastnas": _fastnas,
}

NEEDS = {  # by the first part of a rival's name: the modules, and what to install
    "tp": (("torch_pruning",), "torch-pruning"),
    "nni": (("nni",), "'nni>=3.0,<4' 'setuptools<81'"),
    "modelopt": (("modelopt", "torchprofile"), "nvidia-modelopt torchprofile==0.0.4"),
}


def _check_installed(name: str) -> None:
    modules, packages = NEEDS[name.partition("-")[0]]
    if missing := [module for module in modules if find_spec(module) is None]:
        raise ModuleNotFoundError(
            f"{name} needs {' and '.join(missing)}, not installed here: pip install {packages}", name=missing[0]
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what belongs neither to a progress bar nor to an error: NNI logs, modelopt prints, all of them warn."""
    logger = logging.getLogger("nni")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
