"""WidthModelSpace: widths as NNI's choices, frozen into plain slim models in this process and in a trial's."""

import copy
import pickle

import nni
import numpy as np
import pytest
import torch
from nni.common.serializer import PayloadTooLarge
from nni.mutable import SampleValidationError
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.space import SimplifiedModelSpace

from nni_cafenet import LocallyFree, UniformBins, WidthModelSpace, Widths, count_macs, slice_model
from nni_cafenet.demo import IMAGE_SHAPE, DigitsNet
from nni_cafenet.nas import model_space
from nni_cafenet.tracing.verify import randomise
from tests.snapshots import Snapshot

pytestmark = pytest.mark.filterwarnings("ignore")  # NNI's own


@pytest.fixture
def space(make_space):
    return make_space()


def smallest(space):
    return {str(label): mutable.values[0] for label, mutable in space.simplify().items()}


def test_every_group_is_a_choice_of_channels(space):
    choices = {str(label): list(mutable.values) for label, mutable in space.simplify().items()}
    groups = zip(space.space.groups, space.space.bins, strict=True)
    assert choices == {group.name: list(bins.edges[1:]) for group, bins in groups}


def test_the_forward_is_the_full_models(space):
    images = torch.randn(2, *IMAGE_SHAPE[1:])
    assert torch.equal(space.eval()(images), space.net.eval()(images))


def test_freezes_into_a_plain_slim_model_with_the_same_weights(space):
    randomise(space.net, seed=0)
    sample = smallest(space)
    slim = space.freeze(sample)
    assert type(slim) is DigitsNet
    assert count_macs(slim, torch.zeros(IMAGE_SHAPE)) == space.space.cost.macs(space.space.smallest)
    assert torch.equal(slim.stem[0].weight, space.net.stem[0].weight[: sample["stem.0"]])
    assert torch.equal(slim.stem[1].running_mean, space.net.stem[1].running_mean[: sample["stem.0"]])


def test_freezes_the_best_subnetwork_where_it_is_known(space):
    rng = np.random.default_rng(0)
    widths = Widths(tuple(max(1, bins.count // 2) for bins in space.space.bins))
    best = next(
        sub
        for sub in (space.space.sample(rng, sharing=LocallyFree(offset=1), widths=widths) for _ in range(100))
        if sub.kept[0] != tuple(range(widths.bins_kept[0]))
    )
    space.best[widths] = best
    slim, cut = space.freeze(space.sample_of(widths)), slice_model(space.net, space.space, best)
    assert all(torch.equal(own, other) for own, other in zip(slim.parameters(), cut.parameters(), strict=True))


def test_every_random_sample_of_nni_freezes(space):
    for _ in range(5):
        sample = {}
        space.random(memo=sample)
        assert space.freeze(sample).eval()(torch.zeros(IMAGE_SHAPE)).shape == (1, 10)


def test_refuses_channels_that_are_no_choice(space):
    with pytest.raises(SampleValidationError, match=r"999 not found in \[2, 4, 6, 8\]"):
        space.freeze({**smallest(space), "stem.0": 999})


def test_a_trial_makes_the_slim_model_from_a_serialised_space(make_space):
    space = make_space(bins=UniformBins(2), ignore=("last.*",))
    frozen = SimplifiedModelSpace.from_model(space, FunctionalEvaluator(print)).freeze(smallest(space))
    slim = nni.load(nni.dump(frozen)).executable_model()
    assert type(slim) is DigitsNet
    assert slim.stem[0].out_channels == space.net.stem[0].out_channels // 2
    assert slim.last[0].out_channels == space.net.last[0].out_channels
    assert count_macs(slim, torch.zeros(IMAGE_SHAPE)) == space.space.cost.macs(space.space.smallest)


def test_a_model_keeps_its_weights_and_is_left_alone():
    model = DigitsNet(width=8)
    randomise(model, seed=0)
    before = Snapshot(model)
    space = WidthModelSpace(model, example_shape=IMAGE_SHAPE, bins={"stem.*": 4, "*": UniformBins(2)})
    assert space.net is not model
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in space.net.state_dict().items())
    slim = space.freeze(smallest(space))
    assert torch.equal(slim.stem[0].weight, model.stem[0].weight[: slim.stem[0].out_channels])
    assert space.space.bins[0].size == 4
    before.assert_unchanged()


def test_a_model_is_too_large_for_nni_to_send_to_trials():
    space = WidthModelSpace(DigitsNet(width=8), example_shape=IMAGE_SHAPE, min_bin=2)
    frozen = SimplifiedModelSpace.from_model(space, FunctionalEvaluator(print)).freeze(smallest(space))
    with pytest.raises(PayloadTooLarge):
        nni.dump(frozen)


def test_arguments_for_a_model_that_is_made_already_are_refused():
    with pytest.raises(ValueError, match="kwargs= are for a factory, and this is a model already"):
        WidthModelSpace(DigitsNet(), {"width": 8}, example_shape=IMAGE_SHAPE)


def through_pickle(space):
    return pickle.loads(pickle.dumps(space))


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle])
def test_a_copied_space_freezes_the_same_models(space, copied):
    other = copied(space)
    images = torch.randn(2, *IMAGE_SHAPE[1:])
    sample = smallest(space)
    assert torch.equal(other.freeze(sample).eval()(images), space.freeze(sample).eval()(images))
    assert other.simplify().keys() == space.simplify().keys()
    assert other.space.fingerprint() == space.space.fingerprint()


def test_takes_example_inputs_instead_of_a_shape():
    space = WidthModelSpace(DigitsNet, example_inputs={"images": torch.zeros(IMAGE_SHAPE)})
    assert space.freeze(smallest(space)).eval()(torch.zeros(IMAGE_SHAPE)).shape == (1, 10)


def test_the_example_of_a_shape_is_where_the_model_is(monkeypatch):
    given = []
    monkeypatch.setattr(model_space, "build_space", lambda net, example, **options: given.append(example))
    model_space._build(DigitsNet().to("meta"), example_shape=IMAGE_SHAPE)
    assert given[0].device == torch.device("meta")


@pytest.mark.parametrize("example", [{}, {"example_shape": IMAGE_SHAPE, "example_inputs": torch.zeros(IMAGE_SHAPE)}])
def test_refuses_no_example_and_two(example):
    with pytest.raises(ValueError, match=r"needs example_shape=\(N, C, H, W\)"):
        WidthModelSpace(DigitsNet, **example)


@pytest.mark.parametrize("shape", [8, "1,1,8,8", (1, 1, 8, 8.5), (0, 1, 8, 8), (), torch.zeros(IMAGE_SHAPE)])
def test_refuses_a_shape_that_is_none(shape):
    with pytest.raises(ValueError, match=r"example_shape must be whole numbers \(N, C, H, W\), but got"):
        WidthModelSpace(DigitsNet, example_shape=shape)


def test_refuses_a_factory_of_something_else():
    with pytest.raises(TypeError, match=r"factory must make a torch\.nn\.Module, but .*dict.* made a dict"):
        WidthModelSpace(dict, example_shape=IMAGE_SHAPE)
