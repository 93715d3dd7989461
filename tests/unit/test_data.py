"""Rows out of whatever people keep them in, and errors that name the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from datasets import Dataset

from fmplex import TaskProblem
from fmplex.data import labels_in, rows_of, targets, texts_of

TEXTS, LABELS = ["one", "two", "three"], ["a", "b", "a"]


class Table:
    """What pandas and datasets have in common: columns by name."""

    def __init__(self, columns: dict[str, Any], names: str) -> None:
        self.columns, self.names = columns, names
        if names == "column_names":
            self.column_names = list(columns)

    def keys(self) -> list[str]:
        return list(self.columns)

    def __getitem__(self, name: str) -> Any:
        return np.array(self.columns[name], dtype=object)


def forms(folder: Path) -> dict[str, tuple[Any, ...]]:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    (folder / "rows.csv").write_text("text,label\none,a\ntwo,b\nthree,a\n")
    (folder / "bom.csv").write_text("\ufefftext,label\none,a\ntwo,b\nthree,a\n", encoding="utf-8")
    (folder / "rows.tsv").write_text("label\ttext\na\tone\nb\ttwo\na\tthree\n")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    columns = {"text": TEXTS, "label": LABELS}
    return {
        "lists": (TEXTS, LABELS),
        "arrays": (np.array(TEXTS, dtype=object), np.array(LABELS)),
        "pairs": (list(zip(TEXTS, LABELS, strict=True)),),
        "dicts": (rows,),
        "columns": (columns,),
        "frame": (Table(columns, "keys"),),
        "dataset": (Table(columns, "column_names"),),
        "csv": (folder / "rows.csv",),
        "csv with a mark": (str(folder / "bom.csv"),),
        "tsv": (folder / "rows.tsv",),
        "jsonl": (folder / "rows.jsonl",),
    }


@pytest.mark.parametrize("form", list(forms(Path("/tmp"))))
def test_every_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    rows = rows_of(*forms(tmp_path)[form])
    assert (rows.texts, rows.labels) == (TEXTS, LABELS)
    assert len(rows) == 3


def test_pandas_and_datasets() -> None:
    columns = {"sentence": TEXTS, "kind": LABELS}
    for table in (pandas.DataFrame(columns), Dataset.from_dict(columns)):
        rows = rows_of(table, text="sentence", label="kind")
        assert (rows.texts, rows.labels) == (TEXTS, LABELS)
        assert texts_of(table, text="sentence") == TEXTS


def test_words_become_a_text_with_places() -> None:
    rows = rows_of([["Ada", "went", "home"]], [["B-P", "O", "O"]])
    assert rows.texts == ["Ada went home"]
    assert [rows.texts[0][start:end] for start, end in rows.words[0]] == ["Ada", "went", "home"]
    assert labels_in("token-classification", rows) == ["O", "B-P"]
    assert targets("token-classification", ["O", "B-P"], rows) == [[1, 0, 0]]


def test_targets_of_every_kind() -> None:
    assert targets("classification", ["a", "b"], rows_of(TEXTS, LABELS)) == [0, 1, 0]
    assert targets("classification", ["a", "b"], rows_of(TEXTS, [0, 1, 0])) == [0, 1, 0]
    assert targets("multi-label", ["a", "b"], rows_of(TEXTS, ["a|b", "", ["b"]])) == [[1, 1], [0, 0], [0, 1]]
    assert targets("regression", [], rows_of(TEXTS, ["1.5", 2, np.float32(3)])) == [[1.5], [2.0], [3.0]]
    assert targets("regression", [], rows_of(TEXTS, [[1, 2]] * 3), 2) == [[1.0, 2.0]] * 3


@pytest.mark.parametrize(
    ("data", "labels", "match"),
    [
        (TEXTS, LABELS[:2], "3 texts and 2 labels"),
        ([], [], "no rows"),
        (TEXTS, ["a", None, "b"], "row 1: there is no label"),
        (TEXTS, ["a", float("nan"), "b"], "row 1: there is no label"),
        (["one", 2, "three"], LABELS, "row 1: 2 is no text"),
        ([["a"], "b"], [["O"], ["O"]], "row 1: some texts are words"),
        (TEXTS, None, "labels are missing"),
        ([{"body": "x"}], None, "no column 'text', but body"),
        (7, None, "int is no data"),
        ("nowhere.csv", None, "there is no file nowhere.csv"),
    ],
)
def test_what_is_wrong_is_named(data: Any, labels: Any, match: str) -> None:
    with pytest.raises(TaskProblem, match=match):
        rows_of(data, labels)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.xlsx", b"x", "is of a kind"),
        ("a.csv", b"text,label\n\xff\xfe,a\n", "cannot be read"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text"\n', "line 2: no JSON"),
        ("a.jsonl", b"[1]\n", "line 1: .* is no object"),
        ("a.csv", b"words,label\na,b\n", "no column 'text', but words, label"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskProblem, match=match):
        rows_of(tmp_path / name)


@pytest.mark.parametrize(
    ("kind", "labels", "rows", "match"),
    [
        ("classification", ["a", "b"], (TEXTS, ["a", "c", "b"]), "row 1: 'c' is none of the labels a, b"),
        ("classification", ["a", "b"], (TEXTS, [0, 1, 2]), "row 2: 2 is none"),
        ("multi-label", ["a"], (TEXTS, ["a", "a|z", ""]), "row 1: 'z'"),
        ("regression", [], (TEXTS, [1, "much", 3]), "row 1: 'much' is not 1 finite number"),
        ("regression", [], (TEXTS, [1, float("inf"), 3]), "row 1"),
        ("token-classification", ["O"], (TEXTS, ["O", "O", "O"]), "tags belong to words"),
        ("token-classification", ["O"], ([["a", "b"]], [["O"]]), "2 words and 1 tags"),
    ],
)
def test_labels_that_cannot_be_read(kind: str, labels: list[str], rows: Any, match: str) -> None:
    with pytest.raises(TaskProblem, match=match):
        targets(kind, labels, rows_of(*rows))
