import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from erasus_pl.evaluation._content import cost, interval, number, seconds
from erasus_pl.evaluation.evidence import Evidence, Measure, Verdict
from erasus_pl.evaluation.plots import draw_all
from erasus_pl.evaluation.report import to_html, to_markdown
from erasus_pl.evaluation.terminal import show

_EVIL = "<script>alert('x')</script> \"&\" $\\frac{$ | `_*[a](http://a.example)* \x00\x1b\ud800"


class _Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.ids, self.words = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_data(self, data):
        self.words.append(data)


def _console(width=120, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=stream, width=width), stream


def _printed(evidence, **options):
    console, stream = _console(**options)
    show(evidence, console)
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("outcome", ["forgotten", "not forgotten", "inconclusive"])
def test_the_verdict_comes_first_in_words(make_evidence, outcome):
    evidence = make_evidence(outcome)
    html = to_html(evidence)
    words = outcome.capitalize()
    assert html.index(f"<h2>{words}</h2>") < html.index("What was asked") < html.index("<table")
    assert f"{words}.** Headline" in to_markdown(evidence).splitlines()[2]
    assert words in _printed(evidence)


@pytest.mark.parametrize("render", [to_html, to_markdown, _printed])
def test_the_headline_does_not_repeat_the_outcome(make_evidence, render):
    evidence = make_evidence("not forgotten")
    evidence.verdict.headline = "Not forgotten: a quarter is left."
    text = render(evidence)
    assert "A quarter is left." in text
    assert text.count("Not forgotten") == 1


def test_the_page_needs_nothing_but_itself(make_evidence):
    html = to_html(make_evidence())
    page = _Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert page.links
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_users_text_stays_text(make_evidence):
    plain, evil = _Page(to_html(make_evidence())), _Page(to_html(make_evidence(text=_EVIL)))
    assert evil.tags == plain.tags
    words = "".join(evil.words)
    assert words.count("<script>alert('x')</script>") > 8
    assert not re.search("[\x00\x1b\ud800]", words)


def test_the_users_text_does_not_break_the_markdown_tables(make_evidence):
    text = to_markdown(make_evidence(text=_EVIL))
    assert "<script>" not in text[: text.index("## Config")]
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 6
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


def test_a_fence_in_the_config_does_not_end_the_block(make_evidence):
    evidence = make_evidence()
    evidence.run["config"] = "a: |\n  ```\n  # title\n  ````\n"
    assert to_markdown(evidence).endswith("`````yaml\n" + evidence.run["config"] + "`````\n")


@pytest.mark.parametrize("render", [to_html, to_markdown])
def test_every_definition_is_given_once(make_evidence, render):
    evidence = make_evidence()
    text = render(evidence)
    text = text[text.index("What the numbers mean") :]
    for definition in {m.definition for rows in evidence.measures.values() for m in rows}:
        assert text.count(definition) == 1


@pytest.mark.parametrize("render", [to_html, to_markdown, _printed])
def test_numbers_are_formatted_and_the_missing_is_a_dash(make_evidence, render):
    text = re.sub(r"<[^>]*>", " ", render(make_evidence()))
    for expected in (
        "97.2 %",
        "0.512",
        "0.12 \u00d7 the time of retraining",
        "8 \u00d7 faster",
        "\u2013",
    ):
        assert expected in text
    assert not re.search(r"\b(nan|None)\b", text)


def test_what_was_asked_says_how_much(make_evidence):
    text = to_markdown(make_evidence())
    assert "| How much | 60 of 1,200 training samples (5.0 %) |" in text
    assert "| Worked on | 6 of its 60 samples, chosen by plain in 30 ms |" in text


def test_long_lists_are_cut_in_the_page_alone(make_evidence):
    evidence = make_evidence()
    evidence.manifest["request"] = {"indices": list(range(70_000, 70_050))}
    for text in (to_html(evidence), to_markdown(evidence)):
        assert "70018, 70019 and 30 more, all in report.json" in text
        assert "70020" not in text
    assert "70049" in evidence.to_json()


def test_without_a_retrained_model_the_page_says_so(make_evidence):
    evidence = make_evidence("inconclusive")
    for key in ("retrained", "retrained_2"):
        del evidence.models[key], evidence.measures[key]
    assert [plot.key for plot in draw_all(evidence)] == ["attack", "losses", "curves"]
    for text in (to_html(evidence), to_markdown(evidence)):
        assert "No retrained model was made" in text
        assert "the time of retraining" not in text
    assert "Retrained" not in _printed(evidence)


def test_without_a_coreset_the_whole_forget_set_was_used(make_evidence):
    evidence = make_evidence()
    evidence.coreset = None
    assert "the whole forget set" in to_html(evidence)
    assert "| Worked on | the whole forget set |" in to_markdown(evidence)


def test_without_any_values_the_page_still_opens():
    evidence = Evidence({}, {}, None, {}, {}, Verdict("inconclusive", "Nothing was measured."))
    assert "Nothing was measured." in to_html(evidence)
    assert "Nothing was measured." in to_markdown(evidence)
    assert "Nothing was measured." in _printed(evidence)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("forget accuracy", 0.9723, "97.2 %"),
        ("attack TPR at 1 % FPR", 0.004, "0.4 %"),
        ("attack AUC", 0.51249, "0.512"),
        ("ratio to retraining", 0.1234, "0.123 \u00d7"),
        ("AvgGap", 0.031, "3.1 points"),
        ("KL to retrained", 12345.678, "12,346"),
        ("KL to retrained", 0.000012345, "1.2e-05"),
        ("KL to retrained", 0.0, "0"),
        ("KL to retrained", float("nan"), "not a number"),
        ("KL to retrained", float("inf"), "infinite"),
        ("KL to retrained", None, "\u2013"),
        ("seconds", 1.26, "1.3 s"),
    ],
)
def test_number(name, value, expected):
    assert number(name, value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.034, "34 ms"),
        (1.26, "1.3 s"),
        (125.0, "2 min 5 s"),
        (11400.0, "3 h 10 min"),
        (None, "\u2013"),
    ],
)
def test_seconds(value, expected):
    assert seconds(value) == expected


def test_interval_leaves_out_the_unit():
    assert interval(Measure("forget accuracy", 0.5, "", 0.4, 0.61)) == "[40.0, 61.0]"
    assert interval(Measure("forget accuracy", 0.5, "", 0.4, None)) == ""


def test_cost_speaks_of_faster_only_where_it_is(make_evidence):
    evidence = make_evidence()
    evidence.models["unlearned"].seconds = 4.0
    assert ("unlearned", 4.0, "4.0 s, 2 \u00d7 the time of retraining") in cost(evidence)
