"""What `fit` costs per step beyond a bare PyTorch loop that makes the same updates.

The framework's side is `erasus_pl fit` as a user runs it from YAML: progress bar drawn on a
(pseudo) terminal, CSV curves, checkpoints, recorder, exact loaders, all defaults. The bare side
indexes the same tensors in the same order and calls forward, backward and the optimiser, nothing
else. Both end with the same weights, or the script fails. They take turns within one run, every few
steps. A stock Lightning loop over a DataLoader (`Trainer` with its defaults) is timed against the
same bare loop for orientation.

Judged is GradientAscent. Beside it, on the MLP, stand a strategy that takes a batch of either set
(`paired`, NegGrad+) and a run that writes its curves at every step (`logged`) in place of every
fiftieth, as the short runs in conf/ do.

Timed is the steady state within an epoch. What a fit costs once, before its first step and after
its last, is reported apart.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from _measure import Target, clock, options, report, summary, terminal

area = "foundation"
name = "overhead"

TARGETS = (Target("mlp_cpu_ratio", 2.5), Target("resnet18_cpu_ratio", 1.05))
LR, MOMENTUM, DECAY, ALPHA = 1e-4, 0.9, 5e-4, 0.99


@dataclasses.dataclass(frozen=True)
class Case:
    """One network and strategy under test.

    Args:
        strategy: class in `erasus_pl.strategies`.
        network: class in `erasus_pl.networks`.
        network_args: its arguments.
        shape: of an input.
        batch: samples of a batch.
        steps: of a run.
        burst: steps that each side makes in turn; their mean is one sample.
        trainer: settings of the Trainer beyond the defaults.
        quick_s: wall seconds that `--quick` gives it.
    """

    strategy: str
    network: str
    network_args: dict[str, Any]
    shape: list[int]
    batch: int
    steps: int
    burst: int
    trainer: dict[str, Any]
    quick_s: float


def cases(quick: bool) -> dict[str, Case]:
    """The small MLP (64-64-10, batch 64), and ResNet-18 at full width on 32×32 images."""
    mlp = Case(
        "GradientAscent", "MLP", {"inputs": 64, "hidden": [64], "outputs": 10}, [64], 64,
        steps=500 * (3 if quick else 6) + 1, burst=500, trainer={"limit_val_batches": 10},
        quick_s=8,
    )  # fmt: skip
    resnet18 = Case(
        "GradientAscent", "ResNet18", {"width": 64}, [3, 32, 32], 8 if quick else 16,
        steps=17, burst=1,
        trainer={"log_every_n_steps": 1, "num_sanity_val_steps": 0, "limit_val_batches": 1},
        quick_s=14,
    )  # fmt: skip
    paired = dataclasses.replace(mlp, strategy="NegGradPlus", quick_s=5)
    logged = dataclasses.replace(mlp, trainer={**mlp.trainer, "log_every_n_steps": 1}, quick_s=5)
    return {"mlp": mlp, "resnet18": resnet18, "mlp_paired": paired, "mlp_logged": logged}


def order(case: Case, stream: int) -> Any:
    """The order in which a set is walked the first time; 1 is the retain set, 2 the forget set."""
    import torch

    from datamodules.order import mix

    generator = torch.Generator().manual_seed(mix(mix(0, stream), 0))
    return torch.randperm(case.batch * case.steps, generator=generator)


def build(case: Case) -> Any:
    """The network, always with the same weights."""
    import torch

    from erasus_pl import networks

    torch.manual_seed(0)
    return getattr(networks, case.network)(**case.network_args)


def bare(case: Case, network: Any) -> Iterator[None]:
    """The updates in plain PyTorch, one at a time."""
    import _parts
    import torch
    import torch.nn.functional as F

    network.train()
    n = case.batch * case.steps
    inputs, targets = _parts.pixels(2 * n, case.shape)
    optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM, weight_decay=DECAY)
    forget, retain = order(case, 2).split(case.batch), (n + order(case, 1)).split(case.batch)
    if case.strategy == "GradientAscent":
        for f in forget:
            loss = -F.cross_entropy(network(inputs[f]), targets[f])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield
    else:
        for f, r in zip(forget, retain, strict=True):
            ascent = F.cross_entropy(network(inputs[f]), targets[f])
            descent = F.cross_entropy(network(inputs[r]), targets[r])
            loss = (ALPHA - 1) * ascent + ALPHA * descent
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def fit(case: Case, folder: Path) -> dict[str, Any]:
    """The same by `erasus_pl fit`; returns the weights of its checkpoint."""
    import numpy as np
    import torch
    import yaml

    from erasus_pl.cli import run

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "original.pt"
    torch.save(build(case).state_dict(), weights)
    n, network = case.batch * case.steps, f"_parts.Timed{case.network}"
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
                "network": {"class_path": network, "init_args": case.network_args},
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


def stock(case: Case, folder: Path) -> dict[str, Any]:
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
            self.network = getattr(_parts, f"Timed{case.network}")(**case.network_args)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            inputs, targets = batch
            loss = -F.cross_entropy(self.network(inputs), targets)
            self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), LR, MOMENTUM, weight_decay=DECAY)

    module = Ascent()
    data = TensorDataset(*_parts.pixels(case.batch * case.steps, case.shape))
    Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=folder, logger=CSVLogger(folder),
        **case.trainer,
    ).fit(module, DataLoader(data, case.batch, shuffle=True))  # fmt: skip
    return module.network.state_dict()


def race(
    case: Case, side: Callable[[Case, Path], Any]
) -> tuple[list[Any], tuple[float, float], float]:
    """A side against the bare loop, once.

    Returns:
        The seconds of each burst but the first, the `(cpu, wall)` seconds before the first step
        and after the last, and by how much the weights of both differ at the end.
    """
    import _parts

    rival = build(case)
    steps = bare(case, rival)
    _parts.RACE.start(steps, case.burst, 2 if case.strategy == "NegGradPlus" else 1)
    begin = clock()
    with tempfile.TemporaryDirectory() as folder, terminal():
        ours = side(case, Path(folder))
    end, moments, taken = clock(), _parts.RACE.moments, _parts.RACE.rivals
    if _parts.RACE.steps != case.steps:
        sys.exit(f"{side.__name__} made {_parts.RACE.steps} steps, not {case.steps}")
    once = tuple(
        (first - b) + (e - last - theirs)
        for b, first, last, theirs, e in zip(
            begin, moments[0], moments[-1], taken[-1], end, strict=True
        )
    )
    differ = max((v - ours[k]).abs().max().item() for k, v in rival.state_dict().items())
    return _parts.RACE.bursts(skip=1), once, differ


def compare(case: Case, rounds: int, with_stock: bool, seconds: float) -> dict[str, Any]:
    """Both sides, `rounds` times as long as `seconds` allow; figures of one case."""
    sides = {"fit": fit} | ({"stock": stock} if with_stock else {})
    bursts: dict[str, list] = {side: [] for side in sides}
    once, worst = [], 0.0
    start = time.perf_counter()
    for i in range(rounds):
        if i and (time.perf_counter() - start) * (i + 1) / i > seconds:
            break
        for side in sides:
            found, rest, differ = race(case, sides[side])
            bursts[side] += found
            if side == "fit":
                once.append(rest)
                worst = max(worst, differ)
    figures: dict[str, Any] = {"weights_differ_by": worst}
    for side, found in bursts.items():
        prefix = "" if side == "fit" else f"{side}_"
        for i, kind in enumerate(("cpu", "wall")):
            ratios = summary([ours[i] / theirs[i] for ours, theirs in found])
            figures[f"{prefix}{kind}_ratio"] = ratios["median"]
            figures[f"{prefix}{kind}_ratio_spread"] = ratios
            figures[f"{side}_{kind}_ms"] = summary([1e3 * ours[i] for ours, _ in found])
            if side == "fit":
                figures[f"bare_{kind}_ms"] = summary([1e3 * theirs[i] for _, theirs in found])
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
        found = compare(case, rounds, key == "mlp", case.quick_s if given.quick else 150)
        if found["weights_differ_by"] > 1e-6:
            sys.exit(f"{key}: the two sides differ by {found['weights_differ_by']}")
        for figure, value in found.items():
            figures[f"{key}_{figure}"] = value
            print(f"{key}_{figure}: {value}", flush=True)
    return report(area, name, figures, TARGETS, quick=given.quick)


if __name__ == "__main__":
    sys.exit(main())
