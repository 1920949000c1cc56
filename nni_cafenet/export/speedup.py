"""What does NNI's ModelSpeedup need to cut a sub-network out, and does it cut out the same as slice_model?"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.export.slicing import slice_model
from nni_cafenet.layers import axis_tensors, check_fits, named_tensors
from nni_cafenet.modes import evaluating, seeded
from nni_cafenet.nas import compat
from nni_cafenet.space import SearchSpace
from nni_cafenet.tracing.example import Example, output_tensors
from nni_cafenet.widths import SubNetwork

# the door through which nni comes says what to install where it is missing, so it stands above
from nni.common.concrete_trace_utils import concrete_trace  # isort: skip
from nni.compression.speedup import ModelSpeedup  # isort: skip

Masks = dict[str, dict[str, torch.Tensor]]  # by layer: its "weight" and "bias", each of the parameter's shape

NNI_LOGGER = logging.getLogger("nni")

REMEDY = "use slice_model(model, space, sub), which cuts every model that a space can be built of"


def masks(model: nn.Module, space: SearchSpace, sub: SubNetwork) -> Masks:
    """The masks with which NNI's ModelSpeedup cuts `sub` out of `model`: 1 for what stays, 0 for what goes.

    Every layer whose output channels can be narrowed has an entry {"weight": ..., "bias": ...}: convolutions (grouped
    and depthwise ones too), linear layers, BatchNorms and other norms; input channels follow from them, as NNI has it.
    A masked model gives the outputs of the sliced one where an activation of 0 is 0, for its BatchNorms are masked
    too. ModelSpeedup writes into its masks: make new ones for each.

    Args:
        model: tells the shapes of the parameters, which the space does not know; left as it is.

    Raises:
        UnsupportedModel: `space` was built from another model, or `sub` narrows a bare parameter, which masks cannot.
        ValueError: `sub` belongs to another space.
    """
    positions = space.positions(sub)
    layers = dict(model.named_modules())
    bare = sorted({layer for layer, _ in positions if layer not in layers})
    if bare:
        raise UnsupportedModel(
            f"the sub-network narrows {', '.join(bare)}, which NNI's masks cannot say of a parameter that is no "
            f"layer's: {REMEDY}"
        )
    found: Masks = {}
    for axis in space.axes:
        if axis.side != "out" or not axis.by_group:
            continue
        check_fits(layers.get(axis.layer), axis.layer, axis.side, axis.size - 1)
        kept = positions.get(axis.key)
        own = {
            name: _mask(getattr(layers[axis.layer], name), dim, None if kept is None else torch.from_numpy(kept))
            for name, dim in axis_tensors(layers[axis.layer], axis.side)
            if name in ("weight", "bias")
        }
        if own:
            found[axis.layer] = own
    return found


def speedup(model: nn.Module, space: SearchSpace, sub: SubNetwork, *, example_inputs: Any) -> nn.Module:
    """`sub` as NNI's ModelSpeedup cuts it out of a copy of `model`, checked against slice_model; `model` is untouched.

    What it gives is a slice_model(model, space, sub), which is made along the way: the same class, keys, shapes and
    values, outputs, modes and requires_grad. It is for those whose tools expect a network that went through NNI.
    NNI's tracer is mended first (see :func:`nni_cafenet.nas.compat.patch`): without it no model comes through.

    Args:
        example_inputs: what the forward takes: a tensor (N, C, H, W), a tuple or a dict, as for build_space.

    Raises:
        UnsupportedModel: NNI fails on the model, or cuts out another network, as where it does not apply masks that
            it believes to conflict; or `space` was built from another model.
        ValueError: `sub` belongs to another space.
    """
    compat.patch()
    slim = slice_model(model, space, sub)
    chosen = masks(model, space, sub)
    example = Example(example_inputs)
    quick = copy.deepcopy(model).eval()
    try:
        with _undisturbed(quick):
            _run_nni(quick, example, chosen)
    except Exception as error:  # NNI's tracer runs third-party code, and its own raises all kinds of errors
        raise UnsupportedModel(
            f"NNI's ModelSpeedup fails on {type(model).__name__} ({type(error).__name__}: {error}): {REMEDY}"
        ) from error
    quick.zero_grad(set_to_none=True)
    _restore(quick, slim)
    difference = _difference(quick, slim) or _difference_in_outputs(quick, slim, example)
    if difference:
        raise UnsupportedModel(
            f"NNI's ModelSpeedup cuts another network out of {type(model).__name__}: {difference}: {REMEDY}"
        )
    return quick


def _mask(parameter: torch.Tensor, dim: int, kept: torch.Tensor | None) -> torch.Tensor:
    if kept is None:
        return torch.ones_like(parameter, requires_grad=False)
    mask = torch.zeros_like(parameter, requires_grad=False)
    return mask.index_fill_(dim, kept.to(parameter.device), 1)


def _run_nni(model: nn.Module, example: Example, chosen: Masks) -> None:
    """Replace the layers of `model`, in eval mode, by narrower ones."""
    inputs: Any = example.args
    if example.kwargs:  # NNI takes them by their order
        parameters = inspect.signature(model.forward).parameters
        inputs = {name: example.kwargs[name] for name in parameters if name in example.kwargs}
    with compat.fixed_modes():
        graph = concrete_trace(model, inputs)
    ModelSpeedup(model, inputs, chosen, graph_module=graph, logger=NNI_LOGGER).speedup_model()


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Inside the block NNI draws its random numbers, prints and logs each layer for itself."""
    level = NNI_LOGGER.level
    with seeded(0, 0, model), contextlib.redirect_stdout(io.StringIO()):
        NNI_LOGGER.setLevel(logging.CRITICAL)  # what it cannot replace is found by comparing
        try:
            yield
        finally:
            NNI_LOGGER.setLevel(level)


def _restore(quick: nn.Module, slim: nn.Module) -> None:
    """What NNI's new layers forget: modes, requires_grad, and how many batches a BatchNorm has seen."""
    modules = dict(slim.named_modules())
    for name, module in quick.named_modules():
        if name not in modules:
            continue  # told of by _difference
        module.training = modules[name].training
        for own, parameter in module._parameters.items():
            other = modules[name]._parameters.get(own)
            if parameter is not None and other is not None:
                parameter.requires_grad_(other.requires_grad)
        seen = modules[name]._buffers.get("num_batches_tracked")
        if seen is not None and "num_batches_tracked" in module._buffers:
            module._buffers["num_batches_tracked"] = seen.clone()


def _difference(quick: nn.Module, slim: nn.Module) -> str | None:
    """The first tensors of the two that differ in shape, dtype or values, or None."""
    ours, theirs = named_tensors(slim), named_tensors(quick)
    if missing := sorted(ours.keys() ^ theirs.keys()):
        return f"it does not have the same tensors ({', '.join(missing[:3])})"
    kinds = {
        name: (f"{tuple(theirs[name].shape)} {theirs[name].dtype}", f"{tuple(ours[name].shape)} {ours[name].dtype}")
        for name in ours
    }
    other = [f"{name} is {has} instead of {wants}" for name, (has, wants) in kinds.items() if has != wants]
    if not other:
        other = [f"{name} has other values" for name in ours if not torch.equal(ours[name], theirs[name])]
    return f"{'; '.join(other[:3])} ({len(other)} tensors in all)" if other else None


def _difference_in_outputs(quick: nn.Module, slim: nn.Module, example: Example) -> str | None:
    with torch.no_grad(), evaluating(quick), evaluating(slim):
        outputs = zip(output_tensors(example.run(slim)), output_tensors(example.run(quick)), strict=True)
        for ours, theirs in outputs:
            # the same layers and weights: all that may differ is the order of sums, by the memory's layout
            tolerance = 1000 * torch.finfo(ours.dtype).eps * float(ours.abs().max()) if ours.numel() else 0.0
            if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=0, atol=tolerance, equal_nan=True):
                return "its outputs differ on the example inputs"
    return None
