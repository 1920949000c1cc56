"""The networks of models.py with their search spaces, built once for all tests; tests that change a model copy it."""

from __future__ import annotations

import copy
from functools import cache

import numpy as np
from torch import nn

from nni_cafenet import LocallyFree, SearchSpace, SharingPattern, SubNetwork, build_space
from tests.models import NETWORKS, example, make


@cache
def _built(name: str) -> tuple[nn.Module, SearchSpace]:
    model = make(NETWORKS[name])
    return model, build_space(model, example())


def built(name: str) -> tuple[nn.Module, SearchSpace]:
    """A fresh copy of a network, in train mode, and its space."""
    model, space = _built(name)
    return copy.deepcopy(model), space


def some_subnetworks(
    space: SearchSpace, count: int = 3, *, sharing: SharingPattern | None = None, seed: int = 0
) -> list[SubNetwork]:
    """`count` random ones behind the smallest and the full one."""
    rng = np.random.default_rng(seed)
    ends = [SubNetwork.fixed(space.smallest), SubNetwork.fixed(space.largest)]
    return ends + [space.sample(rng, sharing=sharing or LocallyFree(offset=1)) for _ in range(count)]
