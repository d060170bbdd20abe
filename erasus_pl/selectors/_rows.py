"""What several selectors read from a task: the rows it predicts and its last layer's gradients."""

import torch
from torch import Tensor, nn

from erasus_pl.linalg.contributions import Outer
from erasus_pl.tasks.base import Batch, Task

__all__ = ["head_gradients", "owners", "sample_means"]


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
