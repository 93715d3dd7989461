"""Which names of directories a model cannot have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.names import check_name

AS_TRITON_RUNS_PYTHON = "tâche".encode().decode("ascii", "surrogateescape")  # with ASCII as the encoding of file names


@pytest.mark.parametrize("name", [os.fsdecode(b"x\xff"), "\ud800", "*"])
def test_a_name_that_no_model_can_have(name: str) -> None:
    with pytest.raises(TaskRefused, match="Rename the directory"):
        check_name(Path("models"), name)


@pytest.mark.parametrize("name", ["task", "tâche", AS_TRITON_RUNS_PYTHON, "a b", "a\nb", ".hidden", "a*"])
def test_a_name_that_a_model_can_have(name: str) -> None:
    check_name(Path("models"), name)
