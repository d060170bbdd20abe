"""Dealing out samples, and the paper's costs, against brute force and simulation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erasus_pl.linalg.sharding import cells, first_hit, samples_trained, slice_epochs

pytestmark = pytest.mark.smoke

SMALL = {"shards": st.integers(1, 6), "slices": st.integers(1, 5), "seed": st.integers(0, 99)}


@given(n=st.integers(1, 200), **SMALL)
def test_every_sample_has_a_cell_and_no_cell_more_than_one_too_many(n, shards, slices, seed):
    grid = cells(n, shards, slices, seed)
    assert grid.shape == (n, 2)
    sizes = torch.bincount(grid[:, 0] * slices + grid[:, 1], minlength=shards * slices)
    assert len(sizes) == shards * slices
    assert sizes.sum() == n
    assert sizes.max() - sizes.min() <= 1


@given(n=st.integers(1, 100), more=st.integers(0, 100), **SMALL)
def test_a_cell_depends_on_the_position_alone(n, more, shards, slices, seed):
    assert torch.equal(cells(n + more, shards, slices, seed)[:n], cells(n, shards, slices, seed))


def test_another_seed_deals_otherwise_and_neighbours_go_apart():
    grid = cells(900, 3, 3, 0)
    assert not torch.equal(grid, cells(900, 3, 3, 1))
    after = torch.stack([grid[:-9, 0], grid[9:, 0]])
    assert 0.25 < (after[0] == after[1]).float().mean() < 0.42


@given(epochs=st.integers(1, 200), slices=st.integers(1, 12))
def test_slices_cost_what_training_without_them_does(epochs, slices):
    found = slice_epochs(epochs, slices)
    assert len(found) == slices
    assert min(found) >= 1
    if 2 * epochs % (slices + 1) == 0:
        assert set(found) == {2 * epochs // (slices + 1)}
        assert sum(e * (r + 1) / slices for r, e in enumerate(found)) == pytest.approx(epochs)
    if 2 * epochs >= slices + 1:
        assert sum(found) == 2 * epochs * slices // (slices + 1)


@given(data=st.data(), n=st.integers(1, 60), **SMALL)
def test_where_a_deletion_goes_back_to_and_what_it_costs(data, n, shards, slices, seed):
    grid = cells(n, shards, slices, seed)
    removed = data.draw(st.lists(st.integers(0, n - 1)))
    epochs = data.draw(st.lists(st.integers(1, 9), min_size=slices, max_size=slices))
    start = first_hit(grid, torch.tensor(removed, dtype=torch.long), shards, slices)
    kept = [i for i in range(n) if i not in removed]
    cost = 0
    for k in range(shards):
        hit = [grid[i, 1].item() for i in removed if grid[i, 0] == k]
        assert start[k] == min(hit, default=slices)
        for r in range(min(hit, default=slices), slices):
            cost += epochs[r] * sum(1 for i in kept if grid[i, 0] == k and grid[i, 1] <= r)
    assert samples_trained(grid, torch.tensor(kept, dtype=torch.long), epochs, start) == cost


@pytest.mark.parametrize(("shards", "slices"), [(1, 4), (5, 3), (4, 1)])
def test_one_sample_costs_two_thirds_of_a_shard_at_many_slices(shards, slices):
    """(2R + 1)/(3R) of e′n/S samples on average, the deleted one counted too."""
    n, epochs = 12 * shards * slices, 2 * (slices + 1)
    grid, every = cells(n, shards, slices, 0), torch.arange(n)
    each = slice_epochs(epochs, slices)
    costs = [
        samples_trained(grid, every, each, first_hit(grid, every[i : i + 1], shards, slices))
        for i in range(n)
    ]
    expected = (2 * slices + 1) / (3 * slices) * epochs * n / shards
    assert sum(costs) / n == pytest.approx(expected)
    all_of_it = samples_trained(grid, every, each, torch.zeros(shards).long())
    assert all_of_it == epochs * n


def test_requests_hit_as_many_shards_as_the_paper_says():
    """S(1 − (1 − 1/S)^K) for K requests at random."""
    shards, slices, n = 10, 2, 2000
    grid = cells(n, shards, slices, 0)
    generator = torch.Generator().manual_seed(0)
    for k in (1, 5, 20):
        drawn = torch.randint(n, (2000, k), generator=generator)
        hits = [(first_hit(grid, removed, shards, slices) < slices).sum() for removed in drawn]
        expected = shards * (1 - (1 - 1 / shards) ** k)
        assert torch.stack(hits).float().mean().item() == pytest.approx(expected, rel=0.02)
