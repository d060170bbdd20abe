"""The verdict on really trained models: many seeds of one small network, trained side by side."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from erasus_pl.evaluation.evidence import ModelRecord
from erasus_pl.evaluation.verdict import verdict

ORIGINALS, RETRAINED, HIDDEN = 4, 6, 64
SPLITS = ("forget", "retain", "test", "holdout")


def _forward(weights, x):
    w1, b1, w2, b2 = weights
    x = x.expand(len(w1), *x.shape[-2:])
    return torch.baddbmm(b2, torch.relu(torch.baddbmm(b1, x, w1)), w2)


def _fresh(models, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((64, HIDDEN, 64), (1, HIDDEN, 64), (HIDDEN, 10, HIDDEN), (1, 10, HIDDEN))
    return [
        (torch.rand(models, a, b, generator=generator) * 2 - 1) / math.sqrt(fan)
        for a, b, fan in shapes
    ]


def _train(weights, x, y, seed, epochs, lr=5e-3, sign=1.0):
    weights = [w.clone().requires_grad_() for w in weights]
    optimizer = torch.optim.Adam(weights, lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.rand(len(weights[0]), len(x), generator=generator).argsort(1)
        for batch in order.split(64, dim=1):
            logits = _forward(weights, x[batch])
            losses = F.cross_entropy(logits.mT, y[batch], reduction="none")
            optimizer.zero_grad()
            (sign * losses.mean(1).sum()).backward()
            optimizer.step()
    return [w.detach() for w in weights]


def _records(weights, data):
    found = [ModelRecord("model", 1.0) for _ in weights[0]]
    for split, (x, y) in data.items():
        logits = _forward(weights, x[None])
        label = y.expand(len(found), -1)[..., None]
        right = logits.gather(2, label).squeeze(2)
        others = logits.scatter(2, label, -math.inf).logsumexp(2)
        for record, phi, hit in zip(found, right - others, logits.argmax(2) == y, strict=True):
            record.scores[split] = phi.double().numpy()
            record.correct[split] = hit.double().numpy()
    return found


@dataclasses.dataclass
class Case:
    """One request: its data, and models of several seeds."""

    data: dict
    weights: list
    originals: list
    retrained: list
    random_draw: bool

    def combinations(self):
        pairs = itertools.combinations(range(RETRAINED), 2)
        for i, (a, b) in itertools.product(range(ORIGINALS), pairs):
            others = [m for c, m in enumerate(self.retrained) if c not in (a, b)]
            models = {
                "original": self.originals[i],
                "retrained": self.retrained[a],
                "retrained_2": self.retrained[b],
            }
            yield i, models, others

    def judge(self, models, unlearned):
        models = {**models, "unlearned": unlearned}
        return verdict(models, random_draw=self.random_draw, resamples=20)


def _case(name):
    images, target = load_digits(return_X_y=True)
    rng = np.random.default_rng(7)
    order = rng.permutation(len(target))
    train, held = order[:1197], order[1197:]
    if name.startswith("few"):
        train = train[:300]
    x, y = images.astype(np.float32) / 16, target.copy()
    if name == "few, noisy":
        wrong = rng.random(len(y)) < 0.2
        y[wrong] = (y[wrong] + rng.integers(1, 10, wrong.sum())) % 10
    elif name == "mislabelled":
        wrong = rng.choice(train, 50, replace=False)
        y[wrong] = (y[wrong] + rng.integers(1, 10, 50)) % 10
    forget = {
        "class 3": lambda: y[train] == 3,
        "class 8": lambda: y[train] == 8,
        "mislabelled": lambda: np.isin(train, wrong),
        "few, noisy": lambda: np.arange(300) < 60,
        "few, tiny": lambda: np.arange(300) < 8,
        "5 %": lambda: np.arange(1197) < 60,
        "neighbours": lambda: np.argsort(np.argsort(((x[train] - x[train[5]]) ** 2).sum(1))) < 40,
    }[name]()
    parts = {"forget": train[forget], "retain": train[~forget], "test": held[:300]}
    parts["holdout"] = held[300:]
    if name.startswith("class"):  # the holdout set is distributed like the forget set
        parts["holdout"] = parts["holdout"][y[parts["holdout"]] == int(name[-1])]
    data = {
        split: (torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
        for split, rows in parts.items()
    }
    whole = tuple(torch.cat([data[s][k] for s in ("forget", "retain")]) for k in (0, 1))
    epochs = 90 if name.startswith("few") else 50 if name == "mislabelled" else 25
    weights = _train(_fresh(ORIGINALS, 1), *whole, 2, epochs)
    golds = _train(_fresh(RETRAINED, 3), *data["retain"], 4, epochs)
    draw = name in ("few, noisy", "few, tiny", "5 %")
    return Case(data, weights, _records(weights, data), _records(golds, data), draw)


CLEAR = ["class 3", "class 8", "mislabelled", "few, noisy"]
UNCLEAR = ["few, tiny", "5 %", "neighbours"]


@pytest.fixture(scope="module")
def cases():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: _case(name) for name in (*CLEAR, *UNCLEAR)}
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", [*CLEAR, *UNCLEAR])
def test_no_original_forgot_and_every_retrained_model_did(cases, name):
    case, spoke, total = cases[name], 0, 0
    for i, models, others in case.combinations():
        found = case.judge(models, case.originals[i])
        conclusive = found.outcome != "inconclusive"
        spoke, total = spoke + conclusive, total + 1
        assert found.outcome != "forgotten"
        for k, other in enumerate(case.originals):
            if k != i:
                wanted = "not forgotten" if conclusive else "inconclusive"
                assert case.judge(models, other).outcome == wanted
        for other in others[:2]:
            again = case.judge(models, other)
            assert again.outcome == ("forgotten" if conclusive else "inconclusive"), again.headline
    if name in CLEAR:
        assert spoke >= 0.9 * total
    if name == "few, tiny":
        assert spoke == 0


def _first(case):
    models = next(m for _, m, _ in case.combinations())
    return models, [w[:1] for w in case.weights]


@pytest.mark.parametrize("name", CLEAR)
@pytest.mark.parametrize("temperature", [1.5, 3.0, 10.0, 100.0])
def test_hiding_confidence_behind_a_temperature_is_seen(cases, name, temperature):
    case = cases[name]
    models, (w1, b1, w2, b2) = _first(case)
    (hidden,) = _records([w1, b1, w2 / temperature, b2 / temperature], case.data)
    np.testing.assert_array_equal(hidden.correct["test"], models["original"].correct["test"])
    assert case.judge(models, hidden).outcome == "not forgotten"


@pytest.mark.parametrize("name", CLEAR)
@pytest.mark.parametrize("kind", ["random weights", "not a number", "collapsed by ascent"])
def test_a_broken_model_never_just_forgot(cases, name, kind):
    case = cases[name]
    models, weights = _first(case)
    broken = {
        "random weights": lambda: _fresh(1, 9),
        "not a number": lambda: [w * math.nan for w in weights],
        "collapsed by ascent": lambda: _train(weights, *case.data["forget"], 5, 30, 0.02, -1.0),
    }[kind]()
    found = case.judge(models, *_records(broken, case.data))
    assert "damaged: it lost" in found.headline
    assert "what the original remembered" not in found.headline
    assert found.statistics["retain accuracy drop"] > 0.3


def test_a_retrained_model_is_not_called_damaged(cases):
    found = [
        "damaged" in case.judge(models, other).headline
        for case in cases.values()
        for _, models, others in itertools.islice(case.combinations(), 0, None, 7)
        for other in others[:2]
    ]
    assert np.mean(found) < 0.05


def test_overshooting_is_not_forgetting(cases):
    case = cases["few, noisy"]
    models, _ = _first(case)
    low = dataclasses.replace(models["retrained"], scores=dict(models["retrained"].scores))
    low.scores["forget"] = np.full_like(low.scores["forget"], -30.0)
    found = case.judge(models, low)
    assert found.outcome == "not forgotten"
    assert "overshoots" in found.headline
    assert found.statistics["confidence: distance"] > 1


def test_the_unlearned_model_cannot_choose_to_be_inconclusive(cases):
    for case in cases.values():
        models, _ = _first(case)
        rng = np.random.default_rng(0)
        outcomes = set()
        for scale in (0.0, 1.0, math.nan, math.inf):
            with np.errstate(invalid="ignore"):
                noise = {
                    s: scale * rng.normal(size=x.size) for s, x in models["original"].scores.items()
                }
            strange = ModelRecord("strange", 1.0, noise, {}, models["original"].correct)
            outcomes.add(case.judge(models, strange).outcome == "inconclusive")
        assert len(outcomes) == 1


def test_says_what_it_rests_on(cases):
    case = cases["class 3"]
    models, _ = _first(case)
    found = case.judge(models, case.originals[0])
    assert found.headline.startswith("Not forgotten: 100 % of what the original remembered")
    assert "100 % [100, 100] of the original's memory" in found.reasons[0]
    assert any("Accuracy on retain data" in reason for reason in found.reasons)
    numbers = found.statistics
    assert numbers["confidence: retained memory"] == pytest.approx(1)
    assert numbers["forget samples"] == models["original"].scores["forget"].size
    assert all(isinstance(value, float) for value in numbers.values())


def test_without_retrained_models_the_attack_decides_or_says_that_it_cannot(cases):
    case = cases["few, noisy"]
    for original, retrained in zip(case.originals, case.retrained, strict=False):
        models = {"original": original}
        kept = case.judge(models, original)
        gone = case.judge(models, retrained)
        assert kept.outcome in ("not forgotten", "inconclusive")
        assert gone.outcome in ("forgotten", "inconclusive")
    for name in ("class 3", "5 %", "neighbours"):
        models = {"original": cases[name].originals[0]}
        found = cases[name].judge(models, cases[name].retrained[0])
        assert found.outcome == "inconclusive"


def _attackable(shift):
    rng = np.random.default_rng(1)
    scores = {s: rng.normal(size=300) + shift * (s == "forget") for s in SPLITS}
    return ModelRecord("model", 1.0, scores, {}, {s: np.ones(300) for s in SPLITS})


@pytest.mark.parametrize(
    ("shift", "random_draw", "outcome", "words"),
    [
        (0.0, True, "forgotten", "as far as a membership attack can tell"),
        (2.0, True, "not forgotten", "still tells"),
        (-2.0, True, "not forgotten", "overshoots"),
        (0.0, False, "inconclusive", "only where the forget set is a random draw"),
    ],
)
def test_the_weaker_verdict_is_two_sided_and_says_that_it_is_weaker(
    shift, random_draw, outcome, words
):
    models = {"original": _attackable(2.0), "unlearned": _attackable(shift)}
    found = verdict(models, random_draw=random_draw, resamples=20)
    assert found.outcome == outcome
    assert words in found.headline
    assert any("two retrained models" in reason for reason in found.reasons)


def test_one_retrained_model_that_can_itself_be_attacked_makes_it_inconclusive():
    models = {"original": _attackable(2.0), "unlearned": _attackable(0.0)}
    models["retrained"] = _attackable(1.0)
    found = verdict(models, random_draw=True, resamples=20)
    assert found.outcome == "inconclusive"


def test_refuses_records_that_do_not_belong_together():
    models = {"original": _attackable(0.0)}
    with pytest.raises(ValueError, match="`models` must hold 'unlearned'"):
        verdict(models)
    models["unlearned"] = _attackable(0.0)
    models["unlearned"].scores["forget"] = np.zeros(4)
    with pytest.raises(ValueError, match="same forget samples"):
        verdict(models)
    models["unlearned"].scores["forget"] = np.empty(0)
    with pytest.raises(ValueError, match="scores of the forget set, got none"):
        verdict(models)


def test_without_unseen_data_it_is_inconclusive(cases):
    case = cases["class 3"]
    models, _ = _first(case)
    cut = {}
    for key, record in {**models, "unlearned": models["original"]}.items():
        kept = {s: record.scores[s] for s in ("forget", "retain")}
        cut[key] = dataclasses.replace(
            record, scores=kept, correct={s: record.correct[s] for s in kept}
        )
    assert verdict(cut, resamples=20).outcome == "inconclusive"
