"""Lightning's training epoch without what a run does not use.

On a small network most of a stock step goes into looking for hooks that nobody defined, opening
profiler contexts that profile nothing, and telling a progress bar what it will not draw. Here the
hooks that exist are looked up once per epoch and called as the stock loop calls them: same order,
same arguments, same counters, hence the same checkpoints. Wherever more is asked for (accumulation,
mixed precision, several processes, a profiler, a module that overrides how batches move or
optimisers step) the stock step runs.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

__all__ = ["LeanEpochLoop", "install"]

_Hook = Callable[..., Any]
_TRANSFER = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_OWN_WAY = (
    *_TRANSFER, "on_train_batch_start", "optimizer_step", "optimizer_zero_grad", "backward",
)  # fmt: skip
_HOOKS = (
    "on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_train_batch_end",
)  # fmt: skip
_DRAWN_PER_SECOND = 10


def install(trainer: Trainer) -> None:
    """Give a trainer the lean loop in place of the stock one; a loop of one's own is left alone."""
    stock = trainer.fit_loop.epoch_loop
    if type(stock) is _TrainingEpochLoop:
        lean = LeanEpochLoop(trainer, stock.min_steps, stock.max_steps)
        lean.__dict__.update(vars(stock), _results=_Results(training=True))
        trainer.fit_loop.epoch_loop = lean


class LeanEpochLoop(_TrainingEpochLoop):
    """Runs the epochs of a fit; see the module's docstring."""

    _results: "_Results"
    _step: "_Step | None" = None

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Look up what the steps of this epoch call."""
        super().on_run_start(data_fetcher)
        self._step = _Step(self) if _is_plain(self.trainer, data_fetcher) else None

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Run one training batch."""
        if self._step is None or self.restarting:
            super().advance(data_fetcher)
        else:
            self._step(data_fetcher)

    def teardown(self) -> None:
        """Let go of what was looked up."""
        super().teardown()
        self._step = None

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        if self._step is not None and self._step.is_within_epoch():
            return False
        return super()._should_check_val_fx(data_fetcher)


class _Results(_ResultCollection):
    """Knows whether anything was logged since it was last asked."""

    touched = False

    def log(self, *args: Any, **kwargs: Any) -> None:
        self.touched = True
        super().log(*args, **kwargs)


class _Step:
    """One training batch, with all that does not change within an epoch looked up before."""

    def __init__(self, loop: LeanEpochLoop) -> None:
        self.loop, self.trainer = loop, loop.trainer
        self.module: LightningModule = loop.trainer.lightning_module
        self.names = self.module.__dict__  # past nn.Module.__setattr__, which looks for parameters
        self.progress = loop.batch_progress
        self.counts = loop.automatic_optimization.optim_progress.optimizer
        self.hooks = {name: self._hooks(name) for name in _HOOKS}
        self.optimizer = self.trainer.optimizers[0]
        self.clips = _overrides(self.module, LightningModule, "configure_gradient_clipping")
        self.keywords = ("batch", "batch_idx")[
            : 1 + is_param_in_hook_signature(self.module.training_step, "batch_idx", min_args=2)
        ]
        self.moves = self.trainer.strategy.root_device.type != "cpu"

    def __call__(self, data_fetcher: _DataFetcher) -> None:
        loop, trainer, progress = self.loop, self.trainer, self.progress
        connector, results = trainer._logger_connector, loop._results
        if loop.val_loop.restarting:
            loop.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        index = progress.current.ready
        progress.is_last_batch = data_fetcher.done
        if self.moves:
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        self._call("on_train_batch_start", batch, index)
        progress.increment_started()
        step = OrderedDict(zip(self.keywords, (batch, index), strict=False))
        if self.module.automatic_optimization:
            outputs = self._optimise(step)
        else:
            outputs = loop.manual_optimization.run(step)
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            if loop._num_ready_batches_reached():
                loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        self._call("on_train_batch_end", outputs, batch, index)
        if results.touched:
            results.touched = False
            connector.on_batch_end()
        else:
            results.batch = results.batch_size = None
        progress.increment_completed()
        every, done = trainer.log_every_n_steps, loop._batches_that_stepped + 1
        if (every and done % every == 0) or trainer.should_stop or trainer.fast_dev_run:
            connector.update_train_step_metrics()

    def is_within_epoch(self) -> bool:
        """Whether validation is certainly not due."""
        trainer, every = self.trainer, self.trainer.val_check_batch
        return bool(
            not self.progress.is_last_batch
            and not trainer.should_stop
            and trainer.check_val_every_n_epoch is not None
            and trainer._val_check_time_interval is None
            and isinstance(every, int)
            and self.progress.current.ready % every != 0
        )

    def _optimise(self, step: OrderedDict[str, Any]) -> dict[str, Any]:
        result = ClosureResult(None)

        def closure() -> torch.Tensor | None:
            nonlocal result
            with torch.enable_grad():
                result = self._gradients(step)
            self._call("on_before_optimizer_step", self.optimizer)
            if self.clips or self.trainer.gradient_clip_val:
                self.names["_current_fx_name"] = "configure_gradient_clipping"
                self.module.configure_gradient_clipping(
                    self.optimizer,
                    gradient_clip_val=self.trainer.gradient_clip_val,
                    gradient_clip_algorithm=self.trainer.gradient_clip_algorithm,
                )
                self.names["_current_fx_name"] = None
            return result.loss

        self.counts.step.increment_ready()
        self.optimizer.step(closure=closure)
        self.counts.step.increment_completed()
        return {} if result.loss is None else result.asdict()

    def _gradients(self, step: OrderedDict[str, Any]) -> ClosureResult:
        self.names["_current_fx_name"] = "training_step"
        output = self.module.training_step(*step.values())
        self.names["_current_fx_name"] = None
        if isinstance(output, torch.Tensor):
            result = ClosureResult(output)
        else:
            result = ClosureResult.from_training_step_output(output)
        loss, counts = result.closure_loss, self.counts.zero_grad
        if loss is None:
            Closure.warning_cache.warn("`training_step` returned `None`, so nothing was learned")
        counts.increment_ready()
        self._call("on_before_zero_grad", self.optimizer)
        counts.increment_started()
        self.optimizer.zero_grad()
        counts.increment_completed()
        if loss is not None:
            self._call("on_before_backward", loss)
            loss.backward()
            self._call("on_after_backward")
        return result

    def _call(self, name: str, *arguments: Any) -> None:
        hooks = self.hooks[name]
        if hooks:
            self.names["_current_fx_name"] = name
            for hook in hooks:
                hook(*arguments)
            self.names["_current_fx_name"] = None

    def _hooks(self, name: str) -> list[_Hook]:
        hooks: list[_Hook] = []
        for callback in self.trainer.callbacks:
            if _overrides(callback, Callback, name):
                hook = partial(getattr(callback, name), self.trainer, self.module)
                stock_bar = name == "on_train_batch_end" and any(
                    getattr(type(callback), name) is getattr(bar, name)
                    for bar in (RichProgressBar, TQDMProgressBar)
                )
                hooks.append(_Paced(hook, self.loop) if stock_bar else hook)
        if _overrides(self.module, LightningModule, name):
            hooks.append(getattr(self.module, name))
        return hooks


class _Paced:
    """Tells one of Lightning's progress bars of a step ten times a second, and of the last one."""

    def __init__(self, hook: _Hook, loop: LeanEpochLoop) -> None:
        self.hook, self.loop, self.due = hook, loop, 0.0

    def __call__(self, *arguments: Any) -> None:
        now, loop = time.monotonic(), self.loop
        if (
            now >= self.due
            or loop.batch_progress.is_last_batch
            or loop.trainer.should_stop
            or loop.global_step == loop.max_steps
        ):
            self.due = now + 1 / _DRAWN_PER_SECOND
            self.hook(*arguments)


def _is_plain(trainer: Any, data_fetcher: _DataFetcher) -> bool:
    """Whether the lean step does all that the stock step would do."""
    module, data = trainer.lightning_module, trainer.datamodule
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.precision_plugin) is Precision
        and type(trainer.profiler) is PassThroughProfiler
        and trainer.strategy.model is module
        and trainer.accumulate_grad_batches == 1
        and not trainer.fit_loop._skip_backward
        and len(trainer.optimizers) == 1
        and not isinstance(data_fetcher, _DataLoaderIterDataFetcher)
        and not any(_overrides(module, LightningModule, name) for name in _OWN_WAY)
        and not (
            data is not None
            and any(_overrides(data, LightningDataModule, name) for name in _TRANSFER)
        )
    )


def _overrides(instance: object, base: type, name: str) -> bool:
    return getattr(getattr(instance, name), "__func__", None) is not getattr(base, name)
