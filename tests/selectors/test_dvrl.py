from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from erasus_pl.selectors import DVRL
from erasus_pl.selectors._heads import Game, fit, moments, worth
from erasus_pl.selectors.dvrl import Estimator, exploration, reinforce

QUIET = SimpleNamespace(trainer=SimpleNamespace(progress_bar_callback=None))


def game(n, wrong, seed, classes=3, d=5, held=300):
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(classes, d, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (n + held,), generator=generator)
    x = centers[labels] + torch.randn(n + held, d, generator=generator, dtype=torch.float64)
    labels[:n][wrong] = (labels[:n][wrong] + 1) % classes
    return Game(x[:n, None], labels[:n, None], *moments(x[n:], labels[n:], classes), 1.0)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 6), seed=st.integers(0, 99), baseline=st.floats(-2, 2))
def test_the_gradient_is_that_of_the_expected_loss(n, seed, baseline):
    """Over all selections, weighted by their chance, whatever the baseline is."""
    played = game(n, [], seed)
    selections = torch.tensor(list(product([0.0, 1.0], repeat=n)), dtype=torch.float64)
    losses = 1 - worth(fit(played, selections), played)
    logits = torch.randn(n, dtype=torch.float64, requires_grad=True)
    p = logits.sigmoid()
    chances = torch.where(selections > 0, p, 1 - p).prod(1)
    (truth,) = torch.autograd.grad((chances * losses).sum(), logits)
    each = [
        torch.autograd.grad(reinforce(logits, s[None], loss[None], baseline), logits)[0]
        for s, loss in zip(selections, losses, strict=True)
    ]
    found = (chances.detach()[:, None] * torch.stack(each)).sum(0)
    torch.testing.assert_close(found, truth)


def test_several_selections_make_a_mean():
    logits = torch.randn(4, dtype=torch.float64)
    selections = torch.randint(2, (7, 4)).double()
    losses = torch.randn(7, dtype=torch.float64)
    each = [reinforce(logits, selections[k : k + 1], losses[k : k + 1], 0.3) for k in range(7)]
    found = reinforce(logits, selections, losses, 0.3)
    torch.testing.assert_close(found, torch.stack(each).mean())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), rows=st.integers(1, 3))
def test_a_fit_is_to_the_selected_alone(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, rows, 3, generator=generator, dtype=torch.float64)
    labels = torch.randint(2, (5, rows), generator=generator)
    played = Game(x, labels, torch.eye(3).double(), torch.zeros(3, 2).double(), 0.3)
    selections = torch.tensor([[1.0, 0, 1, 1, 0], [0.0, 0, 0, 0, 0], [0.5, 0, 0, 0, 0]])
    found = fit(played, selections)
    rest, hot = x[[0, 2, 3]].flatten(0, 1), F.one_hot(labels[[0, 2, 3]].flatten(), 2).double()
    eye = torch.eye(3, dtype=torch.float64)
    truth = torch.linalg.inv(0.3 * eye + rest.T @ rest) @ rest.T @ hot
    torch.testing.assert_close(found[0], truth)
    assert (found[1] == 0).all()
    hot = F.one_hot(labels[0], 2).double()
    truth = torch.linalg.inv(0.3 * eye + 0.5 * x[0].T @ x[0]) @ (0.5 * x[0].T @ hot)
    torch.testing.assert_close(found[2], truth)


def test_values_tell_wrong_labels_from_right_ones():
    """The paper's Sec. 4.2, at a fifth of labels wrong."""
    wrong = torch.zeros(60, dtype=torch.bool)
    wrong[::5] = True
    found = []
    for seed in range(2):
        torch.manual_seed(seed)
        values = DVRL(k=1, seed=seed).learn(game(60, wrong, seed), QUIET)
        found.append(float((values[~wrong][:, None] > values[wrong]).double().mean()))
    assert min(found) > 0.85


def test_without_learning_they_do_not():
    """What the network begins with says nothing: the test above is of what it learns."""
    wrong = torch.zeros(60, dtype=torch.bool)
    wrong[::5] = True
    found = []
    for seed in range(10):
        torch.manual_seed(seed)
        values = DVRL(k=1, iterations=1, lr=1e-12).learn(game(60, wrong, seed), QUIET)
        found.append(float((values[~wrong][:, None] > values[wrong]).double().mean()))
    assert abs(sum(found) / len(found) - 0.5) < 0.2


def test_exploration_costs_nothing_within_bounds():
    assert exploration(torch.full((4,), 0.1)) == exploration(torch.full((4,), 0.9)) == 0
    assert float(exploration(torch.ones(4))) == pytest.approx(0.1)
    assert float(exploration(torch.zeros(4))) == pytest.approx(0.1)


def test_the_authors_network():
    """Features and label through three layers of 100 and one of 10, then 10 and 1 with the gap."""
    network = Estimator(7, 3)
    widths = [(m.in_features, m.out_features) for m in network.modules() if hasattr(m, "bias")]
    assert widths == [(7, 100), (100, 100), (100, 100), (100, 10), (13, 10), (10, 1)]
    assert network(torch.randn(4, 7), torch.rand(4, 3)).shape == (4,)


@pytest.mark.parametrize(
    ("name", "value"),
    [("target", "test"), ("iterations", 0), ("layers", 2), ("hidden", 0), ("lr", 0), ("ridge", 0)],
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got"):
        DVRL(k=1, **{name: value})
