"""What every selector must hold, on every task."""

import copy
import importlib
import inspect
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback

import erasus_pl.selectors as room
from erasus_pl.selectors import (
    DVRL,
    DataShapley,
    Full,
    Influence,
    KCenter,
    Memorization,
    Random,
    Selector,
)

CONF = Path(__file__).parents[2] / "conf" / "selector"
FORGOTTEN = 60
PARTIAL = [getattr(room, n) for n in room.__all__ if n not in ("Coreset", "Selector", "Full")]
SCORED = [kind for kind in PARTIAL if kind.scores is not Selector.scores]
# Their draws are of positions, so they draw other samples where these are permuted; Learned may
# choose one of them.
DRAWN = (
    "Random", "KCenter", "KMeans", "UPCORE", "DataShapley", "DVRL", "Learned", "Memorization",
)  # fmt: skip
# They train models of their own, on batches of the size that the data has.
TRAINING = ("Memorization",)


class Watch(Callback):
    """Notes the state of a run around the selection."""

    def __init__(self):
        self.seen = []

    def on_fit_start(self, trainer, pl_module):
        self.seen.append(
            {
                "modes": [m.training for m in pl_module.modules()],
                "values": {k: v.clone() for k, v in pl_module.state_dict().items()},
                "trainable": [p.requires_grad for p in pl_module.parameters()],
                "grads": [p.grad for p in pl_module.parameters()],
                "random": torch.get_rng_state(),
                "hooks": sum(
                    len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pl_module.modules()
                ),
            }
        )


def make(kind, **given):
    """A selector; strong damping makes few iterations of Influence, others are told to make few."""
    few = {
        Influence: {"damping": 1.0},
        DVRL: {"iterations": 50},
        DataShapley: {"permutations": 100},
        Memorization: {"models": 4},
    }
    return kind(**next((v for k, v in few.items() if issubclass(kind, k)), {}), **given)


def pick(fit, modality, selector, **options):
    return fit(selector, copy.deepcopy(modality.task), modality.columns, **options).picked


@pytest.mark.parametrize("kind", PARTIAL)
@pytest.mark.parametrize("k", [1, 7, FORGOTTEN])
def test_exactly_k_positions_of_the_forget_set(fit, modality, kind, k):
    picked = pick(fit, modality, make(kind, k=k), batch_size=16)
    assert len(picked) == k
    assert picked.unique().numel() == k
    assert int(picked.max()) < FORGOTTEN


@pytest.mark.parametrize("kind", PARTIAL)
def test_more_than_there_are_is_all_of_them_and_a_warning(fit, modality, kind):
    with pytest.warns(UserWarning, match=f"`k` is 99 and the forget set has {FORGOTTEN} samples"):
        found = fit(make(kind, k=99), copy.deepcopy(modality.task), modality.columns)
    assert torch.equal(found.picked, torch.arange(FORGOTTEN))
    weighted = {"Craig", "GradMatch"} & {kind.__name__}
    assert (found.data._weights is not None) == bool(weighted)


@pytest.mark.parametrize("kind", [Full, *PARTIAL])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_sample_that_is_not_finite_is_named_by_its_training_position(fit, modality, kind, poison):
    """Of a forget set whose positions are not those of the training data."""
    task, columns = copy.deepcopy(modality.task), dict(modality.columns)
    forgotten = range(40, 40 + FORGOTTEN)
    if "input" in columns:
        columns["input"] = columns["input"].clone()
        columns["input"][[55, 70]] = poison
    else:
        embedding = next(m for m in task.modules() if isinstance(m, torch.nn.Embedding))
        for name in ("input_ids", "labels"):
            columns[name] = columns[name].clone()
            columns[name][columns[name] == 10] = 9
            columns[name][[55, 70], 1] = 10
        columns["attention_mask"] = columns["attention_mask"].clone()
        columns["attention_mask"][[55, 70], 1] = 1
        with torch.no_grad():
            embedding.weight[10] = poison
    selector = Full() if kind is Full else make(kind, k=5)
    with pytest.raises(ValueError, match=rf"{kind.__name__}: .* sample 55 of the training data"):
        fit(selector, task, columns, forgotten=forgotten)


@pytest.mark.parametrize("kind", PARTIAL)
def test_copies_of_few_samples(fit, modality, kind):
    """More are asked for than differ from each other."""
    columns = {k: v.clone() for k, v in modality.columns.items()}
    for column in columns.values():
        column[:FORGOTTEN] = column[torch.arange(FORGOTTEN) % 5]
    found = fit(make(kind, k=9), copy.deepcopy(modality.task), columns)
    assert found.picked.unique().numel() == 9
    if found.data._weights is not None:
        assert found.data._weights[found.picked].isfinite().all()


@pytest.mark.parametrize("kind", PARTIAL)
def test_a_forget_set_of_one_class(fit, modality, kind):
    columns = {k: v.clone() for k, v in modality.columns.items()}
    if "target" not in columns:
        pytest.skip("sequences have no class")
    columns["target"][:FORGOTTEN] = 2
    found = fit(make(kind, k=9), copy.deepcopy(modality.task), columns)
    assert found.picked.unique().numel() == 9


def test_full_is_the_forget_set(fit, modality):
    assert torch.equal(pick(fit, modality, Full()), torch.arange(FORGOTTEN))


@pytest.mark.parametrize("kind", [kind for kind in PARTIAL if kind.__name__ not in TRAINING])
def test_the_batch_size_changes_nothing(fit, modality, kind):
    picks = [pick(fit, modality, make(kind, k=12), batch_size=size) for size in (7, 16, 64)]
    assert torch.equal(picks[0], picks[1])
    assert torch.equal(picks[1], picks[2])


@pytest.mark.parametrize("kind", [kind for kind in PARTIAL if kind.__name__ not in DRAWN])
def test_a_permuted_dataset_permutes_the_pick(fit, modality, kind):
    """Influence averages its curvature over all samples here, so nothing is drawn."""
    order = torch.cat([torch.randperm(FORGOTTEN), torch.arange(FORGOTTEN, 120)])
    plain = pick(fit, modality, make(kind, k=12), batch_size=16)
    permuted = pick(fit, modality, make(kind, k=12), order=order, batch_size=16)
    assert torch.equal(order[permuted].sort().values, plain.sort().values)
    assert not torch.equal(permuted, plain)


@pytest.mark.parametrize("kind", PARTIAL)
def test_the_seed_decides_and_nothing_else(fit, modality, kind):
    def again(selector, seed):
        torch.manual_seed(seed)
        return pick(fit, modality, selector)

    assert torch.equal(again(make(kind, k=9), 1), again(make(kind, k=9), 2))


@pytest.mark.parametrize("kind", [Random, KCenter])
def test_other_seeds_draw_other_samples(fit, modality, kind):
    picks = {tuple(pick(fit, modality, make(kind, k=9, seed=seed)).tolist()) for seed in range(4)}
    assert len(picks) > 1


@pytest.mark.parametrize("kind", [Full, *PARTIAL])
def test_a_selection_leaves_no_trace(fit, modality, kind):
    task = copy.deepcopy(modality.task)
    frozen = next(task.network.parameters())
    frozen.requires_grad_(False)
    task.train()
    before, after = Watch(), Watch()
    inner = kind() if kind is Full else make(kind, k=5)

    class Between(type(inner)):
        def on_fit_start(self, trainer, pl_module):
            before.on_fit_start(trainer, pl_module)
            super().on_fit_start(trainer, pl_module)
            after.on_fit_start(trainer, pl_module)

    inner.__class__ = Between
    fit(inner, task, modality.columns)
    (then,), (now,) = before.seen, after.seen
    assert then["modes"] == now["modes"]
    assert then["trainable"] == now["trainable"]
    assert not frozen.requires_grad
    assert all(grad is None for grad in now["grads"])
    assert torch.equal(then["random"], now["random"])
    assert then["hooks"] == now["hooks"]
    assert all(torch.equal(then["values"][k], v) for k, v in now["values"].items())


@pytest.mark.parametrize("kind", SCORED)
def test_one_score_for_each_sample(fit, modality, kind):
    scores = []

    class Spy(kind):
        def scores(self, strategy, dataset):
            scores.append(super().scores(strategy, dataset))
            return scores[-1]

    pick(fit, modality, make(Spy, k=12), batch_size=16)
    assert scores[0].shape == (FORGOTTEN,)
    assert scores[0].unique().numel() == FORGOTTEN


class Keep(Callback):
    """Writes what each process picked."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_start(self, trainer, pl_module):
        torch.save(pl_module.data.coreset, self.folder / f"{trainer.global_rank}.pt")


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("kind", PARTIAL)
def test_two_processes_pick_what_one_does(fit, modality, kind, tmp_path):
    plain = pick(fit, modality, make(kind, k=7), batch_size=16)
    pick(fit, modality, make(kind, k=7), world=2, watch=[Keep(tmp_path)], batch_size=16)
    for rank in range(2):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt", weights_only=True), plain)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_part_writes_out_its_class_values(path):
    part = yaml.safe_load(path.read_text())
    module, _, name = part["class_path"].rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    accepted = inspect.signature(kind.__init__).parameters
    given = part.get("init_args", {})
    assert set(given) == set(accepted) - {"self"}
    for key, value in given.items():
        if key != "fraction":
            assert value == accepted[key].default
    assert isinstance(kind(**given), Selector)


def test_every_selector_has_a_part():
    kinds = {v for v in vars(room).values() if isinstance(v, type) and issubclass(v, Selector)}
    parts = {yaml.safe_load(p.read_text())["class_path"] for p in CONF.glob("*.yaml")}
    assert parts == {f"erasus_pl.selectors.{k.__name__}" for k in kinds - {Selector}}
    for path in CONF.glob("*.yaml"):
        found = importlib.import_module(f"erasus_pl.selectors.{path.stem}")
        assert yaml.safe_load(path.read_text())["class_path"].rpartition(".")[2] in found.__all__
