"""TracIn: what training on a sample did to a loss, added up over the training.

Pruthi, Liu, Kale and Sundararajan, "Estimating Training Data Influence by Tracing Gradient Descent"
(NeurIPS 2020, arXiv:2002.08484). A step of gradient descent on z changes the loss of z' by
``-eta grad l(w, z) . grad l(w, z')`` to first order (Sec. 3.1), so z lowered it over all steps on z
by about their sum. As the weights of every step are not kept, TracInCP (Sec. 3.2) adds up

    sum_t eta_t grad l(w_t, z) . grad l(w_t, z')

over checkpoints t of the training that made the original, for every z alike. With z' = z it is the
self-influence, large for samples that had to be memorised; with z' in a target set, the mean over
it, positive where the sample helped. The gradients are of all trainable parameters, each with its
own learning rate. The first-order argument is one for plain gradient descent: where an optimiser
scales or averages gradients, such as Adam, its learning rate stands for its step.

The original alone will not do: with one checkpoint, self-influence is the squared gradient norm.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from erasus_pl.callbacks import TrainingRecord, WeightHistory, read_record
from erasus_pl.linalg import PerSampleGradients, mean_gradient, unflatten
from erasus_pl.selectors._rows import naming_samples, refuse_nonfinite, watch
from erasus_pl.selectors.base import Selector
from erasus_pl.strategies.base import Strategy

__all__ = ["TracIn", "traced"]

_TARGETS = ("self", "forget", "retain", "test", "holdout")


def traced(
    module: nn.Module,
    loss_fn: Callable[[Any], Tensor],
    rates: Mapping[str, float],
    samples: Iterable[Any],
    target: Iterable[Any] | None = None,
) -> Tensor:
    """``sum_p eta_p d l(z)/dp . d L/dp`` of each sample z at the module's weights, ``(n,)``.

    A term of TracInCP's sum (Sec. 3.2); L is the mean loss of the target, or the sample's own.

    Args:
        module: owns the parameters; only those with ``requires_grad`` count.
        loss_fn: ``batch -> (B,)``, computed with ``module``.
        rates: ``eta`` of each parameter by name.
        samples: batches of n samples.
        target: batches whose mean loss is followed; none for self-influence.

    Raises:
        FloatingPointError: when the gradient of the target's loss is not finite.
    """
    gradients = PerSampleGradients(module, loss_fn)
    if target is None:
        found = []
        for batch in samples:
            for part in gradients.parts(batch):
                squares = [rates[name] * own.squared_norms() for name, own in part.items()]
                found.append(torch.stack(squares).sum(0))
        return torch.cat(found)
    along = unflatten(mean_gradient(module, loss_fn, target), gradients.parameters)
    slope = torch.cat([rates[name] * value.reshape(-1) for name, value in along.items()])
    if not slope.isfinite().all():
        msg = "the loss on the target set is not finite; look for NaN in its inputs"
        raise FloatingPointError(msg)
    return torch.cat([gradients.dots(batch, slope) for batch in samples])


class TracIn(Selector):
    """Keep the samples that training took most from, for themselves or for a target set.

    Needs a record of that training: `fit` makes it where it trains the original.

    Args:
        fraction: part of the forget set to keep, in (0, 1].
        k: number of samples to keep; give either `fraction` or `k`.
        target: `self`, for self-influence, or the set whose mean loss is followed: forget,
            retain, test or holdout.
        checkpoints: epochs whose weights are recorded, evenly spaced, the last among them.
        record: file that `erasus_pl.callbacks.WeightHistory` wrote while the original was trained.
    """

    paper: ClassVar[dict[str, Any]] = {
        "title": "Estimating Training Data Influence by Tracing Gradient Descent",
        "year": 2020,
        "arxiv": "2002.08484",
    }

    def __init__(
        self,
        fraction: float | None = None,
        k: int | None = None,
        target: Literal["self", "forget", "retain", "test", "holdout"] = "self",
        checkpoints: int = 5,
        record: str | None = None,
    ) -> None:
        super().__init__(fraction, k)
        if target not in _TARGETS:
            msg = f"`target` must be one of {_TARGETS}, got {target!r}"
            raise ValueError(msg)
        if checkpoints < 1:
            msg = f"`checkpoints` must be at least 1, got {checkpoints}"
            raise ValueError(msg)
        self.target = target
        self.checkpoints = checkpoints
        self.record = record

    def recorder(self) -> TrainingRecord:
        """The weights at some epochs."""
        return WeightHistory(None, self.checkpoints)

    def scores(self, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
        """TracInCP of each sample, ``(n,)``; the network's weights are put back in the end."""
        history = read_record(self, strategy)
        network, data = strategy.task.network, strategy.trainer.datamodule  # type: ignore[attr-defined]
        states = _states(history, network)
        if not states:
            msg = "`record`: it holds no weights, since that training ended before the first epoch"
            raise ValueError(msg)
        names = [name for name, _ in network.named_parameters()]
        before = {name: value.clone() for name, value in network.state_dict().items()}
        total: Tensor | float = 0.0
        try:
            for t, state in enumerate(watch(states, strategy, "TracIn")):
                network.load_state_dict(state)
                rates = dict(zip(names, history["rates"][t].tolist(), strict=True))
                total = total + self._traced(strategy, dataset, data, rates)
        finally:
            network.load_state_dict(before)
        assert isinstance(total, Tensor)
        return total

    def _traced(
        self, strategy: Strategy, dataset: Dataset[Any], data: Any, rates: Mapping[str, float]
    ) -> Tensor:
        task, followed = strategy.task, None
        if self.target != "self":
            whole = dataset if self.target == "forget" else getattr(data, f"{self.target}_set")
            followed = self.batches(strategy, whole)

        def loss(batch: Any) -> Tensor:
            return task.per_sample_loss(task(batch), batch)

        with naming_samples(self, strategy, dataset):
            found = traced(task.network, loss, rates, self.batches(strategy, dataset), followed)
        refuse_nonfinite(found, "TracIn")
        return found


def _states(history: Mapping[str, Any], network: nn.Module) -> list[dict[str, Tensor]]:
    stacked = {
        k.removeprefix("weights."): v for k, v in history.items() if k.startswith("weights.")
    }
    own = {name: value.shape for name, value in network.state_dict().items()}
    if {name: value.shape[1:] for name, value in stacked.items()} != own:
        msg = (
            "`record`: its weights do not fit the network; give the record of the training that "
            "made the original"
        )
        raise ValueError(msg)
    return [{k: v[t] for k, v in stacked.items()} for t in range(len(history["epochs"]))]
