"""The contract of a datamodule: split the training data by a forget request, and feed the steps."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import default_collate

from datamodules.datasets import MapDataset, Pools, View, refuse_overlap
from datamodules.loaders import Fetcher, StepLoader, SweepLoader
from datamodules.order import Cycle, mix, plan
from erasus_pl.requests import ForgetRequest, Manifest, fingerprint

__all__ = ["UnlearningDataModule"]

_RANDOM_HOLDOUT = "a random part of the held-out data"
_GIVEN_HOLDOUT = "the holdout data that was given"
_MATCHED_HOLDOUT = "the held-out data that the request matches"


class UnlearningDataModule(LightningDataModule):
    """Splits data into forget, retain, test and holdout set, and feeds strategies and tasks.

    Subclasses define `load() -> Pools`. The forget set is what the request names; the retain set
    the rest of the training data. Held-out data becomes the holdout set where the request is a
    predicate that matches it (a class, an attribute), the test set otherwise; for other requests
    it is split at random.

    Args:
        request: what must go; none only to train an original.
        batch_size: samples of a batch, per process.
        forget_batch_size: samples of a forget batch; `batch_size` if not given.
        epoch: which set's pass is an epoch of steps that take both sets. `forget` makes the cost
            follow the forget set or its coreset, `retain` passes over the whole retain set.
        holdout_fraction: part of the held-out data that becomes the holdout set, where the
            request does not say.
        num_workers: processes that fetch ahead.
        pin_memory: copy batches to pinned memory, for faster transfer to a GPU.
        collate: makes a batch of a list of dicts.
        seed: of the order of batches; that of `seed_everything` if not given.
    """

    def __init__(
        self,
        request: ForgetRequest | None = None,
        batch_size: int = 64,
        forget_batch_size: int | None = None,
        epoch: Literal["forget", "retain"] = "forget",
        holdout_fraction: float = 0.5,
        num_workers: int = 0,
        pin_memory: bool = False,
        collate: Callable | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("forget_batch_size", forget_batch_size)):
            if value is not None and value < 1:
                msg = f"`{name}` must be at least 1, got {value}"
                raise ValueError(msg)
        if not 0 < holdout_fraction < 1:
            msg = f"`holdout_fraction` must be in (0, 1), got {holdout_fraction}"
            raise ValueError(msg)
        if num_workers < 0:
            msg = f"`num_workers` must be at least 0, got {num_workers}"
            raise ValueError(msg)
        self.request = request
        self.batch_size = batch_size
        self.forget_batch_size = forget_batch_size or batch_size
        self.epoch = epoch
        self.holdout_fraction = holdout_fraction
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.collate = collate or default_collate
        self.seed = seed if seed is not None else int(os.environ.get("PL_GLOBAL_SEED", 0))
        self.step = 0
        self.manifest: Manifest | None = None
        self._coreset: Tensor | None = None
        self._part: Tensor | None = None
        self._weights: Tensor | None = None
        self._pools: Pools | None = None
        self._fingerprint: str | None = None

    def load(self) -> Pools:
        """Read the data."""
        msg = f"{type(self).__name__} must define `load`"
        raise NotImplementedError(msg)

    def setup(self, stage: str | None = None) -> None:
        """Load the data and split it by the request; once."""
        self.step = 0
        if self._pools is None:
            self._pools = self.load()
            self._split(self._pools)
        self.use_part(None)
        if stage == "fit" and self.request is None and self._mode() != "train":
            name = type(getattr(self.trainer, "lightning_module", None)).__name__
            msg = (
                f"`request`: {name} needs to know what must go; give a forget request, such as "
                "ForgetClass or ForgetRandom"
            )
            raise ValueError(msg)

    def use_coreset(self, indices: Tensor | None, weights: Tensor | None = None) -> None:
        """Narrow the forget batches to a coreset.

        Args:
            indices: `(k,)` positions into `forget_set`; none for all of it.
            weights: `(k,)` weights of those samples in every mean.
        """
        self._coreset = None if indices is None else self.forget_set.positions[indices]
        self._weights = None
        if weights is not None and self._coreset is not None:
            self._weights = torch.ones(len(self.train_set))
            self._weights[self._coreset] = weights.float()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the training data, after `setup`."""
        if self._fingerprint is None:
            if self._pools is None:
                msg = "there is no fingerprint before `setup`; call setup() first"
                raise RuntimeError(msg)
            pools = self._pools
            self._fingerprint = fingerprint(pools.content or pools.columns, len(pools.train))
        return self._fingerprint

    def use_part(self, forget: Tensor | None, retain: Tensor | None = None) -> None:
        """Narrow both sets to a part of the request, none for all; validation sees all of it.

        Args:
            forget: `(k,)` ascending training positions; steps take all of them, coreset or not.
            retain: `(m,)` ascending training positions; the retain set's if not given.
        """
        self.forget_set, self.retain_set = self._whole
        self._part = forget
        if forget is not None:
            self.forget_set = View(self.train_set, forget)
        if retain is not None:
            self.retain_set = View(self.train_set, retain)

    def retaining(self, positions: Tensor) -> "UnlearningDataModule":
        """A copy, of the same data in memory, whose retain set is other training positions.

        Args:
            positions: `(m,)` ascending positions in `train_set`.
        """
        other = copy.copy(self)
        other._whole = (self._whole[0], View(self.train_set, positions))
        other.use_part(None)
        return other

    @property
    def coreset(self) -> Tensor | None:
        """`(k,)` training positions of the coreset, where there is one."""
        return self._coreset

    def train_dataloader(self) -> StepLoader:
        """The steps of an epoch, as the model's `loader_mode` says."""
        rank, world = self._rank()
        plan, length = self._plan(self._mode(), rank, world)
        return StepLoader(
            Fetcher(self.train_set, self.seed, self._weights, self.collate, augment=True),
            plan,
            length,
            self._progress,
            self._advance,
            self.seed,
            rank,
            self.num_workers,
            self.pin_memory,
        )

    def val_dataloader(self) -> list[SweepLoader]:
        """Forget, retain, test and holdout set, in this order."""
        rank, world = self._rank()
        splits = (*self._whole, self.test_set, self.holdout_set)
        # A rank without a sample would wait for the others where they gather what they logged.
        dealt = (s.positions[rank if len(s) > rank else 0 :: world] for s in splits)
        return [self.sweep(View(s.dataset, part)) for s, part in zip(splits, dealt, strict=True)]

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader

    def sweep(self, dataset: MapDataset) -> SweepLoader:
        """Every sample of a set once, in order, as batches."""
        if not isinstance(dataset, View):
            dataset = View(dataset, torch.arange(len(dataset)))
        fetcher = Fetcher(dataset.dataset, self.seed, None, self.collate)
        return SweepLoader(fetcher, dataset.positions, self.batch_size, self.num_workers)

    def training_batches(self, positions: Tensor, seed: int) -> StepLoader:
        """Passes over part of the training data for a single process, reshuffled each time.

        Args:
            positions: `(n,)` positions in `train_set`, at least one.
            seed: of the order and of all that a step draws.
        """
        fetcher = Fetcher(self.train_set, seed, None, self.collate, augment=True)
        walk = Cycle(positions, self.batch_size, seed, whole_passes=True)
        return StepLoader(
            fetcher, walk.__getitem__, len(walk), None, None, seed, 0, self.num_workers,
            self.pin_memory,
        )  # fmt: skip

    def forget_batches(self) -> Iterator[dict[str, Any]]:
        """The forget set, or its coreset, once and in order, on the model's device."""
        part = View(self.train_set, self._spent_on())
        yield from self._on_device(map(self._weighted, self.sweep(part)))

    def retain_batches(self) -> Iterator[dict[str, Any]]:
        """The retain set once and in order, on the model's device."""
        yield from self._on_device(self.sweep(self.retain_set))

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: how far it was, and what was asked."""
        return {"step": self.step, "manifest": self.manifest.to_dict() if self.manifest else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a checkpoint was made, if it was made for the same request and data."""
        before, now = state_dict["manifest"], self.manifest
        if before is not None and now is not None:
            differences = now.differences(Manifest.from_dict(before))
            if differences:
                msg = (
                    "the checkpoint was made for another request or other data: "
                    f"{'; '.join(differences)}; resume with what it was made for, or start anew "
                    "without --ckpt_path"
                )
                raise ValueError(msg)
        self.step = state_dict["step"]

    def _split(self, pools: Pools) -> None:
        n, m = len(pools.train), len(pools.held_out)
        forget = np.empty(0, dtype=np.int64)
        holdout, drawn = self._random_holdout(m), _RANDOM_HOLDOUT
        if self.request is not None:
            forget = self.request.resolve(pools.columns, n)
            matched = self.request.matches(pools.held_out_columns, m)
            if matched is not None and 0 < matched.sum() < m:
                holdout, drawn = matched, _MATCHED_HOLDOUT
            refuse_overlap(pools, forget)
        if pools.holdout is not None:
            holdout, drawn = pools.holdout, _GIVEN_HOLDOUT
        kept = np.ones(n, dtype=bool)
        kept[forget] = False
        self.train_set = pools.train
        self.forget_set = View(pools.train, torch.from_numpy(forget))
        self.retain_set = View(pools.train, torch.from_numpy(np.flatnonzero(kept)))
        self._whole: tuple[View, View] = (self.forget_set, self.retain_set)
        self.test_set = View(pools.held_out, torch.from_numpy(np.flatnonzero(~holdout)))
        self.holdout_set = View(pools.held_out, torch.from_numpy(np.flatnonzero(holdout)))
        if self.request is not None:
            self.manifest = Manifest.create(
                dataset=pools.name,
                fingerprint=self.fingerprint,
                request=self.request,
                forget=forget,
                train=n,
                test=len(self.test_set),
                holdout=len(self.holdout_set),
                holdout_drawn=drawn,
            )

    def _random_holdout(self, m: int) -> np.ndarray:
        chosen = np.zeros(m, dtype=bool)
        order = np.argsort(np.random.PCG64(m).random_raw(m), kind="stable")
        chosen[order[: round(self.holdout_fraction * m)]] = True
        return chosen

    def _plan(self, mode: str, rank: int, world: int) -> tuple[Callable[[int], Any], int]:
        positions = {
            "train": torch.arange(len(self.train_set)),
            "retain": self.retain_set.positions,
            "forget": self._spent_on(),
        }

        def walk(name: str, whole_passes: bool, shuffle: bool = True) -> Cycle:
            size = self.forget_batch_size if name == "forget" else self.batch_size
            seed = mix(self.seed, list(positions).index(name))
            return Cycle(positions[name], size, seed, whole_passes, shuffle, rank, world)

        fewest = min(len(positions["forget"]), len(self.retain_set))
        if mode == "single_pass" and fewest < world:
            msg = (
                f"`trainer.devices`: {world} processes cannot share {fewest} samples in one pass; "
                "use fewer processes"
            )
            raise ValueError(msg)
        return plan(mode, walk, self.epoch == "forget")

    def _spent_on(self) -> Tensor:
        if self._part is not None:
            return self._part
        return self.forget_set.positions if self._coreset is None else self._coreset

    def _mode(self) -> str:
        module = getattr(self.trainer, "lightning_module", None)
        return getattr(module, "loader_mode", "train" if self.request is None else "paired")

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _progress(self) -> tuple[int, int]:
        if self.trainer is None or not self.trainer.training:
            return self.step, 0
        return self.step, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _advance(self) -> None:
        self.step += 1

    def _weighted(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._weights is not None:
            batch["weight"] = self._weights[batch["index"]]
        return batch

    def _on_device(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        trainer: Any = self.trainer
        for batch in batches:
            yield trainer.strategy.batch_to_device(batch)
