"""A stage is, bit for bit, a run of its own, wherever the whole run is interrupted."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

import erasus_pl.strategies as room
from erasus_pl._lean_loop import LeanEpochLoop
from erasus_pl.callbacks import RunCheckpoint
from erasus_pl.strategies import SCRUB, SSD, CFk, FineTune, NegGradPlus, Pipeline

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed", "ignore:You're resuming from a checkpoint that ended before"
)


def maker(name, **options):
    return lambda task: getattr(room, name)(task, **options)


def adam(lr):
    return lambda p: torch.optim.AdamW(p, lr=lr)


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


class Steps(Callback):
    """What each step was given, and what it left."""

    def __init__(self):
        self.seen = []
        self.lean = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        index = {k: None if b is None else b["index"].tolist() for k, b in batch.items()}
        weights = {k: v.clone() for k, v in pl_module.task.state_dict().items()}
        self.seen.append((index, weights, self.rate, trainer.global_step))
        self.lean.append(trainer.fit_loop.epoch_loop._step is not None)


@pytest.mark.parametrize(
    ("name", "epochs", "options"),
    [
        ("SCRUB", 3, {"msteps": 1, "rewind": True, "optimizer": adam(0.05)}),
        ("SFRon", 2, {"beta": 0.5}),
        ("UNSIR", 3, {}),
        ("SSD", 1, {"alpha": 1.0}),
    ],
)
def test_every_step_of_a_stage_is_one_of_a_run_of_its_own(name, epochs, options, tiny, fit):
    """Samples, weights, learning rate; also of those that count epochs and go back."""
    if name == "UNSIR" and tiny.name == "text":
        pytest.skip("UNSIR is not for text")
    first, later = maker("FineTune", optimizer=adam(0.01)), maker(name, **options)
    staged, alone = Steps(), Steps()
    pipeline = Pipeline(copy.deepcopy(tiny.task), None, [first, later], (2, epochs))
    fit(pipeline, tiny.data(), callbacks=[staged])
    start = fit(first(copy.deepcopy(tiny.task)), tiny.data(), max_epochs=2).task.train()
    second = later(start)
    second.__dict__["_given_original"] = copy.deepcopy(tiny.task).requires_grad_(False).eval()
    fit(second, tiny.data(), max_epochs=epochs, callbacks=[alone])
    assert len(staged.seen) == 8 + len(alone.seen)
    for (index, weights, rate, count), other in zip(staged.seen[8:], alone.seen, strict=True):
        assert (index, rate, count - 8) == (other[0], other[2] * (name != "SSD"), other[3])
        same(weights, other[1])
    same(pipeline.task.state_dict(), second.task.state_dict())


CHAIN = [
    maker("CFk", optimizer=adam(0.01)),
    maker("SSD", alpha=1.0),
    maker("SCRUB", msteps=1, decay_epochs=(1,), rewind=True, optimizer=adam(0.01)),
    maker("RandomLabel", optimizer=adam(0.01)),
]
LENGTHS = (1, 1, 3, 1)


def chain(task):
    return Pipeline(copy.deepcopy(task), stages=CHAIN, epochs=LENGTHS)


class Keep(RunCheckpoint):
    """Every checkpoint of a run, by step and by whether its epoch had ended."""

    def __init__(self, folder):
        super().__init__(every_n_train_steps=1)
        self.folder = folder

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}-end.ckpt")

    def _save(self, trainer):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def keeper(kind, folder):
    if kind == "run":
        return Keep(folder)
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


@pytest.mark.parametrize("kind", ["run", "stock"])
def test_resumed_anywhere_equals_uninterrupted(kind, tiny, fit, tmp_path):
    """From within a stage, from the last step of one, and from the end of its last epoch."""
    on = {"enable_checkpointing": True}
    steps = Steps()
    whole = fit(chain(tiny.task), tiny.data(), callbacks=[steps, keeper(kind, tmp_path)], **on)
    found = sorted(tmp_path.glob("*.ckpt"))
    # RunCheckpoint saves the last step of an epoch once, at the end of that epoch.
    assert len(found) == len(steps.seen)
    latest = max(found, key=lambda p: int(p.stem.removeprefix("step=").split("-")[0]))
    last = torch.load(latest, weights_only=True)
    for path in found:
        at = int(path.stem.removeprefix("step=").split("-")[0])
        if at == len(steps.seen):
            continue
        again, end = Steps(), tmp_path / f"again{at}"
        resumed = fit(
            chain(tiny.task), tiny.data(), resume=path, callbacks=[again, keeper(kind, end)], **on
        )
        same(resumed.state_dict(), whole.state_dict())
        assert len(again.seen) == len(steps.seen) - at, path
        for one, other in zip(steps.seen[at:], again.seen, strict=True):
            assert one[0] == other[0], path
            assert one[2:] == other[2:], path
        newest = max(end.glob("*.ckpt"), key=lambda p: p.stat().st_mtime_ns)
        ends = torch.load(newest, weights_only=True)
        assert str(ends["optimizer_states"]) == str(last["optimizer_states"])
        assert ends["lr_schedulers"] == last["lr_schedulers"]


def test_each_stage_has_its_own_optimiser_and_schedule(tiny, fit):
    steps = Steps()
    fit(chain(tiny.task), tiny.data(), callbacks=[steps])
    rates = [round(rate, 6) for _, _, rate, _ in steps.seen]
    scrub = [0.01] * 6 + [0.001] * 12
    assert rates == [0.01] * 4 + [0.0] * 4 + scrub + [0.01] * 6
    assert [s[3] for s in steps.seen] == list(range(1, len(rates) + 1))


def test_the_original_of_every_stage_is_that_of_the_run(tiny, fit):
    stages = [maker("FineTune", optimizer=adam(0.1)), maker("KLAscent"), maker("BadTeacher")]
    staged = fit(Pipeline(copy.deepcopy(tiny.task), None, stages, (1, 1, 1)), tiny.data())
    for stage in staged.stages[1:]:
        same(stage.original.state_dict(), tiny.task.state_dict())
    assert staged.stages[1].original is staged.stages[2].original


def test_the_lean_loop_runs_where_it_would_run_alone(tiny, fit):
    steps = Steps()
    stages = [maker("FineTune"), maker("SCRUB"), maker("FineTune")]
    staged = fit(Pipeline(copy.deepcopy(tiny.task), None, stages, (1, 1, 1)), tiny.data(),
                 callbacks=[steps])  # fmt: skip
    assert type(staged.trainer.fit_loop.epoch_loop) is LeanEpochLoop
    assert steps.lean == [True] * 4 + [False] * 6 + [True] * 4


def test_modes_are_those_the_task_came_with(tiny, fit):
    """A one-shot stage measures in eval mode; what follows trains, but for what was held."""
    held = next(m for m in tiny.task.network.modules() if not list(m.children()))
    held.eval()
    seen = []

    class Modes(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append((pl_module.task.network.training, held_copy.training))

    staged = Pipeline(
        copy.deepcopy(tiny.task), None, [maker("SSD", alpha=1.0), maker("FineTune")], (1, 1)
    )
    held_copy = next(m for m in staged.task.network.modules() if not list(m.children()))
    fit(staged, tiny.data(), callbacks=[Modes()])
    assert seen == [(False, False)] * 4 + [(True, False)] * 4


def test_a_stage_that_changes_nothing_is_named(tiny, fit):
    stages = [maker("SSD", alpha=1e9), maker("FineTune")]
    staged = Pipeline(copy.deepcopy(tiny.task), None, stages, (1, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(staged, tiny.data())
    said = [str(w.message) for w in caught if w.category is room.NoEffectWarning]
    assert any(text.startswith("SSD changed no weight") for text in said)
    assert not any(text.startswith("FineTune") for text in said)


def test_a_stage_without_epochs_is_left_out(tiny, fit):
    """What it would need of the task too."""
    task = copy.deepcopy(tiny.task)
    stages = [maker("SCRUB"), maker("FineTune"), maker("SSD"), maker("CFk")]
    four = fit(Pipeline(task, None, stages, (0, 1, 0, 1)), tiny.data())
    two = fit(Pipeline(copy.deepcopy(tiny.task), None, stages[1::2], (1, 1)), tiny.data())
    same(four.task.state_dict(), two.task.state_dict())
    assert four.requires == ()
    assert not four.needs_original


def test_epochs_of_the_trainer_may_be_left_to_the_stages(tiny, fit):
    staged = fit(Pipeline(copy.deepcopy(tiny.task), epochs=(2, 1)), tiny.data(), max_epochs=-1)
    assert staged.trainer.current_epoch == 3


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"stages": []}, "`stages` must name at least one strategy, got []"),
        ({"epochs": (1,)}, "`epochs` must have one number for each of the 2 stages, got [1]"),
        ({"epochs": (1, -1)}, "`epochs` must be at least 0, and not all 0, got [1, -1]"),
        ({"epochs": (0, 0)}, "`epochs` must be at least 0, and not all 0, got [0, 0]"),
        (
            {"stages": [SSD, FineTune], "epochs": (2, 1)},
            "`epochs[0]` must be at most 1, since SSD edits the weights once, got 2",
        ),
        (
            {"stages": [SSD, Pipeline]},
            "`stages[1]` cannot be a Pipeline; write what it runs in its place",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(options, error, tiny):
    with pytest.raises((ValueError, TypeError)) as caught:
        Pipeline(tiny.task, **options)
    assert str(caught.value) == error


def test_other_epochs_of_the_trainer_are_refused_with_what_to_set(tiny, fit):
    with pytest.raises(ValueError, match=r"runs 1 \+ 1 epochs: set trainer.max_epochs: 2 or -1"):
        fit(Pipeline(tiny.task), tiny.data(), max_epochs=5)


def test_a_checkpoint_of_other_stages_is_refused(tiny, fit, tmp_path):
    on = {"enable_checkpointing": True, "callbacks": [Keep(tmp_path)]}
    fit(Pipeline(copy.deepcopy(tiny.task)), tiny.data(), **on)
    other = Pipeline(tiny.task, stages=[NegGradPlus, CFk])
    with pytest.raises(ValueError, match=r"made by the stages \['NegGradPlus', 'FineTune'\]"):
        fit(other, tiny.data(), resume=tmp_path / "2.ckpt")


def test_a_task_that_one_stage_cannot_use_is_refused_at_start(fit, tiny):
    task = room.base.Task(torch.nn.Linear(6, 1), loss=torch.nn.MSELoss())
    with pytest.raises(TypeError, match=r"Pipeline needs a task with \['divergence'\]"):
        fit(Pipeline(task, None, [FineTune, SCRUB], (1, 1)), tiny.data())


def _dealt(tiny, fit, world):
    sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.05)}
    stages = [maker("CFk", **sgd), maker("SSD", alpha=1.0), maker("NegGradPlus", alpha=0.9, **sgd)]
    options = {"strategy": "ddp_fork", "devices": world} if world > 1 else {}
    staged = Pipeline(copy.deepcopy(tiny.task), None, stages, (2, 1, 2))
    return fit(staged, tiny.data(batch_size=8 // world), **options).task.state_dict()


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_follow_which_weights_learn(tiny, fit):
    """Of stages that train a part of the weights, none of them, and all."""
    for module in tiny.task.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if tiny.name == "images":
        tiny.task.network[1] = torch.nn.Identity()
    one, two = (_dealt(tiny, fit, world) for world in (1, 2))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)


def test_a_record_that_stages_need_is_asked_for_and_handed_on(tiny, fit):
    stages = [maker("FineTune"), maker("Amnesiac"), maker("Amnesiac")]
    staged = Pipeline(copy.deepcopy(tiny.task), None, stages, (1, 1, 1))
    assert staged.recorder().name == staged.stages[1].recorder().name
    assert fit(staged, tiny.data()).record is not None
    assert [stage.record for stage in staged.stages[1:]] == [staged.record] * 2
    stages[1] = maker("Amnesiac", indices=[0])
    with pytest.raises(ValueError, match="need several records of the original's training"):
        Pipeline(tiny.task, None, stages, (1, 1, 1)).recorder()
    assert Pipeline(tiny.task, None, stages, (1, 0, 1)).recorder() is not None
