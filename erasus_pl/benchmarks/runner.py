"""Run the cells of a suite on some processes; what was run before is read, not run again."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from erasus_pl.benchmarks.cell import judged_on, measured, models, run_cell
from erasus_pl.benchmarks.suite import Cell, Scenario, Settings, Suite
from erasus_pl.requests import ForgetClass

__all__ = ["Results", "best", "run_suite"]


@dataclass
class Results:
    """What a suite gave.

    Attributes:
        rows: one for each cell that was run, see `run_cell`.
        floors: scenario → retrained models held against others, one row for each seed.
        chosen: (scenario, strategy) → the settings that were best on validation data.
        missing: cells that were not run, since the time was over.
        absent: scenario → why it was not run.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    floors: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    chosen: dict[tuple[str, str], Settings] = field(default_factory=dict)
    missing: int = 0
    absent: dict[str, str] = field(default_factory=dict)


def best(rows: Iterable[dict[str, Any]]) -> Settings | None:
    """Settings of the row with the smallest AvgGap; of equal ones the first; none if all failed."""
    fit = [row for row in rows if "error" not in row]
    return min(fit, key=lambda row: row["AvgGap"])["settings"] if fit else None


def run_suite(
    suite: Suite,
    folder: Path,
    workers: int = 1,
    minutes: float | None = None,
    watch: Callable[[int, int, str], None] | None = None,
) -> Results:
    """Run what is not there yet: models, then the search, then what is reported.

    Args:
        suite: what to run.
        folder: rows and trained models are kept here, and found again.
        workers: processes; each computes on one thread.
        minutes: start no cell after that long; a later call goes on.
        watch: told of each cell: how many are done, of how many, and what is run.
    """
    found = Results()
    stop = None if minutes is None else time.monotonic() + 60 * minutes
    with _pool(workers) as pool:
        scenarios = []
        for scenario in suite.scenarios.values():
            reason = pool.submit(_absent, scenario).result()
            if reason is None:
                scenarios.append(scenario)
            else:
                found.absent[scenario.name] = reason
        jobs = [(s, seed) for s in scenarios for seed in range(1, suite.seeds + 1)]
        floors = _all(
            workers, jobs, lambda j: pool.submit(_floor, j[0], j[1], folder), stop, watch, "models"
        )
        for (scenario, _), floor in floors:
            found.floors.setdefault(scenario.name, []).append(floor)
        found.missing += len(jobs) - len(floors)

        def run(cells: list[Cell], stage: str) -> list[tuple[Cell, dict[str, Any]]]:
            rows = _all(
                workers, cells, lambda c: pool.submit(run_cell, c, folder), stop, watch, stage
            )
            found.missing += len(cells) - len(rows)
            found.rows += [row for _, row in rows]
            return rows

        tuned = run(
            [c for s in scenarios for name in suite.strategies for c in suite.tuning(s, name)],
            "search",
        )
        by: dict[tuple[str, str], list[tuple[Cell, dict[str, Any]]]] = {}
        for cell, row in tuned:
            by.setdefault((cell.scenario.name, cell.name), []).append((cell, row))
        final = []
        for (_, name), pairs in by.items():
            scenario = pairs[0][0].scenario
            order = {id(r): suite.settings(name).index(c.settings) for c, r in pairs}
            settings = best(sorted((r for _, r in pairs), key=lambda r: order[id(r)]))
            if settings is None or len(pairs) < len(suite.settings(name)):
                continue
            found.chosen[scenario.name, name] = settings
            final += list(suite.final(scenario, name, settings))
        # Seed by seed, so that a run that is stopped has seen every method.
        run(sorted(final, key=lambda c: c.seed), "report")
    return found


class _Here(Executor):
    """Does at once, in this process, what it is asked for."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def _pool(workers: int) -> Executor:
    if workers == 1:
        return _Here()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _all(
    ahead: int,
    jobs: list[Any],
    submit: Callable[[Any], Future],
    stop: float | None,
    watch: Callable[[int, int, str], None] | None,
    stage: str,
) -> list[tuple[Any, Any]]:
    """Jobs and results, in the order of the jobs; few are submitted ahead, so that time can stop.

    Whatever the order that they end in, what is made of them is the same.
    """
    done: dict[int, Any] = {}
    waiting: dict[Future, int] = {}
    queue: Iterator[int] = iter(range(len(jobs)))
    exhausted = False
    while True:
        while (
            not exhausted
            and len(waiting) < 2 * ahead - 1
            and (stop is None or time.monotonic() < stop)
        ):
            job = next(queue, None)
            if job is None:
                exhausted = True
            else:
                waiting[submit(jobs[job])] = job
        if not waiting:
            return [(jobs[i], done[i]) for i in sorted(done)]
        future = next(as_completed(waiting))
        done[waiting.pop(future)] = future.result()
        if watch:
            watch(len(done), len(jobs), stage)


def _absent(scenario: Scenario) -> str | None:
    from erasus_pl.benchmarks.cell import build

    try:
        build(scenario)[1].setup("validate")
    except FileNotFoundError as error:
        return str(error)
    return None


def _floor(scenario: Scenario, seed: int, folder: Path) -> dict[str, Any]:
    """A second retrained model held against the first, on what is reported; and the sizes."""
    import torch

    from erasus_pl.evaluation.compare import records

    torch.set_num_threads(1)
    made = models(scenario, seed, folder, floor=True)
    judged_on(made["data"], "test")
    found = records({k: made[k] for k in ("original", "retrained", "retrained_2")}, made["data"])
    row: dict[str, Any] = measured(found["retrained_2"], found["retrained"])
    for name in ("original", "retrained"):
        other = measured(found[name], found["retrained"])
        row |= {f"{name} {k}": value for k, value in other.items()}
    data, task = made["data"], made["original"]
    return {
        **row, "train": len(data.train_set), "forget": len(data.forget_set),
        "parameters": sum(p.numel() for p in task.parameters()), "task": type(task).__name__,
        "request": "class" if isinstance(data.request, ForgetClass) else "spread",
    }  # fmt: skip
