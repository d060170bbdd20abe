import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from erasus_pl.requests import ForgetRandom, ForgetRequestError

FIRST = [11, 269, 850, 855, 921]


@given(n=st.integers(10, 3000), seed=st.integers(0, 2**40), fraction=st.floats(0.1, 0.9))
def test_same_seed_same_samples_and_larger_contains_smaller(n, seed, fraction):
    ids = ForgetRandom(fraction, seed=seed).resolve({}, n)
    again = ForgetRandom(fraction, seed=seed).resolve({"target": np.zeros(n)}, n)
    np.testing.assert_array_equal(ids, again)
    assert ids.size == round(fraction * n)
    np.testing.assert_array_equal(ids, ForgetRandom(count=ids.size, seed=seed).resolve({}, n))
    smaller = ForgetRandom(count=max(1, ids.size // 2), seed=seed).resolve({}, n)
    assert set(smaller) <= set(ids)


def test_the_draw_is_fixed_for_ever():
    assert ForgetRandom(count=5, seed=0).resolve({}, 1000).tolist() == FIRST
    assert ForgetRandom(count=5, seed=1).resolve({}, 1000).tolist() != FIRST


def test_every_sample_is_drawn_equally_often():
    draws = np.concatenate([ForgetRandom(0.25, seed=s).resolve({}, 40) for s in range(2000)])
    counts = np.bincount(draws, minlength=40)
    chi2 = ((counts - 500) ** 2 / (500 * 0.75)).sum() * 39 / 40
    assert chi2 < 72.1  # the 0.1 % point of chi-squared with 39 degrees of freedom


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of `fraction` and `count`, got None and None"),
        ({"fraction": 0.1, "count": 3}, "exactly one of `fraction` and `count`, got 0.1 and 3"),
        ({"fraction": 0.0}, r"`fraction` must be in \(0, 1\), got 0.0"),
        ({"fraction": 1.0}, r"`fraction` must be in \(0, 1\), got 1.0"),
        ({"fraction": 5}, r"`fraction` must be in \(0, 1\), got 5"),
        ({"fraction": float("nan")}, r"`fraction` must be in \(0, 1\), got nan"),
        ({"count": 0}, "`count` must be a whole number of at least 1, got 0"),
        ({"count": 2.5}, "`count` must be a whole number of at least 1, got 2.5"),
        ({"count": True}, "`count` must be a whole number of at least 1, got True"),
        ({"count": 1, "seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused_when_built(arguments, message):
    with pytest.raises(ForgetRequestError, match=message):
        ForgetRandom(**arguments)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ForgetRandom(count=10), "`count` must be in 1..9 for 10 training samples, got 10"),
        (
            ForgetRandom(0.01),
            "`fraction` must select from 1 to 9 of 10 training samples, got 0.01, "
            "which rounds to 0; give `count` instead",
        ),
        (ForgetRandom(0.99), "which rounds to 10; give `count` instead"),
    ],
)
def test_draws_of_none_or_all_are_refused(request_, message):
    with pytest.raises(ForgetRequestError) as caught:
        request_.resolve({}, 10)
    assert message in str(caught.value)


def test_descriptions():
    assert ForgetRandom(count=1200, seed=4).describe() == (
        "1,200 training samples, drawn at random (seed 4)"
    )
    assert ForgetRandom(1 / 3).describe().startswith("33.3333% of the training samples")
