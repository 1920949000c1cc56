"""What the studies share: sizes, the trained dense network, supernets, and a final training, each kept on disk."""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fashion_mnist import Batch, Splits, load
from networks import COMPACT, NETWORKS
from tables import append_csv, read_csv
from torch import nn

from nni_cafenet import (
    Candidate,
    Distillation,
    Fixed,
    FlopsSensitiveBins,
    FullyFree,
    LocallyFree,
    Recipe,
    SearchSpace,
    SharingPattern,
    SingleChannels,
    Supernet,
    UniformBins,
    Widths,
    accuracy,
    build_space,
    channel_importance,
    cross_entropy,
    rebin,
    sort_channels,
    train_model,
)
from nni_cafenet.alone import AloneScorer
from nni_cafenet.checkpoint import Checkpoint
from nni_cafenet.cost import Limits
from nni_cafenet.distributed import by_itself
from nni_cafenet.files import replacing
from nni_cafenet.importance import few_images
from nni_cafenet.modes import evaluating
from nni_cafenet.networks import Network
from nni_cafenet.phases import train_supernet
from nni_cafenet.supernet.candidates import as_candidates
from nni_cafenet.supernet.evaluate import Scorer
from nni_cafenet.supernet.minmin import MinMin
from nni_cafenet.tracing.bins import BinRule
from nni_cafenet.train import first_batches


@dataclass(frozen=True)
class Size:
    """How large a study is.

    Args:
        pixels: of the images, 16 or 32.
        share: of the network's channels.
        compact_share: of those of a network that is compact already: with fewer, most of its layers are a single bin.
        train, valid, check: images of the splits; see fashion_mnist.py.
        epochs: of every final training.
        supernet_epochs: of every supernet.
        evaluations: widths that a search scores.
        recalibrate_batches: from which BatchNorm is re-estimated.
        importance_batches: from which the importance of channels is estimated.
        tries: random networks of which the best goes on, after a tenth of the epochs.
    """

    pixels: int
    share: float
    compact_share: float
    train: int
    valid: int
    check: int
    batch: int
    epochs: int
    supernet_epochs: int
    evaluations: int
    recalibrate_batches: int
    importance_batches: int
    tries: int


SIZES = {
    "small": Size(16, 0.25, 0.5, 10_000, 2_000, 10_000, 64, 10, 20, 384, 16, 8, 10),
    "medium": Size(32, 1.0, 1.0, 45_000, 5_000, 10_000, 256, 6, 12, 192, 16, 8, 10),
    "full": Size(32, 1.0, 1.0, 45_000, 5_000, 10_000, 128, 60, 60, 1_000, 20, 8, 20),
}


@dataclass(frozen=True)
class Arm:
    """How a supernet is trained and asked; each other than the first differs from it in what its name says.

    A search scores the fixed pattern's candidate alone: thrice the widths for the same time; `recalibrated` are the
    batches of BatchNorm's re-estimation, where they are others than the size's. A supernet that starts from the trained
    dense network, its most important channels first, is trained half as long: both trainings together have as many
    updates as another supernet's, at size `small`.
    """

    sharing: SharingPattern
    candidates: str = "sampled"
    scored: str = "sampled:1"
    random_share: float = 0.0
    bins: BinRule | None = None
    training: float = 1
    trained: bool = False
    sandwich: bool = False
    distill: bool = False
    near: float = 0.0
    lr: float = 0.1
    ema: float = 0.0
    recalibrated: int | None = field(default=None, repr=False)

    @property
    def training_only(self) -> Arm:
        """The arm without how it is asked: those that are equal share a supernet."""
        return replace(self, scored="", recalibrated=None)


# after any method of compare.py, in this order: what it found is trained for so many times the epochs; and learns from
# the trained dense network's answers too
LONGER, TIMES = "-longer", 4
TAUGHT = "-taught"
ALONE_ARM = "alone"  # no supernet: every network that is asked for is trained by itself
FREE = LocallyFree(offset=1)
TRAINED_LR = 0.03  # what trained weights bear
from_trained = partial(Arm, trained=True, training=0.5, lr=TRAINED_LR)
from_trained_distilled = partial(from_trained, sandwich=True, distill=True)
ARMS = {
    "locally-free": Arm(FREE),
    "fixed": Arm(Fixed()),
    "max-max": Arm(FREE, scored="sampled"),
    "batches-1": Arm(FREE, recalibrated=1),
    "batches-4": Arm(FREE, recalibrated=4),
    "batches-64": Arm(FREE, recalibrated=64),
    "tied": Arm(FREE, candidates="tied"),
    "fully-free": Arm(FullyFree()),
    "offset-2": Arm(LocallyFree(offset=2)),
    "offset-3": Arm(LocallyFree(offset=3)),
    "no-min-min": Arm(FREE, random_share=1.0),
    "uniform-bins": Arm(FREE, bins=UniformBins(8)),
    "locally-free-fine": Arm(FREE, bins=FlopsSensitiveBins(0.25)),
    "locally-free-fine-trained-distill": from_trained_distilled(FREE, bins=FlopsSensitiveBins(0.25)),
    "long": Arm(FREE, training=3),
    "fixed-long": Arm(Fixed(), training=3),
    "sandwich": Arm(FREE, sandwich=True),
    "sandwich-distill": Arm(FREE, sandwich=True, distill=True),
    "near": Arm(FREE, near=1.0),
    "near-half": Arm(FREE, near=0.5),
    "fixed-near": Arm(Fixed(), near=1.0),
    "lr": Arm(FREE, lr=0.03),
    "ema": Arm(FREE, ema=0.995),
    "locally-free-trained": from_trained(FREE),
    "fixed-trained": from_trained(Fixed()),
    "locally-free-trained-distill": from_trained_distilled(FREE),
    "fixed-trained-distill": from_trained_distilled(Fixed()),
    "near-distill": Arm(FREE, near=1.0, sandwich=True, distill=True),
    "fixed-sandwich-distill": Arm(Fixed(), sandwich=True, distill=True),
}


@dataclass(frozen=True)
class ScoredAlone:
    """A row of a RememberingScorer's file.

    Args:
        bins: of each group the bins kept, with hyphens between them.
        valid: the accuracy by which a search selects.
        seconds: of the training.
    """

    bins: str
    valid: float
    seconds: float

    @property
    def widths(self) -> Widths:
        return Widths(tuple(map(int, self.bins.split("-"))))


@dataclass(frozen=True, eq=False, kw_only=True)
class RememberingScorer(AloneScorer):
    """An AloneScorer that trains no widths twice, whichever budget they are asked for within.

    Args:
        path: a CSV of the score of each and the seconds that it took, to which processes may append side by side.
    """

    path: Path

    @classmethod
    def of(cls, scorer: AloneScorer, path: Path) -> RememberingScorer:
        return cls(**vars(scorer), path=path)

    def evaluate(self, widths: Widths) -> Candidate:
        known = self._known()
        if widths not in known:
            start = time.perf_counter()
            score = super().evaluate(widths).score
            bins = "-".join(map(str, widths.bins_kept))
            known[widths] = ScoredAlone(bins, score, round(time.perf_counter() - start, 1))
            append_csv(self.path, [known[widths]])
        return Candidate.fixed(self.space, widths, known[widths].valid)

    def seconds(self, candidates: Iterable[Candidate]) -> float:
        """How long the trainings of these took."""
        known = self._known()
        return sum(known[found.subnetwork.widths].seconds for found in candidates)

    def _known(self) -> dict[Widths, ScoredAlone]:
        return {row.widths: row for row in read_csv(self.path, ScoredAlone)}


def alone_scores(folder: Path) -> dict[int, dict[Widths, float]]:
    """Of a folder of compare.py's cells, the scores of networks trained alone, from scratch, by seed."""
    found = {}
    for path in folder.glob(f"{ALONE_ARM}-scratch-*.csv"):
        found[int(path.stem.rpartition("-")[2])] = {row.widths: row.valid for row in read_csv(path, ScoredAlone)}
    return dict(sorted(found.items()))


@dataclass(frozen=True, eq=False)
class Setting:
    """A network, a size and a seed: of initialisation, shuffling and augmentation, the same for every method.

    Args:
        work: a folder of checkpoints, by which what was interrupted goes on.
    """

    network: str
    size: Size
    seed: int
    data: Path
    work: Path
    device: torch.device

    @cached_property
    def splits(self) -> Splits:
        size = self.size
        return load(
            self.data, pixels=size.pixels, train=size.train, valid=size.valid, check=size.check, batch=size.batch,
            device=self.device,
        )  # fmt: skip

    @property
    def share(self) -> float:
        return self.size.compact_share if self.network in COMPACT else self.size.share

    @property
    def factory(self) -> Callable[[], nn.Module]:
        return partial(NETWORKS[self.network], self.share)

    @property
    def example(self) -> torch.Tensor:
        return torch.zeros(1, 1, self.size.pixels, self.size.pixels)

    @cached_property
    def space(self) -> SearchSpace:
        return build_space(self.factory(), self.example)

    @cached_property
    def channels(self) -> SearchSpace:
        """The same in bins of single channels."""
        return rebin(self.space, SingleChannels())

    def binned(self, arm: Arm) -> SearchSpace:
        return self.space if arm.bins is None else rebin(self.space, arm.bins)

    def lr(self, *, trained: bool = False) -> float:
        """Of networks that start from trained weights, or from random ones.

        At 0.1 compact networks fail whose last convolution is wide, whoever found them: see README.md.
        """
        return TRAINED_LR if trained or self.network in COMPACT else 0.1

    def recipe(self, epochs: int, *, trained: bool = False) -> Recipe:
        """How networks are trained by themselves, whichever method found them."""
        return Recipe(epochs, partial(sgd, lr=self.lr(trained=trained)))

    def train(
        self, model: nn.Module, name: str, *, epochs: int, trained: bool = False, taught: bool = False,
        seed: int | None = None,
    ) -> nn.Module:  # fmt: skip
        """`model`, trained by the recipe of all; `seed` of shuffling and augmentation, if not the setting's own."""
        recipe = self.recipe(epochs, trained=trained)
        seed = self.seed if seed is None else seed
        settings = {"lr": self.lr(trained=trained), **self.settings(epochs), "seed": seed}
        loss = Distillation(self.dense) if taught else cross_entropy
        with by_itself():
            train_model(
                model.to(self.device), self.splits.train, recipe, loss_fn=loss, seed=seed,
                checkpoint=Checkpoint(self.work, name, settings), label=name,
            )  # fmt: skip
        return model

    def ending(self, method: str) -> dict[str, Any]:
        """How what a method of compare.py has found is trained, as train() takes it."""
        longer = method.removesuffix(TAUGHT).endswith(LONGER)
        return {"epochs": self.size.epochs * (TIMES if longer else 1), "taught": method.endswith(TAUGHT)}

    def settings(self, epochs: int) -> dict[str, Any]:
        """What the checkpoint of a training depends on."""
        size = self.size
        images = {"pixels": size.pixels, "train": size.train, "batch": size.batch}
        return {"network": self.network, "share": self.share, "seed": self.seed, "epochs": epochs, **images}

    def fresh(self) -> nn.Module:
        """The full network, untrained."""
        network = Network.full(self.space)
        return network.make(self.factory, seed=self.seed).to(self.device)

    @cached_property
    def dense(self) -> nn.Module:
        """The full network, trained: where all pruners start from."""
        return self.train(self.fresh(), "dense", epochs=self.size.epochs).eval()

    @cached_property
    def sorted(self) -> nn.Module:
        """The same, with the most important channels first in every group."""
        drawn = self.first_batches(self.size.importance_batches)
        importance = channel_importance(self.dense, self.space, few_images(drawn))
        return sort_channels(self.dense, self.space, importance)

    def scorer(self, name: str, limits: Limits) -> tuple[Scorer, float]:
        """A trained supernet of an arm, ready to be asked, and the seconds that its training took.

        It depends on the limits where the arm draws widths near them.
        """
        arm = ARMS[name]
        name = next(other for other, its in ARMS.items() if its.training_only == arm.training_only)
        name = f"{name}-{limits.max_macs}" if arm.near else name
        space = self.binned(arm)
        supernet = Supernet(copy.deepcopy(self.sorted) if arm.trained else self.fresh(), space)
        candidates, epochs = as_candidates(arm.candidates), round(self.size.supernet_epochs * arm.training)
        steps = int(arm.random_share * epochs * len(self.splits.train))
        settings = {"arm": repr(arm.training_only), **self.settings(epochs)}
        start = time.perf_counter()
        train_supernet(
            supernet, self.splits.train, Recipe(epochs, partial(sgd, lr=min(arm.lr, self.lr())), ema=arm.ema),
            MinMin(
                supernet, arm.sharing, candidates, steps, self.seed, sandwich=arm.sandwich, distill=arm.distill,
                near=limits, near_share=arm.near,
            ),
            cross_entropy, checkpoint=Checkpoint(self.work, f"supernet-{name}", settings),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        kept = self.work / f"supernet-{name}.seconds"
        if not kept.exists():
            kept.write_text(str(seconds))  # of an interrupted training those of its last part alone
        drawn = self.first_batches(arm.recalibrated or self.size.recalibrate_batches)
        scorer = Scorer(
            supernet, list(self.splits.valid), accuracy, drawn, cross_entropy, arm.sharing, as_candidates(arm.scored),
            self.seed,
        )  # fmt: skip
        return scorer, float(kept.read_text())

    def alone(self, epochs: int, *, trained: bool = False) -> AloneScorer:
        """Scores networks by a training of their own, from scratch or from the trained network's best channels."""
        start = self.sorted if trained else self.fresh()
        return AloneScorer(
            start, self.space, self.splits.train, list(self.splits.valid), accuracy, cross_entropy,
            self.recipe(epochs, trained=trained), self.seed,
        )  # fmt: skip

    def first_batches(self, count: int) -> list[Batch]:
        """Of the training images, as a first epoch would see them."""
        drawn: list[Batch] = first_batches(self.splits.train, count, seed=self.seed, model=nn.Identity())
        return drawn


def scored(model: nn.Module, setting: Setting, split: str) -> float:
    """The accuracy of a trained model, 0 to 1, on `check`, which decides what we do, or `test`, which is reported."""
    with evaluating(model):
        return accuracy(model, getattr(setting.splits, split))


def scores(model: nn.Module, setting: Setting) -> dict[str, float]:
    """The accuracies of a trained model that are kept of it, by split."""
    return {split: scored(model, setting, split) for split in ("check", "test")}


def found_by(method: str) -> str:
    """A method of compare.py without how what it has found is trained."""
    return method.removesuffix(TAUGHT).removesuffix(LONGER)


def trained_again(setting: Setting, network: Network, name: str, *, seed: int, method: str = "") -> dict[str, float]:
    """The scores of a network after one more training from scratch, whose initialisation and order are of `seed`."""
    model = network.make(setting.factory, seed=seed)
    return scores(setting.train(model, name, seed=seed, **setting.ending(method)), setting)


def nearest(space: SearchSpace, channels: Mapping[str, int]) -> Widths:
    """The widths whose channels, by group, are the nearest: those of another space with other bins."""
    kept = (
        1 + int(np.abs(np.array(bins.edges[1:]) - channels[group.name]).argmin())
        for group, bins in zip(space.groups, space.bins, strict=True)
    )
    return Widths(tuple(kept))


def write_json(path: Path, row: Mapping[str, Any]) -> None:
    """A file of plain values, whole or not there."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(row, indent=1) + "\n")


def sgd(parameters: object, *, lr: float) -> torch.optim.Optimizer:
    """Nesterov momentum 0.9, weight decay 5e-4, as the package's default."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True)  # type: ignore[arg-type]


def add_setting(parser: argparse.ArgumentParser) -> None:
    """The options that the studies share."""
    parser.add_argument("--data", type=Path, required=True, help="the folder of Fashion-MNIST")
    parser.add_argument("--network", choices=NETWORKS, default="vgg13")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder of checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def setting_of(options: argparse.Namespace, seed: int) -> Setting:
    size = SIZES[options.size]
    work = options.work / options.size / options.network / f"seed{seed}"
    return Setting(options.network, size, seed, options.data, work, torch.device(options.device))
