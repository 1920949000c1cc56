from __future__ import annotations

import json
from dataclasses import replace

import pytest

from nni_cafenet import Bins, SearchSpace, WidthGroup
from nni_cafenet.cost import CostModel, CostTerm
from nni_cafenet.frozen import FrozenPart
from nni_cafenet.preflight import COLUMNS
from tests.built import built
from tests.models import NETWORKS
from tests.spaces import chain

SPACE = chain(8, 16, 8)


def with_frozen(*parts: FrozenPart) -> SearchSpace:
    return replace(SPACE, frozen=parts)


def words(space: SearchSpace) -> str:
    """The report without its line breaks."""
    return " ".join(space.describe().split())


# the text


def test_layers_frozen_for_one_reason_share_a_line() -> None:
    reason = "it runs through aten.nonzero in rpn, which is not followed"
    space = with_frozen(*(FrozenPart(f"head.{i}.tower.{j}.conv", 64, reason) for i in range(5) for j in range(40)))
    text = space.describe()
    assert text.count(reason) == 1
    assert "layers: head.*.tower.*.conv (200); channels: 64" in text
    assert len(text.splitlines()) < 25


def test_reasons_that_differ_in_numbers_are_one() -> None:
    space = with_frozen(
        *(FrozenPart(f"stage{i}.conv", 10 * i, f"{10 * i} channels are no multiple of round_to=8") for i in (1, 2, 3))
    )
    text = space.describe()
    assert "- * channels are no multiple of round_to=8\n    layers: stage*.conv (3); channels: 10 to 30\n" in text


def test_a_long_list_of_layers_is_cut() -> None:
    names = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    text = words(with_frozen(*(FrozenPart(name, 4, "named in ignore=") for name in names)))
    assert "layers: alpha, beta, gamma, delta, epsilon and 3 more; channels: 4" in text


def test_what_can_be_thawed_comes_before_what_cannot() -> None:
    text = words(with_frozen(FrozenPart("fc", 5, "it is the model's output"), FrozenPart("a", 4, "named in ignore=")))
    assert text.index("take it out of ignore= to search it") < text.index("nothing to do")


def test_a_remedy_is_written_once_for_all_that_it_is_for() -> None:
    reasons = [f"it runs through aten.nonzero in {where}, which is not followed" for where in ("rpn", "roi_heads")]
    parts = [FrozenPart(f"head{i}", 4, reason) for i, reason in enumerate(reasons)]
    text = words(with_frozen(parts[0], FrozenPart("stem", 4, "named in ignore="), parts[1]))
    assert text.count(parts[0].hint) == 1
    assert text.count("remedy: as above") == 1


def test_an_error_of_many_lines_is_shortened() -> None:
    reason = "the forward fails when it is sliced (RuntimeError: " + "wrong\n  shape " * 500 + ")"
    text = with_frozen(FrozenPart("conv", 4, reason)).describe()
    assert "wrong shape wrong" in text
    assert len(text.splitlines()) < 25


def test_long_names_leave_the_report_within_its_columns() -> None:
    groups = tuple(replace(group, name=f"{'outer.' * 30}{group.name}") for group in SPACE.groups)
    frozen = tuple(FrozenPart(f"{'block.' * 15}{i}.conv", 8, "named in ignore= " * 20) for i in range(3))
    text = replace(SPACE, groups=groups, frozen=frozen).describe()
    assert max(map(len, text.splitlines())) <= COLUMNS
    assert all(f"outer.conv{i} " in text for i in range(3))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_report_of_every_network_is_within_its_columns(name: str) -> None:
    _, space = built(name)
    assert max(map(len, space.describe().splitlines())) <= COLUMNS


def test_a_number_of_architectures_beyond_every_float_is_printed() -> None:
    groups = tuple(WidthGroup(f"conv{i}", 4096, (f"conv{i}.out",)) for i in range(200))
    bins = (Bins.ones(4096),) * 200
    terms = tuple(CostTerm(f"conv{i}", 3, 3, (i,)) for i in range(200))
    space = SearchSpace(groups, bins, CostModel(terms, tuple(cut.edges for cut in bins)), ())
    assert space.preflight().architectures == 4096**200
    assert "200 groups, 3.0e+722 architectures" in space.describe()


# warnings and notes


def test_costly_operations_that_fvcore_does_not_count_are_warned_of() -> None:
    uncounted = (("aten::add_", 9), ("aten::scaled_dot_product_attention", 12), ("aten::silu_", 40))
    report = replace(SPACE, uncounted=uncounted).preflight()
    assert report.warnings() == [
        "fvcore does not count scaled_dot_product_attention (12 times): the true cost is higher by what that takes, "
        "and no budget bounds it"
    ]
    assert replace(SPACE, uncounted=(("aten::add_", 9), ("aten::silu_", 40))).preflight().warnings() == []


def test_layers_whose_cost_depends_on_the_data_are_warned_of() -> None:
    heads = ("roi_heads.box_head.fc6", "roi_heads.box_head.fc7")
    (warning,) = replace(SPACE, data_dependent=heads).preflight().warnings()
    assert warning.startswith("roi_heads.box_head.fc* (2) run as often as the data say")


def test_groups_of_one_bin_are_a_warning_where_they_cost_much_and_a_note_where_not() -> None:
    coarse = chain(8, 16, 8, size=8).preflight()
    (warning,) = coarse.warnings()
    assert warning.startswith("a group of a single bin keeps all its channels: conv* (2), with ")
    assert not any("single bin" in note for note in coarse.notes())

    fine = chain(8, 64, 64, 2, size=2)
    costlier = replace(fine.cost, terms=(*fine.cost.terms, CostTerm("conv2", 2000, 0, (1,))))
    cheap = replace(fine, cost=costlier).preflight()
    assert cheap.warnings() == []
    (note, _) = cheap.notes()
    assert note.startswith("a group of a single bin keeps all its channels: conv3, with ")


def test_odd_channel_counts_are_a_note_unless_bins_are_multiples_of_8() -> None:
    assert any("round_to=8" in note for note in chain(16, 32).preflight().notes())
    assert chain(16, 32, size=8).preflight().notes() == []
    assert chain(15, 33).preflight().notes() == [], "round_to=8 would freeze these"


# the data


def test_the_data_of_the_report_have_these_keys() -> None:
    report = json.loads(json.dumps(replace(SPACE, uncounted=(("aten::add_", 9),)).preflight().as_dict()))
    assert list(report) == [
        "model", "largest", "smallest", "searchable_share", "architectures", "groups", "frozen", "uncounted",
        "data_dependent", "warnings", "notes",
    ]  # fmt: skip
    assert report["model"] == report["largest"]
    assert report["largest"] == {"macs": SPACE.cost.macs(SPACE.largest), "params": SPACE.cost.params(SPACE.largest)}
    assert report["smallest"] == {"macs": SPACE.cost.macs(SPACE.smallest), "params": SPACE.cost.params(SPACE.smallest)}
    assert report["architectures"] == 8 * 16 * 8
    share = report["groups"][1].pop("macs_share")
    assert share == pytest.approx(10 * 16 * (8 + 8) / SPACE.cost.macs(SPACE.largest))
    assert report["groups"][1] == {
        "name": "conv1", "layers": ["conv1", "conv2"], "members": ["conv1.out", "conv2.in"], "channels": 16,
        "least_channels": 1, "bins": 16, "bin_size": 1,
    }  # fmt: skip
    assert report["frozen"] == [
        {
            "layer": "conv3", "channels": 5, "reason": "it is the model's output",
            "hint": "nothing to do: the task sets the number of outputs",
        }
    ]  # fmt: skip
    assert report["uncounted"] == {"aten::add_": 9}
