"""Usage as CSV, which people open in spreadsheets."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from backend_fixtures import BACKBONE, write_task

from fmplex_backend.repository.names import check_name
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_controller.records.usage import TaskUsage, Usage, as_csv


def cells(name: str, backbone: str = "base") -> list[str]:
    row = TaskUsage(backbone=backbone, task=name, seconds=-1.5, preparation_s=0.0, requests=2, items=3)
    _, line = csv.reader(as_csv(Usage(since=None, tasks=[row], backbones=[])).splitlines())
    return line


@pytest.mark.parametrize("name", ["=1+1", "+a", "-a", "@a", "\ta", "=HYPERLINK(a,b)"])
def test_a_name_that_a_spreadsheet_would_compute_is_text(tmp_path: Path, name: str) -> None:
    """A directory that somebody puts there may have such a name, and is served."""
    write_task(tmp_path, name, 0)
    assert isinstance(Repository(tmp_path, BACKBONE).read()[name], TaskSpec)
    check_name(tmp_path, name)
    assert cells(name, name)[:2] == [f"'{name}", f"'{name}"]


@pytest.mark.parametrize("name", ["a", "a=b", "'a", "", "1-a"])
def test_other_names_are_as_they_are(name: str) -> None:
    assert cells(name) == ["base", name, "-1.500000", "0.000000", "2", "3"]
