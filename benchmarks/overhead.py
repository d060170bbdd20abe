"""What `fit` costs per step beyond a bare PyTorch loop that makes the same updates.

The framework's side is `erasus_pl fit` as a user runs it from YAML: progress bar drawn on a
(pseudo) terminal, CSV curves, checkpoints, recorder, exact loaders, all defaults. The bare side
indexes the same tensors in the same order and calls forward, backward and the optimiser, nothing
else. Both end with the same weights, or the script fails. A stock Lightning loop over a DataLoader
(`Trainer` with its defaults) is timed beside them for orientation.

Timed is the steady state: the mean of a block of steps within an epoch. What a fit costs once,
before its first step and after its last, is reported apart.
"""

import contextlib
import dataclasses
import os
import pty
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _measure import Target, clock, options, report, summary

area = "foundation"
name = "overhead"

TARGETS = (Target("mlp_cpu_ratio", 2.5), Target("resnet18_cpu_ratio", 1.05))
LR, MOMENTUM, DECAY, ALPHA = 1e-4, 0.9, 5e-4, 0.99


@dataclasses.dataclass(frozen=True)
class Case:
    """One network and strategy under test.

    Args:
        strategy: class in `erasus_pl.strategies`.
        network: class in `_parts`.
        network_args: its arguments.
        shape: of an input.
        batch: samples of a batch.
        steps: of a run.
        warm: steps before timing begins.
        block: steps whose mean is one sample.
        trainer: settings of the Trainer beyond the defaults.
    """

    strategy: str
    network: str
    network_args: dict[str, Any]
    shape: list[int]
    batch: int
    steps: int
    warm: int
    block: int
    trainer: dict[str, Any]


def cases(quick: bool) -> dict[str, Case]:
    """The small MLP (64-64-10, batch 64), and ResNet-18 at full width on 32×32 images."""
    mlp = Case(
        "GradientAscent", "TimedMLP", {"inputs": 64, "hidden": [64], "outputs": 10}, [64], 64,
        steps=1 + 200 + (600 if quick else 2000), warm=200, block=200,
        trainer={"limit_val_batches": 10},
    )  # fmt: skip
    resnet18 = Case(
        "GradientAscent", "TimedResNet18", {"width": 64}, [3, 32, 32], 8 if quick else 16,
        steps=1 + 2 + (4 if quick else 8), warm=2, block=2,
        trainer={"log_every_n_steps": 1, "num_sanity_val_steps": 0, "limit_val_batches": 1},
    )  # fmt: skip
    paired = dataclasses.replace(mlp, strategy="NegGradPlus")
    return {"mlp": mlp, "resnet18": resnet18, "mlp_paired": paired}


def order(case: Case, stream: int) -> Any:
    """The order in which a set is walked the first time; 1 is the retain set, 2 the forget set."""
    import torch

    from datamodules.loaders import mix

    generator = torch.Generator().manual_seed(mix(mix(0, stream), 0))
    return torch.randperm(case.batch * case.steps, generator=generator)


def build(case: Case) -> Any:
    """The network, always with the same weights."""
    import _parts
    import torch

    torch.manual_seed(0)
    return getattr(_parts, case.network)(**case.network_args)


def bare(case: Case, _: Path) -> dict[str, Any]:
    """The updates in plain PyTorch; returns the weights."""
    import _parts
    import torch
    import torch.nn.functional as F

    network = build(case).train()
    n = case.batch * case.steps
    inputs, targets = _parts.pixels(2 * n, case.shape)
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM, weight_decay=DECAY)
    forget = order(case, 2).split(case.batch)
    if case.strategy == "GradientAscent":
        for f in forget:
            loss = -F.cross_entropy(network(inputs[f]), targets[f])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    else:
        for f, r in zip(forget, (n + order(case, 1)).split(case.batch), strict=True):
            ascent = F.cross_entropy(network(inputs[f]), targets[f])
            descent = F.cross_entropy(network(inputs[r]), targets[r])
            loss = (ALPHA - 1) * ascent + ALPHA * descent
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.state_dict()


def fit(case: Case, folder: Path) -> dict[str, Any]:
    """The same by `erasus_pl fit`; returns the weights of its checkpoint."""
    import numpy as np
    import torch
    import yaml

    from erasus_pl.cli import run

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "original.pt"
    torch.save(build(case).state_dict(), weights)
    n = case.batch * case.steps
    positions = folder / "forget.npy"
    np.save(positions, np.arange(n))
    config = {
        "seed_everything": 0,
        "trainer": {
            "default_root_dir": str(folder), "accelerator": "cpu", "max_epochs": 1, **case.trainer
        },
        "task": {
            "class_path": "erasus_pl.tasks.ClassificationTask",
            "init_args": {
                "network": {"class_path": f"_parts.{case.network}", "init_args": case.network_args},
                "checkpoint": str(weights),
            },
        },
        "data": {
            "class_path": "_parts.MemoryData",
            "init_args": {"n": 2 * n, "shape": case.shape, "batch_size": case.batch},
        },
        "request": {
            "class_path": "erasus_pl.requests.ForgetIndices",
            "init_args": {"path": str(positions)},
        },
        "model": {
            "class_path": f"erasus_pl.strategies.{case.strategy}",
            "init_args": {
                "optimizer": {
                    "class_path": "torch.optim.SGD",
                    "init_args": {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY},
                }
            },
        },
        "evidence": {"enabled": False},
    }  # fmt: skip
    if case.strategy == "NegGradPlus":
        config["model"]["init_args"]["alpha"] = ALPHA
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    if run(["fit", "--config", str(file)]) != 0:
        sys.exit("`erasus_pl fit` failed")
    found = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {k.removeprefix("task.network."): v for k, v in found.items()}


def stock(case: Case, folder: Path) -> None:
    """A plain LightningModule and DataLoader under a Trainer with its defaults."""
    import _parts
    import torch
    import torch.nn.functional as F
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.loggers import CSVLogger
    from torch.utils.data import DataLoader, TensorDataset

    class Ascent(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = build(case)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            inputs, targets = batch
            loss = -F.cross_entropy(self.network(inputs), targets)
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), LR, MOMENTUM, weight_decay=DECAY)

    data = TensorDataset(*_parts.pixels(case.batch * case.steps, case.shape))
    Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=folder, logger=CSVLogger(folder),
        **case.trainer,
    ).fit(Ascent(), DataLoader(data, case.batch, shuffle=True))  # fmt: skip


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


def timed(
    case: Case, side: Callable[[Case, Path], Any], folder: Path
) -> tuple[Any, list[tuple[float, float]], tuple[float, float]]:
    """Run a side once; returns its weights and `(cpu, wall)` seconds.

    Those are seconds per step of each block, and of all before the first step and after the last.
    """
    import _parts

    _parts.MARKS.clear()
    start = clock()
    with terminal():
        end = side(case, folder)
    stop, marks = clock(), _parts.MARKS[:: 2 if case.strategy == "NegGradPlus" else 1]
    if len(marks) != case.steps:
        sys.exit(f"{side.__name__} made {len(marks)} steps, not {case.steps}")
    blocks = [
        tuple((b - a) / case.block for a, b in zip(marks[i], marks[i + case.block], strict=True))
        for i in range(case.warm, case.steps - case.block, case.block)
    ]
    rest = tuple(
        (m - s) + (e - n) for s, m, n, e in zip(start, marks[0], marks[-1], stop, strict=True)
    )
    return end, blocks, rest


def compare(case: Case, rounds: int, with_stock: bool, seconds: float) -> dict[str, Any]:
    """All sides in turn, `rounds` times as long as `seconds` allow; figures of one network."""
    sides = {"bare": bare, "fit": fit} | ({"stock": stock} if with_stock else {})
    steps: dict[str, list] = {s: [] for s in sides}
    once: list[tuple[float, float]] = []
    worst = 0.0
    start = time.perf_counter()
    for i in range(rounds):
        if i and (time.perf_counter() - start) * (i + 1) / i > seconds:
            break
        ends = {}
        for side in list(sides) if i % 2 == 0 else reversed(sides):
            with tempfile.TemporaryDirectory() as folder:
                ends[side], blocks, rest = timed(case, sides[side], Path(folder))
            steps[side] += blocks
            if side == "fit":
                once.append(rest)
        for key, value in ends["bare"].items():
            worst = max(worst, (value - ends["fit"][key]).abs().max().item())
    figures: dict[str, Any] = {"weights_differ_by": worst}
    middle = {}
    for side, blocks in steps.items():
        for clock_name, values in zip(("cpu", "wall"), zip(*blocks, strict=True), strict=True):
            ms = summary([1e3 * v for v in values])
            figures[f"{side}_{clock_name}_ms"] = ms
            middle[side, clock_name] = ms["median"]
    for side in sides:
        if side != "bare":
            prefix = "" if side == "fit" else f"{side}_"
            for c in ("cpu", "wall"):
                figures[f"{prefix}{c}_ratio"] = round(middle[side, c] / middle["bare", c], 3)
    figures["fit_once_cpu_s"] = summary([cpu for cpu, _ in once])
    return figures


def main(args: list[str] | None = None) -> int:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=None, help="how often each side runs")
    given = parser.parse_args(args)
    import torch

    import erasus_pl.cli  # noqa: F401  imported before the clock runs

    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for key, case in cases(given.quick).items():
        rounds = given.rounds or (5 if given.quick else 10)
        found = compare(case, rounds, key == "mlp", 10 if given.quick else 240)
        if found["weights_differ_by"] > 1e-6:
            sys.exit(f"{key}: the two sides differ by {found['weights_differ_by']}")
        for figure, value in found.items():
            figures[f"{key}_{figure}"] = value
            print(f"{key}_{figure}: {value}", flush=True)
    return report(area, name, figures, TARGETS, quick=given.quick)


if __name__ == "__main__":
    sys.exit(main())
