"""Environments of the peers, and runs that are done once and kept."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

__all__ = ["ROOT", "drive", "environment", "job", "pins", "python", "sources"]

Job = dict[str, Any]


def _requirements(peer: str) -> Path:
    return HERE / "requirements" / f"{peer}.txt"


def pins(peer: str) -> dict[str, str]:
    """Versions that a peer's environment is made of."""
    lines = _requirements(peer).read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def python(peer: str) -> Path:
    """The interpreter that runs a driver: this one for ours, else that of `.peers/<peer>`."""
    return Path(sys.executable) if peer == "ours" else ROOT / ".peers" / peer / "bin" / "python"


def environment(peer: str) -> str | None:
    """Make a peer's environment unless it is there with the same pins; returns why that failed."""
    folder = ROOT / ".peers" / peer
    mark, wanted = folder / "made", _requirements(peer).read_text()
    if mark.is_file() and mark.read_text() == wanted:
        return None
    print(f"making .peers/{peer}", flush=True)
    install = [str(python(peer)), "-m", "pip", "install", "--no-deps", "--ignore-requires-python"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [*install, "-r", str(_requirements(peer))],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return (done.stderr or done.stdout or "no message").strip().splitlines()[-1]
    mark.write_text(wanted)
    return None


def sources(peer: str) -> str:
    """A digest of the code and the versions that a peer's results depend on."""
    files = [HERE / "_common.py", HERE / f"drive_{peer}.py"]
    if peer == "ours":
        for room in ("erasus_pl", "datamodules"):
            files += sorted((ROOT / room).rglob("*.py"))
        files += sorted((ROOT / "conf/strategy").glob("*.yaml"))
    else:
        files += [HERE / "_absent.py", _requirements(peer)]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def job(
    peer: str, problem: Path, method: str, epochs: int, options: dict, kept: Path, code: str
) -> Job:
    """What a driver is told, and the stem `out` of what it writes.

    Args:
        peer: whose driver.
        problem: folder of the problem, whose name has a hash of what it is.
        method: as the driver calls it.
        epochs: of it.
        options: beyond its defaults.
        kept: folder of all that is kept.
        code: digest of `sources`.
    """
    about = {"peer": peer, "problem": problem.name, "method": method, "epochs": epochs,
             "options": options}  # fmt: skip
    text = json.dumps([about, code], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {
        "about": about, "problem": str(problem), "method": method, "epochs": epochs,
        "options": options, "repeats": 2, "out": str(kept / "results" / f"{peer}-{method}-{key}"),
    }  # fmt: skip


def _result(spec: Job) -> Path:
    return Path(spec["out"] + ".json")


def _fail(spec: Job, why: str, lasting: bool = True) -> None:
    result = {**spec["about"], "cpu_seconds": None, "error": why, "lasting": lasting}
    partial = Path(spec["out"] + ".part")
    partial.write_text(json.dumps(result))
    partial.replace(_result(spec))


def _drop_passing_failures(specs: Sequence[Job]) -> None:
    for spec in specs:
        path = _result(spec)
        if path.is_file() and not json.loads(path.read_text()).get("lasting", True):
            path.unlink()


def drive(peer: str, specs: Sequence[Job], kept: Path) -> None:
    """Do what is not done yet, in the peer's environment; what cannot be done is a result too.

    A process that ends early has its job written down as crashed, and the next goes on from there.
    An environment that cannot be made, or a driver that does not start, is tried again next time.

    Args:
        peer: whose driver.
        specs: its jobs.
        kept: folder of all that is kept.
    """
    (kept / "results").mkdir(parents=True, exist_ok=True)
    _drop_passing_failures(specs)
    left = [s for s in specs if not _result(s).is_file()]
    print(f"{peer}: {len(left)} of {len(specs)} runs to do", flush=True)
    why = environment(peer) if left and peer != "ours" else None
    while left:
        if why:
            for spec in left:
                _fail(spec, f"no environment: {why[:160]}", lasting=False)
            return
        jobs, started, log = (kept / f"{peer}.{end}" for end in ("jobs", "started", "log"))
        jobs.write_text(json.dumps(left))
        started.unlink(missing_ok=True)
        with log.open("a") as file:
            ended = subprocess.run(
                [str(python(peer)), str(HERE / f"drive_{peer}.py"), str(jobs), str(started)],
                cwd=kept,
                stdout=file,
                stderr=file,
            )
        left = [s for s in left if not _result(s).is_file()]
        if left and started.is_file():
            at = next((s for s in left if s["out"] == started.read_text()), left[0])
            _fail(at, f"the process ended with status {ended.returncode}")
        elif left:
            said = " ".join(log.read_text().strip().splitlines()[-1:])
            for spec in left:
                _fail(spec, f"the driver did not start: {said[:160]}", lasting=False)
        left = [s for s in left if not _result(s).is_file()]
