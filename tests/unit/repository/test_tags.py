"""Of several tasks with one tag, which keeps it: by what a server tells, else by what the repository shows."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from backend_fixtures import BACKBONE, write_task

from fmplex_backend.errors import TaskProblem
from fmplex_backend.printable import printable
from fmplex_backend.repository.tags import check_tag, keeper_of


def oldest(names: Iterable[str]) -> str:
    """By their letters."""
    return min(names)


@pytest.mark.parametrize(
    ("holder", "loaded", "keeper"),
    [
        ("c", "", "c"),
        ("c", "b", "c"),
        (None, "b", "b"),
        ("gone", "b", "b"),
        (None, "bc", "a"),
        (None, "", "a"),
    ],
)
def test_who_had_it_before_dates_decide_last(holder: str | None, loaded: str, keeper: str) -> None:
    assert keeper_of("abc", holder=holder, is_loaded=loaded.__contains__, oldest=oldest) == keeper


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`old` and `new` have VFM_3; the files of `old` have the earlier date."""
    for name in ("old", "new"):
        version = write_task(tmp_path, name, 3)
        for file in (version / "task.json", version, tmp_path / name / "config.pbtxt"):
            os.utime(file, (1e9, 1e9) if name == "old" else (2e9, 2e9))
    return tmp_path


def test_without_a_server_the_older_keeps_it_and_that_is_said_of_the_repository(root: Path) -> None:
    check_tag(root, ["old", "new"], "old", BACKBONE, 3)
    with pytest.raises(TaskProblem) as raised:
        check_tag(root, ["old", "new"], "new", BACKBONE, 3)
    assert str(raised.value) == (
        "VFM_3 on 'base' is the tag of 'old' too, whose files in the repository are older: a server that serves "
        "neither of them yet answers for that one. Give 'new' another tag first: fmplex task set new --new-tag "
        f"--repository {root}"
    )


def test_where_a_server_tells_who_has_it_dates_do_not_matter(root: Path) -> None:
    check_tag(root, ["old", "new"], "new", BACKBONE, 3, {3: "new"})
    said = re.escape("VFM_3 on 'base' is the tag of 'new' too, which the server answers for. Give 'old' another tag")
    with pytest.raises(TaskProblem, match=said):
        check_tag(root, ["old", "new"], "old", BACKBONE, 3, {3: "new"})


def test_a_server_that_tells_of_another_one_has_not_told(root: Path) -> None:
    for holders in ({3: "elsewhere"}, {4: "new"}):
        check_tag(root, ["old", "new"], "old", BACKBONE, 3, holders)
        with pytest.raises(TaskProblem, match="in the repository are older"):
            check_tag(root, ["old", "new"], "new", BACKBONE, 3, holders)


def test_a_name_that_is_no_text_is_known_as_it_is_told(root: Path) -> None:
    name = os.fsdecode(b"n\xe9")
    (root / "new").rename(root / name)
    check_tag(root, ["old", name], name, BACKBONE, 3, {3: printable(name)})
