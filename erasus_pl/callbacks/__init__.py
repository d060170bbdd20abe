"""Small, general callbacks and plugins."""

from erasus_pl.callbacks.atomic_io import AtomicCheckpointIO, save_atomically
from erasus_pl.callbacks.checkpoint import RunCheckpoint
from erasus_pl.callbacks.csv_logger import RunCSVLogger
from erasus_pl.callbacks.mlflow_logger import RunMLFlowLogger
from erasus_pl.callbacks.recorder import Recorder
from erasus_pl.callbacks.sample_history import SampleHistory
from erasus_pl.callbacks.training_record import TrainingRecord, how_to_record, read_record
from erasus_pl.callbacks.update_log import UpdateLog
from erasus_pl.callbacks.weight_history import WeightHistory

__all__ = [
    "AtomicCheckpointIO",
    "Recorder",
    "RunCSVLogger",
    "RunCheckpoint",
    "RunMLFlowLogger",
    "SampleHistory",
    "TrainingRecord",
    "UpdateLog",
    "WeightHistory",
    "how_to_record",
    "read_record",
    "save_atomically",
]
