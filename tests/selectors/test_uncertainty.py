import copy
import math
from itertools import product

import pytest
import torch
from scipy.stats import entropy as scipy_entropy
from torch import nn

from erasus_pl.selectors import Uncertainty, _posteriors, _trained
from erasus_pl.selectors._posteriors import dropping, laplace_heads, laplace_precision
from erasus_pl.selectors._trained import member_seed
from erasus_pl.selectors.uncertainty import decompose, entropy, margin
from erasus_pl.tasks import ClassificationTask
from erasus_pl.tasks.training import train_task
from tests.selectors.conftest import FORGOTTEN, Data, N
from tests.selectors.test_contract import Keep, Watch

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
    with dropping(network) as generator, torch.no_grad():
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
    with dropping(layer.eval()) as generator:
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
        with dropping(task.network) as generator:
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
    ("name", "value"),
    [
        ("measure", "variance"),
        ("keep", "all"),
        ("passes", 1),
        ("posterior", "swag"),
        ("members", 1),
        ("samples", 0),
        ("prior", 0.0),
        ("prior", float("nan")),
    ],
)
def test_arguments_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got"):
        Uncertainty(k=1, **{name: value})


def scored(fit, modality, task=None, **options):
    """Scores of the forget set, and the run."""
    found = []

    class Spy(Uncertainty):
        def scores(self, strategy, dataset):
            found.append(super().scores(strategy, dataset))
            return found[-1]

    task = copy.deepcopy(modality.task) if task is None else task
    run = fit(Spy(k=9, **options), task, modality.columns, batch_size=16)
    return found[0], run


def batch_of(modality, rows):
    return {n: c[rows] for n, c in modality.columns.items()}


def by_hand(task, modality, networks, measure):
    """A measure of each sample of the forget set, one by one, under draws of the network."""
    values = []
    for i in range(FORGOTTEN):
        batch, draws = batch_of(modality, slice(i, i + 1)), []
        for network in networks:
            other = copy.deepcopy(task)
            other.network = network
            draws.append(other.eval().predictions(other(batch), batch)[0].softmax(-1))
        draws = torch.stack(draws)
        total, parts = entropy(draws.mean(0)), entropy(draws).mean(0)
        values.append(
            {
                "entropy": total,
                "margin": 1 - margin(draws.mean(0)),
                "aleatoric": parts,
                "epistemic": total - parts,
            }[measure].mean()
        )
    return torch.stack(values)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [2**24, 1, 50])
def test_laplace_precision_is_the_hessian_of_the_posterior(bias, chunk, monkeypatch):
    """Of the summed cross-entropy, by whatever labels, and the prior's weight decay."""
    monkeypatch.setattr(_posteriors, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(11, 3, dtype=torch.float64, generator=generator)
    if bias:
        x = torch.cat([x, torch.ones(11, 1, dtype=torch.float64)], 1)
    weight = torch.randn(4, x.shape[1], dtype=torch.float64, generator=generator)
    labels = torch.randint(4, (11,), generator=generator)

    def loss(flat):
        w = flat.view_as(weight)
        summed = nn.functional.cross_entropy(x @ w.T, labels, reduction="sum")
        return 2.5 * summed + 0.7 / 2 * w.square().sum()

    truth = torch.autograd.functional.hessian(loss, weight.flatten())
    found = laplace_precision(x, (x @ weight.T).softmax(1), prior=0.7, scale=2.5)
    torch.testing.assert_close(found, truth)


def test_heads_are_drawn_with_the_inverse_precision():
    x = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    precision = laplace_precision(x, rows(30, 2), prior=1.0)
    mean = torch.arange(6, dtype=torch.float64).view(2, 3)
    heads = laplace_heads(mean, precision, 200_000, seed=1)
    fewer = [laplace_heads(mean, precision, 5, seed) for seed in (1, 1, 2)]
    assert torch.equal(fewer[0], fewer[1])
    assert not torch.equal(fewer[0], fewer[2])
    torch.testing.assert_close(heads.mean(0), mean, atol=0.01, rtol=0)
    torch.testing.assert_close(heads.flatten(1).T.cov(), precision.inverse(), atol=0.01, rtol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_laplace_is_that_of_networks_with_drawn_heads(fit, modality, measure):
    """Draws by the Hessian of the loss of all rows by the head, put into copies of the network."""
    task = copy.deepcopy(modality.task).eval()
    head, batch = task.head, batch_of(modality, slice(0, N))
    with torch.no_grad():
        x, labels = task.predictions(task._head_input(batch), batch)
    start = head.weight.detach()
    if head.bias is not None:
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        start = torch.cat([start, head.bias.detach()[:, None]], 1)

    def loss(flat):
        return nn.functional.cross_entropy(x @ flat.view_as(start).T, labels, reduction="sum")

    hessian = torch.autograd.functional.hessian(loss, start.flatten())
    precision = hessian + 2.0 * torch.eye(start.numel(), dtype=torch.float64)
    networks = []
    for drawn in laplace_heads(start, precision, 4, seed=5):
        other = copy.deepcopy(task)
        with torch.no_grad():
            other.head.weight.copy_(drawn[:, : head.in_features])
            if head.bias is not None:
                other.head.bias.copy_(drawn[:, -1])
        networks.append(other.network)
    with torch.no_grad():
        truth = by_hand(task, modality, networks, measure)
    found, _ = scored(
        fit, modality, posterior="laplace", measure=measure, passes=4, prior=2.0, seed=5
    )
    torch.testing.assert_close(found, truth)


def test_a_sure_prior_leaves_no_epistemic_part(fit, modality):
    loose, tight = (
        scored(fit, modality, posterior="laplace", measure="epistemic", prior=prior)[0]
        for prior in (1.0, 1e12)
    )
    assert loose.min() > 1e-5
    assert tight.max() < 1e-9
    total, _ = scored(fit, modality, posterior="laplace", prior=1e12)
    torch.testing.assert_close(total, scored(fit, modality)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_some_samples_stand_for_all(fit, modality, monkeypatch):
    seen = []

    def watched(features, probabilities, prior, scale):
        seen.append((len(features), scale))
        return laplace_precision(features, probabilities, prior, scale)

    monkeypatch.setattr(_posteriors, "laplace_precision", watched)
    for samples in (30, 1000):
        scored(fit, modality, posterior="laplace", measure="epistemic", samples=samples)
    assert seen == [(30, 4.0), (N, 1.0)]


@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_what_laplace_cannot_do_is_refused(fit, modality, monkeypatch):
    after = ClassificationTask(nn.Sequential(nn.Linear(12, 4), nn.Tanh()).double())
    nn.init.constant_(after.head.weight, 3.0)
    with pytest.raises(TypeError, match="not what the model predicts by"):
        scored(fit, modality, after, posterior="laplace")
    bare = ClassificationTask(nn.Sequential(nn.Flatten(), nn.Conv1d(12, 4, 1)).double())
    with pytest.raises(TypeError, match=r"needs a task with .*linear_head"):
        scored(fit, modality, bare, posterior="laplace")
    monkeypatch.setattr(_posteriors, "_LIMIT", 8 * 43**2)
    with pytest.raises(ValueError, match=r"needs 44² entries, .*bound of .*\(43 weights\)"):
        scored(fit, modality, posterior="laplace")


@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_laplace_names_a_training_sample_that_is_not_finite(fit, modality):
    modality.columns["input"] = modality.columns["input"].clone()
    modality.columns["input"][FORGOTTEN + 3] = torch.nan
    with pytest.raises(ValueError, match=f"sample {FORGOTTEN + 3} of the training data"):
        scored(fit, modality, posterior="laplace")


@pytest.mark.parametrize("measure", MEASURES)
def test_the_ensemble_is_of_models_trained_by_hand(fit, modality, measure, tmp_path):
    """On all of the training data, whatever is to be forgotten, from each member's seed."""
    modality.task.epochs = 1
    options = {"posterior": "ensemble", "measure": measure, "members": 3, "seed": 2}
    found, run = scored(fit, modality, **options)
    networks = []
    for number in range(3):
        other, quiet = copy.deepcopy(modality.task), {"enable_progress_bar": False}
        data = Data(modality.columns, batch_size=16)
        train_task(other, data, "train", member_seed(2, number), {"accelerator": "cpu"} | quiet)
        networks.append(other.eval().network)
    with torch.no_grad():
        truth = by_hand(modality.task, modality, networks, measure)
    torch.testing.assert_close(found, truth)
    assert len(list((tmp_path / "uncertainty").iterdir())) == 3
    for name, value in modality.task.state_dict().items():
        assert torch.equal(value, run.strategy.task.state_dict()[name])


def test_an_ensemble_of_copies_doubts_as_one_model(fit, modality, monkeypatch):
    monkeypatch.setattr(_trained, "train_task", lambda *_: 0.0)
    total, aleatoric, epistemic, single = (
        scored(fit, modality, measure=measure, posterior=posterior)[0]
        for measure, posterior in [
            ("entropy", "ensemble"), ("aleatoric", "ensemble"), ("epistemic", "ensemble"),
            ("entropy", "dropout"),
        ]
    )  # fmt: skip
    torch.testing.assert_close(total, single)
    torch.testing.assert_close(aleatoric, single)
    assert epistemic.max() < 1e-14


@pytest.mark.parametrize("modality", ["images"], indirect=True)
def test_what_is_trained_is_kept_and_found_again(fit, modality, tmp_path, monkeypatch):
    """After a kill, for another measure or forget set, with more members; not of another recipe."""
    modality.task.epochs, trained = 1, []
    inner = _trained.train_task

    def watched(task, data, on, seed, trainer):
        if len(trained) == 2 and seed == 2:
            raise RuntimeError("killed")
        trained.append(seed)
        return inner(task, data, on, seed, trainer)

    monkeypatch.setattr(_trained, "train_task", watched)
    options = {"posterior": "ensemble", "cache": str(tmp_path / "kept")}
    with pytest.raises(RuntimeError, match="killed"):
        scored(fit, modality, members=3, **options)
    assert trained == [0, 1]
    scored(fit, modality, members=2, measure="epistemic", **options)
    other = Uncertainty(k=3, members=2, **options)
    fit(other, copy.deepcopy(modality.task), modality.columns, batch_size=16, forgotten=range(9))
    assert trained == [0, 1]
    monkeypatch.setattr(_trained, "train_task", inner)
    resumed, _ = scored(fit, modality, members=3, **options)
    whole, _ = scored(fit, modality, members=3, posterior="ensemble", cache=str(tmp_path / "anew"))
    assert torch.equal(resumed, whole)
    assert len(list((tmp_path / "kept").iterdir())) == 3
    modality.task.epochs = 2
    scored(fit, modality, members=2, **options)
    assert len(list((tmp_path / "kept").iterdir())) == 5
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(b"PK, cut short")
    with pytest.raises(ValueError, match=r"`cache`: .* delete it to train that model again"):
        scored(fit, modality, members=2, **options)


@pytest.mark.parametrize("posterior", ["ensemble", "laplace"])
def test_no_trace_is_left(fit, modality, posterior):
    modality.task.epochs = 1
    modality.task.train()
    before, after = Watch(), Watch()

    class Between(Uncertainty):
        def on_fit_start(self, trainer, pl_module):
            before.on_fit_start(trainer, pl_module)
            super().on_fit_start(trainer, pl_module)
            after.on_fit_start(trainer, pl_module)

    fit(Between(k=3, posterior=posterior, members=2), modality.task, modality.columns)
    (then,), (now,) = before.seen, after.seen
    for name in ("modes", "trainable", "grads", "hooks"):
        assert then[name] == now[name]
    assert torch.equal(then["random"], now["random"])
    assert all(torch.equal(then["values"][k], v) for k, v in now["values"].items())


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("posterior", ["ensemble", "laplace"])
def test_two_processes_draw_what_one_does(fit, modality, posterior, tmp_path):
    modality.task.epochs = 1

    def picked(cache, **options):
        selector = Uncertainty(
            k=7, posterior=posterior, measure="epistemic", members=3, cache=str(tmp_path / cache)
        )
        task = copy.deepcopy(modality.task)
        return fit(selector, task, modality.columns, batch_size=16, **options).picked

    plain = picked("one")
    picked("two", world=2, watch=[Keep(tmp_path)])
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), plain)
