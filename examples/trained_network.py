"""Slim a network that is trained already, and go on from its weights; a minute on two CPU cores."""

import copy
from functools import partial

import torch

from nni_cafenet import (
    Budget,
    Distillation,
    Evolution,
    Recipe,
    accuracy,
    build_space,
    channel_importance,
    cross_entropy,
    search_widths,
    slice_model,
    sort_channels,
    train_model,
)
from nni_cafenet.demo import DigitsNet, digits
from nni_cafenet.importance import few_images
from nni_cafenet.networks import uniform_network
from nni_cafenet.train import sgd

data = digits()  # in the place of this and the next three lines: your data, your trained network
torch.manual_seed(0)
trained = DigitsNet()
train_model(trained, data.train, Recipe(epochs=20), loss_fn=cross_entropy)

space = build_space(trained, next(iter(data.train))[0])
importance = channel_importance(trained, space, few_images(data.train))
model = sort_channels(trained, space, importance)  # computes the same, the most important channels first

gently = partial(sgd, lr=0.03)
budget = Budget(max_macs="30%")
result = search_widths(
    model, space, train_batches=data.train, valid_batches=data.valid, budget=budget, epochs=40,
    searcher=Evolution(population=20, generations=6, from_uniform=True), sandwich=True, distill=True,
    optimizer_fn=gently, recalibrate_batches=10, checkpoint="runs/trained",
)  # fmt: skip

uniform = uniform_network(space, space.limits(budget))
slim = {
    "found": slice_model(result.supernet, space, result.best.subnetwork),  # with the supernet's weights
    "uniform": uniform.make(partial(copy.deepcopy, model), seed=0),  # with those of the best channels of `trained`
}
macs = {"found": result.best.macs, "uniform": uniform.macs, "trained": result.dense.macs}
for network in slim.values():
    train_model(network, data.train, Recipe(20, gently), loss_fn=Distillation(trained))
for name, network in {**slim, "trained": trained}.items():
    print(f"{name}: {macs[name]:,} MACs, test accuracy {accuracy(network.eval(), data.test):.4f}")
