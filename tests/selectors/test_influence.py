import copy

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn
from torch.func import functional_call, hessian, jacrev

from erasus_pl.linalg import (
    CurvatureError,
    PerSampleGradients,
    flatten,
    gauss_newton_vector_product,
    trainable_parameters,
    unflatten,
)
from erasus_pl.selectors import Influence
from erasus_pl.selectors._rows import sampled_loss
from erasus_pl.selectors.influence import removal_influence
from erasus_pl.tasks import Task

DECAY = 0.02


def losses(outputs, batch):
    return F.cross_entropy(outputs, batch["target"], reduction="none")


class Reads(nn.Module):
    """Takes a batch where the network takes its input."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, batch):
        return self.network(batch["input"])


def data(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(3, (n,), generator=generator)
    centers = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, -1], [0, 0, 1, 0]], dtype=torch.float64)
    noise = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return {"input": centers[target] + noise, "target": target}


def cut(batch, size):
    n = len(batch["target"])
    return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, n, size)]


def train(network, batch, weights=None):
    """To the minimum of the mean loss plus ``DECAY / 2 * ||theta||^2``, by L-BFGS."""
    weights = torch.ones(len(batch["target"])) if weights is None else weights
    optimizer = torch.optim.LBFGS(
        network.parameters(), max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        value = (losses(network(batch["input"]), batch) * weights).sum() / len(weights)
        value = value + DECAY / 2 * sum(p.square().sum() for p in network.parameters())
        value.backward()
        return value

    optimizer.step(closure)
    optimizer.zero_grad()
    return network


def exact(network, samples, target, training, curvature, damping):
    """The same scores from the whole matrix and its inverse, a sample at a time."""
    parameters = trainable_parameters(network)
    flat = flatten(parameters).detach()

    def outputs(vector, batch):
        return functional_call(network, unflatten(vector, parameters), (batch,))

    if curvature == "hessian":
        matrix = hessian(lambda v: losses(outputs(v, training), training).mean())(flat)
    else:
        jacobian = jacrev(lambda v: outputs(v, training))(flat)
        p = network(training).detach().softmax(1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        matrix = torch.einsum("ncp,ncd,ndq->pq", jacobian, inner, jacobian) / len(p)
    matrix = matrix + damping * torch.eye(len(flat), dtype=flat.dtype)
    slope = torch.func.grad(lambda v: losses(outputs(v, target), target).mean())(flat)
    solved = torch.linalg.inv(matrix) @ slope
    each = jacrev(lambda v: losses(outputs(v, samples), samples))(flat)
    return each @ solved


def approximate(network, samples, target, training, **options):
    return removal_influence(
        network, lambda b: network(b["input"]), losses, cut(samples, 7), cut(target, 8),
        cut(training, 16), **options,
    )  # fmt: skip


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_against_the_exact_inverse(curvature):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    training, target = data(60), data(30, 1)
    train(network, training)
    samples = {k: v[:25] for k, v in training.items()}
    truth = exact(Reads(network), samples, target, training, curvature, DECAY)
    found = approximate(
        network, samples, target, training, curvature=curvature, damping=DECAY, tolerance=1e-10
    )
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-9)
    loose = approximate(network, samples, target, training, curvature=curvature, damping=DECAY)
    assert spearmanr(loose, truth).statistic >= 0.99


def test_it_predicts_what_retraining_without_a_sample_does():
    torch.manual_seed(0)
    n = 600
    training, target = data(n), data(40, 1)
    network = train(nn.Linear(4, 3).double(), training)
    before = losses(network(target["input"]), target).mean().item()
    changes = []
    for i in range(20):
        weights = torch.ones(n, dtype=torch.float64)
        weights[i] = 0
        left_out = train(copy.deepcopy(network), training, weights)
        changes.append(losses(left_out(target["input"]), target).mean().item() - before)
    changes = torch.tensor(changes, dtype=torch.float64)
    samples = {k: v[:20] for k, v in training.items()}
    scores = approximate(network, samples, target, training, damping=DECAY, tolerance=1e-8)
    assert spearmanr(scores, changes).statistic >= 0.99
    assert (scores / n - changes).norm() < 0.1 * changes.norm()


def test_a_batch_is_no_sample():
    torch.manual_seed(0)
    training = data(60)
    network = train(nn.Linear(4, 3).double(), training)
    scores = approximate(network, training, training, training)
    assert scores.shape == (60,)
    assert scores.unique().numel() == 60


def test_negative_curvature_is_refused():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    training = data(60)
    options = {"curvature": "hessian", "damping": 0.0, "tolerance": 1e-10}
    with pytest.raises(CurvatureError, match=r"raise it above .* Gauss-Newton"):
        approximate(network, training, training, training, **options)
    assert approximate(network, training, training, training).isfinite().all()


def test_a_solution_short_of_the_tolerance_is_said():
    training = data(60)
    network = nn.Linear(4, 3).double()
    with pytest.warns(UserWarning, match="raise `max_iterations` or `damping`"):
        approximate(network, training, training, training, max_iterations=1, tolerance=1e-8)


@pytest.mark.parametrize("target", ["forget", "retain", "test", "holdout"])
@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian"])
def test_the_selector_on_real_splits(fit, modality, target, curvature):
    damping = 0.1 if curvature == "gauss_newton" else 5.0
    found = []

    class Spy(Influence):
        def scores(self, strategy, dataset):
            found.append(super().scores(strategy, dataset))
            return found[-1]

    selector = Spy(k=9, target=target, curvature=curvature, damping=damping, tolerance=1e-8)
    run = fit(selector, copy.deepcopy(modality.task), modality.columns, batch_size=32)
    task, data = copy.deepcopy(modality.task).eval(), run.data
    forget, whole, followed = (_joined(data, name) for name in ("forget", "train", target))
    if modality.name == "text":  # too wide for a matrix
        truth = removal_influence(
            task, task, task.per_sample_loss, [forget], [followed], [whole], curvature, damping,
            1e-8,
        )  # fmt: skip
    else:
        truth = exact(task, forget, followed, whole, curvature, damping)
    torch.testing.assert_close(found[0], truth, rtol=1e-5, atol=1e-7)
    assert set(run.picked.tolist()) == set(truth.topk(9).indices.tolist())


def _joined(data, name):
    """A whole set as one batch."""
    data.batch_size = 200
    return next(iter(data.sweep(getattr(data, f"{name}_set"))))


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_the_exact_solver_and_arnoldi_to_the_end(curvature):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    training, target = data(60), data(30, 1)
    train(network, training)
    truth = exact(Reads(network), training, target, training, curvature, DECAY)
    for solver in ({"solver": "exact"}, {"solver": "arnoldi", "max_iterations": 51}):
        found = approximate(
            network, training, target, training, curvature=curvature, damping=DECAY, **solver
        )
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-9)


# Ranks agree the less, the weaker the damping: at a tenth of it datainf is at 0.6.
AGREES = {"cg": 0.999, "lissa": 0.99, "arnoldi": 0.98, "ekfac": 0.9, "datainf": 0.85}


@pytest.mark.parametrize("solver", AGREES)
def test_the_approximations_rank_as_the_exact_inverse_does(solver):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    training = data(300)
    train(network, training)
    samples = {k: v[:100] for k, v in training.items()}
    options = {"max_iterations": 20} if solver == "arnoldi" else {}
    options |= {"max_iterations": 1500} if solver == "lissa" else {}
    truth, found = (
        approximate(network, samples, samples, training, damping=0.1, solver=name, **given)
        for name, given in (("exact", {}), (solver, options))
    )
    assert AGREES[solver] <= spearmanr(found, truth).statistic
    if solver in ("cg", "lissa"):
        assert (found - truth).norm() < 0.05 * truth.norm()


def spied(fit, modality, size=32, **options):
    found = []

    class Spy(Influence):
        def scores(self, strategy, dataset):
            found.append(super().scores(strategy, dataset))
            return found[-1]

    run = fit(Spy(k=9, **options), copy.deepcopy(modality.task), modality.columns, batch_size=size)
    return found[0], run


SOLVERS = {
    "exact": {"samples": 12}, "lissa": {"max_iterations": 20, "part": 25, "tolerance": 1.0},
    "arnoldi": {"max_iterations": 15}, "ekfac": {}, "datainf": {},
}  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_on_either_modality_whatever_the_batches(fit, modality, solver):
    if solver == "exact" and modality.name == "text":
        pytest.skip("a product for each of its parameters takes minutes")
    scores, run = spied(fit, modality, solver=solver, damping=1.0, **SOLVERS[solver])
    assert scores.shape == (60,)
    assert scores.unique().numel() == 60
    assert set(run.picked.tolist()) == set(scores.topk(9).indices.tolist())
    again, _ = spied(fit, modality, 7, solver=solver, damping=1.0, **SOLVERS[solver])
    torch.testing.assert_close(again, scores, rtol=1e-7, atol=1e-12)


def test_labels_drawn_from_the_model_make_the_gauss_newton_matrix(modality):
    """Over many draws; of a sequence, whose loss is a mean over its labels, too."""
    task = modality.task.eval()
    batch = {k: v[:30] for k, v in modality.columns.items()} | {"index": torch.arange(30)}
    gradients = PerSampleGradients(task, lambda b: sampled_loss(task, b, seed))
    parameters = gradients.parameters
    names = [name for name in parameters if parameters[name].numel() < 100][-2:]
    total, draws = 0, 200
    for seed in range(draws):  # noqa: B007 - the loss reads it
        made = gradients.gradients(batch)
        rows = torch.cat([made[name].flatten(1) for name in names], 1)
        total = total + rows.T @ rows / 30 / draws
    sizes = {name: p.numel() for name, p in parameters.items()}
    starts = dict(zip(sizes, torch.tensor([0, *sizes.values()]).cumsum(0).tolist(), strict=False))
    places = torch.cat([starts[n] + torch.arange(sizes[n]) for n in names])
    columns = []
    for place in places.tolist():
        unit = torch.zeros(sum(sizes.values()), dtype=torch.float64)
        unit[place] = 1
        columns.append(
            gauss_newton_vector_product(task, task, task.per_sample_loss, [batch], unit)[places]
        )
    truth = torch.stack(columns)
    assert (total - truth).norm() < 0.1 * truth.norm()


@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_the_fisher_needs_a_softmax_to_draw_from(fit, modality):
    task = Task(modality.task.network, loss=lambda outputs, _: outputs.square().sum(1))
    with pytest.raises(TypeError, match="use `fisher: empirical`"):
        fit(Influence(k=2, solver="ekfac"), task, modality.columns)
    selector = Influence(k=2, solver="ekfac", fisher="empirical")
    assert len(fit(selector, task, modality.columns).picked) == 2


@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_a_sample_that_is_not_finite_is_named(fit, modality):
    columns = {name: column.clone() for name, column in modality.columns.items()}
    columns["input"][17] = torch.nan
    with pytest.raises(ValueError, match="sample 17 of the training data"):
        fit(Influence(k=3, target="test"), modality.task, columns, batch_size=16)


@pytest.mark.parametrize(
    ("solver", "name", "value"),
    [
        ("exact", "tolerance", 0.1), ("ekfac", "tolerance", 0.1), ("datainf", "max_iterations", 9),
        ("cg", "rank", 3), ("cg", "part", 3), ("arnoldi", "part", 3), ("cg", "fisher", "sampled"),
        ("datainf", "fisher", "empirical"),
    ],
)  # fmt: skip
def test_what_belongs_to_another_solver(solver, name, value):
    with pytest.raises(ValueError, match=f"`{name}` belongs to solver .*got solver '{solver}'"):
        Influence(k=1, solver=solver, **{name: value})


@pytest.mark.parametrize("solver", ["ekfac", "datainf"])
def test_a_fisher_has_no_hessian(solver):
    with pytest.raises(ValueError, match="`curvature` must be 'gauss_newton' for solver"):
        Influence(k=1, solver=solver, curvature="hessian")
    with pytest.raises(ValueError, match="`damping` must be above 0 for solver"):
        Influence(k=1, solver=solver, damping=0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target", "train"), ("curvature", "fisher"), ("damping", -1.0), ("samples", 0),
        ("max_iterations", 0), ("tolerance", 0.0), ("solver", "newton"),
    ],
)  # fmt: skip
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got"):
        Influence(k=1, **{name: value})
