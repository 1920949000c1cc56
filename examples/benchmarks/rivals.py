"""Which channels do other people's pruners keep within a budget? Each by its own code, read in as a sub-network.

torch-pruning's pruners take small steps, importances anew in each, until our counter is within the budget; NNI's rank
once, and the ratio is found by bisection. Local ones drop the same share of every layer, so that their widths are those
of Uniform, and only the channels, and so the inherited weights, differ.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from nni_cafenet import CafeNetError, SearchSpace, SubNetwork, accuracy, cross_entropy
from nni_cafenet.cost import Limits
from nni_cafenet.errors import nearest
from nni_cafenet.modes import seeded
from nni_cafenet.peers import from_masks, from_torch_pruning, widths_of

Batch = tuple[torch.Tensor, torch.Tensor]
STEPS = 400  # into which torch-pruning's way to the empty network is cut
STEPS_BY_GRADIENTS = 100  # where each of them takes backwards
HESSIAN_IMAGES = 16  # in each step, one backward each
BISECTIONS = 12
SPARSE_LR, REGULARIZER = 0.01, 1e-4  # of the sparse training before slimming


class Unreachable(CafeNetError):
    """A pruner that cannot make the network as small as the budget."""


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
    """What the rival `name` keeps of a trained network, which stays as it is.

    Args:
        dense: a trained classifier.
        space: of `dense`, in bins of single channels.
        limits: in MACs.
        batches: an epoch of training images and labels or less, for those that learn from data.
        example: an input.
        seed: of all that is random.

    Raises:
        Unreachable: the smallest network that it makes is above the limits.
    """
    if name not in RIVALS:
        raise ValueError(f"there is no rival {name!r}; {nearest(name, RIVALS)}")
    model = copy.deepcopy(dense)
    with seeded(seed, 0, model), _quiet():
        sub = RIVALS[name](model, space, limits, batches, example.to(batches[0][0].device))
    if sub is None or not limits.admit(space.cost, sub.widths):
        least = (
            "there is no such network in its space" if sub is None else f"it stops at {space.cost.macs(sub.widths):,}"
        )
        raise Unreachable(f"{name} does not reach {limits.max_macs:,} MACs: {least}")
    return sub


# --------------------------------------------------------------------------------------------- torch-pruning


def _torch_pruning(
    model: nn.Module, space: SearchSpace, limits: Limits, batches: Sequence[Batch], example: torch.Tensor, *,
    kind: str, everywhere: bool,
) -> SubNetwork | None:  # fmt: skip
    import torch_pruning

    importances = {
        "magnitude": partial(torch_pruning.importance.GroupMagnitudeImportance, p=2),
        "slimming": torch_pruning.importance.BNScaleImportance,
        "taylor": torch_pruning.importance.GroupTaylorImportance,
        "hessian": torch_pruning.importance.GroupHessianImportance,
        "random": torch_pruning.importance.RandomImportance,
    }
    importance = importances[kind]()
    by_gradients = kind in ("taylor", "hessian")
    steps = STEPS_BY_GRADIENTS if by_gradients else STEPS
    held = {axis.layer for axis in space.axes if axis.side == "out"}
    options: dict[str, Any] = {
        "importance": importance, "global_pruning": everywhere, "pruning_ratio": 1.0, "iterative_steps": steps,
        "ignored_layers": [
            layer for name, layer in model.named_modules()
            if isinstance(layer, nn.Conv2d | nn.Linear) and name not in held
        ],
    }  # fmt: skip
    if kind == "slimming":
        pruner = torch_pruning.pruner.BNScalePruner(model, example, reg=REGULARIZER, **options)
        _sparse_training(model, pruner, batches)
    else:
        pruner = torch_pruning.pruner.BasePruner(model, example, **options)
    model.eval()
    for step in range(steps):
        if limits.admit(space.cost, widths_of(space, model)):
            return from_torch_pruning(space, pruner)
        if by_gradients:
            _gradients(model, importance, batches[step % len(batches)], each=kind == "hessian")
        pruner.step()
        model.zero_grad()
    return from_torch_pruning(space, pruner)


def _sparse_training(model: nn.Module, pruner: Any, batches: Sequence[Batch]) -> None:
    """An epoch with a penalty on BatchNorm's scales, by the pruner's own rule."""
    optimizer = torch.optim.SGD(model.parameters(), lr=SPARSE_LR, momentum=0.9)
    model.train()
    pruner.update_regularizer()
    for batch in batches:
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        pruner.regularize(model)
        optimizer.step()


def _gradients(model: nn.Module, importance: Any, batch: Batch, *, each: bool) -> None:
    """Of the mean loss; or of each image's, whose squares are summed up as torch-pruning's examples do."""
    if not each:
        cross_entropy(model, batch).backward()
        return
    images, labels = (part[:HESSIAN_IMAGES] for part in batch)
    importance.zero_grad()
    for loss in nn.functional.cross_entropy(model(images), labels, reduction="none"):
        model.zero_grad()
        loss.backward(retain_graph=True)
        importance.accumulate_grad(model)


# ------------------------------------------------------------------------------------------------------- NNI


def _nni(
    model: nn.Module, space: SearchSpace, limits: Limits, batches: Sequence[Batch], example: torch.Tensor, *, kind: str
) -> SubNetwork | None:
    from nni.compression import pruning

    original = copy.deepcopy(model)  # NNI wraps the layers of the other one
    layers = dict(original.named_modules())
    wanted = nn.BatchNorm2d if kind == "slim" else nn.Conv2d
    config: list[dict[str, Any]] = []
    for number, group in enumerate(space.groups):
        own = sorted({
            axis.layer for axis in space.axes
            if axis.side == "out" and (axis.groups == number).any() and isinstance(layers[axis.layer], wanted)
            and getattr(layers[axis.layer], "groups", 1) == 1
        })  # fmt: skip
        # layers that are added up are masked alike; what is ranked by gradients or scales is ranked in all layers
        tied = {"dependency_group_id": group.name} if kind in ("l1", "fpgm") and len(own) > 1 else {}
        everywhere = {"global_group_id": "all"} if kind in ("slim", "taylor") else {}
        config.append({"op_names": own, "sparse_ratio": 0.5, **tied, **everywhere})
    if kind in ("slim", "taylor"):
        pruner = {"slim": pruning.SlimPruner, "taylor": pruning.TaylorPruner}[kind](
            model, config, _evaluator(model, batches), training_steps=len(batches)
        )
    else:
        pruner = {"l1": pruning.L1NormPruner, "fpgm": pruning.FPGMPruner}[kind](model, config)
    ranked: list[Any] = []
    rank = pruner._generate_sparsity

    def ranking(metrics: Any) -> Any:
        ranked.append(metrics)
        return rank(metrics)

    pruner._generate_sparsity = ranking  # NNI forgets what it has ranked by, and would have to train for each ratio
    pruner.compress()

    def kept(ratio: float) -> SubNetwork:
        for targets in pruner._target_spaces.values():
            for target in targets.values():
                if target.sparse_ratio is not None:
                    target.sparse_ratio = ratio
        masks: Mapping[str, Any] = rank(ranked[-1])
        weights = {name: {"weight": own["weight"].expand_as(layers[name].weight)} for name, own in masks.items()}
        return from_masks(original, space, weights, merge=True)

    low, high, best = 0.0, 1.0, None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        with contextlib.suppress(CafeNetError):  # nothing is left of a layer: too high a ratio
            sub = kept(middle)
            if not limits.admit(space.cost, sub.widths):
                low = middle
                continue
            best = sub
        high = middle
    return best


def _evaluator(model: nn.Module, batches: Sequence[Batch]) -> Any:
    import nni
    from nni.compression import TorchEvaluator

    optimizer = nni.trace(torch.optim.SGD)(model.parameters(), lr=SPARSE_LR, momentum=0.9)

    def training_step(batch: Batch, network: nn.Module) -> torch.Tensor:
        return cross_entropy(network, batch)

    def training(
        network: nn.Module, optimizers: Any, step: Any, *_: Any, max_steps: int | None = None, **__: Any
    ) -> None:
        network.train()
        for number, batch in enumerate(batches):
            if max_steps is not None and number >= max_steps:
                return
            optimizers.zero_grad()
            loss = step(batch, network)
            loss.backward()
            optimizers.step()

    return TorchEvaluator(training, optimizer, training_step)


# -------------------------------------------------------------------------------------------------- modelopt


def _fastnas(
    model: nn.Module, space: SearchSpace, limits: Limits, batches: Sequence[Batch], example: torch.Tensor
) -> SubNetwork | None:
    """NVIDIA's, asked for less until our counter agrees with what it found.

    It keeps multiples of 32 channels, so that there is little that it can take from a narrow network.
    """
    import modelopt.torch.prune

    assert limits.max_macs is not None
    asked = limits.max_macs / space.cost.macs(space.largest)
    few = list(batches[: max(1, len(batches) // 4)])
    config = {
        "data_loader": few, "score_func": partial(accuracy, batches=few), "checkpoint": None,
        "collect_func": lambda batch: batch[0], "verbose": False,
    }  # fmt: skip
    found = None
    for _ in range(5):
        try:
            pruned, _state = modelopt.torch.prune.prune(
                copy.deepcopy(model), mode="fastnas", constraints={"flops": f"{100 * asked:.3f}%"},
                dummy_input=example, config=config,
            )  # fmt: skip
        except ValueError as error:
            if "NOT all constraints can be satisfied" not in str(error):
                raise
            return found
        found = SubNetwork.fixed(widths_of(space, pruned))
        macs = space.cost.macs(found.widths)
        if macs <= limits.max_macs:
            break
        asked *= 0.98 * limits.max_macs / macs
    return found


Rival = Callable[[nn.Module, SearchSpace, Limits, Sequence[Batch], torch.Tensor], SubNetwork | None]
RIVALS: dict[str, Rival] = {
    **{
        f"tp-{kind}-{where}": partial(_torch_pruning, kind=kind, everywhere=where == "global")
        for where in ("global", "local")
        for kind in ("magnitude", "slimming", "taylor", "hessian", "random")
    },
    **{f"nni-{kind}": partial(_nni, kind=kind) for kind in ("l1", "fpgm", "slim", "taylor")},
    "modelopt-fastnas": _fastnas,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNI logs and modelopt prints what belongs to neither a progress bar nor an error."""
    logger = logging.getLogger("nni")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
