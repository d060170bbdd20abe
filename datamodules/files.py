"""Reading data files: archives of arrays, tables, and the split that every run shares."""

import csv
import difflib
import gzip
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from erasus_pl._extras import require

__all__ = ["check_file", "named", "read_npz", "read_table", "split"]

Array = npt.NDArray[Any]

_MISSING = ("", "na", "n/a", "nan", "null")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError)


def check_file(path: str, field: str = "path") -> Path:
    """The path, if there is such a file.

    Args:
        path: Relative to the working directory, or absolute; `~` is the home directory.
        field: The argument it was given in.

    Raises:
        FileNotFoundError: There is no such file.
    """
    found = Path(path).expanduser()
    if not found.is_file():
        what = "is a folder" if found.is_dir() else "does not exist"
        msg = f"`{field}` must be a file, and {path!r} {what} (looked in {Path.cwd()})"
        raise FileNotFoundError(msg)
    return found


def named(name: str, known: Iterable[str], field: str, where: object) -> str:
    """The name, if it is known.

    Args:
        name: What was given.
        known: What there is.
        field: The argument it was given in.
        where: The file that was searched.

    Raises:
        ValueError: It is not there; the message says what is.
    """
    known = list(known)
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    msg = f"`{field}`: there is no {name!r} in {where}, which has {shown}{hint}"
    raise ValueError(msg)


def split(n: int, held_out: float) -> tuple[Array, Array]:
    """Positions to train on and positions to hold out, the same in every run and on every machine.

    Args:
        n: Number of samples.
        held_out: Part that is held out, in (0, 1).

    Returns:
        `(n - m,)` and `(m,)` ascending positions, each at least two.

    Raises:
        ValueError: `held_out` is no such part, or leaves a side with fewer than two samples.
    """
    if not 0 < held_out < 1:
        msg = f"`held_out` must be in (0, 1), got {held_out}"
        raise ValueError(msg)
    m = round(held_out * n)
    if m < 2 or n - m < 2:
        msg = f"`held_out` must leave 2 samples or more on each side, got {held_out} of {n}"
        raise ValueError(msg)
    order = np.argsort(np.random.PCG64(0).random_raw(n), kind="stable")
    return np.sort(order[m:]), np.sort(order[:m])


def read_npz(path: str, keys: Sequence[str] | None = None, field: str = "path") -> dict[str, Array]:
    """Arrays of an .npz archive; Python objects in it are never unpickled.

    Args:
        path: The archive.
        keys: Which arrays; all of them if not given.
        field: The argument that `path` was given in.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no archive of plain arrays, is damaged, or lacks a key.
    """
    file = check_file(path, field)
    try:
        archive = np.load(file, allow_pickle=False)
    except _DAMAGED as error:
        msg = f"`{field}` must be an .npz archive of arrays, and {path!r} is damaged or is none"
        raise ValueError(msg) from error
    if isinstance(archive, np.ndarray):
        msg = f"`{field}` must be an .npz archive, and {path!r} is one array; use np.savez"
        raise ValueError(msg)
    with archive:
        wanted = [named(key, archive.files, field, path) for key in keys or archive.files]
        arrays = {}
        for key in wanted:
            try:
                arrays[key] = archive[key]
            except _DAMAGED as error:
                msg = (
                    f"`{field}`: array {key!r} of {path!r} is damaged or holds Python objects; "
                    "save it as a plain numeric or text array"
                )
                raise ValueError(msg) from error
    return arrays


def read_table(path: str, field: str = "path") -> dict[str, Array]:
    """The columns of a table by name.

    Args:
        path: A `.csv` or `.csv.gz` with a header, a `.parquet` (extra `tabular`) or an `.npz`.
        field: The argument that `path` was given in.

    Returns:
        Arrays whose first dimension counts rows; only those of an .npz have a second. Columns of
        a CSV become int64 or float64 where every cell is a number or missing, text otherwise.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is of another kind, is damaged, or is no table.
    """
    file = check_file(path, field)
    name = file.name.lower()
    if name.endswith((".csv", ".csv.gz")):
        return _read_csv(file, field)
    if name.endswith((".parquet", ".pq")):
        return _read_parquet(file, field)
    if name.endswith(".npz"):
        return read_npz(path, field=field)
    msg = f"`{field}` must end in .csv, .csv.gz, .parquet or .npz, got {path!r}"
    raise ValueError(msg)


def _read_csv(path: Path, field: str) -> dict[str, Array]:
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            rows = [(reader.line_num, row) for row in reader if row]
    except (OSError, EOFError, zlib.error, csv.Error, UnicodeDecodeError) as error:
        msg = f"`{field}` must be a table in UTF-8, and {str(path)!r} could not be read: {error}"
        raise ValueError(msg) from error
    if len(rows) < 2:
        msg = f"`{field}` must have a header and rows, got {len(rows)} lines in {str(path)!r}"
        raise ValueError(msg)
    header = [cell.strip() for cell in rows[0][1]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        msg = f"`{field}`: {str(path)!r} has {twice[0]!r} more than once in its header; rename one"
        raise ValueError(msg)
    for line, row in rows[1:]:
        if len(row) != len(header):
            msg = (
                f"`{field}`: line {line} of {str(path)!r} has {len(row)} cells, its header "
                f"{len(header)}; quote cells that hold commas"
            )
            raise ValueError(msg)
    cells = zip(*(row for _, row in rows[1:]), strict=True)
    return {name: _typed(np.array(column)) for name, column in zip(header, cells, strict=True)}


def _typed(cells: Array) -> Array:
    cells = np.char.strip(cells)
    missing = np.isin(np.char.lower(cells), _MISSING)
    if missing.all():
        return cells
    kinds: tuple[type, ...] = (np.float64,) if missing.any() else (np.int64, np.float64)
    for kind in kinds:
        try:
            return np.where(missing, "nan", cells).astype(kind)
        except (ValueError, OverflowError):
            continue
    return cells


def _read_parquet(path: Path, field: str) -> dict[str, Array]:
    arrow = require("pyarrow", "tabular")
    parquet = require("pyarrow.parquet", "tabular")
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        msg = f"`{field}` must be a Parquet file, and {str(path)!r} could not be read: {reason}"
        raise ValueError(msg) from error
    columns: Mapping[str, Any] = {name: table[name] for name in table.column_names}
    return {name: np.asarray(column.to_numpy()) for name, column in columns.items()}
