"""What every script here stands on: clocks, medians and their spread, the last line of JSON."""

import argparse
import contextlib
import json
import math
import os
import pty
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # measure this checkout, installed or not
os.environ.setdefault("OMP_NUM_THREADS", "1")

__all__ = [
    "ROOT", "Target", "children", "clock", "interleave", "options", "report", "summary", "terminal",
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A figure that is promised.

    Args:
        figure: its name among the figures.
        limit: its largest value, or its smallest where `at_least`.
        at_least: whether more is better.
    """

    figure: str
    limit: float
    at_least: bool = False

    def holds(self, value: float | None) -> bool:
        """Whether a measured value keeps the promise."""
        if value is None or not math.isfinite(value):
            return False
        return value >= self.limit if self.at_least else value <= self.limit


def options(doc: str) -> argparse.ArgumentParser:
    """The arguments that all scripts take: `--quick`, and `--help` from the script's docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats: under 50 s")
    return parser


def clock() -> tuple[float, float]:
    """CPU seconds of this process and wall seconds, of one moment."""
    return time.process_time(), time.perf_counter()


def children() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def interleave(
    sides: dict[str, Callable[[], tuple[float, float]]],
    repeats: int,
    seconds: float = math.inf,
) -> dict[str, dict[str, list[float]]]:
    """Run all sides in turn, every second round backwards, so that a machine's moods hit all.

    Args:
        sides: name → runs once and returns `(cpu, wall)` seconds.
        repeats: number of rounds.
        seconds: wall seconds for all rounds; none begins that would not end in time, but the first.

    Returns:
        name → `{"cpu": [...], "wall": [...]}`, one value a round.
    """
    taken: dict[str, dict[str, list[float]]] = {n: {"cpu": [], "wall": []} for n in sides}
    start = time.perf_counter()
    for i in range(repeats):
        if i and (time.perf_counter() - start) * (i + 1) / i > seconds:
            break
        for name in list(sides) if i % 2 == 0 else reversed(sides):
            cpu, wall = sides[name]()
            taken[name]["cpu"].append(cpu)
            taken[name]["wall"].append(wall)
    return taken


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """Standard output and error on a pseudo-terminal that another process empties."""
    master, slave = pty.openpty()
    reader = subprocess.Popen(
        ["cat"], stdin=master, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(master)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    os.dup2(slave, 1)
    os.dup2(slave, 2)
    os.close(slave)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, old in zip((1, 2), kept, strict=True):
            os.dup2(old, fd)
            os.close(old)
        reader.wait()


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, to four digits."""
    ordered = sorted(values)
    low, middle, high = (
        statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else ordered * 3
    )
    found = {"median": middle, "low": low, "high": high}
    return {**{k: float(f"{v:.4g}") for k, v in found.items()}, "n": len(ordered)}


def report(
    area: str, name: str, figures: dict[str, Any], targets: Sequence[Target], **more: Any
) -> int:
    """Print each target's fate, then the last line: one JSON object. Returns the exit status.

    Args:
        area: of the benchmark, such as `foundation`.
        name: of the benchmark.
        figures: what was measured; those with a target are numbers.
        targets: what was promised.
        **more: further entries of the JSON object, such as `quick`.
    """
    judged = {}
    for target in targets:
        value = figures.get(target.figure)
        held = target.holds(value)
        bound = ">=" if target.at_least else "<="
        fate = "ok " if held else "RED"
        print(f"{fate} {target.figure} = {value} (target {bound} {target.limit})")
        judged[target.figure] = {"limit": target.limit, "at_least": target.at_least, "ok": held}
    ok = all(j["ok"] for j in judged.values())
    line = {"area": area, "name": name, "figures": figures, "targets": judged, **more, "ok": ok}
    print(json.dumps(line))
    return 0 if ok else 1
