"""The name of the region that Triton started a process with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fmplex_backend import shared_memory
from fmplex_backend.shared_memory import unlink_region


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process started with the region "mine", which it has open beside another one; a third is not open."""
    regions, own = tmp_path / "shm", tmp_path / "proc"
    (own / "fd").mkdir(parents=True)
    regions.mkdir()
    for name in ("mine", "opened", "other"):
        (regions / name).write_text(name)
    (own / "cmdline").write_text("\0".join(["/opt/stub", "/models/m/1/model.py", "mine", "other", "1048576", ""]))
    for number, target in enumerate([regions / "mine", regions / "opened", Path(os.devnull), Path("pipe:[7]")]):
        (own / "fd" / str(number)).symlink_to(target)
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", regions)
    monkeypatch.setattr(shared_memory, "SELF", own)
    return regions


def test_it_goes_and_no_other(process: Path) -> None:
    assert unlink_region() == [process / "mine"]
    assert sorted(file.name for file in process.iterdir()) == ["opened", "other"]


def test_a_name_that_stays_is_logged(
    process: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", forbidden)
    monkeypatch.setattr(shared_memory.log, "propagate", True)
    assert unlink_region() == []
    assert "keeps its name" in caplog.text


def test_a_process_that_triton_did_not_start_has_none() -> None:
    assert unlink_region() == []
