"""Learn from a table of runs which selector to use, and judge it on data sets left out.

The table is CSV with a row for each run: dataset, request, strategy, selector, fraction, seed,
AvgGap, seconds, and every one of `erasus_pl.selectors.learned.FEATURES`, as `describe` measured it
in that setting. Selectors have their default arguments. Every setting needs a run of Random.

What is written is the model that `erasus_pl.selectors.Learned` ships with, and its evaluation,
which decides whether the model is followed at all.
"""

import json
import sys
import time
from pathlib import Path

from _measure import ROOT, Target, options, report

area = "evaluation"
name = "learn_selector"
TARGETS = [
    Target("gap_of_learned_by_average", 1.0),
    Target("gap_of_learned_by_random", 1.0),
]
TABLE = ROOT / "benchmarks" / "selector_runs.csv"
MODEL = ROOT / "erasus_pl" / "selectors" / "learned.json"


def main(args: list[str] | None = None) -> int:
    parser = options(__doc__)
    parser.add_argument("--table", type=Path, default=TABLE, help="the runs, as CSV")
    parser.add_argument("--model", type=Path, default=MODEL, help="where the model is written")
    given = parser.parse_args(args)
    from erasus_pl.selectors._policy import evaluate, learn, read, settings
    from erasus_pl.selectors.learned import FEATURES

    if not given.table.is_file():
        parser.error(f"--table: there is no file {str(given.table)!r}")
    start = time.perf_counter()
    try:
        rows = read(given.table, FEATURES)
        found = settings(rows, FEATURES)
    except ValueError as error:
        parser.error(f"--table: {error}")
    judged = evaluate(found, FEATURES)
    model = {**learn(found, FEATURES), "evaluation": judged}
    part = given.model.with_name(f".{given.model.name}.part")
    part.write_text(json.dumps(model, indent=1) + "\n", encoding="utf-8")
    part.replace(given.model)
    gaps = judged["AvgGap"]
    figures = {
        **{f"gap_{policy}": round(gap, 5) for policy, gap in gaps.items()},
        **{f"gap_of_learned_by_{p}": round(gaps["learned"] / gaps[p], 4)
           for p in ("average", "random")},
        **{k: v for k, v in judged.items() if isinstance(v, bool)},
        "runs": len(rows), "settings": len(found), "candidates": len(model["candidates"]),
        "penalty": model["penalty"], "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    for key, value in figures.items():
        print(f"{key}: {value}")
    print(f"model: {given.model}")
    return report(area, name, figures, TARGETS, quick=given.quick)


if __name__ == "__main__":
    sys.exit(main())
