"""What is remembered of versions that could not be loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import BACKBONE, write_task

from fmplex_backend.confinement import Confinement
from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.serving.tasklog import TaskLog
from fmplex_backend.serving.version_loading import RETRY_S, VersionLoading


@pytest.fixture
def spec(tmp_path: Path) -> TaskSpec:
    write_task(tmp_path, "one", 0)
    found = Repository(tmp_path, BACKBONE).read()["one"]
    assert isinstance(found, TaskSpec)
    return found


class Rig:
    def __init__(self) -> None:
        self.now = 0.0
        runtime: Any = None
        self.loading = VersionLoading(runtime, Confinement(), lambda: self.now, TaskLog())


def test_a_version_that_is_wrong_is_refused_until_it_was_loaded_or_is_gone(spec: TaskSpec) -> None:
    rig = Rig()
    wrong = TaskRefused(spec.version.path, "(whole version)", "odd", "Mend it")
    assert str(rig.loading.refuse(spec, wrong)) == str(wrong)
    rig.now = 1000.0
    assert rig.loading.refused["one"].spec == spec
    rig.loading.keep_refused(["one"])
    assert rig.loading.refused
    rig.loading.keep_refused([])
    assert not rig.loading.refused
    rig.loading.refuse(spec, wrong)
    rig.loading.forget_refused("one")
    assert not rig.loading.refused


def test_what_raised_is_refused_for_some_seconds(spec: TaskSpec) -> None:
    rig = Rig()
    error = rig.loading.refuse(spec, RuntimeError("odd"))
    assert "loading it raised RuntimeError: odd" in str(error)
    rig.now = RETRY_S - 0.1
    assert rig.loading.refused["one"].error is error
    rig.now = RETRY_S
    assert not rig.loading.refused
    rig.loading.refuse(spec, RuntimeError("odd"))
    rig.loading.keep_refused([])
    assert not rig.loading.refused


def test_whatever_reading_raises_is_returned(spec: TaskSpec) -> None:
    assert isinstance(Rig().loading.read(spec), Exception)
