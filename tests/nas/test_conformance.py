"""Model spaces of the kinds that NNI's own tests of its one-shot strategies use: each is searched, or refused by name.

NNI's are simple, simple_value_choice, value_choice, repeat, cell, multihead_attention and custom_op, each with choices
of more than widths; here they are in that form, which is refused, and in one that chooses widths alone, which runs.
What hand_written.py holds is tested in test_choices.py, resuming in test_resume.py, optimizers in test_lightning.py.
"""

import copy
import pickle
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nni_cafenet import Budget, CafeNet, RandomSearch, SubNetwork, Supernet, UnsupportedModel, Widths, count_macs
from nni_cafenet.nas.choices import ChoiceModelSpace
from nni_cafenet.tracing.trial import randomise
from tests.nas.conftest import TRAINER

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # NNI warns when it is imported, and here warnings are errors
    import nni
    from nni.mutable import MutableExpression, ensure_frozen
    from nni.nas.evaluator.pytorch import Classification, DataLoader, Regression
    from nni.nas.execution import SequentialExecutionEngine
    from nni.nas.nn.pytorch import (
        Cell,
        InputChoice,
        LayerChoice,
        ModelSpace,
        MutableBatchNorm1d,
        MutableBatchNorm2d,
        MutableConv1d,
        MutableConv2d,
        MutableConvTranspose2d,
        MutableDropout,
        MutableGroupNorm,
        MutableLayerNorm,
        MutableLinear,
        MutableLSTM,
        MutableMultiheadAttention,
        MutablePReLU,
        ParametrizedModule,
        Repeat,
    )
    from nni.nas.space import RawFormatModelSpace, model_context

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's and Lightning's own

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Hidden(ModelSpace):
    """simple_value_choice: a hidden layer after flattened maps, and by `more` the choices of layers and inputs."""

    def __init__(self, more=False):
        super().__init__()
        hidden = nni.choice("hidden", [4, 8, 16])
        self.conv = LayerChoice([nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3, bias=False)], label="conv") if more else None
        self.stem = nn.Conv2d(1, 4, 3)
        self.fc1, self.fc2, self.more = MutableLinear(64, hidden), MutableLinear(hidden, 10), nn.Linear(10, 10)
        self.input = InputChoice(2, 1, label="input") if more else None

    def forward(self, x):
        x = F.relu(self.fc1(F.dropout(F.avg_pool2d(self.stem(x)[..., :4, :4], 1), 0.1, self.training).flatten(1)))
        x = self.fc2(x)
        return F.log_softmax(x + self.more(x), dim=1)


class Valued(ModelSpace):
    """value_choice: channels and, by `kernels`, the kernel that they are computed with."""

    def __init__(self, kernels=(3,)):
        super().__init__()
        channels, kernel = nni.choice("channels", [4, 8]), nni.choice("kernel", list(kernels))
        self.conv = MutableConv2d(1, channels, kernel, padding=kernel // 2)
        self.bn, self.conv2, self.fc = MutableBatchNorm2d(channels), MutableConv2d(channels, 8, 3), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.conv2(F.relu(self.bn(self.conv(x)))).mean((2, 3)))


class Repeated(ModelSpace):
    """repeat: blocks of chosen channels, as many as `depth` says."""

    def __init__(self, depth=2):
        super().__init__()
        width, inner = nni.choice("width", [4, 8]), nni.choice("inner", [4, 6, 8])
        self.stem = MutableConv2d(1, width, 3)
        self.blocks = Repeat(lambda index: Block(width, inner), depth, label="depth")
        self.fc = MutableLinear(width, 10)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    """A module of the user's own that holds NNI's layers."""

    def __init__(self, width, inner):
        super().__init__()
        self.inside = nn.Sequential(MutableConv2d(width, inner, 3, padding=1), MutableBatchNorm2d(inner), nn.ReLU())
        self.back = MutableConv2d(inner, width, 1)

    def forward(self, x):
        return x + self.back(self.inside(x))


class Stage(ModelSpace):
    """A space inside of another one, which hands it a choice."""

    def __init__(self, width):
        super().__init__()
        self.block = Block(width, nni.choice("inner", [2, 4]) * 2)

    def forward(self, x):
        return self.block(x)


class Nested(ModelSpace, label_prefix="net"):
    """Spaces and modules in one another; both stages have the same choice, and labels a prefix."""

    def __init__(self):
        super().__init__()
        width = nni.choice("width", [4, 8])
        self.stem, self.stages = MutableConv2d(1, width, 3), nn.ModuleList([Stage(width), Stage(width)])
        self.fc = MutableLinear(width, 10)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.fc(x.mean((2, 3)))


class Norm(ParametrizedModule):
    """custom_op: an operation of the user's own whose argument is a choice."""

    def __init__(self, channels):
        super().__init__()
        self.bn, self.scale = nn.BatchNorm2d(channels), nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return self.bn(x) * self.scale


class ConvNorm(ParametrizedModule):
    """One that makes channels, and has arguments that say more of it."""

    def __init__(self, channels_in, channels_out, rate=0.0, factor=None):
        super().__init__()
        self.conv, self.drop, self.factor = nn.Conv2d(channels_in, channels_out, 3), nn.Dropout(rate), factor
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x):
        return self.drop(F.relu(self.bn(self.conv(x)))) * (self.factor or 1)


class CustomOps(ModelSpace):
    def __init__(self):
        super().__init__()
        first, second = nni.choice("first", [4, 8]), nni.choice("second", [6, 2, 4])
        self.conv, self.norm = MutableConv2d(1, first, 3), Norm(first)
        self.more, self.fc = ConvNorm(first, second * 2, rate=0.1), MutableLinear(second * 2, 10)

    def forward(self, x):
        return self.fc(self.more(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


class Layers(ModelSpace):
    """Other layers of torch: one-dimensional, transposed, norms of groups and of layers, ReLUs with weights."""

    def __init__(self):
        super().__init__()
        first, second, third = nni.choice("first", [4, 8]), nni.choice("second", [4, 8]), nni.choice("third", [8, 16])
        self.conv, self.groups, self.act = (
            MutableConv2d(1, first, 3),
            MutableGroupNorm(first // 2, first),
            MutablePReLU(first),
        )
        self.up, self.line = MutableConvTranspose2d(first, second, 2), MutableConv1d(second, third, 3)
        self.bn, self.norm, self.fc = MutableBatchNorm1d(third), MutableLayerNorm(third), MutableLinear(third, 10)

    def forward(self, x):
        x = F.relu(self.up(self.act(self.groups(self.conv(x)))))
        return self.fc(self.norm(F.relu(self.bn(self.line(x.mean(2)))).mean(2)))


class Expressions(ModelSpace):
    """Channels computed of what is chosen, two of them read by one layer, and a choice of one value."""

    def __init__(self):
        super().__init__()
        left, right = nni.choice("left", [4, 8]), MutableExpression.to_int(nni.choice("share", [0.5, 0.25, 1.0]) * 16)
        one = nni.choice("one", [8])
        self.left, self.right = MutableConv2d(1, left, 3), MutableConv2d(1, right, 3)
        self.both, self.drop, self.fc = MutableConv2d(left + right, one, 1), MutableDropout(0.1), MutableLinear(one, 10)

    def forward(self, x):
        both = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.fc(self.drop(F.relu(self.both(both))).mean((2, 3)))


class SeveralInputs(ModelSpace):
    """Takes a list of tensors, as NNI's multihead_attention does."""

    def __init__(self, attention=False):
        super().__init__()
        width = nni.choice("width", [4, 8])
        self.first, self.last = MutableLinear(8, width), MutableLinear(width, 1)
        self.attention = MutableMultiheadAttention(width, 1) if attention else None

    def forward(self, batch):
        query, key, value = (F.relu(self.first(one)) for one in batch)
        return self.last(query * key + value)


SEARCHED = [Hidden, Valued, Repeated, Nested, CustomOps, Layers, Expressions, SeveralInputs]


def data_of(kind):
    """An evaluator's images or lists of vectors with their targets, and what the forward takes."""
    if kind is SeveralInputs:
        vectors = IMAGES[:, 0, :3].unbind(1)
        return [(list(vectors), torch.zeros(32, 1))], (list(vectors),)
    return [(IMAGES, torch.arange(32) % 10)], (IMAGES,)


class Pairs(torch.utils.data.Dataset):
    def __init__(self, batches):
        ((inputs, targets),) = batches
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        several = isinstance(self.inputs, list)
        return [one[index] for one in self.inputs] if several else self.inputs[index], self.targets[index]


@pytest.fixture(scope="module", params=SEARCHED, ids=lambda kind: kind.__name__)
def searched(request, tmp_path_factory):
    """(kind, a strategy that has searched a space of that kind), by NNI's own call, without an experiment."""
    kind, folder = request.param, tmp_path_factory.mktemp("lightning")
    torch.manual_seed(0)
    loader = DataLoader(Pairs(data_of(kind)[0]), batch_size=16)
    options = {**TRAINER, "enable_checkpointing": True, "default_root_dir": folder, "max_epochs": 1}
    loaders = {"train_dataloaders": loader, "val_dataloaders": loader}
    evaluator = (
        Regression(**loaders, **options)
        if kind is SeveralInputs
        else Classification(**loaders, num_classes=10, **options)
    )
    strategy = CafeNet(Budget("90%"), searcher=RandomSearch(evaluations=2), recalibrate_batches=2)
    strategy(RawFormatModelSpace(kind(), evaluator), SequentialExecutionEngine())
    return kind, strategy


def test_a_plain_slim_model_within_the_budget_comes_out(searched):
    kind, strategy = searched
    (model,) = strategy.list_models()
    slim, written = model.executable_model(), kind()
    assert model.sample.keys() == written.simplify().keys()
    frozen = written.freeze(model.sample)
    assert {n: p.shape for n, p in slim.named_parameters()} == {n: p.shape for n, p in frozen.named_parameters()}
    assert not any(type(module).__name__.startswith("Mutable") for module in slim.modules())
    (macs,) = {count_macs(net, data_of(kind)[1]) for net in (slim, frozen)}
    assert macs == strategy.result.best.macs <= strategy.result.limits.max_macs
    assert strategy.state_dict()["ckpt_path"]


def test_the_class_makes_the_slim_model_again(searched):
    kind, strategy = searched
    (model,) = strategy.list_models()
    slim = model.executable_model().eval()
    with model_context(model.sample):
        again = kind()
    again.load_state_dict(slim.state_dict())
    assert torch.equal(again.eval()(*data_of(kind)[1]), slim(*data_of(kind)[1]))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda slim: pickle.loads(pickle.dumps(slim))], ids=["copy", "pickle"]
)
def test_the_slim_model_is_copied(copied, searched):
    kind, strategy = searched
    (model,) = strategy.list_models()
    slim = model.executable_model().eval()
    assert torch.equal(copied(slim)(*data_of(kind)[1]), slim(*data_of(kind)[1]))


@pytest.mark.parametrize("kind", SEARCHED, ids=lambda kind: kind.__name__)
def test_a_frozen_model_answers_as_the_supernet_does(kind):
    torch.manual_seed(0)
    inputs = data_of(kind)[1]
    space = ChoiceModelSpace(kind(), inputs)
    randomise(space.net, seed=0)
    space.net.eval()
    supernet = Supernet(space.net, space.space)
    for bins in range(1, 4):
        widths = Widths(tuple(min(bins, cut.count) for cut in space.space.bins))
        frozen = space.freeze(space.sample_of(widths))
        with supernet.running(SubNetwork.fixed(widths)) as running, torch.no_grad():
            torch.testing.assert_close(frozen(*inputs), running(*inputs))


# ---- more than widths


class Cells(ModelSpace):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        operations = {"narrow": lambda *_: nn.Conv2d(4, 4, 1), "wide": lambda *_: nn.Conv2d(4, 4, 3, padding=1)}
        self.cell, self.fc = Cell(operations, 2, label="cell"), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.cell(self.stem(x)).mean((2, 3)))


class Short(ModelSpace):
    """A convolution and its consumer: the least that has a width. `arguments` are the convolution's other ones."""

    def __init__(self, **arguments):
        super().__init__()
        width = nni.choice("width", [4, 8])
        made = {key: argument(width) if callable(argument) else argument for key, argument in arguments.items()}
        self.conv, self.fc = MutableConv2d(2, width, 3, **made), MutableLinear(width, 10)

    def forward(self, x):
        return self.fc(F.relu(self.conv(torch.cat([x, x], 1))).mean((2, 3)))


class Operated(ModelSpace):
    """What an operation of the user's own does depends on the choice by more than channels."""

    def __init__(self, operation):
        super().__init__()
        width = nni.choice("width", [4, 8])
        self.operation, self.fc = operation(width), MutableLinear(width, 10)

    def forward(self, x):
        return self.fc(self.operation(x).mean((2, 3)))


class Grouped(Operated):
    """The channels of one statistic are another number in each network."""

    def __init__(self):
        super().__init__(lambda width: nn.Sequential(MutableConv2d(1, width, 3), MutableGroupNorm(4, width)))


class InALayerChoice(Operated):
    """Layers of two widths to choose from, instead of one layer with a choice of widths."""

    def __init__(self):
        super().__init__(lambda width: LayerChoice([nn.Conv2d(1, 4, 3), nn.Conv2d(1, 8, 3)], label="layer"))


class Recurrent(ModelSpace):
    def __init__(self):
        super().__init__()
        width = nni.choice("width", [4, 8])
        self.rnn, self.fc = MutableLSTM(8, width), MutableLinear(width, 10)

    def forward(self, x):
        return self.fc(self.rnn(x[:, 0])[0].mean(1))


class Endless(Short):
    def __init__(self):
        ModelSpace.__init__(self)
        width = nni.quniform("width", 4, 8, 1)
        self.conv, self.fc = MutableConv2d(2, width, 3), MutableLinear(width, 10)


class ByHand(ModelSpace):
    """A choice that the space itself reads, and a freeze() of its own, as NNI asks for."""

    def __init__(self):
        super().__init__()
        width = ensure_frozen(self.add_mutable(nni.choice("width", [4, 8])))
        self.conv, self.fc = nn.Conv2d(1, width, 3), nn.Linear(width, 10)

    def freeze(self, sample):
        with model_context(sample):
            return type(self)()

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def test_a_space_that_freezes_itself_is_searched():
    space = ChoiceModelSpace(ByHand(), IMAGES)
    assert [bins.edges for bins in space.space.bins] == [(0, 4, 8)]
    assert space.freeze({"width": 4}).conv.out_channels == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hidden(more=True), "the choice 'conv' decides what to run of conv (LayerChoice)"),
        (lambda: Valued(kernels=(3, 5)), "the choice 'kernel' decides kernel_size of conv (MutableConv2d)"),
        (lambda: Repeated(depth=(1, 3)), "the choice 'depth' decides what to run of blocks (Repeat)"),
        (Cells, "the choice 'cell/op_1_0' decides what to run of cell.ops.0.0 (LayerChoice)"),
        (InALayerChoice, "the choice 'layer' decides what to run of operation (LayerChoice)"),
        (
            lambda: SeveralInputs(attention=True),
            "the choice 'width' decides embed_dim of attention (MutableMultiheadAttention)",
        ),
        (Recurrent, "the choice 'width' decides argument 1 of rnn (MutableLSTM)"),
        (lambda: Short(stride=nni.choice("stride", [1, 2])), "the choice 'stride' decides stride of conv"),
        (lambda: Short(bias=nni.choice("bias", [True, False])), "the choice 'bias' decides bias of conv"),
        (Endless, "the choice 'width' has no list of values"),
        (
            lambda: Operated(lambda width: ConvNorm(1, width, rate=nni.choice("rate", [0.1, 0.2]))),
            "the choice 'rate' decides no layer's number of channels",
        ),
    ],
    ids=lambda case: "" if callable(case) else case.split("'")[1],
)
def test_choices_of_more_than_widths_are_refused_by_name(make, message):
    written = make()
    inputs = data_of(type(written))[1]
    with pytest.raises(
        UnsupportedModel, match=re.escape(message) + ".*put one of its values there, or freeze it first"
    ):
        ChoiceModelSpace(written, inputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Grouped, "with {'width': 4} operation.1 is GroupNorm(4, 4, .*GroupNorm(2, 4, "),
        (
            lambda: Short(groups=2),
            "the choices 'width', at their largest values, cannot be searched: Short has nothing to search: ",
        ),
        (
            lambda: Operated(lambda width: ConvNorm(1, width, rate=width / 10)),
            "with {'width': 4} operation.drop is Dropout(p=0.4, .*Dropout(p=0.8, ",
        ),
        (
            lambda: Operated(lambda width: ConvNorm(1, width, factor=width)),
            "gives other outputs than as it is sliced, with the same weights: a choice decides more than channels",
        ),
    ],
    ids=["groups of a norm", "groups of a convolution", "rate", "factor"],
)
def test_a_width_that_is_sliced_otherwise_than_nni_freezes_it_is_refused(make, message):
    with pytest.raises(UnsupportedModel, match=re.escape(message).replace(r"\.\*", ".*")):
        ChoiceModelSpace(make(), IMAGES)
