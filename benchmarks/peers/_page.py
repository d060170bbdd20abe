"""The page of ratios, in Markdown."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from _pairs import LEFT_OUT, Pair
from _sides import NO_PREDICTION, NO_WEIGHT, Side, compare

__all__ = ["Line", "page"]

_NONE = "\N{EN DASH}"
_NOTHING = {NO_WEIGHT, NO_PREDICTION}
_HEADS = ["theirs", "ours", "epochs", "AvgGap theirs", "AvgGap ours", "ratio",
          "ours at their values", "ratio", "CPU ms theirs", "CPU ms ours", "ratio",
          "remarks"]  # fmt: skip
_COUNTED = """\
Nearer is who has the smaller AvgGap in every seed, by more than the noise floor on average; all
else is even, and crashes are not compared. A pair counts once for each setting. AvgGap is the mean
distance to the retrained model over unlearning, retain and test accuracy and the membership
attack's AUC, in points; ± is over seeds. Ratios are theirs ÷ ours: above 1 they are further away,
or cost more."""
_OWN = """\
Every strategy as `conf/strategy` has it, 5 epochs that pass over the retain set, or one pass where
it edits once, or the epochs that it counts itself. AvgGap; † no prediction changed in any seed, ‡
no weight did."""


@dataclass(frozen=True)
class Line:
    """A pair in one setting.

    Attributes:
        pair: of a peer's method and ours.
        setting: its key.
        theirs: a side for each seed.
        ours: ours at its defaults; empty where we have nothing of that kind.
        alike: ours at their values; empty where it cannot be given them.
    """

    pair: Pair
    setting: str
    theirs: list[Side]
    ours: list[Side]
    alike: list[Side]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def _ratio(theirs: Sequence[Side], ours: Sequence[Side], what: str) -> float | None:
    top, bottom = (_mean(getattr(s, what) for s in sides) for sides in (theirs, ours))
    return None if top is None or not bottom else top / bottom


def _times(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.0f}" if value >= 9.95 else f"{value:.2g}"


def _spread(sides: Sequence[Side]) -> str:
    gaps = [100 * s.gap for s in sides if s.gap is not None]
    if not gaps:
        return _NONE
    return f"{statistics.fmean(gaps):.1f} ± {statistics.stdev(gaps) if len(gaps) > 1 else 0:.1f}"


def _ms(sides: Sequence[Side]) -> str:
    seconds = _mean(s.cpu for s in sides)
    return _NONE if seconds is None else f"{1000 * seconds:.1f}"


def _remarks(sides: Sequence[Side]) -> str:
    said = []
    for remark in dict.fromkeys(s.remark for s in sides if s.remark):
        n = sum(s.remark == remark for s in sides)
        said.append(remark if n == len(sides) else f"{remark} in {n} of {len(sides)}")
    return "; ".join(said)


def _row(line: Line) -> list[str]:
    crashed = all(s.error for s in line.theirs)
    remarks = [("theirs", line.theirs), ("ours", line.ours), ("ours at their values", line.alike)]
    said = [f"{whose}: {_remarks(sides)}" for whose, sides in remarks if _remarks(sides)]
    return [
        f"`{line.pair.method}`{line.pair.note}",
        f"`{line.pair.ours}`" if line.pair.ours else _NONE,
        _NONE if crashed else str(line.pair.epochs),
        _spread(line.theirs),
        _spread(line.ours),
        _times(_ratio(line.theirs, line.ours, "gap")),
        _spread(line.alike),
        _times(_ratio(line.theirs, line.alike, "gap")),
        _ms(line.theirs),
        _ms(line.ours),
        _times(_ratio(line.theirs, line.ours, "cpu")),
        "; ".join(said),
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]


def _names(remarks: Mapping[str, list[str]]) -> list[str]:
    """Who changed nothing: no weight ever, no prediction ever, either now and then."""
    ever, never, sometimes = [], [], []
    for name, said in remarks.items():
        found = {r for r in said if r != "crashed"}
        if found == {NO_WEIGHT}:
            ever.append(name)
        elif found and found <= _NOTHING:
            never.append(name)
        elif found & _NOTHING:
            n = sum(r in _NOTHING for r in said)
            sometimes.append(f"{name} ({n} of {len(said)})")
    return [", ".join(sorted(x)) or "none" for x in (ever, never, sometimes)]


def _score(verdicts: Sequence[str]) -> str:
    return (
        " / ".join(str(verdicts.count(v)) for v in ("ours", "theirs", "even"))
        if verdicts
        else _NONE
    )


def _short(peer: str, lines: Sequence[Line], floors: Mapping[str, float]) -> list[str]:
    remarks: dict[str, list[str]] = {}
    for x in lines:
        remarks.setdefault(f"{x.pair.method}{x.pair.note}", []).extend(s.remark for s in x.theirs)
    crashed = sorted(name for name, said in remarks.items() if set(said) == {"crashed"})
    ran = [x for x in lines if not all(s.error for s in x.theirs)]
    paired = [x for x in ran if x.ours]
    cpu = [r for x in paired if (r := _ratio(x.theirs, x.ours, "cpu")) is not None]
    gap = [r for x in paired if (r := _ratio(x.theirs, x.ours, "gap")) is not None]
    return [
        peer,
        str(len({x.pair.method for x in lines})),
        ", ".join(crashed) or "none",
        *_names(remarks),
        _score([compare(x.theirs, x.ours, floors[x.setting]) for x in paired]),
        _score([compare(x.theirs, x.alike, floors[x.setting]) for x in ran if x.alike]),
        _times(statistics.median(gap)) if gap else _NONE,
        _times(statistics.median(cpu)) if cpu else _NONE,
    ]


def _beaten(line: Line, title: str, floor: float) -> str:
    text = (
        f"- {title}: `{line.pair.method}`{line.pair.note} of {line.pair.peer} "
        f"{_spread(line.theirs)}, our `{line.pair.ours}` {_spread(line.ours)}"
    )
    if not line.alike:
        return text
    nearer = compare(line.theirs, line.alike, floor)
    end = {"theirs": "still", "even": "no longer", "ours": "the other way round"}[nearer]
    return f"{text}; at their values {_spread(line.alike)}, {end}"


def _marked(sides: Sequence[Side]) -> str:
    if all(s.error for s in sides):
        return "refused, see below"
    said = {s.remark for s in sides}
    mark = " ‡" if said == {NO_WEIGHT} else " †" if said <= _NOTHING else ""
    return _spread(sides) + mark


def _peer(peer: str, lines: Sequence[Line], titles: Mapping[str, str]) -> list[str]:
    out = ["", f"## {peer}", "", LEFT_OUT[peer]]
    errors = {
        (f"`{x.pair.method}`{x.pair.note}", s.error): None
        for x in lines
        for s in x.theirs
        if s.error
    }
    if errors:
        out += ["", "Errors:", "", *(f"- {name}: `{error}`" for name, error in errors)]
    if all(s.error for x in lines for s in x.theirs):
        return out
    for key, title in titles.items():
        rows = [_row(x) for x in lines if x.setting == key]
        out += ["", f"### {peer}: {title}", "", *_table(_HEADS, rows)]
    return out


def page(
    lines: Sequence[Line],
    own: Mapping[str, Mapping[str, list[Side]]],
    anchors: Mapping[str, Mapping[str, list[float]]],
    titles: Mapping[str, str],
    facts: Sequence[str],
) -> str:
    """The page, in Markdown.

    Args:
        lines: every pair in every setting.
        own: our strategy at its defaults → setting → a side for each seed.
        anchors: `original` and `retrained_2` → setting → AvgGap of each seed.
        titles: setting → its title, in the order of the page.
        facts: what was run, a sentence or more each.
    """
    floors = {key: statistics.fmean(anchors["retrained_2"][key]) for key in titles}
    peers = {p: [x for x in lines if x.pair.peer == p] for p in dict.fromkeys(
        x.pair.peer for x in lines)}  # fmt: skip
    remarks = {n: [s.remark for v in found.values() for s in v] for n, found in own.items()}
    silent = sum(s.remark == NO_WEIGHT and not s.warned for f in own.values() for v in f.values()
                 for s in v)  # fmt: skip
    crashed = sorted(name for name, said in remarks.items() if set(said) == {"crashed"})
    out = [
        "# Side by side with other packages", "",
        "Written by `python benchmarks/peers/run.py`.", "",
        *(f"- {fact}" for fact in facts), "",
        "## In short", "",
        *_table(
            ["package", "methods", "crashed or refused in every run",
             "no weight changed in any run",
             "no prediction changed in any run", "nothing changed in some runs",
             "nearer: ours / theirs / even", "the same, ours at their values",
             "median AvgGap ratio", "median CPU ratio"],
            [
                *(_short(peer, found, floors) for peer, found in peers.items()),
                ["ours, at defaults", str(len(own)), ", ".join(crashed) or "none",
                 *_names(remarks), *[_NONE] * 4],
            ],
        ), "",
        _COUNTED, "",
        *_table(
            ["AvgGap", *titles.values()],
            [
                [label, *(f"{100 * statistics.fmean(anchors[key][s]):.1f}" for s in titles)]
                for key, label in (
                    ("original", "the original: forgetting nothing"),
                    ("retrained_2", "retrained with another seed: the noise floor"),
                )
            ],
        ), "",
        "## Where they are nearer", "",
        *([
            _beaten(x, titles[x.setting], floors[x.setting])
            for x in lines
            if x.ours and compare(x.theirs, x.ours, floors[x.setting]) == "theirs"
        ] or ["Nowhere."]),
    ]  # fmt: skip
    for peer, found in peers.items():
        out += _peer(peer, found, titles)
    said = f"Of the runs that changed no weight, {silent or 'none'} ended without saying so."
    out += [
        "", "## Ours at defaults", "", _OWN, said, "",
        *_table(
            ["strategy", *titles.values()],
            [[f"`{n}`", *(_marked(found[s]) for s in titles)] for n, found in sorted(own.items())],
        ),
    ]  # fmt: skip
    failed = {(n, s.error): None for n, f in own.items() for v in f.values() for s in v if s.error}
    out += ["", *(f"- `{name}`: `{error}`" for name, error in failed)] if failed else []
    return "\n".join(out) + "\n"
