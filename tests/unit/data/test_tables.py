"""Files and tables, by their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
import pytest
from datasets import Dataset

from fmplex import TaskProblem
from fmplex.data import rows as rows_module
from fmplex.data.tables import columns_in, is_table
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.families.text_encoder.inputs import TEXT


def rows_of(data: Any, labels: Any = None, **names: Any) -> Rows:
    return rows_module.rows_of(data, labels, TEXT, **names)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.xlsx", b"x", "has no supported format"),
        ("a.csv", b"text,label\n\xff\xfe,a\n", "cannot be read"),
        ("a.jsonl", b'{"text": "a", "label": "b"}\n{"text"\n', "line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: .* is not an object"),
        ("a.csv", b"words,label\na,b\n", "no column 'text', but words, label"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, match: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskProblem, match=match):
        rows_of(tmp_path / name)


def test_what_has_columns_is_a_table() -> None:
    frame = pandas.DataFrame({"text": ["a"], "label": ["b"]})
    for table in (frame, Dataset.from_pandas(frame), [{"text": "a", "label": "b"}]):
        assert is_table(table)
        assert columns_in(table, "the data") == ["text", "label"]
    assert not any(map(is_table, ([], ["a"], [("a", "b")], "a")))
