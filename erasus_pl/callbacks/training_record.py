"""What only the training of the original shows, recorded while it trains, in one file."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from erasus_pl.callbacks.atomic_io import save_atomically
from erasus_pl.tasks.base import Batch, Task
from erasus_pl.tasks.weights import load_safely

__all__ = ["TrainingRecord", "UsesRecord", "digest", "how_to_record", "read_record"]


class TrainingRecord(Callback):
    """Records the training of a task, without a trace in it, and writes one file at its end.

    What is recorded lies in `content`, by name: tensors and plain values, which every checkpoint
    holds, so that a resumed training goes on with them. Fill in `begin`, and `observe` or any of
    Lightning's hooks; of `on_train_start`, `on_train_batch_start`, `on_train_batch_end` and
    `on_train_end` call the base's too. Nothing here may draw random numbers or touch the network.
    With several processes `content` must be the same in all of them when training ends.

    Args:
        path: where the file is written when the training ends; none to call `write` oneself.
    """

    def __init__(self, path: str | None) -> None:
        self.path = path
        self.content: dict[str, Any] = {}
        self.about: dict[str, Any] = {}
        self._resumed = self._waits = False
        self._hook: Any = None

    @property
    def options(self) -> dict[str, Any]:
        """Plain values that decide what is recorded; `path` is none of them."""
        return {}

    @property
    def name(self) -> str:
        """Names this recorder among others, by its class and options; part of a file's name."""
        text = json.dumps(self.options, sort_keys=True)
        mark = f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}" if self.options else ""
        return f"{type(self).__name__.lower()}{mark}"

    @property
    def state_key(self) -> str:
        """Lightning's name of its state in a checkpoint."""
        return f"record-{self.name}"

    def begin(self, trainer: Trainer, task: Task) -> None:
        """Fill `content` before the first step; not called where a training is resumed."""

    def observe(self, batch: Batch, outputs: Tensor) -> None:
        """Take in a training batch and its detached outputs, before the step's update."""

    def write(self, path: str | Path) -> None:
        """Write what was recorded, to a temporary name first."""
        save_atomically({"about": self.about, "content": self.content}, Path(path))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that it is a task that trains."""
        if stage == "fit" and not isinstance(pl_module, Task):
            name = type(self).__name__
            msg = (
                f"{name} records the training of a Task, and the model is a "
                f"{type(pl_module).__name__}; move it to the trainer.callbacks of the run that "
                "trains the original"
            )
            raise TypeError(msg)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on with the record of the training that is resumed."""
        if trainer.global_step and not self._resumed:
            msg = (
                f"{type(self).__name__} must see a training from its first step, and the "
                f"checkpoint of step {trainer.global_step} was made without it; start anew, "
                "without --ckpt_path"
            )
            raise ValueError(msg)
        if not self._resumed:
            self.content = {}
            self.begin(trainer, cast(Task, pl_module))
        self._resumed = self._waits = False
        if type(self).observe is not TrainingRecord.observe:
            self._hook = pl_module.register_forward_hook(self._observe)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look out for the outputs of this step."""
        self._waits = self._hook is not None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """See that the outputs came."""
        if self._waits:
            msg = (
                f"{type(self).__name__} saw no outputs: {type(pl_module).__name__}.training_step "
                "must call self(batch)"
            )
            raise TypeError(msg)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        task = cast(Task, pl_module)
        self.about = {
            "recorder": type(self).__name__,
            "options": self.options,
            "data": _data(trainer).fingerprint,
            "weights": digest(task.network),
        }
        if self.path is not None and trainer.is_global_zero:
            self.write(self.path)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the hook off, also where training failed."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def state_dict(self) -> dict[str, Any]:
        """What was recorded so far."""
        return {"content": self.content}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self.content = dict(state_dict["content"])
        self._resumed = True

    def _observe(self, _: nn.Module, arguments: tuple[Any, ...], outputs: Tensor) -> None:
        # The first call of a step is the task's own; DDP's wrapper calls the module around it.
        if self._waits:
            self._waits = False
            with torch.no_grad():
                self.observe(arguments[0], outputs.detach())


class UsesRecord(Protocol):
    """A strategy or selector that may need a record of the original's training."""

    record: str | None

    def recorder(self) -> TrainingRecord | None:
        """Records what is needed; none where nothing is."""


def read_record(user: UsesRecord, strategy: Any) -> Mapping[str, Any]:
    """The content of the record that a strategy or selector needs, on the CPU.

    Args:
        user: whose `record` is read; it says by `recorder` what that must be.
        strategy: of the run; its task holds the original's weights unless the run is resumed.

    Raises:
        ValueError: there is none, or it is damaged, of another recorder or of other data.
    """
    wanted, path = user.recorder(), user.record
    assert wanted is not None
    if path is None:
        raise ValueError(how_to_record(user))
    found = load_safely(Path(path), "record", "record that training again")
    try:
        about, content = found["about"], found["content"]
        kind, data, weights = about["recorder"], about["data"], about["weights"]
        options = about["options"]
    except (KeyError, TypeError) as error:
        msg = f"`record`: {path!r} is no record of a training; {_advice(wanted)}"
        raise ValueError(msg) from error
    if (kind, options) != (type(wanted).__name__, wanted.options):
        msg = (
            f"`record`: {path!r} was written by {kind}{options or ''}, and {type(user).__name__} "
            f"needs {type(wanted).__name__}{wanted.options or ''}; {_advice(wanted)}"
        )
        raise ValueError(msg)
    if data != strategy.data.fingerprint:
        msg = (
            f"`record`: {path!r} is of a training on other data, whose positions mean other "
            "samples; give the record of a training on this data"
        )
        raise ValueError(msg)
    if strategy.trainer.ckpt_path is None and weights != digest(strategy.task.network):
        warnings.warn(
            f"`record`: {path!r} is of a training that ended with other weights than the "
            "original has",
            stacklevel=2,
        )
    return cast(Mapping[str, Any], content)


def how_to_record(user: UsesRecord) -> str:
    """One line on how to come by the record that a strategy or selector needs."""
    wanted = user.recorder()
    assert wanted is not None
    return (
        f"`record`: {type(user).__name__} needs a record of the training that made the original; "
        f"{_advice(wanted)}, or leave out the original's checkpoint, and fit trains one and "
        "records it"
    )


def digest(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers, by name, to the bit."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            found.update(plain.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _advice(wanted: TrainingRecord) -> str:
    kind = type(wanted)
    given = {"path": "runs/record.pt"} | wanted.options
    return (
        f"train it with trainer.callbacks: [{{class_path: {kind.__module__.rpartition('.')[0]}."
        f"{kind.__name__}, init_args: {given}}}] and give `record` the file"
    )


def _data(trainer: Trainer) -> Any:
    return trainer.datamodule  # type: ignore[attr-defined]
