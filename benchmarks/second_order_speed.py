"""Fisher diagonals and norms against loops, SSD against bare passes, facility location's memory.

The loop takes one backward pass for each sample and squares what it finds, as a textbook does, on
a 784-256-10 network and on one with two convolutions of 8 and 16 channels; both sides must find
the same diagonal. `*_ceiling` is the loop over one plain backward pass of the whole batch: no form
that needs that pass can reach more. SSD is a whole `fit`, loader, trainer and edit included, over
two bare passes of forward and backward over the same data in the same batches, on 10,000 samples.
Facility location picks 100 of n samples, each n in a process of its own, whose peak of memory is
read at the end, and held against a matrix of all similarities.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import ROOT, Target, clock, interleave, options, report, summary

area = "strategies"
name = "second_order_speed"

SAMPLES, BATCH = 10_000, 256
SIZES = (5_000, 10_000, 20_000)
TARGETS = (
    Target("fisher_mlp_cpu_ratio", 20, at_least=True),
    Target("norms_mlp_cpu_ratio", 20, at_least=True),
    Target("fisher_cnn_cpu_ratio", 3, at_least=True),
    Target("fisher_differs_by", 1e-4),
    Target("ssd_over_two_passes", 1.3),
    Target("facility_part_of_matrix", 0.2),
)


def networks() -> dict[str, tuple[Any, list[int]]]:
    """Networks and the shape of their inputs."""
    from torch import nn

    cnn = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(400, 10),
    )  # fmt: skip
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    return {"mlp": (mlp, [784]), "cnn": (cnn, [1, 28, 28])}


def fisher(network: Any, shape: list[int], quick: bool) -> dict[str, Any]:
    """CPU seconds of a batch's squared gradients and norms, both ways; how far they differ."""
    import _parts
    import torch
    import torch.nn.functional as F

    from erasus_pl.linalg import PerSampleGradients

    x, y = _parts.pixels(BATCH, shape)
    batch = {"input": x, "target": y}
    network.eval()
    parameters = list(network.parameters())

    def losses(part: dict[str, Any]) -> Any:
        return F.cross_entropy(network(part["input"]), part["target"], reduction="none")

    ours = PerSampleGradients(network, losses)

    def loop() -> Any:
        squares = [torch.zeros_like(p) for p in parameters]
        for i in range(BATCH):
            loss = losses({"input": x[i : i + 1], "target": y[i : i + 1]}).sum()
            for total, g in zip(squares, torch.autograd.grad(loss, parameters), strict=True):
                total += g.square()
        return squares

    found = list(ours.squares(batch).values())
    expected = loop()
    differs = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
    again = 5 if quick else 20
    times = interleave(
        {
            "fisher": _repeated(lambda: ours.squares(batch), again),
            "norms": _repeated(lambda: ours.norms(batch), again),
            "plain": _repeated(lambda: torch.autograd.grad(losses(batch).sum(), parameters), again),
            "loop": _repeated(loop, 1),
        },
        5 if quick else 25,
    )
    return {"times": times, "differs": differs, "method": ours.method}


def ssd(quick: bool) -> dict[str, Any]:
    """CPU seconds of SSD's fit, and of two bare passes over its data."""
    import _parts
    import torch
    from lightning.pytorch import Trainer

    from erasus_pl.networks import MLP
    from erasus_pl.requests import ForgetIndices
    from erasus_pl.strategies import SSD
    from erasus_pl.tasks import ClassificationTask

    torch.manual_seed(0)
    task = ClassificationTask(MLP(784, [256], 10))
    request = ForgetIndices(list(range(SAMPLES // 10)))
    x, y = _parts.pixels(SAMPLES, [784])
    parameters = list(task.parameters())

    def ours() -> tuple[float, float]:
        data = _parts.MemoryData(request, SAMPLES, [784], batch_size=BATCH)
        data.setup("fit")
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
                default_root_dir=folder,
            )  # fmt: skip
            start = clock()
            trainer.fit(SSD(task, alpha=5.0), data)
            return _since(start)

    def bare() -> tuple[float, float]:
        start = clock()
        for _ in range(2):
            for inputs, target in zip(x.split(BATCH), y.split(BATCH), strict=True):
                batch = {"input": inputs, "target": target}
                loss = task.per_sample_loss(task(batch), batch).sum()
                torch.autograd.grad(loss, parameters)
        return _since(start)

    ours(), bare()
    return interleave({"ours": ours, "bare": bare}, 3 if quick else 11)


def peak(n: int) -> int:
    """Bytes that facility location over n samples adds to a process, at its peak."""
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'benchmarks')!r}, {str(ROOT)!r}]; "
        f"import second_order_speed as s; print(s.grown({n}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])


def grown(n: int) -> int:
    """What the peak of this process's memory grows by while 100 of n samples are picked."""
    import torch
    import torch.nn.functional as F

    from erasus_pl.selectors.facility_location import facility_location

    torch.set_num_threads(1)
    rows = F.normalize(torch.randn(n, 16, dtype=torch.float64), dim=1)

    def likeness(columns: Any) -> Any:
        return (1 + rows @ rows[columns].T).clamp(min=0) / 2

    before = _peak(anew=True)
    facility_location(likeness, n, 100)
    return _peak() - before


def _peak(anew: bool = False) -> int:
    """The process's peak of resident memory in bytes, since its start or, on Linux, from now on."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if anew:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _since(start: tuple[float, float]) -> tuple[float, float]:
    return tuple(b - a for a, b in zip(start, clock(), strict=True))  # type: ignore[return-value]


def _repeated(call: Callable[[], Any], times: int) -> Callable[[], tuple[float, float]]:
    def run() -> tuple[float, float]:
        start = clock()
        for _ in range(times):
            call()
        cpu, wall = _since(start)
        return cpu / times, wall / times

    return run


def _median(times: dict[str, Any], side: str) -> float:
    return summary(times[side]["cpu"])["median"]


def main(args: list[str] | None = None) -> int:
    given = options(__doc__).parse_args(args)
    import torch

    torch.set_num_threads(1)
    figures: dict[str, Any] = {"fisher_differs_by": 0.0}
    for key, (network, shape) in networks().items():
        found = fisher(network, shape, given.quick)
        times = found["times"]
        for side in times:
            figures[f"{side}_{key}_cpu_s"] = summary(times[side]["cpu"])
        for side, shown in (("fisher", "cpu_ratio"), ("norms", "cpu_ratio"), ("plain", "ceiling")):
            ratio = _median(times, "loop") / _median(times, side)
            figures[f"{side}_{key}_{shown}"] = float(f"{ratio:.3g}")
        figures[f"{key}_method"] = found["method"]
        figures["fisher_differs_by"] = max(figures["fisher_differs_by"], found["differs"])
    times = ssd(given.quick)
    for side in times:
        figures[f"ssd_{side}_cpu_s"] = summary(times[side]["cpu"])
    figures["ssd_over_two_passes"] = float(f"{_median(times, 'ours') / _median(times, 'bare'):.3g}")
    for n in SIZES:
        figures[f"facility_{n}_bytes"] = peak(n)
    largest = SIZES[-1]
    part = figures[f"facility_{largest}_bytes"] / (8 * largest**2)
    figures["facility_part_of_matrix"] = float(f"{part:.3g}")
    for key, value in figures.items():
        print(f"{key}: {value}", flush=True)
    return report(area, name, figures, TARGETS, quick=given.quick)


if __name__ == "__main__":
    sys.exit(main())
