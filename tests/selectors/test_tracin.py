import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from erasus_pl.callbacks import WeightHistory
from erasus_pl.evaluation.gold import train_task
from erasus_pl.selectors import GradNorm, TracIn
from erasus_pl.selectors.tracin import traced
from erasus_pl.tasks import ClassificationTask
from tests.selectors.conftest import Data, images

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def problem(network=None):
    torch.manual_seed(0)
    x, y = torch.randn(30, 4).double(), torch.randint(3, (30,))
    return network or nn.Linear(4, 3).double(), [{"input": x[i], "target": y[i]} for i in range(30)]


def batch_of(samples):
    return {k: torch.stack([s[k] for s in samples]) for k in samples[0]}


def loss_of(network):
    return lambda b: F.cross_entropy(network(b["input"]), b["target"], reduction="none")


def descend(eta, target):
    """Plain gradient descent, a sample a step; what TracIn says of it and what it did."""
    network, samples = problem()
    losses, followed = loss_of(network), batch_of(target(samples))
    rates = dict.fromkeys(dict(network.named_parameters()), eta)
    before, said = losses(followed).mean().item(), torch.zeros(30, dtype=torch.float64)
    for i in torch.randperm(20).repeat(3).tolist():
        one = batch_of([samples[i]])
        said[i] += traced(network, losses, rates, [one], [followed])[0]
        slopes = torch.autograd.grad(losses(one).sum(), list(network.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(network.parameters(), slopes, strict=True):
                parameter -= eta * slope
    return before - losses(followed).mean().item(), float(said.sum())


@pytest.mark.parametrize("target", [lambda s: s[20:21], lambda s: s[20:], lambda s: s[:20]])
def test_over_every_step_it_is_what_the_loss_fell_by(target):
    """To first order: the error falls with the square of the learning rate."""
    errors = []
    for eta in (1e-2, 1e-3, 1e-4):
        fell, said = descend(eta, target)
        errors.append(abs(said - fell))
        assert errors[-1] < 30 * eta * abs(fell)
    assert errors[1] < errors[0] / 30
    assert errors[2] < errors[1] / 30
    assert errors[2] < 0.01 * abs(fell)


@pytest.mark.parametrize("tied", [False, True])
def test_each_parameter_has_its_own_rate(tied):
    network, samples = problem(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double())
    losses, batch = loss_of(network), batch_of(samples)
    rates = {n: 0.1 if tied else 0.1 * i for i, (n, _) in enumerate(network.named_parameters())}
    rows = [
        torch.autograd.grad(one, list(network.parameters()), retain_graph=True)
        for one in losses(batch)
    ]
    along = torch.autograd.grad(losses(batch)[5:9].mean(), list(network.parameters()))
    eta = list(rates.values())
    for target, other in (([batch_of(samples[5:9])], along), (None, None)):
        pairs = [zip(eta, row, other or row, strict=True) for row in rows]
        truth = torch.stack([sum(e * (a * b).sum() for e, a, b in pair) for pair in pairs])
        torch.testing.assert_close(traced(network, losses, rates, [batch], target), truth)


class Halved(torch.optim.lr_scheduler.LambdaLR):
    def __init__(self, optimizer):
        super().__init__(optimizer, lambda epoch: 0.5**epoch)


def descent(parameters):
    weights, biases = [], []
    for p in parameters:
        (weights if p.dim() > 1 else biases).append(p)
    return torch.optim.SGD([{"params": weights}, {"params": biases, "lr": 0.02}], lr=0.1)


def trained(tmp_path, epochs=7, count=3):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 4))
    task = ClassificationTask(network.double(), optimizer=descent, scheduler=Halved, epochs=epochs)
    path = tmp_path / "weights.pt"
    seen = []

    class Watch(WeightHistory):
        def on_train_epoch_end(self, trainer, pl_module):
            state = {k: v.clone() for k, v in pl_module.network.state_dict().items()}
            seen.append((state, 0.5**trainer.current_epoch))

    train_task(
        task, Data(images(), batch_size=16), "train", 0, QUIET,
        [Watch(None), WeightHistory(str(path), count)],
    )  # fmt: skip
    return task, path, seen


def test_the_record_holds_weights_and_rates_of_evenly_spaced_epochs(tmp_path):
    task, path, seen = trained(tmp_path)
    content = torch.load(path, weights_only=True)["content"]
    assert content["epochs"].tolist() == [3, 5, 7]
    for t, epoch in enumerate(content["epochs"].tolist()):
        state, decay = seen[epoch - 1]
        for name, value in state.items():
            assert torch.equal(content[f"weights.{name}"][t], value)
        expected = [0.1 * decay if p.dim() > 1 else 0.02 * decay for p in task.network.parameters()]
        assert torch.allclose(content["rates"][t], torch.tensor(expected))
    for name, value in task.network.state_dict().items():
        assert torch.equal(content[f"weights.{name}"][-1], value)


@pytest.mark.parametrize(("epochs", "count"), [(1, 5), (4, 4), (4, 9), (9, 1)])
def test_as_many_epochs_as_there_are(tmp_path, epochs, count):
    found = torch.load(trained(tmp_path, epochs, count)[1], weights_only=True)["content"]["epochs"]
    assert len(found) == min(epochs, count)
    assert found[-1] == epochs


@pytest.mark.parametrize("target", ["self", "forget", "retain", "test", "holdout"])
def test_the_scores_against_brute_force(fit, tmp_path, target):
    task, path, _ = trained(tmp_path)
    content = torch.load(path, weights_only=True)["content"]
    found = []

    class Spy(TracIn):
        def scores(self, strategy, dataset):
            found.append(super().scores(strategy, dataset))
            return found[-1]

    selector = Spy(k=9, target=target, checkpoints=3, record=str(path))
    run = fit(selector, copy.deepcopy(task), images(), batch_size=16)
    network = copy.deepcopy(task).network.eval()
    parameters = list(network.parameters())

    def slopes(value):
        return torch.autograd.grad(value, parameters, retain_graph=True)

    run.data.batch_size = 200
    (whole,) = run.data.sweep(run.data.forget_set)
    followed = whole
    if target not in ("self", "forget"):
        (followed,) = run.data.sweep(getattr(run.data, f"{target}_set"))
    truth = torch.zeros(60, dtype=torch.float64)
    for t in range(3):
        network.load_state_dict({k: content[f"weights.{k}"][t] for k in network.state_dict()})
        losses = loss_of(network)
        other = slopes(losses(followed).mean())
        for i, one in enumerate(losses(whole)):
            own = slopes(one)
            pairs = zip(content["rates"][t], own, own if target == "self" else other, strict=True)
            truth[i] += sum(rate * (a * b).sum() for rate, a, b in pairs).item()
    torch.testing.assert_close(found[0], truth)
    assert set(run.picked.tolist()) == set(truth.topk(9).indices.tolist())


def test_at_one_checkpoint_it_is_the_squared_gradient_norm_and_over_more_it_is_not(fit, tmp_path):
    columns, found = images(), {}

    def spied(kind, **options):
        class Spy(kind):
            def scores(self, strategy, dataset):
                found["scores"] = super().scores(strategy, dataset)
                return found["scores"]

        fit(Spy(k=9, **options), copy.deepcopy(task), columns)
        return found["scores"]

    task, path, _ = trained(tmp_path, 7, 1)
    for parameter in list(task.network.parameters())[1:]:
        parameter.requires_grad_(False)
    norms = spied(GradNorm)
    one = spied(TracIn, checkpoints=1, record=str(path))
    rate = 0.1 * 0.5**6
    torch.testing.assert_close(one, rate * norms.square(), rtol=1e-6, atol=0)
    _, path, _ = trained(tmp_path, 7, 7)
    many = spied(TracIn, checkpoints=7, record=str(path))
    assert not torch.equal(many.argsort(), norms.argsort())


def test_without_a_record_it_says_what_to_do(tmp_path):
    from lightning.pytorch import Trainer

    from erasus_pl.strategies import GradientAscent

    trainer = Trainer(**QUIET, logger=False, max_steps=0, callbacks=[TracIn(k=3)])
    task = ClassificationTask(nn.Linear(12, 4).double())
    with pytest.raises(ValueError, match=r"`record`: TracIn needs a record .*WeightHistory"):
        trainer.fit(GradientAscent(task), Data(images()))


def test_records_that_do_not_fit_are_refused(fit, tmp_path):
    task, path, _ = trained(tmp_path)
    with pytest.raises(ValueError, match=r"written by WeightHistory.*'count': 3.*'count': 5"):
        fit(TracIn(k=3, record=str(path)), task, images())
    other = ClassificationTask(nn.Linear(12, 4).double())
    with (
        pytest.warns(UserWarning, match="other weights"),
        pytest.raises(ValueError, match="its weights do not fit the network"),
    ):
        fit(TracIn(k=3, checkpoints=3, record=str(path)), other, images())


def test_a_failure_puts_the_weights_back(fit, tmp_path):
    task, path, _ = trained(tmp_path)
    before = {k: v.clone() for k, v in task.network.state_dict().items()}

    def fails(*_):
        raise ZeroDivisionError

    task.per_sample_loss = fails
    with pytest.raises(ZeroDivisionError):
        fit(TracIn(k=3, checkpoints=3, record=str(path)), task, images())
    assert all(torch.equal(before[k], v) for k, v in task.network.state_dict().items())


@pytest.mark.parametrize("target", ["self", "forget"])
@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_a_sample_that_is_not_finite_is_named(fit, modality, target):
    """In a pass after a training that did not see it so."""
    columns = {name: column.clone() for name, column in modality.columns.items()}
    selector = TracIn(k=3, target=target)
    fit(selector, copy.deepcopy(modality.task), modality.columns)
    columns["input"][17] = torch.nan
    content = torch.load(selector.record, weights_only=True)
    data = Data(columns)
    data.setup("fit")
    content["about"]["data"] = data.fingerprint
    torch.save(content, selector.record)
    with pytest.raises(ValueError, match="sample 17 of the training data"):
        fit(TracIn(k=3, target=target, record=selector.record), modality.task, columns)


@pytest.mark.parametrize(("name", "value"), [("target", "train"), ("checkpoints", 0)])
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got"):
        TracIn(k=1, **{name: value})
    with pytest.raises(ValueError, match=r"`count` must be at least 1, got 0"):
        WeightHistory(None, 0)
