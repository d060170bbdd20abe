"""The split, the coreset, the modes of an epoch, and what a resumed run is held to."""

from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from datamodules import ArrayDataset, Pools, UnlearningDataModule
from erasus_pl.requests import (
    ForgetAttribute,
    ForgetClass,
    ForgetGroup,
    ForgetIndices,
    ForgetRandom,
    ForgetTimeWindow,
)

REQUESTS = [
    ForgetClass([1, 3]),
    ForgetAttribute("colour", "red"),
    ForgetGroup([2, 5]),
    ForgetTimeWindow(start=10, end=20),
    ForgetRandom(fraction=0.1),
    ForgetIndices([0, 7, 8]),
]
PREDICATES = REQUESTS[:4]


class Toy(UnlearningDataModule):
    """200 samples to train on and 80 held out, whose input is their id."""

    def __init__(self, request=None, shared_ids=0, holdout=None, m=80, **options):
        super().__init__(request, **options)
        self.shared_ids, self.holdout, self.m = shared_ids, holdout, m
        self.loads = 0

    def load(self):
        self.loads += 1
        sets, columns = [], []
        for n, start in ((200, 0), (self.m, 200 - self.shared_ids)):
            ids = np.arange(n) + start
            target = torch.from_numpy(ids % 5)
            sets.append(
                ArrayDataset({"input": torch.from_numpy(ids)[:, None].float(), "target": target})
            )
            columns.append({
                "id": ids, "target": target.numpy(), "user": ids % 11, "timestamp": ids % 31,
                "colour": np.array(["red", "green", "blue"])[ids % 3],
            })  # fmt: skip
        return Pools("toy", *sets, *columns, holdout=self.holdout)


def _made(request=None, mode=None, rank=0, world=1, **options):
    data = Toy(request, **options)
    if mode is not None:
        progress = SimpleNamespace(current=SimpleNamespace(ready=0))
        data.trainer = SimpleNamespace(
            lightning_module=SimpleNamespace(loader_mode=mode), global_rank=rank, world_size=world,
            training=True, strategy=SimpleNamespace(batch_to_device=lambda batch: batch),
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
        )  # fmt: skip
    data.setup()
    return data


def _ids(batches, side=None):
    picked = (batch if side is None else batch[side] for batch in batches)
    return [i for batch in picked if batch is not None for i in batch["index"].tolist()]


def _names(request):
    return type(request).__name__


@pytest.mark.parametrize("request_", REQUESTS, ids=_names)
def test_the_four_sets_are_disjoint_and_complete(request_):
    data = _made(request_)
    forget, retain, test, holdout = (
        set(s.positions.tolist())
        for s in (data.forget_set, data.retain_set, data.test_set, data.holdout_set)
    )
    assert not forget & retain
    assert not test & holdout
    assert forget | retain == set(range(200))
    assert test | holdout == set(range(80))
    assert min(map(len, (forget, retain, test, holdout))) > 0
    assert data.test_set.dataset is data.holdout_set.dataset is not data.train_set
    assert data.manifest.counts == {
        "train": 200, "forget": len(forget), "retain": len(retain), "test": len(test),
        "holdout": len(holdout),
    }  # fmt: skip


@pytest.mark.parametrize("request_", PREDICATES, ids=_names)
def test_holdout_is_what_the_request_matches_and_test_excludes_it(request_):
    data = _made(request_)
    matched = request_.matches(data._pools.held_out_columns, 80)
    assert torch.equal(data.holdout_set.positions, torch.from_numpy(np.flatnonzero(matched)))
    assert torch.equal(data.test_set.positions, torch.from_numpy(np.flatnonzero(~matched)))
    assert "matches" in data.manifest.holdout


def test_a_class_holdout_has_that_class_alone():
    data = _made(ForgetClass(3))
    assert {int(data.holdout_set[i]["target"]) for i in range(len(data.holdout_set))} == {3}
    assert {int(data.test_set[i]["target"]) for i in range(len(data.test_set))} == {0, 1, 2, 4}


def test_a_random_holdout_does_not_depend_on_seed_or_request():
    sets = [
        _made(ForgetRandom(fraction=f), seed=seed).holdout_set.positions
        for f, seed in ((0.1, 0), (0.3, 1))
    ]
    assert torch.equal(*sets)
    assert len(sets[0]) == 40
    assert len(_made(ForgetRandom(fraction=0.1), holdout_fraction=0.25).holdout_set) == 20


def test_a_request_that_matches_nothing_held_out_draws_the_holdout():
    data = _made(ForgetAttribute("id", 7))
    assert len(data.holdout_set) == 40
    assert "random" in data.manifest.holdout


def test_a_given_holdout_wins_over_the_request():
    mask = np.arange(80) < 30
    data = _made(ForgetClass(3), holdout=mask)
    assert data.holdout_set.positions.tolist() == list(range(30))
    assert data.manifest.holdout == "the holdout data that was given"


def test_samples_that_are_also_held_out_cannot_be_forgotten():
    with pytest.raises(
        ValueError, match=r"1 of the forget set's samples are also held out.*id 199"
    ):
        _made(ForgetIndices([0, 199]), shared_ids=1)
    assert len(_made(ForgetIndices([0, 198]), shared_ids=1).forget_set) == 2


@settings(deadline=None, max_examples=25)
@given(
    fraction=st.floats(0.01, 0.9), batch=st.integers(1, 64), forget_batch=st.integers(1, 64),
    epoch=st.sampled_from(["forget", "retain"]),
)  # fmt: skip
def test_an_epoch_passes_over_one_side_exactly_once(fraction, batch, forget_batch, epoch):
    request = ForgetRandom(fraction=fraction)
    data = _made(request, batch_size=batch, forget_batch_size=forget_batch, epoch=epoch)
    batches = list(data.train_dataloader())
    other = {"forget": "retain", "retain": "forget"}[epoch]
    whole = {"forget": data.forget_set, "retain": data.retain_set}[epoch].positions.tolist()
    assert sorted(_ids(batches, epoch)) == whole
    size = {"forget": forget_batch, "retain": batch}[other]
    assert all(len(b[other]["index"]) == size for b in batches)
    assert len(batches) == len(data.train_dataloader())


def test_samples_arrive_with_their_position_in_the_training_data():
    for batch in _made(ForgetClass(3), batch_size=16).train_dataloader():
        for side in ("forget", "retain"):
            assert torch.equal(batch[side]["input"][:, 0].long(), batch[side]["index"])


def test_the_retain_side_is_shuffled_anew_after_each_pass():
    data = _made(ForgetRandom(count=100), batch_size=10)
    epochs = [_ids(data.train_dataloader(), "retain") for _ in range(3)]
    assert all(sorted(e) == data.retain_set.positions.tolist() for e in epochs)
    assert len({tuple(e) for e in epochs}) == 3


def test_without_a_request_everything_is_trained_on():
    data = _made()
    assert sorted(_ids(data.train_dataloader())) == list(range(200))
    assert data.manifest is None
    assert len(data.forget_set) == 0


class _Plain(pl.LightningModule):
    """A module that knows nothing of forget and retain sets."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 5)
        self.seen = []

    def training_step(self, batch, _):
        self.seen += batch["index"].tolist()
        return nn.functional.cross_entropy(self.layer(batch["input"]), batch["target"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_a_plain_module_trains_on_everything():
    module = _Plain()
    options = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "logger"), False)
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **options)
    trainer.fit(module, Toy(batch_size=64))
    assert sorted(module.seen) == list(range(200))


@pytest.mark.parametrize("mode", ["paired", "sequential", "forget", "retain", "retrain"])
def test_a_strategy_without_a_request_is_refused(mode):
    data = Toy()
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(loader_mode=mode))
    with pytest.raises(ValueError, match=r"`request`: SimpleNamespace needs to know what must go"):
        data.setup("fit")


def test_modes_of_one_side_pass_over_it_once():
    request = ForgetClass(3)
    for mode, other in (("forget", "retain"), ("retain", "forget")):
        data = _made(request, mode, batch_size=16)
        batches = list(data.train_dataloader())
        side = {"forget": data.forget_set, "retain": data.retain_set}[mode]
        assert sorted(_ids(batches, mode)) == side.positions.tolist()
        assert all(batch[other] is None for batch in batches)
    assert sorted(_ids(_made(request, "train").train_dataloader())) == list(range(200))
    data = _made(request, "retrain")
    assert sorted(_ids(data.train_dataloader())) == data.retain_set.positions.tolist()


def test_a_single_pass_sees_each_sample_once_in_order():
    data = _made(ForgetClass(3), "single_pass", batch_size=16)
    batches = list(data.train_dataloader())
    assert _ids(batches, "forget") == data.forget_set.positions.tolist()
    assert _ids(batches, "retain") == data.retain_set.positions.tolist()
    assert batches[-1]["forget"] is None


@pytest.mark.parametrize("epoch", ["forget", "retain"])
def test_sequential_is_all_forget_batches_and_then_the_retain_batches(epoch):
    data = _made(ForgetClass(3), "sequential", batch_size=16, epoch=epoch)
    for _ in range(2):
        batches = list(data.train_dataloader())
        sides = ["forget" if batch["retain"] is None else "retain" for batch in batches]
        assert sides == sorted(sides)
        assert sides.count("forget") == 3
        assert sides.count("retain") == (3 if epoch == "forget" else 10)
        assert sorted(_ids(batches, "forget")) == data.forget_set.positions.tolist()
        if epoch == "retain":
            assert sorted(_ids(batches, "retain")) == data.retain_set.positions.tolist()


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match=r"`loader_mode` must be paired.*got 'both'"):
        _made(ForgetClass(3), "both").train_dataloader()


@pytest.mark.parametrize("mode", ["paired", "sequential", "forget", "retain", "train", "retrain"])
def test_two_ranks_share_the_batches_of_one(mode):
    alone = list(_made(ForgetClass(3), mode, batch_size=20).train_dataloader())
    ranks = [
        list(_made(ForgetClass(3), mode, rank, 2, batch_size=10).train_dataloader())
        for rank in (0, 1)
    ]
    assert len(alone) == len(ranks[0]) == len(ranks[1])
    sides = (None,) if mode in ("train", "retrain") else ("forget", "retain")
    for one, *two in zip(alone, *ranks, strict=True):
        for side in sides:
            assert sorted(_ids(two, side)) == sorted(_ids([one], side))


def test_two_ranks_share_the_samples_that_are_measured():
    ranks = [_made(ForgetClass(3), "paired", rank, 2).val_dataloader() for rank in (0, 1)]
    whole = _made(ForgetClass(3))
    sets = (whole.forget_set, whole.retain_set, whole.test_set, whole.holdout_set)
    for one, other, dataset in zip(*ranks, sets, strict=True):
        assert sorted(_ids(one) + _ids(other)) == dataset.positions.tolist()


def test_measuring_goes_over_the_four_sets_in_order():
    data = _made(ForgetClass(3), batch_size=7)
    sets = (data.forget_set, data.retain_set, data.test_set, data.holdout_set)
    for loader, dataset in zip(data.val_dataloader(), sets, strict=True):
        batches = list(loader)
        assert _ids(batches) == dataset.positions.tolist()
        offset = 0 if dataset.dataset is data.train_set else 200
        inputs = torch.cat([b["input"][:, 0] for b in batches]).long()
        assert torch.equal(inputs - offset, dataset.positions)


def test_a_coreset_of_a_tenth_makes_an_epoch_a_tenth_as_long():
    data = _made(ForgetRandom(count=160), batch_size=4)
    assert len(data.train_dataloader()) == 40
    picked = torch.arange(0, 160, 10)
    data.use_coreset(picked)
    batches = list(data.train_dataloader())
    assert len(batches) == 4
    assert sorted(_ids(batches, "forget")) == data.forget_set.positions[picked].tolist()
    assert torch.equal(data.coreset, data.forget_set.positions[picked])
    data.use_coreset(None)
    assert len(data.train_dataloader()) == 40


def test_weights_of_a_coreset_reach_its_samples():
    data = _made(ForgetClass(3), batch_size=4)
    picked, weights = torch.tensor([9, 1, 5]), torch.tensor([3.0, 0.5, 2.0])
    data.use_coreset(picked, weights)
    expected = dict(zip(data.forget_set.positions[picked].tolist(), weights.tolist(), strict=True))
    (batch,) = data.train_dataloader()
    found = zip(batch["forget"]["index"].tolist(), batch["forget"]["weight"].tolist(), strict=True)
    assert dict(found) == expected
    assert "weight" not in batch["retain"]


def test_forget_and_retain_batches_go_over_their_set_in_order():
    data = _made(ForgetClass(3), "paired", batch_size=16)
    assert _ids(data.forget_batches()) == data.forget_set.positions.tolist()
    assert _ids(data.retain_batches()) == data.retain_set.positions.tolist()
    data.use_coreset(torch.tensor([2, 4]))
    assert _ids(data.forget_batches()) == data.forget_set.positions[[2, 4]].tolist()


@pytest.mark.parametrize("step", [1, 6, 9, 14])
def test_a_resumed_run_goes_on_with_the_batches_that_were_left(step):
    def walk(data, steps):
        out = []
        while len(out) < steps:
            for batch in data.train_dataloader():
                out.append((batch["forget"]["index"], batch["retain"]["index"], torch.rand(2)))
                if len(out) == steps:
                    break
        return out

    options = {"request": ForgetClass(3), "batch_size": 7, "seed": 4}
    whole = walk(_made(**options), 18)
    first, second = _made(**options), _made(**options)
    walk(first, step)
    second.load_state_dict(first.state_dict())
    for before, after in zip(whole[step:], walk(second, 18 - step), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_order_follows_the_seed():
    orders = [
        _ids(_made(ForgetClass(3), seed=seed).train_dataloader(), "forget") for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[1]) == sorted(orders[2])


def test_another_request_cannot_take_up_a_run():
    state = _made(ForgetRandom(fraction=0.1)).state_dict()
    with pytest.raises(ValueError, match=r"fraction was 0\.1, is now 0\.2.*counts\.forget was 20"):
        _made(ForgetRandom(fraction=0.2)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"request was ForgetRandom\(.*is now ForgetClass\("):
        _made(ForgetClass(3)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"holdout was 40, is now 16"):
        _made(ForgetRandom(fraction=0.1), holdout_fraction=0.2).load_state_dict(state)
    again = _made(ForgetRandom(fraction=0.1))
    again.load_state_dict({**state, "step": 5})
    assert again.step == 5


def test_state_is_plain_so_that_checkpoints_load_with_weights_only(tmp_path):
    state = _made(ForgetClass(3)).state_dict()
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state


def test_data_is_loaded_once():
    data = _made(ForgetClass(3))
    data.setup("fit")
    data.setup("validate")
    assert data.loads == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"forget_batch_size": 0}, "`forget_batch_size` must be at least 1, got 0"),
        ({"holdout_fraction": 1.0}, r"`holdout_fraction` must be in \(0, 1\), got 1.0"),
        ({"num_workers": -1}, "`num_workers` must be at least 0, got -1"),
    ],
)
def test_bad_options_are_named_with_what_is_accepted(options, message):
    with pytest.raises(ValueError, match=message):
        Toy(**options)


def test_columns_of_unlike_length_are_refused():
    with pytest.raises(ValueError, match=r"columns must have one length, got \{'a': 2, 'b': 3\}"):
        ArrayDataset({"a": torch.zeros(2), "b": torch.zeros(3)})


@pytest.mark.parametrize("mode", ["paired", "single_pass", "sequential"])
def test_a_part_is_what_steps_see_and_validation_sees_the_whole(mode):
    """The coreset too: whoever asks for a part has chosen it with the coreset in mind."""
    data = _made(ForgetClass([1]), mode, batch_size=16)
    whole, retained = data.forget_set.positions, data.retain_set.positions
    data.use_coreset(torch.tensor([0, 1, 2]), torch.tensor([1.0, 2.0, 3.0]))
    part, kept = whole[1:9], torch.cat([retained, whole[9:]]).sort().values
    data.use_part(part, kept)
    assert torch.equal(data.forget_set.positions, part)
    assert torch.equal(data.retain_set.positions, kept)
    seen = {"forget": set(), "retain": set()}
    for batch in data.train_dataloader():
        for name, found in batch.items():
            if found is not None:
                seen[name] |= set(found["index"].tolist())
    assert seen["forget"] == set(part.tolist())
    assert seen["retain"] <= set(kept.tolist())
    assert mode != "single_pass" or seen["retain"] == set(kept.tolist())
    measured = [torch.cat([b["index"] for b in loader]) for loader in data.val_dataloader()[:2]]
    assert torch.equal(measured[0], whole)
    assert torch.equal(measured[1], retained)
    data.use_part(None)
    assert torch.equal(data.forget_set.positions, whole)
    assert torch.equal(data.retain_set.positions, retained)
    data.use_part(part)
    data.setup("fit")
    assert torch.equal(data.forget_set.positions, whole)
    assert data.coreset.tolist() == whole[:3].tolist()
