"""Handwritten digits, shipped with scikit-learn (UCI Optical Recognition of Handwritten Digits)."""

from typing import Literal

import numpy as np
import torch

from datamodules.base import UnlearningDataModule
from datamodules.datasets import ArrayDataset, Pools
from erasus_pl.requests import ForgetRequest

__all__ = ["DigitsDataModule"]


class DigitsDataModule(UnlearningDataModule):
    """1,797 images of digits, 8×8, values in [0, 1]; 10 classes.

    Args:
        request: what must go; none only to train an original.
        held_out: part of the images that the original is never trained on.
        batch_size: samples of a batch, per process.
        forget_batch_size: samples of a forget batch; `batch_size` if not given.
        epoch: which set's pass is an epoch of steps that take both sets.
        num_workers: processes that fetch ahead.
    """

    def __init__(
        self,
        request: ForgetRequest | None = None,
        held_out: float = 0.4,
        batch_size: int = 64,
        forget_batch_size: int | None = None,
        epoch: Literal["forget", "retain"] = "forget",
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            request, batch_size, forget_batch_size, epoch=epoch, num_workers=num_workers
        )
        if not 0 < held_out < 1:
            msg = f"`held_out` must be in (0, 1), got {held_out}"
            raise ValueError(msg)
        self.held_out = held_out

    def load(self) -> Pools:
        """Read the images and hold a part of them out, always the same."""
        from sklearn.datasets import load_digits

        images, target = load_digits(return_X_y=True)
        images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
        order = np.random.default_rng(0).permutation(len(target))
        parts = np.split(order, [round((1 - self.held_out) * len(order))])
        train, held_out = (
            ArrayDataset(
                {
                    "input": torch.from_numpy(images[part]),
                    "target": torch.from_numpy(target[part]).long(),
                }
            )
            for part in parts
        )
        return Pools(
            "digits",
            train,
            held_out,
            {"target": target[parts[0]], "id": parts[0]},
            {"target": target[parts[1]], "id": parts[1]},
            {"input": images[parts[0]], "target": target[parts[0]]},
        )
