import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from erasus_pl.selectors import EL2N, Full, Learned, Random
from erasus_pl.selectors import learned as room
from erasus_pl.selectors._describe import concentration, effective_rank, family, shift
from erasus_pl.selectors._policy import evaluate, learn, predict, settings
from erasus_pl.selectors.learned import FEATURES, choose, describe
from erasus_pl.strategies import SCRUB, SSD, GradientAscent

DATASETS = ("a", "b", "c", "d", "e")


def table(gap, noise=0.0, seeds=8, datasets=DATASETS, skip=()):
    """A run for each candidate in each setting, with AvgGap ``gap(selector, fraction, x)``."""
    generator = np.random.default_rng(0)
    rows = []
    for dataset in datasets:
        for seed in range(seeds):
            # Two features that count, one that does not; data sets lie apart in all.
            x = dict.fromkeys(FEATURES, 0.0)
            x["concentration"] = float(generator.uniform())
            x["log_forget"] = float(generator.normal())
            x["feature_rank"] = float(generator.normal())
            x["one_shot"] = math.nan
            for selector in ("Random", "EL2N", "Moderate"):
                for fraction in (0.1, 0.5):
                    if (selector, fraction, seed) not in skip:
                        rows.append({
                            "dataset": dataset, "request": "class", "strategy": "SSD",
                            "selector": selector, "fraction": fraction, "seed": seed,
                            "AvgGap": gap(selector, fraction, x) + noise * generator.normal(),
                            "seconds": 1.0, **x,
                        })  # fmt: skip
    return rows


def crossing(selector, fraction, x):
    """EL2N is right for concentrated forget sets, Moderate for the others; less is better then."""
    side = {"EL2N": -1.0, "Moderate": 1.0, "Random": 0.0}[selector]
    return 0.3 + 0.2 * side * (x["concentration"] - 0.5) + 0.02 * fraction


def flat(selector, fraction, x):
    return 0.3


def better(selector, fraction, x):
    return {"EL2N": 0.1, "Moderate": 0.25, "Random": 0.3}[selector] + 0.05 * fraction


def test_it_learns_what_a_table_says():
    found = settings(table(crossing, noise=0.005), FEATURES)
    judged = evaluate(found, FEATURES)
    gaps = judged["AvgGap"]
    assert judged["learned_beats_average"]
    assert judged["learned_beats_random"]
    assert gaps["best"] <= gaps["learned"] < gaps["best"] + 0.01
    assert gaps["average"] > gaps["best"] + 0.03
    model = json.loads(json.dumps(learn(found, FEATURES)))
    neutral = dict.fromkeys(FEATURES, 0.0)
    for share, right in ((0.95, "EL2N"), (0.05, "Moderate")):
        expected = predict(model, {**neutral, "concentration": share})
        assert choose(expected, {"EL2N", "Moderate", "Random"}, None) == (right, 0.1)


def test_it_claims_nothing_where_there_is_nothing():
    judged = evaluate(settings(table(flat, noise=0.05), FEATURES), FEATURES)
    assert not judged["learned_beats_average"] or not judged["learned_beats_random"]
    assert abs(judged["AvgGap"]["average"] - judged["AvgGap"]["random"]) < 0.03


def test_where_one_is_always_better_it_departs_from_it_nowhere():
    found = settings(table(better), FEATURES)
    judged = evaluate(found, FEATURES)
    assert judged["AvgGap"]["learned"] == judged["AvgGap"]["average"] == judged["AvgGap"]["best"]
    assert not judged["learned_beats_average"]
    assert judged["average_beats_random"]


def test_without_slopes_the_means_of_data_sets_remain():
    """By hand: two data sets of unlike size count alike."""
    rows = table(better, seeds=2, datasets=("a",)) + table(better, seeds=6, datasets=("b", "c"))
    for row in rows:
        row["AvgGap"] += 0.3 * (row["dataset"] == "a" and row["selector"] == "EL2N")
    model = learn(settings(rows, FEATURES), FEATURES, math.inf)
    found = {(c["selector"], c["fraction"]): c["mean"] for c in model["candidates"]}
    random = 0.3 + 0.05 * 0.3
    assert found["EL2N", 0.1] == pytest.approx(0.1 + 0.005 + 0.3 / 3 - random)
    assert found["Random", 0.5] == pytest.approx(0.3 + 0.025 - random)
    assert model["penalty"] is None


def test_a_model_is_judged_on_data_that_it_did_not_see():
    """Gaps that only the data set's own name explains cannot be foreseen."""
    rows = table(flat)
    for row in rows:
        right = DATASETS.index(row["dataset"]) % 2 == (row["selector"] == "EL2N")
        row["AvgGap"] = 0.3 if row["selector"] == "Random" else 0.1 if right else 0.5
    judged = evaluate(settings(rows, FEATURES), FEATURES)
    assert not judged["learned_beats_random"]


def test_runs_that_failed_are_left_out():
    rows = table(crossing, skip=[("EL2N", 0.1, 3)])
    rows[0]["AvgGap"], rows[2]["AvgGap"] = math.nan, ""
    found = settings(rows, FEATURES)
    assert sum(len(setting.gaps) for setting in found) == len(rows) - 2
    assert set(found[0].gaps) == {
        ("Random", 0.5), ("EL2N", 0.5), ("Moderate", 0.1), ("Moderate", 0.5),
    }  # fmt: skip
    assert evaluate(found, FEATURES)["learned_beats_random"]


def test_tables_that_cannot_be_learnt_from():
    with pytest.raises(ValueError, match="at least 3 data sets, got"):
        settings(table(flat, datasets=("a", "b")), FEATURES)
    rows = [row for row in table(flat) if row["selector"] != "Random"]
    with pytest.raises(ValueError, match="no run of Random"):
        settings(rows, FEATURES)


def test_choice_by_hand():
    expected = {("A", 0.1): 0.5, ("A", 0.5): 0.1, ("B", 0.1): 0.3, ("Full", 1.0): 0.0}
    assert choose(expected, {"A", "B", "Full"}, None) == ("Full", 1.0)
    assert choose(expected, {"A", "B"}, None) == ("A", 0.5)
    assert choose(expected, {"A", "B", "Full"}, 0.15) == ("B", 0.1)
    assert choose(expected, {"A", "B", "Full"}, 0.4) == ("A", 0.5)
    assert choose(expected, {"C"}, None) is None


def test_features_by_hand():
    assert concentration(torch.tensor([3, 3, 3]), 10) == 1
    assert concentration(torch.arange(10), 10) == pytest.approx(0)
    assert concentration(torch.tensor([0, 0, 1, 1]), 4) == pytest.approx(0.5)
    assert concentration(torch.tensor([0]), 1) == 1
    line = torch.arange(5.0, dtype=torch.float64)[:, None] * torch.tensor([[1.0, 2.0, 0.5]])
    assert effective_rank(line) == pytest.approx(1 / 3)
    assert effective_rank(torch.eye(4, dtype=torch.float64)) == pytest.approx(1)
    assert effective_rank(torch.ones(3, 2)) == 0
    retain = torch.tensor([[1.0, 0], [-1.0, 0]])
    assert shift(torch.tensor([[0.0, 3], [0.0, 5]]), retain) == pytest.approx(4)
    assert shift(retain, torch.ones(2, 2)) == 0


def test_families_are_told_apart(modality):
    flags = [tuple(family(kind(modality.task)).values()) for kind in (GradientAscent, SCRUB, SSD)]
    assert len(set(flags)) == 3
    assert family(SSD(modality.task))["one_shot"] == 1
    assert all(sum(v for k, v in family(kind(modality.task)).items() if "mode" in k) == 1
               for kind in (GradientAscent, SCRUB, SSD))  # fmt: skip


def test_a_run_is_described(fit, modality):
    seen = []

    class Watch(Random):
        def on_fit_start(self, trainer, pl_module):
            pl_module.train()
            seen.append(describe(pl_module))
            assert pl_module.training
            super().on_fit_start(trainer, pl_module)

    fit(Watch(k=5), copy.deepcopy(modality.task), modality.columns)
    (found,) = seen
    assert tuple(found) == FEATURES
    assert found["log_train"] == pytest.approx(math.log10(120))
    assert found["forget_fraction"] == 0.5
    missing = [name for name, value in found.items() if not math.isfinite(value)]
    assert set(missing) <= {"log_epochs"}
    forget = {k: v[:60] for k, v in modality.columns.items()} | {"index": torch.arange(60)}
    task = modality.task.eval()
    losses = task.per_sample_loss(task(forget), forget).detach()
    assert found["forget_loss"] == pytest.approx(math.log1p(float(losses.mean())))
    norms = []
    for i in range(60):
        one = {k: v[i : i + 1] for k, v in forget.items()}
        loss = task.per_sample_loss(task(one), one).sum()
        parameters = list(task.head.parameters())
        norms.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).norm())
    norms = torch.stack(norms)
    assert found["gradient_norm"] == pytest.approx(math.log1p(float(norms.mean())))
    assert found["gradient_spread"] == pytest.approx(float(norms.std(correction=0) / norms.mean()))


@pytest.fixture
def learnt(tmp_path):
    """A file of a model that always prefers EL2N at a tenth, judged as it is told."""

    def write(**judged):
        found = settings(table(better), FEATURES)
        model = {**learn(found, FEATURES), "evaluation": {**evaluate(found, FEATURES), **judged}}
        path = tmp_path / "model.json"
        path.write_text(json.dumps(model))
        return str(path)

    return write


def test_the_choice_does_the_selection(fit, modality, learnt, caplog):
    path = learnt(learned_beats_average=True, learned_beats_random=True)
    free = Learned(model=path)
    with caplog.at_level("INFO"):
        picked = fit(free, copy.deepcopy(modality.task), modality.columns).picked
    assert "Learned: EL2N keeps 6 of 60 samples: AvgGap of -0." in caplog.text
    own = fit(EL2N(fraction=0.1), copy.deepcopy(modality.task), modality.columns).picked
    assert torch.equal(picked, own)
    asked = fit(Learned(k=17, model=path), copy.deepcopy(modality.task), modality.columns).picked
    own = fit(EL2N(k=17), copy.deepcopy(modality.task), modality.columns).picked
    assert torch.equal(asked, own)


def test_a_model_that_is_no_better_is_not_followed(fit, modality, learnt, caplog):
    def picked(selector):
        with caplog.at_level("INFO"):
            return fit(selector, copy.deepcopy(modality.task), modality.columns).picked

    path = learnt(learned_beats_average=False, average_beats_random=True)
    assert torch.equal(picked(Learned(k=9, model=path)), picked(EL2N(k=9)))
    assert "best on average, which learning did not beat" in caplog.text
    path = learnt(learned_beats_average=False, average_beats_random=False)
    assert torch.equal(picked(Learned(k=9, model=path, seed=3)), picked(Random(k=9, seed=3)))
    assert torch.equal(picked(Learned(model=path)), picked(Full()))
    assert "a random pick, which nothing that was learnt beat" in caplog.text


def test_without_a_model_it_says_so(fit, modality, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(room, "_SHIPPED", tmp_path / "none.json")
    with caplog.at_level("INFO"):
        picked = fit(Learned(fraction=0.2), modality.task, modality.columns).picked
    assert len(picked) == 12
    assert "nothing has been learnt yet" in caplog.text


def test_models_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match=r"`model`: there is no file .*learn_selector"):
        Learned(model=str(tmp_path / "none.json"))
    path = tmp_path / "bad.json"
    for content in ("{", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"`model`: .* is no model of selectors"):
            Learned(model=str(path))
    path.write_text(json.dumps({"features": ["wings"], "candidates": [{"selector": "Dice"}]}))
    with pytest.raises(ValueError, match=r"`model`: .* knows \['wings', 'Dice'\]"):
        Learned(model=str(path))


def test_the_page_shows_what_the_shipped_evaluation_says():
    root = Path(__file__).parents[2]
    shipped = json.loads((root / "erasus_pl/selectors/learned.json").read_text())["evaluation"]
    page = (root / "docs/learned.md").read_text("utf-8")
    rows = {**shipped["by_dataset"], "mean": shipped["AvgGap"]}
    for name, gaps in rows.items():
        shown = (f"{100 * gaps[policy]:.1f}" for policy in ("learned", "average", "random", "best"))
        assert f"| {name} | {' | '.join(shown)} |" in page
    assert not shipped["learned_beats_average"], "docs/learned.md says that it does not"
