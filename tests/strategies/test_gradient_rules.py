"""Rules that put the two sides' gradients together, over every strategy that has two sides."""

import copy

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

import erasus_pl.strategies as room
from erasus_pl.mechanisms import GradientRectified, NashBargaining, SharpnessAware
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed",
    "ignore:You're resuming from a checkpoint that ended before",
)

STRATEGIES = {
    n: c for n, c in vars(room).items()
    if isinstance(c, type) and issubclass(c, Strategy) and c is not Strategy
}  # fmt: skip
FIT = [
    n
    for n, c in STRATEGIES.items()
    if c.edit is Strategy.edit and c.loader_mode == "paired" and not hasattr(c, "stage")
]
RULES = [SharpnessAware(0.1), GradientRectified(), NashBargaining()]
names = [type(r).__name__ for r in RULES]


def fits(cls, tiny):
    return set(cls.requires) <= tiny.task.capabilities


@pytest.fixture
def tiny(tiny, pictures, request):
    """The tiny task; where the strategy under test needs convolutions, a classifier with some."""
    given = request.node.callspec.params.get("name")
    cls = STRATEGIES.get(given)
    if cls is None or fits(cls, tiny):
        return tiny
    if tiny.name == "images" and fits(cls, pictures):
        return pictures
    pytest.skip(f"{cls.__name__} is not for {type(tiny.task).__name__}")


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


def make(name, task, **options):
    return STRATEGIES[name](copy.deepcopy(task), **{"optimizer": sgd} | options)


@pytest.fixture
def still(tiny):
    """The tiny task, without what draws random numbers or couples samples."""
    for module in tiny.task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if tiny.name == "images":
        tiny.task.network[1] = nn.Identity()
    return tiny


class Batches(Callback):
    def __init__(self):
        self.seen, self.logged = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logged.append(float(outputs["loss"]))


def gradients(strategy, batch, shift=None):
    """Values and flat gradients of the sides, from the losses themselves."""
    weights = list(strategy.trainable.values())
    kept = [p.detach().clone() for p in weights]
    if shift is not None:
        with torch.no_grad():
            for p, d in zip(weights, torch.split(shift, [p.numel() for p in weights]), strict=True):
                p += d.view(p.shape)
    losses = strategy.unlearning_losses(batch["forget"], batch["retain"])
    flat = []
    for prefix in ("forget", "retain"):
        side = sum(v for k, v in losses.items() if k.startswith(prefix))
        found = torch.autograd.grad(side, weights, retain_graph=True, materialize_grads=True)
        flat.append(torch.cat([g.flatten() for g in found]))
    with torch.no_grad():
        for p, value in zip(weights, kept, strict=True):
            p.copy_(value)
    return float(sum(losses.values())), *flat


def by_hand(rule, strategy, batch):
    value, forget, retain = gradients(strategy, batch)
    if isinstance(rule, SharpnessAware):
        shift = rule.rho * forget / forget.norm() if forget.norm() > 0 else 0 * forget
        return value, gradients(strategy, batch, shift)[1] + retain
    if isinstance(rule, GradientRectified):
        along = torch.dot(forget, retain)
        part = along / torch.dot(retain, retain) * retain if along < 0 else 0 * retain
        return value, forget - part + retain
    if not forget.any() or not retain.any():
        return value, forget + retain
    f, r = forget / forget.norm(), retain / retain.norm()
    return value, 2**0.5 * (f + r) / (f + r).norm()


@pytest.mark.parametrize("name", FIT)
@pytest.mark.parametrize("rule", RULES, ids=names)
def test_steps_are_those_written_by_hand(rule, name, still, fit):
    batches = Batches()
    options = {"alpha": 0.7} if name == "NegGradPlus" else {}
    strategy = fit(make(name, still.task, **options), still.data(), callbacks=[batches, rule])
    assert strategy.rule is None
    assert {k for k, _ in strategy.named_parameters()} == {
        f"task.{k}" for k, _ in still.task.named_parameters()
    }
    hand = make(name, still.task, **options)
    hand.trainer = strategy.trainer
    if hand.needs_original:
        hand.__dict__["_original"] = strategy.original
    if name == "BadTeacher":
        hand.__dict__["_incompetent"] = strategy.incompetent
    hand.train()
    plain = 0.0
    for batch, logged in zip(batches.seen, batches.logged, strict=True):
        value, gradient = by_hand(rule, hand, batch)
        assert logged == pytest.approx(value, rel=1e-4, abs=1e-5)
        plain = max(plain, float((gradient - sum(gradients(hand, batch)[1:])).norm()))
        weights = list(hand.trainable.values())
        with torch.no_grad():
            parts = torch.split(gradient, [p.numel() for p in weights])
            for p, g in zip(weights, parts, strict=True):
                p -= 0.05 * g.view(p.shape)
    for a, b in zip(strategy.task.parameters(), hand.task.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-5)
    assert plain > 0 or isinstance(rule, GradientRectified)


@pytest.mark.parametrize("name", FIT)
def test_a_ball_without_radius_is_the_plain_step(name, tiny, fit):
    """With dropout and batch norm, since the second pass repeats the first."""
    plain = fit(make(name, tiny.task), tiny.data())
    found = fit(make(name, tiny.task), tiny.data(), callbacks=[SharpnessAware(0.0)])
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(found.state_dict()[key], value, rtol=1e-3, atol=1e-5)


def test_statistics_and_the_random_state_are_of_the_first_pass(tiny, fit):
    ends = []
    for callbacks in ([], [SharpnessAware(5.0)]):
        strategy = make("NegGradPlus", tiny.task, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        fit(strategy, tiny.data(), callbacks=callbacks)
        ends.append(strategy.state_dict())
    for key, value in ends[0].items():
        assert torch.equal(ends[1][key], value), key


class Agree(Strategy):
    """Both sides want the same."""

    def unlearning_losses(self, forget, retain):
        loss = self.task.loss(retain)
        return {"forget": 0.3 * loss, "retain": loss, "penalty": 0.1 * loss}


class Against(Strategy):
    """What one side wants the other does not."""

    def unlearning_losses(self, forget, retain):
        loss = self.task.loss(retain)
        return {"forget": -3.0 * loss, "retain": loss}


def test_without_conflict_rectifying_does_nothing(still, fit):
    ends = [
        fit(Agree(copy.deepcopy(still.task), sgd), still.data(), callbacks=callbacks)
        for callbacks in ([], [GradientRectified()])
    ]
    for a, b in zip(*(e.parameters() for e in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_in_full_conflict_rectifying_keeps_the_retain_step_alone(still, fit):
    class Retain(Strategy):
        def unlearning_losses(self, forget, retain):
            return {"retain": self.task.loss(retain)}

    found = fit(
        Against(copy.deepcopy(still.task), sgd), still.data(), callbacks=[GradientRectified()]
    )
    wanted = fit(Retain(copy.deepcopy(still.task), sgd), still.data())
    for a, b in zip(found.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_in_full_conflict_nobody_moves(still, fit):
    task = copy.deepcopy(still.task)
    task.double()
    strategy = Against(copy.deepcopy(task), sgd)
    with pytest.warns(UserWarning, match="changed no weight"):
        fit(strategy, still.data(), callbacks=[NashBargaining()], precision="64-true")
    for a, b in zip(strategy.parameters(), task.parameters(), strict=True):
        assert torch.equal(a, b)


def test_sharpness_on_a_quadratic():
    """ℓ_f = ½ θᵀ H θ has the gradient g + ρ H g / ‖g‖ at θ + ρ g / ‖g‖."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(3, 3, generator=generator)
    hessian = half @ half.T

    class Quadratic(Strategy):
        def unlearning_losses(self, forget, retain):
            theta = self.task.network.weight[0]
            return {"forget": 0.5 * theta @ hessian @ theta, "retain": theta.sum()}

    strategy = Quadratic(Task(nn.Linear(3, 1, bias=False), loss=nn.MSELoss()))
    theta = strategy.task.network.weight.detach()[0].clone()
    strategy._trainer = type(
        "T", (), {"strategy": type("S", (), {"reduce": lambda self, t, reduce_op: t})()}
    )()
    strategy._fabric = None
    losses, forget, retain = SharpnessAware(0.5).sides(
        strategy, lambda: strategy.unlearning_losses(None, None)
    )
    g = hessian @ theta
    torch.testing.assert_close(forget, g + 0.5 * hessian @ g / g.norm())
    assert torch.equal(retain, torch.ones(3))
    assert torch.equal(strategy.task.network.weight[0], theta)
    torch.testing.assert_close(losses["forget"], 0.5 * theta @ g)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip_val": 0.05},
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
@pytest.mark.parametrize("rule", RULES, ids=names)
def test_resumed_equals_uninterrupted(rule, options, tiny, fit, tmp_path):
    def run(folder, **more):
        saver = ModelCheckpoint(
            folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=True
        )
        strategy = make("NegGradPlus", tiny.task, alpha=0.7)
        on = {"enable_checkpointing": True}
        return fit(strategy, tiny.data(), callbacks=[rule, saver], **on, **options, **more)

    whole = run(tmp_path / "whole")
    steps = sorted((tmp_path / "whole").glob("step=*.ckpt"), key=lambda p: int(p.stem[5:]))
    resumed = run(tmp_path / "resumed", resume=steps[len(steps) // 2])
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
        if key.endswith("weight"):
            assert value.isfinite().all()
    if "gradient_clip_val" in options:
        bound = 0.05 * 0.05 * whole.trainer.global_step + 1e-5
        for a, b in zip(whole.task.parameters(), tiny.task.parameters(), strict=True):
            assert (a - b).norm() <= bound


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n not in FIT])
def test_refuses_what_has_one_side_at_a_time(name, tiny, fit):
    strategy = STRATEGIES[name](copy.deepcopy(tiny.task))
    fitting = ", ".join(sorted(FIT))
    with pytest.raises(
        TypeError, match=f"GRU|needs both sides at every step, and {name} .*{fitting}"
    ):
        fit(strategy, tiny.data(), callbacks=[GradientRectified()])
    assert strategy.rule is None


def test_refuses_what_does_not_fit(tiny, fit):
    class OneSide(Strategy):
        def unlearning_losses(self, forget, retain):
            return {"forget": -self.task.loss(forget)}

    with pytest.raises(ValueError, match="needs terms on both sides, and OneSide has forget"):
        fit(OneSide(copy.deepcopy(tiny.task), sgd), tiny.data(), callbacks=[NashBargaining()])
    two = [NashBargaining(), SharpnessAware()]
    with pytest.raises(ValueError, match="give one gradient rule, got Nash"):
        fit(make("NegGradPlus", tiny.task), tiny.data(), callbacks=two)
    with pytest.raises(ValueError, match=r"`rho` must be at least 0, got -0\.1"):
        SharpnessAware(-0.1)
    with pytest.raises(TypeError, match="SharpnessAware is for a Strategy, and the model is a"):
        SharpnessAware().setup(None, tiny.task, "fit")
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match=r"`trainer\.precision`: SharpnessAware takes gradients"):
        fit(
            make("NegGradPlus", tiny.task),
            tiny.data(),
            callbacks=[SharpnessAware()],
            plugins=plugin,
        )


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("rule", RULES, ids=names)
def test_two_processes_with_half_the_batch_equal_one(rule, still, fit):
    ends = []
    for world in (1, 2):
        strategy = make("NegGradPlus", still.task, alpha=0.7)
        options = {"strategy": "ddp_fork", "devices": world} if world > 1 else {}
        fit(strategy, still.data(batch_size=8 // world), callbacks=[rule], **options)
        ends.append(strategy.task.state_dict())
    assert any(not torch.equal(ends[1][k], v) for k, v in still.task.state_dict().items())
    for key in ends[0]:
        torch.testing.assert_close(*(e[key] for e in ends), rtol=1e-3, atol=1e-5)
