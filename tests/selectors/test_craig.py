import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.selectors import Craig
from erasus_pl.selectors._rows import head_gradients
from erasus_pl.selectors.craig import craig


def cloud(n, d, seed):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def left(distance, picked):
    """The bound of the gradient's error that a pick leaves."""
    return float(distance[:, list(picked)].min(1).values.sum())


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 9), d=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_greedy_in_the_bound_and_near_the_best(n, d, seed, data):
    proxies = cloud(n, d, seed)
    k = data.draw(st.integers(1, n))
    distance = torch.cdist(proxies, proxies, compute_mode="donot_use_mm_for_euclid_dist")
    picked = craig(proxies, k)[0].tolist()
    for step in range(k):
        others = [j for j in range(n) if j not in picked[:step]]
        best = min(left(distance, [*picked[:step], j]) for j in others)
        assert left(distance, picked[: step + 1]) <= best + 1e-9
    worst = n * float(2 * (proxies - proxies.mean(0)).norm(dim=1).max())
    optimum = worst - min(left(distance, c) for c in combinations(range(n), k))
    assert worst - left(distance, picked) >= (1 - 1 / math.e) * optimum - 1e-9


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 25), d=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_weights_count_the_nearest_and_bound_the_error(n, d, seed, data):
    proxies = cloud(n, d, seed)
    k = data.draw(st.integers(1, n))
    picked, weights = craig(proxies, k)
    distance = torch.cdist(proxies, proxies[picked])
    assert weights.tolist() == distance.argmin(1).bincount(minlength=k).tolist()
    assert weights.sum() == n
    error = (proxies.sum(0) - weights @ proxies[picked]).norm()
    assert error <= distance.min(1).values.sum() + 1e-9


def test_copies_share_out_and_each_pick_counts_itself():
    picked, weights = craig(torch.eye(3).repeat(4, 1), 5)
    assert picked.unique().numel() == 5
    assert weights.sum() == 12
    assert bool((weights >= 1).all())
    assert craig(torch.eye(3).repeat(4, 1), 3)[1].tolist() == [4, 4, 4]


def test_the_proxy_is_prediction_minus_target(modality):
    task = modality.task.eval()
    batch = {name: column[:20] for name, column in modality.columns.items()}
    logits = task(batch).detach()
    if modality.name == "images":
        expected = logits.softmax(1) - F.one_hot(batch["target"], 4)
    else:
        labels = batch["labels"][:, 1:]
        kept = (labels != -100)[..., None]
        error = logits[:, :-1].softmax(2) - F.one_hot(labels.clamp(min=0), 11)
        expected = (error * kept).sum(1) / kept.sum(1)
    torch.testing.assert_close(head_gradients(task, batch).outputs.sum((1, 2)), expected)


def test_head_gradients_are_those_of_autograd(modality):
    task = modality.task.eval()
    gradients = head_gradients(task, {k: v[:5] for k, v in modality.columns.items()})
    head = task.head
    for i in range(5):
        row = {name: column[i : i + 1] for name, column in modality.columns.items()}
        found = torch.autograd.grad(
            task.per_sample_loss(task(row), row).sum(), list(head.parameters())
        )
        expected = torch.cat([g.reshape(head.out_features, -1) for g in found], 1)
        width = head.in_features + (head.bias is not None)
        dense = gradients.dense(torch.Size((head.out_features, width)))[i]
        torch.testing.assert_close(dense, expected)


def test_the_pick_and_its_weights_reach_the_data(fit, modality):
    task = modality.task.eval()
    batch = {name: column[:60] for name, column in modality.columns.items()}
    picked, weights = craig(head_gradients(task, batch).outputs.sum((1, 2)), 8)
    selector = Craig(k=8)
    run = fit(selector, modality.task, modality.columns, batch_size=16)
    assert run.picked.tolist() == sorted(picked.tolist())
    expected = dict(zip(picked.tolist(), weights.tolist(), strict=True))
    state = selector.state_dict()
    given_ = dict(zip(state["indices"].tolist(), state["weights"].tolist(), strict=True))
    assert given_ == pytest.approx(expected)
