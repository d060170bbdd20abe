"""`benchmark`: run a suite of methods side by side, and write its page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from erasus_pl._words import UsageError, complain

__all__ = ["main"]

_ABOUT = """\
Run every strategy (or selector) of a suite on every scenario: tuned by the suite's search on
validation data, then reported with several seeds beside the retrained model. Each run is kept in
the folder as it ends, and what is there is not run again, so a run that was stopped goes on where
it was; a changed strategy is run anew. Scenarios whose data is absent are left out and named
(docs/data.md says where data comes from)."""


def main(args: list[str]) -> int:
    """Run the verb; returns the exit status."""
    parser = _Parser("erasus_pl benchmark", description=_ABOUT)
    parser.add_argument("--config", required=True, help="a suite, such as those in conf/benchmark")
    parser.add_argument("--folder", help="where runs are kept; runs/benchmark/<suite> if not given")
    parser.add_argument("--page", help="Markdown file to write, with a .png and a .json beside it; "
                        "results.md in the folder if not given")  # fmt: skip
    parser.add_argument("--table", help="CSV file to write, a row for each run with a selector")
    parser.add_argument("--evidence", help="JSON file to write, which the strategy Auto chooses by")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--minutes", type=float, help="start no run after that long")
    parser.add_argument("--scenarios", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--strategies", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--seeds", type=int, help="instead of the suite's")
    try:
        given = parser.parse_args(args)
        if given.workers < 1:
            message = f"`--workers` must be at least 1, got {given.workers}"
            raise UsageError(message)
        return _run(given)
    except UsageError as error:
        return complain(str(error))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        text = f"{message}; see {self.prog} --help"
        raise UsageError(text)


def _run(given: argparse.Namespace) -> int:
    import dataclasses

    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    from erasus_pl.benchmarks import load_suite, run_suite
    from erasus_pl.benchmarks.page import summary, write_page
    from erasus_pl.benchmarks.records import write_evidence, write_table

    suite = load_suite(given.config)
    stem = Path(given.config).stem
    suite = dataclasses.replace(
        suite,
        scenarios=_only(suite.scenarios, given.scenarios, "--scenarios"),
        strategies=_only(suite.strategies, given.strategies, "--strategies"),
        seeds=given.seeds or suite.seeds,
    )
    folder = Path(given.folder or f"runs/benchmark/{stem}")
    page = Path(given.page) if given.page else folder / "results.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        shown: dict[str, TaskID] = {}

        def watch(done: int, total: int, stage: str) -> None:
            if stage not in shown:
                shown[stage] = progress.add_task(stage, total=total)
            progress.update(shown[stage], completed=done)

        results = run_suite(suite, folder, given.workers, given.minutes, watch)
    for name, why in results.absent.items():
        print(f"left out {name}: {why}")
    write_page(suite, results, page, _command(given))
    if given.table:
        write_table(suite, results, Path(given.table))
    if given.evidence:
        write_evidence(suite, results, summary(suite, results), Path(given.evidence))
    failed = [row for row in results.rows if "error" in row]
    print(f"runs: {len(results.rows):,}, of which {len(failed):,} failed; page: {page}")
    if results.missing:
        print(f"{results.missing:,} runs are missing: the time was over; the same command goes on")
    return 0


def _command(given: argparse.Namespace) -> str:
    """The command that makes this page, of whatever was left out too."""
    import shlex

    words = ["python", "-m", "erasus_pl", "benchmark"]
    for name in ("config", "seeds", "scenarios", "strategies", "page", "table", "evidence"):
        value = getattr(given, name)
        if value:
            words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return shlex.join(words)


def _only(found: dict[str, Any], names: list[str] | None, field: str) -> dict[str, Any]:
    from erasus_pl._words import did_you_mean

    for name in names or []:
        if name not in found:
            message = f"`{field}`: there is no {name!r}{did_you_mean(name, found)}"
            raise UsageError(message)
    return {k: v for k, v in found.items() if not names or k in names}
