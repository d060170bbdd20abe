import doctest

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from erasus_pl.evaluation import measures as module
from erasus_pl.evaluation.evidence import ModelRecord
from erasus_pl.evaluation.measures import average_gap, measure, tug_of_war

NAMES = [
    "UA",
    "RA",
    "TA",
    "AvgGap",
    "ToW",
    "Membership AUC",
    "Membership TPR at 1 % FPR",
    "KL to retrained, forget",
    "KL to retrained, retain",
    "KL to retrained, test",
    "Seconds",
    "Time ratio",
]


def _record(name, forget, retain, test, *, seconds=10.0, kl=0.0, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    sizes = {"forget": 20, "retain": 100, "test": 50, "holdout": 200}
    rates = {"forget": forget, "retain": retain, "test": test, "holdout": 0.5}
    scores = {split: rng.normal(size=n) for split, n in sizes.items()}
    scores["forget"] += shift
    return ModelRecord(
        name,
        seconds,
        scores,
        {split: -values for split, values in scores.items()},
        {split: (np.arange(n) < rates[split] * n).astype(float) for split, n in sizes.items()},
        {split: kl for split in ("forget", "retain", "test", "holdout")},
    )


@pytest.fixture
def models():
    return {
        "original": _record("original", 1.0, 1.0, 0.9, shift=2, kl=3.0, seconds=40.0),
        "unlearned": _record("unlearned", 0.25, 0.97, 0.86, seconds=4.0, kl=0.5, seed=1),
        "retrained": _record("retrained", 0.1, 0.99, 0.9, seconds=40.0, seed=2),
        "retrained_2": _record("retrained (seed 2)", 0.15, 1.0, 0.88, kl=0.2, seed=3),
    }


def _values(models):
    return {key: {m.name: m for m in found} for key, found in measure(models).items()}


def test_examples_in_the_docstrings():
    result = doctest.testmod(module)
    assert result.attempted >= 3
    assert result.failed == 0


def test_every_model_has_the_same_names_in_the_same_order(models):
    for found in measure(models).values():
        assert [m.name for m in found] == NAMES
        for m in found:
            assert m.definition.endswith(".")
            assert m.value is not None
            assert np.isfinite(m.value)


def test_values_are_those_of_the_definitions(models):
    found = _values(models)
    unlearned = {name: m.value for name, m in found["unlearned"].items()}
    assert unlearned["UA"] == pytest.approx(0.75)
    assert unlearned["RA"] == pytest.approx(0.97)
    assert unlearned["TA"] == pytest.approx(0.86)
    assert unlearned["ToW"] == pytest.approx((1 - 0.15) * (1 - 0.02) * (1 - 0.04))
    aucs = {}
    for key in ("unlearned", "retrained"):
        scores = models[key].scores
        labels = np.r_[np.ones(20), np.zeros(200)]
        aucs[key] = roc_auc_score(labels, np.r_[scores["forget"], scores["holdout"]])
    assert unlearned["Membership AUC"] == pytest.approx(aucs["unlearned"])
    gap = (0.15 + 0.02 + 0.04 + abs(aucs["unlearned"] - aucs["retrained"])) / 4
    assert unlearned["AvgGap"] == pytest.approx(gap)
    assert unlearned["KL to retrained, forget"] == 0.5
    assert unlearned["Time ratio"] == pytest.approx(0.1)
    attack = found["original"]["Membership AUC"]
    assert attack.low < attack.value < attack.high
    assert attack.low > 0.5


def test_the_second_retrained_model_is_the_noise_floor(models):
    found = _values(models)
    assert found["retrained"]["AvgGap"].value == 0
    assert found["retrained"]["ToW"].value == 1
    assert found["retrained_2"]["AvgGap"].value > 0
    assert found["retrained_2"]["KL to retrained, forget"].value == 0.2


def test_the_retrained_models_gap_is_to_it_not_to_perfection(models):
    models["unlearned"].correct["forget"][:] = 0
    assert _values(models)["unlearned"]["ToW"].value == pytest.approx(0.9 * 0.98 * 0.96)


def test_without_a_retrained_model_the_definition_says_why(models):
    del models["retrained"], models["retrained_2"]
    for key in ("original", "unlearned"):
        models[key].kl_to_retrained = dict.fromkeys(models[key].kl_to_retrained)
    found = _values(models)["unlearned"]
    missing = {name for name, m in found.items() if m.value is None}
    assert missing == {"AvgGap", "ToW", "Time ratio", *NAMES[7:10]}
    assert all("no retrained model" in found[name].definition for name in missing)
    assert found["UA"].value == pytest.approx(0.75)


def test_without_holdout_or_times_the_definition_says_why(models):
    for record in models.values():
        record.scores["holdout"] = np.empty(0)
        record.seconds = None
        record.correct.pop("test")
    found = _values(models)["unlearned"]
    assert found["Membership AUC"].value is found["AvgGap"].value is found["Seconds"].value is None
    assert "no holdout data" in found["Membership AUC"].definition
    assert "missing" in found["ToW"].definition
    assert "no test data" in found["TA"].definition
    assert "not recorded" in found["Time ratio"].definition


def test_says_when_the_holdout_is_too_small_for_one_percent(models):
    for record in models.values():
        record.scores["holdout"] = record.scores["holdout"][:50]
    found = _values(models)["original"]["Membership TPR at 1 % FPR"]
    assert "50 holdout samples cannot show" in found.definition


def test_a_collapsed_model_has_numbers(models):
    for kind in ("scores", "losses", "correct"):
        for values in getattr(models["unlearned"], kind).values():
            values[:] = np.nan
    found = _values(models)["unlearned"]
    assert (found["UA"].value, found["RA"].value) == (1.0, 0.0)
    assert found["Membership AUC"].value == 0.5


def test_tow_and_gap_refuse_what_they_cannot_compare():
    with pytest.raises(KeyError):
        tug_of_war({"forget": 1.0}, {"forget": 1.0, "retain": 1.0, "test": 1.0})
    with pytest.raises(ValueError, match="at least one number"):
        average_gap({}, {})
