"""The page of a suite: tables in Markdown, one picture, and the same as JSON."""

import csv
import json
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from erasus_pl.benchmarks.runner import Results
from erasus_pl.benchmarks.suite import Suite

__all__ = ["recorded", "summary", "write_evidence", "write_page", "write_table"]

_PERCENT = ("UA", "RA", "TA", "MIA", "AvgGap", "ToW")
# Those that run other strategies, and one that needs a record of the original's training.
_COMBINE = ("amnesiac", "auto", "ensemble", "pipeline", "rum")
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
        _picture(found, path.with_suffix(".png"), suite)
        lines += [f"![AvgGap of each method on each scenario]({path.stem}.png)", ""]
    for name, scenario in found.items():
        table = _selectors if suite.selectors else _strategies
        lines += [f"## {name}", "", *table(scenario), ""]
    if not suite.selectors:
        lines += _auto(recorded(suite, results))
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


def write_table(results: Results, path: Path) -> None:
    """Write the runs as CSV, a row each, as `benchmarks/learn_selector.py` reads them."""
    from erasus_pl.selectors.learned import FEATURES

    runs = [row for row in results.rows if row["judge"] == "test"]
    seen = {
        (r["scenario"], r["strategy"], r["seed"]): r["features"] for r in runs if r.get("features")
    }
    lines = []
    for row in runs:
        dataset, _, request = row["scenario"].partition(", ")
        features = seen.get((row["scenario"], row["strategy"], row["seed"]), {})
        lines.append({
            "dataset": dataset, "request": request, "strategy": row["strategy"],
            "selector": row["selector"] or "Full", "fraction": row["fraction"] or 1.0,
            "seed": row["seed"], "AvgGap": row.get("AvgGap", ""), "seconds": row.get("cpu", ""),
            **{k: "" if features.get(k) is None else f"{features[k]:.6g}" for k in FEATURES},
        })  # fmt: skip
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else ["dataset"])
        writer.writeheader()
        writer.writerows(lines)
    partial.replace(path)


def recorded(suite: Suite, results: Results) -> list[dict[str, Any]]:
    """The cases that `erasus_pl.strategies.Auto` chooses by, one for each scenario."""
    cases = []
    for name, found in summary(suite, results).items():
        floors = results.floors.get(name)
        if not floors:
            continue
        runs = {
            suite.strategies[e["strategy"]]["class_path"].rpartition(".")[2]: {
                "gap": e["AvgGap"][0], "cost": e["time"][0], "settings": e["settings"],
            }
            for e in found["strategies"]
            if "error" not in e and not e["failed"] and e["selector"] is None
            and e["strategy"] not in _COMBINE
        }  # fmt: skip
        sizes = {k: floors[0][k] for k in ("task", "request", "train", "forget", "parameters")}
        cases.append({
            "name": name, **sizes, "floor": found["floor"]["AvgGap"][0],
            "original": found["original"]["AvgGap"][0], "runs": runs,
        })  # fmt: skip
    return cases


def write_evidence(suite: Suite, results: Results, path: Path) -> None:
    """Write what `Auto` chooses by, as JSON."""
    partial = path.with_name(f".{path.name}.part")
    content = {"cases": recorded(suite, results)}
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
    partial.replace(path)


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


def _auto(cases: list[dict[str, Any]], budget: float = 0.5) -> list[str]:
    """What `Auto` chooses for each case from the others alone."""
    from erasus_pl.strategies.auto import expected

    lines = [
        "## What Auto chooses", "",
        f"For each scenario from the others of its kind alone, at up to {budget:g} of retraining's "
        "cost; AvgGap in %.", "",
        "| scenario | chosen | AvgGap | best there | AvgGap | original |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for case in cases:
        found = expected(case, [c for c in cases if c is not case])
        able = {n: v[0] for n, v in found.items() if v[1] <= budget and n in case["runs"]}
        inside = {n: r["gap"] for n, r in case["runs"].items() if r["cost"] <= budget}
        if not able or not inside:
            continue
        chosen, best = min(able, key=lambda n: able[n]), min(inside, key=lambda n: inside[n])
        gaps = (case["runs"][chosen]["gap"], inside[best], case["original"])
        shown = [f"{100 * gap:.1f}" for gap in gaps]
        lines.append(
            f"| {case['name']} | {chosen} | {shown[0]} | {best} | {shown[1]} | {shown[2]} |"
        )
    return [*lines, ""]


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
                f"Whole forget set: AvgGap {_pm(whole['AvgGap'])}; original "
                f"{_pm(scenario['original'].get('AvgGap'))}, floor "
                f"{_pm(scenario['floor'].get('AvgGap'))}. Bold: better than random by more than "
                "both standard deviations together; struck: worse by as much.",
                "",
            ]
        lines += [
            "| selector | " + " | ".join(f"{100 * f:.0f} %" for f in fractions) + " | seconds |",
            "| --- |" + " --- |" * (len(fractions) + 1),
        ]
        names = dict.fromkeys(e["selector"] for e in own if e["selector"])
        for name in sorted(names, key=lambda n: (n != "Random", n)):
            row = {e["fraction"]: e for e in own if e["selector"] == name}
            cells = [_against(row.get(f), chance.get(f)) for f in fractions]
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


def _picture(found: Mapping[str, Any], path: Path, suite: Suite) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    def label(entry: Mapping[str, Any]) -> str:
        if not suite.selectors:
            return str(entry["strategy"])
        return entry["selector"] or "whole forget set"

    names = dict.fromkeys(label(e) for s in found.values() for e in s["strategies"])
    values: dict[str, dict[str, float]] = {}
    for column, scenario in found.items():
        for name in names:
            gaps = [e["AvgGap"][0] for e in scenario["strategies"]
                    if label(e) == name and "error" not in e]  # fmt: skip
            if gaps:
                values.setdefault(name, {})[column] = 100 * statistics.mean(gaps)
        values.setdefault("original", {})[column] = 100 * scenario["original"]["AvgGap"][0]
        values.setdefault("floor", {})[column] = 100 * scenario["floor"]["AvgGap"][0]
    order = sorted(values, key=lambda n: statistics.mean(values[n].values()))
    grid = np.array([[values[n].get(c, np.nan) for c in found] for n in order])
    figure, axes = plt.subplots(figsize=(2.2 + 1.15 * len(found), 1.6 + 0.27 * len(order)))
    scale = mpl.colors.LogNorm(0.3, 40)
    axes.imshow(grid, aspect="auto", cmap="viridis_r", norm=scale)
    axes.set_xticks(range(len(found)), list(found), rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(order)), order, fontsize=8)
    for (i, j), value in np.ndenumerate(grid):
        text = "" if np.isnan(value) else f"{value:.1f}"
        color = "white" if value > 3.5 else "black"
        axes.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_title("AvgGap to the retrained model, % (lower is better)", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


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
