"""The page of a suite: tables in Markdown, one picture, and the same as JSON."""

import json
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from erasus_pl.benchmarks.picture import draw
from erasus_pl.benchmarks.records import auto_section, recorded
from erasus_pl.benchmarks.runner import Results
from erasus_pl.benchmarks.suite import Suite

__all__ = ["summary", "write_page"]

_PERCENT = ("UA", "RA", "TA", "MIA", "AvgGap", "ToW")
_EXPLAINED = (
    "UA, RA and TA are the error on the forget set and the accuracies on retain and test set, MIA "
    "the AUC of the membership attack by confidence (forget against holdout set), AvgGap the mean "
    "distance to the retrained model over those four, ToW the product of one minus the distances "
    "in accuracy; all in %. Right is what the retrained model has. *Time* is CPU seconds over "
    "those of retraining. *Untuned* is the AvgGap of the strategy's own settings, on validation "
    "data. Mean ± standard deviation over seeds, each with an original and retrained models of its "
    "own; *floor* is a second retrained model held against the first: below it nothing differs."
)


def summary(suite: Suite, results: Results) -> dict[str, Any]:
    """Means and deviations, as plain values.

    Returns:
        scenario → `floor`, `original`, `retrained`: measure → `[mean, sd]`; `strategies`: a list
        with `strategy`, `selector`, `fraction`, `settings`, `seeds`, the measures, `time`,
        `untuned`, `changed`, or `error`.
    """
    found: dict[str, Any] = {}
    for name in suite.scenarios:
        rows = [row for row in results.rows if row["scenario"] == name]
        if not rows:
            continue
        floors = results.floors.get(name, [])
        found[name] = {
            "floor": _spread(floors, _PERCENT),
            **{
                model: _spread([{k: f[f"{model} {k}"] for k in _PERCENT} for f in floors], _PERCENT)
                for model in ("original", "retrained")
            },
            "strategies": [
                entry
                for strategy in suite.strategies
                for entry in _entries(strategy, name, rows, results)
            ],
        }  # fmt: skip
    return found


def write_page(suite: Suite, results: Results, path: Path, command: str) -> None:
    """Write the page, a picture of it, and its numbers as JSON, side by side.

    Args:
        suite: what was run.
        results: what it gave.
        path: of the page, `.md`.
        command: that makes the page again.
    """
    found = summary(suite, results)
    lines = [f"# {suite.title}", "", suite.about, "", _EXPLAINED, ""]
    lines += [f"Made by `{command}`, {_how(suite, results)}", ""]
    if any(s["strategies"] for s in found.values()):
        draw(found, path.with_suffix(".png"), suite)
        lines += [f"![AvgGap of each method on each scenario]({path.stem}.png)", ""]
    for name, scenario in found.items():
        table = _selectors if suite.selectors else _strategies
        lines += [f"## {name}", "", *table(scenario), ""]
    if not suite.selectors:
        lines += auto_section(recorded(suite, results, found))
    for name, why in results.absent.items():
        lines += [f"## {name}", "", f"Not run: {why}", ""]
    if suite.left_out:
        lines += ["## Left out", ""]
        lines += [f"- `{name}`: {why}" for name, why in suite.left_out.items()] + [""]
    for target, content in (
        (path, "\n".join(lines).rstrip() + "\n"),
        (path.with_suffix(".json"), json.dumps(found, indent=1, sort_keys=True) + "\n"),
    ):
        partial = target.with_name(f".{target.name}.part")
        partial.write_text(content, "utf-8")
        partial.replace(target)


def _entries(
    strategy: str, scenario: str, rows: list[dict[str, Any]], results: Results
) -> list[dict[str, Any]]:
    rows = [row for row in rows if row["strategy"] == strategy]
    tried = [row for row in rows if row["judge"] == "validation"]
    settings = results.chosen.get((scenario, strategy))
    failed = next((row["error"] for row in tried if "error" in row), None)
    if settings is None:
        return [{"strategy": strategy, "selector": None, "error": failed}] if tried else []
    own = min(tried, key=lambda row: len(row["settings"]), default={})
    groups: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
    for row in rows:
        if row["judge"] == "test":
            groups.setdefault((row["selector"], row["fraction"]), []).append(row)
    entries = []
    for (selector, fraction), group in groups.items():
        good = [row for row in group if "error" not in row]
        entry = {
            "strategy": strategy, "selector": selector, "fraction": fraction,
            "settings": settings, "seeds": len(good),
            "untuned": own.get("AvgGap"), "failed": len(group) - len(good),
        }  # fmt: skip
        if not good:
            entry["error"] = group[0]["error"]
        else:
            times = [{"time": row["cpu"] / row["gold_cpu"]} for row in good]
            entry |= {**_spread(good, _PERCENT), **_spread(times, ("time",))}
            entry["changed"] = all(row["changed"] for row in good)
            if selector:
                entry |= _spread(good, ("selector_seconds",))
        entries.append(entry)
    return entries


def _strategies(scenario: Mapping[str, Any]) -> list[str]:
    lines = [
        "| strategy | UA | RA | TA | MIA | AvgGap | ToW | time | untuned | settings |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model in ("original", "retrained"):
        cells = " | ".join(_pm(scenario[model].get(k)) for k in _PERCENT)
        lines.append(f"| *{model}* | {cells} | | | |")
    floor = scenario["floor"]
    lines.append(
        f"| *floor* | | | | | {_pm(floor.get('AvgGap'))} | {_pm(floor.get('ToW'))} | | | |"
    )
    for entry in sorted(scenario["strategies"], key=_gap):
        name = entry["strategy"]
        if "error" in entry:
            why = entry["error"].partition(";")[0].partition(": ")[2]
            lines.append(f"| {name} | {why} | | | | | | | | |")
            continue
        cells = " | ".join(_pm(entry[k]) for k in _PERCENT)
        note = "" if entry["changed"] else "; **changed nothing**"
        note += f"; {entry['failed']} seeds diverged" if entry["failed"] else ""
        untuned = "" if entry["untuned"] is None else f"{100 * entry['untuned']:.1f}"
        lines.append(
            f"| {name} | {cells} | {entry['time'][0]:.2f} | {untuned} "
            f"| {_settings(entry['settings'])}{note} |"
        )
    return lines


def _selectors(scenario: Mapping[str, Any]) -> list[str]:
    entries = [e for e in scenario["strategies"] if "error" not in e]
    fractions = sorted({e["fraction"] for e in entries if e["fraction"] is not None})
    lines = []
    for strategy in dict.fromkeys(e["strategy"] for e in entries):
        own = [e for e in entries if e["strategy"] == strategy]
        whole = next((e for e in own if e["selector"] is None), None)
        chance = {e["fraction"]: e for e in own if e["selector"] == "Random"}
        lines += [f"### {strategy}", ""]
        if whole:
            lines += [
                f"Whole forget set: AvgGap {_pm(whole['AvgGap'])}, time {whole['time'][0]:.2f}; "
                f"original {_pm(scenario['original'].get('AvgGap'))}, floor "
                f"{_pm(scenario['floor'].get('AvgGap'))}. Bold: better than random by more than "
                "both standard deviations together; struck: worse by as much. *Time* counts the "
                "selection, but not what was recorded while the original trained; *seconds* are "
                "those of the selection, by the clock.",
                "",
            ]
        heads = [f"{100 * f:.0f} %" for f in fractions]
        heads += [f"time at {head}" for head in heads] + ["seconds"]
        lines += ["| selector | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
        names = dict.fromkeys(e["selector"] for e in own if e["selector"])
        for name in sorted(names, key=lambda n: (n != "Random", n)):
            row = {e["fraction"]: e for e in own if e["selector"] == name}
            cells = [_against(row.get(f), chance.get(f)) for f in fractions]
            cells += [f"{row[f]['time'][0]:.2f}" if f in row else "" for f in fractions]
            seconds = statistics.mean(e["selector_seconds"][0] for e in row.values())
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {seconds:.2f} |")
        lines.append("")
    return lines


def _against(entry: Mapping[str, Any] | None, chance: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    text = _pm(entry["AvgGap"])
    if chance is None or chance is entry:
        return text
    (mean, sd), (other, spread) = entry["AvgGap"], chance["AvgGap"]
    if abs(mean - other) <= sd + spread:
        return text
    return f"**{text}**" if mean < other else f"~~{text}~~"


def _gap(entry: Mapping[str, Any]) -> float:
    return entry["AvgGap"][0] if "AvgGap" in entry else float("inf")


def _spread(rows: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, list[float]]:
    if not rows:
        return {}
    return {
        name: [
            round(statistics.mean(float(r[name]) for r in rows), 6),
            round(statistics.stdev([float(r[name]) for r in rows]) if len(rows) > 1 else 0.0, 6),
        ]
        for name in names
    }


def _pm(value: Sequence[float] | None) -> str:
    return "" if value is None else f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}"
                     for k, v in settings.items())  # fmt: skip


def _how(suite: Suite, results: Results) -> str:
    runs = len(results.rows)
    missing = f"; {results.missing} were not run for lack of time" if results.missing else ""
    versions = ", ".join(f"{p} {version(p)}" for p in ("torch", "lightning"))
    return (
        f"{suite.trials} settings tried per strategy and scenario, {suite.seeds} seeds, {runs:,} "
        f"runs{missing}; Python {platform.python_version()}, {versions}, one thread each on "
        f"{platform.machine()}."
    )
