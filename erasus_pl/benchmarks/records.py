"""What learns from a suite: the evidence of `Auto`, and the table of `Learned`."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erasus_pl.benchmarks.runner import Results
from erasus_pl.benchmarks.suite import Suite

__all__ = ["auto_section", "recorded", "write_evidence", "write_table"]

# Those that run other strategies, and one that needs a record of the original's training.
_COMBINE = ("amnesiac", "auto", "ensemble", "pipeline", "rum")


def recorded(suite: Suite, results: Results, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cases that `erasus_pl.strategies.Auto` chooses by, one for each scenario.

    Args:
        suite: what was run.
        results: what it gave.
        found: what `summary` makes of it.
    """
    cases = []
    for name, scenario in found.items():
        floors = results.floors.get(name)
        if not floors:
            continue
        runs = {
            _class_name(suite, e["strategy"]): {
                "gap": e["AvgGap"][0], "cost": e["time"][0], "settings": e["settings"],
            }
            for e in scenario["strategies"]
            if "error" not in e and not e["failed"] and e["selector"] is None
            and e["strategy"] not in _COMBINE
        }  # fmt: skip
        sizes = {k: floors[0][k] for k in ("task", "request", "train", "forget", "parameters")}
        cases.append({
            "name": name, **sizes, "floor": scenario["floor"]["AvgGap"][0],
            "original": scenario["original"]["AvgGap"][0], "runs": runs,
        })  # fmt: skip
    return cases


def write_evidence(suite: Suite, results: Results, found: Mapping[str, Any], path: Path) -> None:
    """Write what `Auto` chooses by, as JSON."""
    partial = path.with_name(f".{path.name}.part")
    content = {"cases": recorded(suite, results, found)}
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
    partial.replace(path)


def write_table(suite: Suite, results: Results, path: Path) -> None:
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
            "dataset": dataset, "request": request, "strategy": _class_name(suite, row["strategy"]),
            "selector": row["selector"] or "Full", "fraction": row["fraction"] or 1.0,
            "seed": row["seed"], "AvgGap": _short(row.get("AvgGap")),
            "seconds": _short(row.get("cpu")),
            **{k: _short(features.get(k)) for k in FEATURES},
        })  # fmt: skip
    partial = path.with_name(f".{path.name}.part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]) if lines else ["dataset"])
        writer.writeheader()
        writer.writerows(lines)
    partial.replace(path)


def auto_section(cases: list[dict[str, Any]], budget: float = 0.5) -> list[str]:
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


def _class_name(suite: Suite, strategy: str) -> str:
    return str(suite.strategies[strategy]["class_path"].rpartition(".")[2])


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
