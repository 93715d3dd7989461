"""Files row by row: places, rows that cannot be read, and memory that does not grow."""

from __future__ import annotations

import io
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from fmplex import TaskProblem
from fmplex.data import stream
from fmplex.data.stream import STDIN, Row, open_source


def read(file: Path, **options: Any) -> tuple[list[str], list[tuple[str, dict[str, Any], str]]]:
    with open_source(file, **options) as source:
        return source.columns, [(row.place, dict(row.cells), row.error) for row in source.rows]


def written(folder: Path, name: str, content: bytes | str) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_csv_with_quotes_and_lines_inside_of_cells(tmp_path: Path) -> None:
    columns, rows = read(written(tmp_path, "a.csv", '\ufeffid,text\r\n1,"two\nlines, ""quoted"""\r\n\r\n2,plain\r\n'))
    assert columns == ["id", "text"]
    assert rows == [
        ("line 2", {"id": "1", "text": 'two\nlines, "quoted"'}, ""),
        ("line 5", {"id": "2", "text": "plain"}, ""),
    ]


def test_blank_lines_of_one_column_are_empty_rows_but_at_the_end(tmp_path: Path) -> None:
    for name, content in (("a.csv", "text\na\n\nb\n\n\n"), ("a.txt", "\na\n\nb\n\n")):
        _, rows = read(written(tmp_path, name, content))
        assert [cells["text"] for _, cells, _ in rows if cells["text"]] == ["a", "b"]
        assert [place for place, cells, _ in rows if not cells["text"]][-1] == "line 3"
        assert rows[-1][1] == {"text": "b"}


@pytest.mark.parametrize(
    ("name", "content", "place", "says"),
    [
        ("a.csv", "a,text\n1,x\n2,y,z\n3,w\n", "line 3", "3 cells for 2 columns"),
        ("a.csv", f"a,text\n1,x\n2,{'y' * 300}\n3,w\n", "line 3", "field larger than field limit"),
        ("a.tsv", "a\ttext\n1\tx\n2\ty\tz\n3\tw\n", "line 3", "3 cells for 2 columns"),
        ("a.jsonl", '{"text": "x"}\n{"text"\n{"text": "w"}\n', "line 2", "not JSON"),
        ("a.jsonl", '{"text": "x"}\n[1]\n{"text": "w"}\n', "line 2", r"\[1\] is not an object"),
        ("a.txt", f"x\n{'y' * 2000}\nw\n", "line 2", "longer than"),
    ],
)
def test_a_row_that_cannot_be_read_costs_itself_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, place: str, says: str
) -> None:
    monkeypatch.setattr(stream, "CELL_CHARACTERS", 200)
    monkeypatch.setattr(stream, "LINE_BYTES", 1024)
    _, rows = read(written(tmp_path, name, content))
    assert [cells["text"] for _, cells, error in rows if not error] == ["x", "w"]
    ((where, _, error),) = [row for row in rows if row[2]]
    assert where == place
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(error)


def test_bytes_that_are_no_utf8_reach_the_row(tmp_path: Path) -> None:
    _, rows = read(written(tmp_path, "a.csv", b"text\nfine\n\xff\xfe\nfine\n"))
    assert [cells["text"] for _, cells, _ in rows] == ["fine", "\udcff\udcfe", "fine"]


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None], "n": [1, 2]}), file)
    columns, rows = read(file)
    assert columns == ["text", "n"]
    assert rows == [("row 1", {"text": "a", "n": 1}, ""), ("row 2", {"text": None, "n": 2}, "")]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.csv", None, "there is no file"),
        ("a.xlsx", "x", "the format cannot be told by its name"),
        ("a.csv", "", "it is empty. The first line names the columns"),
        ("a.csv", "text,text\n1,2\n", r"columns are named twice: \['text'\]"),
        ("a.parquet", "x", "cannot be read as Parquet"),
    ],
)
def test_files_that_cannot_be_read_at_all(tmp_path: Path, name: str, content: str | None, says: str) -> None:
    if content is not None:
        written(tmp_path, name, content)
    with pytest.raises(TaskProblem, match=says):
        read(tmp_path / name)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(TaskProblem, match=r"pip install 'fmplex\[data\]'"):
        read(written(tmp_path, "a.parquet", "x"))


@pytest.mark.parametrize(
    ("content", "column", "rows"),
    [
        ('{"text": "a", "n": 1}\n{"text": "b"}\n', "text", ["a", "b"]),
        ("n,text\n1,a\n2,b\n", "text", ["a", "b"]),
        ("n\tbody\n1\ta\n2\tb\n", "body", ["a", "b"]),
        ("a\nb\n", "text", ["a", "b"]),
        ("", "text", []),
    ],
)
def test_stdin_is_told_by_its_first_line(
    monkeypatch: pytest.MonkeyPatch, content: str, column: str, rows: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content.encode())))
    _, found = read(STDIN, columns=[column])
    assert [cells[column] for _, cells, _ in found] == rows


def test_a_file_is_read_as_far_as_it_is_asked_for(tmp_path: Path) -> None:
    """The place in the file tells how much of it is in memory."""
    file = written(tmp_path, "large.csv", "text\n" + "a text of some length\n" * 200_000)
    with open_source(file) as source:
        assert len(list(islice(source.rows, 100))) == 100
        assert source.done < 10_000
        assert source.total == file.stat().st_size
        assert sum(1 for _ in source.rows) == 199_900
        assert source.done == source.total


def test_a_row() -> None:
    assert Row("line 1").error == ""
