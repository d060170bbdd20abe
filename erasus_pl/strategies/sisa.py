"""SISA: train on shards in isolation, so that a deletion retrains only the shards it hits.

Bourtoule et al., "Machine Unlearning" (IEEE S&P 2021, arXiv:1912.03817): sharded, isolated, sliced,
aggregated training. The training data is dealt out to S shards of R slices each; one network learns
each shard, slice by slice, with a checkpoint after every slice; predictions are aggregated. To
delete samples, each shard that holds one goes back to the checkpoint before the first slice that
is hit, and trains on from there without them. The result is, to the bit, what the same
training gives that never had them, so nothing has to be certified.

The training itself, of the original as of a deletion, stands in `erasus_pl/tasks/shards.py`, its
maths in `erasus_pl/linalg/sharding.py`: `cells` deals out the samples, `slice_epochs` gives
e_r = 2e′/(R + 1), `first_hit` says where a deletion goes back to, and `samples_trained`
what it costs.
"""

from pathlib import Path
from typing import Any, ClassVar, cast

from lightning.pytorch.utilities import rank_zero_info

from erasus_pl.networks import ShardedEnsemble
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task
from erasus_pl.tasks.shards import ShardTraining, Stage, recorded_seed

__all__ = ["SISA"]


class SISA(Strategy):
    """Retrain the shards that held a forgotten sample, from the slice that brought it in.

    Needs `trainer.max_epochs: 1`, a task whose network is a `ShardedEnsemble`, and the folder of
    S·R checkpoints that the training of the original left. Retrained slices are kept there too: a
    run that was killed does not train them again, and neither does a later request that names
    these samples and more. Checkpoints that saw forgotten samples are not deleted; a line says how
    many there are. All of the forget set goes, whatever a selector picks. Several processes share
    out the shards and must see the same folder; each trains as the original was trained, by
    itself and with the datamodule's `batch_size`.

    What it costs is logged as `shards`, `slices` and `steps`. One sample costs about one shard, a
    request that hits every shard early, such as for a class, as much as retraining. On a GPU the
    result is that to the bit only where its kernels are deterministic.

    Args:
        task: the trained model, a classifier or language model: members agree on probabilities.
        optimizer: not used; shards are trained by the task's own recipe.
        folder: of the original's checkpoints, one for each shard and slice; if not given, where
            the task was trained.
    """

    loader_mode = "forget"
    requires = ("log_likelihood", "shards")
    paper: ClassVar[dict] = {
        "title": "Machine Unlearning",
        "year": 2021,
        "arxiv": "1912.03817",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        folder: str | None = None,
    ) -> None:
        super().__init__(task, optimizer)
        self.folder = folder
        self.seconds_found = 0.0
        self._seed = 0

    def check_task(self) -> None:
        """Say how to come by a task that fits."""
        try:
            super().check_task()
        except TypeError as error:
            if "shards" in self.task.capabilities:
                raise
            msg = (
                f"{error}; for SISA give the task the network erasus_pl.networks.ShardedEnsemble, "
                "as conf/task/digits_sharded.yaml does, and let `fit` train the original"
            )
            raise TypeError(msg) from error

    def on_fit_start(self) -> None:
        """Find the checkpoints of the original before anything is spent."""
        super().on_fit_start()
        self._seed = recorded_seed(self._place(), self._ensemble.shards, self._ensemble.slices)

    def accumulate(self, forget: Batch | None, retain: Batch | None) -> None:
        """Nothing: what goes is known by its position."""

    def edit(self) -> None:
        """Train what the deletion touches, and put the members together."""
        barrier, world = self.trainer.strategy.barrier, self.trainer.world_size
        training = ShardTraining(
            self.task, self.data, self.data.retain_set.positions, self._seed, self._place()
        )
        touched = training.touched(self.data.forget_set.positions)
        found = [stage for stage in touched if stage.path.is_file()]
        self.seconds_found = training.seconds(found)
        self._say(training, touched, len(found))
        barrier("every process has seen what is there")
        mine = range(training.shards)[self.global_rank :: world]
        training.train(mine, self._trainer_options(), lambda line: rank_zero_info(f"SISA: {line}"))
        barrier("every shard is trained")
        training.assemble(self._ensemble)

    @property
    def _ensemble(self) -> ShardedEnsemble:
        return cast(ShardedEnsemble, self.task.network)

    def _say(self, training: ShardTraining, touched: list[Stage], found: int) -> None:
        shards, steps = len({stage.shard for stage in touched}), training.steps(touched)
        every = [stage for stages in training.stages for stage in stages]
        self.log_dict(
            {"shards": float(shards), "slices": float(len(touched)), "steps": float(steps)},
            batch_size=1,
        )
        rank_zero_info(
            f"SISA: the request touches {shards} of {training.shards} shards, {len(touched)} of "
            f"{len(every)} slices, {steps:,} of {training.steps(every):,} steps"
            + (f"; {found} slices were trained before" if found else "")
        )
        stale = len(training.stale())
        rank_zero_info(
            f"SISA: {stale} checkpoints in {training.folder} are of the original or of other "
            "requests and may know what is forgotten; delete them when nothing needs them"
        )

    def _place(self) -> Path:
        folder = self.folder or self.task.shards_folder
        if folder is None:
            msg = (
                "`folder`: SISA needs the checkpoints of the original's slices; leave out the "
                "task's `checkpoint`, and `fit` trains the original and keeps them, or give the "
                "folder that train_task was given"
            )
            raise ValueError(msg)
        return Path(folder)

    def _trainer_options(self) -> dict[str, Any]:
        kind, index = self.device.type, self.device.index
        return {
            "accelerator": kind,
            "devices": 1 if kind == "cpu" else [index or 0],
            "precision": self.trainer.precision,
            "enable_progress_bar": False,
        }
