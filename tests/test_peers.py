"""Other pruners' choices, read as sub-networks: what NNI and torch-pruning cut is what we slice."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch_pruning
from nni.compression.pruning import FPGMPruner, L1NormPruner, LevelPruner
from nni.compression.speedup import ModelSpeedup
from torch import nn

from nni_cafenet import (
    FullyFree,
    InvalidChoice,
    SingleChannels,
    SubNetwork,
    UniformBins,
    UnsupportedModel,
    Widths,
    rebin,
    slice_model,
)
from nni_cafenet.export.speedup import masks
from nni_cafenet.nas import compat
from nni_cafenet.peers import from_masks, from_torch_pruning, widths_of
from nni_cafenet.widths import Axis
from tests.built import built, some_subnetworks
from tests.models import NETWORKS, example
from tests.snapshots import Snapshot
from tests.spaces import chain


def fine(name):
    model, space = built(name)
    return model, rebin(space, SingleChannels())


def ones(model, *names):
    return {name: {"weight": torch.ones_like(model.get_submodule(name).weight)} for name in names}


def without(model, **dropped):
    """Masks that drop these output channels of these layers."""
    found = {}
    for name, channels in dropped.items():
        name = name.replace("_0", ".0").replace("_1", ".1")
        found |= ones(model, name)
        found[name]["weight"][channels] = 0
    return found


def kept(space, sub, group):
    index = [each.name for each in space.groups].index(group)
    return space.bins[index].channel_indices(sub.kept[index]).tolist()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ("norms", "tied")])
def test_our_own_masks_read_back_are_the_sub_network(name):
    model, space = fine(name)
    for sub in some_subnetworks(space, 2, sharing=FullyFree()):
        assert from_masks(model, space, masks(model, space, sub)) == sub


@pytest.mark.parametrize("pruner", [L1NormPruner, FPGMPruner])
def test_the_choice_of_a_pruner_of_nni_is_read_channel_by_channel(pruner):
    model, space = fine("plain")
    config = [{"op_names": ["conv1", "conv3"], "sparse_ratio": 0.5}]
    before = Snapshot(model)
    wrapping = pruner(copy.deepcopy(model), config)
    wrapped, chosen = wrapping.compress()
    sub = from_masks(wrapped, space, chosen)
    wrapping.unwrap_model()
    assert from_masks(model, space, chosen) == sub
    assert space.channels(sub.widths) == {"conv1": 4, "conv2": 12, "conv3": 8}
    for layer in ("conv1", "conv3"):
        assert kept(space, sub, layer) == chosen[layer]["weight"].flatten(1).any(1).nonzero().flatten().tolist()
    before.assert_unchanged()


def test_norms_alone_may_be_masked():
    model, space = fine("plain")
    chosen = {"bn2": {"weight": torch.arange(12) % 3 > 0, "bias": torch.arange(12) % 3 > 0}}
    assert kept(space, from_masks(model, space, chosen), "conv2") == [1, 2, 4, 5, 7, 8, 10, 11]


def test_what_has_no_mask_of_its_own_follows_if_it_is_no_maker_of_channels():
    model, space = fine("depthwise")
    sub = from_masks(model, space, without(model, expand_0=[0, 5]))
    assert kept(space, sub, "expand.0") == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert slice_model(model, space, sub).depthwise[0].groups == 10


def test_layers_that_share_channels_and_disagree_are_named_or_merged():
    model, space = fine("residual")
    chosen = without(model, stem_0=[1, 2, 3], outer1_0=[2, 3, 4, 5])
    said = r"stem.0 drops 3, outer1.0 drops 4, and all of them the same 2 \(group stem.0\).*merge=True"
    with pytest.raises(InvalidChoice, match=f"of the 8 channels that they share, {said}"):
        from_masks(model, space, chosen)
    assert kept(space, from_masks(model, space, chosen, merge=True), "stem.0") == [0, 1, 4, 5, 6, 7]


def test_an_unmasked_convolution_that_shares_channels_keeps_them():
    model, space = fine("residual")
    chosen = without(model, outer2_0=[1, 2])
    with pytest.raises(InvalidChoice, match=r"outer2.0 drops 2, project.0 drops 0, and all of them the same 0"):
        from_masks(model, space, chosen)
    assert from_masks(model, space, chosen, merge=True) == SubNetwork.fixed(space.largest)
    chosen |= without(model, project_0=[1, 2])
    assert len(kept(space, from_masks(model, space, chosen), "outer2.0")) == 14


def test_a_masked_layer_of_full_width_is_named_with_the_reason_or_left():
    model, space = fine("plain")
    chosen = without(model, fc=[0, 1])
    with pytest.raises(InvalidChoice, match=r"fc drops 2 channels .* at full width \(it is the model's output\)"):
        from_masks(model, space, chosen)
    assert from_masks(model, space, chosen, merge=True) == SubNetwork.fixed(space.largest)


def test_a_part_of_a_unit_is_named_or_left():
    model, space = fine("grouped")
    group = next(group for group in space.groups if group.unit > 1)
    layer = group.name
    chosen = ones(model, layer)
    chosen[layer]["weight"][0] = 0
    with pytest.raises(InvalidChoice, match=f"{layer} drops a part of {group.unit} channels that only go together"):
        from_masks(model, space, chosen)
    assert from_masks(model, space, chosen, merge=True) == SubNetwork.fixed(space.largest)


def test_coarse_bins_cannot_keep_single_channels_but_what_is_nearest():
    model, space = built("plain")
    space = rebin(space, UniformBins(4))  # conv3: bins of 4 channels
    chosen = without(model, conv3=[0, 1, 2, 4, 12, 13, 14, 15])
    with pytest.raises(InvalidChoice, match=r"cannot keep just .* conv3 \(bins of 4, the first of 4\).*SingleChannels"):
        from_masks(model, space, chosen)
    sub = from_masks(model, space, chosen, round=True)
    assert kept(space, sub, "conv3") == [4, 5, 6, 7, 8, 9, 10, 11]
    whole = without(model, conv3=[4, 5, 6, 7])
    assert kept(space, from_masks(model, space, whole), "conv3") == [0, 1, 2, 3, *range(8, 16)]


def test_a_first_bin_of_another_size_is_always_kept():
    model, space = built("plain")
    space = rebin(space, {"conv2": 5})  # edges 0, 2, 7, 12
    chosen = without(model, conv2=[0, 1])
    with pytest.raises(InvalidChoice, match=r"conv2 \(bins of 5, the first of 2\)"):
        from_masks(model, space, chosen)
    assert kept(space, from_masks(model, space, chosen, round=True), "conv2") == list(range(12))
    chosen = without(model, conv2=[0, 1, 2, 3, 4, 5, 6])
    assert kept(space, from_masks(model, space, chosen, round=True), "conv2") == [0, 1, 7, 8, 9, 10, 11]
    chosen = without(model, conv2=[0, 1, 8, 9, 10, 11])
    assert kept(space, from_masks(model, space, chosen, round=True), "conv2") == [0, 1, 2, 3, 4, 5, 6]


def test_masks_that_say_something_else_are_refused():
    model, space = fine("plain")
    chosen = LevelPruner(copy.deepcopy(model), [{"op_names": ["conv2"], "sparse_ratio": 0.5}]).compress()[1]
    with pytest.raises(InvalidChoice, match=r"mask of conv2 drops single weights or input channels.*LevelPruner"):
        from_masks(model, space, chosen)
    inputs = ones(model, "conv2")
    inputs["conv2"]["weight"][:, 3] = 0
    with pytest.raises(InvalidChoice, match="mask of conv2 drops single weights or input channels"):
        from_masks(model, space, inputs)
    with pytest.raises(InvalidChoice, match=r"names 'conv9', which the model does not have; the nearest: conv"):
        from_masks(model, space, {"conv9": {}})
    with pytest.raises(InvalidChoice, match=r"mask of conv1.weight has shape \(3,\) instead of \(8, 3, 3, 3\)"):
        from_masks(model, space, {"conv1": {"weight": torch.ones(3)}})
    with pytest.raises(InvalidChoice, match=r"mask of '_output_0' of conv1 \(Conv2d\) cannot be read"):
        from_masks(model, space, {"conv1": {"_output_0": torch.zeros(3)}})
    with pytest.raises(InvalidChoice, match="nothing is left of conv1: a network keeps at least 1 of it"):
        from_masks(model, space, without(model, conv1=list(range(8))))
    other = copy.deepcopy(model)
    other.bn3 = nn.BatchNorm2d(17)
    for wrong in (nn.Sequential(), other):
        with pytest.raises(UnsupportedModel, match="pass the model that the space was built from"):
            from_masks(wrong, space, {})


def test_a_channel_whose_bias_or_weight_stays_is_not_dropped():
    model, space = fine("plain")
    chosen = without(model, conv1=[1, 2])
    chosen["conv1"]["bias"] = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1])
    assert kept(space, from_masks(model, space, chosen), "conv1") == [0, 1, 3, 4, 5, 6, 7]
    chosen["conv1"]["weight"] = None
    assert from_masks(model, space, chosen) == SubNetwork.fixed(space.largest)


def torch_pruned(name, **options):
    model, space = fine(name)
    pruned = copy.deepcopy(model)
    pruner = torch_pruning.pruner.BasePruner(
        pruned, example(1), importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5, ignored_layers=[list(pruned.children())[-1]], **options,
    )  # fmt: skip
    return model, space, pruned, pruner


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "flatten", "squeeze_excite"])
@pytest.mark.parametrize("options", [{}, {"iterative_steps": 3}, {"global_pruning": True}], ids=str)
def test_the_history_of_torch_pruning_tells_the_very_channels(name, options):
    model, space, pruned, pruner = torch_pruned(name, **options)
    for _ in range(options.get("iterative_steps", 1)):
        pruner.step()
    sub = from_torch_pruning(space, pruner)
    assert sub != SubNetwork.fixed(sub.widths)
    assert widths_of(space, pruned) == sub.widths
    slim = slice_model(model, space, sub)
    assert all(torch.equal(tensor, pruned.state_dict()[key]) for key, tensor in slim.state_dict().items())


def test_a_dependency_graph_s_history_is_read_too_and_what_is_recorded_twice_is_refused():
    model, space = fine("residual")
    for twice in (False, True):
        pruned = copy.deepcopy(model)
        graph = torch_pruning.DependencyGraph().build_dependency(pruned, example(1))
        conv = pruned.inner1[0]
        cut = torch_pruning.prune_conv_out_channels
        if twice:
            graph.get_pruning_group(conv, cut, idxs=list(range(10))).prune(idxs=[1, 2])
            with pytest.raises(InvalidChoice, match=r"cuts channel 9 of inner1.0.out, which has 8 left by then.*twice"):
                from_torch_pruning(space, graph)
        else:
            graph.get_pruning_group(conv, cut, idxs=[1, 2]).prune()
            graph.get_pruning_group(conv, cut, idxs=[1]).prune()
            assert kept(space, from_torch_pruning(space, graph), "inner1.0") == [0, 4, 5, 6, 7, 8, 9]
            pruned.inner1[0], pruned.outer1[0] = copy.deepcopy(model).inner1[0], copy.deepcopy(model).outer1[0]
            pruned.inner1[1] = nn.BatchNorm2d(10)
            with pytest.raises(InvalidChoice, match=r"leaves 7 channels of inner1.0, and .* has 10.*twice"):
                from_torch_pruning(space, graph)


def test_a_history_that_cuts_what_the_space_holds_or_does_not_know_is_refused():
    _, space, pruned, _ = torch_pruned("plain")
    graph = torch_pruning.DependencyGraph().build_dependency(pruned, example(1))
    graph.get_pruning_group(pruned.fc, torch_pruning.prune_linear_out_channels, idxs=[0]).prune()
    with pytest.raises(InvalidChoice, match=r"fc was pruned, .* \(it is the model's output\): .*ignored_layers="):
        from_torch_pruning(space, graph)
    with pytest.raises(InvalidChoice, match=r"fc has 4 channels .*, and the space holds 5 .*the model's output"):
        widths_of(space, pruned)
    graph.pruning_history()[0][0] = "head"
    with pytest.raises(InvalidChoice, match="head was pruned, which the space holds at full width:"):
        from_torch_pruning(space, graph)


def test_a_history_that_cuts_a_part_that_the_space_holds_is_refused():
    model, space = fine("hard_coded")
    axis = next(axis for axis in space.axes if str(axis) == "primary.0.out")
    held = np.flatnonzero(axis.groups < 0).tolist()
    assert held
    pruner = SimpleNamespace(model=model, pruning_history=lambda: [["primary.0", True, held[:1]]])
    with pytest.raises(InvalidChoice, match=r"primary.0 was pruned, which the space holds at full width"):
        from_torch_pruning(space, pruner)


def test_sizes_of_layers_of_several_groups_are_solved_one_group_after_the_other():
    """conv holds 4 channels of each of two groups and 3 that stay; only the first group has a layer of its own."""
    owners = np.repeat([0, 1, -1], [4, 4, 3])
    units = np.concatenate([np.arange(4), np.arange(4), np.full(3, -1)])
    axes = (Axis("conv", "out", owners, units), Axis("reader", "in", np.zeros(4, dtype=int), np.arange(4)))
    space = replace(chain(4, 4), axes=axes, frozen=())
    pruned = nn.ModuleDict({"conv": nn.Conv2d(3, 3 + 1 + 3, 1), "reader": nn.Conv2d(3, 5, 1)})
    assert widths_of(space, pruned) == Widths((3, 1))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "tied"])
def test_widths_are_read_from_the_sizes_of_any_sliced_model(name):
    model, space = built(name)
    for sub in some_subnetworks(space, 3):
        assert widths_of(space, slice_model(model, space, sub)) == sub.widths


def test_sizes_that_no_sub_network_has_are_refused_or_rounded():
    model, space = built("plain")
    space = rebin(space, UniformBins(4))
    pruned = slice_model(model, rebin(space, SingleChannels()), SubNetwork.fixed(Widths((3, 12, 16))))
    with pytest.raises(InvalidChoice, match=r"cannot keep just these channels of conv1 \(bins of 2, the first of 2\)"):
        widths_of(space, pruned)
    assert space.channels(widths_of(space, pruned, round=True))["conv1"] == 2
    pruned.conv2 = nn.Conv2d(5, 12, 3)
    with pytest.raises(InvalidChoice, match=r"conv2.in has 5 channels in the pruned model, and 3 in the sub-network"):
        widths_of(space, pruned)
    pruned.conv1 = nn.Conv2d(3, 9, 3)
    with pytest.raises(InvalidChoice, match=r"conv1.out has 9 channels, which no sub-network of this space has"):
        widths_of(space, pruned)
    with pytest.raises(InvalidChoice, match=r"do not tell the widths of conv1; conv2; conv3"):
        widths_of(space, nn.Sequential())


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "flatten", "squeeze_excite"])
def test_merged_masks_of_a_pruner_are_the_network_that_model_speedup_makes(name):
    compat.patch()
    model, space = fine(name)
    pruner = L1NormPruner(copy.deepcopy(model), [{"op_types": ["Conv2d"], "sparse_ratio": 0.5}])
    _, chosen = pruner.compress()
    sub = from_masks(model, space, chosen, merge=True)
    assert sub != SubNetwork.fixed(sub.widths)
    quick = copy.deepcopy(model).eval()
    ModelSpeedup(quick, example(), chosen).speedup_model()
    slim = slice_model(model, space, sub)
    assert all(torch.equal(tensor, quick.state_dict()[key]) for key, tensor in slim.state_dict().items())
