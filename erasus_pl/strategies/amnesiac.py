"""Amnesiac unlearning: take back the updates of the batches that held what must go.

Graves, Nagisetty and Ganesh, "Amnesiac Machine Learning" (AAAI 2021, arXiv:2010.10981), amnesiac
unlearning. Training ends at θ_o = θ_init + Σ_b Δ_b, with Δ_b the update of batch b. With a record
of which samples a batch held and what it changed, those that held a sample of D_f, the set SB, are
taken back: θ = θ_init + Σ_b Δ_b − Σ_{b ∈ SB} Δ_b = θ_o − Σ_{b ∈ SB} Δ_b, and what that breaks is
repaired by training on D_r as the original was trained. `hit` finds SB, `take_back` subtracts.

Other updates are not what they would have been without those of SB, so this is exact only for
batches at the end of training. Where every batch held a sample of D_f, as for a class, θ is θ_init
and the repair trains from scratch. The updates are those that the optimiser made: its moments, in
which Adam carries a batch on into later updates, are not undone, nor the statistics of batch norms.
(The relabelling that other papers' code calls amnesiac is another method, `RandomLabel` here; the
authors' code subtracts parameters by their names alone, `weight` and `bias`, and misses others.)
"""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from erasus_pl.callbacks.training_record import TrainingRecord, read_record
from erasus_pl.callbacks.update_log import UpdateLog
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["Amnesiac", "hit", "take_back"]


def hit(batches: Iterable[Tensor], forget: Tensor) -> list[bool]:
    """Which batches hold a sample of the forget set.

    Args:
        batches: positions `(B,)` of the samples of each.
        forget: positions `(m,)`.
    """
    return [bool(torch.isin(batch, forget).any()) for batch in batches]


def take_back(weights: Tensor, updates: Iterable[Tensor]) -> Tensor:
    """θ_o − Σ Δ_b, `(P,)`, summed in double precision.

    Args:
        weights: θ_o, `(P,)`.
        updates: Δ_b, `(P,)` each.
    """
    total = torch.zeros_like(weights, dtype=torch.float64)
    for update in updates:
        total += update.to(total)
    return (weights.double() - total).to(weights.dtype)


class Amnesiac(Strategy):
    """Subtract the updates of the batches that held a forgotten sample, then repair.

    Needs a record of the original's training: `fit` makes it where it trains the original. It holds
    a copy of the weights for each of its steps, or for those of `indices`. All of the forget set
    goes, whatever a selector picks. An epoch of repair passes over the retain set;
    `trainer.max_epochs: 0` leaves it out.

    Args:
        task: the trained model.
        optimizer: of the repair; the task's own recipe (optimiser and schedule) if not given.
        record: file that `erasus_pl.callbacks.UpdateLog` wrote while the original was trained.
        indices: positions of the samples that may have to be deleted, of which a record is made or
            `record` was made; all of the training data if not given.
        limit_gb: a record that might need more, in 10⁹ bytes, is not begun.
    """

    loader_mode = "retain"
    on_weights = "takes updates of them back"
    paper: ClassVar[dict] = {
        "title": "Amnesiac Machine Learning",
        "year": 2021,
        "arxiv": "2010.10981",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        record: str | None = None,
        indices: Sequence[int] | None = None,
        limit_gb: float = 4.0,
    ) -> None:
        super().__init__(task, optimizer)
        self.record = record
        self.indices = indices
        self.limit_gb = limit_gb
        self._resumed = False
        self.recorder()

    def recorder(self) -> TrainingRecord:
        """What each step did to the weights."""
        return UpdateLog(None, self.indices, self.limit_gb)

    def setup(self, stage: str) -> None:
        """Look out for a checkpoint to go on from."""
        super().setup(stage)
        self._resumed = False

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the repair."""
        super().on_load_checkpoint(checkpoint)
        self._resumed = True

    def on_fit_start(self) -> None:
        """Subtract, unless the run is resumed: then it was done."""
        super().on_fit_start()
        if not self._resumed:
            self._forget()

    def unlearning_losses(self, forget: Any, retain: Batch) -> dict[str, Tensor]:
        """The task loss of the retain batch."""
        return {"retain": self.task.loss(retain)}

    def configure_optimizers(self) -> Any:
        """The given optimiser, or the recipe the original was trained with."""
        if self.optimizer is None:
            return self.task.configure_optimizers()
        return super().configure_optimizers()

    def _forget(self) -> None:
        record = read_record(self, self)
        forget = self.data.forget_set.positions
        if self.indices is not None:
            missing = forget[~torch.isin(forget, torch.tensor(sorted(self.indices)))]
            if len(missing):
                msg = (
                    f"`indices`: {len(missing):,} of the forget set's {len(forget):,} samples were "
                    f"not recorded, the first at {missing[0]}; record all that may be deleted"
                )
                raise ValueError(msg)
        chosen = hit(record["samples"], forget)
        updates = [u for u, taken in zip(record["updates"], chosen, strict=True) if taken]
        parameters = dict(self.task.named_parameters())
        unknown = [name for name in record["names"] if name not in parameters]
        sizes = [parameters[name].numel() for name in record["names"] if name in parameters]
        if unknown or any(sum(sizes) != len(update) for update in updates):
            msg = f"`record`: {self.record!r} is of another network; give that of this original"
            raise ValueError(msg)
        with torch.no_grad():
            mine = [parameters[name] for name in record["names"]]
            flat = take_back(torch.cat([p.reshape(-1).cpu() for p in mine]), updates)
            for parameter, value in zip(mine, flat.split(sizes), strict=True):
                if parameter.requires_grad:
                    parameter.copy_(value.view_as(parameter))
        everything = self.indices is None and all(chosen)
        rank_zero_info(
            f"Amnesiac: {len(updates):,} of {len(chosen):,} recorded updates are taken back"
            + (": these are all, so the network is as before its training" if everything else "")
        )
