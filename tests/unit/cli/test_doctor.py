"""`fmplex doctor`: a line for each finding, and an exit status."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from backend_fixtures import edit
from task_fixtures import tiny_repository
from typer.testing import CliRunner

from fmplex.cli import app as cli
from fmplex.cli import checkup
from fmplex_backend.control_key import VARIABLE, keep_key
from fmplex_controller.server import health
from fmplex_controller.server.health import Finding
from fmplex_controller.server.process import free_ports


def run(root: Path, *arguments: str, code: int = 0) -> str:
    http, grpc, metrics = map(str, free_ports(3))
    line = ["doctor", "-r", str(root), "--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    result = CliRunner().invoke(cli.app, [*line, *arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stdout


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a backbone, on a machine that can serve."""
    monkeypatch.setattr(health, "findings", lambda options: iter([Finding("tritonserver", "ok", "/bin/tritonserver")]))
    return tiny_repository(tmp_path)


def test_all_is_well(root: Path) -> None:
    lines = run(root).splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * len(lines)
    assert "ok    tritonserver: /bin/tritonserver" in lines
    assert f"ok    repository: {root}: 1 backbones, 0 tasks" in lines
    document = json.loads(run(root, "--json"))
    assert {"check": "tritonserver", "status": "ok", "text": "/bin/tritonserver"} in document
    assert {"torch", "transformers", "peft"} <= {each["check"] for each in document}


def test_what_is_bad_is_the_exit_status(root: Path) -> None:
    edit(root / "base" / "config.pbtxt", str(root.parent / "model"), "/nowhere/at/all")
    assert "bad   backbone base: " in (said := run(root, code=1))
    assert "/nowhere/at/all is not a directory" in said


def test_a_warning_is_not(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "findings", lambda options: iter([Finding("http port", "warn", "it is taken")]))
    assert "warn  http port: it is taken" in run(root)


@pytest.mark.parametrize(("name", "said"), [("none", "there is no model repository"), ("empty", "has no backbone")])
def test_a_repository_that_cannot_be_served(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (finding,) = checkup.repository(tmp_path / name)
    assert finding.status == "bad"
    assert said in finding.text


class TestPackages:
    def findings(self, monkeypatch: pytest.MonkeyPatch, version: Any) -> dict[str, Finding]:
        monkeypatch.setattr(checkup.metadata, "version", version)
        return {each.check: each for each in checkup.packages()}

    def test_one_that_is_too_old(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.findings(monkeypatch, {"torch": "2.13.0+cpu", "transformers": "4.1.0"}.get)
        assert found["torch"] == Finding("torch", "ok", "2.13.0+cpu")
        assert found["transformers"].status == "bad"
        assert '4.1.0 is installed, transformers>=4.50 is needed. Run `pip install "transformers>=4.50"`' in (
            found["transformers"].text
        )

    def test_one_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def version(name: str) -> str:
            raise checkup.metadata.PackageNotFoundError(name)

        assert "it is not installed. Run" in self.findings(monkeypatch, version)["peft"].text

    def test_none_of_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "packaging.requirements", None)
        (finding,) = checkup.packages()
        assert 'pip install "fmplex[backend]"' in finding.text


class TestControlKey:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        monkeypatch.delenv(VARIABLE, raising=False)

    def test_before_a_start(self) -> None:
        assert checkup.control_key(*free_ports(1)).text.startswith("none yet")

    @pytest.mark.parametrize(("key", "status"), [("s3cret", "ok"), ("schlüssel", "bad")])
    def test_one_that_is_given(self, monkeypatch: pytest.MonkeyPatch, key: str, status: str) -> None:
        monkeypatch.setenv(VARIABLE, key)
        finding = checkup.control_key(*free_ports(1))
        assert finding.status == status
        assert "s3cret" not in finding.text, "it is nobody else's business"

    def test_one_that_is_kept(self) -> None:
        (port,) = free_ports(1)
        file = keep_key(port, "s3cret")
        assert str(file) in checkup.control_key(port).text
        file.write_text("")
        assert checkup.control_key(port).status == "warn"

    def test_a_server_of_somebody_else(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            finding = checkup.control_key(other.getsockname()[1])
        assert finding.status == "warn"
        assert f"Give it as {VARIABLE}" in finding.text


class TestGpu:
    def finding(self, monkeypatch: pytest.MonkeyPatch, smi: str, available: bool | None) -> Finding:
        cuda = SimpleNamespace(
            is_available=lambda: available, device_count=lambda: 1, get_device_name=lambda number: "H100"
        )
        torch = None if available is None else SimpleNamespace(cuda=cuda, __version__="2.13.0+cpu")
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(checkup.shutil, "which", lambda name: name if smi else None)

        def called(line: list[str], **_: Any) -> Any:
            if smi == "hangs":
                raise subprocess.TimeoutExpired(line, 20)
            return SimpleNamespace(stdout=f"{smi}\n")

        monkeypatch.setattr(checkup.subprocess, "run", called)
        return checkup.gpu()

    @pytest.mark.parametrize(
        ("smi", "available", "status", "said"),
        [
            ("H100, 550.54", True, "ok", "1 of H100"),
            ("H100, 550.54", False, "warn", "H100, 550.54, but torch 2.13.0+cpu does not see it"),
            ("H100, 550.54", None, "warn", "torch is not installed"),
            ("hangs", False, "warn", "nvidia-smi is here and fails"),
            ("", False, "ok", "none; backbones run on the CPU"),
        ],
    )
    def test_it(
        self, monkeypatch: pytest.MonkeyPatch, smi: str, available: bool | None, status: str, said: str
    ) -> None:
        finding = self.finding(monkeypatch, smi, available)
        assert finding.status == status
        assert said in finding.text
