"""What a report says, in words and formatted numbers, before it takes a form."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from erasus_pl.evaluation.evidence import Evidence, Measure

__all__ = [
    "ABSENT",
    "OUTCOMES",
    "ROLES",
    "Row",
    "asked",
    "cost",
    "definitions",
    "flat",
    "heading",
    "headline",
    "interval",
    "number",
    "rows",
    "seconds",
    "started",
]

OUTCOMES = {
    "forgotten": ("\u2713", "Forgotten"),
    "not forgotten": ("\u2717", "Not forgotten"),
    "inconclusive": ("?", "Inconclusive"),
}
"""Outcome to the character and the words that announce it."""

ROLES = {
    "original": "trained on everything",
    "unlearned": "what this run made",
    "retrained": "never saw the forget set: the goal",
    "retrained_2": "the goal again, other seed: the noise",
}
"""Model key to what the model is."""

ABSENT = "\u2013"
"""What stands where there is no number."""

_ITEMS = 20
_TIMES = "\u00d7"
_PERCENT = {"accuracy", "agreement", "correct", "fpr", "ra", "rate", "ta", "tpr", "ua"}


@dataclass(frozen=True)
class Row:
    """One measure across the models: its name, its definition, and a cell per model key."""

    name: str
    definition: str
    cells: Mapping[str, Measure]


def heading(evidence: Evidence, key: str) -> str:
    """Return the column heading of a model."""
    name = evidence.models[key].name if key in evidence.models else key
    return name[:1].upper() + name[1:]


def started(evidence: Evidence) -> str | None:
    """Return when the run started, as people write it; text that is no ISO date stays as it is."""
    text = evidence.run.get("started")
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    zone = f" ({moment.tzname()})" if moment.tzinfo else ""
    return f"{moment.day} {moment:%B %Y, %H:%M}{zone}"


def headline(evidence: Evidence) -> str:
    """Return the verdict's sentence without the outcome's words, which stand above it."""
    text = evidence.verdict.headline
    announced = OUTCOMES[evidence.verdict.outcome][1] + ": "
    if text.lower().startswith(announced.lower()):
        text = text[len(announced) :]
    return text[:1].upper() + text[1:]


def rows(evidence: Evidence) -> list[Row]:
    """Return the measures as table rows, in the order in which they first appear."""
    table: dict[str, dict[str, Measure]] = {}
    for key, measures in evidence.measures.items():
        for measure in measures:
            table.setdefault(measure.name, {})[key] = measure
    return [Row(name, next(iter(c.values())).definition, c) for name, c in table.items()]


def definitions(evidence: Evidence) -> list[tuple[str, str]]:
    """Return every measure's name and definition, each pair once."""
    found = [(m.name, m.definition) for measures in evidence.measures.values() for m in measures]
    return list(dict.fromkeys(found))


def number(name: str, value: float | None) -> str:
    """Format the value of the measure `name`: 97.2 %, 0.512, 1.3 s, 0.12 times."""
    if value is None:
        return ABSENT
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    words = set(re.findall(r"[a-z]+", name.lower()))
    if "auc" in words or "tow" in words:
        return f"{value:.3f}"
    if words & {"gap", "avggap"}:
        return f"{100 * value:.1f} points"
    if words & {"ratio", "speedup"}:
        return f"{_short(value)} {_TIMES}"
    if "seconds" in words:
        return seconds(value)
    if words & _PERCENT:
        return f"{100 * value:.1f} %"
    return _short(value)


def interval(measure: Measure) -> str:
    """Format the interval of a measure, without the unit; empty where there is none."""
    if measure.low is None or measure.high is None:
        return ""
    ends = (number(measure.name, end) for end in (measure.low, measure.high))
    return "[" + ", ".join(re.sub(r" (%|points)$", "", end) for end in ends) + "]"


def seconds(value: float | None) -> str:
    """Format a duration: 40 ms, 1.3 s, 2 min 5 s, 3 h 10 min."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value < 0.1:
        return f"{1000 * value:.0f} ms"
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def asked(evidence: Evidence) -> list[tuple[str, str]]:
    """Return what was asked to be forgotten, how much, and on what it was checked."""
    manifest, coreset = evidence.manifest, evidence.coreset
    facts = []
    what = manifest.get("description") or _inline(manifest.get("request", ""))
    if what:
        facts.append(("To be forgotten", str(what)))
    counts = manifest.get("counts") or {}
    forget, train = counts.get("forget"), counts.get("train")
    if forget is not None and train:
        share = f"{forget:,} of {train:,} training samples ({100 * forget / train:.1f} %)"
        facts.append(("How much", share))
    if manifest.get("dataset"):
        facts.append(("Data", str(manifest["dataset"])))
    if evidence.run.get("strategy"):
        facts.append(("Method", _inline(evidence.run["strategy"])))
    if coreset is None:
        facts.append(("Worked on", "the whole forget set"))
    else:
        size, of = coreset.get("size"), coreset.get("of")
        text = f"{size:,} of its {of:,} samples" if size and of else _inline(coreset)
        if coreset.get("selector"):
            text += f", chosen by {coreset['selector']}"
        if coreset.get("seconds") is not None:
            text += f" in {seconds(coreset['seconds'])}"
        facts.append(("Worked on", text))
    if counts.get("test") is not None and counts.get("holdout") is not None:
        checked = f"{counts['test']:,} test and {counts['holdout']:,} holdout samples"
        facts.append(("Checked on", f"{checked} that no model was trained on"))
    return facts


def cost(evidence: Evidence) -> list[tuple[str, float, str]]:
    """Return model key, seconds and words for each model whose seconds are known."""
    known = {k: r.seconds for k, r in evidence.models.items() if r.seconds is not None}
    gold = known.get("retrained")
    lines = []
    for key, spent in known.items():
        text = seconds(spent)
        if key == "unlearned" and gold and spent:
            text += f", {_short(spent / gold, 2)} {_TIMES} the time of retraining"
            if gold > 1.1 * spent:
                text += f" ({_short(gold / spent, 2)} {_TIMES} faster)"
        lines.append((key, spent, text))
    return lines


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flatten nested dicts to dotted names and plain text, for a list of facts."""
    if isinstance(value, Mapping):
        return [
            line
            for key, item in value.items()
            for line in flat(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [(prefix, _inline(value))]


def _inline(value: Any) -> str:
    if isinstance(value, float):
        return _short(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_inline(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        shown = ", ".join(_inline(item) for item in value[:_ITEMS])
        more = len(value) - _ITEMS
        return f"{shown} and {more:,} more, all in report.json" if more > 0 else shown
    return str(value)


def _short(value: float, digits: int = 3) -> str:
    """Round to significant digits, without an exponent where that is readable."""
    if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e6:
        whole = len(str(int(abs(value)))) if math.isfinite(value) else 1
        return f"{float(f'{value:.{max(digits, whole)}g}'):,.10g}"
    return f"{value:.1e}"
