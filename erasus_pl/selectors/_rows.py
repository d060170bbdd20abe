"""What several selectors read from a task: the rows it predicts and its last layer's gradients."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from erasus_pl.callbacks import read_record
from erasus_pl.linalg.contributions import Outer
from erasus_pl.selectors.base import Selector
from erasus_pl.selectors.random import sample
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch, Task

__all__ = [
    "all_features", "drawn", "head_gradients", "label_rows", "naming_samples", "owners",
    "refuse_nonfinite", "sample_means", "sampled_loss", "visits", "watch",
]  # fmt: skip

T = TypeVar("T")


def all_features(selector: Selector, strategy: Strategy, dataset: Dataset[Any]) -> Tensor:
    """Features of every sample, ``(n, d)``, double.

    Raises:
        ValueError: when they are not finite.
    """
    batches = selector.batches(strategy, dataset)
    features = torch.cat([strategy.task.features(batch).double() for batch in batches])
    refuse_nonfinite(features, type(selector).__name__)
    return features


def drawn(selector: Selector, strategy: Strategy, name: str, samples: int) -> Dataset[Any]:
    """At most so many samples of the retain, test or holdout set, by the selector's seed.

    Raises:
        ValueError: when the set is empty.
    """
    whole = getattr(strategy.trainer.datamodule, f"{name}_set")  # type: ignore[attr-defined]
    if not len(whole):
        msg = f"{type(selector).__name__} needs samples of the {name} set, which is empty"
        raise ValueError(msg)
    positions = sample(len(whole), min(samples, len(whole)), selector.seed)
    return Subset(whole, positions.tolist())


def refuse_nonfinite(values: Tensor, name: str, of: str = "forget set") -> None:
    """Name the first sample that has a value which is not finite.

    Args:
        values: ``(n, …)``, one row for each sample.
        name: of the selector.
        of: whose samples they are.

    Raises:
        ValueError: when there is one.
    """
    finite = values.reshape(len(values), -1).isfinite().all(1)
    if not finite.all():
        msg = (
            f"{name}: what the model makes of sample {int((~finite).nonzero()[0])} of the {of} "
            f"is not finite, nor of {int((~finite).sum()) - 1} others; the model has diverged "
            "on it, or its input holds NaN"
        )
        raise ValueError(msg)


@contextmanager
def naming_samples(selector: Selector, strategy: Strategy, dataset: Dataset[Any]) -> Iterator[None]:
    """Let a FloatingPointError name the sample of the forget set whose loss is not finite, if any.

    Raises:
        ValueError: in its place.
    """
    try:
        yield
    except FloatingPointError as error:
        name, task = type(selector).__name__, strategy.task
        with torch.no_grad():
            batches = selector.batches(strategy, dataset)
            losses = torch.cat([task.per_sample_loss(task(batch), batch) for batch in batches])
        refuse_nonfinite(losses, name)
        msg = f"{name}: {error}"
        raise ValueError(msg) from error


def owners(task: Task, outputs: Tensor, batch: Batch) -> Tensor:
    """Which sample of the batch each row of ``task.predictions`` belongs to, ``(N,)``.

    Args:
        task: chooses the rows, such as the labelled tokens of a sequence.
        outputs: ``(B, …, C)`` of the task.
        batch: B samples.
    """
    number = torch.arange(len(outputs), device=outputs.device)
    spread = number.view(-1, *[1] * (outputs.dim() - 1)).expand(*outputs.shape[:-1], 1)
    return task.predictions(spread, batch)[0].reshape(-1)


def label_rows(
    selector: Selector, strategy: Strategy, dataset: Dataset[Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``(N, d)`` and labels ``(N,)`` of what the task predicts, and its sample ``(N,)``.

    One row for each sample of a classifier, one for each labelled token of a language model.
    """
    task, found, seen = strategy.task, [], 0
    for batch in selector.batches(strategy, dataset):
        inputs = task._head_input(batch)
        owner = owners(task, inputs, batch) + seen
        found.append((*task.predictions(inputs, batch), owner))
        seen += len(inputs)
    features, labels, owner = (torch.cat(parts) for parts in zip(*found, strict=True))
    return features, labels, owner


def sample_means(values: Tensor, owner: Tensor, samples: int) -> Tensor:
    """Mean of the ``(N,)`` values of each sample's rows, ``(samples,)``; 0 where it has none."""
    total = values.new_zeros(samples).index_add_(0, owner, values)
    return total / torch.bincount(owner, minlength=samples).clamp(min=1)


def head_gradients(task: Task, batch: Batch) -> Outer:
    """Gradient of each sample's loss by the last linear layer's weight, and bias if it has one.

    In factored form: for sample i the sum over positions t of ``g_it a_it^T``, with ``g`` the
    gradient by the layer's output and ``a`` its input, which ends in a one where there is a bias.

    Args:
        task: has a linear head.
        batch: B samples.

    Returns:
        ``inputs`` ``(B, 1, T, d)`` or ``(B, 1, T, d + 1)``, ``outputs`` ``(B, 1, T, C)``, double.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def cut(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        seen.append((args[0].detach(), leaf))
        return leaf

    head = task.head
    hook = head.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            loss = task.per_sample_loss(task(batch), batch).sum()
            slopes = torch.autograd.grad(loss, [leaf for _, leaf in seen])
    finally:
        hook.remove()
    samples = len(seen[0][0])
    inputs = torch.cat([a.reshape(samples, -1, a.shape[-1]) for a, _ in seen], 1).double()
    outputs = torch.cat([g.reshape(samples, -1, g.shape[-1]) for g in slopes], 1).double()
    if head.bias is not None:
        inputs = torch.cat([inputs, torch.ones_like(inputs[..., :1])], -1)
    return Outer(inputs[:, None], outputs[:, None])


def watch(steps: Iterable[T], strategy: Strategy, doing: str) -> Iterable[T]:
    """Go through steps with a progress bar that goes away at the end, if the run draws any."""
    from rich import get_console
    from rich.progress import track

    drawn = getattr(strategy.trainer, "progress_bar_callback", None) is not None
    plain = not (drawn and get_console().is_terminal and strategy.trainer.is_global_zero)
    return track(steps, doing, transient=True, disable=plain)


def visits(selector: Selector, strategy: Strategy, dataset: Dataset[Any]) -> tuple[Tensor, Tensor]:
    """Losses and correctness of each sample at each visit in training, ``(E, n)``; NaN if none.

    Args:
        selector: its `recorder` is a `SampleHistory`.
        strategy: of the run.
        dataset: the n samples.

    Raises:
        ValueError: there is no such record, or a loss in it is not finite.
    """
    history = read_record(selector, strategy)
    positions = torch.cat([b["index"].cpu() for b in selector.batches(strategy, dataset)])
    losses = history["losses"][:, positions]
    seen = losses.masked_fill(~history["visited"][:, positions], 0)
    refuse_nonfinite(seen.T, type(selector).__name__)
    return losses, history["correct"][:, positions]


def sampled_loss(task: Task, batch: Batch, seed: int = 0) -> Tensor:
    """Loss of labels drawn from the model's own softmax, ``(B,)``, of which ``E g g^T`` is ``G``.

    The second moment of its gradient g is the Gauss-Newton matrix of cross-entropy. A sample with
    several labels, such as the tokens of a sequence, has the sum of their losses over the root of
    their number: the gradients of independent labels add up, and the mean loss counts each once.

    What is drawn depends on the seed and the sample's ``index``, not on its batch.

    Args:
        task: with a softmax over classes.
        batch: B samples.
        seed: of the labels.
    """
    outputs = task(batch)
    logits = task.predictions(outputs, batch)[0]
    owner = owners(task, outputs, batch)
    counts = torch.bincount(owner, minlength=len(outputs))
    generator = torch.Generator()
    drawn = [
        torch.rand(count, generator=generator.manual_seed(seed * 1_000_003 + i)).double()
        for i, count in zip(batch["index"].tolist(), counts.tolist(), strict=True)
    ]
    below = logits.detach().double().softmax(-1).cumsum(-1)
    labels = torch.searchsorted(below, torch.cat(drawn).to(below.device)[:, None], right=True)[:, 0]
    losses = F.cross_entropy(logits, labels.clamp(max=below.shape[-1] - 1), reduction="none")
    total = losses.new_zeros(len(outputs)).index_add(0, owner, losses)
    return total / counts.clamp(min=1).sqrt()
