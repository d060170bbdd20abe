import re
import threading
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from erasus_pl.evaluation.plots import draw_all
from erasus_pl.evaluation.report import to_html

_SPLITS = ("forget", "retain", "test", "holdout")
_EVIL = "<script>alert('x')</script> \"&\" $\\frac{$ | `_*[a](http://a.example)* \x00\x1b\ud800"


def test_svg_is_well_formed_and_labelled(make_evidence):
    svgs = re.findall(r"<svg .*?</svg>", to_html(make_evidence(text=_EVIL)), flags=re.DOTALL)
    assert len(svgs) == 4
    for svg in svgs:
        root = ET.fromstring(svg)
        assert root.get("aria-label")
        assert root.get("width") is None


def test_without_a_second_retrained_model_the_noise_is_called_unknown(make_evidence):
    evidence = make_evidence()
    del evidence.models["retrained_2"], evidence.measures["retrained_2"]
    gaps = draw_all(evidence)[0]
    assert "retraining noise" not in gaps.svg
    assert "the noise of retraining is unknown" in gaps.caption
    assert "retraining noise" in draw_all(make_evidence())[0].svg


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_collapsed_model_still_draws(make_evidence, value):
    evidence = make_evidence("not forgotten")
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
    assert ("120 losses are not finite" in plots["losses"].caption) == (not np.isfinite(value))
    assert "unlearned: AUC 0.500" in plots["attack"].svg
    assert "Not forgotten" in to_html(evidence)


@pytest.mark.parametrize(
    ("change", "logarithmic"),
    [
        (lambda losses: losses, True),
        (lambda losses: losses - 3.0, False),
        (lambda losses: losses + 3.0, False),
        (lambda losses: losses * 0 + 2.0, False),
    ],
    ids=["decades", "negative", "narrow", "equal"],
)
def test_the_loss_axis_is_logarithmic_where_losses_span_decades(make_evidence, change, logarithmic):
    evidence = make_evidence()
    for record in evidence.models.values():
        record.losses = {split: change(values) for split, values in record.losses.items()}
    svg = {plot.key: plot for plot in draw_all(evidence)}["losses"].svg
    assert ("log scale" in svg) == logarithmic


def test_the_title_names_the_largest_gap(make_evidence):
    evidence = make_evidence()
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
        "Largest gap to the retrained model: 50.0 points before (forget accuracy), "
        "40.0 points after (test accuracy)"
    )
    assert draw_all(evidence)[0].title == expected


def test_the_attack_plot_states_the_areas(make_evidence):
    evidence = make_evidence()
    attack = {plot.key: plot for plot in draw_all(evidence)}["attack"]
    for key, words in [("original", "before"), ("unlearned", "after"), ("retrained", "if never")]:
        scores = evidence.models[key].scores
        labels = np.r_[np.ones(60), np.zeros(60)]
        area = roc_auc_score(labels, np.r_[scores["forget"], scores["holdout"]])
        assert f"{key}: AUC {area:.3f}" in attack.svg
        assert f"{area:.2f} {words}" in attack.title


def test_plots_of_several_threads_are_those_of_one(make_evidence):
    evidence = make_evidence()
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


def test_drawing_leaves_the_users_matplotlib_alone(make_evidence):
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw_all(make_evidence())
    assert dict(matplotlib.rcParams) == before
