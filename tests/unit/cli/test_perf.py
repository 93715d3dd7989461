"""Finding perf_analyzer and the libraries it asks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fmplex.cli import perf
from fmplex_backend.errors import SetupProblem


@pytest.fixture
def wheel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The server's wheel with hashed library names, and a cache of our own."""
    folder = tmp_path / "nvidia_pytriton.libs"
    folder.mkdir()
    for name in ("libb64-98cb6333.so.0d", "libcudart-09529672.so.12.6.77", "libz-1.so.1"):
        (folder / name).write_text(name)
    monkeypatch.setattr(perf, "wheel_libraries", lambda: folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    return folder


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, list[str], dict[str, str]]]:
    """What this process would have become."""
    calls: list[tuple[Path, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    return calls


def on_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    binary = folder / "perf_analyzer"
    binary.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folder))
    return binary


def test_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = on_path(tmp_path / "bin", monkeypatch)
    assert perf.find_perf_analyzer() == binary


def test_then_the_one_of_tritonclient_s_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorded(type(Path())):  # type: ignore[misc]
        def locate(self) -> Path:
            return tmp_path / self

    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "perf_analyzer").touch()
    files = [Recorded("tritonclient/__init__.py"), Recorded("bin/perf_client"), Recorded("bin/perf_analyzer")]
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(perf.metadata, "files", lambda name: files)
    assert perf.find_perf_analyzer() == tmp_path / "bin" / "perf_analyzer"


def test_none_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(perf.metadata, "files", lambda name: None)
    with pytest.raises(SetupProblem, match=r"no perf_analyzer.*pip install tritonclient==2\.50\.0"):
        perf.find_perf_analyzer()


@pytest.mark.usefixtures("wheel_folder")
def test_it_gets_its_arguments_and_its_libraries_under_plain_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executed: list[tuple[Path, list[str], dict[str, str]]]
) -> None:
    binary = on_path(tmp_path / "bin", monkeypatch)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    for _ in range(2):  # the folder is there already the second time
        perf.run(["-m", "sentiment"])
        found, line, variables = executed.pop()
        assert (found, line) == (binary, [str(binary), "-m", "sentiment"])
        mine, linked = variables["LD_LIBRARY_PATH"].split(":")
        assert mine == "/mine"
        assert {file.name: file.read_text() for file in Path(linked).iterdir()} == {
            "libb64.so.0d": "libb64-98cb6333.so.0d",
            "libcudart.so.12": "libcudart-09529672.so.12.6.77",
        }


def test_without_the_wheel_the_loader_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executed: list[tuple[Path, list[str], dict[str, str]]]
) -> None:
    on_path(tmp_path / "bin", monkeypatch)
    monkeypatch.setattr(perf, "wheel_libraries", lambda: None)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    perf.run([])
    assert "LD_LIBRARY_PATH" not in executed[0][2]


@pytest.mark.usefixtures("wheel_folder")
def test_a_cache_that_cannot_be_written_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executed: list[tuple[Path, list[str], dict[str, str]]]
) -> None:
    on_path(tmp_path / "bin", monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(perf.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    perf.run([])
    assert executed[0][2]["LD_LIBRARY_PATH"] == str(tmp_path)
    assert (tmp_path / "libb64.so.0d").is_symlink()
