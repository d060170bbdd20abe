"""The record of one forget request against one data set.

It travels with checkpoints and reports, so that a reader can tell exactly what was to be
forgotten, and a resumed run can tell that it still is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import erasus_pl
from erasus_pl.requests.base import ForgetRequest, _field_differences, _request_difference
from erasus_pl.requests.errors import _listing

__all__ = ["Manifest", "ManifestError", "sha256_of_ids"]

_COUNTS = ("train", "forget", "retain", "test", "holdout")


class ManifestError(ValueError):
    """A manifest that is missing, damaged or contradicts itself; one line."""


def sha256_of_ids(ids: npt.ArrayLike) -> str:
    """SHA-256 of the sorted ids as little-endian int64.

    Args:
        ids: Integer positions, shape ``(k,)``, in any order.

    Returns:
        64 hexadecimal digits.
    """
    return hashlib.sha256(np.sort(np.asarray(ids)).astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What was to be forgotten, from which data, and what was left to compare with.

    Attributes:
        dataset: Name of the data set.
        fingerprint: :func:`erasus_pl.requests.fingerprint` of the training data.
        request: :meth:`ForgetRequest.to_dict` of the request.
        description: :meth:`ForgetRequest.describe` of the request.
        counts: Samples in train, forget, retain, test and holdout.
        forget_sha256: :func:`sha256_of_ids` of the forget set's training positions.
        holdout: How the holdout set was drawn, in words.
        version: Version of the package that wrote the manifest.
    """

    dataset: str
    fingerprint: str
    request: dict[str, Any]
    description: str
    counts: dict[str, int]
    forget_sha256: str
    holdout: str
    version: str

    def __post_init__(self) -> None:
        """Refuse fields of another type and counts that contradict each other."""
        for field in fields(self):
            kind = dict if field.name in ("request", "counts") else str
            value = getattr(self, field.name)
            if not isinstance(value, kind):
                msg = f"manifest `{field.name}` must be a {kind.__name__}, got {value!r}"
                raise ManifestError(msg)
        if sorted(self.counts) != sorted(_COUNTS):
            msg = f"manifest `counts` must have {_listing(_COUNTS)}, got {_listing([*self.counts])}"
            raise ManifestError(msg)
        for name, count in self.counts.items():
            if type(count) is not int or count < 0:
                msg = f"manifest `counts.{name}` must be a whole number >= 0, got {count!r}"
                raise ManifestError(msg)
        train, forget, retain = (self.counts[name] for name in _COUNTS[:3])
        if forget + retain != train:
            msg = (
                "manifest `counts` must have forget + retain = train, "
                f"got {forget} + {retain} and {train}"
            )
            raise ManifestError(msg)

    @classmethod
    def create(
        cls,
        *,
        dataset: str,
        fingerprint: str,
        request: ForgetRequest,
        forget: npt.ArrayLike,
        train: int,
        test: int,
        holdout: int,
        holdout_drawn: str,
    ) -> Manifest:
        """The manifest of a request that has been resolved.

        Args:
            dataset: Name of the data set.
            fingerprint: Fingerprint of the training data.
            request: The request.
            forget: Its positions in the training set, shape ``(k,)``.
            train: Number of training samples.
            test: Number of test samples.
            holdout: Number of holdout samples.
            holdout_drawn: How the holdout set was drawn, in words.
        """
        size = int(np.size(forget))
        return cls(
            dataset=dataset,
            fingerprint=fingerprint,
            request=request.to_dict(),
            description=request.describe(),
            counts={
                "train": int(train),
                "forget": size,
                "retain": int(train) - size,
                "test": int(test),
                "holdout": int(holdout),
            },
            forget_sha256=sha256_of_ids(forget),
            holdout=holdout_drawn,
            version=erasus_pl.__version__,
        )

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain JSON types, safe for a ``weights_only=True`` checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Manifest:
        """The manifest that :meth:`to_dict` gave.

        Raises:
            ManifestError: A field is missing, unknown or of another type.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in data]
        unknown = [name for name in data if name not in names]
        if missing or unknown:
            what = f"lacks {_listing(missing)}" if missing else f"has unknown {_listing(unknown)}"
            msg = f"manifest {what}; it must have {_listing(names)}"
            raise ManifestError(msg)
        return cls(**data)

    def write(self, path: str | Path) -> None:
        """Write the manifest as JSON; a reader sees the old file or the new one, never half.

        Args:
            path: The file; its folder must exist.
        """
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        try:
            with part.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | Path) -> Manifest:
        """Read what :meth:`write` wrote.

        Raises:
            ManifestError: The file is missing, is no JSON, or is no manifest.
        """
        try:
            data = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            msg = f"manifest must be a readable file, got {path}: {error.strerror or error}"
            raise ManifestError(msg) from error
        except ValueError as error:
            msg = f"manifest must be valid JSON, got {path}: {error}"
            raise ManifestError(msg) from error
        if not isinstance(data, dict):
            msg = f"manifest must be a JSON object, got {type(data).__name__} in {path}"
            raise ManifestError(msg)
        return cls.from_dict(data)

    def differences(self, other: Manifest) -> list[str]:
        """What changed since `other`, the earlier manifest; empty when the task is the same.

        The description and the package version are left out: they are wording, not data.

        Returns:
            One line per differing field: ``counts.forget was 10, is now 12``.
        """
        lines = _request_difference(other.request, self.request)
        lines += _field_differences(other.counts, self.counts, "counts.")
        plain = ("dataset", "fingerprint", "forget_sha256", "holdout")
        return lines + _field_differences(
            {name: getattr(other, name) for name in plain},
            {name: getattr(self, name) for name in plain},
        )
