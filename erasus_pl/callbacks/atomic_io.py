"""Checkpoints that are either whole or not there, and that never run code when read."""

import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from erasus_pl.tasks.weights import load_safely, save_atomically

__all__ = ["AtomicCheckpointIO", "save_atomically"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name and renames; reads with `weights_only=True`, always."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk is full or not writable; the previous checkpoint is intact.
        """
        try:
            save_atomically(checkpoint, Path(path))
        except (OSError, RuntimeError) as error:
            msg = (
                f"checkpoint {str(path)!r} was not written ({error}); the previous one is intact: "
                "free some disk space and resume with --ckpt_path last"
            )
            raise OSError(msg) from error

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is truncated, no checkpoint, or could run code.
        """
        path = Path(path)
        content = load_safely(path, "ckpt_path", "use an earlier checkpoint", map_location)
        if not isinstance(content, dict) or "state_dict" not in content or "loops" not in content:
            msg = (
                f"`ckpt_path`: {str(path)!r} is no checkpoint of a run and cannot be resumed; give "
                "the weights of an original as `checkpoint` of the task instead"
            )
            raise ValueError(msg)
        return content
