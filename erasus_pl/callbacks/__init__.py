"""Small, general callbacks and plugins."""

from erasus_pl.callbacks.atomic_io import AtomicCheckpointIO, save_atomically
from erasus_pl.callbacks.checkpoint import RunCheckpoint
from erasus_pl.callbacks.csv_logger import RunCSVLogger
from erasus_pl.callbacks.mlflow_logger import RunMLFlowLogger
from erasus_pl.callbacks.recorder import Recorder

__all__ = [
    "AtomicCheckpointIO",
    "Recorder",
    "RunCSVLogger",
    "RunCheckpoint",
    "RunMLFlowLogger",
    "save_atomically",
]
