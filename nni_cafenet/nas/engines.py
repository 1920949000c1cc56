"""Which of NNI's formats and engines can be used: models in this process, or by name in trials elsewhere."""

from __future__ import annotations

from typing import Any

from nni.nas.execution import ExecutionEngine, SequentialExecutionEngine
from nni.nas.space import ExecutableModelSpace, RawFormatModelSpace, SimplifiedModelSpace


def engine_here(engine: ExecutionEngine) -> SequentialExecutionEngine:
    """`engine`, where it runs models in this process, as a supernet must be, or else one of its own that does."""
    return engine if isinstance(engine, SequentialExecutionEngine) else SequentialExecutionEngine()


def user_space(model_space: ExecutableModelSpace, engine: ExecutionEngine) -> Any:
    """The user's model space, out of the format in which NNI hands it over.

    Raises:
        TypeError: another format; or the raw one, which holds weights and so cannot leave this process, for an engine
            that runs models elsewhere.
    """
    if isinstance(model_space, RawFormatModelSpace) and isinstance(engine, SequentialExecutionEngine):
        return model_space.model_space
    if isinstance(model_space, SimplifiedModelSpace):
        return model_space.model.get(traceable=False)
    raise TypeError(
        f"CafeNet cannot use a {type(model_space).__name__} on a {type(engine).__name__}: leave out the experiment's "
        f'config, or give NasExperimentConfig("ts", "simplified", "local") to confirm models by a training service'
    )
