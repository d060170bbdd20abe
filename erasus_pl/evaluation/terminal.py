"""The report's core on a terminal: verdict, table, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from erasus_pl.evaluation._content import (
    ABSENT,
    OUTCOMES,
    Row,
    asked,
    cost,
    heading,
    headline,
    interval,
    number,
    rows,
)
from erasus_pl.evaluation.evidence import Evidence

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = ["show"]

_STYLES = {"forgotten": "green", "not forgotten": "red", "inconclusive": "yellow"}
_FACTS = ("To be forgotten", "How much", "Worked on")
_NAMES = 28  # characters that the column of names takes
_COLUMN = 13  # characters that a model's column takes; with intervals twice that
_PLAIN = str.maketrans({"\u2713": "+", "\u2717": "x", "\u2013": "-", "\u00d7": "x"})


def show(evidence: Evidence, console: Console | None = None) -> None:
    """Print the verdict, the table of measures and the cost.

    Fits what it prints to the width: intervals are left out where they do not fit, and on a very
    narrow terminal each measure becomes a block of lines. Works without a terminal and with an
    encoding that lacks the characters used.

    Args:
        evidence: What to show.
        console: Where to print; standard output when None.
    """
    from rich.console import Console
    from rich.panel import Panel

    console = console or Console()
    verdict = evidence.verdict
    icon, words = OUTCOMES[verdict.outcome]
    style = _STYLES[verdict.outcome]
    columns = len(evidence.measures)
    if console.width >= _NAMES + _COLUMN * columns:
        roomy = console.width >= _NAMES + 2 * _COLUMN * columns
        console.print(_table(evidence, console, intervals=roomy))
    else:
        console.print(_blocks(evidence, console))
    facts = [fact for fact in asked(evidence) if fact[0] in _FACTS]
    facts += [(heading(evidence, key), spent) for key, _, spent in cost(evidence)]
    for name, fact in facts:
        console.print(_text(f"{name}: {fact}", console, "dim"))
    body = _text(f"{icon} {words}\n", console, f"bold {style}")
    body.append(_text(headline(evidence), console, "bold"))
    for reason in verdict.reasons:
        body.append(_text(f"\n- {reason}", console, "not bold"))
    console.print(Panel(body, border_style=style))


def _table(evidence: Evidence, console: Console, *, intervals: bool) -> Table:
    from rich.table import Table

    table = Table(header_style="bold")
    table.add_column("measure")
    for key in evidence.measures:
        style = "bold" if key == "unlearned" else ""
        table.add_column(_text(heading(evidence, key), console), justify="right", style=style)
    for row in rows(evidence):
        cells = [_cell(row, key, intervals=intervals) for key in evidence.measures]
        table.add_row(*(_text(cell, console) for cell in [row.name, *cells]))
    return table


def _blocks(evidence: Evidence, console: Console) -> Text:
    lines = _text("", console)
    for row in rows(evidence):
        lines.append(_text(f"{row.name}\n", console, "bold"))
        for key in row.cells:
            cell = _cell(row, key, intervals=False)
            lines.append(_text(f"  {heading(evidence, key)}: {cell}\n", console))
    return lines


def _cell(row: Row, key: str, *, intervals: bool) -> str:
    measure = row.cells.get(key)
    if measure is None:
        return ABSENT
    value = number(row.name, measure.value)
    return f"{value} {interval(measure)}".strip() if intervals else value


def _text(content: str, console: Console, style: str = "") -> Text:
    """Take user text literally, in characters that the console's encoding has."""
    from rich.text import Text

    encoding = console.encoding
    try:
        content.encode(encoding)
    except UnicodeEncodeError:
        plain = content.translate(_PLAIN)
        content = plain.encode(encoding, "replace").decode(encoding)
    return Text(content, style=style)
