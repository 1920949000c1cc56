"""What do widths cost, in the words of NNI: Profilers of a WidthModelSpace, for its filters and penalties."""

from __future__ import annotations

from nni.nas.profiler import Profiler

from nni_cafenet.nas.model_space import Sample, WidthModelSpace


class _WidthProfiler(Profiler):
    def __init__(self, model_space: WidthModelSpace) -> None:
        if not isinstance(model_space, WidthModelSpace):
            raise TypeError(
                f"{type(self).__name__} profiles a WidthModelSpace, but got a {type(model_space).__name__}: "
                f"give it the model space of the experiment"
            )
        super().__init__(model_space)
        self.model_space = model_space

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class WidthFlopsProfiler(_WidthProfiler):
    """Multiply-adds per image, exactly what fvcore counts on the frozen model: the number that a Budget bounds.

    Args:
        model_space: whose samples are profiled.
    """

    def profile(self, sample: Sample) -> float:
        """MACs of `sample` (channels by label); raises SampleValidationError where it is none of the space."""
        return float(self.model_space.space.cost.macs(self.model_space.widths_of(sample)))


class WidthParamsProfiler(_WidthProfiler):
    """Parameters, exactly the sum of numel() over the frozen model.

    Args:
        model_space: whose samples are profiled.
    """

    def profile(self, sample: Sample) -> float:
        """Parameters of `sample` (channels by label); raises SampleValidationError where it is none of the space."""
        return float(self.model_space.space.cost.params(self.model_space.widths_of(sample)))
