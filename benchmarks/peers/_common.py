"""What every driver does alike, in its own environment: read a problem, time a call, write it down.

Only numpy, torch and the standard library are imported here, so that it runs beside any peer. A
problem is a folder with `problem.json` (layers of a plain network, classes, what is forgotten,
batch size, seed), `data.npz` (`forget_x`, `forget_y` and the same of retain, test and holdout) and
the state dicts `original.pt`, `retrained.pt` and `retrained_2.pt`.
"""

import argparse
import json
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["SPLITS", "Job", "Problem", "build", "loader", "logits", "read", "serve"]

SPLITS = ("forget", "retain", "test", "holdout")
_LAYERS = {"flatten": nn.Flatten, "linear": nn.Linear, "relu": nn.ReLU}


@dataclass(frozen=True)
class Problem:
    """One forget request of one original.

    Attributes:
        about: what `problem.json` holds.
        data: split → inputs and targets.
        network: the original, in train mode.
    """

    about: dict[str, Any]
    data: dict[str, tuple[torch.Tensor, torch.Tensor]]
    network: nn.Sequential


@dataclass(frozen=True)
class Job:
    """One method on one problem.

    Attributes:
        method: its name.
        epochs: how many, for methods that let one say.
        options: what else is set; nothing leaves the method at its defaults.
    """

    method: str
    epochs: int
    options: dict[str, Any]


def build(layers: list[list[Any]]) -> nn.Sequential:
    """A plain network from its layers, such as `[["linear", 64, 10]]`."""
    return nn.Sequential(*(_LAYERS[kind](*sizes) for kind, *sizes in layers))


def read(folder: Path) -> Problem:
    """Read a problem."""
    about = json.loads((folder / "problem.json").read_text())
    arrays = np.load(folder / "data.npz")
    data = {
        s: (torch.from_numpy(arrays[f"{s}_x"]), torch.from_numpy(arrays[f"{s}_y"])) for s in SPLITS
    }
    network = build(about["layers"])
    network.load_state_dict(torch.load(folder / "original.pt", weights_only=True))
    return Problem(about, data, network)


def loader(problem: Problem, split: str, shuffle: bool = True) -> DataLoader:
    """A stock loader of `(input, target)` over a split, in this process."""
    return DataLoader(TensorDataset(*problem.data[split]), problem.about["batch_size"], shuffle)


@torch.no_grad()
def logits(network: nn.Module, problem: Problem) -> dict[str, np.ndarray]:
    """Logits of every split, `(n, C)`, of a network in eval mode."""
    network.eval()
    return {s: network(x).float().numpy() for s, (x, _) in problem.data.items()}


def _line(error: Exception) -> str:
    """The error, and the line of the peer's own file that raised it."""
    said = " ".join(str(error).split()) or "no message"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" in f.filename]
    where = ""
    if frames:
        path = frames[-1].filename.rsplit("site-packages/", 1)[1]
        where = f" ({path}:{frames[-1].lineno})"
    return f"{type(error).__name__}: {said[:160]}{where}"


def _measured(
    prepare: Callable[[Problem, Job], Callable[[], nn.Module]], problem: Problem, job: Job, n: int
) -> tuple[nn.Module, list[float], list[str]]:
    seconds, said = [], []
    for _ in range(n):
        torch.manual_seed(problem.about["seed"])
        call = prepare(problem, job)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            start = time.process_time()
            network = call()
            seconds.append(time.process_time() - start)
        said = sorted({w.category.__name__ for w in caught})
    return network, seconds, said


def serve(prepare: Callable[[Problem, Job], Callable[[], nn.Module]]) -> None:
    """Do every job of a file, and write each result as it is done.

    The command line names the file, and another one to write down which job is being done.

    A job is done `repeats` times from the same start, since the first time of a process pays for
    imports that torch puts off; the last network counts. An error is a result too.

    Args:
        prepare: makes, untimed, what the call of a method needs, and returns that call; the call
            returns the unlearned network.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs", type=Path)
    parser.add_argument("started", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for spec in json.loads(given.jobs.read_text()):
        given.started.write_text(spec["out"])
        problem = read(Path(spec["problem"]))
        job = Job(spec["method"], spec["epochs"], spec["options"])
        result: dict[str, Any] = {**spec["about"], "cpu_seconds": None, "error": None}
        try:
            network, seconds, said = _measured(prepare, problem, job, spec["repeats"])
            found = logits(network, problem)
            state = {k: v.detach().clone() for k, v in network.state_dict().items()}
            result |= {"cpu_seconds": seconds, "warnings": said}
            torch.save(state, f"{spec['out']}.pt")
            np.savez(f"{spec['out']}.npz", **found)
        except Exception as error:
            result["error"] = _line(error)
        partial = Path(f"{spec['out']}.part")
        partial.write_text(json.dumps(result))
        partial.replace(f"{spec['out']}.json")
        print(spec["method"], result["error"] or min(result["cpu_seconds"]), flush=True)
