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
from fmplex.data import rows as rows_module
from fmplex.data.rows import items_of
from fmplex_backend.decoders import KINDS
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.families.text_encoder.inputs import TEXT

TEXTS, LABELS = ["one", "two", "three"], ["a", "b", "a"]


def rows_of(data: Any, labels: Any = None, **names: Any) -> Rows:
    return rows_module.rows_of(data, labels, TEXT, **names)


def targets(kind: str, labels: list[str], rows: Rows, outputs: int = 1) -> list[Any]:
    decoder: Any = KINDS[kind]
    made = decoder(outputs=outputs) if kind == "regression" else decoder(labels=labels)
    found: list[Any] = made.targets(rows)
    return found


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


FORMS = ("lists", "arrays", "pairs", "dicts", "columns", "frame", "dataset", "csv", "csv with a mark", "tsv", "jsonl")


def test_all_forms_are_asked(tmp_path: Path) -> None:
    assert tuple(forms(tmp_path)) == FORMS


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    rows = rows_of(*forms(tmp_path)[form])
    assert (rows.items, rows.labels) == (TEXTS, LABELS)
    assert len(rows) == 3


def test_pandas_and_datasets() -> None:
    columns = {"sentence": TEXTS, "kind": LABELS}
    for table in (pandas.DataFrame(columns), Dataset.from_dict(columns)):
        rows = rows_of(table, columns="sentence", label="kind")
        assert (rows.items, rows.labels) == (TEXTS, LABELS)
        assert items_of(table, TEXT, columns="sentence") == TEXTS


def test_words_become_a_text_with_places() -> None:
    rows = rows_of([["Ada", "went", "home"]], [["B-P", "O", "O"]])
    assert rows.items == ["Ada went home"]
    assert [rows.items[0][start:end] for start, end in rows.words[0]] == ["Ada", "went", "home"]
    decoder: Any = KINDS["token-classification"]
    assert decoder().with_labels_of(rows).labels == ["O", "B-P"]
    assert targets("token-classification", ["O", "B-P"], rows) == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("data", "labels", "match"),
    [
        (TEXTS, LABELS[:2], "3 texts and 2 labels"),
        ([], [], "no rows"),
        (TEXTS, ["a", None, "b"], "row 1: there is no label"),
        (TEXTS, ["a", float("nan"), "b"], "row 1: there is no label"),
        (["one", 2, "three"], LABELS, "row 1: 2 is not a text"),
        ([["a"], "b"], [["O"], ["O"]], "row 1: some texts are words"),
        (TEXTS, None, "labels are missing"),
        ([{"body": "x"}], None, "no column 'text', but body"),
        (7, None, "int is not a supported form of data"),
        ("nowhere.csv", None, "there is no file nowhere.csv"),
    ],
)
def test_what_is_wrong_is_named(data: Any, labels: Any, match: str) -> None:
    with pytest.raises(TaskProblem, match=match):
        rows_of(data, labels)
