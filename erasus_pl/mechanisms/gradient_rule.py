"""The contract of a gradient rule: how a step weighs what must go against what must stay."""

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

import erasus_pl.strategies as room
from erasus_pl.linalg import flatten, with_gradient
from erasus_pl.strategies.base import Strategy

__all__ = ["GradientRule"]


class GradientRule(Callback):
    """Takes the gradients of a strategy's two sides apart, and puts them together in its own way.

    Terms of `unlearning_losses` whose names begin with `forget` are one side, all others, what
    must stay, the other. A strategy fits if its steps see both sets: one that takes them in turn
    has one gradient at a time. Fill in `combine`, or `sides` where the gradients themselves are
    taken in another way. Gradients are averaged over processes first; with accumulated batches each
    batch is put together by itself.
    """

    paper: ClassVar[dict[str, Any]] = {}

    def combine(self, forget: Tensor, retain: Tensor) -> Tensor:
        """One gradient `(P,)` of the trainable weights from those of the two sides."""
        return forget + retain

    def sides(
        self, strategy: Strategy, evaluate: Callable[[], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The terms, and the gradients `(P,)` of the forget and of the other side."""
        losses = evaluate()
        forget = self.gradient(strategy, losses, "forget")
        return losses, forget, self.gradient(strategy, losses, "retain")

    def gradient(self, strategy: Strategy, losses: dict[str, Tensor], side: str) -> Tensor:
        """The gradient `(P,)` of one side, averaged over processes; the graph is kept.

        Raises:
            ValueError: the strategy has no term on that side.
        """
        terms = [v for k, v in losses.items() if k.startswith("forget") == (side == "forget")]
        if not terms:
            msg = (
                f"{type(self).__name__} needs terms on both sides, and {type(strategy).__name__} "
                f"has {', '.join(losses)}; {_remedy()}"
            )
            raise ValueError(msg)
        weights = strategy.trainable
        total = torch.stack(terms).sum()
        found = torch.autograd.grad(
            total, list(weights.values()), retain_graph=True, allow_unused=True,
            materialize_grads=True,
        )  # fmt: skip
        flat = flatten(dict(zip(weights, found, strict=True)))
        return cast(Tensor, strategy.trainer.strategy.reduce(flat, reduce_op="mean"))

    def __call__(
        self, strategy: Strategy, evaluate: Callable[[], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms, and a scalar of their sum's value with the gradient that was agreed on."""
        losses, forget, retain = self.sides(strategy, evaluate)
        total = torch.stack([v.detach() for v in losses.values()]).sum()
        weights = list(strategy.trainable.values())
        return losses, with_gradient(total, weights, self.combine(forget, retain))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that the strategy has two sides at every step, and make the rule its own."""
        if stage != "fit":
            return
        name = type(self).__name__
        if not isinstance(pl_module, Strategy):
            msg = (
                f"{name} is for a Strategy, and the model is a {type(pl_module).__name__}; remove "
                "it from trainer.callbacks"
            )
            raise TypeError(msg)
        why = _why_not(pl_module)
        if why:
            msg = (
                f"{name} needs both sides at every step, and {type(pl_module).__name__} {why}; "
                f"{_remedy()}"
            )
            raise TypeError(msg)
        others = [type(c).__name__ for c in cast(Any, trainer).callbacks if c is not self
                  and isinstance(c, GradientRule)]  # fmt: skip
        if others:
            msg = f"`trainer.callbacks`: give one gradient rule, got {name} and {others[0]}"
            raise ValueError(msg)
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            msg = (
                f"`trainer.precision`: {name} takes gradients before losses are scaled, where "
                "those of fp16 vanish; use bf16-mixed or 32-true"
            )
            raise ValueError(msg)
        pl_module.rule = self

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the strategy as it was."""
        if isinstance(pl_module, Strategy):
            pl_module.rule = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the strategy as it was."""
        self.teardown(trainer, pl_module, "fit")


def _why_not(strategy: Strategy | type[Strategy]) -> str:
    cls = strategy if isinstance(strategy, type) else type(strategy)
    if cls.edit is not Strategy.edit:
        return "edits weights in closed form"
    if hasattr(cls, "stage"):
        return "runs other strategies one after another"
    reasons = {
        "sequential": "takes the forget and the retain set in turn",
        "forget": "never sees the retain set",
        "retain": "never sees the forget set",
    }
    return reasons.get(strategy.loader_mode, "")


def _remedy() -> str:
    found = (getattr(room, name) for name in room.__all__)
    fitting = [c.__name__ for c in found if issubclass(c, Strategy) and c is not Strategy
               and not _why_not(c)]  # fmt: skip
    return f"strategies that fit: {', '.join(sorted(fitting))}"
