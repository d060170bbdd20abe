import copy
import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.__main__ import main
from erasus_pl.selectors import (
    EL2N,
    Craig,
    Full,
    GradNorm,
    KCenter,
    KMeans,
    KNNShapley,
    Moderate,
    Random,
    RankFusion,
    Selector,
    Uncertainty,
    Voting,
)
from erasus_pl.selectors._members import ask, ranks
from erasus_pl.selectors.base import Coreset
from erasus_pl.selectors.rank_fusion import reciprocal_rank_fusion
from erasus_pl.selectors.voting import elect

KINDS = [Voting, RankFusion]


class Told(Selector):
    """Scores as it is told."""

    requires = ("targets",)

    def __init__(self, fraction=None, k=None, values=()):
        super().__init__(fraction, k)
        self.values = torch.tensor(values, dtype=torch.float64)

    def scores(self, strategy, dataset):
        return self.values


class Chosen(Selector):
    """Picks as it is told; weighs."""

    requires = ("divergence",)

    def __init__(self, fraction=None, k=None, picks=()):
        super().__init__(fraction, k)
        self.picks = torch.tensor(picks)

    def select(self, strategy, dataset, k):
        return Coreset(self.picks, torch.arange(1.0, k + 1))


def told(*values):
    return [partial(Told, values=v) for v in values]


def pick(ensemble, n, k):
    return ensemble.select(None, range(n), k).indices.tolist()


def test_ranks_by_hand():
    assert ranks(torch.tensor([5.0, 9.0, 5.0, 1.0])).tolist() == [2.5, 1, 2.5, 4]


def test_voting_by_hand():
    """Votes of the top two: samples 0, 1 | 1, 2 | 1, 3. Ranks of 0, 2, 3 sum to 9, 8, 10."""
    votes = told([9, 8, 2, 1, 0], [5, 7, 6, 4, 1], [0, 9, 3, 8, 1])
    assert pick(Voting(k=2, selectors=votes), 5, 2) == [1, 2]


def test_votes_count_before_ranks():
    """Sample 0 is first twice and last once; the ranks of sample 1 sum to less."""
    assert pick(Voting(k=1, selectors=told([9, 8, 7, 1], [9, 8, 7, 1], [0, 9, 7, 8])), 4, 1) == [0]


def test_of_one_mean_rank_the_best_rank_wins():
    """Without a vote, with ranks that sum to 6: 3 and 3 of sample 0, 2 and 4 of samples 2 and 3."""
    votes, two = torch.zeros(5), torch.tensor([[3.0, 1, 4, 2, 5], [3.0, 1, 2, 4, 5]])
    assert elect(votes, two, 2).tolist() == [1, 2]
    assert elect(votes, two.flip(0), 4).tolist() == [0, 1, 2, 3]
    assert elect(votes, two, 3).tolist() == [1, 2, 3]


def test_a_set_votes_and_shares_a_rank():
    pick_of, order = ask(Chosen(k=2, picks=[3, 1]), None, range(5), 2)
    assert pick_of.tolist() == [3, 1]
    assert order.tolist() == [4, 1.5, 4, 1.5, 4]
    near, far = (
        [partial(Chosen, picks=[1, 3]), *told(v)] for v in ([9, 8, 0, 7, 1], [9, 8, 6, 0, 1])
    )
    assert pick(Voting(k=2, selectors=near), 5, 2) == [1, 3]  # ranks 4 + 1 and 1.5 + 3
    assert pick(Voting(k=2, selectors=far), 5, 2) == [0, 1]  # ranks 4 + 1 and 1.5 + 5


def test_the_weights_of_a_set_are_not_a_vote():
    ensemble = Voting(k=2, selectors=[partial(Chosen, picks=[1, 3])])
    assert ensemble.select(None, range(5), 2).weights is None


def test_fusion_by_hand():
    """Eq. 1 of the paper: 1 / 61 + 1 / 63, 2 / 62, 1 / 63 + 1 / 61; the first of equals wins."""
    found = reciprocal_rank_fusion(
        torch.tensor([[1.0, 2, 3], [3.0, 2, 1]]), torch.tensor([1.0, 1.0], dtype=torch.float64)
    )
    truth = torch.tensor([1 / 61 + 1 / 63, 2 / 62, 1 / 61 + 1 / 63], dtype=torch.float64)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=0)
    opposed = told([3, 2, 1], [1, 2, 3])
    assert pick(RankFusion(k=1, selectors=opposed), 3, 1) == [0]
    assert pick(RankFusion(k=1, selectors=opposed, weights=[1, 2]), 3, 1) == [2]
    assert pick(RankFusion(k=1, selectors=opposed, smoothing=1e9), 3, 1) == [0]


def test_no_scale_decides():
    huge = told([1e9, 0, 5, 4], [0, 3, 2, 1], [0, 3, 2, 1])
    small = told([1e-9, -9, 1e-10, 0], [0, 3, 2, 1], [0, 3, 2, 1])
    for kind in KINDS:
        assert pick(kind(k=2, selectors=huge), 4, 2) == pick(kind(k=2, selectors=small), 4, 2)


scored = st.lists(st.lists(st.integers(0, 9), min_size=7, max_size=7), min_size=1, max_size=3)


@settings(max_examples=20, deadline=None)
@given(values=scored, k=st.integers(1, 7), kind=st.sampled_from(KINDS))
def test_properties(values, k, kind):
    """One member is that member, as are many of one mind, and the order of members is of no matter.

    A member whose scores have ties is one that leaves them to the first, too.
    """
    alone = Told(k=k, values=values[0]).select(None, range(7), k).indices.tolist()
    assert pick(kind(k=k, selectors=told(values[0])), 7, k) == alone
    assert pick(kind(k=k, selectors=told(*[values[0]] * 3)), 7, k) == alone
    orders = itertools.permutations(values)
    picks = {tuple(pick(kind(k=k, selectors=told(*order)), 7, k)) for order in orders}
    assert len(picks) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_real_member_is_that_member(fit, modality, kind):
    def picked(selector):
        return fit(selector, copy.deepcopy(modality.task), modality.columns).picked

    ensemble = kind(k=9, selectors=[partial(Uncertainty, measure="margin")])
    assert torch.equal(picked(ensemble), picked(Uncertainty(k=9, measure="margin")))


def test_members_that_draw_do_so_by_their_own_seed(fit, modality):
    def picked(*members):
        ensemble = Voting(k=9, selectors=list(members))
        return fit(ensemble, copy.deepcopy(modality.task), modality.columns).picked

    three = (Random, KCenter, KMeans)
    assert torch.equal(picked(*three), picked(*reversed(three)))
    alone = fit(KMeans(k=9), copy.deepcopy(modality.task), modality.columns).picked
    assert torch.equal(picked(KMeans), alone)


@pytest.mark.parametrize("kind", KINDS)
def test_default_members_are_documented_and_draw_nothing(kind):
    members = {type(m) for m in kind(fraction=0.5).members}
    assert members == {GradNorm, EL2N, KNNShapley, Moderate}
    assert all(m.__name__ in kind.__doc__ for m in members)
    assert all(m.fraction == 0.5 for m in kind(fraction=0.5).members)
    assert kind(fraction=0.5).needs == {"targets", "features"}


def test_needs_are_those_of_all_members():
    mixed = Voting(k=1, selectors=[*told([1]), partial(Chosen, picks=[0]), GradNorm])
    assert mixed.needs == {"targets", "divergence"}
    assert Voting(k=1, selectors=[GradNorm]).needs == frozenset()


def test_a_task_that_a_member_cannot_use_is_refused(fit, modality):
    class Odd(GradNorm):
        requires = ("wings",)

    with pytest.raises(TypeError, match=r"Voting needs a task with \['wings'\]"):
        fit(Voting(k=2, selectors=[Odd, GradNorm]), modality.task, modality.columns)


@pytest.mark.parametrize("kind", KINDS)
def test_members_that_are_none(kind):
    with pytest.raises(ValueError, match="`selectors` must name at least one"):
        kind(k=1, selectors=[])
    with pytest.raises(TypeError, match="number 2 takes no budget"):
        kind(k=1, selectors=[GradNorm, Full])
    with pytest.raises(TypeError, match=r"number 1 must make a selector .*the budget is"):
        kind(k=1, selectors=[GradNorm(k=3)])
    with pytest.raises(TypeError, match="number 1 makes a dict, no Selector"):
        kind(k=1, selectors=[lambda fraction, k: {}])


def test_what_fusion_refuses():
    with pytest.raises(TypeError, match=r"Craig picks a set .*use Voting"):
        RankFusion(k=1, selectors=[EL2N, Craig])
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="`weights` must be 2 positive numbers, got"):
            RankFusion(k=1, selectors=[EL2N, GradNorm], weights=weights)
    with pytest.raises(ValueError, match="`smoothing` must not be negative"):
        RankFusion(k=1, smoothing=-1)


def test_members_from_a_run_file(tmp_path, capsys):
    conf = "conf/{}.yaml".format
    member = {"class_path": "erasus_pl.selectors.KNNShapley", "init_args": {"neighbors": 3}}
    inner = {"class_path": "erasus_pl.selectors.RankFusion", "init_args": {"weights": [1, 2, 1, 1]}}
    run = {
        "trainer": {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1},
        "task": conf("task/digits"), "request": conf("request/class"), "data": conf("data/digits"),
        "model": conf("strategy/gradient_ascent"), "evidence": {"enabled": False},
        "selector": {
            "class_path": "erasus_pl.selectors.Voting",
            "init_args": {
                "fraction": 0.2,
                "selectors": [member, {"class_path": "erasus_pl.selectors.Craig"}, inner],
            },
        },
    }  # fmt: skip
    root = Path(__file__).parents[2]
    run = {k: str(root / v) if isinstance(v, str) else v for k, v in run.items()}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run))
    arguments = ["fit", "--config", str(file), f"--trainer.default_root_dir={tmp_path}",
                 f"--evidence.cache={tmp_path}/cache", "--trainer.accelerator=cpu",
                 "--trainer.enable_progress_bar=false", "--task.init_args.epochs=1"]  # fmt: skip
    assert main(arguments) == 0, capsys.readouterr().err
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())["selector"]["init_args"]
    assert [m["class_path"].rsplit(".", 1)[1] for m in written["selectors"]] == [
        "KNNShapley", "Craig", "RankFusion",
    ]  # fmt: skip
    assert written["selectors"][0]["init_args"]["neighbors"] == 3
    again = ["fit", "--config", str(tmp_path / "config.yaml")]
    assert main(again) == 0, capsys.readouterr().err
