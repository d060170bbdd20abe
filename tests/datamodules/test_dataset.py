"""Any map dataset: where its columns come from, and what may not overlap."""

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split

from datamodules import DatasetDataModule, UnlearningDataModule
from erasus_pl.requests import ForgetAttribute, ForgetClass, ForgetGroup, ForgetIndices

ONE = ForgetIndices([0])


class Images(Dataset):
    """As torchvision's datasets are: pairs, `.data` and `.targets`."""

    def __init__(self, n=30, shift=0):
        self.data = np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2) + shift
        self.targets = [i % 3 for i in range(n)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return torch.from_numpy(self.data[i] / 255).float(), self.targets[i]


class Rows:
    """As Hugging Face datasets are: dicts by number, columns by name."""

    def __init__(self, n=30, start=0):
        at = range(start, start + n)
        self.columns = {
            "pixels": [[i / 10, 1.0] for i in at], "label": [i % 3 for i in at],
            "user": [f"u{i % 4}" for i in at], "id": list(at),
        }  # fmt: skip
        self.column_names = list(self.columns)
        self._fingerprint = f"{start}"

    def __len__(self):
        return len(self.columns["id"])

    def __getitem__(self, key):
        if isinstance(key, str):
            return self.columns[key]
        return {name: column[key] for name, column in self.columns.items()}


KEYS = {"input": "pixels", "target": "label"}


def _made(train, held_out=None, **options):
    data = DatasetDataModule(train, held_out, **options)
    data.setup()
    return data


def test_torch_style_pairs_with_targets():
    data = _made(Images(), Images(20), request=ForgetClass(2), batch_size=5)
    assert [int(i) % 3 for i in data.forget_set.positions] == [2] * 10
    assert data.manifest.counts["holdout"] == 6
    batch = next(iter(data.train_dataloader()))["forget"]
    assert batch["input"].shape == (5, 2, 2)
    assert batch["target"].tolist() == [2] * 5


def test_hugging_face_style_rows_with_columns():
    data = _made(Rows(), Rows(20, 30), keys=KEYS, request=ForgetGroup("u1"), batch_size=4)
    columns = data._pools.columns
    assert set(columns) == {"label", "target", "user", "id"}
    assert [columns["user"][i] for i in data.forget_set.positions] == ["u1"] * 8
    batch = next(iter(data.train_dataloader()))["retain"]
    assert set(batch) == {"input", "target", "index"}
    assert batch["input"].shape == (4, 2)
    assert torch.equal(batch["input"][:, 0], batch["index"] / 10)
    by_class = _made(Rows(), Rows(20, 30), keys=KEYS, request=ForgetClass(2))
    assert len(by_class.forget_set) == 10


def test_rows_are_taken_whole_without_keys():
    data = _made(Rows(), Rows(20, 30), request=ONE)
    batch = next(iter(data.sweep(data.retain_set)))
    assert set(batch) == {"pixels", "label", "user", "id", "index"}


def test_columns_can_be_given():
    columns = {"user": np.arange(30) % 5}
    data = _made(
        Images(), Images(20), columns=columns, held_out_columns={"user": [0] * 20},
        request=ForgetAttribute("user", 4),
    )  # fmt: skip
    assert [i % 5 for i in data.forget_set.positions.tolist()] == [4] * 6
    assert set(data._pools.columns) == {"user", "target"}


def test_tensors_subsets_and_concatenations_show_their_targets():
    x, y = torch.randn(60, 3), torch.arange(60) % 6
    train, held_out = random_split(TensorDataset(x, y), [40, 20])
    data = _made(train, held_out, request=ForgetClass(4))
    assert {int(data.forget_set[i][1]) for i in range(len(data.forget_set))} == {4}
    parts = TensorDataset(x[:25], y[:25]), TensorDataset(x[25:40], y[25:40])
    data = _made(ConcatDataset(parts), TensorDataset(x[40:], y[40:]), request=ForgetClass(4))
    assert data._pools.columns["target"].tolist() == y[:40].tolist()


def test_test_and_holdout_can_be_given_apart():
    data = _made(Images(), test=Images(12, 1), holdout=Images(7, 2), request=ForgetClass(1))
    assert data.test_set.positions.tolist() == list(range(12))
    assert data.holdout_set.positions.tolist() == list(range(12, 19))
    assert torch.equal(data.holdout_set[0][0], Images(7, 2)[0][0])
    assert data.manifest.holdout == "the holdout data that was given"


def test_what_is_in_memory_is_part_of_the_fingerprint():
    prints = [
        _made(train, Images(20), request=ONE).manifest.fingerprint
        for train in (Images(), Images(), Images(shift=1), Subset(Images(), range(1, 30)))
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    x, y = torch.zeros(9, 2), torch.arange(9) % 2
    held_out = TensorDataset(x[:3], y[:3])
    tensors = [
        _made(TensorDataset(x + i, y), held_out, request=ONE).manifest.fingerprint for i in (0, 1)
    ]
    assert tensors[0] != tensors[1]
    rows = [_made(Rows(9, i), Rows(9, 50), request=ONE).manifest.fingerprint for i in (0, 9)]
    assert rows[0] != rows[1]


def test_one_object_cannot_be_trained_on_and_held_out():
    images = Images()
    with pytest.raises(ValueError, match=r"`train` and `held_out` are the same object"):
        _made(images, images)


def test_parts_of_one_dataset_may_not_share_a_sample():
    images = Images()
    inner = Subset(images, range(10, 30))
    with pytest.raises(ValueError, match=r"share 2 samples of one dataset, the first at 18"):
        _made(Subset(images, range(20)), Subset(inner, range(8, 20)))
    with pytest.raises(ValueError, match=r"`test` and `holdout` share 1 samples.*at 25"):
        _made(
            Subset(images, range(20)), test=Subset(images, range(20, 26)),
            holdout=Subset(images, [25, 27]),
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"`train` and `held_out` share 5 samples"):
        _made(images, Subset(images, range(5)))


def test_an_id_may_not_be_in_two_places():
    with pytest.raises(ValueError, match=r"`train` and `held_out` share 3 samples.*with id 27"):
        _made(Rows(), Rows(20, 27))
    with pytest.raises(ValueError, match=r"`test` and `holdout` share 1 samples.*with id 39"):
        _made(Rows(), test=Rows(10, 30), holdout=Rows(10, 39))
    assert len(_made(Rows(), test=Rows(10, 30), holdout=Rows(10, 40)).test_set) == 10


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "give `train` and either `held_out` or both of `test` and `holdout`, got train$"),
        ({"test": Images(5)}, "got train, test$"),
        ({"held_out": Images(5), "test": Images(5), "holdout": Images(5)}, "got train, held_out"),
        ({"held_out": Images(1)}, "`held_out` must have 2 samples or more, got 1"),
        ({"test": Images(0), "holdout": Images(5)}, "`test` must have 1 samples or more, got 0"),
        ({"held_out": Images(5), "columns": {"u": [1]}},
         r"`columns`: 'u' must have shape \(30,\), one value per sample, got \(1,\)"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(parts, message):
    with pytest.raises(ValueError, match=message):
        _made(Images(), **parts)


def test_what_is_no_map_dataset_is_refused():
    with pytest.raises(
        TypeError, match=r"`train` must have __len__ and __getitem__, got generator"
    ):
        _made((i for i in range(3)), Images())
    with pytest.raises(TypeError, match=r"`keys` needs items that are dicts, got tuple"):
        next(iter(_made(Images(), Images(9), keys=KEYS).train_dataloader()))
    with pytest.raises(ValueError, match=r"items have no 'image', but pixels, label"):
        next(iter(_made(Rows(), Rows(9, 40), keys={"input": "image"}).train_dataloader()))


def test_random_augmentation_in_a_dataset_is_the_same_with_workers(drawing):
    held_out = Images(9)
    batches = [
        list(_made(drawing, held_out, batch_size=8, num_workers=n).train_dataloader())
        for n in (0, 2)
    ]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one["input"], other["input"])


def test_datasets_can_come_from_yaml(tmp_path):
    kind = f"{__name__}.Images"
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({
        "class_path": "datamodules.DatasetDataModule",
        "init_args": {
            "train": {"class_path": kind, "init_args": {"n": 21}},
            "held_out": {"class_path": kind, "init_args": {"n": 9, "shift": 3}},
            "columns": {"user": list(range(21))},
            "batch_size": 7,
        },
    }))  # fmt: skip
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(UnlearningDataModule, "data")
    parsed = parser.parse_args([f"--data={tmp_path / 'data.yaml'}"])
    data = parser.instantiate(parsed).data
    data.setup()
    assert [len(b["index"]) for b in data.train_dataloader()] == [7, 7, 7]
    assert data._pools.columns["user"].tolist() == list(range(21))
