"""Which channels meet in a model? One forward is watched, operation by operation."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from nni_cafenet.layers import CONVOLUTION, axis_size, axis_tensors
from nni_cafenet.modes import running_modules
from nni_cafenet.tracing.call import Call
from nni_cafenet.tracing.example import Example, output_tensors
from nni_cafenet.tracing.labels import Ledger
from nni_cafenet.tracing.rules import rule_of

logger = logging.getLogger(__name__)

READS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero}

OPAQUE = {
    nn.MultiheadAttention: "it feeds a MultiheadAttention, which is not sliced",
    nn.RNNBase: "it feeds an LSTM or GRU, which is not sliced",
    nn.Embedding: "it is an Embedding, which is not sliced",
}


@dataclass(frozen=True)
class Stretch:
    """The labels of an axis: `size` of them from `start`."""

    layer: str
    side: str
    size: int
    start: int


def watch(model: nn.Module, example: Example) -> tuple[list[Stretch], Ledger]:
    """The axes of `model`'s parameters and buffers, and what forwards in eval and in train mode say of them.

    Args:
        model: a private copy in eval mode; train mode leaves its marks on buffers.
    """
    ledger = Ledger()
    watcher = _Watcher(ledger)
    axes = list(_axes(model, ledger, watcher.slots))
    attention_fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operation that hides its layers
    try:
        watcher.forward(model, example)
        model.train()
        try:  # auxiliary heads run in train mode only, and read what is searched
            with torch.random.fork_rng(devices=[]):
                watcher.forward(model, example.twice())
        except Exception as error:  # a detector wants targets, for one
            logger.info("%s was not watched in train mode: %s", type(model).__name__, error)
    finally:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(attention_fastpath)
    return axes, ledger


class _Watcher(TorchDispatchMode):
    """Applies the rules to every operation that runs."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.slots: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.running: list[str] = []

    def forward(self, model: nn.Module, example: Example) -> None:
        """Run `model` and note what its operations say; what comes out must stay."""
        with torch.no_grad(), running_modules(model) as self.running, self:
            output = example.run(model)
        for tensor in output_tensors(output):
            self.ledger.freeze(self.slots.get(tensor, ()), "it is the model's output")

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        where = (self.running[-1] if self.running else "") or "the model's own forward"
        outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if func.overloadpacket in READS and (given[0].is_floating_point() or given[0].dtype == torch.bool):
            self.ledger.decides = where
        if not outputs or not any(self.slots.get(tensor) for tensor in given):
            return result
        names = [argument.name for argument in func._schema.arguments]
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        call = Call(func, arguments, outputs, self.ledger, lambda tensor: self.slots.get(tensor, ()), where)
        for tensor, slots in zip(outputs, rule_of(func)(call), strict=True):
            slots = tuple(slot for slot in slots if slot.numel() > 1)
            in_place = any(tensor is other for other in given)
            if in_place and tensor._base is not None and not self.slots.get(tensor):
                self.ledger.freeze(slots, f"it is written into a part of another tensor in {where}")
                slots = ()
            self.slots[tensor] = slots
        return result


def _axes(model: nn.Module, ledger: Ledger, slots: WeakTensorKeyDictionary) -> Iterator[Stretch]:
    """One axis for each side of each layer, and for each dimension of what belongs to no known kind of layer."""
    own: dict[torch.Tensor, dict[int, torch.Tensor]] = {}  # tensor -> dimension -> labels

    def labelled(axis: str, side: str, size: int, tensors: list[tuple[torch.Tensor, int]]) -> Stretch:
        stretch = Stretch(axis, side, size, ledger.new(size))
        labels = torch.arange(stretch.start, stretch.start + size)
        if opaque:
            ledger.freeze([labels], opaque)
        for tensor, dim in tensors:
            known = own.setdefault(tensor, {})
            if dim in known:
                ledger.join(known[dim], labels)  # one tensor in two layers, or twice in one
            known[dim] = labels
        return stretch

    for name, layer in model.named_modules():
        opaque = next((reason for kind, reason in OPAQUE.items() if isinstance(layer, kind)), None)
        for side in ("out", "in"):
            size, tensors = axis_size(layer, side), axis_tensors(layer, side)
            if size is None or any(getattr(layer, attribute).shape[dim] != size for attribute, dim in tensors):
                continue  # the last: transposed convolutions of several groups
            if not tensors or (side == "in" and tensors == axis_tensors(layer, "out")):
                continue  # a norm has one axis
            yield labelled(name, side, size, [(getattr(layer, attribute), dim) for attribute, dim in tensors])
        known = {tensor for side in ("out", "in") for tensor, _ in axis_tensors(layer, side)}
        for tensor_name, tensor in (*layer._parameters.items(), *layer._buffers.items()):
            if tensor is None or tensor_name in known or not tensor.is_floating_point():
                continue
            for dim, size in enumerate(tensor.shape):
                if size == 1 or (isinstance(layer, CONVOLUTION) and tensor_name in ("weight", "bias")):
                    continue
                yield labelled(f"{name}.{tensor_name}".removeprefix("."), f"dim{dim}", size, [(tensor, dim)])
    for tensor, by_dim in own.items():
        found = [
            labels.reshape(*(1,) * dim, -1, *(1,) * (tensor.dim() - dim - 1)) for dim, labels in sorted(by_dim.items())
        ]
        slots[tensor] = tuple(slot for slot in found if slot.numel() > 1)
