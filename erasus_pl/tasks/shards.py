"""SISA's training path: a network for each shard of the data, slice by slice, a checkpoint a slice.

Bourtoule et al., "Machine Unlearning" (IEEE S&P 2021, arXiv:1912.03817): the data is cut into
S shards, each trained in isolation, and each shard into R slices. Stage r of a shard starts from
the weights that stage r − 1 left and trains e_r epochs on slices 1 to r. A deletion goes back to
the checkpoint before the first slice it hits, in the shards it hits; everything else never saw what
is deleted.

A checkpoint lies under a hash of all it depends on: initial weights, recipe, data, and the samples
of its own and of all earlier stages. So a training without some samples is the training with them,
minus the stages that are found in the folder: whether these come from the original, from an earlier
deletion or from a run that was killed is all the same, and there is no second path whose result
could differ. What a stage draws depends on (seed, shard, slice) alone, and its optimiser starts
afresh, since moments that are carried from slice to slice would have to be restored too (the
authors' code carries them, and loses them where it starts from a checkpoint).
"""

import copy
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from erasus_pl.linalg.sharding import cells, first_hit, slice_epochs
from erasus_pl.networks import ShardedEnsemble
from erasus_pl.tasks.base import Task
from erasus_pl.tasks.weights import load_safely, reset_trainable, save_atomically

__all__ = ["ShardTraining", "Stage", "recorded_seed"]

_RECORD = "shards.json"


@dataclass(frozen=True)
class Stage:
    """What one shard learns at one slice, and where the result is kept.

    Args:
        shard: k, from 0.
        slice: r, from 0.
        positions: `(m,)` what it trains on: the kept samples of slices 0 to r of the shard.
        epochs: e_r.
        seed: of all it draws.
        path: of its checkpoint.
    """

    shard: int
    slice: int
    positions: Tensor
    epochs: int
    seed: int
    path: Path


class ShardTraining:
    """The training of a sharded ensemble on some samples; what is in the folder is not done again.

    The folder holds S·R checkpoints of one member each after a training, and up to as many more
    after each deletion; a training that was killed goes on after the last whole slice of each
    shard. Those that saw deleted samples stay there, since the original they belong to may be
    needed; `stale` names them.

    Args:
        task: its network is a `ShardedEnsemble`; it is left as it is.
        data: its datamodule, after `setup`.
        kept: `(m,)` positions in the training data to train on.
        seed: of dealing, initialisation, order and every step.
        folder: of the checkpoints.

    Raises:
        ValueError: a shard is left without a sample.
    """

    def __init__(self, task: Task, data: Any, kept: Tensor, seed: int, folder: Path) -> None:
        network = task.network
        assert isinstance(network, ShardedEnsemble)
        # What makes the optimiser may hold the command line's trainer, which cannot be copied.
        shared = {id(part): part for part in (task.optimizer, task.scheduler)}
        self.task = copy.deepcopy(task, shared).cpu()
        self.members = [copy.deepcopy(member).cpu() for member in network.members]
        self.data = data
        self.kept = kept.sort().values
        self.seed = seed
        self.folder = folder
        self.shards, self.slices = network.shards, network.slices
        self.grid = cells(len(data.train_set), self.shards, self.slices, seed)
        self.epochs = slice_epochs(task.epochs, self.slices)
        self.stages = [self._plan(shard) for shard in range(self.shards)]

    def train(
        self,
        shards: Iterable[int] | None = None,
        trainer: Mapping[str, Any] | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Train what the folder does not hold.

        Args:
            shards: all, or those of this process.
            trainer: arguments of the Lightning Trainer, such as `accelerator`.
            tell: takes a line on each stage that is trained.
        """
        for shard in range(self.shards) if shards is None else shards:
            stages = self.stages[shard]
            done = max((s.slice for s in stages if s.path.is_file()), default=-1)
            if done + 1 == self.slices:
                continue
            self._initialise(shard)
            if done >= 0:
                self.task.network.load_state_dict(_read(stages[done].path)["state_dict"])
            for stage in stages[done + 1 :]:
                tell(
                    f"shard {shard + 1}/{self.shards}, slice {stage.slice + 1}/{self.slices}: "
                    f"{stage.epochs} epochs of {len(stage.positions):,} samples"
                )
                self._train(stage, trainer or {})

    def assemble(self, network: ShardedEnsemble) -> None:
        """Give an ensemble the members that were trained."""
        for member, stages in zip(network.members, self.stages, strict=True):
            member.load_state_dict(_read(stages[-1].path)["state_dict"])

    def seconds(self, stages: Iterable[Stage]) -> float:
        """Wall seconds that stages took, whenever they were trained."""
        return sum(_read(s.path)["seconds"] for s in stages if s.path.is_file())

    def steps(self, stages: Iterable[Stage]) -> int:
        """Optimiser steps of stages."""
        return sum(s.epochs * len(self._batches(s)) for s in stages if len(s.positions))

    def touched(self, removed: Tensor) -> list[Stage]:
        """Stages that deleting `(m,)` positions trains anew."""
        start = first_hit(self.grid, removed, self.shards, self.slices).tolist()
        return [s for stages in self.stages for s in stages if s.slice >= start[s.shard]]

    def stale(self) -> list[Path]:
        """Checkpoints in the folder that are not of this training."""
        own = {stage.path for stages in self.stages for stage in stages}
        return sorted(set(self.folder.glob("shard-*.ckpt")) - own)

    def record(self) -> None:
        """Note in the folder what it holds, so that a deletion finds its seed.

        Raises:
            ValueError: it holds the training of another seed, or of other shards.
        """
        path = self.folder / _RECORD
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            made = {"seed": self.seed, "shards": self.shards, "slices": self.slices}
            path.write_text(json.dumps(made), "utf-8")
        elif recorded_seed(self.folder, self.shards, self.slices) != self.seed:
            msg = f"`folder`: {str(self.folder)!r} holds a training of another seed; give another"
            raise ValueError(msg)

    def _plan(self, shard: int) -> list[Stage]:
        self._initialise(shard)
        made = self.task.configure_optimizers()
        recipe = [made] if not isinstance(made, dict) else [made["optimizer"], made["lr_scheduler"]]
        text = [repr(part) if part is recipe[0] else repr(part.state_dict()) for part in recipe]
        digest = hashlib.sha256("\n".join([
            type(self.task).__name__, repr(self.task.network), *text, self.data.fingerprint,
            str(self.data.batch_size), _digest(self.task.network),
        ]).encode())  # fmt: skip
        mine = self.kept[self.grid[self.kept, 0] == shard]
        stages = []
        for r, epochs in enumerate(self.epochs):
            positions = mine[self.grid[mine, 1] <= r]
            seed = _seed(self.seed, shard, r)
            digest.update(f"{epochs} {seed}\n".encode() + positions.numpy().tobytes())
            path = self.folder / f"shard-{shard}-slice-{r}-{digest.hexdigest()[:12]}.ckpt"
            stages.append(Stage(shard, r, positions, epochs, seed, path))
        if not len(mine):
            msg = (
                f"`shards`: no sample is left in shard {shard + 1} of {self.shards}; train an "
                "ensemble with fewer shards"
            )
            raise ValueError(msg)
        return stages

    def _initialise(self, shard: int) -> None:
        """Make the task one of that shard's member, before its first stage."""
        self.task.network = copy.deepcopy(self.members[shard])
        reset_trainable(self.task.train(), self.task.reset, _seed(self.seed, shard))

    def _batches(self, stage: Stage) -> Any:
        return self.data.training_batches(stage.positions, stage.seed)

    def _train(self, stage: Stage, trainer: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        if len(stage.positions):
            with isolate_rng(), torch.enable_grad(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "You defined a `validation_step` but have no")
                torch.manual_seed(stage.seed)
                pl.Trainer(
                    max_epochs=stage.epochs,
                    logger=False,
                    enable_checkpointing=False,
                    enable_model_summary=False,
                    limit_val_batches=0,
                    **trainer,
                ).fit(self.task.train(), self._batches(stage))
        seconds = time.perf_counter() - start
        state = self.task.network.cpu().state_dict()
        save_atomically({"state_dict": state, "seconds": seconds}, stage.path)


def recorded_seed(folder: Path, shards: int, slices: int) -> int:
    """The seed of the training whose checkpoints a folder holds.

    Raises:
        FileNotFoundError: it holds none.
        ValueError: it holds one of another number of shards or slices.
    """
    path = folder / _RECORD
    if not path.is_file():
        msg = (
            f"`folder`: there is no {_RECORD} in {str(folder)!r}, so no training shard by shard; "
            "delete the kept original too, and `fit` trains it again"
        )
        raise FileNotFoundError(msg)
    found = json.loads(path.read_text("utf-8"))
    if (found["shards"], found["slices"]) != (shards, slices):
        msg = (
            f"`folder`: {str(folder)!r} holds {found['shards']} shards of {found['slices']} "
            f"slices, and the network has {shards} of {slices}; give the folder of this original"
        )
        raise ValueError(msg)
    return int(found["seed"])


def _seed(*numbers: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7])


def _digest(network: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            plain = value.detach().cpu().contiguous().reshape(-1)
            found.update(plain.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _read(path: Path) -> Mapping[str, Any]:
    remedy = "delete it to train that slice again"
    content = load_safely(path, "folder", remedy)
    if not isinstance(content, dict) or {"state_dict", "seconds"} - content.keys():
        msg = f"`folder`: {str(path)!r} is no checkpoint of a slice; {remedy}"
        raise ValueError(msg)
    return content
