"""The strategies whose objective is a task loss or a sum of two."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import nn

from erasus_pl.networks import MLP
from erasus_pl.strategies import FineTune, GradientAscent, NegGradPlus, RandomLabel, Retrain
from erasus_pl.strategies.neg_grad_plus import neg_grad_plus_terms
from erasus_pl.tasks import ClassificationTask
from erasus_pl.tasks.weights import reset_trainable

pytestmark = pytest.mark.smoke


class Seen(Callback):
    """Which samples the steps were given."""

    def __init__(self):
        self.forget, self.retain = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for name in ("forget", "retain"):
            if batch[name] is not None:
                getattr(self, name).extend(batch[name]["index"].tolist())


def gradient(loss, task):
    return torch.autograd.grad(loss, list(task.parameters()))


def whole(data, split):
    data.batch_size = 100
    return next(iter(data.sweep(getattr(data, f"{split}_set"))))


@pytest.fixture
def batches(tiny):
    data = tiny.data()
    data.setup("validate")
    return whole(data, "forget"), whole(data, "retain")


@pytest.mark.parametrize(
    ("cls", "seen"),
    [
        (Retrain, {"retain"}),
        (FineTune, {"retain"}),
        (GradientAscent, {"forget"}),
        (NegGradPlus, {"forget", "retain"}),
        (RandomLabel, {"forget", "retain"}),
    ],
)
def test_sees_its_sets_and_each_sample_once_an_epoch(cls, seen, tiny, fit):
    watch, data = Seen(), tiny.data()
    fit(cls(tiny.task), data, max_epochs=1, callbacks=[watch])
    for name in ("forget", "retain"):
        positions = getattr(data, f"{name}_set").positions.tolist()
        found = getattr(watch, name)
        assert bool(found) == (name in seen)
        assert set(found) <= set(positions)
        if found and (name == "forget" or cls in (Retrain, FineTune)):
            assert sorted(found) == positions


def test_gradient_ascent_is_the_negative_gradient(tiny, batches):
    task = tiny.task.eval()
    strategy = GradientAscent(task)
    (term,) = strategy.unlearning_losses(batches[0], None).values()
    for g, plain in zip(gradient(term, task), gradient(task.loss(batches[0]), task), strict=True):
        torch.testing.assert_close(g, -plain)


def test_neg_grad_plus_terms():
    ascent, descent = neg_grad_plus_terms(torch.tensor(2.0), torch.tensor(3.0), 0.9)
    assert math.isclose(ascent, -0.2, rel_tol=1e-6)
    assert math.isclose(descent, 2.7, rel_tol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9999, 1.0])
def test_neg_grad_plus_mixes_both_gradients(alpha, tiny, batches):
    task = tiny.task.eval()
    forget, retain = batches
    terms = NegGradPlus(task, alpha=alpha).unlearning_losses(forget, retain)
    parts = zip(
        gradient(sum(terms.values()), task),
        gradient(task.loss(forget), task),
        gradient(task.loss(retain), task),
        strict=True,
    )
    for g, f, r in parts:
        torch.testing.assert_close(g, alpha * r - (1 - alpha) * f, atol=1e-6, rtol=1e-4)


def test_neg_grad_plus_weighs_a_weighted_coreset(tiny, batches):
    task = tiny.task.eval()
    forget, retain = batches
    weight = torch.rand(len(forget["index"])) + 0.1
    losses = task.per_sample_loss(task(forget), forget)
    terms = NegGradPlus(task, alpha=0.5).unlearning_losses(forget | {"weight": weight}, retain)
    expected = -0.5 * (weight * losses).sum() / weight.sum()
    torch.testing.assert_close(terms["forget_ascent"], expected)


def test_neg_grad_plus_refuses_an_alpha_that_is_no_share(tiny):
    with pytest.raises(ValueError, match=r"`alpha` must be in \[0, 1\], got 1.5"):
        NegGradPlus(tiny.task, alpha=1.5)


def test_random_label_expects_the_uniform_distribution(tiny, batches):
    """Over many draws the loss is the cross-entropy to a uniform target: −mean_c log p_c."""
    task = tiny.task.eval()
    forget, retain = batches
    strategy = RandomLabel(task)
    with torch.no_grad():
        drawn = torch.stack(
            [strategy.unlearning_losses(forget, None)["forget_random"] for _ in range(2000)]
        )
        log_p = F.log_softmax(task(forget), -1)
        if tiny.name == "text":
            kept = (forget["labels"][:, 1:] != -100).float()
            expected = -((log_p[:, :-1].mean(-1) * kept).sum(1) / kept.sum(1)).mean()
        else:
            expected = -log_p.mean()
    assert drawn.std() > 0, "redrawn for each batch"
    torch.testing.assert_close(drawn.mean(), expected, rtol=0, atol=4 * drawn.std().item() / 44)
    (term,) = strategy.unlearning_losses(None, retain).values()
    torch.testing.assert_close(term, task.loss(retain))


def test_random_label_leaves_the_data_alone(tiny, fit):
    data = tiny.data()
    before = {k: v.clone() for k, v in data.columns.items()}
    fit(RandomLabel(tiny.task), data)
    assert all(torch.equal(data.columns[k], v) for k, v in before.items())


def test_retrain_resets_every_layer_however_deep(tiny, fit):
    """A reset that walks over top-level layers alone leaves the original in nested blocks."""
    torch.manual_seed(0)
    task = ClassificationTask(nn.Sequential(nn.Sequential(MLP(6, [5], 4)), nn.Linear(4, 4)))
    if tiny.name == "text":
        task = tiny.task
    constant = copy.deepcopy(task)
    with torch.no_grad():
        for parameter in constant.parameters():
            parameter.fill_(7.0)
    strategy = fit(Retrain(constant), tiny.data(), max_steps=0)
    for name, parameter in strategy.task.named_parameters():
        assert not (parameter == 7.0).any(), name


def test_retrain_does_not_draw_the_original_again(tiny, fit):
    """With the run's own seed the original's initialisation would be drawn a second time."""
    torch.manual_seed(0)
    tiny.task.reset()

    def drawn(seed):
        strategy = Retrain(copy.deepcopy(tiny.task), seed=seed)
        task = fit(strategy, tiny.data(), max_steps=0).task  # under seed_everything(0)
        return [p for p in task.parameters() if p.dim() > 1]

    matrices = [p for p in tiny.task.parameters() if p.dim() > 1]
    for seed, same in ((None, False), (1, False), (0, True)):
        for new, old in zip(drawn(seed), matrices, strict=True):
            assert torch.equal(new, old) == same


def test_reset_keeps_what_is_frozen_and_the_random_state():
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2), nn.BatchNorm1d(2))
    network(torch.randn(8, 3))
    network[:2].requires_grad_(False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    task, state = ClassificationTask(network), torch.get_rng_state()
    reset_trainable(network, task.reset, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) == (key[0] in "01" or key == "3.weight" or (
            key == "3.bias"
        )), key  # fmt: skip


def test_retrain_trains_as_the_original_was(tiny, fit):
    task = tiny.task
    task.optimizer = lambda p: torch.optim.Adagrad(p, lr=0.02)
    task.scheduler = lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5)
    strategy = fit(Retrain(task), tiny.data(), max_epochs=2)
    (optimizer,) = strategy.trainer.optimizers
    assert isinstance(optimizer, torch.optim.Adagrad)
    assert optimizer.param_groups[0]["lr"] == 0.02 * 0.5**2
    own = fit(Retrain(task, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)), tiny.data())
    assert isinstance(own.trainer.optimizers[0], torch.optim.SGD)
