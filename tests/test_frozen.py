from __future__ import annotations

import ast

import pytest

from nni_cafenet.frozen import UNKNOWN, FrozenPart
from nni_cafenet.tracing.graph import OPAQUE
from tests.test_layering import FILES


def text_of(node: ast.expr) -> str:
    """A string literal; an f-string with an x in the place of its values; "" for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "x" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def frozen_by_rules() -> set[str]:
    """The reasons that are written down where tracing/ calls ledger.freeze(slots, reason)."""
    found = set()
    for name, path in FILES.items():
        if name.startswith("tracing."):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "freeze":
                    found.add(text_of(node.args[1]))
    return found - {""}


REASONS = {
    *frozen_by_rules(),
    *OPAQUE.values(),
    "named in ignore=",
    "its weight is computed by a parametrisation or a hook",
    "its weight is tied: left and right share one parameter",
    "it does not run in the forward on the example, or inside of a layer that is not sliced",
    "all of its channels hang together",
    "it is added to channels that are no layer's, as padding",
    "10 channels are no multiple of round_to=4",
    "the forward fails when it is sliced (RuntimeError: The size of tensor a (197) must match)",
    "reordering its channels changes the output, so not all that goes with them was found",
    "together with other layers the forward fails when it is sliced (ValueError: no)",
    "slicing it changes the shape of the output",
    "the sliced network differs from the full one that ignores the removed channels",
    "the forward fails at few channels (ValueError: no)",
    "the output is not finite at few channels",
    "nothing that the model returns depends on it, on the example",
}


def test_the_reasons_of_tracing_are_found() -> None:
    assert len(frozen_by_rules()) > 10


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_has_a_hint(reason: str) -> None:
    assert FrozenPart("conv", 8, reason).hint != UNKNOWN, "add what can be done about it to HINTS in frozen.py"


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("named in ignore=", "take it out of ignore="),
        ("10 channels are no multiple of round_to=4", "a smaller round_to"),
        ("it is the model's output", "nothing to do"),
        ("its weight is tied: a and b share one parameter", "a weight of its own"),
        ("it feeds a MultiheadAttention, which is not sliced", "nothing to do"),
        ("the forward fails when it is sliced (RuntimeError: few channels)", "x.shape"),
    ],
)
def test_a_hint_says_what_the_user_can_do(reason: str, hint: str) -> None:
    assert hint in FrozenPart("conv", 8, reason).hint


def test_a_reason_that_nobody_foresaw_is_no_error() -> None:
    assert FrozenPart("conv", 8, "the moon is full").hint == UNKNOWN
