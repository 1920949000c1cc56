"""What keeps NNI's tracer from running on this torch is mended, once, and nothing else."""

import subprocess
import sys

import nni
import pytest
import torch
from nni.common.concrete_trace_utils import concrete_trace, concrete_tracer
from torch import nn
from torch.fx import Node

from nni_cafenet.nas import compat

FRESH = """
import torch
from nni.common.concrete_trace_utils import concrete_trace
from nni_cafenet.nas import compat

net, x = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU()), torch.randn(2, 3, 8, 8)
works = False
try:
    concrete_trace(net, (x,))
    works = True
except (AttributeError, TypeError):
    pass
mended = compat.patch()
print(works == (not mended), compat.patch() == (), torch.equal(concrete_trace(net, (x,))(x), net(x)))
"""


def homeless(x):
    return x


def of_torch(x):
    return x


homeless.__module__ = of_torch.__module__ = None
of_torch.__qualname__ = "_VariableFunctionsClass.of_torch"  # whose place NNI knows


@pytest.fixture
def _table(monkeypatch):
    compat.patch()  # so that nothing is left to mend but what a test breaks
    tracer = concrete_tracer.ConcreteTracer
    broken = {**tracer.default_autowrap_leaf_function, homeless: ([], False, None), of_torch: ([], False, None)}
    monkeypatch.setattr(tracer, "default_autowrap_leaf_function", broken)


def test_nni_traces_after_the_patch_and_a_second_one_does_nothing():
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", FRESH], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "True", "True"]


@pytest.mark.usefixtures("_table")
def test_a_function_without_a_module_leaves_the_tracer_s_table():
    table = concrete_tracer.ConcreteTracer.default_autowrap_leaf_function
    others = [function for function in table if function is not homeless]
    assert compat.patch() == ("homeless",)
    assert list(table) == others


@pytest.mark.usefixtures("_table")
def test_another_version_of_nni_is_left_as_it_is(monkeypatch):
    for version in ("2.10", "3.1", "30.0"):
        monkeypatch.setattr(nni, "__version__", version)
        assert compat.patch() == ()
        assert homeless in concrete_tracer.ConcreteTracer.default_autowrap_leaf_function
    monkeypatch.setattr(nni, "__version__", "3.0.1")
    assert compat.patch() == ("homeless",)


def test_the_wrapper_is_replaced_only_where_torch_passes_more_than_nni_s_takes(monkeypatch):
    compat.patch()

    def of_nni(node):
        return node == "kept"

    monkeypatch.setattr(concrete_tracer, "node_is_impure_wrapper", of_nni)
    with monkeypatch.context() as older_torch:
        older_torch.setattr(Node, "is_impure", lambda self: False)
        assert compat.patch() == ()
        assert concrete_tracer.node_is_impure_wrapper is of_nni
    monkeypatch.setattr(Node, "is_impure", lambda self, impure_random=True: False)
    assert compat.patch() == ("node_is_impure_wrapper",)
    assert concrete_tracer.node_is_impure_wrapper("kept", impure_random=False)
    assert not concrete_tracer.node_is_impure_wrapper("dropped", True)


def test_inside_fixed_modes_a_forward_may_decide_by_training():
    class Deciding(nn.Module):
        def forward(self, x):
            if self.training:
                return x
            return x + 1

    compat.patch()
    before = concrete_tracer.ConcreteTracer.default_module_getattr
    with compat.fixed_modes():
        traced = concrete_trace(Deciding(), (torch.zeros(2, 3),))
    assert torch.equal(traced(torch.zeros(2, 3)), torch.ones(2, 3))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_function", "output"]
    assert concrete_tracer.ConcreteTracer.default_module_getattr == before == ("training",)
