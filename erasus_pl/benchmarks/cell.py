"""Run one cell: find its original and gold, unlearn, measure, keep the row."""

import copy
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, Trainer

from erasus_pl._console import quiet
from erasus_pl.attacks.membership import auc
from erasus_pl.benchmarks.suite import RUN_SETTINGS, Cell, Scenario
from erasus_pl.callbacks.atomic_io import save_atomically
from erasus_pl.callbacks.training_record import TrainingRecord
from erasus_pl.evaluation.compare import records
from erasus_pl.evaluation.evidence import ModelRecord
from erasus_pl.evaluation.gold import Kept, cache_key
from erasus_pl.evaluation.measures import average_gap, tug_of_war
from erasus_pl.requests import ForgetRequest
from erasus_pl.selectors import Selector
from erasus_pl.selectors.learned import describe
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task

__all__ = ["judged_on", "measured", "models", "run_cell"]

_QUIET: dict[str, Any] = {"accelerator": "cpu", "enable_progress_bar": False, "devices": 1}
_VALIDATION = 1 / 3
_LOADED: dict[str, Any] = {}  # what was read last: cells of a scenario follow each other
_GOLD, _FLOOR = 1_000, 2_000


def run_cell(cell: Cell, folder: Path) -> dict[str, Any]:
    """The row of a cell, read if it was run before.

    Args:
        cell: what to run.
        folder: rows are kept in `rows/`, trained models in `models/`.

    Returns:
        What `measured` gives, with `cpu` and `gold_cpu`, process seconds of unlearning and of
        retraining, and `changed`, whether any score did; or `error`, the first line of it.
    """
    path = folder / "rows" / f"{cell.key}.json"
    if path.is_file():
        return cast(dict[str, Any], json.loads(path.read_text("utf-8")))
    torch.set_num_threads(1)
    row = {
        "scenario": cell.scenario.name, "strategy": cell.name, "settings": cell.settings,
        "seed": cell.seed, "judge": cell.judge, "selector": _selector_name(cell),
        "fraction": (cell.selector or {}).get("init_args", {}).get("fraction"),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            row |= _run(cell, folder)
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(row), "utf-8")
    partial.replace(path)
    return row


def models(
    scenario: Scenario,
    seed: int,
    folder: Path,
    floor: bool = False,
    users: Callable[[Task], Sequence[Strategy | Selector]] | None = None,
) -> dict[str, Any]:
    """The original and the retrained model of a seed, trained or found again.

    Args:
        scenario: data, task and request.
        seed: of the original; the gold has another.
        folder: where models are kept.
        floor: a second retrained model is wanted.
        users: makes of a task what may need a record of the original's training, and gets it.

    Returns:
        `data`, after `setup`; `original`; `retrained`; `gold_cpu`, the process seconds that its
        training took; and with `floor` a second retrained model.
    """
    task, data = build(scenario)
    data.setup("validate")
    quiet()
    kept = Kept(folder / "models", _QUIET)
    common = {
        "task": scenario.task, "data": scenario.data, "content": data.manifest.fingerprint,
    }  # fmt: skip
    forget = data.manifest.forget_sha256
    found = {"data": data}
    asked = [(u, r) for u in (users(task) if users else ()) if (r := u.recorder()) is not None]
    found["original"], _ = _get(
        kept, "original", common, task, data, "train", seed, [r for _, r in asked]
    )
    for user, recorder in asked:
        user.record = str(kept.record("original", cache_key(**common, seed=seed), recorder))
    gold = {**common, "forget": forget}
    found["retrained"], found["gold_cpu"] = _get(
        kept, "retrained", gold, task, data, "retrain", seed + _GOLD
    )
    if floor:
        found["retrained_2"], _ = _get(
            kept, "retrained", gold, task, data, "retrain", seed + _FLOOR
        )
    return found


def build(scenario: Scenario) -> tuple[Task, Any]:
    """The task and the datamodule of a scenario, as the command line would make them."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Task, "task")
    parser.add_subclass_arguments(ForgetRequest, "request")
    parser.add_subclass_arguments(LightningDataModule, "data", skip={"request"})
    parts = {k: getattr(scenario, k) for k in ("task", "request", "data")}
    made = parser.instantiate(parser.parse_object(parts))
    made.data.request = made.request
    key = json.dumps(scenario.data, sort_keys=True)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = made.data.load()
    made.data.load = lambda: _LOADED[key]
    return made.task, made.data


def strategy_of(cell: Cell) -> Callable[[Task], Strategy]:
    """What makes the strategy of a cell for a task."""
    part = copy.deepcopy(cell.strategy)
    arguments = part.setdefault("init_args", {})
    for name, value in cell.settings.items():
        if name == "lr":
            for own in (arguments, *(s["init_args"] for s in _stages(arguments))):
                if own.get("optimizer") is not None:
                    own["optimizer"]["init_args"]["lr"] = value
        elif name in arguments or name not in RUN_SETTINGS:
            arguments[name] = value
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=Callable[[Task], Strategy])
    return cast(
        Callable[[Task], Strategy],
        parser.instantiate(parser.parse_object({"model": part})).model,
    )


def selector_of(part: Mapping[str, Any]) -> Selector:
    """The selector of a part."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Selector, "selector")
    return cast(
        Selector, parser.instantiate(parser.parse_object({"selector": dict(part)})).selector
    )


def judged_on(data: Any, judge: str) -> None:
    """Leave in test and holdout set what validation, or what the report, may see.

    A third of each, drawn once and for all, is validation data; settings are chosen on it, and
    results reported on the rest.
    """
    for name in ("test_set", "holdout_set"):
        whole = getattr(data, name)
        order = np.argsort(np.random.PCG64(len(whole)).random_raw(len(whole)), kind="stable")
        cut = round(_VALIDATION * len(whole))
        part = order[:cut] if judge == "validation" else order[cut:]
        positions = whole.positions[torch.from_numpy(np.sort(part))]
        setattr(data, name, type(whole)(whole.dataset, positions))


def measured(found: ModelRecord, gold: ModelRecord) -> dict[str, float]:
    """UA, RA, TA, membership AUC, and distances to the retrained model.

    Raises:
        ArithmeticError: the model gives NaN.
    """
    if any(np.isnan(found.scores[s]).any() for s in found.scores):
        msg = "the model has diverged: its scores are NaN"
        raise ArithmeticError(msg)
    rates, reference = ({**_accuracies(r), "AUC": _auc(r)} for r in (found, gold))
    accuracy = {k: v for k, v in rates.items() if k != "AUC"}
    return {
        "UA": 1 - rates["forget"], "RA": rates["retain"], "TA": rates["test"],
        "MIA": rates["AUC"], "AvgGap": average_gap(rates, reference),
        "ToW": tug_of_war(accuracy, {k: reference[k] for k in accuracy}),
    }  # fmt: skip


def _run(cell: Cell, folder: Path) -> dict[str, Any]:
    used: list[Any] = []

    def users(task: Task) -> list[Any]:
        used[:] = [strategy_of(cell)(task)]
        used.extend([selector_of(cell.selector)] if cell.selector else [])
        return used

    made = models(cell.scenario, cell.seed, folder, users=users)
    data, original, retrained = made["data"], made["original"], made["retrained"]
    for name in ("epoch", "forget_batch_size"):
        if name in cell.settings:
            setattr(data, name, cell.settings[name])
    task = copy.deepcopy(original)
    pl.seed_everything(cell.seed, verbose=False)
    data.seed = cell.seed
    start = time.process_time()
    strategy = strategy_of(cell)(task.train())
    selector = selector_of(cell.selector) if cell.selector else None
    strategy.record = used[0].record
    if selector is not None:
        selector.record = used[1].record
    look = _Describe()
    trainer = Trainer(
        max_epochs=_epochs(strategy, task, cell), logger=False, enable_checkpointing=False,
        enable_model_summary=False, limit_val_batches=0,
        callbacks=[selector, look] if selector else [], default_root_dir=folder, **_QUIET,
    )  # fmt: skip
    trainer.fit(strategy, data)
    cpu = time.process_time() - start - look.seconds
    judged_on(data, cell.judge)
    task = strategy.task
    found = records({"original": original, "unlearned": task, "retrained": retrained}, data)
    before = measured(found["original"], found["retrained"])
    return {
        **measured(found["unlearned"], found["retrained"]),
        "cpu": cpu, "gold_cpu": made["gold_cpu"],
        "selector_seconds": selector.seconds if selector else None, "features": look.found,
        "original_gap": before["AvgGap"],
        "changed": bool(_moved(found["original"], found["unlearned"])),
    }  # fmt: skip


class _Describe(Callback):
    """Measures what a selector could be chosen by."""

    def __init__(self) -> None:
        self.found: dict[str, float | None] | None = None
        self.seconds = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: pl.LightningModule) -> None:
        if isinstance(pl_module, Strategy):
            start = time.process_time()
            self.found = {
                k: v if math.isfinite(v) else None for k, v in describe(pl_module).items()
            }
            self.seconds = time.process_time() - start


def _stages(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*arguments.get("stages", []), *arguments.get("members", [])]


def _epochs(strategy: Strategy, task: Task, cell: Cell) -> int:
    if strategy.one_shot:
        return 1
    if _stages(cell.strategy["init_args"]):
        return -1
    as_trained = cell.strategy["init_args"].get("optimizer", 0) is None
    return int(cell.settings.get("epochs", task.epochs if as_trained else 5))


def _get(
    kept: Kept,
    name: str,
    parts: Mapping[str, Any],
    task: Task,
    data: Any,
    on: Any,
    seed: int,
    recorders: Sequence[TrainingRecord] = (),
) -> tuple[Task, float]:
    key = cache_key(**parts, seed=seed)
    path = kept.folder / f"{name}-{key}.seconds.pt"
    start = time.process_time()
    model, _, found = kept.get(name, key, task, data, on, seed, recorders)
    if not found or not path.is_file():
        save_atomically({"cpu": time.process_time() - start}, path)
    return model, float(torch.load(path, weights_only=True)["cpu"])


def _accuracies(record: ModelRecord) -> dict[str, float]:
    return {s: float(record.correct[s].mean()) for s in ("forget", "retain", "test")}


def _auc(record: ModelRecord) -> float:
    return auc(record.scores["forget"], record.scores["holdout"])


def _moved(before: ModelRecord, after: ModelRecord) -> bool:
    return any((before.scores[s] != after.scores[s]).any() for s in before.scores)


def _selector_name(cell: Cell) -> str | None:
    return cell.selector["class_path"].rpartition(".")[2] if cell.selector else None
