"""The noise against the fixed point of a linear model, the mixture by hand, the phases by epoch."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from erasus_pl.networks import TinyLlama
from erasus_pl.strategies import UNSIR
from erasus_pl.strategies.unsir import noise_objective
from erasus_pl.tasks import ClassificationTask


@pytest.fixture
def images(tiny):
    if tiny.name == "text":
        pytest.skip("classes")
    return tiny


def test_objective_by_hand():
    noise = torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]])
    losses = torch.tensor([0.5, 1.5])
    assert noise_objective(losses, noise, 0.1).item() == pytest.approx(0.1 * (5 + 9) / 2 - 1.0)


def test_on_a_linear_model_noise_settles_where_its_gradient_is_zero(images, fit):
    """∇_z (λ ‖z‖² − ℓ(W z, c)) = 2 λ z − Wᵀ (softmax(W z) − e_c) = 0."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=False)
    strategy = UNSIR(ClassificationTask(layer), noise_size=3, noise_steps=3000, noise_lr=0.01)
    fit(strategy, images.data(), max_steps=0)
    assert sorted(strategy.noise) == [0, 1, 2, 3]
    weight = layer.weight.detach()
    for c, z in strategy.noise.items():
        residual = (z @ weight.T).softmax(-1)
        residual[:, c] -= 1
        torch.testing.assert_close(z, residual @ weight / 0.2, rtol=0, atol=2e-3)
        assert z.norm(dim=1).min() > 0.5


def test_the_original_finds_the_noise_unlike_its_class(images, fit):
    strategy = fit(UNSIR(copy.deepcopy(images.task), lam=0), images.data(), max_steps=0)
    still = UNSIR(copy.deepcopy(images.task), noise_steps=0)
    start = fit(still, images.data(), max_steps=0).noise
    task = copy.deepcopy(images.task).eval()
    for c, noise in strategy.noise.items():
        target = torch.full((256,), c)
        before, after = (
            task.per_sample_loss(task({"input": z}), {"target": target}).mean()
            for z in (start[c], noise)
        )
        assert after > before + 1


class Watch(Callback):
    """What the task is given, and with which learning rate it learns."""

    def __init__(self):
        self.batches, self.rates, self.fresh = [], [], []

    def on_fit_start(self, trainer, module):
        loss = module.task.per_sample_loss

        def spy(outputs, batch):
            self.batches.append(batch)
            return loss(outputs, batch)

        module.task.per_sample_loss = spy

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.fresh.append(not optimizer.state)


def test_each_class_keeps_its_label_and_repairing_sees_no_noise(images, fit):
    """The published notebook calls the noise of every class 0."""
    watch = Watch()
    strategy = UNSIR(copy.deepcopy(images.task), ratio=0.5)
    fit(strategy, images.data(), max_epochs=3, callbacks=[watch])
    steps = len(watch.batches) // 3
    for batch in watch.batches[:steps]:
        real = len(batch["target"]) - sum(
            any(torch.equal(x, z) for c in strategy.noise for z in strategy.noise[c])
            for x in batch["input"]
        )
        labels = batch["target"][real:]
        assert len(labels) == 4 * max(1, round(0.5 * real))
        for x, c in zip(batch["input"][real:], labels.tolist(), strict=True):
            assert any(torch.equal(x, z) for z in strategy.noise[c])
        assert sorted(set(labels.tolist())) == [0, 1, 2, 3]
    for batch in watch.batches[steps:]:
        assert "index" in batch
    assert watch.rates == [0.02] * steps + [0.01] * 2 * steps
    assert [i for i, fresh in enumerate(watch.fresh) if fresh] == [0, steps]


def test_the_terms_sum_to_the_mean_over_the_mixture(images, fit):
    for module in images.task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    strategy = fit(UNSIR(images.task), images.data(), max_steps=0).eval()
    data = strategy.trainer.datamodule
    batch = next(iter(data.sweep(data.retain_set)))
    torch.manual_seed(3)
    terms = strategy.unlearning_losses(None, batch)
    torch.manual_seed(3)
    mixed = strategy._mix(batch)
    torch.testing.assert_close(sum(terms.values()), strategy.task.loss(mixed))
    strategy.impair_epochs = 0
    (term,) = strategy.unlearning_losses(None, batch).values()
    torch.testing.assert_close(term, strategy.task.loss(batch))


@pytest.mark.parametrize("tiny", ["text"], indirect=True)
def test_refuses_tokens_and_says_why(tiny, fit):

    class Tokens(ClassificationTask):
        def forward(self, batch):
            return self.network(input_ids=batch["input_ids"], attention_mask=None).mean(1)

    task = Tokens(TinyLlama(vocabulary=11, width=8, layers=1))
    data = tiny.data()
    data.columns["target"] = data.columns["labels"][:, 0]
    with pytest.raises(TypeError, match="needs a floating `input`, got none: tokens have none"):
        fit(UNSIR(task), data)


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("impair_epochs", 0, "at least 1"),
        ("repair_scale", -0.1, "at least 0"),
        ("noise_size", 0, "at least 1"),
        ("lam", -1, "at least 0"),
        ("ratio", 0, "above 0"),
    ],
)
def test_refuses_values_out_of_range(name, value, range_, images):
    with pytest.raises(ValueError, match=f"`{name}` must be {range_}, got {value}"):
        UNSIR(images.task, **{name: value})


def test_forgets_a_class_and_keeps_most_of_the_rest(digits, fit):
    data = digits.data()
    data.seed = 0
    found = digits.measure(fit(UNSIR(copy.deepcopy(digits.original)), data, max_epochs=2))
    assert found["forget"] <= 0.05, found
    assert found["retain"] >= digits.retrained["retain"] - 0.05, found
    assert found["test"] >= digits.retrained["test"] - 0.05, found
