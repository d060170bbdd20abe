"""Answers of an ensemble, against probabilities worked out one by one."""

import pytest
import torch
from torch import nn

from erasus_pl.networks import MLP, ShardedEnsemble, TinyLlama
from erasus_pl.networks.sharded import mean_softmax, vote_share

pytestmark = pytest.mark.smoke


def test_the_mean_is_that_of_probabilities():
    p = torch.tensor([[[0.7, 0.2, 0.1]], [[0.1, 0.2, 0.7]], [[0.4, 0.5, 0.1]]])
    found = mean_softmax(p.log() + 3)
    torch.testing.assert_close(found.exp(), torch.tensor([[0.4, 0.3, 0.3]]))


def test_the_majority_wins_against_any_confidence():
    p = torch.tensor([[[0.98, 0.01, 0.01]], [[0.3, 0.4, 0.3]], [[0.3, 0.4, 0.3]]])
    assert mean_softmax(p.log()).argmax() == 0
    found = vote_share(p.log())
    assert found.argmax() == 1
    # Two votes of three, and the fourth split as the members' mean.
    expected = (torch.tensor([1.0, 2, 0]) + p.mean((0, 1))) / 4
    torch.testing.assert_close(found.exp(), expected[None])


def test_a_split_vote_goes_to_the_more_confident():
    p = torch.tensor([[[0.9, 0.05, 0.05]], [[0.3, 0.4, 0.3]]])
    assert vote_share(p.log()).argmax() == 0


@pytest.mark.parametrize("aggregate", ["mean", "vote"])
def test_outputs_are_distributions_and_stay_finite(aggregate):
    network = ShardedEnsemble(MLP(4, [], 3), 3, 1, aggregate)
    with torch.no_grad():
        for member in network.members:
            for p in member.parameters():
                p.mul_(1e4)
    out = network(torch.randn(5, 4))
    torch.testing.assert_close(out.exp().sum(-1), torch.ones(5))
    if aggregate == "vote":
        assert out.argmax(-1).shape == (5,)


@pytest.mark.parametrize("aggregate", ["mean", "vote"])
def test_alike_members_answer_as_one_does(aggregate):
    network = ShardedEnsemble(MLP(4, [8], 3), 4, 2, aggregate)
    x = torch.randn(6, 4)
    alone = network.members[0](x)
    assert torch.equal(network(x).argmax(-1), alone.argmax(-1))
    if aggregate == "mean":
        torch.testing.assert_close(network(x), alone.log_softmax(-1))


def test_takes_language_models_and_what_has_logits():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = TinyLlama(vocabulary=7, width=8, layers=1)

        def forward(self, **inputs):
            return type("Output", (), {"logits": self.inner(**inputs)})()

    ids = torch.randint(7, (2, 5))
    out = ShardedEnsemble(Wrapped(), 2)(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert out.shape == (2, 5, 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shards": 0}, "`shards` must be at least 1, got 0"),
        ({"slices": 0}, "`slices` must be at least 1, got 0"),
        ({"aggregate": "sum"}, "`aggregate` must be mean or vote, got 'sum'"),
    ],
)
def test_bad_options_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        ShardedEnsemble(nn.Linear(2, 2), **options)
