"""Everything about a model that we must leave as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Snapshot:
    """Taken before, compared after: tensors by identity and value, gradients, modes, hooks and other attributes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters = {name: (p, p.detach().clone(), p.requires_grad) for name, p in _parameters(model)}
        self.gradients = {
            name: None if p.grad is None else (p.grad, p.grad.clone()) for name, p in model.named_parameters()
        }
        self.buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
        self.modules = {name: (module, module.training) for name, module in model.named_modules()}
        self.attributes = {name: _attributes(module) for name, module in model.named_modules()}
        self.keys = list(model.state_dict())

    def assert_unchanged(self) -> None:
        model = self.model
        assert list(model.state_dict()) == self.keys
        assert {name: id(p) for name, p in _parameters(model)} == {n: id(p) for n, (p, _, _) in self.parameters.items()}
        for name, (parameter, value, requires_grad) in self.parameters.items():
            assert torch.equal(parameter, value), name
            assert parameter.requires_grad == requires_grad, name
            assert parameter.is_leaf, name
        for name, parameter in model.named_parameters():
            before = self.gradients[name]
            if before is None:
                assert parameter.grad is None, name
            else:
                assert parameter.grad is before[0], name
                assert torch.equal(before[0], before[1]), name
        assert {name: id(b) for name, b in model.named_buffers()} == {n: id(b) for n, (b, _) in self.buffers.items()}
        for name, (buffer, value) in self.buffers.items():
            assert torch.equal(buffer, value), name
        modules = dict(model.named_modules())
        assert list(modules) == list(self.modules)
        for name, (module, training) in self.modules.items():
            assert modules[name] is module, name
            assert module.training == training, name
            assert _attributes(module) == self.attributes[name], name


def _parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters(remove_duplicate=False))


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What is set on the module itself, hooks among it; tensors and submodules are compared elsewhere."""
    plain: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            plain[name] = list(value)
        elif name.endswith("_hooks") or "_hooks_" in name:
            plain[name] = dict(value) if value is not None else None
        elif isinstance(value, torch.Tensor):
            plain[name] = id(value)
        else:
            plain[name] = value
    return plain
