"""Image arrays by path: MNIST, CIFAR-10 and whatever else fits in an .npz archive."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.base import UnlearningDataModule
from datamodules.datasets import ArrayDataset, Pools
from datamodules.files import read_npz, split
from erasus_pl.requests import ForgetRequest

__all__ = ["ArrayDataModule", "crop_flip"]

Array = npt.NDArray[Any]

_PADDING = 4


def crop_flip(images: Tensor, keys: Tensor, padding: int = _PADDING) -> Tensor:
    """Pad images with black, crop them at random to their size, and mirror every other one.

    What happens to an image follows from its key alone: the batch around it does not matter.

    Args:
        images: `(B, C, H, W)`.
        keys: `(B,)` int64, uniform.
        padding: pixels on each side.

    Returns:
        `(B, C, H, W)`.
    """
    height, width = images.shape[-2:]
    shifts = 2 * padding + 1
    down, right, flip = keys % shifts, keys // shifts % shifts, keys // shifts**2 % 2 == 1
    rows = down[:, None] + torch.arange(height)
    columns = right[:, None] + torch.arange(width)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    padded = F.pad(images, [padding] * 4)
    image = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(images.shape[1])[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class ArrayDataModule(UnlearningDataModule):
    """Images and their classes in an .npz archive.

    Images are uint8 `(n, H, W)` or `(n, H, W, C)` in the file and float32 `(B, C, H, W)` in
    batches, divided by 255. Requests can name `target`, and `row`, the image's number in its
    array counted from 0.

    Args:
        path: the archive, relative to the working directory.
        train: keys of the training images and of their classes, whole numbers from 0.
        held_out: the same of what is held out; a number in (0, 1) holds out that part of `train`,
            the same whatever the request.
        columns: name of a column that requests can use → key of an array with one value for each
            training image.
        held_out_columns: the same for the images that are held out; not where they are a part of
            `train`.
        limit: train on the first so many images only.
        mean: to subtract from each channel, after the division by 255.
        std: to divide each channel by, after that.
        augment: `crop_flip` shifts training images by up to 4 pixels and mirrors half of them,
            another way in each pass; images that are measured stay as they are.
        request: what must go; none only to train an original.
        **options: of every datamodule, such as `batch_size`; see `UnlearningDataModule`.
    """

    def __init__(
        self,
        path: str,
        train: tuple[str, str] = ("x_train", "y_train"),
        held_out: tuple[str, str] | float = ("x_test", "y_test"),
        columns: dict[str, str] | None = None,
        held_out_columns: dict[str, str] | None = None,
        limit: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augment: Literal["crop_flip"] | None = None,
        request: ForgetRequest | None = None,
        **options: Any,
    ) -> None:
        super().__init__(request, **options)
        if limit is not None and limit < 2:
            msg = f"`limit` must be at least 2, got {limit}"
            raise ValueError(msg)
        if std is not None and min(std) <= 0:
            msg = f"`std` must be above 0, got {std}"
            raise ValueError(msg)
        if augment not in (None, "crop_flip"):
            msg = f"`augment` must be crop_flip or null, got {augment!r}"
            raise ValueError(msg)
        self.path = path
        self.train = train
        self.held_out = held_out
        self.column_keys = dict(columns or {})
        self.held_out_column_keys = dict(held_out_columns or {})
        self.limit = limit
        self.mean = mean
        self.std = std
        self.augment = augment

    def load(self) -> Pools:
        """Read the arrays, check them, and hold a part out where none is given."""
        images, target, columns = self._read(self.train, self.column_keys, "train")
        columns["row"] = np.arange(len(images))
        if isinstance(self.held_out, (int, float)):
            if self.held_out_column_keys:
                msg = "`held_out_columns` must be left out where `held_out` is a part of `train`"
                raise ValueError(msg)
            kept, out = split(len(images), self.held_out)
            held_images, held_target = images[out], target[out]
            held_columns = {name: values[out] for name, values in columns.items()}
            images, target = images[kept], target[kept]
            columns = {name: values[kept] for name, values in columns.items()}
        else:
            keys = self.held_out
            held_images, held_target, held_columns = self._read(
                keys, self.held_out_column_keys, "held_out"
            )
            if held_images.shape[1:] != images.shape[1:]:
                msg = (
                    f"`held_out`: images of {keys[0]!r} must have the shape of those of "
                    f"{self.train[0]!r}, {images.shape[1:]}, got {held_images.shape[1:]}"
                )
                raise ValueError(msg)
            held_columns["row"] = np.arange(len(held_images))
        images, target = images[: self.limit], target[: self.limit]
        columns = {name: values[: self.limit] for name, values in columns.items()}
        scale = self._scale(images)
        train = ArrayDataset(_tensors(images, target), scale, self._augmentation())
        held_out = ArrayDataset(_tensors(held_images, held_target), scale)
        return Pools(
            Path(self.path).name,
            train,
            held_out,
            {**columns, "target": target},
            {**held_columns, "target": held_target},
            {"input": images, "target": target},
        )

    def _read(
        self, keys: Sequence[str], columns: dict[str, str], field: str
    ) -> tuple[Array, Array, dict[str, Array]]:
        arrays = read_npz(self.path, [*keys, *columns.values()])
        images, target = (arrays[key] for key in keys)
        _check_images(images, f"`{field}`: images {keys[0]!r}")
        target = _checked_target(target, len(images), f"`{field}`: classes {keys[1]!r}")
        for name, key in columns.items():
            if arrays[key].shape != target.shape:
                msg = (
                    f"`columns`: {name!r} ({key!r} in the file) must have shape {target.shape}, "
                    f"one value per image, got {arrays[key].shape}"
                )
                raise ValueError(msg)
        return images, target, {name: arrays[key] for name, key in columns.items()}

    def _scale(self, images: Array) -> Any:
        channels = images.shape[3] if images.ndim == 4 else 1
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, channels):
                msg = f"`{name}` must have one number per channel, {channels}, got {values}"
                raise ValueError(msg)
        return _Scale(self.mean or [0.0], self.std or [1.0])

    def _augmentation(self) -> Any:
        return _augmented if self.augment else None


class _Scale:
    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.factor = (1 / (255 * torch.tensor(std))).view(-1, 1, 1)
        self.offset = (torch.tensor(mean) / torch.tensor(std)).view(-1, 1, 1)

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**batch, "input": batch["input"] * self.factor - self.offset}


def _augmented(batch: dict[str, Tensor], keys: Tensor) -> dict[str, Tensor]:
    return {**batch, "input": crop_flip(batch["input"], keys)}


def _tensors(images: Array, target: Array) -> dict[str, Tensor]:
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return {
        "input": torch.from_numpy(np.ascontiguousarray(images)),
        "target": torch.from_numpy(target.astype(np.int64)),
    }


def _check_images(images: Array, what: str) -> None:
    if images.dtype != np.uint8:
        msg = f"{what} must be uint8 with values 0 to 255, got {images.dtype}; convert them"
        raise ValueError(msg)
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 2, 3, 4)):
        hint = "; move the channels last" if images.ndim == 4 and images.shape[1] < 5 else ""
        msg = f"{what} must have shape (n, H, W) or (n, H, W, C), got {images.shape}{hint}"
        raise ValueError(msg)
    if len(images) < 2:
        msg = f"{what} must be 2 or more, got {len(images)}"
        raise ValueError(msg)


def _checked_target(target: Array, n: int, what: str) -> Array:
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.shape != (n,):
        msg = f"{what} must have shape ({n},), one for each image, got {target.shape}"
        raise ValueError(msg)
    if target.dtype.kind not in "iu" or target.min() < 0:
        low = f", the lowest {target.min()}" if target.dtype.kind in "iuf" else ""
        msg = f"{what} must be whole numbers from 0, got {target.dtype}{low}"
        raise ValueError(msg)
    return target
