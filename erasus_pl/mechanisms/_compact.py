"""A parameter of which an optimiser sees only the entries that may move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Compact", "replace"]

_WHOLE = ("Adafactor", "Muon")


class Compact:
    """Stands between a parameter and the optimiser that moves some of its entries.

    The optimiser owns `leaf`, a vector of those entries, and so keeps state for nothing else. The
    other entries are kept on the CPU, to be put back where something else wrote to them.

    Args:
        parameter: θ, of any shape.
        mask: bool, of that shape; true where θ may move.
        original: what the others stay at, of that shape.
    """

    def __init__(self, parameter: nn.Parameter, mask: Tensor, original: Tensor) -> None:
        narrow = torch.int32 if mask.numel() < 2**31 else torch.int64
        self.parameter = parameter
        self.moving = mask.flatten().nonzero().squeeze(1).to(narrow)
        self.kept = original.flatten()[~mask.flatten().to(original.device)].cpu()
        self.leaf = nn.Parameter(self._read(parameter))
        self._version = -1
        self.put_back(always=True)

    def put_back(self, always: bool = False) -> None:
        """Give resting entries their values back, if anything but the optimiser wrote to θ.

        Writes through `parameter.data` are not noticed, unless it is done always.
        """
        if always or self.parameter._version != self._version:
            here = self.parameter.device
            resting = torch.ones(self.parameter.numel(), dtype=torch.bool, device=here)
            resting[self.moving.to(here)] = False
            self._write(self.parameter, resting, self.kept.to(here))
            self._version = self.parameter._version

    def pull(self) -> None:
        """Take the moving entries of θ and of its gradient."""
        self.leaf.data.copy_(self._read(self.parameter))
        self.pull_gradient()

    def pull_gradient(self) -> None:
        """Take the moving entries of the gradient alone."""
        gradient = self.parameter.grad
        self.leaf.grad = None if gradient is None else self._read(gradient)

    def push_gradient(self) -> None:
        """Give them back, with zeros for the rest."""
        if self.parameter.grad is not None and self.leaf.grad is not None:
            self.parameter.grad.zero_()
            self._write(self.parameter.grad, self.moving, self.leaf.grad)

    def push(self) -> None:
        """Give θ its moving entries."""
        unwatched = self.parameter._version == self._version
        self._write(self.parameter, self.moving, self.leaf)
        if unwatched:
            self._version = self.parameter._version

    def _read(self, tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(-1)[self.moving]

    @staticmethod
    def _write(tensor: Tensor, at: Tensor, values: Tensor) -> None:
        tensor = tensor.detach()
        flat = tensor.reshape(-1)  # a view, unless memory is laid out in another order
        flat[at] = values.detach()
        if not tensor.is_contiguous():
            tensor.copy_(flat.view(tensor.shape))


def replace(
    optimizer: torch.optim.Optimizer, compact: list[Compact]
) -> tuple[list[Callable[[], None]], int]:
    """Make an optimiser move leaves instead of whole parameters, before its first step.

    Returns:
        What undoes its hooks, and how many weights it would have moved.

    Raises:
        ValueError: it does not treat each weight by itself.
    """
    if type(optimizer).__name__ in _WHOLE:
        msg = (
            f"`optimizer`: {type(optimizer).__name__} works on whole matrices, and a mask leaves "
            "parts of them; use one that treats each weight by itself, such as SGD or Adam"
        )
        raise ValueError(msg)
    found = {c.parameter: c for c in compact}
    whole = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    for group in optimizer.param_groups:
        swapped = [(p, found.get(p)) for p in group["params"]]
        for parameter, c in swapped:
            state = optimizer.state.pop(parameter, None) if c else None
            if c and state and len(c.moving):  # some optimisers begin with a state
                optimizer.state[c.leaf] = {
                    k: c._read(v) if torch.is_tensor(v) and v.shape == parameter.shape else v
                    for k, v in state.items()
                }
        group["params"][:] = [c.leaf if c else p for p, c in swapped if not c or len(c.moving)]

    def before(_: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Let an optimiser that evaluates the loss several times a step see where it moved to."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            return None
        evaluations = 0

        def evaluate() -> Any:
            nonlocal evaluations
            if evaluations:
                for c in compact:
                    c.push()
            evaluations += 1
            return closure()

        return args[:1], {**kwargs, "closure": evaluate}

    def after(*_: Any) -> None:
        for c in compact:
            c.push()

    hooks = [
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(after),
    ]
    return [hook.remove for hook in hooks], whole
