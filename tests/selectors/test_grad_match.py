from itertools import chain, combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from erasus_pl.selectors import GradMatch
from erasus_pl.selectors.grad_match import grad_match, nonnegative_ridge


def gradients(n, d, seed):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def match(rows, k, ridge):
    return grad_match(lambda j: rows @ rows[j], rows @ rows.sum(0), k, ridge)


def error(rows, picked, weights, ridge):
    gap = weights @ rows[torch.as_tensor(picked)] - rows.sum(0)
    return float(gap.square().sum() + ridge * weights.square().sum())


def solve(rows, picked, ridge):
    """The weights of a pick by another route: least squares on the stacked system."""
    k = len(picked)
    stacked = torch.cat([rows[list(picked)].T, ridge**0.5 * torch.eye(k, dtype=rows.dtype)])
    goal = torch.cat([rows.sum(0), torch.zeros(k, dtype=rows.dtype)])
    return torch.from_numpy(nnls(stacked.numpy(), goal.numpy())[0])


@settings(max_examples=40, deadline=None)
@given(k=st.integers(1, 6), d=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_weights_are_best_of_all_supports(k, d, seed):
    rows, ridge = gradients(k, d, seed), 0.3
    goal = gradients(1, d, seed + 100)[0]
    matrix = rows @ rows.T + ridge * torch.eye(k, dtype=rows.dtype)
    found = nonnegative_ridge(rows @ rows.T, rows @ goal, ridge)
    values = []
    for support in chain.from_iterable(combinations(range(k), m) for m in range(k + 1)):
        kept = list(support)
        weights = torch.zeros(k, dtype=rows.dtype)
        weights[kept] = torch.linalg.solve(matrix[kept][:, kept], (rows @ goal)[kept])
        if bool((weights >= 0).all()):
            values.append(float(weights @ matrix @ weights - 2 * weights @ rows @ goal))
    assert bool((found >= 0).all())
    value = float(found @ matrix @ found - 2 * found @ rows @ goal)
    assert value == pytest.approx(min(values), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 10), d=st.integers(1, 6), seed=st.integers(0, 99), data=st.data())
def test_each_step_is_that_of_matching_pursuit(n, d, seed, data):
    rows = gradients(n, d, seed)
    k = data.draw(st.integers(1, n))
    picked, weights = match(rows, k, 0.5)
    picked = picked.tolist()
    assert len(set(picked)) == k
    for step in range(k):
        done = picked[:step]
        residual = rows.sum(0) - (solve(rows, done, 0.5) @ rows[done] if done else 0)
        products = {j: float(rows[j] @ residual) for j in range(n) if j not in done}
        assert products[picked[step]] >= max(products.values()) - 1e-9
    expected = solve(rows, picked, 0.5)
    if expected.max() > 0:
        torch.testing.assert_close(weights, expected, atol=2e-6 * float(expected.max()), rtol=1e-6)
    assert bool((weights > 0).all())


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_best_subset_where_gradients_are_orthogonal(k):
    rows = torch.diag(torch.tensor([0.5, 3.0, 1.0, 2.0, 0.1, 2.5], dtype=torch.float64))
    picked, weights = match(rows, k, 0.5)
    best = min(error(rows, c, solve(rows, c, 0.5), 0.5) for c in combinations(range(6), k))
    assert error(rows, picked, weights, 0.5) == pytest.approx(best)


def test_all_samples_match_exactly_without_a_price():
    rows = gradients(6, 9, 0)
    _, weights = match(rows, 6, 1e-12)
    torch.testing.assert_close(weights, torch.ones(6, dtype=torch.float64))


def test_copies_and_nothing_to_match():
    picked, weights = match(torch.ones(7, 2, dtype=torch.float64), 4, 0.5)
    assert picked.unique().numel() == 4
    torch.testing.assert_close(weights, weights[:1].expand(4))
    picked, weights = match(torch.zeros(7, 2, dtype=torch.float64), 4, 0.5)
    assert picked.unique().numel() == 4
    assert weights.tolist() == [1, 1, 1, 1]


def dense(task, columns):
    """Gradient of the head for each sample, by autograd, a sample at a time."""
    found = []
    for i in range(60):
        row = {name: column[i : i + 1] for name, column in columns.items()}
        loss = task.per_sample_loss(task(row), row).sum()
        slopes = torch.autograd.grad(loss, list(task.head.parameters()))
        found.append(torch.cat([g.reshape(-1) for g in slopes]))
    return torch.stack(found)


def test_the_selector_against_spread_out_gradients(fit, modality):
    rows = dense(modality.task.eval(), modality.columns)
    ridge = 0.5 * float(rows.square().sum(1).mean())
    picked, weights = match(rows, 8, ridge)
    selector = GradMatch(k=8)
    fit(selector, modality.task, modality.columns, batch_size=16)
    state = selector.state_dict()
    assert state["indices"].tolist() == sorted(picked.tolist())
    torch.testing.assert_close(state["weights"], weights[picked.argsort()].float())
    whole, kept = rows.sum(0), weights @ rows[picked]
    drawn = [rows[torch.randperm(60)[:8]].sum(0) * 60 / 8 for _ in range(20)]
    assert (whole - kept).norm() < min((whole - d).norm() for d in drawn)


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match=r"`ridge` must be positive, got 0"):
        GradMatch(k=1, ridge=0.0)
