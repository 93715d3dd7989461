"""Texts and labels out of whatever people keep them in.

Lists, pairs, dicts, a pandas DataFrame, a Hugging Face Dataset, a CSV, TSV or JSONL file. For token tasks a text may be
a list of words, its label a list of tags; a text is then its words with a space between.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmplex.errors import TaskProblem

SEPARATOR = "|"  # between the labels of a text, in a CSV
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Rows:
    """Examples. `words` are the characters [start, end) of each text's words where texts came as words, else empty."""

    texts: list[Any]  # or rows of numbers
    labels: list[Any]
    words: list[list[tuple[int, int]]]
    source: str = "the data"

    def __len__(self) -> int:
        return len(self.texts)

    def pick(self, places: Sequence[int]) -> Rows:
        """Some of them."""
        words = [self.words[place] for place in places] if self.words else []
        return Rows(
            [self.texts[place] for place in places], [self.labels[place] for place in places], words, self.source
        )


def rows_of(data: Any, labels: Any = None, *, text: str = "text", label: str = "label") -> Rows:
    """Rows out of any of the supported forms; raises TaskProblem. `text` and `label` name columns."""
    source = "the data"
    if labels is None and isinstance(data, (str, Path)):
        source = str(data)
        data = read_file(Path(data))
    texts, values = (list(data), list(labels)) if labels is not None else _columns(data, text, label, source)
    values = check_labels(texts, values, source)
    by_words = not isinstance(texts[0], str)
    plain = [
        _joined(each, place, source) if by_words else _text(each, place, source) for place, each in enumerate(texts)
    ]
    words = [_places(each) for each in texts] if by_words else []
    return Rows(plain, values, words, source)


def check_labels(rows: Sequence[Any], labels: Sequence[Any], source: str) -> list[Any]:
    """The labels as Python's own, one for each row; raises TaskProblem."""
    if len(rows) != len(labels):
        raise TaskProblem(f"{source} has {len(rows)} texts and {len(labels)} labels. Give one label for each text")
    if not rows:
        raise TaskProblem(f"{source} has no rows. Give at least a few for each label")
    for place, value in enumerate(labels):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise TaskProblem(f"{source}, row {place}: there is no label. Fill it in, or leave the row out")
    return [_plain(value) for value in labels]


def texts_of(data: Any, *, text: str = "text") -> list[str]:
    """Texts alone: one, several, or a column of a file or table."""
    if isinstance(data, str):
        return [data]
    if isinstance(data, Path):
        data = read_file(data)
    if hasattr(data, "keys") or (hasattr(data, "column_names") and not isinstance(data, (list, tuple))):
        data = data[text]
    elif isinstance(data, (list, tuple)) and data and isinstance(data[0], Mapping):
        data = [row[text] for row in data]
    return [_text(each, place, "the data") for place, each in enumerate(data)]


def read_file(file: Path) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV or JSONL file."""
    if not file.is_file():
        raise TaskProblem(f"there is no file {file}. Name a .csv, .tsv or .jsonl file")
    kind = file.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            with file.open(newline="", encoding="utf-8-sig") as stream:
                return list(csv.DictReader(stream, delimiter="," if kind == ".csv" else "\t"))
        if kind in (".jsonl", ".ndjson"):
            lines = file.read_text(encoding="utf-8").splitlines()
            return [_row(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise TaskProblem(f"{file} cannot be read: {error}. Save it as UTF-8 {kind[1:].upper()}") from None
    raise TaskProblem(f"{file} is of a kind that is not read here. Give a .csv, .tsv or .jsonl file")


def _row(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise TaskProblem(f"{file}, line {number}: no JSON: {error}. Put one object on each line") from None
    if not isinstance(row, dict):
        raise TaskProblem(f"{file}, line {number}: {line[:40]!r} is no object. Put one object on each line")
    return row


def _columns(data: Any, text: str, label: str, source: str) -> tuple[list[Any], list[Any]]:
    if isinstance(data, (list, tuple)):
        if not data:
            return [], []
        if isinstance(data[0], Mapping):
            check_columns(columns_in(data, source), {text: "text", label: "label"}, source)
            return [row.get(text) for row in data], [row.get(label) for row in data]
        if isinstance(data[0], (list, tuple)) and all(len(row) == 2 for row in data):
            return [row[0] for row in data], [row[1] for row in data]
        raise TaskProblem("labels are missing. Call fit(texts, labels), or give pairs, a table or a file with both")
    check_columns(columns_in(data, source), {text: "text", label: "label"}, source)
    return list(data[text]), list(data[label])


def columns_in(data: Any, source: str) -> list[str]:
    """Names of a table's columns; raises TaskProblem where it has none."""
    if isinstance(data, (list, tuple)):
        return [str(name) for name in data[0]] if data else []
    names = list(getattr(data, "column_names", None) or getattr(data, "keys", list)())
    if not names:
        raise TaskProblem(
            f"{type(data).__name__} is no data that is read here. Give lists, pairs, a DataFrame, a Dataset or a file"
        )
    return [str(name) for name in names]


def check_columns(names: Sequence[str], options: Mapping[str, str], source: str) -> None:
    """Raise TaskProblem where one is missing that an option of `fit` named."""
    for wanted, option in options.items():
        if wanted not in names:
            raise TaskProblem(
                f"{source} has no column {wanted!r}, but {', '.join(names)}. Name the right one with {option}=..."
            )


def _text(value: Any, place: int, source: str) -> str:
    if not isinstance(value, str):
        raise TaskProblem(f"{source}, row {place}: {value!r} is no text. Turn it into one, or leave the row out")
    return value


def _joined(words: Any, place: int, source: str) -> str:
    if isinstance(words, str) or not all(isinstance(word, str) for word in words):
        raise TaskProblem(f"{source}, row {place}: some texts are words, this one is not. Give all as lists of words")
    return " ".join(words)


def _places(words: Sequence[str]) -> list[tuple[int, int]]:
    places, at = [], 0
    for word in words:
        places.append((at, at + len(word)))
        at += len(word) + 1
    return places


def _plain(value: Any) -> Any:
    """numpy's and pandas' scalars and arrays as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


# -- labels -> numbers


def labels_in(kind: str, rows: Rows) -> list[str]:
    """All labels that occur, sorted; O first for tags."""
    if kind == "multi-label":
        found = {each for value in rows.labels for each in _several(value)}
    elif kind == "token-classification":
        found = {tag for value in rows.labels for tag in _tags(value)}
    else:
        found = {str(value) for value in rows.labels}
    return sorted(found, key=lambda label: (label != "O", label))


def targets(kind: str, labels: Sequence[str], rows: Rows, outputs: int = 1) -> list[Any]:
    """Per row: a label's number, a 0/1 list, numbers, or the numbers of the words' tags; raises TaskProblem."""
    if kind == "multi-label":
        return [_flags(labels, _several(value), place, rows) for place, value in enumerate(rows.labels)]
    if kind == "regression":
        return [_numbers(value, outputs, place, rows) for place, value in enumerate(rows.labels)]
    if kind == "token-classification":
        if not rows.words:
            raise TaskProblem(
                f"{rows.source}: tags belong to words. Give each text as a list of words, and a tag for each word"
            )
        return [_tag_numbers(labels, _tags(value), place, rows) for place, value in enumerate(rows.labels)]
    return [_number(labels, value, place, rows) for place, value in enumerate(rows.labels)]


def _number(labels: Sequence[str], value: Any, place: int, rows: Rows) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and str(value) not in labels:
        if 0 <= value < len(labels):
            return value
    elif str(value) in labels:
        return list(labels).index(str(value))
    raise TaskProblem(
        f"{rows.source}, row {place}: {value!r} is none of the labels {', '.join(labels[:20])}. "
        "Correct it, or give the decoder that label too"
    )


def _several(value: Any) -> list[str]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(SEPARATOR) if part.strip()]
    return [str(each) for each in value]


def _flags(labels: Sequence[str], values: list[str], place: int, rows: Rows) -> list[float]:
    known = {_number(labels, value, place, rows) for value in values}
    return [float(number in known) for number in range(len(labels))]


def _numbers(value: Any, outputs: int, place: int, rows: Rows) -> list[float]:
    many = value if isinstance(value, (list, tuple)) else [value]
    try:
        numbers = [float(each) for each in many]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if len(numbers) != outputs or not all(map(math.isfinite, numbers)):
        raise TaskProblem(
            f"{rows.source}, row {place}: {value!r} is not {outputs} finite number{'s' * (outputs > 1)}. Correct it, "
            "or say Regressor(outputs=...)"
        )
    return numbers


def _tags(value: Any) -> list[str]:
    return value.split() if isinstance(value, str) else [str(each) for each in value]


def _tag_numbers(labels: Sequence[str], tags: list[str], place: int, rows: Rows) -> list[int]:
    if len(tags) != len(rows.words[place]):
        raise TaskProblem(
            f"{rows.source}, row {place}: {len(rows.words[place])} words and {len(tags)} tags. Give one tag a word"
        )
    return [_number(labels, tag, place, rows) for tag in tags]
