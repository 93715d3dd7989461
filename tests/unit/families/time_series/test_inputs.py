"""Series in every form that people have them, and as the tensor they are sent as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from series_fixtures import series

from fmplex import TaskProblem, TimeSeries
from fmplex.data.rows import items_of, rows_of
from fmplex_backend.families.time_series.inputs import SERIES
from fmplex_backend.families.time_series.series import series_of

WIDE = "date,power,heat\n2024-01-01,1.5,10\n2024-01-02,,11\n2024-01-03,2.5,12\n"


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    file = tmp_path / "wide.csv"
    file.write_text(WIDE)
    return file


def test_every_form_of_a_series(wide: Path, tmp_path: Path) -> None:
    want = np.array([[1.5, 10], [np.nan, 11], [2.5, 12]], dtype=np.float32)
    np.save(tmp_path / "it.npy", want)
    frame = pd.read_csv(wide)
    frame.to_parquet(tmp_path / "it.parquet")
    for given in (
        want,
        want.tolist(),
        want.astype(np.float64),
        wide,
        str(wide),
        tmp_path / "it.npy",
        tmp_path / "it.parquet",
        frame,
    ):
        np.testing.assert_array_equal(series_of(given).values, want)
    assert series_of(frame).names == series_of(wide).names == ("power", "heat")
    assert series_of([1, 2, None]).values.shape == (3, 1)
    one, other = series_of(want), series_of(want.copy())
    assert one == other
    assert hash(one) == hash(other)
    assert one != series_of(want[1:])


def test_one_item_or_several(wide: Path) -> None:
    assert all(SERIES.is_item(each) for each in (np.ones(3), np.ones((3, 2)), [1, 2], [None, 2.5], series_of([1, 2])))
    several: list[Any] = [
        np.ones((2, 3, 1)),
        [[1, 2], [3, 4]],
        [np.ones(3)] * 2,
        [np.ones((3, 2))],
        [series_of([1, 2])],
        wide,
        str(wide),
    ]
    assert [SERIES.is_item(each) for each in several] == [False] * len(several)
    assert [
        len(items_of(each, SERIES)) for each in (np.ones((2, 3, 1)), [np.ones((3, 2))], wide, pd.read_csv(wide))
    ] == [2, 1, 1, 1]


def test_shorter_ones_begin_with_missing_values() -> None:
    sent = SERIES.array([np.ones((2, 3)), np.full((4, 3), 2.0)])
    assert (sent.shape, sent.dtype) == ((2, 4, 3), np.float32)
    assert np.isnan(sent[0, :2]).all()
    assert (sent[0, 2:] == 1).all()
    with pytest.raises(TaskProblem, match=r"as many channels, these have \[1, 2\]"):
        SERIES.array([np.ones((2, 1)), np.ones((2, 2))])


def test_tables(wide: Path, tmp_path: Path) -> None:
    """Wide, long, a series in a row, a series in a cell."""
    (whole,) = items_of(wide, SERIES)
    assert whole.values.shape == (3, 2)
    (chosen,) = items_of(wide, SERIES, columns=["heat"])
    assert chosen.names == ("heat",)
    long = tmp_path / "long.csv"
    long.write_text("series,day,value,label\na,x,1,up\nb,x,5,down\na,y,2,up\nb,y,4,down\na,z,3,up\n")
    rows = rows_of(long, None, SERIES)
    assert rows.labels == ["up", "down"]
    assert [each.values[:, 0].tolist() for each in rows.items] == [[1, 2, 3], [5, 4]]
    flat = tmp_path / "flat.csv"
    flat.write_text("t0,t1,t2,kind\n1,2,3,up\n3,2,1,down\n")
    rows = rows_of(flat, None, SERIES, label="kind")
    assert (rows.labels, rows.items[1].values.tolist()) == (["up", "down"], [[3.0], [2.0], [1.0]])
    cells = [{"series": [1, 2, 3], "label": "up"}, {"series": str(wide), "label": "down"}]
    assert [each.channels for each in rows_of(cells, None, SERIES).items] == [1, 2]
    pd.read_csv(long).to_parquet(tmp_path / "long.parquet")
    assert rows_of(tmp_path / "long.parquet", None, SERIES).labels == ["up", "down"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty, or its first line is"),
        ("heat,power,heat\n1,2,3\n", "columns are named twice: 'heat'"),
        ("1.5,10\n2.5,12\n", "its first line, 1.5,10, names no columns"),
        ("2024-01-01,,3\n2024-01-02,4,5\n", "its first line, 2024-01-01,,3, names no columns"),
        ("0\n1\n", "its first line, 0, names no columns"),
    ],
)
def test_a_file_whose_first_line_would_lose_data_is_named(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    for read in (series_of, lambda given: items_of(given, SERIES)):
        with pytest.raises(ValueError if read is series_of else TaskProblem, match=rf"bad\.csv.*: {says}"):
            read(file)


def test_columns_that_pandas_counts_are_named(tmp_path: Path) -> None:
    frame = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]])
    frame.to_csv(tmp_path / "it.csv", index=False)
    for given in (frame, tmp_path / "it.csv"):
        np.testing.assert_array_equal(series_of(given).values, frame)
        np.testing.assert_array_equal(items_of(given, SERIES)[0].values, frame)


def test_folders_of_files_are_labelled_series(wide: Path, tmp_path: Path) -> None:
    for label in ("calm", "wild"):
        (tmp_path / "train" / label).mkdir(parents=True)
        for seed in range(2):
            np.save(tmp_path / "train" / label / f"{seed}.npy", series(seed, 20))
    rows = rows_of(tmp_path / "train", None, SERIES)
    assert rows.labels == ["calm", "calm", "wild", "wild"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("series,value,label\na,1,up\na,2,down\n", "the series 'a' has the labels 'up' and 'down'"),
        ("day,name\nx,y\n", "has no column 'label', but day, name"),
        ("day,label\nx,y\n", "none of the columns day, label holds numbers alone"),
        ("value,label\n", "has no rows"),
    ],
)
def test_tables_that_are_none_are_named(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(TaskProblem, match=says):
        rows_of(file, None, SERIES)


@pytest.mark.parametrize("bad", ["none.csv", "words", {"a": 1}, np.ones((2, 2, 2, 2)), object()])
def test_what_is_no_series_is_named(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(TaskProblem, match="the task reads series"):
        SERIES.array([bad])


def test_the_command_lines_words(wide: Path) -> None:
    np.testing.assert_array_equal(SERIES.parse("1,nan,,3").values[:, 0], [1, np.nan, np.nan, 3])
    assert SERIES.parse(str(wide)).channels == 2
    assert SERIES.show(SERIES.parse("1,2.5")) == "1,2.5"
    assert SERIES.show(np.ones((2000, 3))) == "a series of 2,000 steps, 3 channels"
    for bad in ("1,x", "none.csv"):
        with pytest.raises(TaskProblem, match=r"is no series"):
            SERIES.parse(bad)
    assert SERIES.probe(3).channels == 3
    first, last = SERIES.parted(np.arange(5.0), 2)
    assert (first.steps, last.values[:, 0].tolist()) == (3, [3.0, 4.0])
    with pytest.raises(TaskProblem, match="5 steps cannot be held back of a series of 5"):
        SERIES.parted(np.arange(5.0), 5)
    assert isinstance(first, TimeSeries)
