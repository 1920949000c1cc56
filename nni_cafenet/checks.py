"""Do the arguments of a search make sense together? Asked before anything is trained."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence

from torch import nn

from nni_cafenet.cost import Budget, Limits
from nni_cafenet.distributed import rank
from nni_cafenet.search.stages import Stage
from nni_cafenet.space import SearchSpace, uniform_widths
from nni_cafenet.tracing.bins import FlopsSensitiveBins, rebin
from nni_cafenet.train import Recipe

logger = logging.getLogger(__name__)
FINER = (0.5, 0.25, 0.125)  # min_bin, of which the first that does is recommended


def limits_of(space: SearchSpace, budget: Budget | None, budgets: Sequence[Budget] | None) -> list[Limits]:
    """Of every budget, so that what cannot be is refused before anything is trained."""
    if (budget is None) == (budgets is None):
        raise ValueError(f"give either budget= or budgets=, but got {'neither' if budget is None else 'both'}")
    asked = [budget] if budget is not None else list(budgets or ())
    if not asked:
        raise ValueError("budgets must hold at least one budget, but got none")
    found: list[Limits] = []
    for place, limits in enumerate(space.limits(one) for one in asked):
        if limits in found:
            raise ValueError(
                f"budgets must differ, but {asked[found.index(limits)]} and {asked[place]} are both {limits}"
            )
        found.append(limits)
    return found


def warn_of_coarse_bins(space: SearchSpace, limits: Limits) -> None:
    """Log a warning where Uniform within `limits` has a single bin in most groups: little is left to be searched.

    Of several processes, one does.
    """
    most = len(space.groups) // 2
    if rank() or len(single := _in_one_bin(space, limits)) <= most:
        return
    finer = "a smaller min_bin"
    for beta in FINER:
        cut = rebin(space, FlopsSensitiveBins(beta), round_to=space.round_to, min_channels=space.min_channels)
        if limits.admit(cut.cost, cut.smallest) and len(_in_one_bin(cut, limits)) <= most:
            finer = f"min_bin={beta}"
            break
    logger.warning(
        "within %s Uniform keeps a single bin in %d of %d groups (%s, ...), so that there is little to search: "
        "give %s, for finer bins", limits, len(single), len(space.groups), single[0], finer,
    )  # fmt: skip


def _in_one_bin(space: SearchSpace, limits: Limits) -> list[str]:
    """Groups in which Uniform keeps the first bin alone, where that could be cut finer."""
    return [
        group.name
        for group, bins, width in zip(space.groups, space.bins, uniform_widths(space, limits).bins_kept, strict=True)
        if width == 1 and bins.edges[1] > max(group.least, group.unit, space.round_to, space.min_channels)
    ]


def check_numbers(
    *, random_share: float = 0.0, recalibrate_batches: int = 1, ema: float = 0.0, **_others: object
) -> None:
    """Raise ValueError where a number that every front end takes makes no sense."""
    if not 0 <= random_share <= 1:
        raise ValueError(f"random_share must be 0 to 1, but got {random_share}")
    if recalibrate_batches < 1:
        raise ValueError(f"recalibrate_batches must be at least 1, but got {recalibrate_batches}")
    Recipe(0, ema=ema)  # whose own check it is


def check_parts(sharing: object, searcher: object) -> None:
    """Raise TypeError where one of the parts that every front end takes is a name or a class, and no such part."""
    for name, part, methods, example in (
        ("sharing", sharing, ("choices", "draw"), "LocallyFree(offset=1)"),
        ("searcher", searcher, ("begin", "ask", "tell"), "Evolution(seed=0)"),
    ):
        if isinstance(part, type) or not all(callable(getattr(part, method, None)) for method in methods):
            raise TypeError(f"{name} must be an object with {', '.join(methods)}, such as {example}, but got {part!r}")


def as_models(model: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    """Copies of the model, or of the models, that supernets start from.

    Raises:
        TypeError: something else.
        ValueError: none, or models that have not the same weights.
    """
    given = [model] if isinstance(model, nn.Module) or not isinstance(model, Iterable) else list(model)
    if not all(isinstance(each, nn.Module) for each in given):
        raise TypeError(f"model must be a torch.nn.Module, or several, but got {model!r}")
    if not given:
        raise ValueError("model must be a model, or several, but got none")
    first, *others = ({name: list(value.shape) for name, value in each.state_dict().items()} for each in given)
    for number, other in enumerate(others, 2):
        for name in (name for name in {**first, **other} if first.get(name) != other.get(name)):
            raise ValueError(
                f"models must be of one architecture, but {name} of model {number} is {other.get(name)}, "
                f"and of model 1 {first.get(name)}"
            )
    return [copy.deepcopy(each) for each in given]


def check_train_each(train_each: int, models: Sequence[nn.Module], **of_supernets: object) -> None:
    """Raise ValueError where networks shall be trained one by one and what is for supernets is asked for too."""
    if isinstance(train_each, bool) or not isinstance(train_each, int) or train_each < 0:
        raise ValueError(f"train_each must be a whole number of at least 0, but got {train_each!r}")
    asked = [name for name, value in of_supernets.items() if value]
    if train_each and asked:
        raise ValueError(f"train_each trains no supernet, which {' and '.join(asked)} would be for: give either")
    if train_each and len(models) > 1:
        raise ValueError(f"train_each trains all networks from one model, but got {len(models)}")


def check_stages(stages: Sequence[Stage], space: SearchSpace, limits: Limits | None) -> None:
    """Raise ValueError where the last of `stages` does not end at `limits`; None stands for several budgets."""
    if stages and limits is None:
        raise ValueError(
            "stages cannot be combined with budgets: they narrow the supernet to what suits one budget, so none "
            "is left to share; call search_widths(budget=..., stages=...) for each, with a checkpoint folder of its own"
        )
    if stages and (ends := stages[-1].limits(space)) != limits:
        raise ValueError(f"the last stage must end at the budget, {limits}, but ends at {ends}")
