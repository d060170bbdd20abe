"""The command line: Lightning's own verbs, and the evidence around `fit`."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import datamodules  # noqa: F401
import erasus_pl.selectors
import erasus_pl.strategies
import erasus_pl.tasks  # noqa: F401
from erasus_pl._checks import check, checkpoint_path
from erasus_pl._console import Progress, quiet, say, show_splits
from erasus_pl._parsing import Parser, is_ours, remedy
from erasus_pl._proof import EvidenceOptions, Proof
from erasus_pl._words import UsageError, complain
from erasus_pl.callbacks import (
    AtomicCheckpointIO,
    Recorder,
    RunCheckpoint,
    RunCSVLogger,
    RunMLFlowLogger,
    save_atomically,
)
from erasus_pl.requests import ForgetRequest
from erasus_pl.selectors import Selector
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task
from erasus_pl.tasks.base import SPLITS

__all__ = ["ErasusCLI", "EvidenceOptions", "UnlearningTrainer", "run"]

_FILES = ("config.yaml", "report.html", "report.json", "report.md", "checkpoints/last.ckpt")
_SMALL = 100_000


class UnlearningTrainer(Trainer):
    """Lightning's Trainer with the verb `evaluate`."""

    def evaluate(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str = "last",
    ) -> None:
        """Measure an unlearned checkpoint against original and retrained, and write the report."""
        if not isinstance(model, Strategy):
            msg = (
                f"`model`: evaluate needs the strategy of a run, got {type(model).__name__}; use "
                "validate or test for a task"
            )
            raise TypeError(msg)
        if ckpt_path == "last":
            ckpt_path = str(Path(self.default_root_dir) / "checkpoints" / "last.ckpt")
        content = AtomicCheckpointIO().load_checkpoint(ckpt_path)
        datamodule.setup("validate")
        datamodule.load_state_dict(content[type(datamodule).__qualname__])
        model.load_state_dict(content["state_dict"])
        for callback in self.callbacks:  # type: ignore[attr-defined]
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
        parser.add_argument("--resume", action="store_true", help="The same as --ckpt_path last.")
        parser.set_defaults({"trainer.enable_model_summary": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the run file and the command line."""
        assert isinstance(parser, Parser)
        self.config = parser.parse(args)
        settings = self.config[self.config.subcommand]
        if settings.pop("resume"):
            if settings.ckpt_path not in (None, "last"):
                msg = (
                    "`resume` means the last checkpoint, and `ckpt_path` is "
                    f"{settings.ckpt_path!r}; give one of the two"
                )
                raise UsageError(msg)
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
        self.callbacks = [self.recorder, *selector, *callbacks, *self._bar(doing, callbacks)]
        kwargs["callbacks"] = [*self.callbacks]
        try:
            return super().instantiate_trainer(**kwargs)
        except (ValueError, MisconfigurationException) as error:
            if is_ours(error):
                raise
            msg = f"`trainer`: {error}"
            raise UsageError(msg) from error

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
            for split, batches in zip(SPLITS, found or [], strict=True)
            if batches
        }
        rank = f"-{self.trainer.global_rank}" if self.trainer.world_size > 1 else ""
        path = self.run_dir / f"predictions{rank}.pt"
        save_atomically(content, path)
        say(f"predictions: {path}")

    def before_fit(self) -> None:
        """Give the strategy a trained original."""
        resumed = self._ready()
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
        self._ready()

    before_test = before_predict = before_evaluate = before_validate

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

    def _default_folder(self) -> str:
        configs = self._settings.get("config") or []
        name = Path(str(configs[0])).stem if configs else type(self.model).__name__.lower()
        return str(Path("runs") / name)

    def _checkpoint(self) -> str | None:
        return checkpoint_path(str(self.subcommand), self._settings, self.run_dir, self.model)

    def _ready(self) -> str | None:
        """See that everything is there and fits, and find the original."""
        path = self._checkpoint()
        _spare_threads(self.model)
        check(str(self.subcommand), self.model, self.datamodule, self.trainer)
        if isinstance(self.model, Strategy) and self.subcommand in ("fit", "evaluate"):
            self.proof = Proof(self._settings, self.model, self.datamodule, self._bar)
            users: list[Strategy | Selector] = [self.model]
            users += [s for s in getattr(self.model, "stages", []) if s is not None]
            users += [c for c in self.callbacks if isinstance(c, Selector)]
            self.proof.original(users if self.subcommand == "fit" else ())
            self._set_seed()
        return path

    def _report(self) -> None:
        self.proof.report(
            self.run_dir,
            self.recorder,
            next((c for c in self.callbacks if isinstance(c, Selector)), None),
            self._parser(self.subcommand).dump(self._settings, skip_link_targets=False),
        )


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


def _spare_threads(model: LightningModule) -> None:
    """Compute a small network on one thread, unless OMP_NUM_THREADS says how many.

    Its steps are shorter than the time that several threads wait for each other, above all where
    other work shares the cores.
    """
    parameters = sum(p.numel() for p in model.parameters())
    if "OMP_NUM_THREADS" not in os.environ and parameters < _SMALL:
        torch.set_num_threads(1)


def _join(parts: list[torch.Tensor]) -> torch.Tensor | list[torch.Tensor]:
    same = len({part.shape[1:] for part in parts}) == 1
    return torch.cat(parts).cpu() if same else [part.cpu() for part in parts]
