"""A mask over any strategy: what it leaves out keeps every bit, and costs the optimiser nothing."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

import erasus_pl.strategies as room
from erasus_pl.linalg import importance_ratio, top_fraction
from erasus_pl.mechanisms import SparseUpdate
from erasus_pl.networks import ShardedEnsemble
from erasus_pl.selectors import GradNorm
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task

STRATEGIES = {
    n: c for n, c in vars(room).items()
    if isinstance(c, type) and issubclass(c, Strategy) and c is not Strategy
}  # fmt: skip
SETTINGS = {"LFSSD": {"alpha": 1.0}, "SSD": {"alpha": 1.0}}
MASKS = ("saliency", "fisher", "magnitude", "random")

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed",
    "ignore:You're resuming from a checkpoint that ended before",
    "ignore:Using ModelCheckpoint with manual optimization",
)


def fits(cls, tiny):
    return set(cls.requires) <= tiny.task.capabilities


@pytest.fixture
def tiny(tiny, pictures, request):
    """The tiny task; where the strategy under test needs convolutions, a classifier with some."""
    given = request.node.callspec.params.get("name")
    cls = STRATEGIES.get(given)
    if cls is not None and "shards" in cls.requires:
        pytest.skip(f"{given} is refused")
    if cls is None or fits(cls, tiny):
        return tiny
    if tiny.name == "images" and fits(cls, pictures):
        return pictures
    pytest.skip(f"{cls.__name__} is not for {type(tiny.task).__name__}")


def make(name, task, **options):
    cls = STRATEGIES[name]
    given = SETTINGS.get(name, {}) | options
    if "optimizer" in options and cls.edit is not Strategy.edit:
        given.pop("optimizer")
    return cls(copy.deepcopy(task), **given)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1)


def same(a, b, where=""):
    """Equal to the bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}/{i}")
    else:
        assert a == b, f"{where}: {a} {b}"


def moved(strategy, task):
    """Where the weights differ from the task's, by name."""
    before = dict(task.network.named_parameters())
    now = strategy.task.network.named_parameters()
    return {k: p.detach().view(torch.int32) != before[k].view(torch.int32) for k, p in now}


def checked(strategy, task, sparse):
    changed = moved(strategy, task)
    assert changed.keys() >= sparse.masks.keys()
    for name, change in changed.items():
        mask = sparse.masks.get(name, torch.zeros_like(change))
        assert not (change & ~mask).any(), name
    return sum(int(c.sum()) for c in changed.values())


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("optimizer", [sgd, adam])
def test_no_strategy_touches_what_the_mask_leaves_out(name, optimizer, tiny, fit):
    sparse = SparseUpdate("random", fraction=0.3)
    strategy = fit(make(name, tiny.task, optimizer=optimizer), tiny.data(), callbacks=[sparse])
    assert checked(strategy, tiny.task, sparse) > 0
    size = sum(mask.sum() for mask in sparse.masks.values())
    assert size == round(0.3 * sum(mask.numel() for mask in sparse.masks.values()))
    if strategy.one_shot or name == "NegMerge":
        return  # the latter's optimiser owns copies of the weights
    if name in ("CFk", "EUk"):
        last = {k: m for k, m in sparse.masks.items() if k.startswith(("4.", "head."))}
        size = sum(mask.sum() for mask in last.values())
    (used,) = strategy.trainer.optimizers
    own = {id(p) for p in strategy.parameters()}
    names = ["momentum_buffer"] if optimizer is sgd else ["exp_avg", "exp_avg_sq"]
    whole = {k: p for k, p in strategy.task.network.named_parameters() if k in sparse.masks}
    extra = 0 if name != "BoundaryExpand" else strategy.shadow.numel()
    for key in names:
        assert sum(s[key].numel() for s in used.state.values()) == size + extra
    assert all(id(p) not in own for g in used.param_groups for p in g["params"] if p.dim() > 1)
    assert all(p.requires_grad for p in whole.values())


@pytest.mark.parametrize("name", STRATEGIES)
def test_layers_that_are_not_chosen_or_frozen_keep_weights_and_statistics(name, tiny, fit):
    network = tiny.task.network
    chosen = {"images": ["4"], "text": ["blocks.*", "head"], "pictures": ["0"]}[tiny.name]
    first = next(m for m in network.modules() if isinstance(m, (nn.Linear, nn.Embedding)))
    first.requires_grad_(False)
    flags = {k: p.requires_grad for k, p in tiny.task.named_parameters()}
    sparse = SparseUpdate(None, layers=chosen)
    strategy = make(name, tiny.task, optimizer=sgd)
    fit(strategy, tiny.data(), callbacks=[sparse])
    assert checked(strategy, tiny.task, sparse) > 0
    assert {k: p.requires_grad for k, p in strategy.task.named_parameters()} == flags
    before = dict(network.named_buffers())
    if tiny.name == "images":
        now = dict(strategy.task.network.named_buffers())
        assert all(torch.equal(now[k], before[k]) for k in before)
        assert not moved(strategy, tiny.task)["0.weight"].any()


@pytest.mark.parametrize("name", STRATEGIES)
def test_resumed_equals_uninterrupted(name, tiny, fit, tmp_path):
    def callbacks(folder):
        saver = ModelCheckpoint(
            folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=True
        )
        return [GradNorm(0.75), SparseUpdate("saliency", fraction=0.4), saver]

    def run(folder, **options):
        strategy = make(name, tiny.task, optimizer=adam)
        found = callbacks(folder)
        fit(strategy, tiny.data(), callbacks=found, enable_checkpointing=True, **options)
        return strategy, found[1]

    whole, sparse = run(tmp_path / "whole")
    steps = sorted((tmp_path / "whole").glob("step=*.ckpt"), key=lambda p: int(p.stem[5:]))
    ends = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    at = steps[len(steps) // 2 - 1]
    middle = torch.load(at, weights_only=True)
    for key, mask in sparse.masks.items():
        now, before = (
            middle["state_dict"][f"task.network.{key}"],
            tiny.task.network.get_parameter(key),
        )
        assert torch.equal(now[~mask], before[~mask]), key
    resumed, again = run(tmp_path / "resumed", resume=at)
    same(resumed.state_dict(), whole.state_dict())
    same(again.masks, sparse.masks)
    last = torch.load(tmp_path / "resumed" / "last.ckpt", weights_only=True)
    same(last["optimizer_states"], ends["optimizer_states"])


def test_what_deletes_exactly_is_refused(tiny, fit):
    network = room.SISA(Task(ShardedEnsemble(nn.Linear(6, 4)), loss=nn.CrossEntropyLoss()))
    with pytest.raises(TypeError, match="SISA deletes exactly, and SparseUpdate would leave in"):
        fit(network, tiny.data(), callbacks=[SparseUpdate("random")])


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}])
def test_a_mask_of_everything_is_no_mask(options, tiny, fit):
    runs = [
        fit(
            make("NegGradPlus", tiny.task, alpha=0.7, optimizer=adam),
            tiny.data(),
            **options,
            **more,
        )
        for more in ({}, {"callbacks": [SparseUpdate("saliency", fraction=1.0)]})
    ]
    same(*(r.state_dict() for r in runs))
    same(*(r.trainer.optimizers[0].state_dict() for r in runs))


class Descent(Strategy):
    """The retain loss alone, whose gradient a test can take by hand."""

    loader_mode = "retain"

    def unlearning_losses(self, forget, retain):
        return {"retain": self.task.loss(retain)}


class Batches(Strategy):
    """Keeps what it was given, without learning."""

    loader_mode = "retain"

    def unlearning_losses(self, forget, retain):
        self.__dict__.setdefault("seen", []).append(retain)
        return {"retain": 0.0 * self.task.loss(retain)}


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_equals_masked_descent_by_hand(clip, accumulate, tiny, fit):
    """SGD with momentum and weight decay on m ⊙ ∇L, written out; its norm is what is clipped."""
    for module in tiny.task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    tiny.task.network.double()
    if tiny.name == "images":
        tiny.task.network[1] = nn.Identity()
    data = tiny.data()
    sparse = SparseUpdate("random", fraction=0.3, seed=3)
    options = {"gradient_clip_val": clip, "accumulate_grad_batches": accumulate}
    strategy = Descent(copy.deepcopy(tiny.task), optimizer=sgd)
    double = {"precision": "64-true"}
    fit(strategy, data, callbacks=[sparse], **options, **double)
    batches = fit(Batches(copy.deepcopy(tiny.task), optimizer=sgd), tiny.data(), **double).seen
    task = copy.deepcopy(tiny.task).train()
    weights = dict(task.network.named_parameters())
    velocity = {k: torch.zeros_like(p) for k, p in weights.items()}
    per_epoch = len(batches) // 3
    for epoch in range(3):
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        for start in range(0, len(part), accumulate):
            some = part[start : start + accumulate]
            loss = sum(task.loss(b) for b in some) / accumulate
            gradients = torch.autograd.grad(loss, list(weights.values()))
            masked = {k: g * sparse.masks[k] for k, g in zip(weights, gradients, strict=True)}
            norm = torch.cat([g.flatten() for g in masked.values()]).norm()
            scale = min(1.0, clip / (norm.item() + 1e-6)) if clip else 1.0
            with torch.no_grad():
                for k, p in weights.items():
                    decayed = masked[k] * scale + 0.1 * p * sparse.masks[k]
                    velocity[k] = 0.9 * velocity[k] + decayed
                    p -= 0.1 * velocity[k]
    for k, p in strategy.task.network.named_parameters():
        torch.testing.assert_close(p, weights[k], rtol=1e-7, atol=1e-9)


class Lowered(Descent):
    """Halves its gradients, as a strategy may, and keeps their norms."""

    def on_before_optimizer_step(self, optimizer):
        self.norms = [p.grad.norm() for p in self.trainable.values()]
        for parameter in self.trainable.values():
            parameter.grad.mul_(0.5)


def test_what_a_strategy_does_to_its_gradients_reaches_the_optimiser(tiny, fit):
    ends = []
    for cls, lr in ((Lowered, 0.2), (Descent, 0.1)):
        optimizer = lambda p, lr=lr: torch.optim.SGD(p, lr=lr)  # noqa: E731
        sparse = SparseUpdate("random", fraction=0.3)
        strategy = cls(copy.deepcopy(tiny.task), optimizer=optimizer)
        ends.append(fit(strategy, tiny.data(), callbacks=[sparse], max_epochs=1))
    for a, b in zip(*(e.parameters() for e in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    (used,) = ends[0].trainer.optimizers
    seen = torch.stack(ends[0].norms).norm() / 2
    moved = torch.cat([p.grad for g in used.param_groups for p in g["params"]])
    torch.testing.assert_close(seen, moved.norm())


def test_the_saliency_mask_is_saluns(tiny, fit):
    """With a weighted coreset, too."""
    for callbacks in ([], [GradNorm(0.5)]):
        sparse = SparseUpdate("saliency", fraction=0.35)
        salun = make("SalUn", tiny.task, salient=0.35)
        fit(salun, tiny.data(), callbacks=[*callbacks, sparse])
        same({k.removeprefix("network."): m for k, m in salun.mask.items()}, sparse.masks)


def test_salun_under_its_own_mask_is_salun(tiny, fit):
    task = tiny.task
    if tiny.name == "images":
        task.network[1] = nn.Identity()
    alone = fit(make("SalUn", task), tiny.data())
    masked = fit(make("SalUn", task), tiny.data(), callbacks=[SparseUpdate("saliency", 0.5)])
    for a, b in zip(alone.parameters(), masked.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_the_fisher_mask_ranks_by_brute_force(tiny, fit):
    sparse = SparseUpdate("fisher", fraction=0.25)
    strategy = fit(make("NegGradPlus", tiny.task), tiny.data(), callbacks=[sparse])
    task, data = copy.deepcopy(tiny.task).eval(), strategy.data
    weights = list(task.network.parameters())

    def importance(dataset):
        total = torch.zeros(sum(p.numel() for p in weights), dtype=torch.float64)
        for i in range(len(dataset)):
            batch = next(
                iter(data.sweep(type(dataset)(dataset.dataset, dataset.positions[i : i + 1])))
            )
            gradients = torch.autograd.grad(task.loss(batch), weights)
            total += torch.cat([g.flatten() for g in gradients]).double() ** 2
        return total / len(dataset)

    forget, retain = importance(data.forget_set), importance(data.retain_set)
    n, m = len(data.forget_set), len(data.retain_set)
    whole = (n * forget + m * retain) / (n + m)
    dampened = torch.where(forget > 0, forget / whole, 0)  # as SSD selects
    chosen = torch.cat([mask.flatten() for mask in sparse.masks.values()])
    assert dampened[chosen].min() >= dampened[~chosen].max() * (1 - 1e-3)
    assert chosen.sum() == round(0.25 * len(chosen))


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40), st.floats(0, 1))
def test_the_top_fraction_has_its_size_and_nothing_higher_is_left_out(values, fraction):
    scores = torch.tensor(values)
    mask = top_fraction(scores, fraction)
    assert mask.sum() == round(fraction * len(values))
    if 0 < mask.sum() < len(values):
        assert scores[mask].min() >= scores[~mask].max()


@given(st.lists(st.floats(0, 1e4, width=32), min_size=2, max_size=30))
def test_the_ratio_orders_as_the_ratio_to_the_whole_set(values):
    half = len(values) // 2
    forget, retain = torch.tensor(values[:half]), torch.tensor(values[half : 2 * half])
    ratio = importance_ratio(forget, retain)
    assert ratio.isfinite().all()
    assert not ratio[forget == 0].any()
    keep = (retain > 1e-20) & (forget > 1e-20)
    whole = forget.double() / (0.1 * forget.double() + 0.9 * retain.double())
    order = ratio[keep].argsort(stable=True)
    assert (whole[keep][order].diff() >= -1e-9 * whole[keep][order][1:]).all()


def test_masks_of_magnitude_and_chance(tiny, fit):
    weights = torch.cat([p.detach().abs().flatten() for p in tiny.task.network.parameters()])
    found = {}
    for kind, seed in (("magnitude", 0), ("random", 0), ("random", 1)):
        sparse = SparseUpdate(kind, fraction=0.2, seed=seed)
        fit(make("Retrain", tiny.task), tiny.data(), callbacks=[sparse], max_epochs=1)
        found[kind, seed] = torch.cat([m.flatten() for m in sparse.masks.values()])
    chosen = found["magnitude", 0]
    assert (
        weights[chosen].min() >= weights[~chosen].max()
    )  # of the original, not of what was redrawn
    assert not torch.equal(found["random", 0], found["random", 1])


class Starts(Callback):
    def on_train_start(self, trainer, pl_module):
        self.weights = {k: p.detach().clone() for k, p in pl_module.task.network.named_parameters()}


def test_retrain_redraws_only_what_the_mask_holds(tiny, fit):
    optimizer = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731
    alone = fit(make("Retrain", tiny.task, optimizer=optimizer), tiny.data())
    sparse, starts = SparseUpdate("random", fraction=0.5), Starts()
    fit(make("Retrain", tiny.task, optimizer=optimizer), tiny.data(), callbacks=[sparse, starts])
    drawn = dict(alone.task.network.named_parameters())
    for key, now in starts.weights.items():
        mask, before = sparse.masks[key], tiny.task.network.get_parameter(key)
        assert torch.equal(now, torch.where(mask, drawn[key], before)), key


def test_an_optimiser_that_evaluates_the_loss_several_times(tiny, fit):
    """Its line search must see the weights that it has moved: it ends below plain steps."""
    for module in tiny.task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ends = []
    for iterations in (1, 8):
        sparse = SparseUpdate("random", fraction=0.5)
        strategy = Descent(
            copy.deepcopy(tiny.task),
            optimizer=lambda p, n=iterations: torch.optim.LBFGS(
                p, 1.0, n, line_search_fn="strong_wolfe"
            ),
        )
        fit(strategy, tiny.data(batch_size=30), callbacks=[sparse], max_epochs=2)
        assert checked(strategy, tiny.task, sparse) > 0
        strategy.task.eval()
        data = tiny.data()
        data.setup("validate")
        with torch.no_grad():
            ends.append(
                float(np.mean([strategy.task.loss(b) for b in data.sweep(data.retain_set)]))
            )
    assert ends[1] < ends[0] - 0.02


def test_the_scale_of_fp16_is_taken_out_before_the_strategy_and_clipping_look(tiny, fit):
    """A power of two changes nothing but the exponent, so runs differ only where it is left in."""
    runs = []
    for scale in (1.0, 256.0):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
        sparse = SparseUpdate("random", fraction=0.5)
        strategy = make("SFRon", tiny.task, optimizer=sgd, max_norm=0.01)
        fit(strategy, tiny.data(), callbacks=[sparse], plugins=[plugin], gradient_clip_val=0.005)
        assert checked(strategy, tiny.task, sparse) > 0
        runs.append(strategy)
    for a, b in zip(*(r.parameters() for r in runs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_memory_is_told(tiny, fit, caplog):
    sparse = SparseUpdate("magnitude", fraction=0.1)
    strategy = make("NegGradPlus", tiny.task, optimizer=adam)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(strategy, tiny.data(), callbacks=[sparse])
    size = sum(p.numel() for p in tiny.task.network.parameters())
    moving = round(0.1 * size)
    assert sparse.memory["sparse/moving"] == moving
    assert sparse.memory["sparse/optimizer_mb"] * 2**20 == pytest.approx(8 * moving)
    assert sparse.memory["sparse/optimizer_mb_without"] * 2**20 == pytest.approx(8 * size)
    assert f"{moving:,} of {size:,} weights may move" in caplog.text


def test_an_optimiser_that_begins_with_a_state(tiny, fit):
    """Adagrad's sums are there before the first step."""
    adagrad = lambda p: torch.optim.Adagrad(p, lr=0.05, initial_accumulator_value=0.3)  # noqa: E731
    sparse = SparseUpdate("random", fraction=0.3)
    strategy = fit(
        make("NegGradPlus", tiny.task, optimizer=adagrad), tiny.data(), callbacks=[sparse]
    )
    assert checked(strategy, tiny.task, sparse) > 0
    (used,) = strategy.trainer.optimizers
    sums = torch.cat([s["sum"] for s in used.state.values()])
    assert len(sums) == sum(m.sum() for m in sparse.masks.values())
    assert (sums >= 0.3).all()


def test_memory_in_another_order(tiny, fit):
    """Weights of convolutions may lie in memory with channels last."""
    network = nn.Sequential(
        nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 5, 1), nn.Flatten(), nn.ReLU(), nn.Linear(5, 4)
    ).to(memory_format=torch.channels_last)
    network[1].weight.data = (
        network[1].weight.data.expand(5, 6, 2, 2).clone(memory_format=torch.channels_last)
    )
    network[1].padding = (1, 1)
    network[2], network[4] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(5, 4)
    if tiny.name == "text":
        pytest.skip("images only")
    task = Task.from_module(network)
    assert not network[1].weight.is_contiguous()
    sparse = SparseUpdate("random", fraction=0.5)
    strategy = fit(make("NegGradPlus", task, optimizer=adam), tiny.data(), callbacks=[sparse])
    assert checked(strategy, task, sparse) > 0
    assert not strategy.task.network[1].weight.is_contiguous()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"mask": "best"},
            "`mask` must be one of saliency, fisher, magnitude, random or null, got",
        ),
        ({"fraction": 0.0}, r"`fraction` must be in \(0, 1\], got 0.0"),
        ({"fraction": 1.5}, r"`fraction` must be in \(0, 1\], got 1.5"),
        ({"mask": None}, "`layers` is missing: without a `mask`, name the layers that may move"),
    ],
)
def test_refuses_what_it_cannot_use(options, line):
    with pytest.raises(ValueError, match=line):
        SparseUpdate(**options)


def test_refuses_what_does_not_fit_the_run(tiny, fit, tmp_path):
    task, data = tiny.task, tiny.data()

    def run(sparse, strategy=None, **options):
        strategy = strategy or make("NegGradPlus", task, optimizer=adam)
        return fit(strategy, data, callbacks=sparse, **options)

    with pytest.raises(ValueError, match="`layers`: 'tail' names nothing in this network; it has"):
        run([SparseUpdate(layers=["tail"])])
    with pytest.raises(ValueError, match="`fraction` must leave at least one of"):
        run([SparseUpdate(fraction=1e-6)])
    muon = lambda p: torch.optim.Muon([w for w in p if w.dim() == 2])  # noqa: E731
    if hasattr(torch.optim, "Muon"):
        with pytest.raises(ValueError, match="`optimizer`: Muon works on whole matrices"):
            run([SparseUpdate()], make("NegGradPlus", task, optimizer=muon))
    with pytest.raises(TypeError, match="SparseUpdate restricts a Strategy, and the model is a"):
        SparseUpdate().setup(None, task, "fit")
    saver = {"enable_checkpointing": True}
    run([ModelCheckpoint(tmp_path / "plain", save_last=True)], **saver)
    with pytest.raises(ValueError, match="the checkpoint has no SparseUpdate; resume with what"):
        run([SparseUpdate()], resume=tmp_path / "plain" / "last.ckpt", max_epochs=4)
    run([SparseUpdate(), ModelCheckpoint(tmp_path / "sparse", save_last=True)], **saver)
    with pytest.raises(ValueError, match=r"`fraction` was 0\.5 and is 0\.2"):
        run([SparseUpdate(fraction=0.2)], resume=tmp_path / "sparse" / "last.ckpt", max_epochs=4)


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("name", ["NegGradPlus", "SalUn", "SSD"])
def test_two_processes_with_half_the_batch_equal_one(name, tiny, fit):
    for module in tiny.task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if tiny.name == "images":
        tiny.task.network[1] = nn.Identity()
    found = []
    for world in (1, 2):
        strategy = make(name, tiny.task, optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
        options = {"strategy": "ddp_fork", "devices": world} if world > 1 else {}
        sparse = SparseUpdate("saliency", fraction=0.4)
        fit(strategy, tiny.data(batch_size=8 // world), callbacks=[sparse], **options)
        found.append(moved(strategy, tiny.task) if world == 2 else (strategy, sparse))
        if world == 2:
            for key, change in found[1].items():
                assert not (change & ~found[0][1].masks[key]).any(), key
            if "targets" not in STRATEGIES[name].requires:
                same_weights = zip(found[0][0].parameters(), strategy.parameters(), strict=True)
                for a, b in same_weights:
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_weights_that_matter_are_few_and_not_any(digits, fit):
    """A tenth of them forgets the threes as all do; a tenth at random does not."""
    optimizer = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4)  # noqa: E731
    found = {}
    for mask in ("saliency", "fisher", "random"):
        strategy = make("NegGradPlus", digits.original, alpha=0.98, optimizer=optimizer)
        fit(strategy, digits.data(), callbacks=[SparseUpdate(mask, 0.1)], max_epochs=10)
        found[mask] = digits.measure(strategy)
    for mask in ("saliency", "fisher"):
        assert found[mask]["forget"] <= 0.05, found
        assert found[mask]["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["random"]["forget"] > 0.5, found


def test_stages_are_restricted_alike_whatever_they_draw_anew_or_edit(tiny, fit):
    def ssd(task):
        return room.SSD(task, alpha=1.0)

    pipeline = room.Pipeline(
        copy.deepcopy(tiny.task), adam, [room.CFk, room.Retrain, ssd, room.SalUn], (1, 1, 1, 1)
    )
    sparse = SparseUpdate("saliency", fraction=0.3)
    fit(pipeline, tiny.data(), callbacks=[sparse])
    assert checked(pipeline, tiny.task, sparse) > 0
    (used,) = pipeline.trainer.optimizers
    held = sum(s["exp_avg"].numel() for s in used.state.values())
    assert held == sum(mask.sum() for mask in sparse.masks.values())
