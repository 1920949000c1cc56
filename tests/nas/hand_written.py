"""Model spaces as NNI's users write them."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # NNI warns when it is imported, and here warnings are errors
    import nni
    from nni.nas.nn.pytorch import (
        LayerChoice,
        ModelSpace,
        MutableBatchNorm2d,
        MutableConv2d,
        MutableDropout,
        MutableLinear,
        Repeat,
    )


class Simple(ModelSpace):
    """A choice for each layer, one of them in an expression, values in no order."""

    def __init__(self):
        super().__init__()
        first, second, third = (
            nni.choice("first", [8, 4, 16]),
            nni.choice("second", [2, 4, 6, 8]),
            nni.choice("third", [8, 16]),
        )
        self.conv1, self.bn1 = MutableConv2d(1, first, 3, padding=1), MutableBatchNorm2d(first)
        self.conv2, self.bn2 = MutableConv2d(first, second * 2, 3, stride=2), MutableBatchNorm2d(second * 2)
        self.fc1, self.fc2 = MutableLinear(second * 2, third), MutableLinear(third, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x))).mean((2, 3))
        return self.fc2(F.relu(self.fc1(x)))


class Shared(ModelSpace):
    """One choice decides a residual stream, and with an expression the inside of its blocks too; depthwise layers."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [4, 8, 12])
        self.stem = nn.Sequential(MutableConv2d(1, width, 3, stride=2), MutableBatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                MutableConv2d(width, width * 3, 1), MutableBatchNorm2d(width * 3), nn.ReLU(),
                MutableConv2d(width * 3, width * 3, 3, padding=1, groups=width * 3), MutableBatchNorm2d(width * 3),
                nn.ReLU(), MutableConv2d(width * 3, width, 1), MutableBatchNorm2d(width),
            )
            for _ in range(2)
        )  # fmt: skip
        self.fc = MutableLinear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(x.mean((2, 3)))


class Scaled(nn.Module):
    """A layer of the user's own, whose factor has no channels."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.factor


class Custom(ModelSpace):
    """Operations of the user's own, a layer that is fixed, and flattened maps before a linear layer."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [3, 6])
        self.fixed, self.scaled = nn.Conv2d(1, 5, 3, stride=2), Scaled()
        self.conv, self.fc = MutableConv2d(5, width, 2), MutableLinear(width * 4, 10)

    def forward(self, x):
        return self.fc(self.scaled(F.relu(self.conv(F.relu(self.fixed(x)))).flatten(1)))


class WithLayerChoice(Simple):
    def __init__(self):
        super().__init__()
        self.act = LayerChoice([nn.ReLU(), nn.SiLU()], label="act")

    def forward(self, x):
        return super().forward(self.act(x))


class WithDepth(Simple):
    def __init__(self):
        super().__init__()
        self.deep = Repeat(lambda index: nn.Conv2d(1, 1, 1), (1, 3), label="depth")

    def forward(self, x):
        return super().forward(self.deep(x))


class WithKernel(Simple):
    def __init__(self):
        super().__init__()
        self.more = MutableConv2d(1, 1, nni.choice("kernel", [1, 3]))

    def forward(self, x):
        return super().forward(self.more(x))


class WithDropout(Simple):
    def __init__(self):
        super().__init__()
        self.drop = MutableDropout(nni.choice("rate", [0.1, 0.5]))

    def forward(self, x):
        return super().forward(self.drop(x))


class Nested(ModelSpace):
    """A width that depends on two choices."""

    def __init__(self):
        super().__init__()
        width, factor = nni.choice("width", [4, 8]), nni.choice("factor", [1, 2])
        self.conv1, self.conv2 = MutableConv2d(1, width, 3), MutableConv2d(width, width * factor, 3)
        self.fc = MutableLinear(width * factor, 10)

    def forward(self, x):
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


class Clashing(ModelSpace):
    """Two choices for channels that are added."""

    def __init__(self):
        super().__init__()
        left, right = nni.choice("left", [4, 8]), nni.choice("right", [4, 8])
        self.left, self.right, self.fc = MutableConv2d(1, left, 3), MutableConv2d(1, right, 3), MutableLinear(left, 10)

    def forward(self, x):
        return self.fc((self.left(x) + self.right(x)).mean((2, 3)))


class Unequal(ModelSpace):
    """The channels that one choice gives to two layers are not proportional."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [4, 8])
        self.conv1, self.conv2 = MutableConv2d(1, width, 3), MutableConv2d(width, width + 2, 3)
        self.fc = MutableLinear(width + 2, 10)

    def forward(self, x):
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


class Output(ModelSpace):
    """A choice for what must stay."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [4, 8])
        self.conv1, self.fc = MutableConv2d(1, width, 3), MutableLinear(width, nni.choice("classes", [5, 10]))

    def forward(self, x):
        return self.fc(F.relu(self.conv1(x)).mean((2, 3)))


class Falling(ModelSpace):
    """What makes one layer wider makes another narrower."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [4, 8])
        self.conv1, self.conv2 = MutableConv2d(1, width, 3), MutableConv2d(width, 12 - width, 3)
        self.fc = MutableLinear(12 - width, 10)

    def forward(self, x):
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))
