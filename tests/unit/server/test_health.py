"""Whether a server can run here: each finding says what is wrong and how to mend it."""

from __future__ import annotations

import socket
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from fmplex_controller.server import health
from fmplex_controller.server import installation as inst
from fmplex_controller.server.addresses import check_ports
from fmplex_controller.server.health import Finding, findings, ports, shared_memory
from fmplex_controller.server.installation import Installation
from fmplex_controller.server.options import ServerOptions
from fmplex_controller.server.process import free_ports

Usage = namedtuple("Usage", "total used free")


def options(repository: Path) -> ServerOptions:
    return ServerOptions(repository, "127.0.0.1", *free_ports(3))


def found(repository: Path) -> dict[str, Finding]:
    return {each.check: each for each in findings(options(repository))}


def test_a_machine_that_can_serve(system: Installation, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "missing_libraries", lambda installation: [])
    monkeypatch.setattr(health.shutil, "disk_usage", lambda folder: Usage(1 << 30, 0, 1 << 30))
    seen = found(repository)
    assert {each.status for each in seen.values()} == {"ok"}, seen
    assert seen["tritonserver"].text == str(system.binary)
    assert [*seen] == [
        *("tritonserver", "python", "numpy", "libpython", "libraries", "shared memory"),
        *("http port", "grpc port", "metrics port"),
    ]


def test_no_server(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inst, "_system_roots", lambda: iter(()))
    monkeypatch.setattr(inst, "_wheel_root", lambda: None)
    seen = found(repository)
    assert seen["tritonserver"].status == "bad"
    assert "pip install" in seen["tritonserver"].text
    assert "numpy" not in seen


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("libarchive.so.13 => not found", "Install the packages that hold these libraries"),
        ("/lib/libc.so.6: version `GLIBC_2.35' not found", "glibc is too old"),
    ],
)
@pytest.mark.usefixtures("system")
def test_libraries_that_are_missing(repository: Path, monkeypatch: pytest.MonkeyPatch, line: str, remedy: str) -> None:
    monkeypatch.setattr(health, "missing_libraries", lambda installation: [line])
    libraries = found(repository)["libraries"]
    assert libraries.status == "bad"
    assert line in libraries.text
    assert remedy in libraries.text


@pytest.mark.usefixtures("system")
def test_a_numpy_that_does_not_fit(repository: Path, monkeypatch: pytest.MonkeyPatch, wheel: Installation) -> None:
    monkeypatch.setattr(health, "find_tritonserver", lambda: wheel)
    monkeypatch.setattr(health, "missing_libraries", lambda installation: [])
    monkeypatch.setattr(inst.metadata, "version", lambda name: "2.1.0")
    numpy = found(repository)["numpy"]
    assert (numpy.status, 'pip install "numpy<2"' in numpy.text) == ("bad", True)


@pytest.mark.parametrize(("free", "status"), [(64 << 20, "warn"), (255 << 20, "warn"), (256 << 20, "ok")])
def test_little_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    monkeypatch.setattr(health.shutil, "disk_usage", lambda folder: Usage(1 << 30, 0, free))
    finding = shared_memory(tmp_path)
    assert finding.status == status
    assert ("--shm-size" in finding.text) == (status == "warn")


def test_no_shared_memory(tmp_path: Path) -> None:
    finding = shared_memory(tmp_path / "none")
    assert finding.status == "bad"
    assert "Mount a tmpfs there" in finding.text


def test_a_port_that_is_taken(repository: Path) -> None:
    chosen = options(repository)
    with socket.socket() as other:
        other.bind(("127.0.0.1", chosen.grpc_port))
        other.listen()
        seen = {each.check: each for each in ports(chosen)}
    assert [each.status for each in seen.values()] == ["ok", "warn", "ok"]
    assert "Choose another with --grpc-port" in seen["grpc port"].text
    check_ports(chosen.host, chosen.ports)


def test_an_address_that_is_not_this_machines(repository: Path) -> None:
    """192.0.2.0/24 is nobody's."""
    chosen = replace(options(repository), host="192.0.2.1")
    assert {each.status for each in ports(chosen)} == {"bad"}
