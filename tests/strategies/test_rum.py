"""How the forget set is refined, and what each stage gets to see of it."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback

from erasus_pl.selectors import Selector
from erasus_pl.selectors.base import Coreset
from erasus_pl.strategies import RUM, SSD, FineTune, NegGradPlus, RandomLabel
from erasus_pl.strategies.rum import memorisation_proxy, refine


def sgd(lr):
    return lambda p: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=5e-4)


def ascend(task):
    return NegGradPlus(task, sgd(0.05), alpha=0.9)


def relabel(task):
    return RandomLabel(task, sgd(0.05))


def dampen(task):
    return SSD(task, alpha=1.0)


def same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


@given(st.lists(st.integers(0, 5), min_size=3, max_size=20), st.integers(1, 3))
def test_parts_are_cut_from_the_sorted_scores(scores, parts):
    found = refine(torch.tensor(scores, dtype=torch.float32), parts)
    assert sorted(torch.cat(found).tolist()) == list(range(len(scores)))
    sizes = [len(part) for part in found]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)
    for low, high in pairwise(found):
        assert max(scores[i] for i in low) <= min(scores[i] for i in high)
    assert all(part.tolist() == sorted(part.tolist()) for part in found)


def test_proxy_is_what_confidence_lacks_to_one(tiny, fit):
    data = tiny.data()
    data.setup("fit")
    task = tiny.task.eval()
    batch = next(iter(data.sweep(data.forget_set)))
    with torch.no_grad():
        logits = task(batch).double()
        found = memorisation_proxy(task.per_sample_loss(task(batch), batch))
    if tiny.name == "images":
        confidence = logits.softmax(-1).gather(1, batch["target"][:, None])[:, 0]
    else:
        labels = batch["labels"][:, 1:]
        each = logits[:, :-1].softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        kept = labels != -100
        confidence = torch.stack([e[k].prod() ** (1 / k.sum()) for e, k in zip(each, kept)])  # noqa: B905
    torch.testing.assert_close(found.double(), 1 - confidence, rtol=1e-4, atol=1e-6)


class Seen(Callback):
    """Positions that the steps of each stage were given."""

    def __init__(self):
        self.forget, self.retain = {}, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name in ("forget", "retain"):
            if batch[name] is not None:
                into = getattr(self, name).setdefault(pl_module.running, set())
                into |= set(batch[name]["index"].tolist())


def _run(tiny, fit, stages, epochs, data=None, **options):
    seen = Seen()
    rum = RUM(copy.deepcopy(tiny.task), None, stages, epochs, options.pop("scores", None))
    data = data or tiny.data()
    fit(rum, data, callbacks=[seen, *options.pop("callbacks", [])], **options)
    return rum, seen, data


def test_a_stage_sees_its_part_and_keeps_what_comes_later(tiny, fit):
    rum, seen, data = _run(tiny, fit, [dampen, dampen, dampen], (1, 0, 1))
    retained = set(data.retain_set.positions.tolist())
    low, middle, high = (set(part.tolist()) for part in rum.parts)
    assert seen.forget == {0: low, 2: high}
    assert seen.retain == {0: retained | middle | high, 2: retained}
    assert low | middle | high == set(data.forget_set.positions.tolist())
    assert len(data.forget_set) == 16


def test_parts_go_from_low_to_high_by_the_original(tiny, fit):
    rum, _, data = _run(tiny, fit, [ascend, relabel, ascend], (1, 1, 1))
    original = copy.deepcopy(tiny.task).eval()
    with torch.no_grad():
        loss = torch.cat(
            [original.per_sample_loss(original(b), b) for b in data.sweep(data.forget_set)]
        )
    of = dict(zip(data.forget_set.positions.tolist(), loss.tolist(), strict=True))
    means = [max(of[i] for i in part.tolist()) for part in rum.parts]
    least = [min(of[i] for i in part.tolist()) for part in rum.parts]
    assert means[0] <= least[1] <= means[1] <= least[2]


def test_one_part_is_the_strategy_alone(tiny, fit):
    rum, _, _ = _run(tiny, fit, [ascend], (2,))
    alone = fit(ascend(copy.deepcopy(tiny.task)), tiny.data(), max_epochs=2)
    same(rum.task.state_dict(), alone.task.state_dict())


def test_scores_of_a_file_decide(tiny, fit, tmp_path):
    path = tmp_path / "scores.pt"
    torch.save(-torch.arange(40.0), path)
    rum, seen, _ = _run(tiny, fit, [dampen, dampen], (0, 1), scores=str(path))
    assert [part.tolist() for part in rum.parts] == [list(range(16, 32, 2)), list(range(0, 16, 2))]
    assert seen.forget[1] == set(range(0, 16, 2))
    for content in (torch.zeros(16), torch.full((40,), float("nan")), {"scores": 1}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"`scores`: .* each of the 40 training samples, got"):
            _run(tiny, fit, [dampen, dampen], (0, 1), scores=str(path))
    with pytest.raises(FileNotFoundError, match="`scores`: there is no file"):
        _run(tiny, fit, [dampen, dampen], (0, 1), scores=str(tmp_path / "none.pt"))


class FirstSix(Selector):
    def select(self, strategy, dataset, k):
        return Coreset(torch.arange(k), torch.arange(1.0, k + 1))


def test_a_coreset_is_what_is_refined(tiny, fit):
    rum, seen, data = _run(tiny, fit, [dampen, dampen], (1, 1), callbacks=[FirstSix(k=6)])
    assert sorted(torch.cat(rum.parts).tolist()) == list(range(0, 12, 2))
    left_out = set(data.forget_set.positions.tolist()) - set(range(0, 12, 2))
    assert not (seen.retain[0] | seen.retain[1] | seen.forget[0] | seen.forget[1]) & left_out


def test_resumed_anywhere_equals_uninterrupted(tiny, fit, tmp_path):
    class Keep(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if not trainer.is_last_batch:
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    stages, epochs = [ascend, dampen, relabel], (2, 1, 1)
    whole, _, _ = _run(tiny, fit, stages, epochs, callbacks=[Keep()])
    for path in list(tmp_path.glob("*.ckpt")):
        rum, _, data = _run(tiny, fit, stages, epochs, resume=path)
        same(rum.state_dict(), whole.state_dict())
        assert len(data.forget_set) == 16


def test_more_parts_than_samples_are_refused(tiny, fit):
    data = tiny.data()
    with pytest.raises(ValueError, match="`stages`: 16 forget samples do not make 17 parts"):
        _run(tiny, fit, [ascend] * 17, (1,) * 17, data)


def test_on_digits_a_class_is_forgotten(digits, fit):
    """Its middle and high thirds take the low one along."""
    stages = [FineTune, lambda t: FineTune(t, sgd(0.03)), lambda t: RandomLabel(t, sgd(0.03))]
    rum = RUM(copy.deepcopy(digits.original), None, stages, (0, 10, 5))
    found = digits.measure(fit(rum, digits.data(epoch="retain")))
    assert found["forget"] <= 0.05, found
    assert found["retain"] >= digits.retrained["retain"] - 0.03, found
    assert found["test"] >= digits.retrained["test"] - 0.04, found
