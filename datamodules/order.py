"""The order of batches: a pure function of a seed and a step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Cycle", "Pick", "mix", "plan"]

_MASK = (1 << 63) - 1


def mix(*numbers: int) -> int:
    """Hash integers into one seed in [0, 2⁶³) (the finaliser of splitmix64, chained)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & ((1 << 64) - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
        state ^= state >> 31
    return state & _MASK


@dataclass(frozen=True)
class Pick:
    """Which samples make a batch.

    Args:
        positions: `(B,)` positions in the dataset.
        cycles: `(B,)` how often each was visited before; keys its augmentation.
    """

    positions: Tensor
    cycles: Tensor


class Cycle:
    """An endless, reshuffled walk over positions; batch i of it is a pure function of i.

    Args:
        positions: `(n,)` positions in the dataset.
        batch_size: of one process.
        seed: of the order.
        whole_passes: end every pass with a short batch, instead of filling it from the next pass;
            a single sample that is left over joins the batch before, since a batch norm
            cannot train on one.
        shuffle: or keep the given order; then a process gets an empty batch where fewer samples
            than processes are left, in place of one that another process has.
        rank: of this process, among `world`; a global batch is dealt out among them.
        world: number of processes.
    """

    def __init__(
        self,
        positions: Tensor,
        batch_size: int,
        seed: int,
        whole_passes: bool,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.positions = positions
        self.batch = batch_size * world
        self.seed = seed
        self.whole_passes = whole_passes
        self.shuffle = shuffle
        self.rank, self.world = rank, world
        self._order: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Batches in one pass."""
        full, rest = divmod(len(self.positions), self.batch)
        alone = full == 0 or rest > 1 or (rest > 0 and not self.whole_passes)
        return full + 1 if alone else full

    def __getitem__(self, i: int) -> Pick:
        n = len(self.positions)
        if self.whole_passes:
            cycle, k = divmod(i, len(self))
            end = n if k == len(self) - 1 else (k + 1) * self.batch
            positions = self._pass(cycle)[k * self.batch : end]
            cycles = torch.full_like(positions, cycle)
        else:
            parts, start, left = [], i * self.batch, self.batch
            while left:
                cycle, offset = divmod(start, n)
                take = min(left, n - offset)
                parts.append((cycle, offset, offset + take))
                start, left = start + take, left - take
            positions = torch.cat([self._pass(c)[a:b] for c, a, b in parts])
            cycles = torch.cat([torch.full((b - a,), c) for c, a, b in parts])
        if self.world > 1:
            none_left = self.shuffle and len(positions) <= self.rank
            mine = slice(1) if none_left else slice(self.rank, None, self.world)
            positions, cycles = positions[mine], cycles[mine]
        return Pick(positions, cycles)

    def _pass(self, cycle: int) -> Tensor:
        if not self.shuffle:
            return self.positions
        if cycle not in self._order:
            generator = torch.Generator().manual_seed(mix(self.seed, cycle))
            order = torch.randperm(len(self.positions), generator=generator)
            self._order = {k: v for k, v in self._order.items() if k == cycle - 1}
            self._order[cycle] = self.positions[order]
        return self._order[cycle]


def plan(
    mode: str, walk: Callable[..., Cycle], by_forget: bool
) -> tuple[Callable[[int], Any], int]:
    """Which samples each step takes, as a model's `loader_mode` says.

    Args:
        mode: `paired`, `sequential`, `forget`, `retain`, `single_pass`, `train` or `retrain`.
        walk: `(name, whole_passes, shuffle)` → the cycle over `forget`, `retain` or `train`.
        by_forget: whether an epoch of steps that take both sets is a pass over the forget set, or
            over the retain set.

    Returns:
        Step number → picks, and the steps of an epoch.

    Raises:
        ValueError: there is no such mode.
    """
    if mode in ("train", "retrain"):
        only = walk("train" if mode == "train" else "retain", True)
        return only.__getitem__, len(only)
    if mode in ("forget", "retain"):
        only, other = walk(mode, True), "retain" if mode == "forget" else "forget"
        return lambda t: {mode: only[t], other: None}, len(only)
    if mode == "single_pass":
        f, r = walk("forget", True, False), walk("retain", True, False)
        return lambda t: {"forget": _left(f, t), "retain": _left(r, t)}, max(len(f), len(r))
    r = walk("retain", not by_forget)
    if mode == "paired":
        f = walk("forget", by_forget)
        return lambda t: {"forget": f[t], "retain": r[t]}, len(f if by_forget else r)
    if mode == "sequential":
        f = walk("forget", True)
        first, second = len(f), len(f) if by_forget else len(r)

        def step(t: int) -> dict[str, Pick | None]:
            epoch, k = divmod(t, first + second)
            if k < first:
                return {"forget": f[epoch * first + k], "retain": None}
            return {"forget": None, "retain": r[epoch * second + k - first]}

        return step, first + second
    msg = (
        "`loader_mode` must be paired, sequential, forget, retain, single_pass, train or retrain, "
        f"got {mode!r}"
    )
    raise ValueError(msg)


def _left(walk: Cycle, t: int) -> Pick | None:
    pick = walk[t] if t < len(walk) else None
    return pick if pick is not None and len(pick.positions) else None
