"""Modules that optimize by hand, with several optimizers, train the supernet as they would a plain network."""

import copy
import warnings

import pytest
import torch
from torch.nn import functional

from nni_cafenet import Fixed, InvalidBatches, Supernet, TrainingDiverged, cross_entropy
from nni_cafenet.supernet.candidates import Sampled
from nni_cafenet.supernet.minmin import MinMin

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nni.nas.evaluator.pytorch import ClassificationModule, Lightning, Trainer
    from pytorch_lightning import Callback

    from nni_cafenet.nas.by_hand import rehearsal

from tests.nas.conftest import TRAINER
from tests.snapshots import Snapshot

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's and Lightning's own
LR = 0.05, 0.01  # of weights, of others
BATCHES = 3


def parts(module):
    weights = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    return weights, [parameter for parameter in module.parameters() if parameter.ndim <= 1]


class Automatic(ClassificationModule):
    """One optimizer with two groups of parameters."""

    def __init__(self):
        super().__init__(num_classes=10)

    def configure_optimizers(self):
        groups = [{"params": own, "lr": lr} for own, lr in zip(parts(self), LR, strict=True)]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


class ByHand(Automatic):
    """Two optimizers, with a schedule, one loss, one backward."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        made = [torch.optim.SGD(own, lr=lr, momentum=0.9) for own, lr in zip(parts(self), LR, strict=True)]
        return made, [torch.optim.lr_scheduler.StepLR(made[0], 1000)]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        self.lr_schedulers().step()
        return loss


class InTurns(ByHand):
    """What the second optimizer learns from is computed with what the first has learnt, as adversaries do it."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer in (first, second):
            self.toggle_optimizer(optimizer)
            self.manual_backward(self.criterion(self(batch[0]), batch[1]))
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)


class InBlocks(ByHand):
    """The same, with Lightning's block around each."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            with optimizer.toggle_model():
                self.manual_backward(self.criterion(self(batch[0]), batch[1]))
                optimizer.step()
                optimizer.zero_grad()


class Losses(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append(trainer.callback_metrics["train_loss"].item())


@pytest.fixture
def trained(loaders, make_space, make_strategy, make_experiment):
    """module -> the strategy of an experiment that is run with it, the batches unshuffled."""

    def train(module, *callbacks, **options):
        data = torch.utils.data.Subset(loaders.train.dataset, range(32 * BATCHES))
        trainer = Trainer(**TRAINER, max_epochs=2, limit_val_batches=1, callbacks=list(callbacks))
        evaluator = Lightning(module, trainer, torch.utils.data.DataLoader(data, 32), loaders.valid)
        strategy = make_strategy(**options)
        make_experiment(make_space(), evaluator, strategy).run()
        return strategy

    return train


def weights(strategy):
    return dict(strategy.supernet.net.named_parameters())


def test_two_optimizers_by_hand_train_as_one_with_two_groups(trained):
    one, two = Losses(), Losses()
    torch.testing.assert_close(weights(trained(ByHand(), two)), weights(trained(Automatic(), one)), rtol=0, atol=0)
    assert one.seen == two.seen and len(one.seen) == 2 * BATCHES  # of the candidates the same ones have won


@pytest.mark.parametrize("kind", [InTurns, InBlocks])
def test_optimizers_that_step_in_turns_see_what_the_others_have_learnt(kind, trained, loaders, make_space):
    strategy = trained(kind(), sharing=Fixed(), candidates="sampled:1")
    space = make_space()
    supernet = Supernet(space.net, space.space)
    drawn = MinMin(supernet, Fixed(), Sampled(1), seed=0)
    optimizers = [torch.optim.SGD(own, lr=lr, momentum=0.9) for own, lr in zip(parts(space.net), LR, strict=True)]
    batches = torch.utils.data.DataLoader(torch.utils.data.Subset(loaders.train.dataset, range(32 * BATCHES)), 32)
    for number, (images, labels) in enumerate([*batches, *batches]):
        sub = drawn.choice((images, labels), number, cross_entropy)
        for optimizer in optimizers:
            optimizer.zero_grad()
            with supernet.running(sub) as model:
                functional.cross_entropy(model.train()(images), labels).backward()
            for other in optimizers:
                if other is not optimizer:
                    other.zero_grad()
            optimizer.step()
    torch.testing.assert_close(weights(strategy), dict(space.net.named_parameters()), rtol=0, atol=0)


def test_a_rehearsal_learns_nothing_and_leaves_the_module_as_it_was(trained, loaders):
    module = ByHand()
    trained(module)
    module.log = lambda *_, **__: None
    module.model.net.eval()  # batch statistics are no matter of a rehearsal
    optimizers = module.trainer.optimizers
    model, own = Snapshot(module.model.net), set(vars(module))
    state = copy.deepcopy([optimizer.state_dict() for optimizer in optimizers])
    with rehearsal(module) as losses:
        returned = module.training_step(next(iter(loaders.train)), 0)
    assert [float(loss) for loss in losses] == [float(returned)]
    model.assert_unchanged()
    torch.testing.assert_close([optimizer.state_dict() for optimizer in optimizers], state)
    assert set(vars(module)) == own


def test_a_rehearsal_needs_no_training_before_it(loaders, make_space):
    module = ByHand()
    module.trainer = Trainer(**TRAINER)  # as in a run that is resumed when its supernet is trained
    module.set_model(make_space())
    module.log = lambda *_, **__: None
    model = Snapshot(module.model)
    module.model.eval()
    with rehearsal(module) as losses:
        module.training_step(next(iter(loaders.train)), 0)
    module.model.train()
    assert len(losses) == 1
    model.assert_unchanged()


def test_a_step_that_neither_returns_a_loss_nor_learns_is_refused(trained):
    class Lossless(ByHand):
        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(InvalidBatches, match=r"Lossless\.training_step returned None, .* return the loss"):
        trained(Lossless())


def test_a_loss_by_hand_that_is_not_finite_stops_the_training(trained):
    class Diverging(ByHand):
        def training_step(self, batch, batch_idx):
            self.manual_backward(self.model(batch[0]).sum() * float("nan"))

    with pytest.raises(TrainingDiverged, match=r"the loss is nan at step 0, at the widths"):
        trained(Diverging())
