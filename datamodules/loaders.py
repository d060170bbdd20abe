"""Loaders whose order is a pure function of a seed and a step, so that a resumed run is exact.

Stock shuffling loaders lose their order, their augmentation and their random state when a run is
resumed. Here step t always yields the same samples, drawn with the same random numbers, whatever
the number of workers: nothing but t has to be remembered.
"""

import random
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datamodules.order import Pick, mix

__all__ = ["Fetcher", "StepLoader", "SweepLoader", "ignore_signals"]


class Fetcher(Dataset):
    """Turns picks into batches: dicts with `index`, and `weight` where weights are given.

    Items that are `(x, y)` become `input` and `target`. What an item draws at random (an
    augmentation) is keyed by seed, cycle and position, and so the same in any worker. A dataset
    with a `batch(positions)` of its own is read a batch at a time; one that also has `augment` gets
    those keys as `batch(positions, keys)` where batches are for training.

    Args:
        dataset: yields `(x, y)` pairs or dicts.
        seed: of what items draw.
        weights: `(n,)` weights of samples of the forget set.
        collate: makes a batch of a list of dicts.
        augment: whether batches are for training.
    """

    def __init__(
        self,
        dataset: Any,
        seed: int,
        weights: Tensor | None = None,
        collate: Callable = default_collate,
        augment: bool = False,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.weights = weights
        self.collate = collate
        self.augment = augment and getattr(dataset, "augment", None) is not None

    def __getitem__(self, picks: dict[str, Pick | None] | Pick) -> Any:
        if isinstance(picks, Pick):
            return self.batch(picks)
        return {
            name: None if pick is None else self.batch(pick, name == "forget")
            for name, pick in picks.items()
        }

    def batch(self, pick: Pick, weighted: bool = False) -> dict[str, Any]:
        """One collated batch."""
        fetch = getattr(self.dataset, "batch", None)
        if fetch is not None:
            keys = (_keys(self.seed, pick),) if self.augment else ()
            batch = dict(fetch(pick.positions, *keys))
        else:
            with _random_state_kept():
                rows = []
                for position, cycle in zip(
                    pick.positions.tolist(), pick.cycles.tolist(), strict=True
                ):
                    _seed_all(mix(self.seed, cycle, position))
                    rows.append(_as_dict(self.dataset[position]))
            batch = self.collate(rows)
        batch["index"] = pick.positions
        if weighted and self.weights is not None:
            batch["weight"] = self.weights[pick.positions]
        return batch


class StepLoader:
    """Yields the batches of the steps that are left in the epoch.

    Before each batch the global random state is set from (seed, rank, step), so that whatever a
    step draws (dropout, noise, random labels) is the same after a resume.

    Args:
        fetcher: makes batches.
        plan: step number → picks; a pure function.
        length: steps of an epoch.
        progress: `(step, done)`: the next step's number and how many of this epoch are done; if
            not given, a loader counts for itself and no epoch of it is resumed.
        advance: called after each batch is handed out; given with `progress`.
        seed: of the random state of steps.
        rank: of this process.
        num_workers: processes that fetch ahead.
        pin_memory: copy batches to pinned memory, for faster transfer to a GPU.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        plan: Callable[[int], Any],
        length: int,
        progress: Callable[[], tuple[int, int]] | None,
        advance: Callable[[], None] | None,
        seed: int,
        rank: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.fetcher = fetcher
        self.plan = plan
        self.length = length
        self._handed_out = 0
        self.progress = progress or (lambda: (self._handed_out, 0))
        self.advance = advance or self._count
        self.seed = mix(seed, rank)
        self.num_workers = num_workers
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        step, done = self.progress()
        steps = range(step, step + self.length - done)
        batches = _fetch(self.fetcher, map(self.plan, steps), self.num_workers, self.pin_memory)
        for number, batch in zip(steps, batches, strict=True):
            self.advance()
            _seed_all(mix(self.seed, number))
            yield batch

    def _count(self) -> None:
        self._handed_out += 1


class SweepLoader:
    """Every given position once, in order: for measuring.

    Args:
        fetcher: makes batches.
        positions: `(n,)` positions in its dataset.
        batch_size: samples of a batch.
        num_workers: processes that fetch ahead.
    """

    def __init__(
        self, fetcher: Fetcher, positions: Tensor, batch_size: int, num_workers: int = 0
    ) -> None:
        self.fetcher = fetcher
        self.positions = positions
        self.batch_size = batch_size
        self.num_workers = num_workers

    def __len__(self) -> int:
        return -(-len(self.positions) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        chunks = self.positions.split(self.batch_size) if len(self.positions) else ()
        picks = (Pick(chunk, torch.zeros_like(chunk)) for chunk in chunks)
        yield from _fetch(self.fetcher, picks, self.num_workers, False)


def ignore_signals(_: int = 0) -> None:
    """Worker processes leave the signals of a job scheduler to the main process."""
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def _fetch(
    fetcher: Fetcher, picks: Iterable[Any], num_workers: int, pin_memory: bool
) -> Iterator[Any]:
    if num_workers == 0 and not pin_memory:
        yield from map(fetcher.__getitem__, picks)
        return
    yield from DataLoader(
        fetcher,
        batch_size=None,
        sampler=picks,
        num_workers=num_workers,
        collate_fn=_identity,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=ignore_signals,
        pin_memory=pin_memory,
    )


def _identity(batch: Any) -> Any:
    return batch


def _keys(seed: int, pick: Pick) -> Tensor:
    rows = zip(pick.cycles.tolist(), pick.positions.tolist(), strict=True)
    return torch.tensor([mix(seed, cycle, position) for cycle, position in rows])


def _as_dict(item: Any) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return {"input": item[0], "target": item[1]}
    msg = (
        f"a dataset must yield (input, target) pairs or dicts, got {type(item).__name__}"
        f"{f' of length {len(item)}' if isinstance(item, (tuple, list)) else ''}"
    )
    raise TypeError(msg)


def _seed_all(seed: int) -> None:
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    kept = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])
