"""`catalogue`: what there is to forget with, read from the sources without importing torch."""

from __future__ import annotations

import argparse
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from erasus_pl._words import UsageError, complain, did_you_mean
from erasus_pl.commands._source import Definition, Room, SourceError

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

__all__ = ["KINDS", "MATRIX", "catalogue", "main"]

# Strategy → task → None, or why the pair does not run; found by running every pair.
MATRIX = Path(__file__).with_name("matrix.json")
KINDS = ("strategies", "selectors", "attacks", "tasks", "datamodules")

_CITATION = re.compile(
    r'"(?P<title>[^"]+?),?" \((?:[^()]* )?(?P<year>\d{4})(?:, arXiv:(?P<arxiv>[\d.]+))?'
)
_CASES = {"class": "forgetting a class", "random": "forgetting random samples"}
_NARROW = 60  # columns below which a table is harder to read than lines
_ABOUT = """\
List strategies, selectors, attacks, tasks and datamodules, with the paper each is from and what it
needs. A strategy or selector fits every task that provides what it requires. Names are what
run files and the command line take as class_path."""


def catalogue() -> dict[str, list[dict[str, Any]]]:
    """Everything there is, by kind; each entry has `name`, `class_path` and `summary`.

    Strategies add `paper`, `form` ("iterative" or "one-shot"), `requires`, `tasks` (those that
    provide it), `loader_mode`, `needs_original` and `limits` (for what it is no good at its
    defaults, and why); selectors `paper`, `form` ("scores" or "set"), `requires` and `tasks`;
    attacks, which are the public names that end so, the first `paper` that
    their module's docstring cites; tasks `provides`.

    Raises:
        SourceError: a source file cannot be read.
    """
    package = Path(__file__).parents[1]
    rooms = {kind: Room(package / kind, f"erasus_pl.{kind}") for kind in KINDS[:-1]}
    tasks = [
        {**_entry(d), "provides": list(rooms["tasks"].value(d, "provides", ()))}
        for d in rooms["tasks"].public()
        if d.name == "Task" or d in rooms["tasks"].subclasses("Task")
    ]
    data = Room(_folder("datamodules"), "datamodules")
    return {
        "strategies": [_strategy(rooms["strategies"], d, tasks)
                       for d in rooms["strategies"].subclasses("Strategy")],
        "selectors": [_selector(rooms["selectors"], d, tasks)
                      for d in rooms["selectors"].subclasses("Selector")],
        "attacks": [_attack(d) for d in rooms["attacks"].public()
                    if d.name.lower().endswith("attack")],
        "tasks": tasks,
        "datamodules": [_entry(d) for d in data.subclasses("UnlearningDataModule")],
    }  # fmt: skip


def main(args: list[str]) -> int:
    """Run the verb; returns the exit status."""
    parser = _Parser("erasus_pl catalogue", description=_ABOUT)
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"one of {', '.join(KINDS)}")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument(
        "--matrix", action="store_true",
        help="which strategy runs on which task, as found by running each pair for two steps",
    )  # fmt: skip
    try:
        given = parser.parse_args(args)
        if given.kind is not None and given.kind not in KINDS:
            message = f"`KIND` must be one of {', '.join(KINDS)}, got {given.kind!r}"
            raise UsageError(message + did_you_mean(given.kind, KINDS))
        if given.matrix:
            return _matrix(given.json)
        found = catalogue()
    except (UsageError, SourceError) as error:
        return complain(str(error))
    if given.kind is not None:
        found = {given.kind: found[given.kind]}
    if given.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found)
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        text = f"{message}; see {self.prog} --help"
        raise UsageError(text)


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        message = f"package `{package}` is not installed; run from the project or install it"
        raise SourceError(message)
    return Path(spec.origin).parent


def _entry(definition: Definition) -> dict[str, Any]:
    room = definition.module.rpartition(".")[0]
    return {
        "name": definition.name,
        "class_path": f"{room}.{definition.name}",
        "summary": definition.summary,
    }


def _strategy(room: Room, definition: Definition, tasks: list[dict]) -> dict[str, Any]:
    one_shot = room.defines(definition, "edit", below="Strategy")
    return {
        **_matched(room, definition, tasks, "one-shot" if one_shot else "iterative"),
        "loader_mode": room.value(definition, "loader_mode", "paired"),
        "needs_original": room.value(definition, "needs_original", False),
        "limits": room.value(definition, "limits", {}),
    }


def _selector(room: Room, definition: Definition, tasks: list[dict]) -> dict[str, Any]:
    scores = room.defines(definition, "scores", below="Selector")
    return _matched(room, definition, tasks, "scores" if scores else "set")


def _matched(room: Room, definition: Definition, tasks: list[dict], form: str) -> dict[str, Any]:
    requires = list(room.value(definition, "requires", ()))
    return {
        **_entry(definition),
        "paper": room.value(definition, "paper", {}),
        "form": form,
        "requires": requires,
        "tasks": [task["name"] for task in tasks if set(requires) <= set(task["provides"])],
    }


def _attack(definition: Definition) -> dict[str, Any]:
    cited = _CITATION.search(" ".join(definition.about.split()))
    paper: dict[str, Any] = {}
    if cited:
        paper = {"title": cited["title"], "year": int(cited["year"]), "arxiv": cited["arxiv"]}
    return {**_entry(definition), "paper": paper}


def _show(found: dict[str, list[dict[str, Any]]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for kind, entries in found.items():
        console.print(f"[bold]{kind} ({len(entries)})")
        columns = [c for c in ("form", "requires", "provides") if any(c in e for e in entries)]
        console.print(_table(entries, columns) if console.width >= _NARROW else _lines(entries))
        console.print()


def _matrix(as_json: bool) -> int:
    kept: dict[str, dict[str, str | None]] = json.loads(MATRIX.read_text("utf-8"))
    if as_json:
        print(json.dumps(kept, indent=2, ensure_ascii=False))
        return 0
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    reasons: dict[str, int] = {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("strategy", style="cyan")
    for task in next(iter(kept.values())):
        table.add_column(task)
    for name, cells in kept.items():
        whys = [_reason(why, name) for why in cells.values()]
        marks = (f"({reasons.setdefault(w, len(reasons) + 1)})" if w else "yes" for w in whys)
        table.add_row(name, *marks)
    console.print(table)
    for why, number in reasons.items():
        console.print(f"({number}) {why}", style="dim", markup=False)
    return 0


def _reason(why: str | None, name: str) -> str | None:
    """The reason without the names in it, so that equal ones share a number."""
    if why is None:
        return None
    short = re.sub(rf"^{name} ", "", why)
    return re.sub(r"(needs a task with \[.*?\]).*", r"\1, and this one has none", short)


def _table(entries: list[dict[str, Any]], columns: list[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("name", style="cyan", overflow="fold")
    for column in columns:
        table.add_column("needs" if column == "requires" else column, overflow="fold")
    cites = any(entry.get("paper") for entry in entries)
    table.add_column("what it does" + ", and where it is from" * cites, ratio=1)
    for entry in entries:
        cells = (entry[c] if c == "form" else "\n".join(entry[c]) or "nothing" for c in columns)
        table.add_row(entry["name"], *cells, _about(entry))
    return table


def _lines(entries: list[dict[str, Any]]) -> Text:
    from rich.text import Text

    return Text("\n").join(
        Text(f"{entry['name']}: ", style="cyan").append_text(_about(entry)) for entry in entries
    )


def _about(entry: dict[str, Any]) -> Text:
    from rich.text import Text

    about = Text(entry["summary"], style="default")
    if entry.get("paper"):
        about.append(f"\n{_cite(entry['paper'])}", style="dim")
    for what, why in entry.get("limits", {}).items():
        about.append(f"\nnot for {_CASES[what]} at its defaults: {why}", style="yellow")
    return about


def _cite(paper: dict[str, Any]) -> str:
    arxiv = f", arXiv:{paper['arxiv']}" if paper.get("arxiv") else ""
    return f"{paper.get('title', '')} ({paper.get('year', 'no year')}{arxiv})"
