"""Memorisation against the definition over all subsets, and planted mislabelled samples."""

import itertools
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

import erasus_pl.selectors.memorization as module
from erasus_pl.selectors import Memorization, _trained
from erasus_pl.selectors.memorization import memorization, subsets
from erasus_pl.tasks import ClassificationTask
from erasus_pl.tasks.training import recipe_key
from tests.selectors.conftest import FORGOTTEN, Data, N, classifier, images

SAMPLES, SIZE = 8, 5


def _nearest(members):
    """Whether a 1-NN classifier over a subset of a line of points gets each of them right."""
    x = torch.tensor([0.0, 1.0, 2.1, 3.3, 10.0, 11.2, 12.5, 2.6])
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    distance = (x[:, None] - x).abs().masked_fill(~members, torch.inf)
    return (y[distance.argmin(1)] == y).double()


def _exact():
    """The two chances of each sample, one subset after the other (Sec. 1.1)."""
    found = []
    for i in range(SAMPLES):
        right = {True: [], False: []}
        for chosen in itertools.combinations(range(SAMPLES), SIZE):
            members = torch.zeros(SAMPLES, dtype=torch.bool)
            members[list(chosen)] = True
            right[i in chosen].append(float(_nearest(members)[i]))
        found.append(np.mean(right[True]) - np.mean(right[False]))
    return torch.tensor(found)


def test_over_all_subsets_it_is_the_definition():
    combinations = list(itertools.combinations(range(SAMPLES), SIZE))
    members = torch.zeros(len(combinations), SAMPLES, dtype=torch.bool)
    for member, chosen in zip(members, combinations, strict=True):
        member[list(chosen)] = True
    correct = torch.stack([_nearest(member) for member in members])
    found = memorization(correct, members)
    torch.testing.assert_close(found, _exact())
    assert int(found.argmax()) == 7
    assert found[7] == 1.0


def test_what_is_always_right_or_always_wrong_is_not_memorised():
    members = subsets(SAMPLES, 20, SIZE, seed=0)
    for value in (0.0, 1.0):
        found = memorization(torch.full(members.shape, value), members)
        torch.testing.assert_close(found, torch.zeros(SAMPLES))
    torch.testing.assert_close(memorization(members.float(), members), torch.ones(SAMPLES))


def test_drawn_subsets_estimate_it():
    members = subsets(SAMPLES, 4000, SIZE, seed=0)
    correct = torch.stack([_nearest(member) for member in members])
    assert (memorization(correct, members) - _exact()).abs().max() < 0.03


@pytest.mark.parametrize(("n", "models", "size"), [(10, 7, 7), (9, 4, 2), (30, 13, 21)])
def test_subsets_leave_samples_out_equally_often(n, models, size):
    members = subsets(n, models, size, seed=3)
    assert torch.equal(members.sum(1), torch.full((models,), size))
    counts = members.sum(0)
    assert counts.max() - counts.min() <= 1
    assert torch.equal(members[:3], subsets(n, 3, size, seed=3))
    assert not torch.equal(members, subsets(n, models, size, seed=4))


def test_subsets_are_uniform():
    drawn = {}
    for seed in range(3000):
        key = tuple(subsets(5, 2, 3, seed)[1].tolist())
        drawn[key] = drawn.get(key, 0) + 1
    assert len(drawn) == 10
    assert max(abs(count / 3000 - 0.1) for count in drawn.values()) < 0.025


def _flipped():
    """Four classes that lie apart, of which six samples have the next one's label."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(4, (N + 40,), generator=generator)
    centres = 3 * torch.eye(4, 12, dtype=torch.float64)
    noise = torch.randn(len(target), 12, generator=generator, dtype=torch.float64)
    columns = {"input": centres[target] + 0.7 * noise, "target": target}
    flipped = torch.arange(0, FORGOTTEN, 10)
    columns["target"][flipped] = (target[flipped] + 1) % 4
    return columns, flipped


def _overfits():
    network = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4)).double()
    return ClassificationTask(network, optimizer=lambda p: torch.optim.Adam(p, lr=0.01), epochs=40)


def test_mislabelled_samples_come_first(fit):
    columns, flipped = _flipped()
    picked = fit(Memorization(k=len(flipped), models=12), _overfits(), columns, batch_size=16)
    assert torch.equal(picked.picked, flipped)


def test_each_model_sees_its_subset_and_nothing_else(fit, monkeypatch):
    seen = []

    def watched(task, data, on, seed, trainer):
        data.setup("fit")
        assert on == "retrain"
        seen.append(data.retain_set.positions)
        return train(task, data, on, seed, trainer)

    train = _trained.train_task
    monkeypatch.setattr(_trained, "train_task", watched)
    task = _overfits()
    task.epochs = 1
    found = fit(Memorization(k=5, models=4), task, images())
    members = subsets(N, 4, 84, seed=0)
    assert [p.tolist() for p in seen] == [m.nonzero()[:, 0].tolist() for m in members]
    assert found.data.retain_set.positions.tolist() == list(range(FORGOTTEN, N))


def test_a_killed_run_goes_on_and_more_models_add_to_those_there(fit, tmp_path, monkeypatch):
    columns, trained = images(), []
    inner = module._train

    def watched(strategy, members, seed):
        if len(trained) == 3:
            raise RuntimeError("killed")
        trained.append(seed)
        return inner(strategy, members, seed)

    monkeypatch.setattr(module, "_train", watched)
    task = _overfits()
    task.epochs = 2
    with pytest.raises(RuntimeError, match="killed"):
        fit(Memorization(k=5, models=5, cache=str(tmp_path / "c")), task, columns)
    first, trained[:] = list(trained), []
    picked = fit(Memorization(k=5, models=5, cache=str(tmp_path / "c")), task, columns).picked
    assert len(first) == 3
    assert len(trained) == 2
    trained[:] = []
    again = fit(Memorization(k=5, models=7, cache=str(tmp_path / "c")), task, columns)
    assert len(trained) == 2
    monkeypatch.setattr(module, "_train", inner)
    whole = fit(Memorization(k=5, models=5, cache=str(tmp_path / "d")), task, columns).picked
    assert torch.equal(picked, whole)
    assert again.picked.numel() == 5


def test_the_process_is_left_as_it_was(fit):
    os.environ["PL_GLOBAL_SEED"] = "41"
    task = _overfits()
    task.epochs = 1
    draws = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    class Spy(Memorization):
        def on_fit_start(self, trainer, pl_module):
            torch.use_deterministic_algorithms(True)
            super().on_fit_start(trainer, pl_module)
            assert torch.are_deterministic_algorithms_enabled()

    try:
        found = fit(Spy(k=3, models=4), task, images())
        assert os.environ["PL_GLOBAL_SEED"] == "41"
    finally:
        os.environ.pop("PL_GLOBAL_SEED")
    assert random.getstate() == draws[0]
    assert np.random.get_state()[1].tolist() == draws[1]
    assert torch.equal(torch.get_rng_state(), draws[2])
    assert len(found.data.retain_set) == N - FORGOTTEN


def test_too_few_models_are_refused(fit):
    with pytest.raises(ValueError, match=r"`models`: 3 on subsets of 84 of 120 .* at least 4"):
        fit(Memorization(k=3, models=3), _overfits(), images())
    with pytest.raises(ValueError, match="`models` must be at least 2, got 1"):
        Memorization(k=3, models=1)
    with pytest.raises(ValueError, match=r"`subset` must be in \(0, 1\), got 1.0"):
        Memorization(k=3, subset=1.0)


def _key(task=None, **options):
    data = Data(images(), **options)
    data.setup("fit")
    return recipe_key(task or classifier(), data)


def test_the_recipe_decides_what_is_found_again():
    assert _key() == _key() == _key(seed=9) == _key(num_workers=2)
    assert _key(batch_size=8) != _key()
    longer, frozen = classifier(), classifier()
    longer.epochs += 1
    frozen.head.requires_grad_(False)
    assert len({_key(), _key(longer), _key(frozen), _key(_overfits())}) == 4
    faster = _overfits()
    faster.optimizer = lambda p: torch.optim.Adam(p, lr=0.02)
    assert _key(faster) != _key(_overfits())
    scheduled = _overfits()
    scheduled.scheduler = lambda o: torch.optim.lr_scheduler.StepLR(o, 3)
    other = _overfits()
    other.scheduler = lambda o: torch.optim.lr_scheduler.StepLR(o, 4)
    assert len({_key(scheduled), _key(other), _key(_overfits())}) == 3
