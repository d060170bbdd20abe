"""The estimate is the Lipschitz constant where that is known, and no retain sample is seen."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from erasus_pl.strategies import JiT
from erasus_pl.strategies.jit import lipschitz_ratio
from erasus_pl.tasks import ClassificationTask


def attached(task, seed=3, step=0, **options):
    """A strategy that can be asked for its losses outside a run."""
    strategy = JiT(task, **options)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(seed=seed), global_step=step)
    strategy.__dict__["_trainer"] = trainer
    return strategy


@pytest.fixture
def forget(tiny, monkeypatch):
    monkeypatch.setattr(JiT, "data", property(lambda s: s.__dict__["_trainer"].datamodule))
    monkeypatch.setattr(JiT, "global_step", property(lambda s: s.__dict__["_trainer"].global_step))
    data = tiny.data(batch_size=100)
    data.setup("validate")
    (batch,) = data.sweep(data.forget_set)
    return batch


def lipschitz(strategy, batch):
    return strategy.unlearning_losses(batch, None)["lipschitz"]


def test_ratio_of_a_linear_map_lies_between_its_singular_values():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, dtype=torch.float64)
    x, noise = torch.randn(2, 500, 3, dtype=torch.float64)
    ratio = lipschitz_ratio(x @ weight.T, (x + noise) @ weight.T, noise)
    singular = torch.linalg.svdvals(weight)
    assert ratio.shape == (500,)
    assert ratio.max() <= singular[0]
    assert ratio.min() >= singular[-1]
    torch.testing.assert_close(
        lipschitz_ratio(x, x + noise, noise), torch.ones(500, dtype=torch.float64)
    )


@pytest.mark.parametrize("sigma", [0.01, 3.0])
def test_of_a_scalar_input_it_is_the_slope_whatever_the_noise(sigma, forget):
    task = ClassificationTask(nn.Linear(1, 4)).double()
    batch = {
        "input": torch.randn(9, 1, dtype=torch.float64),
        "target": torch.zeros(9, dtype=torch.long),
        "index": torch.arange(9),
    }
    found = lipschitz(attached(task, sigma=sigma, n_samples=3), batch)
    torch.testing.assert_close(found, torch.linalg.vector_norm(task.network.weight))


def test_gradient_flows_through_the_clean_outputs_alone(forget):
    """At f(x) = w x with one noisy copy the gradient is −x sign(ξ) / |ξ|, not sign(w)."""
    task = ClassificationTask(nn.Linear(1, 1, bias=False)).double()
    batch = {
        "input": torch.tensor([[2.0]], dtype=torch.float64),
        "target": torch.zeros(1, dtype=torch.long),
        "index": torch.tensor([5]),
    }
    strategy = attached(task, sigma=0.5, n_samples=1)
    noise = 0.5 * torch.randn(1, generator=strategy._generator(5)).double()
    (found,) = torch.autograd.grad(lipschitz(strategy, batch), [task.network.weight])
    expected = -task.network.weight.sign() * 2.0 * noise.sign() / noise.abs()
    torch.testing.assert_close(found, expected)


def test_noise_of_a_sample_does_not_depend_on_its_batch(tiny, forget):
    strategy = attached(tiny.task.eval())
    alone = [lipschitz(strategy, {k: v[i : i + 1] for k, v in forget.items()}) for i in range(16)]
    torch.testing.assert_close(lipschitz(strategy, forget), torch.stack(alone).mean())
    assert lipschitz(attached(tiny.task, step=1), forget) != lipschitz(strategy, forget)
    assert lipschitz(attached(tiny.task, seed=4), forget) != lipschitz(strategy, forget)


def test_padding_counts_for_nothing(tiny, forget):
    if tiny.name == "images":
        pytest.skip("images have no padding")
    strategy = attached(tiny.task.eval())
    before = lipschitz(strategy, forget)
    row = next(i for i, m in enumerate(forget["attention_mask"]) if m.sum() < 7)
    changed = forget["input_ids"].clone()
    changed[row, -1] = 9
    torch.testing.assert_close(lipschitz(strategy, {**forget, "input_ids": changed}), before)


def test_sees_forget_samples_only_and_leaves_statistics_alone(tiny, fit):
    class Seen(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert batch["retain"] is None
            assert not pl_module.task.training

    strategy = fit(JiT(copy.deepcopy(tiny.task)), tiny.data(), callbacks=[Seen()])
    buffers = dict(strategy.task.network.named_buffers())
    for name, value in tiny.task.network.named_buffers():
        assert torch.equal(buffers[name], value), name


@pytest.mark.parametrize(("name", "value"), [("sigma", 0.0), ("n_samples", 0)])
def test_refuses_to_measure_without_noise(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value}"):
        JiT(ClassificationTask(nn.Linear(2, 2)), **{name: value})


def test_on_digits_it_costs_the_class_more_than_the_rest(digits, fit):
    """On a network this small what is flattened around the threes is flatter for others too."""
    strategy = JiT(copy.deepcopy(digits.original), lambda p: torch.optim.SGD(p, lr=1.0), sigma=0.5)
    found = digits.measure(fit(strategy, digits.data(), max_epochs=1))
    assert found["forget"] < digits.before["forget"] - 0.4, found
    assert found["retain"] > digits.before["retain"] - 0.1, found
