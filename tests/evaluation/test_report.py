import io
import re
import threading
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from erasus_pl.evaluation._content import cost, interval, number, seconds
from erasus_pl.evaluation.evidence import Evidence, Measure, ModelRecord, Verdict
from erasus_pl.evaluation.plots import draw_all, roc_curve
from erasus_pl.evaluation.report import to_html, to_markdown
from erasus_pl.evaluation.terminal import show

_SPLITS = ("forget", "retain", "test", "holdout")
_EVIL = "<script>alert('x')</script> \"&\" $\\frac{$ | `_*[a](http://a.example)* \x00\x1b\ud800"


def _record(name, forget_loss, rng):
    """Losses of cross-entropy kind; a model that remembers has them low on the forget set."""
    losses = {split: rng.exponential(0.5, 60) + 1e-7 for split in _SPLITS}
    losses["forget"] = rng.exponential(forget_loss, 60) + 1e-7
    scores = {split: -np.log(np.expm1(loss)) for split, loss in losses.items()}
    correct = {split: (score > 0).astype(float) for split, score in scores.items()}
    return ModelRecord(name, 2.0, scores, losses, correct, dict.fromkeys(_SPLITS, 0.1))


def _evidence(outcome="forgotten", text="plain"):
    rng = np.random.default_rng(0)
    models = {
        "original": _record("original", 0.01, rng),
        "unlearned": _record("unlearned", 0.4, rng),
        "retrained": _record("retrained", 0.5, rng),
        "retrained_2": _record("retrained (seed 2)", 0.5, rng),
    }
    models["unlearned"].seconds = 0.25
    measures = {
        key: [
            Measure("forget accuracy", 0.972, f"Share of the forget set. {text}", 0.95, 0.98),
            Measure("attack AUC", 0.512, "Chance of telling a member.", 0.47, 0.55),
            Measure("KL to retrained", None, f"Divergence in nats: {key}."),
        ]
        for key in models
    }
    counts = {"train": 1200, "forget": 60, "retain": 1140, "test": 60, "holdout": 60}
    return Evidence(
        run={"name": f"quickstart {text}", "seed": 7, "config": f"a: {text}", "git": {"rev": text}},
        manifest={"dataset": text, "description": f"class {text}", "counts": counts},
        coreset={"size": 6, "of": 60, "selector": text, "seconds": 0.03},
        models=models,
        measures=measures,
        verdict=Verdict(outcome, f"Headline {text}", [f"Reason {text}"], {text: 0.5}),
        curves={f"loss/{text}": [(0, 0.1), (1, 2.0)], "loss": [(0, 1.0), (1, 0.5)]},
        notes=[f"Note {text}"],
    )


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
def test_the_verdict_comes_first_in_words(outcome):
    evidence = _evidence(outcome)
    html = to_html(evidence)
    words = outcome.capitalize()
    assert html.index(f"<h2>{words}</h2>") < html.index("What was asked") < html.index("<table")
    assert f"{words}.** Headline" in to_markdown(evidence).splitlines()[2]
    assert words in _printed(evidence)


def test_the_page_needs_nothing_but_itself():
    html = to_html(_evidence())
    page = _Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert page.links
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_the_users_text_stays_text():
    plain, evil = _Page(to_html(_evidence())), _Page(to_html(_evidence(text=_EVIL)))
    assert evil.tags == plain.tags
    words = "".join(evil.words)
    assert words.count("<script>alert('x')</script>") > 8
    assert not re.search("[\x00\x1b\ud800]", words)


def test_the_users_text_does_not_break_the_markdown_tables():
    text = to_markdown(_evidence(text=_EVIL))
    assert "<script>" not in text[: text.index("## Config")]
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) == 6
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1


def test_a_fence_in_the_config_does_not_end_the_block():
    evidence = _evidence()
    evidence.run["config"] = "a: |\n  ```\n  # title\n  ````\n"
    assert to_markdown(evidence).endswith("`````yaml\n" + evidence.run["config"] + "`````\n")


@pytest.mark.parametrize("render", [to_html, to_markdown])
def test_every_definition_is_given_once(render):
    evidence = _evidence()
    text = render(evidence)
    text = text[text.index("What the numbers mean") :]
    for definition in {m.definition for rows in evidence.measures.values() for m in rows}:
        assert text.count(definition) == 1


@pytest.mark.parametrize("render", [to_html, to_markdown, _printed])
def test_numbers_are_formatted_and_the_missing_is_a_dash(render):
    text = re.sub(r"<[^>]*>", " ", render(_evidence()))
    for expected in (
        "97.2 %",
        "0.512",
        "0.12 \u00d7 the time of retraining",
        "8 \u00d7 faster",
        "\u2013",
    ):
        assert expected in text
    assert not re.search(r"\b(nan|None)\b", text)


def test_what_was_asked_says_how_much():
    text = to_markdown(_evidence())
    assert "| How much | 60 of 1,200 training samples (5.0 %) |" in text
    assert "| Worked on | 6 of its 60 samples, chosen by plain in 30 ms |" in text


def test_svg_is_well_formed_and_labelled():
    svgs = re.findall(r"<svg .*?</svg>", to_html(_evidence(text=_EVIL)), flags=re.DOTALL)
    assert len(svgs) == 4
    for svg in svgs:
        root = ET.fromstring(svg)
        assert root.get("aria-label")
        assert root.get("width") is None


def test_without_a_retrained_model_the_page_says_so():
    evidence = _evidence("inconclusive")
    for key in ("retrained", "retrained_2"):
        del evidence.models[key], evidence.measures[key]
    assert [plot.key for plot in draw_all(evidence)] == ["attack", "losses", "curves"]
    for text in (to_html(evidence), to_markdown(evidence)):
        assert "No retrained model was made" in text
        assert "the time of retraining" not in text
    assert "Retrained" not in _printed(evidence)


def test_without_a_second_retrained_model_the_noise_is_called_unknown():
    evidence = _evidence()
    del evidence.models["retrained_2"], evidence.measures["retrained_2"]
    gaps = draw_all(evidence)[0]
    assert "retraining noise" not in gaps.svg
    assert "the noise of retraining is unknown" in gaps.caption
    assert "retraining noise" in draw_all(_evidence())[0].svg


def test_without_a_coreset_the_whole_forget_set_was_used():
    evidence = _evidence()
    evidence.coreset = None
    assert "the whole forget set" in to_html(evidence)
    assert "| Worked on | the whole forget set |" in to_markdown(evidence)


def test_without_any_values_the_page_still_opens():
    evidence = Evidence({}, {}, None, {}, {}, Verdict("inconclusive", "Nothing was measured."))
    assert "Nothing was measured." in to_html(evidence)
    assert "Nothing was measured." in to_markdown(evidence)
    assert "Nothing was measured." in _printed(evidence)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_collapsed_model_still_draws(value):
    evidence = _evidence("not forgotten")
    record = evidence.models["unlearned"]
    for split in _SPLITS:
        record.losses[split] = np.full(60, value)
        record.scores[split] = np.full(60, -value)
        record.correct[split] = np.zeros(60)
    record.kl_to_retrained = dict.fromkeys(_SPLITS, value)
    evidence.measures["unlearned"][1].value = value
    evidence.curves = {"loss": [(0, 1.0), (1, value), (2, value)]}
    plots = {plot.key: plot for plot in draw_all(evidence)}
    assert set(plots) == {"gaps", "attack", "losses", "curves"}
    assert ("240 losses are not finite" in plots["losses"].caption) == (not np.isfinite(value))
    assert "unlearned: AUC 0.500" in plots["attack"].svg
    assert "Not forgotten" in to_html(evidence)


def test_negative_losses_are_drawn_on_a_linear_axis():
    evidence = _evidence()
    evidence.models["original"].losses["forget"] -= 3.0
    svg = {plot.key: plot for plot in draw_all(evidence)}["losses"].svg
    assert "log scale" not in svg


def test_the_title_names_the_largest_gap():
    evidence = _evidence()
    for key, forget, test in [
        ("original", 1.0, 0.9),
        ("unlearned", 0.6, 0.5),
        ("retrained", 0.5, 0.9),
    ]:
        evidence.models[key].correct = {
            "forget": np.array([forget]),
            "test": np.array([test]),
        }
        evidence.models[key].scores = {}
    expected = (
        "Farthest from the retrained model: test accuracy, 0.0 points before, 40.0 points after"
    )
    assert draw_all(evidence)[0].title == expected


@pytest.mark.parametrize("ties", [False, True])
def test_roc_agrees_with_sklearn(ties):
    rng = np.random.default_rng(1)
    members, others = rng.normal(0.5, 1, 80), rng.normal(0, 1, 50)
    if ties:
        members, others = members.round(), others.round()
    members[0], others[0] = np.inf, -np.inf
    fpr, tpr = roc_curve(members, others)
    labels = np.r_[np.ones(80), np.zeros(50)]
    scores = np.clip(np.r_[members, others], -99, 99)
    assert np.trapezoid(tpr, fpr) == pytest.approx(roc_auc_score(labels, scores))
    reference = sklearn_roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose([fpr, tpr], reference[:2])


def test_roc_counts_nan_as_the_lowest_score():
    fpr, tpr = roc_curve(np.array([1.0, np.nan]), np.array([0.0]))
    assert np.trapezoid(tpr, fpr) == 0.5


def test_plots_of_several_threads_are_those_of_one():
    evidence = _evidence()
    expected = [plot.svg for plot in draw_all(evidence)]
    found = []
    threads = [
        threading.Thread(target=lambda: found.append([plot.svg for plot in draw_all(evidence)]))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def test_drawing_leaves_the_users_matplotlib_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw_all(_evidence())
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("width", [150, 80, 40, 12])
def test_the_terminal_fits_every_width(width):
    text = _printed(_evidence(), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert ("[0.470, 0.550]" in text) == (width == 150)
    assert "Forgotten" in text


def test_the_terminal_takes_user_text_literally_in_any_encoding():
    text = _printed(_evidence(text="[bold]ł[/bold]"), encoding="ascii")
    assert "Headline [bold]?[/bold]" in text
    assert "+ Forgotten" in text


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


def test_cost_speaks_of_faster_only_where_it_is():
    evidence = _evidence()
    evidence.models["unlearned"].seconds = 4.0
    assert ("unlearned", 4.0, "4.0 s, 2 \u00d7 the time of retraining") in cost(evidence)
