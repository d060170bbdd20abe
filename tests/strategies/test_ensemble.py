"""What goes into a soup, what it tastes like, and who judges."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from torch import nn
from torch.optim.swa_utils import update_bn

from erasus_pl.callbacks import RunCheckpoint
from erasus_pl.requests import ForgetRandom
from erasus_pl.strategies import (
    SSD,
    Ensemble,
    FineTune,
    GradientAscent,
    NegGradPlus,
    RandomLabel,
)
from erasus_pl.strategies.ensemble import average, greedy, judge
from erasus_pl.tasks import Task


def sgd(lr):
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=5e-4)


def tune(lr):
    return lambda task: FineTune(task, sgd(lr))


def ascend(task):
    return GradientAscent(task, sgd(0.05))


def dampen(task):
    return SSD(task, alpha=1.0)


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def weights(task):
    return {k: p.detach().clone() for k, p in task.named_parameters()}


def test_average_by_hand():
    states = [
        {"w": torch.tensor([1.0, 4.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([2.0, -1.0]), "n": torch.tensor(8)},
        {"w": torch.tensor([6.0, 0.0]), "n": torch.tensor(9)},
    ]
    soup = average(states)
    assert soup["w"].tolist() == [3.0, 1.0]
    assert soup["n"].item() == 3


@given(
    value=st.floats(-(2.0**99), 2.0**99, width=32),
    count=st.integers(1, 7),
    dtype=st.sampled_from([16, 32]),
)
def test_average_of_equal_members_is_the_member(value, count, dtype):
    tensor = torch.tensor([value]).to({16: torch.bfloat16, 32: torch.float32}[dtype])
    assert torch.equal(average([{"w": tensor}] * count)["w"], tensor)


def recipe_1(table, members):
    """The pseudo-code of the paper, with held-out scores from a table."""
    ingredients = []
    for i in sorted(range(members), key=lambda i: table[frozenset([i])], reverse=True):
        tried = table[frozenset([*ingredients, i])]
        if not ingredients or tried >= table[frozenset(ingredients)]:
            ingredients.append(i)
    return ingredients


@given(st.lists(st.integers(0, 9), min_size=31, max_size=31))
def test_greedy_is_recipe_1_and_no_worse_than_the_best_member(values):
    members = range(5)
    subsets = [frozenset(c) for k in members for c in itertools.combinations(members, k + 1)]
    table = dict(zip(subsets, values, strict=True))
    asked = []

    def score(soup):
        asked.append(frozenset(soup))
        return table[frozenset(soup)]

    chosen = greedy(score, 5)
    assert list(chosen) == recipe_1(table, 5)
    assert table[frozenset(chosen)] >= max(table[frozenset([i])] for i in members)
    assert len(set(asked)) <= 5 + 4


def test_greedy_against_all_subsets():
    """Points whose mean should be 0: greedy finds the best soup, where order does not mislead."""

    def best(points):
        def score(soup):
            return -abs(sum(points[i] for i in soup) / len(soup))

        every = itertools.chain(*(itertools.combinations(range(len(points)), k) for k in (1, 2, 3)))
        return set(greedy(score, len(points))), set(max(every, key=score))

    assert best([4.0, -1.0, 1.0]) == ({1, 2}, {1, 2})
    # The best single one stays, though two others would be better without it.
    assert best([1.0, 3.0, -3.0]) == ({0, 2}, {1, 2})


def test_judge():
    assert judge(1.0, 0.0, 0.0) == 1.0
    assert judge(0.9, 0.7, 0.8) == pytest.approx(0.8)
    assert judge(0.9, 0.9, 0.8) == pytest.approx(0.8)


def test_members_start_from_the_original_and_all_of_them_are_averaged(tiny, fit):
    makers, epochs = [tune(0.1), dampen, ascend], (2, 1, 2)
    members = [
        fit(make(copy.deepcopy(tiny.task)), tiny.data(), max_epochs=n).task
        for make, n in zip(makers, epochs, strict=True)
    ]
    soup = fit(Ensemble(copy.deepcopy(tiny.task), None, makers, epochs, "average"), tiny.data())
    assert soup.chosen == (0, 1, 2)
    same(weights(soup.task), average([weights(m) for m in members]))


def test_equal_members_are_the_member(tiny, fit):
    """To the bit, statistics of batch norms too, for those were not moved apart."""
    for recipe in ("average", "greedy"):
        member = fit(tune(0.1)(copy.deepcopy(tiny.task)), tiny.data(), max_epochs=2)
        soup = Ensemble(copy.deepcopy(tiny.task), None, [tune(0.1)] * 3, (2, 2, 2), recipe)
        same(fit(soup, tiny.data()).task.state_dict(), member.task.state_dict())
        assert soup.chosen == (0, 1, 2)


@pytest.mark.parametrize("tiny", ["images"], indirect=True)
def test_batch_norms_fit_the_soup(tiny, fit):
    """As torch's own `update_bn` would have it; the pass leaves everything else alone."""
    data = tiny.data()
    makers = [tune(0.1), ascend]
    soup = fit(Ensemble(copy.deepcopy(tiny.task), None, makers, (1, 1), "average"), data)
    network = copy.deepcopy(soup.task.network)
    for module in network.modules():
        module.training = True
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    update_bn([b["input"] for b in data.sweep(data.retain_set)], network)
    same(soup.task.network.state_dict(), network.state_dict())
    assert soup.task.network[1].momentum == 0.1
    assert soup.task.network[1].training


def test_greedy_takes_what_the_judge_says(tiny, fit):
    """Scores of all soups anew, from outside; ρ is the accuracy on the holdout set."""
    if tiny.name == "images":
        tiny.task.network[1] = nn.Identity()
    data = tiny.data()
    makers, epochs = [tune(0.5), ascend, tune(0.05)], (4, 3, 4)
    members = [
        weights(fit(make(copy.deepcopy(tiny.task)), tiny.data(), max_epochs=n).task)
        for make, n in zip(makers, epochs, strict=True)
    ]
    data.setup("fit")

    def right(task, dataset):
        with torch.no_grad():
            found = [task.correct(task(b), b) for b in data.sweep(dataset)]
        return torch.cat(found).double().mean().item()

    def score(soup):
        task = copy.deepcopy(tiny.task).eval()
        task.load_state_dict(average([members[i] for i in soup]))
        retain, forget, holdout = (
            right(task, s) for s in (data.retain_set, data.forget_set, data.holdout_set)
        )
        return retain - abs(forget - holdout)

    soup = fit(Ensemble(copy.deepcopy(tiny.task), None, makers, epochs), tiny.data())
    assert soup.chosen == greedy(score, 3)
    for key, value in soup.scores.items():
        assert value == pytest.approx(score(key), abs=1e-9), key
    same(weights(soup.task), average([members[i] for i in soup.chosen]))


def test_the_test_set_is_not_looked_at(tiny, fit):
    data = tiny.data()
    data.setup("fit")
    data.test_set = None
    fit(Ensemble(copy.deepcopy(tiny.task)), data)


class Keep(RunCheckpoint):
    def __init__(self, folder):
        super().__init__(every_n_train_steps=1)
        self.folder = folder

    def _save(self, trainer):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def test_resumed_anywhere_equals_uninterrupted(tiny, fit, tmp_path):
    def made():
        return Ensemble(copy.deepcopy(tiny.task), None, [tune(0.1), dampen, ascend], (1, 1, 2))

    on = {"enable_checkpointing": True}
    whole = fit(made(), tiny.data(), callbacks=[Keep(tmp_path)], **on)
    steps = sorted(tmp_path.glob("*.ckpt"), key=lambda p: int(p.stem))
    for path in steps:
        again = fit(made(), tiny.data(), resume=path, **on)
        same(again.state_dict(), whole.state_dict())
        assert again.chosen == whole.chosen
    kept = [len(torch.load(p, weights_only=True)["soup"]["members"]) for p in steps]
    assert kept == [0] * 4 + [1] * 4 + [2] * 5 + [0]


class Stop(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


def test_a_run_that_is_stopped_makes_a_soup_of_what_there_is(tiny, fit):
    makers = [tune(0.1), ascend, dampen]
    soup = Ensemble(copy.deepcopy(tiny.task), None, makers, (1, 1, 1), "average")
    fit(soup, tiny.data(), callbacks=[Stop()])
    members = [
        weights(fit(make(copy.deepcopy(tiny.task)), tiny.data(), max_epochs=1).task)
        for make in makers[:2]
    ]
    same(weights(soup.task), average(members[: len(soup.chosen)]))


@pytest.mark.parametrize("tiny", ["images"], indirect=True)
def test_a_task_that_knows_no_right_answers_is_averaged_or_refused(fit, tiny):
    task = Task(nn.Linear(6, 1), loss=lambda y, t: (y[:, 0] - t).square())
    with pytest.raises(ValueError, match=r"`recipe`: greedy judges by right .*recipe: average"):
        fit(Ensemble(copy.deepcopy(task)), tiny.data())
    fit(Ensemble(copy.deepcopy(task), recipe="average"), tiny.data())


def test_another_recipe_is_refused(tiny):
    with pytest.raises(ValueError, match="`recipe` must be average or greedy, got 'best'"):
        Ensemble(tiny.task, recipe="best")


def test_judged_by_a_class_the_original_has_forgotten_nothing(digits, fit):
    """It knows unseen threes as well as those it has seen; that must not count as forgetting."""
    stay = [lambda task: FineTune(task, sgd(1e-9))]
    soup = fit(Ensemble(copy.deepcopy(digits.original), None, stay, (1,)), digits.data())
    assert soup.scores[0,] < 0.05
    forgotten = Ensemble(copy.deepcopy(digits.original), None, [lambda t: SSD(t, alpha=3.0)], (1,))
    assert fit(forgotten, digits.data()).scores[0,] > 0.9


POOL = [
    lambda task: NegGradPlus(task, sgd(0.1), alpha=0.98),
    lambda task: RandomLabel(task, sgd(0.03)),
    lambda task: SSD(task, alpha=3.0),
    lambda task: GradientAscent(task, sgd(0.03)),
]


@pytest.mark.parametrize("asked", [None, ForgetRandom(fraction=0.1)], ids=["class", "random"])
def test_a_greedy_soup_of_digits_is_no_worse_than_its_best_member(asked, digits, fit):
    """And on a class better than the average of all, which one broken member spoils."""
    found = {}
    for recipe in ("greedy", "average"):
        data = digits.data(epoch="retain")
        if asked is not None:
            data.request = asked
        soup = Ensemble(copy.deepcopy(digits.original), None, POOL, (5, 5, 1, 5), recipe)
        found[recipe] = fit(soup, data)
    scores = found["greedy"].scores
    assert scores[found["greedy"].chosen] >= max(scores[i,] for i in range(4))
    assert len(found["greedy"].chosen) < 4
    if asked is None:
        one, all_ = (digits.measure(found[r]) for r in ("greedy", "average"))
        assert one["forget"] == 0.0
        assert one["test"] > 0.95
        assert all_["test"] < 0.8
