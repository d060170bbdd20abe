"""Order and randomness are pure functions of a seed and a step."""

import os
import random
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from datamodules.loaders import Fetcher, StepLoader, SweepLoader, ignore_signals
from datamodules.order import Cycle, Pick, mix, plan

pytestmark = pytest.mark.smoke

SIZES = {"n": st.integers(1, 50), "batch": st.integers(1, 12), "world": st.integers(1, 4)}


def _loader(dataset, step=0, done=0, workers=0, seed=3, rank=0, length=7):
    cycle = Cycle(torch.arange(len(dataset)), 6, mix(seed, 1), True)
    return StepLoader(
        Fetcher(dataset, seed), cycle.__getitem__, length, lambda: (step, done), lambda: None,
        seed, rank, workers,
    )  # fmt: skip


def _same(one, other):
    return all(torch.equal(one[k], other[k]) for k in one) and one.keys() == other.keys()


def test_mix_spreads_and_is_fixed_for_ever():
    seeds = {mix(a, b) for a in range(60) for b in range(60)}
    assert len(seeds) == 3600
    assert all(0 <= seed < 2**63 for seed in seeds)
    # The value of splitmix64 for state 0 (Vigna's reference), less its sign bit.
    assert mix(0) == 0xE220A8397B1DCDAF & (2**63 - 1)
    assert mix(1, 2) != mix(2, 1)


@settings(deadline=None, max_examples=60)
@given(**SIZES, shuffle=st.booleans())
def test_a_whole_pass_covers_the_set_exactly_once(n, batch, world, shuffle):
    positions = torch.arange(n) * 3 + 5
    walks = [Cycle(positions, batch, 7, True, shuffle, rank, world) for rank in range(world)]
    for cycle in range(2):
        steps = range(cycle * len(walks[0]), (cycle + 1) * len(walks[0]))
        seen = [p for i in steps for walk in walks for p in set(walk[i].positions.tolist())]
        # A rank is never without a sample; only there may one be seen by two ranks.
        assert set(seen) == set(positions.tolist())
        assert len(seen) - n <= max(0, world - 1)
        assert all((walk[i].cycles == cycle).all() for i in steps for walk in walks)


@settings(deadline=None, max_examples=60)
@given(**SIZES)
def test_an_endless_walk_covers_each_pass_exactly_once(n, batch, world):
    walks = [Cycle(torch.arange(n), batch, 7, False, True, rank, world) for rank in range(world)]
    steps = -(-3 * n // (batch * world))
    picks = [walk[i] for i in range(steps) for walk in walks]
    assert all(len(pick.positions) == batch for pick in picks)
    seen = torch.cat([p.positions for p in picks])
    cycles = torch.cat([p.cycles for p in picks])
    for cycle in range(3):
        assert sorted(seen[cycles == cycle].tolist()) == list(range(n))


@settings(deadline=None, max_examples=60)
@given(**SIZES, whole=st.booleans())
def test_ranks_deal_out_the_batch_of_one_process(n, batch, world, whole):
    alone = Cycle(torch.arange(n), batch * world, 7, whole)
    ranks = [Cycle(torch.arange(n), batch, 7, whole, True, rank, world) for rank in range(world)]
    assert len(alone) == len(ranks[0])
    for i in range(2 * len(alone) + 1):
        dealt = torch.cat([walk[i].positions for walk in ranks])
        assert set(dealt.tolist()) == set(alone[i].positions.tolist())
        if len(alone[i].positions) >= world:
            assert sorted(dealt.tolist()) == sorted(alone[i].positions.tolist())


@settings(deadline=None, max_examples=60)
@given(
    forget=st.integers(1, 20),
    retain=st.integers(1, 40),
    batch=st.integers(1, 6),
    world=st.integers(1, 4),
)
def test_a_single_pass_gives_each_sample_to_one_process(forget, retain, batch, world):
    sets = {"forget": torch.arange(forget), "retain": torch.arange(100, 100 + retain)}
    seen = {"forget": [], "retain": []}
    for rank in range(world):

        def walk(name, whole, shuffle, rank=rank):
            return Cycle(sets[name], batch, 7, whole, shuffle, rank, world)

        picks, length = plan("single_pass", walk, True)
        for step in map(picks, range(length)):
            for name, pick in step.items():
                if pick is not None:
                    assert len(pick.positions)
                    seen[name] += pick.positions.tolist()
    assert {name: sorted(found) for name, found in seen.items()} == {
        name: positions.tolist() for name, positions in sets.items()
    }


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2, 60), batch=st.integers(2, 12))
def test_no_batch_of_a_pass_is_a_single_sample(n, batch):
    walk = Cycle(torch.arange(n), batch, 7, True)
    sizes = [len(walk[i].positions) for i in range(len(walk))]
    assert min(sizes) >= 2
    assert max(sizes) <= batch + 1


def test_batches_do_not_depend_on_which_were_asked_for_before():
    for whole in (True, False):
        ahead = Cycle(torch.arange(23), 5, 1, whole)
        in_order = [ahead[i].positions.tolist() for i in range(15)]
        for i in (14, 3, 0, 9, 4):
            assert Cycle(torch.arange(23), 5, 1, whole)[i].positions.tolist() == in_order[i]
            assert ahead[i].positions.tolist() == in_order[i]


def test_each_pass_is_shuffled_anew_and_by_the_seed():
    walk = Cycle(torch.arange(50), 50, 1, True)
    passes = [tuple(walk[i].positions.tolist()) for i in range(4)]
    assert len(set(passes)) == 4
    assert tuple(Cycle(torch.arange(50), 50, 2, True)[0].positions.tolist()) != passes[0]
    kept = Cycle(torch.arange(50), 50, 1, True, shuffle=False)
    assert kept[3].positions.tolist() == list(range(50))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_at_any_step_equals_uninterrupted(drawing, workers):
    def walk(step):
        for batch in _loader(drawing, step, workers=workers, length=16 - step):
            yield batch, torch.rand(3), np.random.rand(), random.random()

    whole = list(walk(0))
    assert len(whole) == 16
    for step in (1, 7, 11) if workers else range(16):
        for before, after in zip(whole[step:], walk(step), strict=True):
            assert _same(before[0], after[0])
            assert torch.equal(before[1], after[1])
            assert before[2:] == after[2:]


def test_workers_and_batches_around_a_sample_do_not_change_what_it_draws(drawing):
    alone = list(_loader(drawing))
    for one, other in zip(alone, _loader(drawing, workers=2), strict=True):
        assert _same(one, other)
    fetcher = Fetcher(drawing, 3)
    first = alone[0]
    at = int(first["index"][2])
    single = fetcher.batch(Pick(torch.tensor([at]), torch.tensor([0])))
    assert torch.equal(single["input"][0], first["input"][2])


def test_a_sample_draws_anew_in_each_pass(drawing):
    fetcher = Fetcher(drawing, 3)
    one, two = (fetcher.batch(Pick(torch.tensor([5]), torch.tensor([c])))["input"] for c in (0, 1))
    assert one[0, 0] == two[0, 0] == 5
    assert (one[0, 1:] != two[0, 1:]).all()


def test_what_a_step_draws_depends_on_step_and_rank(drawing):
    draws = {(rank, i): torch.rand(()).item()
             for rank in (0, 1) for i, _ in enumerate(_loader(drawing, rank=rank))}  # fmt: skip
    assert len(set(draws.values())) == len(draws) == 14


def test_fetching_leaves_the_random_state_as_it_was(drawing):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    Fetcher(drawing, 0).batch(Pick(torch.arange(4), torch.zeros(4, dtype=torch.long)))
    list(SweepLoader(Fetcher(drawing, 0), torch.arange(9), 4))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sweep_keeps_the_order_and_leaves_nothing_out(drawing, workers):
    positions = torch.tensor([30, 2, 7, 8, 1, 39, 11])
    loader = SweepLoader(Fetcher(drawing, 0), positions, 3, workers)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    assert torch.cat([b["index"] for b in batches]).tolist() == positions.tolist()
    assert torch.cat([b["input"][:, 0] for b in batches]).tolist() == positions.tolist()
    assert list(SweepLoader(Fetcher(drawing, 0), torch.arange(0), 3)) == []


def test_an_epoch_that_was_begun_is_finished(drawing):
    assert len(list(_loader(drawing, step=3, done=3))) == 4


def test_items_become_dicts_with_their_index(drawing):
    batch = Fetcher(drawing, 0).batch(Pick(torch.tensor([4, 9]), torch.tensor([0, 0])))
    assert set(batch) == {"input", "target", "index"}
    assert batch["target"].tolist() == [0, 1]
    assert batch["index"].tolist() == [4, 9]


def test_weights_reach_batches_of_the_forget_set_alone(drawing):
    weights = torch.linspace(1, 2, 40)
    pick = Pick(torch.tensor([4, 9]), torch.tensor([0, 0]))
    batches = Fetcher(drawing, 0, weights)[{"forget": pick, "retain": pick, "other": None}]
    assert torch.equal(batches["forget"]["weight"], weights[[4, 9]])
    assert "weight" not in batches["retain"]
    assert batches["other"] is None


def test_an_item_of_another_kind_is_refused_by_name():
    class Triples(Dataset):
        def __getitem__(self, i):
            return 1, 2, 3

    with pytest.raises(TypeError, match=r"pairs or dicts, got tuple of length 3"):
        Fetcher(Triples(), 0).batch(Pick(torch.tensor([0]), torch.tensor([0])))


class _Handlers(Dataset):
    """Items that say what the process does about the signals of a job scheduler."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        names = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
        ignored = all(signal.getsignal(name) == signal.SIG_IGN for name in names)
        return torch.tensor([float(os.getpid()), float(ignored)]), 0


def test_workers_leave_signals_to_the_main_process():
    before = signal.getsignal(signal.SIGTERM)
    rows = torch.cat(
        [b["input"] for b in SweepLoader(Fetcher(_Handlers(), 0), torch.arange(4), 2, 2)]
    )
    assert (rows[:, 0] != os.getpid()).all()
    assert (rows[:, 1] == 1).all()
    assert signal.getsignal(signal.SIGTERM) == before != signal.SIG_IGN


def test_ignore_signals_covers_those_a_scheduler_sends():
    names = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {name: signal.getsignal(name) for name in names}
    try:
        ignore_signals()
        assert all(signal.getsignal(name) == signal.SIG_IGN for name in names)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
