"""What every strategy promises, whatever it does: found by itself, on images and on text."""

import ast
import copy
import inspect
import re
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import erasus_pl.strategies as room
from erasus_pl.strategies import NoEffectWarning, Strategy
from erasus_pl.strategies._stages import Staged
from erasus_pl.tasks import ClassificationTask, Task

FOLDER = Path(room.__file__).parent
CONF = Path(__file__).parents[2] / "conf" / "strategy"
STRATEGIES = {
    n: c for n, c in vars(room).items()
    if isinstance(c, type) and issubclass(c, Strategy) and c is not Strategy
}  # fmt: skip
# What a strategy needs beside its defaults to do something on forty samples.
SETTINGS = {"LFSSD": {"alpha": 1.0}, "SSD": {"alpha": 1.0}}
# Options that stand for what they build, compared as that.
BUILT = ("optimizer", "stages", "members")

pytestmark = pytest.mark.filterwarnings(
    "ignore:The dirpath has changed",
    "ignore:You're resuming from a checkpoint that ended before",
    "ignore:Using ModelCheckpoint with manual optimization",
)


@pytest.fixture
def tiny(tiny, pictures, request):
    """The tiny task; where the strategy under test needs convolutions, a classifier with some.

    What is refused still is skipped here; that it is refused is tested apart.
    """
    cls = STRATEGIES.get(request.node.callspec.params.get("name"))
    if cls is None or _fits(cls, tiny) or "refuse" in request.node.name:
        return tiny
    if tiny.name == "images" and _fits(cls, pictures):
        return pictures
    pytest.skip(f"{cls.__name__} is not for {type(tiny.task).__name__}")


def _fits(cls, tiny):
    return set(cls.requires) <= tiny.task.capabilities


def make(name, task, **options):
    task = copy.deepcopy(task)
    if task.shards_folder is not None:  # else the second of two runs finds what the first trained
        task.shards_folder = shutil.copytree(task.shards_folder, f"{tempfile.mkdtemp()}/copy")
    return STRATEGIES[name](task, **SETTINGS.get(name, {}) | options)


def plain_networks(task):
    """The network of a task, or those of its shards."""
    return getattr(task.network, "members", [task.network])


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


def tensors(content):
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from tensors(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from tensors(value)


@pytest.mark.parametrize("name", STRATEGIES)
def test_changes_the_weights_and_only_them(name, tiny, fit):
    strategy = fit(make(name, tiny.task), tiny.data())
    weights = strategy.task.state_dict()
    assert all(torch.isfinite(v).all() for v in weights.values())
    before = tiny.task.state_dict()
    assert any(not torch.equal(weights[k], before[k]) for k in weights)
    assert {k for k, _ in strategy.named_parameters()} == {
        f"task.{k}" for k, _ in tiny.task.named_parameters()
    }
    assert all(p.requires_grad for p in strategy.task.parameters())


@pytest.mark.parametrize("name", STRATEGIES)
def test_same_seed_same_weights(name, tiny, fit):
    runs = [fit(make(name, tiny.task), tiny.data()).state_dict() for _ in range(2)]
    same(*runs)


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_the_user_froze_stays_frozen(name, tiny, fit):
    layer = next(m for m in tiny.task.network.modules() if isinstance(m, (nn.Linear, nn.Embedding)))
    layer.requires_grad_(False)
    flags = {k: p.requires_grad for k, p in tiny.task.named_parameters()}
    frozen = {k: p.clone() for k, p in tiny.task.named_parameters() if not p.requires_grad}
    strategy = fit(make(name, tiny.task), tiny.data())
    after = dict(strategy.task.named_parameters())
    assert {k: p.requires_grad for k, p in after.items()} == flags
    for key, value in frozen.items():
        assert torch.equal(after[key], value), key
    assert any(not torch.equal(after[k], p) for k, p in tiny.task.named_parameters())


@pytest.mark.parametrize("name", STRATEGIES)
def test_resumed_equals_uninterrupted_and_checkpoints_are_lean(name, tiny, fit, tmp_path):
    def saver(folder):
        return ModelCheckpoint(
            folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_last=True
        )

    on = {"enable_checkpointing": True}
    whole = fit(make(name, tiny.task), tiny.data(), callbacks=[saver(tmp_path / "whole")], **on)
    steps = sorted((tmp_path / "whole").glob("step=*.ckpt"), key=lambda p: int(p.stem[5:]))
    per_epoch = len(steps) // whole.trainer.max_epochs
    ends = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    for at in {1, per_epoch, len(steps) - 1} & set(range(1, len(steps))):
        folder = tmp_path / f"from{at}"
        resumed = fit(
            make(name, tiny.task), tiny.data(), resume=steps[at - 1], callbacks=[saver(folder)],
            **on,
        )  # fmt: skip
        same(resumed.state_dict(), whole.state_dict(), f"step {at}")
        last = torch.load(folder / "last.ckpt", weights_only=True)
        same(last["optimizer_states"], ends["optimizer_states"], f"step {at}")

    middle = torch.load(steps[0], weights_only=True)
    assert middle["state_dict"].keys() == {f"task.{k}" for k in tiny.task.state_dict()}
    needed = ("state_dict", "optimizer_states", "totals", "members")
    rest = {k: v for k, v in middle.items() if k not in needed}
    largest = max(p.numel() for p in tiny.task.parameters())
    assert all(t.numel() < largest for t in tensors(rest))


@pytest.mark.parametrize("name", STRATEGIES)
def test_warns_where_nothing_changed(name, tiny, fit, recorded):
    if tiny.name != "text":
        for network in plain_networks(tiny.task):
            network[1] = nn.Identity()  # a batch norm's statistics change without a step
    strategy = make(name, tiny.task, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    recorded(strategy, tiny.data())
    before = {k: p.detach().clone() for k, p in strategy.task.named_parameters()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(strategy, tiny.data())
    now = dict(strategy.task.named_parameters())
    unchanged = all(torch.equal(now[k], p) for k, p in before.items())
    assert any(w.category is NoEffectWarning for w in caught) == unchanged
    own = {"Amnesiac", "CT", "EUk", "MSG", "Retrain"}  # change weights without their optimiser
    assert unchanged == (not strategy.one_shot and name not in own)


@pytest.mark.parametrize("name", STRATEGIES)
def test_paper_and_configuration_are_complete(name):
    cls = STRATEGIES[name]
    assert cls.paper["title"]
    assert 2000 < cls.paper["year"] < 2100
    assert re.fullmatch(r"\d{4}\.\d{4,5}", cls.paper["arxiv"])
    stem = Path(inspect.getfile(cls)).stem
    assert cls.paper["arxiv"] in (CONF / f"{stem}.yaml").read_text()
    written = yaml.safe_load((CONF / f"{stem}.yaml").read_text())
    assert written["class_path"] == f"erasus_pl.strategies.{name}"
    options = {k: p.default for k, p in inspect.signature(cls).parameters.items() if k != "task"}
    assert written["init_args"].keys() == options.keys()
    for key, default in options.items():
        if key not in BUILT:
            value = written["init_args"][key]
            assert (tuple(value) if isinstance(value, list) else value) == default, key


@pytest.mark.parametrize("name", STRATEGIES)
def test_configuration_resolves_to_the_defaults(name):
    """The file adds nothing to the class's own defaults, the paper's optimiser included."""
    cls = STRATEGIES[name]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Strategy, "model", skip={"task"}, required=False)
    file = CONF / f"{Path(inspect.getfile(cls)).stem}.yaml"
    found = parser.parse_args([f"--model={file}"]).model
    bare = parser.parse_args([f"--model={found.class_path}"]).model
    for key, value in found.init_args.as_dict().items():
        if key not in BUILT:
            assert value == bare.init_args[key] or tuple(value) == bare.init_args[key], key
    task = ClassificationTask(nn.Linear(2, 2))
    pairs = [(found, cls(task))]
    for key in {"stages", "members"} & set(found.init_args.as_dict()):
        pairs += zip(found.init_args[key], cls(task).stages, strict=True)
    for written, default in pairs:
        assert written.class_path.rpartition(".")[2] == type(default).__name__
        if default is not pairs[0][1]:
            for key, value in written.init_args.as_dict().items():
                assert key == "optimizer" or value == getattr(default, key), key
        optimizer = written.init_args.optimizer
        if optimizer is not None:
            weights = list(task.parameters())
            module, _, kind = optimizer.class_path.rpartition(".")
            assert module == "torch.optim"
            given = getattr(torch.optim, kind)(weights, **optimizer.init_args.as_dict())
            assert type(given) is type(default.default_optimizer(weights))
            assert given.defaults == default.default_optimizer(weights).defaults


@pytest.mark.parametrize(
    "name", [n for n, c in STRATEGIES.items() if not set(c.requires) <= set(Task.provides)]
)
def test_refuses_a_task_that_lacks_what_it_needs(name, fit, tiny):
    task = Task(nn.Linear(6, 1), loss=nn.MSELoss())
    with pytest.raises(TypeError, match=f"{name} needs a task with .*GradientAscent"):
        fit(make(name, task), tiny.data())


@pytest.mark.parametrize("name", STRATEGIES)
def test_fits_one_of_the_tiny_tasks_and_refuses_the_others(name, tiny, pictures, fit):
    fits = [_fits(STRATEGIES[name], case) for case in (tiny, pictures)]
    assert any(fits)
    for case, suited in zip((tiny, pictures), fits, strict=True):
        if not suited:
            with pytest.raises(TypeError, match=f"{name} needs a task with .*GradientAscent"):
                fit(make(name, case.task), case.data())


@pytest.mark.parametrize("name", [n for n, c in STRATEGIES.items() if not issubclass(c, Staged)])
def test_is_as_a_stage_what_it_is_alone(name, tiny, fit, recorded):
    """As the only one, and on what another left, if both hold on to the same original."""
    asks = make(name, tiny.task)
    options = recorded(asks, tiny.data())
    original = asks.task
    first = make("FineTune", original, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01))
    fit(first, tiny.data(), max_epochs=2)
    for start in (original, first.task.train()):
        alone = make(name, start, **options)
        alone.__dict__["_given_original"] = copy.deepcopy(original).requires_grad_(False).eval()
        epochs = 1 if alone.one_shot else 2
        before = [first] if start is not original else []
        stages = [_again(s) for s in before] + [_again(alone, **options)]
        lengths = [2 for _ in before] + [epochs]
        staged = STRATEGIES["Pipeline"](copy.deepcopy(original), None, stages, lengths)
        fit(alone, tiny.data(), max_epochs=epochs)
        fit(staged, tiny.data())
        same(staged.state_dict(), alone.state_dict())
        flags = [p.requires_grad for p in original.parameters()]
        assert [p.requires_grad for p in staged.task.parameters()] == flags


def _again(strategy, **options):
    """Makes one like it; but for the task, and what its defaults do not cover."""
    cls = type(strategy)
    settings = SETTINGS.get(cls.__name__, {})
    return lambda task: cls(task, strategy.optimizer, **settings, **options)


def test_no_strategy_imports_another():
    stems = {file.stem for file in FOLDER.glob("[!_]*.py")} - {"base"}
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and file.stem != "__init__":
                assert not set(node.module.split(".")) & stems, file


def _dealt(name, task, data, fit, world, given):
    strategy = make(name, task, optimizer=lambda p: torch.optim.SGD(p, lr=0.05), **given)
    options = {"strategy": "ddp_fork", "devices": world} if world > 1 else {}
    whole = "shards" in strategy.requires  # a process trains whole shards, with whole batches
    return fit(strategy, data(batch_size=8 if whole else 8 // world), **options).task.state_dict()


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes_with_half_the_batch_equal_one(name, tiny, fit, recorded):
    for module in tiny.task.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if tiny.name != "text":
        for network in plain_networks(tiny.task):
            network[1] = nn.Identity()
    given = recorded(make(name, tiny.task), tiny.data())
    one, two = (_dealt(name, tiny.task, tiny.data, fit, world, given) for world in (1, 2))
    assert any(not torch.equal(two[k], v) for k, v in tiny.task.state_dict().items())
    if "targets" in STRATEGIES[name].requires:
        return
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)
