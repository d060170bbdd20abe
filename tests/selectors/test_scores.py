import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from erasus_pl.linalg import PerSampleGradients
from erasus_pl.networks import MLP, ResNet18, TinyLlama
from erasus_pl.selectors import EL2N, GradNorm, Random
from erasus_pl.selectors.el2n import el2n
from erasus_pl.selectors.random import sample
from erasus_pl.tasks import CausalLMTask, ClassificationTask, Task

FORGOTTEN = 60


def test_el2n_is_the_norm_of_the_gradient_by_the_logits():
    logits = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(4, (9,))
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), logits)
    torch.testing.assert_close(el2n(logits.detach().softmax(1), target), gradient.norm(dim=1))


def test_el2n_of_certain_predictions():
    certain = torch.tensor([[1.0, 0, 0], [1.0, 0, 0]])
    torch.testing.assert_close(el2n(certain, torch.tensor([0, 2])), torch.tensor([0.0, 2**0.5]))


def rows(columns):
    for i in range(FORGOTTEN):
        yield {name: column[i : i + 1] for name, column in columns.items()}


def error(task, row):
    """EL2N of one sample, token by token."""
    logits = task(row)[0].detach()
    if "labels" not in row:
        return (logits.softmax(-1) - F.one_hot(row["target"][0], logits.shape[-1])).norm()
    found = []
    for position, label in enumerate(row["labels"][0, 1:].tolist()):
        if label != -100:
            p = logits[position].softmax(-1)
            p[label] -= 1
            found.append(p.norm())
    return torch.stack(found).mean()


def gradient_norm(task, row):
    parameters = [p for p in task.parameters() if p.requires_grad]
    found = torch.autograd.grad(task.per_sample_loss(task(row), row).sum(), parameters)
    return torch.cat([g.reshape(-1) for g in found]).norm()


@pytest.mark.parametrize(("kind", "by_hand"), [(EL2N, error), (GradNorm, gradient_norm)])
def test_the_pick_is_that_of_a_loop_over_samples(fit, modality, kind, by_hand):
    task = copy.deepcopy(modality.task).eval()
    truth = torch.stack([by_hand(task, row) for row in rows(modality.columns)])
    scores = []

    class Spy(kind):
        def scores(self, strategy, dataset):
            scores.append(super().scores(strategy, dataset))
            return scores[-1]

    picked = fit(Spy(k=11), copy.deepcopy(modality.task), modality.columns, batch_size=16).picked
    torch.testing.assert_close(scores[0], truth)
    assert set(picked.tolist()) == set(truth.topk(11).indices.tolist())


def test_frozen_parameters_do_not_count(fit, modality):
    task = copy.deepcopy(modality.task)
    for parameter in list(task.network.parameters())[:-2]:
        parameter.requires_grad_(False)
    frozen = copy.deepcopy(task).eval()
    truth = torch.stack([gradient_norm(frozen, row) for row in rows(modality.columns)])
    picked = fit(GradNorm(k=11), task, modality.columns, batch_size=16).picked
    assert set(picked.tolist()) == set(truth.topk(11).indices.tolist())


@pytest.mark.parametrize(
    ("task", "batch"),
    [
        (lambda: ClassificationTask(MLP(inputs=6, hidden=[5], outputs=3)), (6,)),
        (lambda: ClassificationTask(ResNet18(channels=1, outputs=3, width=8)), (1, 8, 8)),
        (lambda: CausalLMTask(TinyLlama(vocabulary=9, width=8, layers=2)), None),
    ],
)
def test_the_networks_of_this_project_take_the_fast_route(task, batch):
    task = task().eval()
    ids = torch.randint(9, (5, 5))
    batch = (
        {"input_ids": ids, "labels": ids}
        if batch is None
        else {"input": torch.randn(5, *batch), "target": torch.randint(3, (5,))}
    )
    gradients = PerSampleGradients(task, lambda b: task.per_sample_loss(task(b), b))
    fast = gradients.norms(batch)
    assert gradients.method == "ghost", gradients.reason
    slow = PerSampleGradients(task, lambda b: task.per_sample_loss(task(b), b), "loop")
    torch.testing.assert_close(fast, slow.norms(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_el2n_needs_targets(fit, modality):
    task = Task.from_module(nn.Linear(12, 4).double(), loss=nn.MSELoss())
    with pytest.raises(TypeError, match="EL2N needs a task with"):
        fit(EL2N(k=3), task, modality.columns)


def test_a_sample_is_uniform_and_a_function_of_its_seed():
    assert torch.equal(sample(50, 10, 3), sample(50, 10, 3))
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[sample(10, 3, seed)] += 1
    expected = torch.full((10,), 600.0)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 27.9  # 99.9 % of the chi-square distribution with 9 degrees of freedom
    assert Random(fraction=0.25).size(10) == 2
