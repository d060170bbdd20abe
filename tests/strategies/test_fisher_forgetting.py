"""The exponent against the minimum it comes from, and the whole edit against brute force."""

import copy
import warnings

import pytest
import torch
from torch import nn

from erasus_pl.strategies import FisherForgetting, NoEffectWarning
from erasus_pl.strategies.fisher_forgetting import scrubbing_std
from erasus_pl.tasks import ClassificationTask


def test_noise_is_the_minimum_of_what_it_costs_and_what_it_leaves():
    """Descend on ½ tr(FΣ) + ½ α tr(Σ⁻¹) over Σ = diag(exp(2s))."""
    fisher = torch.tensor([1e-3, 0.2, 1.0, 30.0], dtype=torch.float64)
    alpha = 0.05
    log_std = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_std], max_iter=200, line_search_fn="strong_wolfe")

    def cost():
        optimizer.zero_grad()
        variance = (2 * log_std).exp()
        total = (fisher * variance).sum() / 2 + alpha * (1 / variance).sum() / 2
        total.backward()
        return total

    optimizer.step(cost)
    torch.testing.assert_close(
        log_std.detach().exp(), scrubbing_std(fisher, alpha), rtol=1e-4, atol=0
    )
    published = (alpha / fisher).sqrt()
    assert not torch.allclose(log_std.detach().exp(), published, rtol=0.1)


def test_floor_keeps_unused_weights_finite():
    assert scrubbing_std(torch.tensor([0.0, 16.0]), 1.0, 1.0).tolist() == [1.0, 0.5]
    assert scrubbing_std(torch.tensor([0.0]), 0.0, 1.0).item() == 0


@pytest.mark.parametrize("batch_size", [1, 7])
def test_equals_brute_force_whatever_the_batch_size(batch_size, tiny, fit):
    """Noise drawn from the data's seed, scaled by E_x Σ_y p(y|x) (∂ log p(y|x))²."""
    if tiny.name == "text":
        pytest.skip("labels of sequences are drawn")
    data, task = tiny.data(), copy.deepcopy(tiny.task).double()
    data.columns["input"] = data.columns["input"].double()
    data.batch_size = batch_size
    strategy = fit(FisherForgetting(copy.deepcopy(task), alpha=1e-3, floor=1e-6), data)
    task.eval()
    data.batch_size = 1
    parameters = list(task.parameters())
    fisher = [torch.zeros_like(p) for p in parameters]
    rows = list(data.sweep(data.retain_set))
    for row in rows:
        logs = task(row)[0].log_softmax(0)
        for log in logs:
            for f, g in zip(
                fisher, torch.autograd.grad(log, parameters, retain_graph=True), strict=True
            ):
                f += log.exp().detach() * g.square() / len(rows)
    generator = torch.Generator().manual_seed(5)
    for found, before, f in zip(strategy.task.parameters(), parameters, fisher, strict=True):
        n = torch.randn(before.shape, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(found, before + 1e-3**0.25 * f.clamp(min=1e-6) ** -0.25 * n)


def test_sequences_are_scored_by_the_labels_drawn_for_them(tiny):
    if tiny.name == "images":
        pytest.skip("classes are summed over")
    data, task = tiny.data(), copy.deepcopy(tiny.task).eval()
    data.setup("validate")
    batch = next(iter(data.sweep(data.retain_set)))
    strategy = FisherForgetting(task)
    ((drawn, probability),) = strategy._labels(batch)
    found = strategy._losses(batch | {"drawn": drawn, "probability": probability})
    logs = task(batch).log_softmax(-1)
    for i, loss in enumerate(found):
        length = int(batch["attention_mask"][i].sum())
        by_hand = -sum(logs[i, t, drawn[i, t]] for t in range(length - 1))
        torch.testing.assert_close(loss, by_hand)


def test_labels_of_sequences_follow_the_model():
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.tensor([0.1, 0.6, 0.3]).log().expand(len(x), 5, 3)

    torch.manual_seed(0)
    strategy = FisherForgetting(ClassificationTask(Fixed()))
    ((drawn, _),) = strategy._labels({"input": torch.zeros(4000), "index": torch.arange(4000)})
    shares = torch.bincount(drawn.flatten()) / drawn.numel()
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3]), rtol=0, atol=0.01)


def test_without_noise_nothing_changes(tiny, fit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        strategy = fit(FisherForgetting(copy.deepcopy(tiny.task), alpha=0.0), tiny.data())
    assert any(w.category is NoEffectWarning for w in caught)
    for found, before in zip(strategy.task.parameters(), tiny.task.parameters(), strict=True):
        assert torch.equal(found, before)


@pytest.mark.parametrize(
    ("name", "value", "range_"), [("alpha", -1, "at least 0"), ("floor", 0, "above 0")]
)
def test_refuses_constants_out_of_range(name, value, range_, tiny):
    with pytest.raises(ValueError, match=f"`{name}` must be {range_}, got {value}"):
        FisherForgetting(tiny.task, **{name: value})


def test_noise_that_forgets_a_class_breaks_the_rest(digits, fit):
    """No α in between does better: a report must not hide that."""
    faint, strong = (
        digits.measure(
            fit(FisherForgetting(copy.deepcopy(digits.original), alpha=a), digits.data())
        )
        for a in (1e-11, 1e-8)
    )
    assert faint["forget"] > 0.95, faint
    assert faint["retain"] > 0.98, faint
    assert strong["forget"] < 0.1, strong
    assert strong["retain"] < 0.5, strong
