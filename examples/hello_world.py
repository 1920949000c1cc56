"""Slim torchvision's MobileNetV2 to half of its MACs on real images; a few minutes on two CPU cores."""

import torch
import torchvision

from nni_cafenet import Budget, RandomSearch, build_space, load_slim, save_slim, search_widths, slice_model
from nni_cafenet.demo import digits

data = digits()  # scikit-learn's 8 x 8 images, here as 3 x 32 x 32; use your own DataLoaders of (images, targets)
train, valid = (
    [(torch.nn.functional.interpolate(x.expand(-1, 3, -1, -1), 32), y) for x, y in batches]
    for batches in (data.train, data.valid)
)
model = torchvision.models.mobilenet_v2(num_classes=10)
space = build_space(model, train[0][0])
print(space.describe())  # what can be searched, what cannot, and why

result = search_widths(
    model, space, train_batches=train, valid_batches=valid, budget=Budget(max_macs="50%"),
    searcher=RandomSearch(evaluations=20), epochs=5, recalibrate_batches=4, checkpoint="runs/hello",
)  # fmt: skip
slim = slice_model(result.supernet, space, result.best.subnetwork)  # a plain MobileNetV2: train it as you would
save_slim(slim, space, result.best.subnetwork, "runs/hello/slim.safetensors")
slim = load_slim("runs/hello/slim.safetensors", torchvision.models.mobilenet_v2, num_classes=10)
print(result.save("runs/hello"))  # report.html: the widths, the search, accuracy over MACs
