"""What turns an existing experiment of NNI into CafeNet? Two lines, marked below. On scikit-learn's digits: a minute.

python examples/nni_experiment.py              # CafeNet
python examples/nni_experiment.py --before     # the experiment as it was, with NNI's RandomOneShot
"""

from __future__ import annotations

import argparse

import nni
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import ModelSpace, MutableBatchNorm2d, MutableConv2d, MutableLinear
from nni.nas.strategy import RandomOneShot
from torch import nn

from nni_cafenet import Budget, CafeNet, accuracy, count_macs  # line 1
from nni_cafenet.demo import IMAGE_SHAPE, digits


class Net(ModelSpace):
    """A space as NNI's users write them: a choice for each width, one of them shared by a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        width, inner = nni.choice("width", list(range(4, 33, 4))), nni.choice("inner", list(range(8, 65, 8)))
        self.stem = nn.Sequential(MutableConv2d(1, width, 3, padding=1), MutableBatchNorm2d(width), nn.ReLU())
        self.block = nn.Sequential(
            MutableConv2d(width, inner, 3, padding=1), MutableBatchNorm2d(inner), nn.ReLU(),
            MutableConv2d(inner, width, 3, padding=1), MutableBatchNorm2d(width),
        )  # fmt: skip
        last = nni.choice("last", list(range(8, 65, 8)))
        self.down = nn.Sequential(MutableConv2d(width, last, 3, stride=2), MutableBatchNorm2d(last), nn.ReLU())
        self.head = MutableLinear(last, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        return self.head(self.down(x + self.block(x)).mean((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", action="store_true", help="with NNI's RandomOneShot")
    before = parser.parse_args().before
    torch.manual_seed(0)
    data = digits()
    evaluator = Classification(
        train_dataloaders=DataLoader(data.train.dataset, batch_size=64, shuffle=True),
        val_dataloaders=DataLoader(data.valid.dataset, batch_size=512),
        num_classes=10, learning_rate=0.01, max_epochs=20, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    strategy = RandomOneShot() if before else CafeNet(Budget(max_macs="40%"))  # line 2
    experiment = NasExperiment(Net(), evaluator, strategy)
    experiment.run()
    (chosen,) = experiment.export_top_models(formatter="dict")
    print(f"chosen: {chosen}")
    if not before:
        (slim,) = experiment.export_top_models(formatter="instance")
        image = torch.zeros(IMAGE_SHAPE)
        share = count_macs(slim, image) / strategy.result.dense.macs
        print(f"{share:.1%} of the MACs, not retrained: {accuracy(slim.eval(), data.test):.1%} of the test images")
    experiment.stop()


if __name__ == "__main__":
    main()
