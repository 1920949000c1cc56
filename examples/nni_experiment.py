"""How is CafeNet run as an experiment of NNI? A small network on scikit-learn's digits, half its MACs: 30 seconds."""

from __future__ import annotations

import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment

from nni_cafenet import Budget, CafeNet, RandomSearch, WidthModelSpace, accuracy, count_macs
from nni_cafenet.demo import IMAGE_SHAPE, DigitsNet, digits


def main() -> None:
    data = digits()
    evaluator = Classification(
        train_dataloaders=DataLoader(data.train.dataset, batch_size=64, shuffle=True),
        val_dataloaders=DataLoader(data.valid.dataset, batch_size=512),
        num_classes=10, learning_rate=0.01, max_epochs=20, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    # any factory would do, such as torchvision.models.mobilenet_v2 with kwargs={"num_classes": 10}
    space = WidthModelSpace(DigitsNet, kwargs={"classes": 10}, example_shape=IMAGE_SHAPE)
    print(space.space.describe())

    strategy = CafeNet(budget=Budget(max_macs="50%"), searcher=RandomSearch(evaluations=40))
    experiment = NasExperiment(space, evaluator, strategy)
    experiment.run()
    (channels,) = experiment.export_top_models(formatter="dict")
    (slim,) = experiment.export_top_models(formatter="instance")
    experiment.stop()

    image = torch.zeros(IMAGE_SHAPE)
    share = count_macs(slim, image) / count_macs(space.net, image)
    print(f"channels: {channels}")
    print(f"{type(slim).__name__} with {share:.1%} of the MACs, not retrained: {accuracy(slim.eval(), data.test):.1%}")


if __name__ == "__main__":
    main()
