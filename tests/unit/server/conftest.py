"""Installations of a server, laid out as files that run nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from server_fixtures import THIS_PYTHON, install

from fmplex_controller.server import installation as inst
from fmplex_controller.server.installation import Installation


@pytest.fixture(autouse=True)
def _keys_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test leaves a control key in the home of who runs it, nor takes one from the environment."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("FMPLEX_CONTROL_KEY", raising=False)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    root = install(tmp_path / "tritonserver")
    monkeypatch.setenv("PATH", f"{root / 'bin'}:/usr/bin:/bin")
    return inst.find_tritonserver()


@pytest.fixture
def wheel(tmp_path: Path) -> Installation:
    root = install(tmp_path / "pytriton" / "tritonserver")
    stub = root / "python_backend_stubs" / THIS_PYTHON / inst.STUB
    stub.parent.mkdir(parents=True)
    (root / "backends" / "python" / inst.STUB).rename(stub)
    (tmp_path / "pytriton" / "__init__.py").write_text("raise AssertionError('only located, never imported')")
    libraries = (tmp_path / inst.WHEEL_LIBRARIES,)
    return Installation(root / "bin" / "tritonserver", root / "backends", stub, libraries, numpy_1_only=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path
