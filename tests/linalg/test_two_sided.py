"""Two gradients made into one, against what defines each rule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erasus_pl.linalg import ascent, nash_weights, rectify, with_gradient

numbers = st.floats(-10, 10, width=32).map(lambda v: round(v, 3))


@st.composite
def pairs(draw):
    n = draw(st.integers(2, 6))
    rows = [draw(st.lists(numbers, min_size=n, max_size=n)) for _ in range(2)]
    return tuple(torch.tensor(row, dtype=torch.float64) for row in rows)


@given(pairs())
def test_a_rectified_gradient_never_conflicts_and_is_itself_without_conflict(pair):
    forget, retain = pair
    found = rectify(forget, retain)
    assert found @ retain >= -1e-9 * (1 + found.norm() * retain.norm())
    if forget @ retain >= 0:
        assert torch.equal(found, forget)
    assert (found - forget).norm() <= forget.norm() + 1e-9


@given(pairs(), st.integers(0, 1000))
def test_no_other_direction_without_conflict_is_nearer(pair, seed):
    forget, retain = pair
    found = rectify(forget, retain)
    generator = torch.Generator().manual_seed(seed)
    tried = found + torch.randn(200, len(forget), generator=generator, dtype=torch.float64)
    allowed = tried[tried @ retain >= 0]
    assert ((allowed - forget).norm(dim=1) >= (found - forget).norm() - 1e-9).all()


@given(pairs())
def test_the_bargain_is_stationary(pair):
    """Gᵀ G α = 1 / α; both gain, and as much in proportion to what each could have."""
    forget, retain = pair
    a, b = forget.norm(), retain.norm()
    if a < 1e-3 or b < 1e-3 or (forget @ retain) / (a * b) < -0.999:
        return
    alpha = torch.stack(nash_weights(forget, retain))
    sides = torch.stack([forget, retain])
    torch.testing.assert_close(sides @ sides.T @ alpha, 1 / alpha, rtol=1e-6, atol=1e-9)
    direction = alpha @ sides
    torch.testing.assert_close(direction.norm(), torch.tensor(2.0, dtype=torch.float64).sqrt())
    assert direction @ forget > 0
    torch.testing.assert_close(direction @ forget / a, direction @ retain / b)


@given(pairs(), st.floats(0.1, 50), st.floats(0.1, 50))
def test_the_weights_of_terms_cancel_in_a_bargain(pair, first, second):
    forget, retain = pair
    if min(forget.norm(), retain.norm()) < 1e-3:
        return

    def direction(f, r):
        a, b = nash_weights(f, r)
        return a * f + b * r

    cosine = (forget @ retain) / (forget.norm() * retain.norm())
    if cosine < -0.99:
        return
    torch.testing.assert_close(
        direction(first * forget, second * retain), direction(forget, retain), rtol=1e-6, atol=1e-8
    )


def test_no_bargain_gains_more():
    """The product of the gains, over directions of the same norm."""
    generator = torch.Generator().manual_seed(0)
    forget, retain = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    a, b = nash_weights(forget, retain)
    best = a * forget + b * retain
    tried = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    tried = best.norm() * tried / tried.norm(dim=1, keepdim=True)
    gains = torch.stack([tried @ forget, tried @ retain]).clamp(min=0).prod(0)
    assert (best @ forget) * (best @ retain) >= gains.max()


def test_the_published_closed_form():
    generator = torch.Generator().manual_seed(1)
    forget, retain = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    g1, g2, g3 = retain @ retain, retain @ forget, forget @ forget
    first = ((g1 * g3 - g2 * (g1 * g3).sqrt()) / (g1 * g1 * g3 - g1 * g2 * g2)).sqrt()
    second = (1 - g1 * first**2) / (g2 * first)
    torch.testing.assert_close(nash_weights(forget, retain), (second, first))


def test_who_has_nothing_to_say_or_to_agree_on():
    g, zero = torch.tensor([3.0, 4.0]), torch.zeros(2)
    assert [float(w) for w in nash_weights(zero, g)] == [1.0, 1.0]
    assert [float(w) for w in nash_weights(g, zero)] == [1.0, 1.0]
    assert [float(w) for w in nash_weights(g, -2 * g)] == [0.0, 0.0]
    assert torch.equal(rectify(g, zero), g)
    assert torch.equal(rectify(g, -2 * g), zero)
    assert torch.equal(ascent(zero, 0.5), zero)
    torch.testing.assert_close(ascent(g, 0.5), torch.tensor([0.3, 0.4]))


@pytest.mark.parametrize("value", [0.25, -1e6])
def test_a_value_with_a_gradient_of_ones_own(value):
    parts = [torch.randn(2, 3, requires_grad=True), torch.randn(4, requires_grad=True)]
    wanted = torch.randn(10)
    total = with_gradient(torch.tensor(value), parts, wanted)
    assert total.item() == value
    total.backward()
    assert torch.equal(torch.cat([p.grad.flatten() for p in parts]), wanted)
