"""The server's process, up to where a real tritonserver is needed."""

from __future__ import annotations

import io
import socket
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fmplex_backend.control_key import kept_key
from fmplex_backend.errors import PortInUse, ServerExited, SetupProblem
from fmplex_controller.server import installation as inst
from fmplex_controller.server import process as server_module
from fmplex_controller.server.installation import Installation
from fmplex_controller.server.options import ServerOptions
from fmplex_controller.server.process import Server, free_ports


def options_of(repository: Path) -> ServerOptions:
    http, grpc, metrics = free_ports(3)
    return ServerOptions(repository, http_port=http, grpc_port=grpc, metrics_port=metrics)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class TestServer:
    def test_free_ports_differ(self) -> None:
        ports = free_ports(20)
        assert len(set(ports)) == 20
        assert all(10_000 <= port < server_module._lowest_ephemeral() for port in ports)

    def test_no_repository(self, tmp_path: Path) -> None:
        with pytest.raises(SetupProblem, match="there is no model repository at"):
            Server(options_of(tmp_path / "none")).start()

    def test_a_taken_port_is_named(self, system: Installation, repository: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            options = ServerOptions(repository, grpc_port=taken.getsockname()[1], http_port=free_ports(1)[0])
            with pytest.raises(PortInUse, match=r"grpc cannot listen.*--grpc-port"):
                Server(options, system).start()

    def test_an_early_exit_shows_the_status_and_the_last_lines(
        self, system: Installation, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "model.py").touch()
        monkeypatch.setattr(inst, "backend_package", lambda: tmp_path)
        shared = tmp_path / "shm"
        shared.mkdir()
        (shared / "somebody else's").touch()
        monkeypatch.setattr(server_module, "SHARED_MEMORY", shared)
        log = io.StringIO()
        with Server(options_of(repository), system, log) as server:
            with pytest.raises(ServerExited, match=r"exited with status 3[\s\S]*no such option"):
                server.wait_ready(timeout=30)
            assert server._folder is not None
            folder = Path(server._folder.name)
            (shared / f"{folder.name}region").touch()
        assert log.getvalue() == "no such option\n"
        assert not folder.exists()
        assert [file.name for file in shared.iterdir()] == ["somebody else's"]

    def test_an_end_that_a_request_can_bring_about_is_explained(self, system: Installation, repository: Path) -> None:
        system.binary.write_text("#!/bin/sh\nkill -FPE $$\n")
        said = r"^tritonserver ended by SIGFPE \(.*classification.*LABEL"
        with Server(options_of(repository), system, io.StringIO()) as server, pytest.raises(ServerExited, match=said):
            server.wait_ready(timeout=30)

    def test_what_it_leaves_behind_ends_with_it(self, system: Installation, repository: Path, tmp_path: Path) -> None:
        """A stub holds the log open: to read that to its end would be to wait for the stub."""
        system.binary.write_text(f"#!/bin/sh\nsleep 600 &\necho $! > {tmp_path}/stub\nkill -ABRT $$\n")
        with Server(options_of(repository), system, io.StringIO()) as server:
            with pytest.raises(ServerExited, match="ended by SIGABRT"):
                server.wait_ready(timeout=30)
            assert not runs(int((tmp_path / "stub").read_text()))

    def test_the_key_is_kept_while_it_runs(self, system: Installation, repository: Path) -> None:
        options = options_of(repository)
        with Server(options, system, io.StringIO()) as server:
            (header,) = server.control_headers.values()
            assert kept_key(options.http_port) == kept_key(options.grpc_port) == header
            assert kept_key(options.metrics_port) == ""
        assert kept_key(options.grpc_port) == ""

    @pytest.mark.parametrize("key", ["kl\u00e4r", "a b"])
    def test_a_key_that_no_client_can_send_is_refused_at_once(
        self, system: Installation, repository: Path, key: str
    ) -> None:
        with pytest.raises(SetupProblem, match="control_key: the control key has a space or is not printable ASCII"):
            Server(replace(options_of(repository), control_key=key), system).start()

    @pytest.mark.parametrize(
        ("host", "reachable"),
        [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("fe80::1", "[fe80::1]")],
    )
    def test_urls_are_reachable_from_here(self, repository: Path, host: str, reachable: str) -> None:
        server = Server(ServerOptions(repository, host=host, http_port=1, grpc_port=2))
        assert (server.http_url, server.grpc_url) == (f"{reachable}:1", f"{reachable}:2")
