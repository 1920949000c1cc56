"""What do widths cost, in the words of NNI: Profilers of a model space, for its filters and penalties."""

from __future__ import annotations

from typing import Any

from nni.nas.nn.pytorch import ModelSpace
from nni.nas.profiler import Profiler

from nni_cafenet.nas.choices import ChoiceModelSpace
from nni_cafenet.nas.model_space import Sample, WidthModelSpace


class _WidthProfiler(Profiler):
    def __init__(self, model_space: ModelSpace, example_inputs: Any = None) -> None:
        if not isinstance(model_space, ModelSpace):
            raise TypeError(
                f"{type(self).__name__} profiles a WidthModelSpace or a hand-written one, but got a "
                f"{type(model_space).__name__}: give it the model space of the experiment"
            )
        super().__init__(model_space)
        if not isinstance(model_space, WidthModelSpace):
            if example_inputs is None:
                raise TypeError(
                    f"{type(self).__name__} needs example_inputs= to count in a hand-written space, such as this "
                    f"{type(model_space).__name__}"
                )
            model_space = ChoiceModelSpace(model_space, example_inputs)
        self.model_space = model_space

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class WidthFlopsProfiler(_WidthProfiler):
    """Multiply-adds per image, exactly what fvcore counts on the frozen model: the number that a Budget bounds.

    Args:
        model_space: whose samples are profiled.
        example_inputs: what the forward of a hand-written space takes (see build_space); a WidthModelSpace knows.
    """

    def profile(self, sample: Sample) -> float:
        """MACs of `sample` (channels by label); raises SampleValidationError where it is none of the space."""
        return float(self.model_space.space.cost.macs(self.model_space.widths_of(sample)))


class WidthParamsProfiler(_WidthProfiler):
    """Parameters, exactly the sum of numel() over the frozen model.

    Args:
        model_space: whose samples are profiled.
        example_inputs: what the forward of a hand-written space takes (see build_space); a WidthModelSpace knows.
    """

    def profile(self, sample: Sample) -> float:
        """Parameters of `sample` (channels by label); raises SampleValidationError where it is none of the space."""
        return float(self.model_space.space.cost.params(self.model_space.widths_of(sample)))
