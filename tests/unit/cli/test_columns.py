"""Tables in plain text."""

from __future__ import annotations

import os

import pytest

from fmplex.cli import columns
from fmplex.cli.columns import as_fields, as_table, fitted
from fmplex.cli.events import line_of
from fmplex_controller.records.events import event_now

ROWS = [
    {"task": "sentiment", "state": "serving", "figure": "accuracy 0.93", "tag": "1"},
    {"task": "ein-sehr-langer-name-für-eine-aufgabe", "state": "former version", "figure": "-", "tag": "12"},
]
COLUMNS = ("task", "tag", "state", "figure")


def test_a_pipe_has_every_column_and_no_blank_in_a_cell() -> None:
    lines = as_fields(ROWS, COLUMNS).splitlines()
    assert lines[0].split("\t") == list(COLUMNS)
    for line in lines:
        assert line.split() == line.split("\t"), "awk takes it as it is"
    assert lines[2].split()[:3] == ["ein-sehr-langer-name-für-eine-aufgabe", "12", "former_version"]


def test_columns_stand_below_each_other() -> None:
    lines = as_table(ROWS, COLUMNS).splitlines()
    starts = {line.index(cell) for line, cell in zip(lines, ("state", "serving", "former"), strict=True)}
    assert len(starts) == 1
    assert not any(line.endswith(" ") for line in lines)


def test_wide_letters_count_twice() -> None:
    table = as_table([{"a": "任務", "b": "x"}, {"a": "four", "b": "x"}], ["a", "b"]).splitlines()
    assert table[1:] == ["任務  x", "four  x"]


@pytest.mark.parametrize(
    ("width", "left"),
    [
        (200, ["task", "tag", "state", "figure"]),
        (73, ["task", "tag", "state", "figure"]),
        (72, ["task", "tag", "state"]),
        (57, ["task", "state"]),
        (10, ["task", "state"]),
    ],
)
def test_what_does_not_fit_goes_and_names_stay_whole(width: int, left: list[str]) -> None:
    assert fitted(ROWS, COLUMNS, ("figure", "tag"), width) == left


def test_a_terminal_says_what_was_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(columns.shutil, "get_terminal_size", lambda *_, **__: os.terminal_size((57, 24)))
    columns.show(ROWS, COLUMNS, ("figure", "tag"))
    said = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 57 for line in said[:-1])
    assert said[-1].startswith("(tag, figure: in a wider terminal")
    assert "ein-sehr-langer-name-für-eine-aufgabe" in said[2]


def test_a_name_with_tabs_and_ends_of_lines_stays_in_its_cell() -> None:
    name = "a\n2\tb"
    assert as_fields([{"task": name, "tag": "1"}], ("task", "tag")).splitlines() == ["task\ttag", "a_2_b\t1"]


def test_an_event_is_one_line_whatever_its_model_is_called() -> None:
    assert len(line_of(event_now("loaded", "a\n2026-11-27 10:00:00 loaded b")).splitlines()) == 1
