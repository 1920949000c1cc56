"""torch-pruning's dependency graph of a model, built with its quirks stepped around."""

from __future__ import annotations

import warnings

import torch
import torch_pruning
from torch import nn

from nni_cafenet.errors import UnsupportedModel
from nni_cafenet.tracing.example import Example, output_tensors


def dependency_graph(model: nn.Module, example: Example) -> torch_pruning.DependencyGraph:
    """The graph of `model`, which is left in eval mode.

    The inputs are passed as they are by a function of our own: torch-pruning would first try to unpack a tensor.

    Raises:
        UnsupportedModel: torch-pruning fails; the message names the layer behind which.
    """
    graph = torch_pruning.DependencyGraph()
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph.build_dependency(
                model, example, forward_fn=lambda module, inputs: inputs.run(module),
                output_transform=lambda output: [out for out in output_tensors(output) if out.grad_fn is not None],
                verbose=False,
            )  # fmt: skip
    except Exception as error:  # whatever a third-party forward and a third-party tracer raise
        raise UnsupportedModel(
            f"torch-pruning cannot follow the channels of {type(model).__name__} "
            f"{_near(graph, error)}({type(error).__name__}: {error}); channel shuffle is not supported yet"
        ) from error
    return graph


def _near(graph: torch_pruning.DependencyGraph, error: Exception) -> str:
    """The layer whose output torch-pruning was following when it failed, for the message."""
    names = {module: name for name, module in graph.model.named_modules()}
    frame = error.__traceback__
    node = None
    while frame is not None:  # its own error says nothing of where, but its frames hold the node
        node = frame.tb_frame.f_locals.get("node", node)
        frame = frame.tb_next
    queue, seen = [node], set()
    while queue:
        node = queue.pop(0)
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.module in names:
            return f"behind {names[node.module]} "
        queue.extend(node.inputs)
    return ""
