import copy
import math
from itertools import product

import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch import nn

from erasus_pl.selectors import Uncertainty
from erasus_pl.selectors.uncertainty import _dropout, decompose, entropy, margin
from erasus_pl.tasks import ClassificationTask

MEASURES = ["entropy", "margin", "aleatoric", "epistemic"]


def rows(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).softmax(-1)


def test_entropy_is_that_of_scipy():
    p = rows(20, 5)
    torch.testing.assert_close(entropy(p), torch.from_numpy(scipy_entropy(p.numpy(), axis=1)))
    assert entropy(torch.tensor([0.0, 1.0, 0.0])) == 0


def test_margin_of_the_two_likeliest():
    p = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(margin(p), torch.tensor([0.2, 1.0, 0.0]))


def test_the_epistemic_part_is_the_mutual_information():
    """Of prediction and draw, from their joint distribution."""
    p = rows(7, 9, 4)
    joint = p / 7
    each = joint.sum(2, keepdim=True) * joint.sum(0, keepdim=True)
    information = (joint * (joint / each).log()).sum((0, 2))
    aleatoric, epistemic = decompose(p)
    torch.testing.assert_close(epistemic, information)
    torch.testing.assert_close(aleatoric + epistemic, entropy(p.mean(0)))


def test_two_kinds_of_doubt():
    """Draws that each are sure and differ, and draws that all are unsure alike."""
    differ = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    alike = torch.full((2, 1, 2), 0.5)
    assert [float(x) for x in decompose(differ)] == pytest.approx([0, math.log(2)])
    assert [float(x) for x in decompose(alike)] == pytest.approx([math.log(2), 0])


def test_masks_reach_the_exact_posterior():
    """Of three inputs each is kept or dropped: eight networks, with known weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.3), nn.Linear(3, 4)).double().eval()
    x = torch.randn(6, 3, dtype=torch.float64)
    parts, chances = [], []
    for mask in product([0.0, 1.0], repeat=3):
        parts.append(network[1](x * torch.tensor(mask) / 0.7).softmax(1))
        chances.append(math.prod(0.7 if kept else 0.3 for kept in mask))
    chances = torch.tensor(chances, dtype=torch.float64)[:, None]
    parts = torch.stack(parts).detach()
    total = entropy((chances[..., None] * parts).sum(0))
    aleatoric = (chances * entropy(parts)).sum(0)
    draws = []
    with _dropout(network) as generator, torch.no_grad():
        for number in range(4000):
            generator.manual_seed(number)
            draws.append(network(x).softmax(1))
    found = decompose(torch.stack(draws))
    torch.testing.assert_close(found[0], aleatoric, atol=0.02, rtol=0)
    torch.testing.assert_close(found[1], total - aleatoric, atol=0.02, rtol=0)
    assert all(not layer._forward_hooks for layer in network)


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.Dropout2d(0.5)])
def test_samples_of_a_draw_share_the_mask(layer):
    x = torch.ones(3, 6, 4, 4)
    with _dropout(layer.eval()) as generator:
        generator.manual_seed(0)
        out = layer(x)
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    whole = out[0].flatten(1).eq(0).all(1) | out[0].flatten(1).ne(0).all(1)
    assert bool(whole.all()) == isinstance(layer, nn.Dropout2d)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("keep", ["most", "least"])
def test_the_pick_is_that_of_a_loop_over_samples(fit, modality, measure, keep):
    task = copy.deepcopy(modality.task).eval()

    def value(row):
        if measure in ("entropy", "margin"):
            p = task.predictions(task(row), row)[0].softmax(-1)
            return (entropy(p) if measure == "entropy" else 1 - margin(p)).mean()
        draws = []
        with _dropout(task.network) as generator:
            for number in range(5):
                generator.manual_seed(number)
                draws.append(task.predictions(task(row), row)[0].softmax(-1))
        aleatoric, epistemic = decompose(torch.stack(draws))
        return (aleatoric if measure == "aleatoric" else epistemic).mean()

    with torch.no_grad():
        truth = torch.stack(
            [value({n: c[i : i + 1] for n, c in modality.columns.items()}) for i in range(60)]
        )
    selector = Uncertainty(k=9, measure=measure, keep=keep, passes=5)
    picked = fit(selector, modality.task, modality.columns, batch_size=16).picked
    expected = truth.topk(9, largest=keep == "most").indices
    assert set(picked.tolist()) == set(expected.tolist())


@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_without_dropout_it_is_refused(fit, modality):
    task = ClassificationTask(nn.Linear(12, 4).double())
    with pytest.raises(TypeError, match=r"no dropout layer .* use 'entropy' or 'margin'"):
        fit(Uncertainty(k=3, measure="epistemic"), task, modality.columns)


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_the_seed_is_that_of_the_masks(fit, modality, seeds):
    picks = [
        fit(
            Uncertainty(k=20, measure="epistemic", passes=2, seed=seed),
            copy.deepcopy(modality.task), modality.columns,
        ).picked
        for seed in seeds
    ]  # fmt: skip
    assert torch.equal(*picks) == (seeds[0] == seeds[1])


@pytest.mark.parametrize(
    ("name", "value"), [("measure", "variance"), ("keep", "all"), ("passes", 1)]
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got"):
        Uncertainty(k=1, **{name: value})
