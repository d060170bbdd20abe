"""Adapters beside frozen weights: nothing else learns, and what is left is a plain network."""

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import erasus_pl.strategies as room
from erasus_pl.__main__ import main
from erasus_pl.loading import load
from erasus_pl.mechanisms import LowRank, SparseUpdate
from erasus_pl.selectors import GradNorm
from erasus_pl.strategies import Strategy
from erasus_pl.tasks import Task

pytestmark = [
    pytest.mark.skipif(
        find_spec("peft") is None, reason="needs peft: pip install 'erasus-pl[llm]'"
    ),
    pytest.mark.filterwarnings(
        "ignore:The dirpath has changed",
        "ignore:You're resuming from a checkpoint that ended before",
    ),
]

CONF = Path(__file__).parents[2] / "conf"
STRATEGIES = {
    n: c for n, c in vars(room).items()
    if isinstance(c, type) and issubclass(c, Strategy) and c is not Strategy
}  # fmt: skip


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


def refused(cls):
    return cls.edit is not Strategy.edit or bool(cls.on_weights) or hasattr(cls, "stage")


LEARN = [n for n, c in STRATEGIES.items() if not refused(c)]


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.02, weight_decay=0.1)


def make(name, task, **options):
    return STRATEGIES[name](copy.deepcopy(task), **{"optimizer": adam} | options)


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


def change(strategy, task):
    """What became of each weight, in double precision, by name."""
    before = dict(task.network.named_parameters())
    now = strategy.task.network.named_parameters()
    return {k: (p.detach().double() - before[k].detach().double()) for k, p in now}


@pytest.mark.parametrize("name", LEARN)
def test_only_adapters_learn_and_a_plain_network_of_that_rank_is_left(name, tiny, fit):
    flags = {k: p.requires_grad for k, p in tiny.task.named_parameters()}
    low = LowRank(rank=2, alpha=4.0)
    strategy = fit(make(name, tiny.task), tiny.data(), callbacks=[low])
    assert strategy.task.state_dict().keys() == tiny.task.state_dict().keys()
    assert {k: p.requires_grad for k, p in strategy.task.named_parameters()} == flags
    assert not hasattr(strategy.task.network, "peft_config")
    moved = change(strategy, tiny.task)
    adapted = {k.rpartition(".")[0] for k in low._adapters}
    assert any(delta.any() for delta in moved.values())
    for key, delta in moved.items():
        if key.rpartition(".")[0] in adapted and key.endswith("weight"):
            a, b = (low._adapters[f"{key.rpartition('.')[0]}.{side}"].double() for side in "AB")
            torch.testing.assert_close(delta, 2.0 * b @ a, rtol=1e-5, atol=1e-6)
            values = torch.linalg.svdvals(delta)
            assert (values[2:] <= 1e-6 * values[0] + 1e-6).all(), key
        else:
            assert not delta.any(), key
    (used,) = strategy.trainer.optimizers
    learnt = sum(p.numel() for g in used.param_groups for p in g["params"])
    extra = strategy.shadow.numel() if name == "BoundaryExpand" else 0
    assert learnt == sum(v.numel() for v in low._adapters.values()) + extra


@pytest.mark.parametrize("name", [n for n in STRATEGIES if n not in LEARN])
def test_refuses_what_is_about_the_weights_themselves(name, tiny, fit, recorded):
    strategy = STRATEGIES[name](copy.deepcopy(tiny.task))
    recorded(strategy, tiny.data())
    before = copy.deepcopy(strategy.task.state_dict())
    with pytest.raises(TypeError, match=f"LowRank leaves the weights as they are, and {name} "):
        fit(strategy, tiny.data(), callbacks=[LowRank()])
    same(strategy.task.state_dict(), before)


def test_merged_is_what_it_was_unmerged(tiny, fit):
    kept = LowRank(rank=2, merge=False)
    runs = [
        fit(make("NegGradPlus", tiny.task, alpha=0.6), tiny.data(), callbacks=[low])
        for low in (LowRank(rank=2), kept)
    ]
    batch = next(iter(runs[0].data.sweep(runs[0].data.retain_set)))
    outputs = [r.task.eval()(batch) for r in runs]
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(outputs[0], tiny.task.eval()(batch), atol=1e-3)
    for name, layer in kept.layers.items():
        same(layer.get_base_layer().weight, tiny.task.network.get_submodule(name).weight)


@pytest.mark.parametrize("name", ["NegGradPlus", "SCRUB", "BadTeacher"])
def test_resumed_equals_uninterrupted_and_checkpoints_are_plain(name, tiny, fit, tmp_path):
    def run(folder, **options):
        saver = ModelCheckpoint(
            folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=True
        )
        callbacks = [GradNorm(0.75), LowRank(rank=2), saver]
        strategy = make(name, tiny.task, **({"rewind": True} if name == "SCRUB" else {}))
        return fit(strategy, tiny.data(), callbacks=callbacks, enable_checkpointing=True, **options)

    whole = run(tmp_path / "whole")
    steps = sorted((tmp_path / "whole").glob("step=*.ckpt"), key=lambda p: int(p.stem[5:]))
    ends = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    resumed = run(tmp_path / "resumed", resume=steps[len(steps) // 2])
    same(resumed.state_dict(), whole.state_dict())
    last = torch.load(tmp_path / "resumed" / "last.ckpt", weights_only=True)
    same(last["optimizer_states"], ends["optimizer_states"])
    loaded = copy.deepcopy(tiny.task)
    loaded.load_weights(tmp_path / "whole" / "last.ckpt")
    if name != "SCRUB":  # goes back after its last checkpoint
        same(loaded.network.state_dict(), whole.task.network.state_dict())


def test_teachers_are_what_they_are_without_adapters(tiny, fit):
    strategy = fit(make("BadTeacher", tiny.task), tiny.data(), callbacks=[LowRank(rank=2)])
    batch = next(iter(strategy.data.sweep(strategy.data.retain_set)))
    same(strategy.original(batch), tiny.task.eval()(batch))
    layers = [m for m in strategy.incompetent.network.modules() if hasattr(m, "lora_B")]
    assert layers
    assert not any(layer.get_delta_weight("default").any() for layer in layers)


@pytest.mark.parametrize("tiny", ["images"], indirect=True)
def test_convolutions_and_the_head_that_features_come_before(tiny, fit):
    network = nn.Sequential(
        nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 1, groups=2), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    task, seen = Task.from_module(network), {}

    class Looks(GradNorm):
        def on_fit_start(self, trainer, pl_module):
            seen["head"] = pl_module.task.head
            super().on_fit_start(trainer, pl_module)

    strategy = make("NegGradPlus", task, alpha=0.6)
    low = LowRank(rank=2)
    fit(strategy, tiny.data(), callbacks=[Looks(0.5), low])
    assert seen["head"] is strategy.task.network[6]
    moved = change(strategy, task)
    assert {k for k, delta in moved.items() if delta.any()} == {"1.weight", "6.weight"}
    values = torch.linalg.svdvals(moved["1.weight"].flatten(1))
    assert values[1] > 1e-4
    buffers = dict(strategy.task.network.named_buffers())
    assert all(torch.equal(buffers[k], b) for k, b in task.network.named_buffers())


def test_targets_by_name_leave_out_what_is_frozen_or_shared(tiny, fit):
    if tiny.name == "text":
        tiny.task.network.head.weight = tiny.task.network.embedding.weight
        tiny.task.network.blocks[0].qkv.requires_grad_(False)
        low = LowRank(rank=2)
        strategy = fit(make("NegGradPlus", tiny.task), tiny.data(), callbacks=[low])
        moved = {k for k, delta in change(strategy, tiny.task).items() if delta.any()}
        assert moved == {f"blocks.0.{n}.weight" for n in ("out", "up", "gate", "down")}
    else:
        low = LowRank(rank=2, targets=["4"])
        strategy = fit(make("NegGradPlus", tiny.task), tiny.data(), callbacks=[low])
        moved = {k for k, delta in change(strategy, tiny.task).items() if delta.any()}
        assert moved == {"4.weight"}


def test_refuses_what_does_not_fit(tiny, fit, tmp_path):
    def run(*callbacks, task=tiny.task, **options):
        return fit(make("NegGradPlus", task), tiny.data(), callbacks=[*callbacks], **options)

    with pytest.raises(ValueError, match="`rank` must be at least 1, got 0"):
        LowRank(rank=0)
    with pytest.raises(ValueError, match=r"`alpha` must be above 0, got 0\.0"):
        LowRank(alpha=0.0)
    with pytest.raises(ValueError, match="`targets`: 'tail' names nothing in this network; it has"):
        run(LowRank(targets=["tail"]))
    with pytest.raises(ValueError, match="give one of SparseUpdate and LowRank, got both"):
        run(LowRank(), SparseUpdate())
    saver = {"enable_checkpointing": True}
    run(ModelCheckpoint(tmp_path / "plain", save_last=True), **saver)
    with pytest.raises(ValueError, match="`ckpt_path`: the checkpoint has no LowRank"):
        run(LowRank(), resume=tmp_path / "plain" / "last.ckpt", max_epochs=4)
    run(LowRank(), ModelCheckpoint(tmp_path / "low", save_last=True), **saver)
    with pytest.raises(ValueError, match="`rank` was 8 and is 2"):
        run(LowRank(rank=2), resume=tmp_path / "low" / "last.ckpt", max_epochs=4)
    torch.manual_seed(7)
    other = copy.deepcopy(tiny.task)
    other.reset()
    with pytest.raises(ValueError, match="`ckpt_path`: the checkpoint adapts another original"):
        run(LowRank(), task=other, resume=tmp_path / "low" / "last.ckpt", max_epochs=4)


def test_a_run_reports_evaluates_and_loads_as_a_plain_network(tmp_path, capsys):
    arguments = ["--config", str(CONF / "quickstart.yaml"), "--config", str(CONF / "debug.yaml")]
    arguments += ["--config", str(CONF / "restrict" / "low_rank.yaml")]
    arguments += [f"--trainer.default_root_dir={tmp_path}", f"--evidence.cache={tmp_path}/cache"]
    arguments += ["--trainer.enable_progress_bar=false"]
    assert main(["fit", *arguments]) == 0, capsys.readouterr().err
    before = (tmp_path / "report.json").read_bytes()
    assert main(["evaluate", *arguments]) == 0, capsys.readouterr().err
    assert b'"unlearned"' in before
    task = load(tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for key, value in task.network.state_dict().items():
        assert torch.equal(saved["state_dict"][f"task.network.{key}"], value)


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_with_half_the_batch_equal_one(tiny, fit):
    for module in tiny.task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    ends = []
    for world in (1, 2):
        strategy = make("NegGradPlus", tiny.task, optimizer=lambda p: torch.optim.SGD(p, lr=0.05))
        options = {"strategy": "ddp_fork", "devices": world} if world > 1 else {}
        fit(strategy, tiny.data(batch_size=8 // world), callbacks=[LowRank(rank=2)], **options)
        ends.append(strategy.task.network.state_dict())
    for key in ends[0]:
        torch.testing.assert_close(*(e[key] for e in ends), rtol=1e-4, atol=1e-5)
