from __future__ import annotations

import math
import pickle
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nni_cafenet import Budget, CafeNetError, InfeasibleBudget, Widths
from nni_cafenet.cost import CostModel, CostTerm, Limits

UNITS = ((0, 2, 5, 8), (0, 1, 2), (0, 4, 8))
SMALLEST, LARGEST = Widths((1, 1, 1)), Widths((3, 2, 2))
COST = CostModel(
    (
        CostTerm("stem", 100, 27, (0,)),
        CostTerm("body", 10, 9, (0, 1)),
        CostTerm("body", 3, 0, (1,)),
        CostTerm("square", 7, 2, (2, 2)),
        CostTerm("", 1000, 5),
    ),
    UNITS,
)
ALL = [Widths(bins) for bins in product((1, 2, 3), (1, 2), (1, 2))]


def macs(a: int, b: int, c: int) -> int:
    return 100 * a + 10 * a * b + 3 * b + 7 * c * c + 1000


def params(a: int, b: int, c: int) -> int:
    return 27 * a + 9 * a * b + 2 * c * c + 5


def units(widths: Widths) -> list[int]:
    return [table[width] for table, width in zip(UNITS, widths.bins_kept, strict=True)]


@pytest.mark.parametrize("widths", ALL, ids=str)
def test_costs_are_the_bilinear_form(widths: Widths) -> None:
    assert COST.macs(widths) == macs(*units(widths))
    assert COST.params(widths) == params(*units(widths))
    assert sum(COST.layer_macs(widths).values()) == COST.macs(widths)


def test_layer_macs_gather_the_terms_of_a_layer() -> None:
    assert COST.layer_macs(LARGEST) == {"stem": 800, "body": 166, "square": 448, "": 1000}


def test_macs_per_unit_are_the_derivatives_at_full_width() -> None:
    full = (8, 2, 8)
    assert COST.macs_per_unit().tolist() == [100 + 10 * full[1], 10 * full[0] + 3, 2 * 7 * full[2]]


terms = st.lists(
    st.builds(
        CostTerm,
        st.sampled_from("abc"),
        st.integers(0, 10**6),
        st.integers(0, 10**5),
        st.lists(st.integers(0, 2), max_size=2).map(lambda groups: tuple(sorted(groups))),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=100)
@given(terms=terms, data=st.data())
def test_any_cost_model_equals_brute_force(terms: list[CostTerm], data: st.DataObject) -> None:
    cost = CostModel(tuple(terms), UNITS)
    widths = data.draw(st.sampled_from(ALL))
    kept = units(widths)
    assert cost.macs(widths) == sum(term.macs * math.prod(kept[group] for group in term.groups) for term in terms)
    assert cost.params(widths) == sum(term.params * math.prod(kept[group] for group in term.groups) for term in terms)


def test_costs_are_exact_beyond_32_bits() -> None:
    cost = CostModel((CostTerm("conv", 3**21, 1, (0, 0)),), ((0, 701),))
    assert cost.macs(Widths((1,))) == 3**21 * 701**2


def test_a_term_of_three_groups_is_refused() -> None:
    with pytest.raises(ValueError, match="conv1: a cost term has at most 2 groups"):
        CostTerm("conv1", 1, 1, (0, 1, 2))


def test_widths_of_another_number_of_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the widths of 3 groups, but got 2"):
        COST.macs(Widths((1, 1)))


def limits(**asked: object) -> Limits:
    return Budget(**asked).limits(COST, smallest=SMALLEST, largest=LARGEST)  # type: ignore[arg-type]


FULL, LEAST = COST.macs(LARGEST), COST.macs(SMALLEST)


@pytest.mark.parametrize(
    ("asked", "absolute"),
    [
        (2000, 2000),
        (2000.9, 2000),
        (np.int64(2000), 2000),
        (np.float32(2000), 2000),
        ("100%", FULL),
        (" 60 % ", math.floor(FULL * 0.6)),
        ("70.5%", math.floor(FULL * 0.705)),
        ("+90.%", math.floor(FULL * 0.9)),
        (FULL, FULL),
        (LEAST, LEAST),
    ],
)
def test_a_budget_is_a_number_or_a_percentage(asked: object, absolute: int) -> None:
    assert limits(max_macs=asked) == Limits(max_macs=absolute)


def test_both_limits_bound() -> None:
    both = limits(max_macs="60%", max_params=150)
    assert both == Limits(max_macs=math.floor(FULL * 0.6), max_params=150)
    admitted = [widths for widths in ALL if both.admit(COST, widths)]
    assert admitted == [w for w in ALL if COST.macs(w) <= both.max_macs and COST.params(w) <= 150]
    assert 0 < len(admitted) < len(ALL)
    assert all(Limits().admit(COST, widths) for widths in ALL)


def test_params_alone_bound() -> None:
    assert limits(max_params="50%") == Limits(max_params=COST.params(LARGEST) // 2)


@pytest.mark.parametrize("asked", ["abc", "50", "%", "5%%", "1e1%", "nan%", True, math.nan, math.inf, [], {}, b"50%"])
def test_nonsense_is_refused(asked: object) -> None:
    with pytest.raises(InfeasibleBudget, match="is neither a number nor a percentage"):
        limits(max_macs=asked)


@pytest.mark.parametrize("asked", [0, -1, -0.5, "0%", "-50%"])
def test_a_budget_must_be_above_0(asked: object) -> None:
    with pytest.raises(InfeasibleBudget, match="must be above 0"):
        limits(max_macs=asked)


@pytest.mark.parametrize("asked", [FULL + 1, "150%", "100.01%", 1e30, pytest.param(10**400, id="10**400")])
def test_a_budget_above_the_full_network_is_refused(asked: object) -> None:
    with pytest.raises(InfeasibleBudget, match="more than the full network has"):
        limits(max_macs=asked)


@pytest.mark.parametrize("asked", [LEAST - 1, LEAST - 0.5, 0.5, "1%"])
def test_a_budget_under_the_smallest_network_is_refused(asked: object) -> None:
    with pytest.raises(InfeasibleBudget, match="less than the smallest network has"):
        limits(max_macs=asked)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(InfeasibleBudget, match="bounds nothing"):
        limits()


def test_an_infeasible_budget_says_what_would_be_possible() -> None:
    with pytest.raises(InfeasibleBudget) as caught:
        limits(max_params="2%")
    error = caught.value
    assert (error.limit, error.asked) == ("max_params", "2%")
    assert (error.smallest, error.largest) == (COST.params(SMALLEST), COST.params(LARGEST))
    for part in ("max_params='2%'", f"{error.smallest:,}", f"{error.largest:,}", "smallest", "largest", '"50%"'):
        assert part in str(error)


def test_an_infeasible_budget_is_a_value_error_and_one_of_ours() -> None:
    assert issubclass(InfeasibleBudget, ValueError)
    assert issubclass(InfeasibleBudget, CafeNetError)


def test_an_infeasible_budget_survives_pickling() -> None:
    error = InfeasibleBudget(limit="max_macs", asked="1%", smallest=10, largest=100, reason="is infeasible")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InfeasibleBudget
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)
