from __future__ import annotations

import pytest
import torch

from nni_cafenet.tracing.labels import Ledger, Slot, aligned, compressed, varying, without_dims

PADDING = "it is added to channels that are no layer's, as padding"


def joined(ledger: Ledger) -> set[tuple[int, int]]:
    return {
        (min(pair), max(pair))
        for left, right in ledger.joins
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    }


def frozen(ledger: Ledger) -> dict[int, str]:
    return {int(label): reason for labels, reason in ledger.frozen for label in labels}


def slot(labels: list[int], *shape: int) -> Slot:
    return torch.tensor(labels).reshape(shape or (-1,))


def test_new_labels_follow_those_before() -> None:
    ledger = Ledger()
    assert [ledger.new(3), ledger.new(2), ledger.new(1)] == [0, 3, 5]
    assert ledger.count == 6


def test_elements_in_the_same_place_are_joined() -> None:
    ledger = Ledger()
    ledger.join(slot([0, 1, 2]), slot([3, 4, 5]))
    assert joined(ledger) == {(0, 3), (1, 4), (2, 5)}
    assert not ledger.frozen


def test_a_join_broadcasts() -> None:
    ledger = Ledger()
    ledger.join(slot([0, 1], 2, 1), slot([2, 3, 4], 1, 3))
    assert joined(ledger) == {(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)}


def test_a_label_is_not_joined_with_itself() -> None:
    ledger = Ledger()
    ledger.join(slot([0, 1]), slot([0, 1]))
    assert not ledger.joins
    ledger.join(slot([0, 1]), slot([0, 2]))
    assert joined(ledger) == {(1, 2)}


@pytest.mark.parametrize("swap", [False, True])
def test_padding_beside_a_channel_freezes_it_and_no_other(swap: bool) -> None:
    ledger = Ledger()
    sides = slot([0, 1, -1, -1]), slot([2, -1, 3, -1])
    ledger.join(*(sides[::-1] if swap else sides))
    assert joined(ledger) == {(0, 2)}
    assert frozen(ledger) == {1: PADDING, 3: PADDING}


def test_padding_beside_padding_is_nothing() -> None:
    ledger = Ledger()
    ledger.join(slot([-1, -1]), slot([-1, -1]))
    assert not ledger.joins
    assert not ledger.frozen


def test_shapes_that_do_not_broadcast_are_an_error() -> None:
    with pytest.raises(RuntimeError):
        Ledger().join(slot([0, 1]), slot([2, 3, 4]))


def test_joining_along_a_dimension_joins_rows_and_leaves_the_first() -> None:
    ledger = Ledger()
    left = ledger.join_along(slot([0, 1, 2, 3, 4, 5], 2, 3), 0)
    assert left.tolist() == [[0, 1, 2]]
    assert joined(ledger) == {(0, 3), (1, 4), (2, 5)}
    assert ledger.join_along(slot([0, 1, 2], 1, 3), 0).tolist() == [[0, 1, 2]]
    assert len(ledger.joins) == 1


def test_joining_along_the_only_dimension_joins_everything() -> None:
    ledger = Ledger()
    assert ledger.join_along(slot([7, 8, 9], 1, 3), 1).tolist() == [[7]]
    assert joined(ledger) == {(7, 8), (7, 9)}


def test_what_is_joined_directly_or_through_others_is_one_component() -> None:
    ledger = Ledger()
    ledger.new(6)
    ledger.join(slot([0, 1]), slot([2, 3]))
    ledger.join(slot([2]), slot([4]))
    component = ledger.components().tolist()
    assert component[0] == component[2] == component[4]
    assert component[1] == component[3]
    assert len({component[0], component[1], component[5]}) == 3


def test_labels_are_frozen_spanned_and_produced_without_padding() -> None:
    ledger = Ledger()
    ledger.freeze([slot([3, -1, 3]), slot([5], 1, 1)], "a reason")
    ledger.span(slot([2, -1, 1, 2]))
    ledger.produce(slot([4, 0, -1], 1, 3))
    assert frozen(ledger) == {3: "a reason", 5: "a reason"}
    assert [labels.tolist() for labels in ledger.spanned] == [[1, 2]]
    assert [labels.tolist() for labels in ledger.produced] == [[0, 4]]


@pytest.mark.parametrize(
    ("shape", "dims"), [((1, 8, 1, 1), {1}), ((4, 3, 1, 1), {0, 1}), ((1, 1), set()), ((5,), {0}), ((), set())]
)
def test_a_slot_varies_where_it_is_longer_than_1(shape: tuple[int, ...], dims: set[int]) -> None:
    assert varying(torch.zeros(shape, dtype=torch.long)) == dims


def test_aligned_adds_dimensions_in_front() -> None:
    assert aligned(slot([0, 1, 2]), 3).shape == (1, 1, 3)
    assert aligned(slot([0, 1, 2]), 1).shape == (3,)
    assert aligned(slot([0, 1, 2, 3], 2, 1, 2), 4).tolist() == [[[[0, 1]], [[2, 3]]]]


def test_compressed_drops_dimensions_along_which_labels_are_constant() -> None:
    labels = slot([4, 5, 6], 1, 3, 1, 1)
    assert compressed(labels.expand(2, 3, 5, 5)).equal(labels)
    assert compressed(labels.expand(2, 3, 5, 5).contiguous()).equal(labels)  # by value, where strides do not tell
    assert compressed(slot([0, 1, 2, 3], 2, 2)).equal(slot([0, 1, 2, 3], 2, 2))
    assert compressed(slot([7, 7, 7])).tolist() == [7]


def test_compressed_keeps_padding() -> None:
    labels = slot([0, -1, 1, -1], 1, 4, 1).expand(2, 4, 3)
    assert compressed(labels).flatten().tolist() == [0, -1, 1, -1]
    border = slot([-1, 5, 5, -1], 1, 1, 4)  # one channel, padded places
    assert compressed(border).equal(border)
    assert compressed(torch.full((3, 3), -1)).tolist() == [[-1]]


def test_compressed_keeps_a_label_that_differs_anywhere() -> None:
    labels = torch.zeros(3, 4, 5, dtype=torch.long)
    labels[2, 3, 4] = 1
    assert compressed(labels).shape == (3, 4, 5)


@pytest.mark.parametrize(("keepdim", "shape"), [(True, (1, 3, 1, 1)), (False, (1, 3))])
def test_reduced_dimensions_are_dropped_or_kept(keepdim: bool, shape: tuple[int, ...]) -> None:
    found = without_dims(slot([4, 5, 6], 1, 3, 1, 1), [2, 3], keepdim=keepdim)
    assert found.shape == shape
    assert found.flatten().tolist() == [4, 5, 6]
