"""Re-estimating BatchNorm statistics: a sub-network's are not the supernet's, and without its own a score is noise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nni_cafenet.modes import evaluating
from nni_cafenet.supernet.objectives import LossFn


def recalibrate(model: nn.Module, batches: Iterable[Any], loss_fn: LossFn) -> None:
    """Set every BatchNorm's running statistics to the average over `batches`, in place.

    Works on a plain model and, inside of Supernet.running, on the running sub-network. Everything else stays in eval
    mode, so dropout does not disturb the statistics; modes and momenta are restored.

    Args:
        batches: as `loss_fn` takes them.
        loss_fn: runs the forward; its value is not used.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluating(model), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over the batches
                norm.train()
            for batch in batches:
                loss_fn(model, batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
