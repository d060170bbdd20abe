"""The command line: Lightning's own verbs, and the evidence around `fit`."""

import copy
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import datamodules  # noqa: F401
import erasus_pl.selectors  # noqa: F401
import erasus_pl.strategies  # noqa: F401
import erasus_pl.tasks  # noqa: F401
from erasus_pl import __version__
from erasus_pl._console import Progress, quiet, say, show_splits, watch
from erasus_pl._parsing import Parser, is_ours, remedy
from erasus_pl._words import UsageError, complain
from erasus_pl.callbacks import (
    AtomicCheckpointIO,
    Recorder,
    RunCheckpoint,
    RunCSVLogger,
    RunMLFlowLogger,
    save_atomically,
)
from erasus_pl.evaluation.gold import Kept, cache_key
from erasus_pl.requests import ForgetRequest
from erasus_pl.selectors import Selector
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task
from erasus_pl.tasks.base import SPLITS

__all__ = ["ErasusCLI", "EvidenceOptions", "UnlearningTrainer", "run"]

_FILES = ("config.yaml", "report.html", "report.json", "report.md", "checkpoints/last.ckpt")


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
            raise ValueError(f"`evidence.retrained` must be at least 0, got {self.retrained}")


class UnlearningTrainer(Trainer):
    """Lightning's Trainer with the verb `evaluate`."""

    def evaluate(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str = "last",
    ) -> None:
        """Measure an unlearned checkpoint against original and retrained, and write the report."""
        if not isinstance(model, Strategy):
            raise TypeError(
                f"`model`: evaluate needs the strategy of a run, got {type(model).__name__}; use "
                "validate or test for a task"
            )
        if ckpt_path == "last":
            ckpt_path = str(Path(self.default_root_dir) / "checkpoints" / "last.ckpt")
        content = AtomicCheckpointIO().load_checkpoint(ckpt_path)
        datamodule.setup("validate")
        datamodule.load_state_dict(content[type(datamodule).__qualname__])
        model.load_state_dict(content["state_dict"])
        for callback in self.callbacks:
            if callback.state_key in content["callbacks"]:
                callback.load_state_dict(content["callbacks"][callback.state_key])


class ErasusCLI(LightningCLI):
    """Lightning's command line; `fit` on a strategy trains the original, unlearns, and reports."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Verbs, and the arguments of each that are no flags."""
        return {**LightningCLI.subcommands(), "evaluate": {"model", "datamodule"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Parts of a run file beside `trainer`, `model` and `data`."""
        parser.add_subclass_arguments(Task, "task", required=False, help="What is unlearned.")
        parser.add_subclass_arguments(
            ForgetRequest, "request", required=False, help="What must go."
        )
        parser.add_subclass_arguments(
            Selector, "selector", required=False, help="What to spend the work on."
        )
        parser.link_arguments("task", "model.init_args.task", apply_on="instantiate")
        parser.link_arguments("request", "data.init_args.request", apply_on="instantiate")
        parser.add_class_arguments(EvidenceOptions, "evidence")
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_argument(
            "--resume", action="store_true", help="The same as --ckpt_path last."
        )
        parser.set_defaults({"trainer.enable_model_summary": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the run file and the command line."""
        self.config = parser.parse(args)
        settings = self.config[self.config.subcommand]
        if settings.pop("resume"):
            if settings.ckpt_path not in (None, "last"):
                raise UsageError(
                    f"`resume` means the last checkpoint, and `ckpt_path` is "
                    f"{settings.ckpt_path!r}; give one of the two"
                )
            settings.ckpt_path = "last"

    def _parse_ckpt_path(self) -> None:
        """A checkpoint holds no configuration: config.yaml is the record."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the run's folder, exact checkpoints and the recorder."""
        settings = self.config_init[self.subcommand]
        given = settings["trainer"]
        root = given.get("default_root_dir")
        self.run_dir = Path(root if root is not None else self._default_folder())
        kwargs["default_root_dir"] = str(self.run_dir)
        plugins = given.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        kwargs["plugins"] = [*plugins, AtomicCheckpointIO()]
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif given.get("logger") in (None, True):
            kwargs["logger"] = RunCSVLogger(self.run_dir, resume=bool(settings.get("ckpt_path")))
        checkpoint = settings["checkpoint"]
        if checkpoint.dirpath is None:
            checkpoint.dirpath = str(self.run_dir / "checkpoints")
        self.recorder = Recorder()
        selector = [settings["selector"]] if settings.get("selector") else []
        callbacks = given.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        doing = "unlearning" if isinstance(self.model, Strategy) else "training"
        kwargs["callbacks"] = [self.recorder, *selector, *callbacks, *self._bar(doing, callbacks)]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            if is_ours(error):
                raise
            raise UsageError(f"`trainer`: {error}") from error

    def fit(self, **arguments: Any) -> None:
        """Train a task, or unlearn with a strategy."""
        self.trainer.fit(**self._resolve(arguments))

    def validate(self, **arguments: Any) -> None:
        """Measure utility on forget, retain, test and holdout set."""
        show_splits(self.trainer.validate(**self._resolve(arguments), verbose=False))

    def test(self, **arguments: Any) -> None:
        """Measure utility on forget, retain, test and holdout set."""
        show_splits(self.trainer.test(**self._resolve(arguments), verbose=False))

    def predict(self, **arguments: Any) -> None:
        """Write outputs and dataset positions of every set to predictions.pt in the run's folder.

        The file holds, for each of forget, retain, test and holdout, a dict of `index` (n,) and
        `outputs` (n, …); each process writes its own part.
        """
        found = self.trainer.predict(**self._resolve(arguments), return_predictions=True)
        content = {
            split: {k: _join([batch[k] for batch in batches]) for k in ("index", "outputs")}
            for split, batches in zip(SPLITS, found, strict=True)
            if batches
        }
        rank = f"-{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = self.run_dir / f"predictions{rank}.pt"
        save_atomically(content, path)
        say(f"predictions: {path}")

    def before_fit(self) -> None:
        """Give the strategy a trained original."""
        resumed = self._checkpoint()
        self._check()
        if isinstance(self.model, Strategy):
            self._original()
        last = self.run_dir / "checkpoints" / "last.ckpt"
        if not resumed and last.exists():
            last.replace(last.with_name("previous.ckpt"))
        self._open_loggers(resume=bool(resumed))

    def after_fit(self) -> None:
        """Measure and report."""
        if isinstance(self.model, Strategy) and self._settings.evidence.enabled:
            self._report()
        for logger in self.trainer.loggers:
            if isinstance(logger, RunMLFlowLogger):
                logger.log_files(self.run_dir, _FILES)

    def before_validate(self) -> None:
        """See that checkpoint and data are there and fit."""
        self._checkpoint()
        self._check()

    before_test = before_predict = before_validate

    def before_evaluate(self) -> None:
        """Read or train the original."""
        self._checkpoint()
        self._check()
        if isinstance(self.model, Strategy):
            self._original()

    def after_evaluate(self) -> None:
        """Measure and report."""
        self._report()

    @property
    def _settings(self) -> Any:
        return self.config[self.subcommand]

    def _resolve(self, arguments: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in arguments.items() if k not in ("verbose", "return_predictions")}
        return {**kept, "ckpt_path": self._checkpoint()}

    def _open_loggers(self, resume: bool) -> None:
        content = self._parser(self.subcommand).dump(self._settings, skip_link_targets=False)
        parameters = yaml.safe_load(content)
        for logger in self.trainer.loggers:
            if isinstance(logger, RunMLFlowLogger):
                logger.open(self.run_dir, parameters, resume)
            elif not isinstance(logger, RunCSVLogger):
                logger.log_hyperparams(parameters)

    def _bar(self, doing: str, others: list[Callback] | None = None) -> list[Callback]:
        asked = self._settings.trainer
        own = any(isinstance(callback, ProgressBar) for callback in others or [])
        off = asked.enable_progress_bar is False or asked.barebones
        return [] if own or off else [Progress(doing)]

    def _checkpoint(self) -> str | None:
        given = self._settings.get("ckpt_path")
        last = self.run_dir / "checkpoints" / "last.ckpt"
        if given is None and self.subcommand != "fit":
            task = self.model.task if isinstance(self.model, Strategy) else self.model
            given = "last" if last.is_file() or getattr(task, "checkpoint", None) is None else None
        if given is None:
            return None
        path = last if given == "last" else Path(given)
        if not path.is_file():
            hint = f"; the last of this run is {str(last)!r}" if last.is_file() else ", or run fit"
            raise UsageError(
                f"`ckpt_path`: there is no checkpoint {str(path)!r}; give the path of a .ckpt file"
                f"{hint}"
            )
        if self.subcommand == "fit":
            self._refuse_another_strategy(path)
        return str(path)

    def _refuse_another_strategy(self, checkpoint: Path) -> None:
        record = checkpoint.parent.parent / "config.yaml"
        if not record.is_file():
            return
        before = yaml.safe_load(record.read_text(encoding="utf-8"))["model"]["class_path"]
        now = self._settings.model.class_path
        if before != now:
            raise UsageError(
                f"`ckpt_path`: {str(checkpoint)!r} was made by {before}, and `model` is {now}; "
                "resume with the same, or start without --ckpt_path"
            )

    def _default_folder(self) -> str:
        configs = self._settings.get("config") or []
        name = Path(str(configs[0])).stem if configs else type(self.model).__name__.lower()
        return str(Path("runs") / name)

    def _check(self) -> None:
        if self.datamodule is None:
            raise UsageError(
                "`data` is missing; give a datamodule, such as data: data/digits.yaml in a run file"
            )
        self.datamodule.setup("validate")
        if isinstance(self.model, Strategy):
            if self.datamodule.request is None:
                raise UsageError(
                    f"`request` is missing: {type(self.model).__name__} needs to know what must "
                    "go; give a forget request, such as ForgetClass or ForgetRandom"
                )
            self.model.trainer = self.trainer
            self.model.setup(self.subcommand)
        task = self.model.task if isinstance(self.model, Strategy) else self.model
        if isinstance(task, Task):
            _check_fit(task, self.datamodule)

    def _original(self) -> None:
        settings, task = self._settings, self.model.task
        names = ("accelerator", "strategy", "devices", "num_nodes", "precision")
        trainer = {k: settings.trainer[k] for k in names}
        trainer["enable_progress_bar"] = settings.trainer.enable_progress_bar
        if isinstance(trainer["strategy"], str) is False:
            trainer.pop("strategy")
        self.kept = Kept(settings.evidence.cache, trainer)
        recipe = settings.get("task") or settings.model.init_args.get("task")
        data = {
            k: v
            for k, v in _plain(settings.data.as_dict())["init_args"].items()
            if k not in ("request", "num_workers", "pin_memory", "epoch", "forget_batch_size")
        }
        self._seed = self.datamodule.seed
        self._parts = {
            "task": _plain(recipe.as_dict()),
            "data": [settings.data.class_path, data],
            "content": self.datamodule.manifest.fingerprint if self.datamodule.manifest else None,
        }
        self.seconds: dict[str, float] = {}
        if task.checkpoint is not None:
            say(f"original: the weights of {task.checkpoint}")
        else:
            say("original: looking for a trained model …")
            key = cache_key(**self._parts, seed=self._seed)
            self.kept.trainer["callbacks"] = self._bar("training the original")
            model, seconds, found = self.kept.get(
                "original", key, task, self.datamodule, "train", self._seed
            )
            task.network.load_state_dict(model.network.state_dict())
            self.seconds["original"] = seconds
            say(f"original: {'reused, trained before' if found else 'trained'} in {seconds:.1f} s")
        self.original = copy.deepcopy(task).eval()
        self._set_seed()

    def _gold(self) -> list[Task]:
        gold = []
        count = self._settings.evidence.retrained
        for i in range(count):
            self.kept.trainer["callbacks"] = self._bar(f"retraining {i + 1}/{count}")
            seed = self._seed + 1 + i
            key = cache_key(
                **self._parts, seed=seed, forget=self.datamodule.manifest.forget_sha256
            )
            model, seconds, found = self.kept.get(
                "retrained", key, self.original, self.datamodule, "retrain", seed
            )
            gold.append(model)
            name = "retrained" if i == 0 else f"retrained_{i + 1}"
            self.seconds[name] = seconds
            how = "reused, trained before" if found else "trained"
            say(f"{name.replace('_', ' (seed ')}{')' if i else ''}: {how} in {seconds:.1f} s")
        return gold

    def _report(self) -> None:
        from erasus_pl.evaluation.compare import compare
        from erasus_pl.evaluation.terminal import show

        self.model.eval()
        gold = self._gold()
        self.seconds["unlearned"] = self.recorder.seconds
        selector = next((c for c in self.trainer.callbacks if isinstance(c, Selector)), None)
        coreset = None
        if selector is not None:
            coreset = {
                "size": len(selector.state_dict()["indices"]),
                "of": len(self.datamodule.forget_set),
                "selector": type(selector).__name__,
                "seconds": selector.seconds,
            }
        evidence = compare(
            self.original.cpu(),
            self.model.task.cpu(),
            gold or None,
            self.datamodule,
            seconds=self.seconds,
            run={
                "name": self.run_dir.name,
                "strategy": type(self.model).__name__,
                "paper": self.model.paper,
                "seed": self._settings.seed_everything,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {"erasus_pl": __version__}
                | {p: version(p) for p in ("torch", "lightning", "torchmetrics", "numpy")},
                "python": platform.python_version(),
                "machine": f"{platform.system()} {platform.machine()}, "
                f"{torch.get_num_threads()} threads",
                "git": _git_revision(),
                "config": self._parser(self.subcommand).dump(self._settings, skip_link_targets=False),
            },
            coreset=coreset,
            curves=self.recorder.curves,
            watch=watch if self._bar("measuring") else None,
        )
        evidence.write(self.run_dir)
        show(evidence)
        say(f"report: {self.run_dir / 'report.html'}")


class _SaveConfig(SaveConfigCallback):
    """Writes config.yaml beside the report, for `fit` alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            config = self.config.clone()
            for name in ("config", "ckpt_path", "weights_only"):
                config.pop(name, None)
            self.parser.save(
                config, folder / "config.yaml", skip_unset=False, overwrite=True,
                multifile=False,
            )  # fmt: skip


def run(args: list[str] | None = None) -> int:
    """Run a verb; returns the exit status.

    What the user can mend is printed as one line; anything else keeps its traceback.
    """
    quiet()
    verb = (sys.argv[1:] if args is None else args)[0]

    class OneVerb(ErasusCLI):  # a parser of one verb is built five times as fast as one of all
        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {verb: ErasusCLI.subcommands()[verb]}

    try:
        OneVerb(
            trainer_class=UnlearningTrainer,
            save_config_callback=_SaveConfig,
            seed_everything_default=0,
            parser_kwargs={"prog": "erasus_pl"},
            parser_class=Parser,
            auto_configure_optimizers=False,
            args=args,
        )
    except Exception as error:
        line = remedy(error)
        if line is None:
            raise
        return complain(line)
    return 0


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if not k.startswith("__")}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _join(parts: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    same = len({part.shape[1:] for part in parts}) == 1
    return torch.cat(parts).cpu() if same else [part.cpu() for part in parts]


def _check_fit(task: Task, data: LightningDataModule) -> None:
    batch = next(iter(data.sweep(data.retain_set)))
    training = task.training
    try:
        with torch.no_grad():
            task.eval().per_sample_loss(task(batch), batch)
    except (RuntimeError, IndexError, KeyError, TypeError) as error:
        shapes = {k: tuple(v.shape) for k, v in batch.items() if isinstance(v, torch.Tensor)}
        raise ValueError(
            f"`data`: batches of {shapes} do not fit {type(task).__name__} over "
            f"{type(task.network).__name__}: {error}"
        ) from error
    finally:
        task.train(training)


def _git_revision() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return found.stdout.strip() or None
