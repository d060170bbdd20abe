"""Ensemble: several strategies, each from the original, and one soup of what they make.

Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time" (ICML 2022, arXiv:2203.05482). Models that were tuned from the
same weights often lie in one basin, where their average is as good as or better than each. The
uniform soup averages all members; the greedy one (Recipe 1) goes through them from the best by
held-out score to the worst, and adds one where the score of the soup does not drop.

What is scored here is unlearning, J = acc(D_r) − |acc(D_f) − ρ|. The paper's held-out accuracy
would prefer members that forgot nothing, and the test set must not choose what is judged on it. ρ
is the accuracy that a model which never saw D_f is held to: as in SCRUB+R (Kurmanji et al. 2023,
arXiv:2302.09880), the model's own on the holdout set, which is distributed like D_f and was never
trained on. Where D_r holds none of the classes of D_f, as when whole classes are forgotten, that
would call the original forgetful, since it knows unseen samples of the class as well: there ρ = 0,
as a model that never saw the class cannot name it. D_r stands for utility because it is all that
is left: the holdout set of a forgotten class has no use for it. It was trained on by every member
alike, and learning it by heart shows where acc(D_f) stays above ρ.

Members' batch norms fit the activations of their own weights, not those of the average, so in a
soup of several the statistics that training moved are taken anew from a pass over D_r.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

import erasus_pl.strategies as room
from erasus_pl.strategies._stages import Staged
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, OptimizerCallable, Task

__all__ = ["Ensemble", "average", "greedy", "judge"]

State = Mapping[str, Tensor]


def average(states: Sequence[State]) -> dict[str, Tensor]:
    """The uniform soup θ = (1/k) Σ θ_i (arXiv:2203.05482, Sec. 2), summed in double precision.

    Args:
        states: state dicts of k ≥ 1 members; of what is not floating the first's is taken.
    """
    soup = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            total = torch.stack([state[name].double() for state in states]).sum(0)
            soup[name] = (total / len(states)).to(first.dtype)
        else:
            soup[name] = first.clone()
    return soup


def greedy(score: Callable[[tuple[int, ...]], float], members: int) -> tuple[int, ...]:
    """The ingredients of the greedy soup (arXiv:2203.05482, Recipe 1), in the order added.

    Args:
        score: of the soup of some members; higher is better.
        members: how many there are.
    """
    order = sorted(range(members), key=lambda i: -score((i,)))
    chosen: tuple[int, ...] = (order[0],)
    for i in order[1:]:
        if score((*chosen, i)) >= score(chosen):
            chosen = (*chosen, i)
    return chosen


def judge(retain: float, forget: float, reference: float) -> float:
    """J = acc(D_r) − |acc(D_f) − ρ|, at most 1."""
    return retain - abs(forget - reference)


class Ensemble(Staged, Strategy):
    """Run each strategy from the original, and average the weights they end with.

    Needs `trainer.max_epochs` to be the sum of `epochs`, or -1. The weights of finished members are
    kept, in checkpoints too, until the last is done.

    Args:
        task: the trained model.
        optimizer: of members that name none; if not given, each has its own default.
        members: the strategies, each by `class_path` and `init_args` without `task`. If not given,
            NegGradPlus and FineTune, at their defaults.
        epochs: how long each runs; 1 for one that edits the weights once, 0 for one left out.
        recipe: `greedy` leaves out members that make the soup worse, and is best in the paper;
            `average` takes all, and needs no task that can tell right from wrong.
    """

    needs_original = True
    paper: ClassVar[dict] = {
        "title": "Model soups: averaging weights of multiple fine-tuned models improves accuracy "
        "without increasing inference time",
        "year": 2022,
        "arxiv": "2203.05482",
    }

    def __init__(
        self,
        task: Task,
        optimizer: OptimizerCallable | None = None,
        members: list[Callable[[Task], Strategy]] | None = None,
        epochs: tuple[int, ...] = (1, 1),
        recipe: Literal["average", "greedy"] = "greedy",
    ) -> None:
        super().__init__(task, optimizer)
        if recipe not in ("average", "greedy"):
            msg = f"`recipe` must be average or greedy, got {recipe!r}"
            raise ValueError(msg)
        given = members if members is not None else [room.NegGradPlus, room.FineTune]  # type: ignore[attr-defined]
        self.compose("members", given, epochs, optimizer)
        self.recipe = recipe
        self.chosen: tuple[int, ...] | None = None
        self.scores: dict[tuple[int, ...], float] = {}
        self._members: list[State] = []
        self._unseen = False

    def setup(self, stage: str) -> None:
        """Start with no member."""
        super().setup(stage)
        if stage == "fit":
            self.chosen, self.scores, self._members = None, {}, []

    def at_start(self) -> None:
        """See that there is something to judge by."""
        if self.recipe == "greedy":
            with _in_eval_mode(self.task):
                retain = self._classes(self.data.retain_set)
                forget = self._classes(self.data.forget_set)
                self._unseen = bool(forget) and not forget & retain
                for split in (
                    ("retain", "forget") if self._unseen else ("retain", "forget", "holdout")
                ):
                    self._accuracy(split, batches=1)

    def between(self, stage: int) -> None:
        """Keep what a member ended with, and go back to the original."""
        self._members.append(_copy(self.task.network))
        self.task.network.load_state_dict(self.original.network.state_dict())

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step; after the very last one make the soup, before anything is saved or validated."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if epoch + 1 == self.trainer.max_epochs and self.trainer.is_last_batch:
            self._combine()

    def on_train_end(self) -> None:
        """Make the soup even where training was stopped before its last epoch."""
        super().on_train_end()
        if self.chosen is None:
            self._combine()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the members that are done."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["soup"] = {"members": list(self._members), "chosen": self.chosen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the members that are done."""
        super().on_load_checkpoint(checkpoint)
        if self.running is not None:
            self._members = list(checkpoint["soup"]["members"])
            self.chosen = checkpoint["soup"]["chosen"]

    def _combine(self) -> None:
        members = [*self._members, _copy(self.task.network)]
        with _in_eval_mode(self.task):
            chosen = tuple(range(len(members)))
            if self.recipe == "greedy":
                chosen = greedy(lambda soup: self._score(members, soup), len(members))
            self._serve([members[i] for i in chosen])
        self.chosen, self._members = chosen, []

    def _score(self, members: Sequence[State], soup: tuple[int, ...]) -> float:
        if soup not in self.scores:
            self._serve([members[i] for i in soup])
            retain, forget = self._accuracy("retain"), self._accuracy("forget")
            reference = 0.0 if self._unseen else self._accuracy("holdout")
            self.scores[soup] = judge(retain, forget, reference)
        return self.scores[soup]

    def _serve(self, members: Sequence[State]) -> None:
        """Load the soup of some members, with batch norms that fit it."""
        self.task.network.load_state_dict(average(members))
        norms = [
            module
            for name, module in self.task.network.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and module.running_mean is not None
            and _differ(members, f"{name}.running_mean".removeprefix("."))
        ]
        if norms:
            self._take_statistics(norms)

    @torch.no_grad()
    def _take_statistics(self, norms: list[Any]) -> None:
        """Mean of the statistics of all batches of D_r, with nothing else in training mode."""
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True
        for batch in self.data.retain_batches():
            if len(batch["index"]) > 1 or len(self.data.retain_set) == 1:
                self.task(batch)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum, norm.training = momentum, False

    @torch.no_grad()
    def _accuracy(self, split: str, batches: int | None = None) -> float:
        """How much of a set is right, or of its first batches."""
        right = [
            self.task.correct(self.task(batch), batch)
            for batch in islice(self._batches(getattr(self.data, f"{split}_set")), batches)
        ]
        found = float(torch.cat(right).double().mean()) if right else math.nan
        if math.isnan(found):
            msg = (
                f"`recipe`: greedy judges by right answers on the {split} set, and there are none "
                f"for {type(self.task).__name__}; set recipe: average"
            )
            raise ValueError(msg)
        return found

    def _classes(self, dataset: Any) -> set[int]:
        """The classes in a set; none where targets are no classes."""
        found: set[int] = set()
        for batch in self._batches(dataset):
            target = batch.get("target")
            if not isinstance(target, Tensor) or target.is_floating_point() or target.dim() != 1:
                return set()
            found |= set(target.tolist())
        return found

    def _batches(self, dataset: Any) -> Iterator[Batch]:
        for batch in self.data.sweep(dataset):
            yield self.trainer.strategy.batch_to_device(batch)


def _copy(network: nn.Module) -> State:
    return {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}


def _differ(members: Sequence[State], name: str) -> bool:
    return any(not torch.equal(members[0][name], state[name]) for state in members[1:])


@contextmanager
def _in_eval_mode(task: Task) -> Iterator[None]:
    modes = {module: module.training for module in task.modules()}
    task.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
