"""The private copy of a model that is looked at in the caller's stead, and which models are refused at once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.modes import running_modules
from nni_cafenet.tracing.example import Example

SMALL = 128  # pixels of the shorter side, to which detectors resize their images while channels are looked at
CROP = 64  # pixels to which other images are cropped: channels meet alike at any size

# what to do instead, by the start of a module's class name with its package
REFUSED = {
    "torch.jit.": "it is compiled by TorchScript: pass the plain module",
    "torch._dynamo.": "it is compiled by torch.compile: slim the plain module, then compile the result",
    "torch.fx.": "it is traced by torch.fx, with its sizes fixed: pass the original module",
    "torch.ao.nn.": "it is quantised, which is done after slimming: pass the float model",
    "torch.nn.quantized.": "it is quantised, which is done after slimming: pass the float model",
    "torch.nn.parallel.": "it wraps a model for several devices: pass model.module",
    "torch.distributed.": "it wraps a model for several devices: pass the plain module",
}


def private_copy(model: nn.Module, example: Example) -> nn.Module:
    """A copy of `model` in eval mode, without gradients, that runs on `example`.

    Raises:
        UnsupportedModel: the model cannot be copied, does not run on the example, or is of a kind that is not sliced;
            the message names the module.
    """
    _refuse(model)
    try:
        private = copy.deepcopy(model).eval()
    except Exception as error:  # deepcopy runs third-party code
        raise UnsupportedModel(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}): "
            f"slicing works on a copy; remove what copy.deepcopy refuses"
        ) from error
    private.zero_grad(set_to_none=True)
    with running_modules(private) as running, small_images(private):
        try:
            with torch.no_grad():
                example.run(private)
        except Exception as error:  # whatever a third-party forward raises
            shapes = [tuple(tensor.shape) for tensor in example.tensors]
            place = f" in {running[-1]}" if running and running[-1] else ""
            raise UnsupportedModel(
                f"the forward of {type(model).__name__} fails on the example inputs of shapes {shapes} "
                f"(batch cut to 1){place}: {type(error).__name__}: {error}{_devices(private, example)}"
            ) from error
    return private


def _devices(model: nn.Module, example: Example) -> str:
    """The end of a message, where the model and its inputs are not on the same device."""
    theirs = sorted({str(tensor.device) for tensor in model.parameters()})
    given = sorted({str(tensor.device) for tensor in example.tensors})
    if not theirs or theirs == given:
        return ""
    return f"; the model is on {', '.join(theirs)} and the inputs are on {', '.join(given)}: move them to one device"


def small_example(model: nn.Module, example: Example) -> Example:
    """`example` with its images cropped, where `model` takes them so; else `example` itself."""
    small = example.cropped(CROP)
    if [tensor.shape for tensor in small.tensors] == [tensor.shape for tensor in example.tensors]:
        return example
    try:
        with torch.no_grad():
            small.run(model)
    except Exception:  # whatever a third-party forward raises at a size that it was not made for
        return example
    return small


def resizers(model: nn.Module) -> list[GeneralizedRCNNTransform]:
    """What resizes the images in torchvision's detectors, whatever the size of those that are given."""
    return [module for module in model.modules() if isinstance(module, GeneralizedRCNNTransform)]


@contextmanager
def small_images(model: nn.Module) -> Iterator[None]:
    """Inside the block a detector of torchvision resizes its images to SMALL pixels, where it takes any size."""
    sizes = [(module, module.min_size, module.max_size) for module in resizers(model)]
    try:
        for module, least, most in sizes:
            module.min_size, module.max_size = (min(SMALL, *least),), min(2 * SMALL, most)
        yield
    finally:
        for module, least, most in sizes:
            module.min_size, module.max_size = least, most


def _refuse(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__name__}"
        where = f"{name or 'the model'} ({type(module).__name__})"
        for start, remedy in REFUSED.items():
            if kind.startswith(start) or (start == "torch.jit." and isinstance(module, torch.jit.ScriptModule)):
                raise UnsupportedModel(f"{where} cannot be sliced: {remedy}")
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if nn.parameter.is_lazy(tensor):
                raise UnsupportedModel(f"{where} has no shape yet: run the model once before")
        for own, parameter in module._parameters.items():
            if parameter is not None and parameter.is_complex():
                raise UnsupportedModel(f"{where} has complex numbers in {own!r}, which are not sliced")
