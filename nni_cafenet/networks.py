"""Which networks are trained beside one another? Widths, made fresh; those of the baselines Uniform and Random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from nni_cafenet.cost import Limits
from nni_cafenet.export.slicing import slice_model
from nni_cafenet.search.searcher import draw_within
from nni_cafenet.space import SearchSpace, uniform_widths
from nni_cafenet.tracing.bins import SingleChannels, rebin
from nni_cafenet.widths import SubNetwork

Factory = Callable[[], nn.Module]


@dataclass(frozen=True, eq=False)
class Network:
    """A network to be trained: the full one, or what (space, subnetwork) cuts out of it."""

    space: SearchSpace
    subnetwork: SubNetwork

    @classmethod
    def full(cls, space: SearchSpace) -> Network:
        """The one that all others are cut out of."""
        return cls(space, SubNetwork.fixed(space.largest))

    def make(self, factory: Factory, *, seed: int) -> nn.Module:
        """A freshly initialised network of these widths; the same one for the same seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return slice_model(factory(), self.space, self.subnetwork)

    @property
    def macs(self) -> int:
        """Multiply-adds per image."""
        return self.space.cost.macs(self.subnetwork.widths)

    @property
    def params(self) -> int:
        """Parameters."""
        return self.space.cost.params(self.subnetwork.widths)


def uniform_network(space: SearchSpace, limits: Limits) -> Network:
    """Uniform: one factor shrinks every group, channel by channel, to fill the limits."""
    fine = rebin(space, SingleChannels())
    return Network(fine, SubNetwork.fixed(uniform_widths(fine, limits)))


def random_network(space: SearchSpace, limits: Limits, *, seed: int) -> Network:
    """A network drawn at random, channel by channel, within the limits."""
    fine = rebin(space, SingleChannels())
    return Network(fine, SubNetwork.fixed(draw_within(fine, limits, np.random.default_rng([seed, 1]))))
