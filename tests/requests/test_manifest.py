import hashlib
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import erasus_pl
from erasus_pl.requests import (
    ForgetAttribute,
    ForgetClass,
    ForgetIndices,
    ForgetRandom,
    ForgetRequestError,
    Manifest,
    ManifestError,
    sha256_of_ids,
)


def make(request=None, forget=(3, 1), **changes):
    values = {
        "dataset": "digits",
        "fingerprint": "ab" * 32,
        "request": request or ForgetClass(3),
        "forget": np.array(forget),
        "train": 10,
        "test": 4,
        "holdout": 2,
        "holdout_drawn": "the same class of the held-out pool",
    }
    return Manifest.create(**(values | changes))


def test_fields():
    assert make().to_dict() == {
        "dataset": "digits",
        "fingerprint": "ab" * 32,
        "request": ForgetClass(3).to_dict(),
        "description": "every sample of class 3",
        "counts": {"train": 10, "forget": 2, "retain": 8, "test": 4, "holdout": 2},
        "forget_sha256": hashlib.sha256(struct.pack("<qq", 1, 3)).hexdigest(),
        "holdout": "the same class of the held-out pool",
        "version": erasus_pl.__version__,
    }


@given(st.lists(st.integers(0, 2**62), unique=True), st.randoms())
def test_sha256_of_ids_ignores_order_and_type(ids, random):
    expected = hashlib.sha256(struct.pack(f"<{len(ids)}q", *sorted(ids))).hexdigest()
    random.shuffle(ids)
    assert sha256_of_ids(np.array(ids, dtype=np.int64)) == expected
    assert sha256_of_ids(np.array(ids, dtype=">u8")) == expected


@given(
    request=st.one_of(
        st.builds(ForgetAttribute, st.text(), st.floats(allow_nan=False, allow_infinity=False)),
        st.builds(ForgetRandom, st.floats(0.01, 0.99), seed=st.integers(0, 2**63)),
        st.builds(ForgetClass, st.sets(st.text(), min_size=1)),
        st.builds(ForgetIndices, st.sets(st.integers(0, 99)).map(list)),
    ),
    dataset=st.text(),
)
def test_survives_json_and_checkpoints(request, dataset):
    manifest = make(request, dataset=dataset)
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict()))) == manifest
    buffer = io.BytesIO()
    torch.save(manifest.to_dict(), buffer)
    buffer.seek(0)
    loaded = Manifest.from_dict(torch.load(buffer, weights_only=True))
    assert loaded == manifest
    assert loaded.differences(manifest) == []


def test_write_and_read(tmp_path):
    path = tmp_path / "manifest.json"
    make(dataset="Zürich").write(path)
    make(dataset="Genève").write(str(path))
    assert Manifest.read(path) == make(dataset="Genève")
    assert [item.name for item in tmp_path.iterdir()] == ["manifest.json"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    make().write(path)

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        make(dataset="new").write(path)
    assert Manifest.read(path) == make()
    assert [item.name for item in tmp_path.iterdir()] == ["manifest.json"]


def test_differences_name_what_changed_and_leave_out_wording():
    old = make()
    assert make(ForgetClass(5), forget=(1, 2, 5), fingerprint="cd" * 32).differences(old) == [
        "classes was [3], is now [5]",
        "counts.forget was 2, is now 3",
        "counts.retain was 8, is now 7",
        f"fingerprint was '{'ab' * 32}', is now '{'cd' * 32}'",
        f"forget_sha256 was '{old.forget_sha256}', is now '{sha256_of_ids([1, 2, 5])}'",
    ]
    reworded = old.to_dict() | {"version": "99", "description": "class three"}
    assert Manifest.from_dict(reworded).differences(old) == []


def test_a_changed_index_file_shows(tmp_path):
    path = tmp_path / "ids.txt"
    manifests = []
    for text in ("1 2", "1 3"):
        path.write_text(text)
        request = ForgetIndices(path=str(path))
        manifests.append(make(request, forget=request.resolve({}, 10)))
    lines = manifests[1].differences(manifests[0])
    assert [line.split()[0] for line in lines] == ["forget_sha256"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": None}, "manifest `dataset` must be a str, got None"),
        ({"counts": []}, r"manifest `counts` must be a dict, got \[\]"),
        ({"counts": {"train": 1}}, "`counts` must have train, forget.*got train"),
        ({"extra": 1}, "manifest has unknown extra; it must have dataset"),
    ],
)
def test_damaged_manifests_are_refused(change, message):
    with pytest.raises(ManifestError, match=message):
        Manifest.from_dict(make().to_dict() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": -1}, "`counts.test` must be a whole number >= 0, got -1"),
        ({"test": 1.0}, "`counts.test` must be a whole number >= 0, got 1.0"),
        ({"test": True}, "`counts.test` must be a whole number >= 0, got True"),
        ({"forget": 3}, r"forget \+ retain = train, got 3 \+ 8 and 10"),
    ],
)
def test_counts_that_cannot_be_are_refused(change, message):
    data = make().to_dict()
    data["counts"] |= change
    with pytest.raises(ManifestError, match=message):
        Manifest.from_dict(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "manifest must be a readable file, got .*No such file"),
        ("{", "manifest must be valid JSON, got "),
        ("[]", "manifest must be a JSON object, got list"),
        ("{}", "manifest lacks dataset, fingerprint"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, content, message):
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ManifestError, match=message):
        Manifest.read(path)


def test_errors_are_value_errors():
    assert issubclass(ManifestError, ValueError)
    assert issubclass(ForgetRequestError, ValueError)
