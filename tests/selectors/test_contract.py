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
from erasus_pl.selectors import DVRL, DataShapley, Full, Influence, KCenter, Random, Selector

CONF = Path(__file__).parents[2] / "conf" / "selector"
FORGOTTEN = 60
PARTIAL = [getattr(room, n) for n in room.__all__ if n not in ("Coreset", "Selector", "Full")]
SCORED = [kind for kind in PARTIAL if kind.scores is not Selector.scores]
# Their draws are of positions, so they draw other samples where these are permuted; Learned may
# choose one of them.
DRAWN = ("Random", "KCenter", "KMeans", "UPCORE", "DataShapley", "DVRL", "Learned")


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


def test_full_is_the_forget_set(fit, modality):
    assert torch.equal(pick(fit, modality, Full()), torch.arange(FORGOTTEN))


@pytest.mark.parametrize("kind", PARTIAL)
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
