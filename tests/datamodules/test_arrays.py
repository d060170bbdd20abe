"""Image arrays: pixels as they are in the file, augmentation that follows from a key."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import ArrayDataModule
from datamodules.arrays import crop_flip
from datamodules.order import mix
from erasus_pl.requests import ForgetAttribute, ForgetClass, ForgetIndices


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (40, 6, 5, 3), dtype=np.uint8),
        "y_train": (np.arange(40) % 4).astype(np.uint8)[:, None],
        "x_test": rng.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8),
        "y_test": (np.arange(20) % 4).astype(np.uint8),
        "patient": np.arange(40) % 7, "patient_test": np.arange(20) % 7,
    }  # fmt: skip


@pytest.fixture
def save(tmp_path):
    def write(arrays):
        np.savez(tmp_path / "images.npz", **arrays)
        return str(tmp_path / "images.npz")

    return write


def _made(path, **options):
    data = ArrayDataModule(path, **options)
    data.setup()
    return data


def _images(data, dataset):
    return torch.cat([batch["input"] for batch in data.sweep(dataset)])


def test_images_are_channels_first_between_0_and_1(arrays, save):
    data = _made(save(arrays), request=ForgetClass(1), batch_size=8)
    expected = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(_images(data, data._pools.train), expected)
    assert data.manifest.dataset == "images.npz"
    batch = next(iter(data.train_dataloader()))["forget"]
    assert batch["input"].dtype == torch.float32
    assert batch["target"].tolist() == [1] * 8
    assert torch.equal(data._pools.train[5]["input"], _images(data, data._pools.train)[5])


def test_grey_images_get_one_channel(arrays, save):
    grey = {k: v[..., 0] if k.startswith("x") else v for k, v in arrays.items()}
    data = _made(save(grey), mean=[0.5], std=[0.25])
    expected = (torch.from_numpy(grey["x_test"])[:, None] / 255 - 0.5) / 0.25
    torch.testing.assert_close(_images(data, data._pools.held_out), expected)


def test_channels_are_standardised_each_by_its_own(arrays, save):
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    data = _made(save(arrays), mean=mean, std=std)
    expected = torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2) / 255
    for c in range(3):
        expected[:, c] = (expected[:, c] - mean[c]) / std[c]
    torch.testing.assert_close(_images(data, data._pools.train), expected)


def test_a_part_of_the_training_images_can_be_held_out(arrays, save):
    data = _made(
        save(arrays), held_out=0.25, columns={"who": "patient"}, request=ForgetAttribute("who", 3)
    )
    train, held_out = data._pools.columns["row"], data._pools.held_out_columns["row"]
    assert sorted([*train, *held_out]) == list(range(40))
    assert len(held_out) == 10
    forget = train[data.forget_set.positions.numpy()]
    assert set(forget) == set(range(3, 40, 7)) & set(train)
    again = _made(save(arrays), held_out=0.25, request=ForgetClass(1))
    assert again._pools.columns["row"].tolist() == train.tolist()
    assert again.manifest.fingerprint == data.manifest.fingerprint


def test_columns_of_both_files_serve_requests(arrays, save):
    data = _made(
        save(arrays), columns={"who": "patient"}, held_out_columns={"who": "patient_test"},
        request=ForgetAttribute("who", 3),
    )  # fmt: skip
    assert data.forget_set.positions.tolist() == list(range(3, 40, 7))
    assert data.holdout_set.positions.tolist() == list(range(3, 20, 7))


def test_limit_takes_the_first_images(arrays, save):
    data = _made(save(arrays), limit=12, request=ForgetIndices([0]))
    assert len(data.train_set) == 12
    assert data.manifest.counts["test"] + data.manifest.counts["holdout"] == 20


@settings(deadline=None, max_examples=60)
@given(key=st.integers(0, 2**63 - 1), padding=st.integers(0, 4))
def test_a_crop_is_a_window_of_the_padded_image_or_its_mirror(key, padding):
    image = torch.arange(1, 2 * 6 * 5 + 1).view(1, 2, 6, 5)
    found = crop_flip(image, torch.tensor([key]), padding)[0]
    padded = F.pad(image, [padding] * 4)[0]
    windows = [
        padded[:, y : y + 6, x : x + 5]
        for y in range(2 * padding + 1)
        for x in range(2 * padding + 1)
    ]
    matches = [torch.equal(found, w) + 2 * torch.equal(found, w.flip(2)) for w in windows]
    assert sum(match > 0 for match in matches) == 1


def test_every_shift_and_mirror_is_as_likely():
    image = torch.arange(1, 26).view(1, 1, 5, 5).expand(20_000, -1, -1, -1)
    keys = torch.tensor([mix(i) for i in range(20_000)])
    _, counts = crop_flip(image, keys, 1).flatten(1).unique(dim=0, return_counts=True)
    assert len(counts) == 18
    expected = 20_000 / 18
    assert ((counts - expected).square() / expected).sum() < 45  # χ² of 17 degrees, p < 0.001


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_keyed_by_pass_and_image_and_only_in_training(arrays, save, workers):
    path = save(arrays)
    data = _made(path, augment="crop_flip", batch_size=16, seed=5, num_workers=workers)
    plain = _made(path, batch_size=16)
    assert torch.equal(
        _images(data, data._pools.train), _images(plain, plain._pools.train)
    )  # measured as they are
    whole = (torch.from_numpy(arrays["x_train"]).permute(0, 3, 1, 2) / 255).float()
    epochs = [list(data.train_dataloader()) for _ in range(2)]
    for cycle, batches in enumerate(epochs):
        index = torch.cat([batch["index"] for batch in batches])
        keys = torch.tensor([mix(5, cycle, i) for i in index.tolist()])
        expected = crop_flip(whole[index], keys)
        torch.testing.assert_close(torch.cat([b["input"] for b in batches]), expected)
    one, two = (torch.cat([b["input"] for b in e])[torch.cat([b["index"] for b in e]).argsort()]
                for e in epochs)  # fmt: skip
    assert not torch.equal(one, two)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((40, 6, 5, 3))}, r"uint8 with values 0 to 255, got float"),
        ({"x_train": np.zeros((40, 3, 6, 5), np.uint8)}, r"got \(40, 3, 6, 5\); move the channels"),
        ({"x_train": np.zeros((40, 6), np.uint8)}, r"\(n, H, W\) or \(n, H, W, C\), got \(40, 6\)"),
        ({"y_train": np.zeros(39, int)}, r"classes 'y_train' must have shape \(40,\).*got \(39,\)"),
        ({"y_train": np.full(40, 0.5)}, "'y_train' must be whole numbers from 0, got float64"),
        ({"y_test": np.full(20, -1)}, "'y_test' must be whole numbers from 0, .* the lowest -1"),
        ({"x_test": np.zeros((20, 6, 6, 3), np.uint8)}, r"of those of 'x_train', \(6, 5, 3\), got"),
        ({"patient": np.zeros(3)}, r"`columns`: 'who' \('patient' in the file\) must have shape"),
    ],
)  # fmt: skip
def test_arrays_of_another_shape_or_type_are_named(arrays, save, change, message):
    with pytest.raises(ValueError, match=message):
        _made(save({**arrays, **change}), columns={"who": "patient"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": ("x_trian", "y_train")}, "there is no 'x_trian' in .*; did you mean x_train"),
        ({"limit": 1}, "`limit` must be at least 2, got 1"),
        ({"std": [0.0]}, r"`std` must be above 0, got \[0.0\]"),
        ({"mean": [0.1, 0.2]}, r"`mean` must have one number per channel, 3, got \[0.1, 0.2\]"),
        ({"augment": "flip"}, "`augment` must be crop_flip or null, got 'flip'"),
        ({"held_out": 1.5}, r"`held_out` must be in \(0, 1\), got 1.5"),
        ({"held_out": 0.5, "held_out_columns": {"a": "patient"}}, "must be left out where"),
    ],
)
def test_bad_options_are_named_with_the_remedy(arrays, save, options, message):
    with pytest.raises(ValueError, match=message):
        _made(save(arrays), **options)


@pytest.mark.needs_data
@pytest.mark.parametrize(
    ("part", "file", "shape", "train"),
    [
        ("data/mnist.yaml", "vision/mnist_full.npz", (1, 28, 28), 10_000),
        ("data/cifar10.yaml", "vision/cifar10_10k.npz", (3, 32, 32), 10_000),
    ],
)
def test_known_images_are_read_by_their_parts(shared, parsed, part, file, shape, train):
    data = parsed(part, path=shared(file))
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["input"].shape[1:] == shape
    assert len(data.train_set) == train
    assert set(data._pools.columns["target"].tolist()) == set(range(10))
    assert abs(_images(data, data._pools.held_out).mean()) < 0.1


@pytest.mark.needs_data
def test_arrays_of_other_names_are_read(shared):
    data = _made(
        shared("vision/pneumoniamnist.npz"), train=("train_images", "train_labels"),
        held_out=("test_images", "test_labels"), request=ForgetClass(1),
    )  # fmt: skip
    assert len(data.train_set) == 3882
    assert data.holdout_set[0]["target"] == 1
