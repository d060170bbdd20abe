"""Small, general callbacks and plugins."""

from erasus_pl.callbacks.atomic_io import AtomicCheckpointIO, save_atomically
from erasus_pl.callbacks.checkpoint import RunCheckpoint
from erasus_pl.callbacks.csv_logger import RunCSVLogger
from erasus_pl.callbacks.gradient_rectified import GradientRectified
from erasus_pl.callbacks.gradient_rule import GradientRule
from erasus_pl.callbacks.low_rank import LowRank
from erasus_pl.callbacks.mlflow_logger import RunMLFlowLogger
from erasus_pl.callbacks.nash_bargaining import NashBargaining
from erasus_pl.callbacks.recorder import Recorder
from erasus_pl.callbacks.sharpness_aware import SharpnessAware
from erasus_pl.callbacks.sparse_update import SparseUpdate

__all__ = [
    "AtomicCheckpointIO",
    "GradientRectified",
    "GradientRule",
    "LowRank",
    "NashBargaining",
    "Recorder",
    "RunCSVLogger",
    "RunCheckpoint",
    "RunMLFlowLogger",
    "SharpnessAware",
    "SparseUpdate",
    "save_atomically",
]
