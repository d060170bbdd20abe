"""Both phases, their order and schedule, and the way back."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from erasus_pl.strategies import SCRUB
from erasus_pl.strategies.scrub import max_term, min_terms, nearest_epoch

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed", "ignore:You're resuming from a checkpoint that ended before"
)


def sgd(lr):
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.01)


class Watch(Callback):
    """Weights after each step, with what the step was given."""

    def __init__(self):
        self.steps = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        weights = {k: v.clone() for k, v in pl_module.task.state_dict().items()}
        kind = "forget" if batch["forget"] is not None else "retain"
        self.steps.append((trainer.current_epoch, kind, self.lr, weights))


@pytest.mark.parametrize("kd_T", [1.0, 4.0])
def test_terms(kd_T, tiny, fit):
    """−T² KL on forget; γ ℓ and α T² KL on retain samples, with KL(teacher ‖ student)."""
    data = tiny.data()
    strategy = fit(SCRUB(tiny.task, alpha=0.2, gamma=0.7, kd_T=kd_T), data, max_steps=0).eval()
    with torch.no_grad():
        for parameter in strategy.task.parameters():
            parameter.add_(torch.randn_like(parameter))
    forget, retain = (next(iter(data.sweep(s))) for s in (data.forget_set, data.retain_set))

    def kl(teacher, student, batch):
        p, q = (torch.softmax(m(batch) / kd_T, -1) for m in (teacher, student))
        each = (p * (p / q).log()).sum(-1)
        if tiny.name == "text":
            kept = (batch["labels"][:, 1:] != -100).float()
            each = (each[:, :-1] * kept).sum(1) / kept.sum(1)
        return each.mean()

    student, teacher = strategy.task, strategy.original
    (term,) = strategy.unlearning_losses(forget, None).values()
    torch.testing.assert_close(term, -(kd_T**2) * kl(teacher, student, forget))
    assert not torch.isclose(term, -(kd_T**2) * kl(student, teacher, forget), rtol=1e-3)
    terms = strategy.unlearning_losses(None, retain)
    torch.testing.assert_close(terms["retain"], 0.7 * student.loss(retain))
    torch.testing.assert_close(
        terms["retain_divergence"], 0.2 * kd_T**2 * kl(teacher, student, retain)
    )


def test_squared_temperature_keeps_the_size():
    """As T → ∞, T² KL → Σ_c (Δz_c − mean Δz)² / 2C, which no longer depends on T."""
    z, w = torch.randn(2, 5, 7, dtype=torch.float64)
    difference = z - w - (z - w).mean(1, keepdim=True)
    limit = (difference.square().sum(1) / 14).mean()
    for kd_T in (1e3, 1e4):
        p, q = torch.log_softmax(z / kd_T, 1), torch.log_softmax(w / kd_T, 1)
        divergence = (p.exp() * (p - q)).sum(1).mean()
        assert torch.isclose(-max_term(divergence, kd_T), limit, rtol=0.01)
        assert torch.isclose(min_terms(limit, divergence, 1.0, 0.0, kd_T)[1], limit, rtol=0.01)


def test_reads_the_forget_set(tiny, fit):
    """Other forget inputs, other weights: found in published code that never looked at them."""
    runs = []
    for other in (False, True):
        data = tiny.data()
        if other:
            for key in ("input", "input_ids"):
                if key in data.columns:
                    column = data.columns[key].clone()
                    column[0:32:2] = column[0:32:2].flip(-1)
                    data.columns[key] = column
        runs.append(fit(SCRUB(copy.deepcopy(tiny.task), sgd(0.05)), data).task)
    pairs = zip(runs[0].parameters(), runs[1].parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_max_steps_come_first_and_end_after_msteps(tiny, fit):
    watch = Watch()
    fit(SCRUB(tiny.task, sgd(0.05), msteps=2), tiny.data(), max_epochs=4, callbacks=[watch])
    kinds = {e: [k for epoch, k, *_ in watch.steps if epoch == e] for e in range(4)}
    for epoch in range(4):
        assert kinds[epoch] == ["forget"] * 3 + ["retain"] * 3
    for (_, _, _, before), (epoch, kind, _, after) in zip(
        watch.steps, watch.steps[1:], strict=False
    ):
        same = all(torch.equal(before[k], v) for k, v in after.items())
        assert same == (kind == "forget" and epoch >= 2), (epoch, kind)


def test_steps_passed_over_do_not_turn_up_in_later_ones(tiny, fit):
    """With no max-steps the run is plain distillation: forget batches leave no momentum either."""
    watch = Watch()
    strategy = SCRUB(copy.deepcopy(tiny.task), sgd(0.05), msteps=0)
    fit(strategy, tiny.data(), max_epochs=2, callbacks=[watch])
    by_hand = fit(SCRUB(copy.deepcopy(tiny.task), sgd(0.05)), tiny.data(), max_steps=0)
    task, optimizer = by_hand.task.train(), sgd(0.05)(by_hand.task.parameters())
    data = by_hand.trainer.datamodule
    for step, batch in enumerate(_steps(data, 12)):
        if batch["retain"] is None:
            continue
        optimizer.zero_grad()
        sum(by_hand.unlearning_losses(None, batch["retain"]).values()).backward()
        optimizer.step()
        for key, value in watch.steps[step][3].items():
            torch.testing.assert_close(task.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def _steps(data, count):
    """The batches of the first steps, with the random state that belongs to each."""
    data.step = 0
    loader = data.train_dataloader()
    for _ in range(count // len(loader)):
        yield from loader


@pytest.mark.parametrize(("decay_epochs", "rate"), [((1, 3), 0.1), ((), 0.1), ((2,), 0.5)])
def test_learning_rate_decays_after_epochs(decay_epochs, rate, tiny, fit):
    watch = Watch()
    strategy = SCRUB(tiny.task, sgd(0.05), decay_epochs=decay_epochs, decay_rate=rate)
    fit(strategy, tiny.data(), max_epochs=4, callbacks=[watch])
    for epoch, _, lr, _ in watch.steps:
        # epochs are counted from 1 in the published code: "epoch > decay epoch"
        passed = sum(epoch + 1 > e for e in decay_epochs)
        assert lr == pytest.approx(0.05 * rate**passed)


@given(
    st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=1, max_size=8),
    st.integers(0, 20).map(lambda n: n / 20),
)
def test_nearest_epoch(errors, reference):
    best = nearest_epoch(errors, reference)
    distances = [abs(e - reference) for e in errors]
    assert distances[best] == min(distances)
    assert all(d > distances[best] for d in distances[best + 1 :])


def errors_of(task, weights, data, split):
    model = copy.deepcopy(task).eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        correct = [model.correct(model(b), b) for b in data.sweep(getattr(data, f"{split}_set"))]
    return 1 - torch.cat(correct).mean().item()


def rewound(tiny, fit, **options):
    watch, data = Watch(), tiny.data()
    strategy = SCRUB(
        copy.deepcopy(tiny.task), sgd(0.3), msteps=4, kd_T=1.0, decay_epochs=(), rewind=True
    )
    fit(strategy, data, max_epochs=5, callbacks=[watch, *options.pop("also", [])], **options)
    return strategy, data, watch


def test_rewinds_to_the_epoch_nearest_the_holdout_error(tiny, fit):
    strategy, data, _ = rewound(tiny, fit)
    plain = Watch()
    other = SCRUB(copy.deepcopy(tiny.task), sgd(0.3), msteps=4, kd_T=1.0, decay_epochs=())
    fit(other, tiny.data(), max_epochs=5, callbacks=[plain])
    ends = [[w for e, _, _, w in plain.steps if e == epoch][-1] for epoch in range(5)]
    errors = [errors_of(tiny.task, w, data, "forget") for w in ends]
    reference = errors_of(tiny.task, ends[-1], data, "holdout")
    assert strategy.errors == pytest.approx(errors)
    assert strategy.rewound_to == nearest_epoch(errors, reference)
    chosen = ends[strategy.rewound_to]
    assert all(torch.equal(chosen[k], v) for k, v in strategy.task.state_dict().items())
    assert len(set(errors)) > 1, "epochs differ, so that there is something to choose"


def test_rewinding_survives_a_resume_and_is_in_the_last_checkpoint(tiny, fit, tmp_path):
    def saver(folder):
        return ModelCheckpoint(
            folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=True
        )

    whole, _, _ = rewound(tiny, fit, also=[saver(tmp_path / "a")], enable_checkpointing=True)
    last = torch.load(tmp_path / "a" / "last.ckpt", weights_only=True)
    for key, value in whole.state_dict().items():
        assert torch.equal(last["state_dict"][key], value)
    assert last["rewind"]["epochs"] == []
    for step in (4, 6, 13, 29):
        resumed, _, _ = rewound(
            tiny, fit, also=[saver(tmp_path / f"{step}")], enable_checkpointing=True,
            resume=tmp_path / "a" / f"step={step}.ckpt",
        )  # fmt: skip
        assert resumed.rewound_to == whole.rewound_to, step
        assert resumed.errors == whole.errors
        for key, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[key], value), (step, key)


def test_rewinds_where_training_is_stopped_early(tiny, fit):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    strategy, _, watch = rewound(tiny, fit, also=[Stop()])
    assert len(strategy.errors) == 3
    ends = [[w for e, _, _, w in watch.steps if e == epoch][-1] for epoch in range(3)]
    chosen = ends[strategy.rewound_to]
    assert all(torch.equal(chosen[k], v) for k, v in strategy.task.state_dict().items())


def test_measuring_for_the_rewind_changes_nothing_else(tiny, fit):
    """Same weights until the last step: no random number drawn, no layer left in eval mode."""
    _, _, watch = rewound(tiny, fit)
    plain = Watch()
    other = SCRUB(copy.deepcopy(tiny.task), sgd(0.3), msteps=4, kd_T=1.0, decay_epochs=())
    fit(other, tiny.data(), max_epochs=5, callbacks=[plain])
    for (*_, a), (*_, b) in zip(watch.steps[:-1], plain.steps[:-1], strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_rewinding_needs_a_last_epoch(tiny, fit):
    with pytest.raises(ValueError, match=r"`rewind` .* set trainer.max_epochs .* got -1"):
        fit(SCRUB(tiny.task, rewind=True), tiny.data(), max_epochs=-1, max_steps=5)


@pytest.mark.parametrize("name", ["msteps", "alpha", "gamma"])
def test_refuses_negative_values(name, tiny):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
        SCRUB(tiny.task, **{name: -1})


def test_refuses_a_temperature_of_zero(tiny):
    with pytest.raises(ValueError, match="`kd_T` must be above 0, got 0"):
        SCRUB(tiny.task, kd_T=0)
