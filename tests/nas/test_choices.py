"""Hand-written model spaces: their choices are widths of what is sliced, and what is no width is refused."""

import copy
import itertools
import re
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from nni.mutable.exception import SampleValidationError
from torch import nn

from nni_cafenet import (
    Budget,
    Evolution,
    FullyFree,
    Greedy,
    LocallyFree,
    SubNetwork,
    Supernet,
    UnsupportedModel,
    count_macs,
    slice_model,
)
from nni_cafenet.demo import IMAGE_SHAPE
from nni_cafenet.nas.choices import ChoiceModelSpace, as_width_space
from nni_cafenet.tracing.trial import randomise
from tests.nas import hand_written

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nni.nas.hub.pytorch as hub
    from nni.nas.evaluator import FunctionalEvaluator

IMAGES = torch.randn(2, *IMAGE_SHAPE[1:], generator=torch.Generator().manual_seed(0))
SEARCHED = [hand_written.Simple, hand_written.Shared, hand_written.Custom]


def made(kind):
    torch.manual_seed(0)
    return ChoiceModelSpace(kind(), IMAGES)


@pytest.fixture(scope="module", params=SEARCHED, ids=lambda kind: kind.__name__)
def space(request):
    found = made(request.param)
    randomise(found.net, seed=0)
    found.net.eval()
    return found


def samples(space):
    choices = {label: mutable.values for label, mutable in space.simplify().items()}
    return [dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())]


def test_every_sample_has_the_layers_that_nni_freezes(space):
    for sample in samples(space):
        ours, theirs = space.freeze(sample), space.written.freeze(sample)
        assert {n: p.shape for n, p in ours.named_parameters()} == {n: p.shape for n, p in theirs.named_parameters()}
        assert [str(module) for module in ours.children()] == [str(module) for module in theirs.children()]
        widths = space.widths_of(sample)
        assert space.sample_of(widths) == sample
        assert space.space.cost.macs(widths) == count_macs(theirs, IMAGES)
        assert space.space.cost.params(widths) == sum(parameter.numel() for parameter in theirs.parameters())


def test_frozen_models_hold_plain_layers_only(space):
    frozen = space.freeze(samples(space)[0])
    kinds = {type(module).__module__ for module in frozen.modules() if module is not frozen}
    assert all(kind.startswith("torch.nn.modules") or kind == hand_written.__name__ for kind in kinds)
    assert not any(type(module).__name__.startswith("Mutable") for module in frozen.modules())


def test_the_running_subnetwork_is_the_sliced_one_whatever_bins_it_keeps(space):
    rng = np.random.default_rng(0)
    supernet = Supernet(space.net, space.space)
    for sharing in (LocallyFree(offset=1), LocallyFree(offset=2), FullyFree()):
        for _ in range(4):
            sub = space.space.sample(rng, sharing=sharing)
            with supernet.running(sub) as running, torch.no_grad():
                output = running(IMAGES)
            slim = slice_model(space.net, space.space, sub)
            assert torch.equal(slim(IMAGES), output)
            assert count_macs(slim, IMAGES) == space.space.cost.macs(sub.widths)


def test_bins_are_cut_at_the_values_and_locally_free_sets_hold_as_many_channels():
    space = made(hand_written.Simple).space
    assert {group.name: bins.edges for group, bins in zip(space.groups, space.bins, strict=True)} == {
        "first": (0, 4, 8, 16), "second": (0, 4, 8, 12, 16), "third": (0, 8, 16),
    }  # fmt: skip
    uneven, even, _ = space.bins
    assert LocallyFree(offset=1).choices(uneven, 2) == ((0, 1),)
    assert LocallyFree(offset=1).choices(even, 2) == ((0, 1), (0, 2), (1, 2))


def test_the_written_space_is_left_as_it_is():
    written = hand_written.Shared()
    before = copy.deepcopy(written.state_dict())
    space = ChoiceModelSpace(written, IMAGES)
    space.freeze(samples(space)[0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in written.state_dict().items())
    assert type(written.fc).__name__ == "MutableLinear"


def test_none_but_the_network_s_own_layers_are_trained(space):
    assert [name for name, _ in space.named_parameters()] == [f"net.{name}" for name, _ in space.net.named_parameters()]


def test_values_that_are_no_choice_are_refused(space):
    sample = samples(space)[0]
    with pytest.raises(SampleValidationError):
        space.freeze({**sample, next(iter(sample)): 5})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (hand_written.WithLayerChoice, "the choice 'act' decides what to run of act (LayerChoice), and CafeNet"),
        (hand_written.WithDepth, "the choice 'depth' decides what to run of deep (Repeat)"),
        (hand_written.WithKernel, "the choice 'kernel' decides kernel_size of more (MutableConv2d)"),
        (hand_written.WithDropout, "the choice 'rate' decides p of drop (MutableDropout)"),
        (
            hand_written.Nested,
            "the channels of conv2 depend on several choices, 'width', 'factor': give it",
        ),
        (hand_written.Clashing, "left ('left'), right ('right') share their channels, but not their choice"),
        (hand_written.Unequal, "width: (6, 10) channels of conv2 are not proportional to the others'"),
        (hand_written.Output, "the choice 'classes' decides fc, which must keep its width: it is the model's output"),
        (hand_written.Falling, "the choice 'width' makes some layers wider and others narrower"),
    ],
)
def test_what_is_no_width_is_refused_by_its_label(kind, message):
    with pytest.raises(UnsupportedModel, match=re.escape(message)):
        made(kind)


@pytest.mark.parametrize("name", ["MobileNetV3Space", "ProxylessNAS", "ShuffleNetSpace", "NasBench201", "ENAS"])
def test_spaces_of_nni_s_hub_choose_more_than_widths_and_are_refused_with_the_choice(name):
    options = {"ENAS": {"dataset": "cifar", "width": 8, "num_cells": 3}}.get(name, {})
    written = getattr(hub, name)(**options)
    with pytest.raises(UnsupportedModel, match=r"the choices? '.*CafeNet searches widths alone: put one of its values"):
        ChoiceModelSpace(written, torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("kind", SEARCHED, ids=lambda kind: kind.__name__)
def test_an_experiment_with_a_hand_written_space_runs_as_it_is(kind, make_evaluator, make_strategy, make_experiment):
    torch.manual_seed(0)
    written = kind()
    strategy = make_strategy("80%", searcher=Evolution(population=3, generations=2), top_k=2)
    experiment = make_experiment(written, make_evaluator(), strategy)
    experiment.run()
    (sample,) = experiment.export_top_models(1, formatter="dict")
    assert sample.keys() == written.simplify().keys()
    (slim,) = experiment.export_top_models(1, formatter="instance")
    assert count_macs(slim, torch.zeros(IMAGE_SHAPE)) == strategy.result.best.macs <= strategy.result.limits.max_macs
    assert {n: p.shape for n, p in slim.named_parameters()} == {
        n: p.shape for n, p in written.freeze(sample).named_parameters()
    }


def test_a_functional_evaluator_has_the_last_word_on_a_hand_written_space(make_strategy, make_experiment, loaders):
    seen = []

    def evaluate(model):
        seen.append(sum(parameter.numel() for parameter in model.parameters()))
        nni.report_final_result(float(seen[-1]))

    nni = pytest.importorskip("nni")
    torch.manual_seed(0)
    strategy = make_strategy(
        "70%", searcher=Greedy(steps=2), top_k=2, train_batches=loaders.train, valid_batches=loaders.valid, epochs=1
    )
    experiment = make_experiment(hand_written.Simple(), FunctionalEvaluator(evaluate), strategy)
    experiment.run()
    (slim,) = experiment.export_top_models(1, formatter="instance")
    assert sum(parameter.numel() for parameter in slim.parameters()) == max(seen)


def test_a_space_without_choices_is_refused():
    class Plain(hand_written.ModelSpace):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 1)

    with pytest.raises(
        UnsupportedModel, match=r"Plain has no nni.choice of several values: .* WidthModelSpace\(factory"
    ):
        ChoiceModelSpace(Plain(), IMAGES)


def test_a_model_that_is_no_space_is_refused():
    with pytest.raises(TypeError, match="CafeNet searches the widths of a model space, but got a Linear"):
        as_width_space(nn.Linear(1, 1), lambda: None)


def test_batches_that_do_not_tell_the_input_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"starts with a dict instead of a tensor, or a list of them: give NasExp"):
        as_width_space(hand_written.Simple(), lambda: [{"image": IMAGES}])


def test_a_space_is_told_what_it_takes_by_hand():
    space = as_width_space(made(hand_written.Simple), lambda: pytest.fail("not asked"))
    sub = SubNetwork.fixed(space.space.smallest)
    assert Counter(type(m).__name__ for m in slice_model(space.net, space.space, sub).modules())["Conv2d"] == 2
    assert space.space.limits(Budget(max_macs="50%")).max_macs > 0
