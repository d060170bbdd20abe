import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from erasus_pl.attacks import (
    auc,
    balanced_accuracy,
    membership,
    membership_attack,
    roc,
    tpr_at_fpr,
)

GRID = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=25)
ANY = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.sampled_from([np.inf, -np.inf, np.nan])),
    min_size=1,
    max_size=20,
)


def _labels(a, b):
    return np.r_[np.ones(len(a)), np.zeros(len(b))], np.r_[a, b]


def test_examples_in_the_docstrings():
    assert doctest.testmod(membership).attempted >= 2
    assert doctest.testmod(membership).failed == 0


@given(GRID, GRID)
def test_auc_counts_pairs_and_halves_ties(a, b):
    pairs = np.mean([(x > y) + (x == y) / 2 for x in a for y in b])
    assert auc(a, b) == pytest.approx(pairs, abs=1e-12)
    assert auc(a, b) == pytest.approx(roc_auc_score(*_labels(a, b)), abs=1e-12)
    assert auc(a, b) + auc(b, a) == pytest.approx(1)


@given(GRID, GRID)
def test_roc_is_sklearns_and_its_area_is_the_auc(a, b):
    ours = roc(a, b)
    fpr, tpr, cuts = roc_curve(*_labels(a, b), drop_intermediate=False)
    np.testing.assert_allclose(ours.fpr, fpr)
    np.testing.assert_allclose(ours.tpr, tpr)
    np.testing.assert_array_equal(ours.thresholds, cuts)
    assert np.trapezoid(ours.tpr, ours.fpr) == pytest.approx(auc(a, b))


@given(GRID, GRID, st.floats(0, 1))
def test_tpr_is_the_best_mixture_of_two_thresholds(a, b, rate):
    points = roc(a, b)
    exact = points.tpr[points.fpr == rate]
    if exact.size:
        expected = exact.max()
    else:
        left, right = points.fpr[points.fpr < rate].max(), points.fpr[points.fpr > rate].min()
        low, high = points.tpr[points.fpr == left].max(), points.tpr[points.fpr == right].min()
        expected = low + (high - low) * (rate - left) / (right - left)
    assert tpr_at_fpr(a, b, rate) == pytest.approx(expected, abs=1e-9)


def test_a_rate_that_a_threshold_reaches_exactly_is_not_interpolated():
    nonmembers = np.arange(300.0)
    members = np.r_[np.full(40, 296.5), np.full(60, -1.0)]
    assert tpr_at_fpr(members, nonmembers, 0.01) == 0.4
    assert tpr_at_fpr(members, nonmembers, 0.009) == 0.0


def test_equal_scores_cannot_be_told_apart():
    result = membership_attack(np.zeros(50), np.zeros(200))
    assert result.auc == 0.5
    assert result.tpr == pytest.approx(0.01)
    assert result.balanced_accuracy == 0.5


@given(ANY, ANY)
@settings(deadline=None)
def test_a_collapsed_model_is_scored_not_crashed_on(a, b):
    order = {np.inf: 9.0, -np.inf: -9.0}
    plain = [[-9.0 if np.isnan(x) else order.get(x, x) for x in side] for side in (a, b)]
    assert auc(a, b) == auc(*plain)
    result = membership_attack(a, b, resamples=5)
    expected = membership_attack(*plain, resamples=5)
    for field in ("auc", "auc_interval", "tpr", "tpr_interval"):
        assert getattr(result, field) == getattr(expected, field)
    np.testing.assert_equal(result.balanced_accuracy, expected.balanced_accuracy)


def test_a_model_that_is_nan_everywhere_gives_no_attack():
    result = membership_attack(np.full(40, np.nan), np.full(400, np.nan))
    assert (result.auc, result.balanced_accuracy) == (0.5, 0.5)


def test_says_when_the_holdout_is_too_small_for_the_rate():
    rng = np.random.default_rng(0)
    small = membership_attack(rng.normal(size=30), rng.normal(size=99), resamples=10)
    large = membership_attack(rng.normal(size=30), rng.normal(size=100), resamples=10)
    assert not small.resolved
    assert "99 holdout samples" in small.note
    assert "0.0101" in small.note
    assert large.resolved
    assert large.note == ""


def test_intervals_agree_with_a_plain_loop_over_sklearn():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.7, 1, 80).round(1), rng.normal(0, 1, 120).round(1)
    result = membership_attack(a, b, resamples=2000, seed=3)
    loop = []
    for _ in range(600):
        x, y = rng.choice(a, a.size), rng.choice(b, b.size)
        loop.append(roc_auc_score(*_labels(x, y)))
    np.testing.assert_allclose(result.auc_interval, np.percentile(loop, [2.5, 97.5]), atol=0.02)
    low, high = result.tpr_interval
    assert low <= result.tpr <= high


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(5)
    truth = 0.6382  # P(N(0.5, 1) > N(0, 1)) = Phi(0.5 / sqrt(2))
    covered = 0
    for trial in range(200):
        found = membership_attack(
            rng.normal(0.5, 1, 100), rng.normal(size=100), resamples=200, seed=trial
        ).auc_interval
        covered += found[0] <= truth <= found[1]
    assert 0.90 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=50), rng.normal(size=70)
    first = membership_attack(a, b, resamples=40, seed=4)
    assert membership_attack(a, b, resamples=40, seed=4) == first
    assert membership_attack(a, b, resamples=40, seed=5).auc_interval != first.auc_interval


def test_balanced_accuracy_does_not_find_membership_in_noise():
    rng = np.random.default_rng(0)
    found = [balanced_accuracy(rng.normal(size=20), rng.normal(size=20)) for _ in range(200)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)
    assert balanced_accuracy(np.full(9, np.inf), np.zeros(9)) == 1.0
    assert np.isnan(balanced_accuracy([1.0], [0.0, 2.0]))


def test_log_axes_get_no_zero():
    fpr, tpr = roc([1.0, 0.0], [0.5, -1.0]).log_points(0.25)
    assert fpr.min() == tpr.min() == 0.25
    with pytest.raises(ValueError, match=r"`floor` must be in \(0, 1\], got 0"):
        roc([1.0], [0.0]).log_points(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auc([], [1.0]), r"`members` must be scores of shape \(n,\)"),
        (lambda: auc([1.0], [[1.0]]), r"`nonmembers` .* got shape \(1, 1\)"),
        (lambda: tpr_at_fpr([1.0], [1.0], 1.5), r"`fpr` must be in \[0, 1\], got 1.5"),
        (lambda: membership_attack([1.0], [1.0], confidence=1), "`confidence` in"),
    ],
)
def test_refuses_what_it_cannot_score(call, message):
    with pytest.raises(ValueError, match=message):
        call()
