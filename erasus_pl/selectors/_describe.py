"""What can be measured of data, model and strategy before a selection, as a few numbers."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from erasus_pl.selectors._rows import head_gradients
from erasus_pl.selectors.random import sample
from erasus_pl.strategies.base import Strategy
from erasus_pl.tasks.base import Batch

__all__ = ["FEATURES", "concentration", "describe", "effective_rank", "family", "shift"]

_MODES = ("paired", "sequential", "forget", "retain", "single_pass")
_SETS = ("forget", "retain", "holdout")
FEATURES = (
    "log_train", "log_forget", "forget_fraction", "log_classes", "concentration", "log_parameters",
    *(f"{name}_loss{end}" for name in _SETS for end in ("", "_spread")),
    "accuracy_gap", "gradient_norm", "gradient_spread", "feature_shift", "feature_rank",
    "one_shot", "needs_original", *(f"mode_{mode}" for mode in _MODES), "log_epochs",
)  # fmt: skip


def concentration(labels: Tensor, classes: int) -> float:
    """``1 - H(labels) / log C``, in [0, 1]: 1 for a single class, 0 for all alike.

    Args:
        labels: ``(N,)`` class numbers.
        classes: ``C``; of a single one the answer is 1.
    """
    if classes < 2:
        return 1.0
    share = torch.bincount(labels, minlength=classes).double() / len(labels)
    return 1 + float(torch.special.xlogy(share, share).sum()) / math.log(classes)


def effective_rank(features: Tensor) -> float:
    """``tr(S)^2 / tr(S^2) / min(n - 1, d)`` of their covariance S, in [0, 1]; 0 without spread.

    Args:
        features: ``(n, d)``.
    """
    n, d = features.shape
    centred = features - features.mean(0)
    gram = centred.T @ centred if d < n else centred @ centred.T
    square = float(gram.square().sum())
    return float(gram.trace()) ** 2 / square / max(1, min(n - 1, d)) if square > 0 else 0.0


def shift(forget: Tensor, retain: Tensor) -> float:
    """Distance of the means, in root mean squared distances of the second set to its own.

    Args:
        forget: ``(n, d)``.
        retain: ``(m, d)``; without spread the answer is 0.
    """
    center = retain.mean(0)
    spread = float((retain - center).square().sum(1).mean().sqrt())
    return float((forget.mean(0) - center).norm()) / spread if spread > 0 else 0.0


def family(strategy: Strategy) -> dict[str, float]:
    """What the class of a strategy says of it, as flags."""
    modes = {f"mode_{mode}": float(strategy.loader_mode == mode) for mode in _MODES}
    flags = {"one_shot": strategy.one_shot, "needs_original": strategy.needs_original}
    return {**{k: float(v) for k, v in flags.items()}, **modes}


def describe(strategy: Strategy, samples: int = 500) -> dict[str, float]:
    """The value of each of `FEATURES`; NaN where it has no meaning.

    Args:
        strategy: of a run whose data is set up, before its first step.
        samples: drawn of each set for what the model makes of it.
    """
    modes = {m: m.training for m in strategy.modules()}
    strategy.eval()
    try:
        seen = {name: _look(strategy, name, samples) for name in _SETS}
    finally:
        for module, mode in modes.items():
            module.training = mode
    task, data, forget = strategy.task, strategy.data, seen["forget"]
    found = dict.fromkeys(FEATURES, math.nan)
    found |= family(strategy)
    found["log_train"] = math.log10(len(data.train_set))
    found["log_forget"] = math.log10(len(data.forget_set))
    found["forget_fraction"] = len(data.forget_set) / len(data.train_set)
    found["log_parameters"] = math.log10(max(1, sum(p.numel() for p in task.parameters())))
    epochs = strategy.trainer.max_epochs
    if epochs is not None and epochs > 0:
        found["log_epochs"] = math.log10(epochs)
    for name, values in seen.items():
        if not values:
            continue
        found[f"{name}_loss"] = math.log1p(max(0.0, float(values["loss"].mean())))
        found[f"{name}_loss_spread"] = math.log1p(float(values["loss"].std(correction=0)))
    if seen["holdout"]:
        found["accuracy_gap"] = float(forget["correct"].mean() - seen["holdout"]["correct"].mean())
    if "labels" in forget:
        classes = task.head.out_features
        found["log_classes"] = math.log10(classes)
        found["concentration"] = concentration(forget["labels"], classes)
    if "gradient" in forget:
        mean = float(forget["gradient"].mean())
        found["gradient_norm"] = math.log1p(mean)
        found["gradient_spread"] = float(forget["gradient"].std(correction=0)) / (mean or 1.0)
    if "features" in forget and seen["retain"]:
        found["feature_shift"] = shift(forget["features"], seen["retain"]["features"])
        found["feature_rank"] = effective_rank(forget["features"])
    return found


@torch.no_grad()
def _look(strategy: Strategy, name: str, samples: int) -> dict[str, Tensor]:
    """What the model makes of samples of a set, by kind."""
    task, able = strategy.task, strategy.task.capabilities
    parts: dict[str, list[Tensor]] = {}
    for batch in _drawn(strategy, name, samples):
        outputs = task(batch)
        values = {"loss": task.per_sample_loss(outputs, batch)}
        values["correct"] = task.correct(outputs, batch)
        if {"targets", "linear_head"} <= able:
            values["labels"] = task.predictions(outputs, batch)[1].reshape(-1)
        if "features" in able:
            values["features"] = task.features(batch)
        if name == "forget" and "linear_head" in able:
            values["gradient"] = head_gradients(task, batch).squared_norms().sqrt()
        for key, value in values.items():
            parts.setdefault(key, []).append(value if key == "labels" else value.double())
    return {key: torch.cat(found) for key, found in parts.items()}


def _drawn(strategy: Strategy, name: str, samples: int) -> Iterator[Batch]:
    whole: Any = getattr(strategy.data, f"{name}_set")
    drawn = sample(len(whole), min(samples, len(whole)), 0)
    for batch in strategy.data.sweep(Subset(whole, drawn.tolist())):
        yield strategy.trainer.strategy.batch_to_device(batch)
