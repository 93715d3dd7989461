"""The server's environment, command line, log and process, up to where a real tritonserver is needed."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fmplex_controller import installation as inst
from fmplex_controller import launcher
from fmplex_controller import server as server_module
from fmplex_controller.__main__ import main as report
from fmplex_controller.errors import PortInUse, ServerExited, SetupProblem
from fmplex_controller.installation import Installation
from fmplex_controller.log import ServerLog, one_line
from fmplex_controller.options import ServerOptions, command
from fmplex_controller.server import Server, free_ports

THIS_PYTHON = inst.python_version()


def install(root: Path, stub_python: str = THIS_PYTHON) -> Path:
    """Files laid out as a Triton installation of its own has them."""
    python = root / "backends" / "python"
    python.mkdir(parents=True)
    (root / "backends" / "onnxruntime").mkdir()
    (root / "bin").mkdir()
    (root / "bin" / "tritonserver").write_text("#!/bin/sh\necho no such option >&2\nexit 3\n")
    (root / "bin" / "tritonserver").chmod(0o755)
    for name in (inst.PYTHON_BACKEND, "triton_python_backend_utils.py"):
        (python / name).write_text(name)
    (python / inst.STUB).write_bytes(b"\x7fELF...libpython%s.so.1.0\0" % stub_python.encode())
    return root


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


def options_of(repository: Path) -> ServerOptions:
    http, grpc, metrics = free_ports(3)
    return ServerOptions(repository, http_port=http, grpc_port=grpc, metrics_port=metrics)


class TestFind:
    def test_a_server_on_path_comes_first(self, system: Installation, tmp_path: Path) -> None:
        assert system.binary == tmp_path / "tritonserver" / "bin" / "tritonserver"
        assert system.stub == system.python_backend / inst.STUB
        assert not system.numpy_1_only

    def test_then_the_container_s_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(inst, "NGC_ROOT", install(tmp_path / "opt"))
        assert inst.find_tritonserver().binary == tmp_path / "opt" / "bin" / "tritonserver"

    def test_then_the_wheel_s(self, wheel: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(inst, "NGC_ROOT", tmp_path / "nothing")
        monkeypatch.syspath_prepend(tmp_path)
        assert inst.find_tritonserver() == wheel

    def test_none_is_a_setup_problem(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        monkeypatch.setattr(inst, "NGC_ROOT", tmp_path)
        monkeypatch.setattr(inst, "find_spec", lambda name: None)
        with pytest.raises(SetupProblem, match=r"no tritonserver.*fmplex\[server\]"):
            inst.find_tritonserver()


class TestCheck:
    def test_a_fitting_one_passes(self, wheel: Installation, system: Installation) -> None:
        inst.check(wheel)
        inst.check(system)

    def test_numpy_2_is_refused_by_the_wheel_only(
        self, wheel: Installation, system: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inst.metadata, "version", lambda name: "2.1.0")
        inst.check(system)
        with pytest.raises(SetupProblem, match=r"numpy 2\.1\.0 is installed.*pip install \"numpy<2\""):
            inst.check(wheel)

    def test_a_stub_of_another_python(self, tmp_path: Path) -> None:
        root = install(tmp_path / "other", stub_python="3.7")
        other = Installation(root / "bin", root / "backends", root / "backends" / "python" / inst.STUB)
        with pytest.raises(SetupProblem, match=r"runs Python 3\.7.*Install FMplex with python3\.7"):
            inst.check(other)

    def test_no_stub_for_this_python(self, wheel: Installation) -> None:
        wheel.stub.unlink()
        with pytest.raises(SetupProblem, match=f"has no Python {THIS_PYTHON} stub"):
            inst.check(wheel)

    def test_no_shared_libpython(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(inst.sysconfig, "get_config_var", lambda name: str(tmp_path))
        monkeypatch.setattr(inst.sys, "base_prefix", str(tmp_path))
        monkeypatch.setattr(inst.ctypes.util, "find_library", lambda name: None)
        with pytest.raises(SetupProblem, match=r"there is no libpython.*apt install libpython"):
            inst.libpython_folder()


class TestReport:
    """`python -m fmplex_controller`."""

    @pytest.mark.usefixtures("system")
    def test_what_would_run(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert report() == 0
        assert capsys.readouterr().out == f"tritonserver: {tmp_path}/tritonserver/bin/tritonserver\n"

    @pytest.mark.usefixtures("system")
    def test_libraries_the_loader_does_not_find(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said = "\tlibarchive.so.13 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x1)\n"
        done = subprocess.CompletedProcess([], 0, said, "")
        monkeypatch.setattr(inst.subprocess, "run", lambda *_, **__: done)
        assert report() == 1
        errors = capsys.readouterr().err
        assert errors.count("libarchive.so.13 => not found") == 1
        assert "libc.so.6" not in errors

    def test_what_is_missing(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inst, "_system_roots", lambda: iter(()))
        monkeypatch.setattr(inst, "_wheel_root", lambda: None)
        assert report() == 1
        assert "no tritonserver" in capsys.readouterr().err


class TestEnvironment:
    def test_this_python_comes_first(self, wheel: Installation) -> None:
        variables = inst.environment(wheel, {"PATH": "/usr/bin", "PYTHONPATH": "/mine"})
        assert variables["PATH"].split(":") == [str(Path(sys.executable).parent), "/usr/bin"]
        assert variables["PYTHONPATH"].split(":")[:2] == ["/mine", str(inst.backend_package().parent)]
        assert variables["PYTHONDONTWRITEBYTECODE"] == "1"
        in_venv = sys.prefix != sys.base_prefix
        assert variables.get("VIRTUAL_ENV") == (sys.prefix if in_venv else None)

    def test_libraries_of_the_wheel_before_the_user_s_before_python_s(
        self, wheel: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inst, "libpython_folder", lambda: Path("/python/lib"))
        variables = inst.environment(wheel, {"LD_LIBRARY_PATH": "/cuda:/more"})
        folders = variables["LD_LIBRARY_PATH"].split(":")
        assert folders == [str(wheel.libraries[0]), "/cuda", "/more", "/python/lib"]

    def test_nothing_empty_is_put_on_the_library_path(
        self, system: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inst, "libpython_folder", lambda: None)
        assert inst.environment(system, {})["LD_LIBRARY_PATH"] == ""  # a ":" would mean the working directory


class TestCompose:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "package").mkdir()
        (tmp_path / "package" / "model.py").write_text("the backend")
        monkeypatch.setattr(inst, "backend_package", lambda: tmp_path / "package")

    def test_the_wheel_s_parts_are_copied_together(self, wheel: Installation, tmp_path: Path) -> None:
        backends = inst.compose_backends(wheel, tmp_path / "composed")
        assert (backends / "fmplex" / "model.py").read_text() == "the backend"
        python = {file.name for file in (backends / "python").iterdir() if not file.is_symlink()}
        assert python == {inst.PYTHON_BACKEND, inst.STUB, "triton_python_backend_utils.py"}

    def test_a_server_s_other_backends_stay_available(self, system: Installation, tmp_path: Path) -> None:
        backends = inst.compose_backends(system, tmp_path / "composed")
        assert sorted(entry.name for entry in backends.iterdir()) == ["fmplex", "onnxruntime", "python"]
        assert (backends / "python").resolve() == system.python_backend

    def test_an_installed_fmplex_gives_way_to_the_running_one(self, system: Installation, tmp_path: Path) -> None:
        installed = inst.install_backend(system.backends)
        installed.write_text("an older backend")
        backends = inst.compose_backends(system, tmp_path / "composed")
        assert (backends / "fmplex" / "model.py").read_text() == "the backend"


class TestCommand:
    def test_explicit_control_loads_everything_there_is(self, system: Installation, repository: Path) -> None:
        line = command(system, Path("/backends"), ServerOptions(repository, host="::1"))
        assert line[0] == str(system.binary)
        assert {"--model-control-mode=explicit", "--load-model=*", "--exit-on-error=false"} <= set(line)
        assert {f"--{name}-address=::1" for name in ("http", "grpc", "metrics")} <= set(line)
        assert not any("restricted" in argument for argument in line)

    def test_poll_control(self, system: Installation, repository: Path) -> None:
        line = command(system, Path("/backends"), ServerOptions(repository, control="poll"))
        assert {"--model-control-mode=poll", "--repository-poll-secs=1"} <= set(line)
        assert "--load-model=*" not in line

    def test_extra_arguments_come_last(self, system: Installation, repository: Path) -> None:
        line = command(system, Path("/backends"), ServerOptions(repository, extra=("--log-verbose=1",)))
        assert line[-1] == "--log-verbose=1"

    def test_a_control_key_closes_model_control(self, system: Installation, repository: Path) -> None:
        options = ServerOptions(repository, control_key="s3cret")
        line = command(system, Path("/backends"), options)
        assert "--http-restricted-api=model-repository,logging,trace:fmplex-key=s3cret" in line
        assert "--grpc-restricted-protocol=model-repository,logging,trace:fmplex-key=s3cret" in line
        assert Server(options).control_headers == {"triton-grpc-protocol-fmplex-key": "s3cret"}
        assert "s3cret" not in repr(options)

    def test_a_service_turned_off_has_no_port(self, repository: Path) -> None:
        options = ServerOptions(repository, extra=("--allow-metrics=false",))
        assert options.ports == {"http": 8000, "grpc": 8001}


class TestLog:
    def log_of(self, lines: bytes) -> tuple[ServerLog, str]:
        out = io.StringIO()
        log = ServerLog(io.BytesIO(lines), out, lines=2)
        log.join(timeout=10)
        return log, out.getvalue()

    def test_everything_is_passed_on_and_the_tail_kept(self) -> None:
        log, passed_on = self.log_of(b"one\ntwo \xff\nthree\n")
        assert passed_on == "one\ntwo �\nthree\n"
        assert log.tail() == "two �\nthree\n"

    def test_the_reason_of_a_refusal_is_found(self) -> None:
        log, _ = self.log_of(
            b"""I1123 04:49:16.1 3509 model_lifecycle.cc:472] "loading: 'topic'"
E1123 04:49:16.2 3509 model_repository_manager.cc:703] "Invalid argument: ensemble 'topic' depends on 'minilm'"
"""
        )
        assert log.error_of("topic") == "Invalid argument: ensemble 'topic' depends on 'minilm'"
        assert log.error_of("minilm") == ""

    def test_the_reason_is_found_where_the_name_is_not_quoted(self) -> None:
        log, _ = self.log_of(
            b"""E1123 04:49:16.1 3509 model_repository_manager.cc:703] "unexpected platform type '' for spam"
E1123 04:49:16.2 3509 model_repository_manager.cc:703] "Internal: 'ham' has no version, nor has spam-2"
"""
        )
        assert log.error_of("spam") == "unexpected platform type '' for spam"
        assert log.error_of("spam-2").startswith("Internal: 'ham'")
        assert log.error_of("type '") == ""

    def test_a_closed_output_does_not_stop_the_drain(self) -> None:
        out = io.StringIO()
        out.close()
        log = ServerLog(io.BytesIO(b"one\ntwo\n"), out)
        log.join(timeout=10)
        assert log.tail() == "one\ntwo\n"

    def test_a_reason_in_one_line_leaves_the_trace_out(self) -> None:
        assert one_line("Internal: no\n weights\n\nAt:\n  model.py(6): initialize\n") == "Internal: no weights"


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

    @pytest.mark.parametrize(
        ("host", "reachable"),
        [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("fe80::1", "[fe80::1]")],
    )
    def test_urls_are_reachable_from_here(self, repository: Path, host: str, reachable: str) -> None:
        server = Server(ServerOptions(repository, host=host, http_port=1, grpc_port=2))
        assert (server.http_url, server.grpc_url) == (f"{reachable}:1", f"{reachable}:2")


class TestLauncher:
    def test_the_command_ends_with_its_parent(self) -> None:
        program = (
            "import os, subprocess, sys, time\n"
            f"child = subprocess.Popen([sys.executable, '-I', '-S', {launcher.__file__!r}, str(os.getpid()), "
            "'/bin/sleep', '60'])\n"
            "print(child.pid, flush=True)\n"
            "time.sleep(60)\n"
        )
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
            assert parent.stdout is not None
            child = int(parent.stdout.readline())
            wait_for(lambda: Path(f"/proc/{child}/comm").read_text() == "sleep\n")
            parent.send_signal(signal.SIGKILL)
            wait_for(lambda: not alive(child))

    def test_an_orphan_from_birth_does_not_start(self) -> None:
        line = [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid() + 1), "/bin/sleep", "60"]
        assert subprocess.run(line, check=False, timeout=30).returncode == 1


def alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
