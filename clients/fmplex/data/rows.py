"""Labelled examples from lists, tables, files and folders, as items of a task's input.

Lists, pairs, dicts, a pandas DataFrame, a Hugging Face Dataset, a CSV, TSV or JSONL file, which may name files from its
own folder; of items that are files a folder, where those of a label lie in one of its name, or where those of labels
that are files lie in a folder beside the items'. For token tasks a text may be a list of words, its label a list of
tags; a text is then its words with a space between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmplex.data.folders import files_in, labelled_files, paired_files
from fmplex.data.items import located
from fmplex.data.tables import check_columns, column, columns_in, is_table, read_file
from fmplex_backend.decoders import Decoder
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.spec import Input, TableInput

Columns = str | Sequence[str] | None  # of the inputs; None: the input's default, or every column but the label's


def rows_for(
    decoder: Decoder, data: Any, labels: Any, reads: Input, *, columns: Columns = None, label: str = ""
) -> Rows:
    """Rows that a decoder can be fitted to: labelled ones, or those that it makes of items without labels."""
    if labels is not None or not decoder.labels_itself or isinstance(data, Rows):
        return rows_of(data, labels, reads, columns=columns, label=label, decoder=decoder)
    source = str(data) if isinstance(data, (str, Path)) else "the data"
    return decoder.rows_from(items_of(data, reads, columns=columns), source)


def rows_of(
    data: Any,
    labels: Any,
    reads: Input,
    *,
    columns: Columns = None,
    label: str = "",
    decoder: Decoder | type[Decoder] = Decoder,
) -> Rows:
    """Labelled rows from any of the supported forms; raises TaskProblem.

    Args:
        data: items, pairs of an item and a label, cells that the decoder takes apart, a table, a file, or Rows as they
            are.
        labels: one a row; None where `data` has them.
        reads: the task's input.
        columns: names of the columns that make an item; `label`: of the labels', the decoder's default for "".
    """
    if isinstance(data, Rows):
        return data
    source, folder = "the data", None
    if labels is None and isinstance(data, (str, Path)):
        source, place = str(data), Path(data)
        if place.is_dir() and decoder.label_files:
            data, labels = paired_files(place, reads, decoder.label_folder, decoder.label_files)
        elif place.is_dir():
            data, labels = labelled_files(place, reads)
        else:
            folder, data = place.parent, read_file(place)
    if labels is not None:
        cells, values = list(data), list(labels)
    elif (whole := _whole(data, reads, decoder, columns, label, source)) is not None:
        cells, values = _parted(whole, decoder, source)
    else:
        cells, values = _labelled(data, reads, columns, label or decoder.label_column, source)
    values = check_labels(cells, values, source)
    if decoder.label_files:
        values = [_label_file(value, decoder, folder, source, place) for place, value in enumerate(values)]
    items, words = _items([decoder.asked(located(cell, reads, folder)) for cell in cells], reads, source)
    return Rows(items, values, words, source)


def items_of(data: Any, reads: Input, *, columns: Columns = None) -> list[Any]:
    """Items without labels, from one item, several, a table, a file or a folder; raises TaskProblem."""
    folder = None
    if reads.is_item(data):
        data = [data]
    elif isinstance(data, (str, Path)) and Path(data).is_dir():
        data = files_in(Path(data), reads)
    elif isinstance(data, (str, Path)):
        folder, data = Path(data).parent, read_file(Path(data))
    if is_table(data) and isinstance(reads, TableInput):
        return _from_table(data, reads, columns, None, "the data")[0]
    if is_table(data):
        data = _cells(data, _columns(data, reads, columns, None, "the data"), reads, "the data")
    if not isinstance(data, Iterable):
        data = [data]
    return _items([located(cell, reads, folder) for cell in data], reads, "the data")[0]


def check_labels(rows: Sequence[Any], labels: Sequence[Any], source: str) -> list[Any]:
    """The labels as Python's own, one for each row; raises TaskProblem."""
    if len(rows) != len(labels):
        raise TaskProblem(f"{source} has {len(rows)} texts and {len(labels)} labels. Give one label for each text")
    if not rows:
        raise TaskProblem(f"{source} has no rows. Give at least a few for each label")
    for place, value in enumerate(labels):
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise TaskProblem(f"{source}, row {place}: there is no label. Fill it in, or leave the row out")
    # numpy's and pandas' scalars, and rows of numbers; a label that is a picture stays an array
    return [value.tolist() if hasattr(value, "tolist") and np.ndim(value) < 2 else value for value in labels]


def _label_file(value: Any, decoder: Decoder | type[Decoder], folder: Path | None, source: str, place: int) -> Any:
    """A label that may be a file, which a table may name from its own folder; raises TaskProblem."""
    if not isinstance(value, (str, Path)):
        return value
    file = folder / value if folder is not None and (folder / value).is_file() else Path(value)
    if not file.is_file() or file.suffix.lower() not in decoder.label_files:
        raise TaskProblem(
            f"{source}, row {place}: the label {str(value)!r} is no {' or '.join(decoder.label_files)} file. "
            "Correct the path"
        )
    return file


def _whole(
    data: Any, reads: Input, decoder: Decoder | type[Decoder], columns: Columns, label: str, source: str
) -> list[Any] | None:
    """Cells that hold items and labels both, where the data has such; a column of items goes first."""
    if not decoder.whole_column:
        return None
    if isinstance(data, (list, tuple)) and not is_table(data):
        return list(data) if data and all(_is_whole(row, decoder) for row in data) else None
    names = [] if columns or label else columns_in(data, source)
    if decoder.whole_column not in names or reads.default_column in names:
        return None
    return column(data, decoder.whole_column)


def _is_whole(row: Any, decoder: Decoder | type[Decoder]) -> bool:
    try:
        return decoder.parted(row) is not None
    except ValueError:
        return True  # `_parted` says what is wrong with it


def _parted(cells: Sequence[Any], decoder: Decoder | type[Decoder], source: str) -> tuple[list[Any], list[Any]]:
    found = []
    for place, cell in enumerate(cells):
        try:
            parts = decoder.parted(cell)
        except ValueError as error:
            raise TaskProblem(f"{source}, row {place}: {error}") from None
        if parts is None:
            raise TaskProblem(
                f"{source}, row {place}: {str(cell)[:80]!r} is none of the {decoder.whole_column} that the others are. "
                "Correct it, or leave the row out"
            )
        found.append(parts)
    return [item for item, _ in found], [answer for _, answer in found]


def _labelled(data: Any, reads: Input, columns: Columns, label: str, source: str) -> tuple[list[Any], list[Any]]:
    """Cells and labels of a table, or of pairs."""
    if isinstance(data, (list, tuple)) and not is_table(data):
        if not all(isinstance(row, (list, tuple)) and len(row) == 2 for row in data):
            raise TaskProblem("labels are missing. Call fit(rows, labels), or give pairs, a table or a file with both")
        return [row[0] for row in data], [row[1] for row in data]
    names = columns_in(data, source)
    if isinstance(reads, TableInput):
        check_columns(names, {label: "label"}, source)
        return _from_table(data, reads, columns, label, source)
    chosen = _columns(data, reads, columns, label, source)
    check_columns(names, dict.fromkeys(chosen, "text") | {label: "label"}, source)
    return _cells(data, chosen, reads, source), column(data, label)


def _from_table(
    data: Any, reads: TableInput, columns: Columns, label: str | None, source: str
) -> tuple[list[Any], list[Any]]:
    """Items and labels; raises TaskProblem."""
    names = columns_in(data, source)
    named = [columns] if isinstance(columns, str) else None if columns is None else list(columns)
    check_columns(names, dict.fromkeys(named or [], "text"), source)
    try:
        return reads.from_table({name: column(data, name) for name in names}, named, label)
    except ValueError as error:
        raise TaskProblem(f"{source}: {error}") from None


def _columns(data: Any, reads: Input, columns: Columns, label: str | None, source: str) -> list[str]:
    """Names of the columns that make an item."""
    if reads.columns == "one":
        if columns is not None and not isinstance(columns, str):
            raise TaskProblem(
                f"a {reads.default_column} is one column, {list(columns)} are several. Name one with text=..."
            )
        return [columns or reads.default_column]
    if columns is None:
        return [name for name in columns_in(data, source) if name != label]
    return [columns] if isinstance(columns, str) else list(columns)


def _cells(data: Any, names: Sequence[str], reads: Input, source: str) -> list[Any]:
    check_columns(columns_in(data, source), dict.fromkeys(names, "text"), source)
    every = [column(data, name) for name in names]
    return every[0] if reads.columns == "one" else [list(row) for row in zip(*every, strict=True)]


def _items(cells: Sequence[Any], reads: Input, source: str) -> tuple[list[Any], list[list[tuple[int, int]]]]:
    """Items, and the character ranges of their words where all cells are lists of words; raises TaskProblem."""
    items, words = [], []
    for place, cell in enumerate(cells):
        try:
            item, own = reads.item(cell)
        except ValueError as error:
            raise TaskProblem(f"{source}, row {place}: {error}") from None
        items.append(item)
        words.append(own)
    in_words = [bool(own) for own in words]
    if any(in_words) and not all(in_words):
        odd = in_words.index(not in_words[0])
        raise TaskProblem(
            f"{source}, row {odd}: some texts are words, this one is not. Give all as lists of words"
            if in_words[0]
            else f"{source}, row {odd}: {cells[odd]!r} is not a text. Turn it into one, or leave the row out"
        )
    return items, words if any(in_words) else []
