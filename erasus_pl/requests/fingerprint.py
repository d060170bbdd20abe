"""A stable name for the exact bytes of a data set."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from erasus_pl.requests.errors import ForgetRequestError

__all__ = ["fingerprint"]

_CHUNK = 1 << 16


def fingerprint(
    columns_or_arrays: Mapping[str, npt.ArrayLike] | Sequence[npt.ArrayLike], n: int
) -> str:
    """SHA-256 over the names, types, shapes and values of some arrays.

    Any change of a value, a dtype (byte order included), a shape or a name changes the result;
    memory layout does not, nor the order of a mapping. Arrays are read in place; those that are
    not contiguous go through a buffer of 65,536 elements, never through a whole copy.

    Args:
        columns_or_arrays: Arrays by name, or in order, of any shape. Object arrays may hold
            None, booleans, numbers, text, bytes, dates, and lists or arrays of them.
        n: Number of samples, which is part of the fingerprint.

    Returns:
        64 hexadecimal digits.

    Raises:
        ForgetRequestError: An array holds records or other Python objects, which have no stable
            bytes.
    """
    digest = hashlib.sha256(b"erasus_pl fingerprint 1\n")
    named: list[tuple[str, npt.ArrayLike]]
    if isinstance(columns_or_arrays, Mapping):
        named = sorted(columns_or_arrays.items())
        _feed(digest, b"mapping")
    else:
        named = [(str(at), array) for at, array in enumerate(columns_or_arrays)]
        _feed(digest, b"sequence")
    _feed(digest, f"{n} {len(named)}".encode())
    for name, array in named:
        _feed(digest, name.encode("utf-8", "surrogatepass"))
        _feed_array(digest, np.asarray(array), name)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, data: bytes) -> None:
    digest.update(struct.pack("<Q", len(data)))
    digest.update(data)


def _feed_array(digest: hashlib._Hash, array: npt.NDArray[Any], name: str) -> None:
    if array.dtype.kind == "T":
        array = array.astype(object)
    if array.dtype.kind == "V":
        msg = f"array `{name}` must be of a plain dtype, got {array.dtype}; give its fields apart"
        raise ForgetRequestError(msg)
    _feed(digest, f"{array.dtype.str} {array.shape}".encode())
    if array.dtype.hasobject:
        for item in array.flat:
            _feed_object(digest, item, name)
    elif array.nbytes == 0:
        return
    elif array.flags.c_contiguous:
        digest.update(array.reshape(-1).view(np.uint8).data)
    else:
        walk = np.nditer(array, flags=["external_loop", "buffered"], order="C", buffersize=_CHUNK)
        for chunk in walk:
            digest.update(np.asarray(chunk).tobytes())


def _feed_object(digest: hashlib._Hash, item: object, name: str) -> None:
    """Feed one Python object, tagged with its type and length so that no two read the same."""
    if isinstance(item, np.ndarray):
        digest.update(b"a")
        _feed_array(digest, item, name)
    elif isinstance(item, (np.datetime64, np.timedelta64)):
        digest.update(b"t")
        _feed_array(digest, np.asarray(item), name)
    elif isinstance(item, (list, tuple)):
        _feed(digest, f"l{len(item)}".encode())
        for part in item:
            _feed_object(digest, part, name)
    else:
        _feed(digest, _scalar_bytes(item.item() if isinstance(item, np.generic) else item, name))


def _scalar_bytes(item: object, name: str) -> bytes:
    if item is None:
        return b"n"
    if isinstance(item, (bool, int)):
        return f"{'b' if isinstance(item, bool) else 'i'}{int(item)}".encode()
    if isinstance(item, float):
        return b"f" + struct.pack("<d", item)
    if isinstance(item, str):
        return b"s" + item.encode("utf-8", "surrogatepass")
    if isinstance(item, bytes):
        return b"y" + item
    if isinstance(item, date):
        return b"d" + item.isoformat().encode()
    msg = (
        f"array `{name}` must hold numbers, text, bytes, dates or lists of them, "
        f"got {type(item).__name__}"
    )
    raise ForgetRequestError(msg)
