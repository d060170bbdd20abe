"""Documents become sequences of bytes, each byte predicted once."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules import TextDataModule
from datamodules.invented import invented_people
from datamodules.text import encode
from erasus_pl.requests import ForgetAttribute, ForgetGroup, ForgetIndices
from erasus_pl.tasks.causal_lm import IGNORE


def _made(path=None, **options):
    data = TextDataModule(path, **options)
    data.setup()
    return data


def _read(batch):
    return [bytes(row).strip(b"\0").decode() for row in batch["input_ids"].tolist()]


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=90)


@given(text=TEXT, prompt=TEXT, length=st.integers(2, 40))
def test_every_byte_of_a_text_is_predicted_once_and_a_prompt_never(text, prompt, length):
    pieces = encode(text, length, prompt)
    assert all(2 <= len(tokens) == len(labels) <= length for tokens, labels in pieces)
    before = [code for tokens, _ in pieces for code in tokens[:-1]]
    assert before == [0, *prompt.encode(), *text.encode()]
    predicted = [label for _, labels in pieces for label in labels[1:]]
    assert predicted == [IGNORE] * len(prompt.encode()) + [*text.encode(), 0]


def test_batches_are_padded_and_padding_is_not_scored():
    data = _made(length=40, request=ForgetIndices([0]), batch_size=16)
    batch = next(iter(data.train_dataloader()))["retain"]
    ids, labels, mask = (batch[k] for k in ("input_ids", "labels", "attention_mask"))
    assert ids.shape == labels.shape == mask.shape == (16, 40)
    assert ids.dtype == labels.dtype == torch.long
    assert torch.equal(labels[labels != IGNORE], ids[labels != IGNORE])
    assert (labels[mask == 0] == IGNORE).all()
    lengths = mask.sum(1)
    assert (mask == (torch.arange(40) < lengths[:, None])).all()
    assert lengths.tolist() == [len(text) + 2 for text in _read(batch)]


def test_the_generated_corpus_is_of_people_who_are_held_out_as_a_whole():
    author = invented_people(60)[0]["author"]
    data = _made(request=ForgetGroup(author, "author"))
    assert data.manifest.dataset == "generated facts about invented people"
    train, held_out = data._pools.columns["author"], data._pools.held_out_columns["author"]
    assert not set(train) & set(held_out)
    assert len(set(held_out)) == 18
    (batch,) = data.sweep(data.forget_set)
    assert len(batch["index"]) == 5
    assert all(text.startswith(author) for text in _read(batch))
    facts = [d["text"].encode() for d in invented_people(60)[:5]]
    scored = [bytes(row[row != IGNORE].tolist()) for row in batch["labels"]]
    assert scored == [fact + b"\0" for fact in facts]


def test_invented_facts_are_the_same_every_time_and_unlike_each_other():
    first, again = invented_people(200), invented_people(200)
    assert first == again
    assert first[:50] != invented_people(200, seed=1)[:50]
    assert len({d["author"] for d in first}) == 200
    assert len({d["prompt"] for d in first}) == 1000
    work = np.unique([d["text"] for d in first if d["fact"] == "work"], return_counts=True)
    assert len(work[0]) == 8
    assert work[1].min() > 10  # uniform would be 25 each
    with pytest.raises(ValueError, match=r"`people` must be from 1 to 28,561, got 0"):
        invented_people(0)


def test_a_text_file_has_a_document_on_each_line(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("".join(f"line {i} é\n\n" for i in range(10)) + "x" * 50, "utf-8")
    data = _made(str(path), length=30, request=ForgetAttribute("document", 4))
    assert sum(len(d) for d in (data._pools.train, data._pools.held_out)) == 12
    (batch,) = data.sweep(data.forget_set)
    assert _read(batch) == ["line 4 é"]
    documents = data._pools.columns["document"], data._pools.held_out_columns["document"]
    assert not set(documents[0]) & set(documents[1])
    assert data.manifest.dataset == "t.txt"


def test_fields_of_json_lines_serve_requests(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"body": f"text {i}", "author": f"a{i % 5}", "year": 2000 + i, "tags": ["x"]}
            for i in range(20)]  # fmt: skip
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    data = _made(str(path), field="body", request=ForgetAttribute("author", "a1"))
    assert set(data._pools.columns) == {"document", "author", "year"}
    (batch,) = data.sweep(data.forget_set)
    assert _read(batch) == ["text 1", "text 6", "text 11", "text 16"]
    apart = _made(str(path), field="body", split_by="document", held_out=0.5,
                  request=ForgetAttribute("author", "a1"))  # fmt: skip
    assert "matches" in apart.manifest.holdout


def test_the_split_does_not_depend_on_the_request():
    one, two = (_made(request=ForgetIndices([i])) for i in (0, 9))
    assert one._pools.columns["document"].tolist() == two._pools.columns["document"].tolist()
    assert one.manifest.fingerprint == two.manifest.fingerprint
    assert (
        one.manifest.fingerprint
        != _made(people=61, request=ForgetIndices([0])).manifest.fingerprint
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"text": "a"}\n{"text": 3}\n', "'text' must be text .* got 3 on line 2"),
        ("t.jsonl", '{"text": "a"}\n[1]\n', "one JSON object a line, got a list on line 2"),
        ("t.jsonl", '{"text": "a"}\n{"te\n', "one JSON object a line: .* on line 2"),
        ("t.jsonl", '{"txt": "a"}\n', "there is no 'text' in line 1 .*; did you mean txt"),
        ("t.txt", "a\nb\0c\n", "must be text without a zero byte, got 'b.x00c' on line 2"),
        ("t.txt", "a\nb\nc\n", "must hold 4 documents or more, got 3"),
        ("t.md", "a", r"`path` must end in .txt or .jsonl, got"),
    ],
)
def test_a_file_that_is_no_corpus_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        _made(str(tmp_path / name))


def test_other_encodings_and_options_are_refused(tmp_path):
    (tmp_path / "t.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"must be UTF-8 text, and .* is not: .* at 0"):
        _made(str(tmp_path / "t.txt"))
    with pytest.raises(ValueError, match=r"`length` must be at least 2, got 1"):
        TextDataModule(length=1)
    with pytest.raises(
        ValueError, match=r"`length`: 9 leaves nothing but the prompt of document 0"
    ):
        _made(length=9)
    with pytest.raises(ValueError, match=r"`split_by`: there is no 'auther'.*did you mean author"):
        _made(split_by="auther")
    with pytest.raises(FileNotFoundError, match=r"`path` must be a file"):
        _made("missing.txt")


@pytest.mark.needs_data
def test_tofu_answers_are_read(shared):
    data = _made(shared("tofu/forget01.json"), field="answer", prompt="question", length=512)
    assert set(data._pools.columns) == {"document"}
    documents = {*data._pools.columns["document"], *data._pools.held_out_columns["document"]}
    assert documents == set(range(40))


def test_the_text_task_fits_the_text_data(parsed):
    data, task = parsed("data/text.yaml"), parsed("task/text.yaml")
    data.setup()
    batch = next(iter(data.train_dataloader()))
    loss = task.per_sample_loss(task(batch), batch)
    assert loss.shape == (16,)
    assert loss.mean().item() == pytest.approx(np.log(256), abs=0.5)
