import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasus_pl.evaluation import retention as module
from erasus_pl.evaluation.retention import calibrated, retention, seed_noise, trace

VALUES = st.lists(st.floats(-5, 5), min_size=4, max_size=4)


def test_examples_in_the_docstrings():
    result = doctest.testmod(module)
    assert result.attempted >= 4
    assert result.failed == 0


@given(VALUES, VALUES, VALUES, VALUES)
def test_is_the_written_formula(o, r, s, u):
    o, r, s, u = map(np.array, (o, r, s, u))
    total = sum((a - b) * (a - c) for a, b, c in zip(o, r, s, strict=True))
    found = retention(o, (r, s), u, resamples=2)
    if total <= 4e-9:
        assert np.isnan(found.memory).all()
        assert np.isnan(found.distance).all()
        return
    memory = sum(
        (a - b) * (d - c) + (a - c) * (d - b) for a, b, c, d in zip(o, r, s, u, strict=True)
    )
    distance = sum((d - b) * (d - c) for b, c, d in zip(r, s, u, strict=True))
    assert found.memory[0] == pytest.approx(memory / 2 / total, rel=1e-6, abs=1e-6)
    assert found.distance[0] == pytest.approx(distance / total, rel=1e-6, abs=1e-6)
    assert retention(o, (r, s), o, resamples=2).memory[0] == pytest.approx(1)
    assert retention(o, (r, s), o, resamples=2).distance[0] == pytest.approx(1)


def test_a_fresh_retrained_model_retains_nothing_on_average():
    rng = np.random.default_rng(0)
    truth, n = rng.normal(size=40), 40
    original = truth + 3 + rng.normal(size=n)
    draws = []
    for _ in range(4000):
        r, s, u = (truth + rng.normal(size=n) for _ in range(3))
        draws.append(retention(original, (r, s), u, resamples=1).memory[0])
    assert np.mean(draws) == pytest.approx(0, abs=4 * np.std(draws) / np.sqrt(4000) + 0.002)


def test_a_single_baseline_would_find_memory_in_noise():
    """The trap: where one retrained model is both baselines, its noise looks like memory."""
    rng = np.random.default_rng(1)
    original, r, s, u = 2 + rng.normal(size=400), *rng.normal(size=(3, 400))
    naive = np.sum((original - r) * (u - r)) / np.sum((original - r) ** 2)
    assert naive > 0.1
    assert abs(retention(original, (r, s), u).memory[0]) < 0.1


def test_a_halfway_model_retains_half_at_a_quarter_of_the_distance():
    original, zero = np.full(20, 4.0), np.zeros(20)
    found = retention(original, (zero, zero), original / 2)
    assert found.memory == (0.5, 0.5, 0.5)
    assert found.distance == (0.25, 0.25, 0.25)
    overshot = retention(original, (zero, zero), -2 * original)
    assert overshot.memory[0] == -2
    assert overshot.distance[0] == 4


def test_trace_counts_carrying_samples_and_noise():
    original = np.array([4.0, 4.0, 0.0, 0.0])
    golds = (np.array([0.0, 0.0, 1.0, 0.0]), np.array([0.0, 0.0, -1.0, 0.0]))
    found = trace(original, golds, np.full(4, 0.5))
    assert found.gap == pytest.approx((16 + 16 - 1) / 4)
    assert found.noise == pytest.approx(2 / 31)
    assert found.support == pytest.approx(31**2 / (16**2 + 16**2 + 1))
    assert found.shared == pytest.approx(np.sqrt(1.5) * (4 + 4) * 0.5 / 31)
    nothing = trace(np.zeros(4), golds, np.full(4, np.inf))
    assert nothing.gap < 0
    assert (nothing.noise, nothing.support, nothing.shared) == (np.inf, 0.0, np.inf)


def test_shared_is_the_spread_when_all_samples_share_one_noise():
    rng = np.random.default_rng(2)
    original, found = np.full(30, 4.0), []
    for _ in range(4000):
        r, s, u = (np.full(30, 0.3 * x) for x in rng.normal(size=3))
        found.append(retention(original, (r, s), u, resamples=1).memory[0])
    expected = trace(original, (np.zeros(30), np.zeros(30)), np.full(30, 0.3)).shared
    assert np.std(found) == pytest.approx(expected, rel=0.1)


def test_a_lucky_cluster_takes_its_noise_from_unseen_data():
    rng = np.random.default_rng(3)
    levels, lucky = np.full(40, 2.0), np.full(40, 2.0)
    unseen_levels = rng.uniform(-5, 5, 400)
    unseen = tuple(unseen_levels + rng.normal(size=400) for _ in range(2))
    noise = seed_noise((lucky, lucky), levels, unseen, unseen_levels)
    assert noise == pytest.approx(np.ones(40), abs=0.3)
    assert np.isinf(seed_noise((lucky, lucky), levels, (lucky[:29],) * 2, levels[:29])).all()


def test_noise_is_the_clusters_own_where_no_unseen_data_is_near():
    rng = np.random.default_rng(4)
    golds = tuple(-12 + 0.1 * rng.normal(size=(2, 60)))
    far = rng.uniform(0, 5, 200)
    noise = seed_noise(golds, np.full(60, -12.0), (far, far), far)
    own = np.sqrt(np.mean((golds[0] - golds[1]) ** 2))
    assert noise == pytest.approx(np.full(60, own), rel=0.5)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=70), st.floats(-60, 60), st.data())
def test_nearest_mean_is_the_mean_of_the_nearest(positions, query, data):
    radius = data.draw(st.sampled_from([np.inf, 3.0]))
    line = np.array(positions)
    values = np.arange(line.size, dtype=float) ** 2
    found = module._nearest_mean(line, values, np.array([query]), radius)[0]
    near = np.flatnonzero((line >= query - radius) & (line <= query + radius))
    if near.size < min(3, line.size):
        assert np.isnan(found)
    elif near.size <= 30:
        assert found == pytest.approx(values[near].mean())
    else:
        order = np.argsort(line, kind="stable")
        windows = [order[i : i + 30] for i in range(line.size - 29)]
        reach = [np.abs(line[w] - query).max() for w in windows]
        best = [values[w].mean() for w, x in zip(windows, reach, strict=True) if x == min(reach)]
        assert any(found == pytest.approx(mean) for mean in best)


def test_calibration_sees_through_every_increasing_change_of_scale():
    rng = np.random.default_rng(5)
    unseen, scores, reference = rng.normal(3, 2, 300), rng.normal(5, 2, 50), rng.normal(2, 3, 200)
    expected = calibrated(scores, unseen, reference)
    for change in (lambda x: x / 1000, np.arctan, lambda x: 7 * x - 100):
        np.testing.assert_allclose(calibrated(change(scores), change(unseen), reference), expected)
    np.testing.assert_allclose(
        calibrated(reference, reference, reference), np.clip(reference, -5, 5), atol=0.6
    )


def test_calibration_takes_a_collapsed_model():
    reference = np.linspace(-8, 8, 101)
    assert calibrated([np.nan, -np.inf, np.inf], [0.0, 1.0], reference).tolist() == [-5, -5, 5]
    nan = np.full(10, np.nan)
    assert calibrated(nan, nan, reference).tolist() == [-5.0] * 10
    assert calibrated([2.0], [2.0] * 7, reference).tolist() == [0.0]
