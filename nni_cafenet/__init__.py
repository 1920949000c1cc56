"""CafeNet: slim convolutional networks by searching their width (Su et al., ICLR 2021)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nni_cafenet.compare import compare_widths as compare_widths
from nni_cafenet.cost import Budget as Budget
from nni_cafenet.errors import CafeNetError as CafeNetError
from nni_cafenet.errors import CheckpointMismatch as CheckpointMismatch
from nni_cafenet.errors import InfeasibleBudget as InfeasibleBudget
from nni_cafenet.errors import InvalidBatches as InvalidBatches
from nni_cafenet.errors import InvalidChoice as InvalidChoice
from nni_cafenet.errors import InvalidScore as InvalidScore
from nni_cafenet.errors import InvalidSlimFile as InvalidSlimFile
from nni_cafenet.errors import TrainingDiverged as TrainingDiverged
from nni_cafenet.errors import UnsupportedModel as UnsupportedModel
from nni_cafenet.export.slicing import slice_model as slice_model
from nni_cafenet.export.slim_file import load_slim as load_slim
from nni_cafenet.export.slim_file import save_slim as save_slim
from nni_cafenet.importance import channel_importance as channel_importance
from nni_cafenet.importance import sort_channels as sort_channels
from nni_cafenet.result import Result as Result
from nni_cafenet.run import search_widths as search_widths
from nni_cafenet.search.evolution import Evolution as Evolution
from nni_cafenet.search.greedy import Greedy as Greedy
from nni_cafenet.search.predictor import PredictorSearch as PredictorSearch
from nni_cafenet.search.random_search import RandomSearch as RandomSearch
from nni_cafenet.search.searcher import Candidate as Candidate
from nni_cafenet.search.searcher import Searcher as Searcher
from nni_cafenet.search.stages import Stage as Stage
from nni_cafenet.search.stages import linear_stages as linear_stages
from nni_cafenet.sharing import Fixed as Fixed
from nni_cafenet.sharing import FullyFree as FullyFree
from nni_cafenet.sharing import LocallyFree as LocallyFree
from nni_cafenet.sharing import SharingPattern as SharingPattern
from nni_cafenet.space import SearchSpace as SearchSpace
from nni_cafenet.space import uniform_widths as uniform_widths
from nni_cafenet.supernet.candidates import Coordinate as Coordinate
from nni_cafenet.supernet.candidates import Sampled as Sampled
from nni_cafenet.supernet.candidates import Tied as Tied
from nni_cafenet.supernet.distillation import Distillation as Distillation
from nni_cafenet.supernet.objectives import accuracy as accuracy
from nni_cafenet.supernet.objectives import binary_cross_entropy as binary_cross_entropy
from nni_cafenet.supernet.objectives import cross_entropy as cross_entropy
from nni_cafenet.supernet.objectives import label_accuracy as label_accuracy
from nni_cafenet.supernet.recalibrate import recalibrate as recalibrate
from nni_cafenet.supernet.supernet import Supernet as Supernet
from nni_cafenet.sweep import Sweep as Sweep
from nni_cafenet.tracing.bins import FlopsSensitiveBins as FlopsSensitiveBins
from nni_cafenet.tracing.bins import SingleChannels as SingleChannels
from nni_cafenet.tracing.bins import UniformBins as UniformBins
from nni_cafenet.tracing.bins import rebin as rebin
from nni_cafenet.tracing.build import build_space as build_space
from nni_cafenet.tracing.macs import count_macs as count_macs
from nni_cafenet.train import Recipe as Recipe
from nni_cafenet.train import train_model as train_model
from nni_cafenet.trainings import Data as Data
from nni_cafenet.widen import widen as widen
from nni_cafenet.widths import Bins as Bins
from nni_cafenet.widths import SubNetwork as SubNetwork
from nni_cafenet.widths import WidthGroup as WidthGroup
from nni_cafenet.widths import Widths as Widths

if TYPE_CHECKING:
    from nni_cafenet.nas.model_space import WidthModelSpace as WidthModelSpace
    from nni_cafenet.nas.profiler import WidthFlopsProfiler as WidthFlopsProfiler
    from nni_cafenet.nas.profiler import WidthParamsProfiler as WidthParamsProfiler
    from nni_cafenet.nas.strategy import CafeNet as CafeNet

_NNI = {
    "CafeNet": "nni_cafenet.nas.strategy",
    "WidthModelSpace": "nni_cafenet.nas.model_space",
    "WidthFlopsProfiler": "nni_cafenet.nas.profiler",
    "WidthParamsProfiler": "nni_cafenet.nas.profiler",
}


def __getattr__(name: str) -> Any:
    """What is for NNI loads on first use: it needs nni and pytorch_lightning, the rest does not."""
    if name not in _NNI:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_NNI[name]), name)
