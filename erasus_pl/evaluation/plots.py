"""The report's plots: inline SVG, each with a title that states what is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from erasus_pl.attacks import auc, roc
from erasus_pl.evaluation._content import number
from erasus_pl.evaluation._drawing import (
    COLOURS,
    DASHES,
    Plot,
    corners,
    decade,
    drawing,
    figure_of,
    label,
    render,
    thinned,
    tick_labels,
)
from erasus_pl.evaluation.evidence import Array, Evidence, ModelRecord

__all__ = ["COLOURS", "Plot", "draw_all"]

_FLOOR = 1e-6  # losses below it share the leftmost bin
_DECADES = 30  # losses that span a larger factor are drawn on a logarithmic axis
_BINS = 36
_PANELS = 6


def draw_all(evidence: Evidence) -> list[Plot]:
    """Draw what the evidence has values for: gaps, attack, losses, training curves.

    Threads may call this at once: matplotlib's settings are changed under a lock and restored.
    """
    with drawing():
        drawings = (_gaps(evidence), _attack(evidence), _losses(evidence), _curves(evidence))
    return [plot for plot in drawings if plot is not None]


def _shown(evidence: Evidence) -> list[tuple[str, ModelRecord]]:
    keys = ("original", "unlearned", "retrained")
    return [(key, evidence.models[key]) for key in keys if key in evidence.models]


def _losses(evidence: Evidence) -> Plot | None:
    from matplotlib.patches import Patch

    splits = ("forget", "holdout")
    shown = [(k, r) for k, r in _shown(evidence) if any(len(r.losses.get(s, ())) for s in splits)]
    if not shown:
        return None
    pooled = np.concatenate([r.losses[s] for _, r in shown for s in splits if s in r.losses])
    finite = pooled[np.isfinite(pooled)].astype(np.float64)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    above = max(float(np.quantile(finite, 0.005)), _FLOOR) if low >= 0 and len(finite) else high
    logarithmic = low >= 0 and high > _DECADES * above
    if logarithmic:
        low = above
    elif low == high:
        low, high = low - 0.5, high + 0.5
    edges = (np.geomspace if logarithmic else np.linspace)(low, high, _BINS + 1)

    figure = figure_of(1.45 * len(shown) + 0.95)
    panels = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (key, record) in zip(panels, shown, strict=True):
        for split in splits:
            values = np.asarray(record.losses.get(split, ()), dtype=np.float64)
            if not len(values):
                continue
            usable = values[np.isfinite(values)]
            share = np.histogram(np.clip(usable, low, high), edges)[0] * 100 / len(values)
            forget = split == "forget"
            axes.stairs(
                share,
                edges,
                fill=forget,
                color=COLOURS[key] if forget else COLOURS["ink"],
                alpha=0.55 if forget else 1.0,
                linewidth=1.4,
            )
        axes.set_title(label(record.name), color=COLOURS[key])
        if logarithmic:
            axes.set_xscale("log")
            tick_labels(axes.xaxis, decade)
    figure.legend(
        handles=[
            Patch(facecolor=COLOURS["muted"], alpha=0.55, label="samples to forget"),
            Patch(facecolor="none", edgecolor=COLOURS["ink"], label="holdout, never seen"),
        ],
        loc="outside upper left",
        ncols=2,
        handlelength=1.2,
    )
    figure.supylabel("share of samples (%)", fontsize=11)
    panels[-1].set_xlabel("loss per sample (nats" + (", log scale)" if logarithmic else ")"))

    medians = {key: _median(record.losses.get("forget", ())) for key, record in shown}
    title = "Loss on the forgotten samples (median): " + _each(medians, _loss)
    caption = (
        "Filled: the samples to forget. Outline: holdout samples, which no model ever saw. "
        "A model that has forgotten treats both as the retrained model does; samples it "
        "remembers sit further left, at lower loss. The outermost bars hold all that lies beyond."
    )
    odd = sum(
        int((~np.isfinite(r.losses[s])).sum()) for _, r in shown for s in splits if s in r.losses
    )
    if odd:
        caption += f" {odd} losses are not finite numbers and cannot be drawn."
    return render("losses", title, caption, figure)


def _attack(evidence: Evidence) -> Plot | None:
    curves = {}
    for key, record in _shown(evidence):
        members, others = record.scores.get("forget", ()), record.scores.get("holdout", ())
        if len(members) and len(others):
            curves[key] = (record, roc(members, others), auc(members, others))
    if not curves:
        return None
    unseen = max(len(record.scores["holdout"]) for record, *_ in curves.values())
    low = float(np.clip(10.0 ** np.floor(-np.log10(unseen)), 1e-4, 1e-3))
    figure = figure_of(4.4)
    axes = figure.subplots()
    areas = {}
    for key, (record, curve, area) in curves.items():
        areas[key] = area
        fpr, tpr = curve.log_points(low / 10)
        corner = corners(fpr) & corners(tpr)
        axes.plot(
            fpr[corner],
            tpr[corner],
            color=COLOURS[key],
            linestyle=DASHES[key],
            label=f"{label(record.name)}: AUC {area:.3f}",
        )
    axes.plot([low, 1], [low, 1], color=COLOURS["muted"], linewidth=1, label="guessing: AUC 0.500")
    axes.axvline(0.01, color=COLOURS["muted"], linewidth=1, linestyle=":")
    axes.annotate("1 % wrongly\ncalled", (0.0092, 0.93), ha="right", va="top", fontsize=10)
    axes.set(xscale="log", yscale="log", xlim=(low, 1), ylim=(low, 1))
    axes.set_xlabel("holdout samples wrongly called members (%, log scale)")
    axes.set_ylabel("forgotten samples called members (%)")
    axes.legend(loc="lower right")
    for axis in (axes.xaxis, axes.yaxis):
        tick_labels(axis, lambda x: f"{100 * x:g}")
    title = "Telling forgotten samples from unseen ones (attack AUC): " + _each(
        areas, "{:.2f}".format
    )
    caption = (
        "An attacker calls a sample a training member when the model is confident about it. "
        "A curve on the diagonal is guessing; a curve above it gives members away. What counts "
        "is the distance to the retrained model's curve, not to the diagonal."
    )
    if unseen < 100:
        caption += f" With {unseen} holdout samples, rates below {100 / unseen:.1f} % are empty."
    return render("attack", title, caption, figure)


def _gaps(evidence: Evidence) -> Plot | None:
    gold, again = evidence.models.get("retrained"), evidence.models.get("retrained_2")
    shown = [(key, record) for key, record in _shown(evidence) if key != "retrained"]
    if gold is None or not shown:
        return None
    readings: dict[str, Callable[[ModelRecord], float]] = {
        "forget accuracy": lambda record: _accuracy(record, "forget"),
        "retain accuracy": lambda record: _accuracy(record, "retain"),
        "test accuracy": lambda record: _accuracy(record, "test"),
        "attack AUC": _auc,
    }
    readings = {name: read for name, read in readings.items() if np.isfinite(read(gold))}
    if not readings:
        return None
    target = np.array([read(gold) for read in readings.values()])

    def distance(record: ModelRecord) -> Array:
        values = np.array([read(record) for read in readings.values()])
        return np.asarray(100 * np.abs(values - target))

    figure = figure_of(0.78 * len(readings) + 1.15)
    axes = figure.subplots()
    rows, height = np.arange(len(readings)), 0.3
    floor = None if again is None else distance(again)
    if floor is not None:
        axes.barh(rows, floor, 0.86, color=COLOURS["muted"], alpha=0.25, label="retraining noise")
        for row, value in zip(rows, floor, strict=True):
            axes.vlines(value, row - 0.43, row + 0.43, color=COLOURS["muted"], linewidth=1.2)
    distances = {}
    for (key, record), shift in zip(shown, (-0.5, 0.5), strict=False):
        values = distances[key] = distance(record)
        bars = axes.barh(
            rows + shift * height,
            values,
            height,
            color=COLOURS[key],
            label=label(record.name),
        )
        labels = [f"{v:.1f}" if np.isfinite(v) else "not measured" for v in values]
        axes.bar_label(bars, labels, padding=4, fontsize=10)
    axes.set_yticks(rows, list(readings))
    axes.set_xlabel("distance to retrained (percentage points)")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside upper left", ncols=3, handlelength=1.2, columnspacing=1.2)
    if "unlearned" in distances and np.isfinite(distances["unlearned"]).any():
        worst = [
            f"{np.nanmax(distances[key]):.1f} points {when} "
            f"({[*readings][int(np.nanargmax(distances[key]))]})"
            for key, when in (("original", "before"), ("unlearned", "after"))
            if np.isfinite(distances.get(key, np.nan)).any()
        ]
        title = "Largest gap to the retrained model: " + ", ".join(worst)
    else:
        title = "How far the original lies from the retrained model"
    caption = (
        "Shorter is better: zero is the model that never saw the samples. The AUC counts in "
        "hundredths."
    )
    if floor is None:
        caption += " No second retrained model was made, so the noise of retraining is unknown."
    else:
        caption += (
            " Grey shows how far two retrained models lie apart that differ in their seed "
            "alone; a bar inside the grey is as good as can be told."
        )
    return render("gaps", title, caption, figure)


def _curves(evidence: Evidence) -> Plot | None:
    curves = {name: points for name, points in evidence.curves.items() if points}
    if not curves:
        return None
    names = list(curves)[:_PANELS]
    figure = figure_of(1.25 * len(names) + 0.6)
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        steps, values = np.array(curves[name], dtype=np.float64).T
        axes.plot(*thinned(steps, values), color=COLOURS["unlearned"])
        positive = values[np.isfinite(values) & (values > 0)]
        if len(positive) == len(values) and positive.max() > 1000 * positive.min():
            axes.set_yscale("log")
            tick_labels(axes.yaxis, decade)
        axes.set_title(label(name), fontweight="normal")
    panels[-1].set_xlabel("optimiser step")
    first = names[0]
    (_, start), (steps, end) = curves[first][0], curves[first][-1]
    title = f"While unlearning, {first} went from {_loss(start)} to {_loss(end)} in {steps} steps"
    caption = "What the unlearning run logged, at each optimiser step."
    if len(curves) > _PANELS:
        caption += f" Shown: {_PANELS} of {len(curves)} curves; report.json has them all."
    return render("curves", title, caption, figure)


def _accuracy(record: ModelRecord, split: str) -> float:
    values = record.correct.get(split, ())
    return float(np.mean(values)) if len(values) else float("nan")


def _auc(record: ModelRecord) -> float:
    members, others = record.scores.get("forget", ()), record.scores.get("holdout", ())
    if not len(members) or not len(others):
        return float("nan")
    return auc(members, others)


def _median(values: Any) -> float:
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    return float(np.median(values)) if len(values) else float("nan")


def _each(values: Mapping[str, float], form: Callable[[float], str]) -> str:
    """Say one number per model, in words that need no legend."""
    words = {"original": "before", "unlearned": "after", "retrained": "if never trained on them"}
    known = {key: value for key, value in values.items() if not np.isnan(value)}
    return ", ".join(f"{form(value)} {words[key]}" for key, value in known.items())


def _loss(value: float) -> str:
    return "below 0.001" if 0 <= value < 1e-3 else number("loss", value)
