import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.linalg import inverse_fisher_product


def sherman_morrison(gradients, vector, damping):
    """One rank-one update of the dense inverse for each gradient."""
    inverse = torch.eye(len(vector), dtype=vector.dtype) / damping
    for g in gradients:
        u = inverse @ g
        inverse -= torch.outer(u, u) / (len(gradients) + g @ u)
    return inverse @ vector


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 8), st.floats(1e-3, 10), st.integers(0, 999))
def test_equals_rank_one_updates_and_the_dense_inverse(samples, size, damping, seed):
    torch.manual_seed(seed)
    gradients = torch.randn(samples, size, dtype=torch.float64)
    vector = torch.randn(size, dtype=torch.float64)
    found = inverse_fisher_product(gradients, vector, damping)
    torch.testing.assert_close(
        found, sherman_morrison(gradients, vector, damping), rtol=1e-8, atol=1e-8
    )
    fisher = gradients.T @ gradients / samples + damping * torch.eye(size, dtype=torch.float64)
    torch.testing.assert_close(fisher @ found, vector, rtol=1e-8, atol=1e-8)


def test_refuses_a_singular_matrix():
    with pytest.raises(ValueError, match="`damping` must be above 0, got 0"):
        inverse_fisher_product(torch.ones(1, 2), torch.ones(2), 0)
