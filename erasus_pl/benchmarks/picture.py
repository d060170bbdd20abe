"""The picture of a suite: AvgGap of each method on each scenario."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from erasus_pl.benchmarks.suite import Suite

__all__ = ["draw"]


def draw(found: Mapping[str, Any], path: Path, suite: Suite) -> None:
    """Write a map of AvgGap, best methods first, as PNG.

    Args:
        found: what `summary` gives.
        path: of the picture.
        suite: what was run.
    """
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
