"""What an unlearned model is held against, made or found again, and the report on it."""

import copy
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from datamodules import UnlearningDataModule
from erasus_pl import __version__
from erasus_pl._console import say, watch
from erasus_pl._words import UsageError
from erasus_pl.callbacks import Recorder, how_to_record
from erasus_pl.evaluation.gold import Kept, cache_key
from erasus_pl.selectors import Selector
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task

__all__ = ["EvidenceOptions", "Proof"]

_NOT_THE_MODEL = ("request", "num_workers", "pin_memory", "epoch", "forget_batch_size")


@dataclass
class EvidenceOptions:
    """What `fit` and `evaluate` hold the unlearned model against.

    Args:
        enabled: measure and write the report when `fit` ends.
        retrained: models to retrain from scratch as gold, of different seeds; two give the noise
            floor, 0 switches retraining off and leaves a weaker statement.
        cache: folder where trained originals and retrained models are kept and found again.
    """

    enabled: bool = True
    retrained: int = 2
    cache: str = "runs/cache"

    def __post_init__(self) -> None:
        if self.retrained < 0:
            msg = f"`evidence.retrained` must be at least 0, got {self.retrained}"
            raise ValueError(msg)


class Proof:
    """The original, the gold and the report of one run; all made by one process on one device.

    Args:
        settings: the resolved configuration of the verb.
        model: the strategy; its task gets the weights of the original.
        data: its datamodule, after `setup`.
        bar: what is being done → callbacks that show it.
    """

    def __init__(
        self,
        settings: Any,
        model: Strategy,
        data: UnlearningDataModule,
        bar: Callable[[str], list[Callback]],
    ) -> None:
        self.settings = settings
        self.model = model
        self.data = data
        self.bar = bar
        self.seconds: dict[str, float] = {}
        names = ("accelerator", "precision", "enable_progress_bar")
        trainer = {name: settings.trainer[name] for name in names}
        self.kept = Kept(settings.evidence.cache, {**trainer, "devices": 1})
        recipe = settings.get("task") or settings.model.init_args.get("task")
        given = _plain(settings.data.as_dict())["init_args"]
        self.parts = {
            "task": _plain(recipe.as_dict()),
            "data": [
                settings.data.class_path,
                {k: v for k, v in given.items() if k not in _NOT_THE_MODEL},
            ],
            "content": data.manifest.fingerprint if data.manifest else None,
        }

    def original(self, users: Sequence[Strategy | Selector] = ()) -> None:
        """Give the task the weights of a trained original: its own, kept ones, or new ones.

        Args:
            users: get a record of its training, where they need one and none is given.

        Raises:
            UsageError: one needs a record, and the original's weights are given without it.
        """
        task = self.model.task
        found_by = [(u, u.recorder()) for u in users if u.record is None]
        asked = [(u, r) for u, r in found_by if r is not None]
        if task.checkpoint is not None:
            for user, _ in asked:
                raise UsageError(how_to_record(user))
            say(f"original: the weights of {task.checkpoint}")
        else:
            say("original: looking for a trained model …")
            key = cache_key(**self.parts, seed=self.data.seed)
            paths = {r.name: self.kept.record("original", key, r) for _, r in asked}
            recorders = list({r.name: r for _, r in asked}.values())
            self.kept.trainer["callbacks"] = self.bar("training the original")
            model, seconds, found = self.kept.get(
                "original", key, task, self.data, "train", self.data.seed, recorders
            )
            for user, recorder in asked:
                user.record = str(paths[recorder.name])
                say(f"record: {user.record}")
            task.network.load_state_dict(model.network.state_dict())
            task.shards_folder = model.shards_folder
            self.seconds["original"] = seconds
            say(f"original: {_how(found)} in {seconds:.1f} s")
        self.before = copy.deepcopy(task).eval()

    def gold(self) -> list[Task]:
        """Models retrained without the forget set, kept or new, of as many seeds as asked for."""
        models = []
        forget = self.data.manifest.forget_sha256 if self.data.manifest else None
        count = self.settings.evidence.retrained
        for i in range(1, count + 1):
            self.kept.trainer["callbacks"] = self.bar(f"retraining {i}/{count}")
            seed = self.data.seed + i
            key = cache_key(**self.parts, seed=seed, forget=forget)
            model, seconds, found = self.kept.get(
                "retrained", key, self.before, self.data, "retrain", seed
            )
            models.append(model)
            self.seconds["retrained" if i == 1 else f"retrained_{i}"] = seconds
            say(f"retrained{f' (seed {i})' if i > 1 else ''}: {_how(found)} in {seconds:.1f} s")
        return models

    def report(
        self, run_dir: Path, recorder: Recorder, selector: Selector | None, config: str
    ) -> None:
        """Measure all models, write the report into the run's folder and print its core."""
        from erasus_pl.evaluation.compare import compare
        from erasus_pl.evaluation.terminal import show

        if getattr(rank_zero_only, "rank", 0) != 0:
            return
        self.model.eval()
        gold = self.gold()
        found_done = getattr(self.model, "seconds_found", 0.0)
        self.seconds["unlearned"] = recorder.seconds + found_done
        evidence = compare(
            self.before.cpu(),
            self.model.task.cpu(),
            gold or None,
            self.data,
            seconds=self.seconds,
            run={
                "name": run_dir.name,
                "strategy": type(self.model).__name__,
                "paper": self.model.paper,
                "seed": self.settings.seed_everything,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {"erasus_pl": __version__}
                | {p: version(p) for p in ("torch", "lightning", "torchmetrics", "numpy")},
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}, "
                f"{torch.get_num_threads()} threads",
                "git": _git_revision(),
                "config": config,
            },
            coreset=self._coreset(selector),
            curves=recorder.curves,
            watch=watch if self.bar("measuring") else None,
        )
        evidence.write(run_dir)
        show(evidence)
        say(f"report: {run_dir / 'report.html'}")

    def _coreset(self, selector: Selector | None) -> dict[str, Any] | None:
        picked = selector.state_dict().get("indices") if selector is not None else None
        if selector is None or picked is None:
            return None
        return {
            "size": len(picked),
            "of": len(self.data.forget_set),
            "selector": type(selector).__name__,
            "seconds": selector.seconds,
        }


def _how(found: bool) -> str:
    return "reused, trained before" if found else "trained"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not k.startswith("__")}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _git_revision() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return found.stdout.strip() or None
