"""The report as a self-contained HTML page and as Markdown for a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any

from erasus_pl.evaluation._content import (
    ABSENT,
    OUTCOMES,
    ROLES,
    asked,
    cost,
    definitions,
    flat,
    heading,
    headline,
    interval,
    number,
    rows,
    started,
)
from erasus_pl.evaluation.evidence import Evidence
from erasus_pl.evaluation.plots import Plot, draw_all

__all__ = ["to_html", "to_markdown"]

_READING = (
    "Good unlearning makes the model behave like the retrained one, which never saw the samples. "
    "Neither zero accuracy nor a perfect score is the goal: the retrained column is."
)
_NOISE = (
    "The last column is a second retrained model that differs in its random seed alone: "
    "differences as small as those between the two are noise."
)
_NO_GOLD = (
    "No retrained model was made for this run, so there is nothing to hold the unlearned model "
    "against but the original."
)
_LIMITS = (
    "This report rests on measurements and on the attacks it names. It is evidence, not a "
    "mathematical guarantee: an attack that was not tried may still succeed."
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def to_html(evidence: Evidence) -> str:
    """Return the report as one HTML page that needs nothing else: no scripts, no network."""
    name = str(evidence.run.get("name") or "unnamed run")
    style = files("erasus_pl.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    sections = [
        _header(evidence, name),
        _verdict(evidence),
        _section("What was asked", _facts(asked(evidence))),
        _section("Side by side", _table(evidence)),
        '<div class="plots">' + "".join(map(_figure, draw_all(evidence))) + "</div>",
        _section("Cost", _cost(evidence)),
        _section("What this rests on", _notes([*evidence.notes, _LIMITS])),
        _section("What the numbers mean", _terms(evidence)),
        _details(evidence),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Unlearning report: {_text(name)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{"".join(sections)}</main>
</body>
</html>
"""


def to_markdown(evidence: Evidence) -> str:
    """Return the report as Markdown: the page's words and tables, without the plots."""
    verdict = evidence.verdict
    icon, words = OUTCOMES[verdict.outcome]
    name = str(evidence.run.get("name") or "unnamed run")
    lines = [
        f"# Unlearning report: {_mark(name)}",
        f"**{icon} {words}.** {_mark(headline(evidence))}",
        _bullets(verdict.reasons),
        "## What was asked",
        _grid(["", ""], asked(evidence)),
        "## Side by side",
        _reading(evidence),
    ]
    keys = list(evidence.measures)
    table = [
        [row.name, *(_cell(row.name, row.cells.get(key)) for key in keys)] for row in rows(evidence)
    ]
    lines.append(_grid(["measure", *(heading(evidence, key) for key in keys)], table))
    spent = [(heading(evidence, key), text) for key, _, text in cost(evidence)]
    if spent:
        lines += ["## Cost", _grid(["model", "time to make"], spent)]
    lines += ["## What this rests on", _bullets([*evidence.notes, _LIMITS])]
    terms = [f"**{_mark(term)}**: {_mark(text)}" for term, text in definitions(evidence)]
    lines += ["## What the numbers mean", "\n".join(f"- {term}" for term in terms)]
    for title, facts in _appendix(evidence):
        lines += [f"## {title}", _grid(["", ""], facts)]
    config = str(evidence.run.get("config") or "")
    if config:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", config)), default=0))
        lines += ["## Config", f"{fence}yaml\n{config.rstrip()}\n{fence}"]
    return "\n\n".join(line for line in lines if line) + "\n"


def _header(evidence: Evidence, name: str) -> str:
    facts = [("Started", started(evidence)), ("Seed", evidence.run.get("seed"))]
    line = " \u00b7 ".join(
        f"<span>{label} {_text(v)}</span>" for label, v in facts if v is not None
    )
    return f"<header><p>Unlearning report</p><h1>{_text(name)}</h1><p>{line}</p></header>\n"


def _verdict(evidence: Evidence) -> str:
    verdict = evidence.verdict
    icon, words = OUTCOMES[verdict.outcome]
    reasons = "".join(f"<li>{_text(reason)}</li>" for reason in verdict.reasons)
    return (
        f'<section class="verdict {verdict.outcome.replace(" ", "-")}">'
        f'<div class="icon" aria-hidden="true">{icon}</div><div><h2>{words}</h2>'
        f'<p class="headline">{_text(headline(evidence))}</p><ul>{reasons}</ul></div></section>\n'
    )


def _table(evidence: Evidence) -> str:
    keys = list(evidence.measures)
    names = {key: _text(heading(evidence, key)) for key in keys}
    head = "".join(
        f'<th scope="col" class="{_text(key)}">{names[key]}'
        f"<small>{_text(ROLES.get(key, ''))}</small></th>"
        for key in keys
    )
    places = {pair: i for i, pair in enumerate(definitions(evidence))}
    body = []
    for row in rows(evidence):
        place = places[row.name, row.definition]
        cells = []
        for key in keys:
            measure = row.cells.get(key)
            text = number(row.name, measure.value) if measure else ABSENT
            spread = interval(measure) if measure else ""
            cells.append(
                f'<td class="{_text(key)}" data-model="{names[key]}">{_text(text)}'
                + (f"<small>{_text(spread)}</small>" if spread else "")
                + "</td>"
            )
        link = f'<a href="#term-{place}" title="{_text(row.definition)}">{_text(row.name)}</a>'
        body.append(f'<tr><th scope="row">{link}</th>{"".join(cells)}</tr>')
    return (
        f"<p>{_text(_reading(evidence))}</p>"
        f'<table><thead><tr><th scope="col">Measure</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
        '<p class="note">Brackets are intervals. Each name leads to its definition below.</p>'
    )


def _figure(plot: Plot) -> str:
    label = f'<svg role="img" aria-label="{_text(plot.title)}" '
    return (
        f"<figure><h3>{_text(plot.title)}</h3>{plot.svg.replace('<svg ', label, 1)}"
        f"<figcaption>{_text(plot.caption)}</figcaption></figure>\n"
    )


def _cost(evidence: Evidence) -> str:
    spent = cost(evidence)
    most = max((value for _, value, _ in spent), default=0.0) or 1.0
    lines = "".join(
        f"<dt>{_text(heading(evidence, key))}</dt><dd>"
        f'<span class="bar {_text(key)}" style="width:{100 * value / most:.1f}%"></span>'
        f"{_text(text)}</dd>"
        for key, value, text in spent
    )
    return f'<dl class="cost">{lines}</dl>' if lines else ""


def _notes(notes: Iterable[str]) -> str:
    return '<ul class="notes">' + "".join(f"<li>{_text(note)}</li>" for note in notes) + "</ul>"


def _terms(evidence: Evidence) -> str:
    terms = "".join(
        f'<dt id="term-{place}">{_text(name)}</dt><dd>{_text(definition)}</dd>'
        for place, (name, definition) in enumerate(definitions(evidence))
    )
    return f'<dl class="terms">{terms}</dl>' if terms else ""


def _details(evidence: Evidence) -> str:
    parts = [f"<h3>{title}</h3>{_facts(facts)}" for title, facts in _appendix(evidence)]
    config = str(evidence.run.get("config") or "")
    if config:
        parts.append(f"<h3>Config</h3><pre>{_text(config)}</pre>")
    summary = "Manifest, versions, machine and config"
    return f"<details><summary>{summary}</summary>{''.join(parts)}</details>\n"


def _appendix(evidence: Evidence) -> list[tuple[str, list[tuple[str, str]]]]:
    run = {key: value for key, value in evidence.run.items() if key != "config"}
    tables = [
        ("Manifest", flat(evidence.manifest)),
        ("Run", flat(run)),
        ("Numbers behind the verdict", flat(evidence.verdict.statistics)),
    ]
    return [(title, facts) for title, facts in tables if any(name for name, _ in facts)]


def _reading(evidence: Evidence) -> str:
    if "retrained" not in evidence.measures:
        return _NO_GOLD
    return f"{_READING} {_NOISE}" if "retrained_2" in evidence.measures else _READING


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>\n" if content else ""


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    return f'<dl class="facts">{lines}</dl>' if lines else ""


def _text(value: Any) -> str:
    """Escape for HTML text and attributes; what XML forbids becomes a replacement character."""
    return escape(_CONTROL.sub("\ufffd", str(value)))


def _mark(value: Any) -> str:
    """Escape for one line of Markdown."""
    line = " ".join(_CONTROL.sub("\ufffd", str(value)).split())
    return re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", escape(line, quote=False))


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {_mark(item)}" for item in items)


def _grid(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A Markdown table: names to the left, numbers to the right."""
    titles = list(head)
    lines = [titles, *map(list, body)]
    rule = "| --- |" + (" ---: |" * (len(titles) - 1) if len(titles) > 2 else " --- |")
    text = ["| " + " | ".join(map(_mark, line)) + " |" for line in lines]
    return "\n".join([text[0], rule, *text[1:]]) if len(lines) > 1 else ""


def _cell(name: str, measure: Any) -> str:
    if measure is None:
        return ABSENT
    return f"{number(name, measure.value)} {interval(measure)}".strip()
