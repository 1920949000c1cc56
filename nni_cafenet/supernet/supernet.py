"""Running a sub-network: the unchanged model with slices of its own weights swapped in."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from nni_cafenet.space import SearchSpace
from nni_cafenet.supernet.slices import Sliced, SlicePlan, gather, plan_slices
from nni_cafenet.widths import SubNetwork

CACHED_PLANS = 32


class Supernet:
    """A model whose weights all of its sub-networks share.

    The model itself is used, never copied: its parameters are what an optimizer trains, its state_dict is unchanged,
    and outside of :meth:`running` it is the plain full network.
    """

    def __init__(self, model: nn.Module, space: SearchSpace) -> None:
        self.model, self.space = model, space
        self._plans: OrderedDict[SubNetwork, SlicePlan] = OrderedDict()
        self._running = False
        self._plan(SubNetwork.fixed(space.smallest))  # refuses another model's space here, not in mid-training

    @contextmanager
    def running(self, sub: SubNetwork) -> Iterator[nn.Module]:
        """The model runs as `sub` inside the block and is the full network again afterwards, on errors too.

        Outputs and gradients are those of the sliced network; gradients arrive in the full parameters, exactly 0
        outside of the slice, whether backward is called inside the block or after it. Buffers are copies: what
        BatchNorm records in train mode is kept to the end of the block and then forgotten.

        Raises:
            ValueError: `sub` belongs to another space.
            RuntimeError: a sub-network is running already.
        """
        if self._running:
            raise RuntimeError("a sub-network is running already: leave its block before running another")
        plan = self._plan(sub)
        parameters = self._sliced_parameters(plan)
        buffers = gather(plan.buffers, [piece.full for piece in plan.buffers])
        modules = list(self.model.modules())
        saved_buffers = [(module, dict(module._buffers)) for module in modules if module._buffers]
        saved_parameters = [(piece.owner, piece.name, piece.full) for piece in plan.parameters]
        saved_attributes = [(layer, name, getattr(layer, name)) for layer, name, _ in plan.attributes]
        self._running = True
        try:
            for piece, part in zip(plan.buffers, buffers, strict=True):
                piece.owner._buffers[piece.name] = part
            for module, originals in saved_buffers:
                for name, buffer in originals.items():
                    if buffer is not None and module._buffers[name] is buffer:  # not sliced
                        module._buffers[name] = buffer.clone()
            for piece, part in zip(plan.parameters, parameters, strict=True):
                piece.owner._parameters[piece.name] = part  # type: ignore[assignment]
            for layer, name, value in plan.attributes:
                setattr(layer, name, value)
            yield self.model
        finally:
            for module, originals in saved_buffers:
                module._buffers.update(originals)
            for owner, name, full in saved_parameters:
                owner._parameters[name] = full  # type: ignore[assignment]
            for layer, name, value in saved_attributes:
                setattr(layer, name, value)
            self._running = False

    def _sliced_parameters(self, plan: SlicePlan) -> list[torch.Tensor]:
        full = [piece.full for piece in plan.parameters]
        trains = [tensor.requires_grad and torch.is_grad_enabled() for tensor in full]
        trained = [i for i, train in enumerate(trains) if train]
        fixed = [i for i, train in enumerate(trains) if not train]
        parts: dict[int, torch.Tensor] = {}
        if trained:
            pieces = [plan.parameters[i] for i in trained]
            parts.update(zip(trained, Sliced.apply(pieces, *(full[i] for i in trained)), strict=True))
        parts.update(zip(fixed, gather([plan.parameters[i] for i in fixed], [full[i] for i in fixed]), strict=True))
        return [parts[i] for i in range(len(full))]

    def _plan(self, sub: SubNetwork) -> SlicePlan:
        if sub not in self._plans:
            self._plans[sub] = plan_slices(self.model, self.space.positions(sub))
            if len(self._plans) > CACHED_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(sub)
        return self._plans[sub]
