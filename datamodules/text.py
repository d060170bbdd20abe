"""Small texts for language models, byte by byte."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from datamodules.base import UnlearningDataModule
from datamodules.datasets import ArrayDataset, Pools
from datamodules.files import check_file, named, split
from datamodules.invented import invented_people
from erasus_pl.requests import ForgetRequest

__all__ = ["TextDataModule", "encode"]

Array = npt.NDArray[Any]

_EDGE = 0
_IGNORE = -100


def encode(text: str, length: int, prompt: str = "") -> list[tuple[list[int], list[int]]]:
    """A text as sequences of bytes (UTF-8) that fit a model.

    Byte 0 stands before and after the text. What is longer than `length` is cut into sequences
    that overlap in one byte, so that every byte is predicted once.

    Args:
        text: without a byte 0.
        length: of a sequence, at most.
        prompt: stands before the text and is not scored.

    Returns:
        Tokens and labels of each sequence, both of 2 to `length` numbers; tokens are in [0, 256),
        labels are the tokens, and -100 in the prompt.
    """
    start = [_EDGE, *prompt.encode()]
    codes = [*start, *text.encode(), _EDGE]
    labels = [*[_IGNORE] * len(start), *codes[len(start) :]]
    pieces = [slice(at, at + length) for at in range(0, len(codes) - 1, length - 1)]
    return [(codes[piece], labels[piece]) for piece in pieces]


class TextDataModule(UnlearningDataModule):
    """Documents as sequences of bytes, for a causal language model with 256 tokens.

    Batches hold `input_ids`, `labels` (-100 on padding) and `attention_mask`, each `(B, length)`.
    Token 0 begins and ends a document and pads. Requests can name `document`, its number in the
    corpus counted from 0, and every other field that all documents have, such as `author`; a long
    document is several samples.

    Without a path the corpus is generated: five facts each about invented people, which say
    nothing about the world and can only be memorised; `author` is the person, `fact` the kind.
    Only the fact is scored, not the sentence up to it.

    Args:
        path: a `.txt` with a document on each line, or a `.jsonl` with an object on each line;
            relative to the working directory.
        field: the key of the text in those objects.
        prompt: the key of a text before it that is not scored, such as a question.
        people: how many people are invented where there is no path.
        length: of a sequence, in bytes; longer documents are cut.
        held_out: part of the authors (of the documents, without authors) never trained on, the
            same whatever the request.
        split_by: the field whose values are held out as a whole, such as `document`; `author`
            where documents have one.
        request: what must go; none only to train an original.
        **options: of every datamodule, such as `batch_size`; see `UnlearningDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        field: str = "text",
        prompt: str | None = None,
        people: int = 60,
        length: int = 64,
        held_out: float = 0.3,
        split_by: str | None = None,
        request: ForgetRequest | None = None,
        **options: Any,
    ) -> None:
        super().__init__(request, **options)
        if length < 2:
            msg = f"`length` must be at least 2, got {length}"
            raise ValueError(msg)
        self.path = path
        self.field = field
        self.prompt = prompt
        self.people = people
        self.length = length
        self.held_out = held_out
        self.split_by = split_by

    def load(self) -> Pools:
        """Read or generate the corpus, cut it into sequences, and hold a part out."""
        if self.path is None:
            name, documents = "generated facts about invented people", invented_people(self.people)
            texts = ["text", "prompt"]
        else:
            texts = [self.field] if self.prompt is None else [self.field, self.prompt]
            name, documents = Path(self.path).name, _read(self.path, texts)
        sequences, owner = [], []
        for number, document in enumerate(documents):
            text, *prompt = (document[key] for key in texts)
            pieces = encode(text, self.length, *prompt)
            if any(set(labels[1:]) == {_IGNORE} for _, labels in pieces):
                msg = (
                    f"`length`: {self.length} leaves nothing but the prompt of document {number} "
                    f"of {name} in a sequence; raise it"
                )
                raise ValueError(msg)
            sequences += pieces
            owner += [number] * len(pieces)
        columns = _columns(documents, np.array(owner), texts)
        by = self.split_by or ("author" if "author" in columns else "document")
        values = columns[named(by, columns, "split_by", name)]
        kinds, kind = np.unique(values, return_inverse=True)
        _, out = split(len(kinds), self.held_out)
        away = np.isin(kind, out)
        tokens, labels, mask = _padded(sequences, self.length)
        train_set, held_out_set = (
            ArrayDataset(
                {
                    "input_ids": torch.from_numpy(tokens[part]),
                    "labels": torch.from_numpy(labels[part]),
                    "attention_mask": torch.from_numpy(mask[part]),
                }
            )
            for part in (~away, away)
        )
        return Pools(
            name,
            train_set,
            held_out_set,
            {key: column[~away] for key, column in columns.items()},
            {key: column[away] for key, column in columns.items()},
            {"input_ids": tokens[~away], "labels": labels[~away]},
        )


def _columns(
    documents: list[dict[str, Any]], owner: Array, texts: Sequence[str]
) -> dict[str, Array]:
    shared = set.intersection(*(set(document) for document in documents))
    columns = {"document": owner}
    for key in sorted(shared - {*texts, "document"}):
        values = [document[key] for document in documents]
        if all(isinstance(value, (str, int, float)) for value in values):
            columns[key] = np.array(values)[owner]
    return columns


def _padded(
    sequences: Sequence[tuple[list[int], list[int]]], length: int
) -> tuple[Array, Array, Array]:
    shape = len(sequences), length
    tokens, labels = (np.full(shape, value, dtype=np.int64) for value in (_EDGE, _IGNORE))
    mask = np.zeros(shape, dtype=np.int64)
    for row, (codes, scored) in enumerate(sequences):
        tokens[row, : len(codes)] = codes
        labels[row, : len(codes)] = scored
        mask[row, : len(codes)] = 1
    return tokens, labels, mask


def _read(path: str, keys: Sequence[str]) -> list[dict[str, Any]]:
    file = check_file(path)
    kind = file.suffix.lower()
    if kind not in (".txt", ".jsonl", ".json"):
        msg = f"`path` must end in .txt or .jsonl, got {path!r}"
        raise ValueError(msg)
    try:
        lines = file.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        msg = f"`path` must be UTF-8 text, and {path!r} is not: {error.reason} at {error.start}"
        raise ValueError(msg) from error
    documents = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"line {number} of {path!r}"
        document = {keys[0]: line.strip()} if kind == ".txt" else _parsed(line, where)
        for key, field in zip(keys, ("field", "prompt"), strict=False):
            text = document[named(key, document, field, where)]
            if not isinstance(text, str) or not text or "\0" in text:
                msg = (
                    f"`{field}`: {key!r} must be text without a zero byte, got {text!r} on {where}"
                )
                raise ValueError(msg)
        documents.append(document)
    if len(documents) < 4:
        msg = f"`path` must hold 4 documents or more, got {len(documents)} in {path!r}"
        raise ValueError(msg)
    return documents


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except json.JSONDecodeError as error:
        msg = f"`path` must hold one JSON object a line: {error.msg} on {where}"
        raise ValueError(msg) from error
    if not isinstance(document, dict):
        msg = f"`path` must hold one JSON object a line, got a {type(document).__name__} on {where}"
        raise ValueError(msg)
    return document
