"""Originals and gold: trained as they should be, kept, and found again."""

import pytest
import torch
from torch import nn

from datamodules import DigitsDataModule
from erasus_pl.evaluation.compare import compare, records
from erasus_pl.evaluation.gold import Kept, cache_key, retrain, train_task
from erasus_pl.requests import ForgetClass
from erasus_pl.tasks import Task

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def _task(epochs=3):
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(32, 10),
    )  # fmt: skip
    return Task.from_module(network, epochs=epochs)


@pytest.fixture
def data():
    data = DigitsDataModule(ForgetClass(3))
    data.setup("fit")
    return data


def test_the_retrained_model_never_saw_the_forget_set(data):
    task, seen = _task(epochs=1), set()
    task.network.register_forward_pre_hook(lambda _, args: seen.update(_rows(args[0])))
    train_task(task, data, "retrain", 1, QUIET)
    images = data.train_set.columns["input"]
    forget, retain = (_rows(images[s.positions]) for s in (data.forget_set, data.retain_set))
    assert seen == retain
    assert not seen & (forget - retain)


def _rows(images):
    return {image.numpy().tobytes() for image in images}


def test_gold_trains_from_scratch_in_training_mode_whatever_it_is_copied_from(data):
    task = _task().eval()
    with torch.no_grad():
        for p in task.network.parameters():
            p.fill_(100.0)
    first, second = retrain(task, data, seeds=(1, 1), trainer=QUIET)
    other = retrain(task, data, seeds=(2,), trainer=QUIET)[0]
    for (name, a), b in zip(
        first.network.state_dict().items(), second.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert not torch.equal(first.head.weight, other.head.weight)
    assert first.network[1].weight.abs().max() < 10
    assert first.network[2].num_batches_tracked > 0
    assert not first.training
    assert torch.all(task.network[1].weight == 100.0)


def test_kept_models_are_found_again_and_only_for_the_same_key(data, tmp_path):
    kept, task = Kept(tmp_path, QUIET), _task(epochs=1)
    a, seconds, found = kept.get("original", "k1", task, data, "train", 0)
    assert not found
    b, again, found = kept.get("original", "k1", task, data, "train", 0)
    assert found
    assert again == seconds
    assert torch.equal(a.head.weight, b.head.weight)
    assert not kept.get("original", "k2", task, data, "train", 5)[2]


def test_keys_change_with_any_part_and_not_with_order():
    assert cache_key(a=1, b={"x": 2, "y": 3}) == cache_key(b={"y": 3, "x": 2}, a=1)
    assert cache_key(a=1, b=2) != cache_key(a=1, b=3)


def test_records_are_those_of_a_plain_pass(data):
    task = _task()
    task.train()
    found = records({"original": task, "retrained": task}, data)
    assert task.training
    task.eval()
    for split, dataset in (("forget", data.forget_set), ("holdout", data.holdout_set)):
        rows = [dataset[i] for i in range(len(dataset))]
        x = torch.stack([r["input"] for r in rows])
        y = torch.stack([r["target"] for r in rows])
        with torch.no_grad():
            losses = nn.functional.cross_entropy(task.network(x), y, reduction="none")
            correct = (task.network(x).argmax(1) == y).float()
        record = found["original"]
        assert torch.allclose(torch.from_numpy(record.losses[split]).float(), losses, atol=1e-5)
        assert torch.equal(torch.from_numpy(record.correct[split]).float(), correct)
        assert found["original"].kl_to_retrained[split] == pytest.approx(0.0, abs=1e-6)


def test_compare_judges_original_and_retrained(data):
    original = _task(epochs=25)
    train_task(original, data, "train", 0, QUIET)
    gold = retrain(original, data, seeds=(1, 2, 3), trainer=QUIET)
    assert compare(original, original, gold[:2], data).verdict.outcome == "not forgotten"
    assert compare(original, gold[2], gold[:2], data).verdict.outcome == "forgotten"
    weak = compare(original, gold[2], None, data)
    assert weak.verdict.outcome == "inconclusive"
