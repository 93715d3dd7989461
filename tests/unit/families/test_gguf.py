"""GGUF files are told apart by all of their bytes, and converted by one process at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families import gguf
from fmplex_backend.families.gguf import converted

CONFIG = Path("backbone/config.pbtxt")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of three blocks; it is "converted" to a copy of itself."""

    def copied(source: Path, directory: Path) -> None:
        (directory / "copy").write_bytes(source.read_bytes())

    monkeypatch.setenv("FMPLEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "_convert", copied)
    monkeypatch.setattr(gguf, "BLOCK", 8)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"a" * 24)
    return file


def copy_of(source: Path) -> bytes:
    return (converted(source, CONFIG) / "copy").read_bytes()


def test_a_file_that_differs_in_its_middle_alone_is_another_one(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = b"a" * (3 << 20)
    source.write_bytes(large)
    monkeypatch.setattr(gguf, "BLOCK", 1 << 20)
    assert copy_of(source) == large
    other = large[: 3 << 19] + b"b" + large[(3 << 19) + 1 :]
    source.write_bytes(other)
    os.utime(source, (1, 1))  # clocks of file systems tick every few milliseconds
    assert copy_of(source) == other


def test_an_older_time_than_before_is_a_change_too(source: Path) -> None:
    assert copy_of(source) == b"a" * 24
    source.write_bytes(b"b" * 24)
    os.utime(source, (1, 1))
    assert copy_of(source) == b"b" * 24


def test_a_file_that_is_as_it_was_is_not_read_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = converted(source, CONFIG)
    monkeypatch.setattr(gguf, "BLOCK", 0)  # nothing is read: another digest
    assert converted(source, CONFIG, make=False) == first
    os.utime(source, (1, 1))
    with pytest.raises(BackboneRefused, match="has not been converted yet"):
        converted(source, CONFIG, make=False)


def test_a_cache_that_cannot_be_written_to_is_no_reason_to_fail(source: Path) -> None:
    first = converted(source, CONFIG)
    for note in first.parent.glob("*.sha256"):
        note.unlink()
        note.mkdir()
    assert converted(source, CONFIG) == first


def test_a_conversion_that_another_process_does_not_end(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = converted(source, CONFIG)
    (target / "copy").unlink()
    target.rmdir()
    monkeypatch.setattr(gguf, "WAIT_S", 0.0)
    with FileLock(f"{target}.lock"), pytest.raises(BackboneRefused) as caught:
        converted(source, CONFIG)
    assert (caught.value.file, caught.value.field) == (str(CONFIG), "parameters.model")
    assert "another process" in caught.value.problem
    assert f"{target}.lock" in caught.value.remedy
