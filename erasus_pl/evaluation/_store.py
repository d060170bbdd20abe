"""Strict JSON and atomic writing for reports."""

from __future__ import annotations

import datetime
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np

__all__ = ["replace_all", "strict_json"]


def strict_json(document: dict[str, Any]) -> str:
    """Return `document` as JSON that every parser accepts: no NaN, no Infinity.

    Raises:
        TypeError: A value has no JSON form; the message names its place.
    """
    plain = _plain(document, "evidence")
    return json.dumps(plain, allow_nan=False, ensure_ascii=False, indent=1) + "\n"


def _plain(value: Any, where: str) -> Any:
    """Reduce to what strict JSON holds; `where` names the place for the error."""
    match value:
        case None | bool() | str():
            return value
        case np.generic():
            return _plain(value.item(), where)
        case int():
            return int(value)
        case float():
            if math.isfinite(value):
                return float(value)
            return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
        case PurePath():
            return str(value)
        case datetime.date():
            return value.isoformat()
        case Mapping():
            return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        case np.ndarray():
            return _plain(value.tolist(), where)
    msg = (
        f"`{where}` is a {type(value).__name__}, which has no JSON form: "
        "give numbers, strings, lists or dicts"
    )
    raise TypeError(msg)


def replace_all(folder: Path, contents: dict[str, bytes]) -> None:
    """Write every file of `contents` under a temporary name, then rename them all."""
    mark = f"{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = {name: folder / f".{name}.{mark}" for name in contents}
    try:
        for name, content in contents.items():
            with temporary[name].open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name, path in temporary.items():
            path.replace(folder / name)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)
