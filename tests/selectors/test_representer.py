import copy

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from erasus_pl.selectors import GradNorm, Representer
from erasus_pl.selectors.representer import fit_head, representer_weights


def problem(n=80, d=6, classes=4, soft=False):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(n, d, generator=generator, dtype=torch.float64)
    logits = features @ torch.randn(d, classes, generator=generator, dtype=torch.float64)
    labels = (2 * logits).softmax(1) if soft else F.one_hot(logits.argmax(1), classes).double()
    return features, labels


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("lam", [1.0, 0.003, 1e-5])
def test_the_theorem(soft, lam):
    """The parts of the samples add up to the logits, at seen and at unseen features."""
    features, labels = problem(soft=soft)
    weight = fit_head(features, labels, lam)
    alpha = representer_weights(features, labels, weight, lam)
    points = torch.cat([features, torch.randn(30, 6).double()])
    parts = torch.einsum("nc,nd,td->tnc", alpha, features, points)
    torch.testing.assert_close(parts.sum(1), points @ weight.T, atol=1e-4, rtol=0)


def test_the_weights_are_those_of_the_formula():
    features, labels = problem()
    weight = fit_head(features, labels, 0.01)
    logits = (features @ weight.T).requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), logits)
    alpha = representer_weights(features, labels, weight, 0.01)
    torch.testing.assert_close(alpha, -slope / (2 * 0.01 * 80))


def test_the_fit_is_the_minimum():
    features, labels = problem()
    found = fit_head(features, labels, 0.01)
    weight = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight], max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.T, labels) + 0.01 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(found, weight.detach(), atol=1e-6, rtol=0)


def test_far_from_stationary_the_theorem_is_wrong_and_that_is_told():
    features, labels = problem()
    with pytest.warns(UserWarning, match="fitted to .* raise `lam`"):
        weight = fit_head(features, labels, 1e-5, max_steps=2)
    alpha = representer_weights(features, labels, weight, 1e-5)
    assert not torch.allclose(features @ (alpha.T @ features).T, features @ weight.T, atol=0.1)


def spied(fit, modality, **options):
    found = []

    class Spy(Representer):
        def scores(self, strategy, dataset):
            found.append(super().scores(strategy, dataset))
            return found[-1]

    run = fit(Spy(k=9, **options), copy.deepcopy(modality.task), modality.columns, batch_size=16)
    return found[0], run.data


def rows_of(task, data, name):
    """Features, predictions, labels and owners of a set, sample by sample."""
    data.batch_size = 1
    found = []
    for number, batch in enumerate(data.sweep(getattr(data, f"{name}_set"))):
        with torch.no_grad():
            inputs, outputs = task._head_input(batch), task(batch)
        if "labels" in batch:
            kept = batch["labels"][0, 1:] != -100
            f, o, y = inputs[0, :-1][kept], outputs[0, :-1][kept], batch["labels"][0, 1:][kept]
        else:
            f = torch.cat([inputs, torch.ones(1, 1).double()], 1)
            o, y = outputs, batch["target"]
        found += [(*row, number) for row in zip(f, o.softmax(1), y.tolist(), strict=True)]
    return found


@pytest.mark.parametrize("target", ["self", "forget", "retain", "test", "holdout"])
@pytest.mark.parametrize("labels", ["model", "data"])
def test_the_scores_against_brute_force(fit, modality, target, labels):
    scores, data = spied(fit, modality, target=target, labels=labels)
    task = copy.deepcopy(modality.task).eval()
    forget, retain = rows_of(task, data, "forget"), rows_of(task, data, "retain")
    features = torch.stack([row[0] for row in forget + retain])
    wanted = torch.stack([row[1] for row in forget + retain])
    if labels == "data":
        wanted = F.one_hot(torch.tensor([r[2] for r in forget + retain]), wanted.shape[1]).double()
    weight = fit_head(features, wanted, 0.003)
    followed = forget if target in ("self", "forget") else rows_of(task, data, target)
    truth = torch.zeros(60, dtype=torch.float64)
    for i, (f, _, y, owner) in enumerate(forget):
        alpha = -((weight @ f).softmax(0) - wanted[i]) / (2 * 0.003 * len(features))
        if target == "self":
            truth[owner] += abs(alpha[y]) * f.dot(f)
            continue
        for at, _, label, _ in followed:
            truth[owner] += alpha[label] * f.dot(at) / len(followed)
    torch.testing.assert_close(scores, truth, rtol=1e-5, atol=1e-9)


def test_it_is_no_gradient_norm(fit, modality):
    class Spy(GradNorm):
        def scores(self, strategy, dataset):
            self.found = super().scores(strategy, dataset)
            return self.found

    norms = Spy(k=9)
    fit(norms, copy.deepcopy(modality.task), modality.columns)
    for labels in ("model", "data"):
        scores, _ = spied(fit, modality, labels=labels)
        assert abs(spearmanr(scores, norms.found).statistic) < 0.9


@pytest.mark.parametrize("modality", ["images"], indirect=True)
@pytest.mark.parametrize(
    ("at", "place"), [(17, "17 of the training data"), (63, "63 of the training data")]
)
def test_a_sample_that_is_not_finite_is_named(fit, modality, at, place):
    columns = {name: column.clone() for name, column in modality.columns.items()}
    columns["input"][at] = torch.nan
    with pytest.raises(ValueError, match=f"sample {place}"):
        fit(Representer(k=3), modality.task, columns, batch_size=16)


@pytest.mark.parametrize(
    ("name", "value"), [("target", "train"), ("labels", "true"), ("lam", 0.0), ("samples", 0)]
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got"):
        Representer(k=1, **{name: value})
