"""Distillation from a random teacher on the forget set, from the original on the retain set."""

import copy

import pytest
import torch

from erasus_pl.strategies import BadTeacher
from erasus_pl.strategies.bad_teacher import forget_share


def ready(tiny, fit, **options):
    data = tiny.data()
    strategy = fit(BadTeacher(copy.deepcopy(tiny.task), **options), data, max_steps=0).eval()
    batches = [next(iter(data.sweep(s))) for s in (data.forget_set, data.retain_set)]
    return strategy, *batches


def test_share_makes_the_mean_over_both_sets():
    forget, retain = torch.rand(30, dtype=torch.float64), torch.rand(200, dtype=torch.float64)
    part = retain[:60]  # three tenths
    share = forget_share(30, 200, 0.3)
    both = share * forget.mean() + (1 - share) * part.mean()
    torch.testing.assert_close(both, torch.cat([forget, part]).mean())
    assert forget_share(30, 200, 0.0) == 1.0


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_terms_are_divergences_from_the_teachers(temperature, tiny, fit):
    """KL(teacher ‖ student), summed over classes; neither the reverse nor the mean over classes."""
    strategy, forget, retain = ready(tiny, fit, temperature=temperature, retain_fraction=0.5)
    with torch.no_grad():
        for parameter in strategy.task.parameters():
            parameter.add_(torch.randn_like(parameter))
    terms = strategy.unlearning_losses(forget, retain)
    share = 16 / (16 + 0.5 * 24)

    def kl(p_model, q_model, batch):
        p = torch.softmax(p_model(batch) / temperature, -1)
        q = torch.softmax(q_model(batch) / temperature, -1)
        each = (p * (p.log() - q.log())).sum(-1)
        if tiny.name == "text":
            kept = (batch["labels"][:, 1:] != -100).float()
            each = (each[:, :-1] * kept).sum(1) / kept.sum(1)
        return each.mean()

    for name, teacher, batch, weight in (
        ("forget_incompetent", strategy.incompetent, forget, share),
        ("retain_competent", strategy.original, retain, 1 - share),
    ):
        expected = weight * kl(teacher, strategy.task, batch)
        torch.testing.assert_close(terms[name], expected, rtol=1e-4, atol=1e-6)
        assert not torch.isclose(terms[name], weight * kl(strategy.task, teacher, batch), rtol=1e-3)


def test_the_incompetent_teacher_knows_nothing_and_does_not_change(tiny, fit):
    strategy, *_ = ready(tiny, fit)
    again, *_ = ready(tiny, fit)
    other, *_ = ready(tiny, fit, seed=1)
    weights = dict(strategy.incompetent.named_parameters())
    for name, parameter in tiny.task.named_parameters():
        assert torch.equal(weights[name], again.incompetent.get_parameter(name))
        if parameter.dim() > 1:
            assert not torch.equal(weights[name], parameter), name
            assert not torch.equal(weights[name], other.incompetent.get_parameter(name)), name
    before = copy.deepcopy(strategy.incompetent.state_dict())
    fitted = fit(BadTeacher(tiny.task, optimizer=lambda p: torch.optim.SGD(p, lr=0.1)), tiny.data())
    assert not fitted.incompetent.training
    assert not any(p.requires_grad for p in fitted.incompetent.parameters())
    assert all(torch.equal(v, before[k]) for k, v in fitted.incompetent.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be above 0, got 0.0"),
        ({"retain_fraction": 1.5}, r"`retain_fraction` must be in \[0, 1\], got 1.5"),
    ],
)
def test_refuses(options, message, tiny):
    with pytest.raises(ValueError, match=message):
        BadTeacher(tiny.task, **options)
