"""What keeps NNI 3.0's tracer from running on today's torch, and how is it mended without touching NNI's files?"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import nni
from nni.common.concrete_trace_utils import concrete_tracer
from torch.fx import Node

logger = logging.getLogger(__name__)

KNOWN = "3.0"  # the version of NNI that was looked at, and its last: the project is archived
BY_CLASS = ("_TensorBase", "_VariableFunctionsClass")  # whose functions NNI finds without asking for their module


def patch() -> tuple[str, ...]:
    """Mend NNI's `concrete_trace`, and with it ModelSpeedup, in this process; returns what was mended.

    Two things, each only where it is broken: (1) the tracer's table of functions to record holds some of torch without
    a `__module__`, on which it fails, and they are taken out: constructors of Tensor subclasses, which forwards do not
    call; (2) the tracer's own `node_is_impure_wrapper` gets the argument `impure_random`, with which torch calls it
    since 2.8.

    It is called by :func:`nni_cafenet.export.speedup.speedup`, which without it fails on every model, and never by an
    import: who uses ModelSpeedup directly calls it once before. What it changes would raise an error as it is, so that
    no working program behaves differently for it. A second call, a version of NNI other than 3.0 and a torch on which
    NNI works: all give an empty tuple, and nothing is changed.
    """
    if not (nni.__version__ == KNOWN or nni.__version__.startswith(f"{KNOWN}.")):
        logger.debug("NNI %s is not %s: left as it is", nni.__version__, KNOWN)
        return ()
    mended = (*_drop_functions_without_module(), *_accept_impure_random())
    if mended:
        logger.info("NNI's concrete tracer, mended for this torch: %s", ", ".join(mended))
    return mended


@contextmanager
def fixed_modes() -> Iterator[None]:
    """Inside the block NNI's tracer takes a module's `training` for the plain bool that it is, and not for an input.

    As it is, a forward that decides by it, as StochasticDepth's, GoogLeNet's and Inception's do, breaks the tracer on
    Python 3.11, or must be named in concrete_trace's `leaf_module=`. A trace in eval mode, as NNI makes, is of no use
    in train mode anyway.
    """
    tracer = concrete_tracer.ConcreteTracer
    before = tracer.default_module_getattr
    tracer.default_module_getattr = ()
    try:
        yield
    finally:
        tracer.default_module_getattr = before


def _drop_functions_without_module() -> list[str]:
    table = concrete_tracer.ConcreteTracer.default_autowrap_leaf_function
    homeless = [
        function
        for function in table
        if getattr(function, "__module__", "") is None  # methods have no such attribute, and are found otherwise
        and not function.__qualname__.startswith(BY_CLASS)
    ]
    for function in homeless:
        del table[function]
    return [function.__qualname__ for function in homeless]


def _accept_impure_random() -> list[str]:
    original = concrete_tracer.node_is_impure_wrapper
    # NNI's claims the signature of torch's own, which it wraps
    accepted = inspect.signature(original, follow_wrapped=False).parameters
    if "impure_random" in accepted or "impure_random" not in inspect.signature(Node.is_impure).parameters:
        return []

    def node_is_impure_wrapper(node: Node, impure_random: bool = True) -> Any:
        return original(node)  # which keeps random operations only where they are used, as NNI has always done

    concrete_tracer.node_is_impure_wrapper = node_is_impure_wrapper
    return [node_is_impure_wrapper.__name__]
