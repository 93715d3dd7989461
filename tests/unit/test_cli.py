"""The command line: what reaches the server, what is printed where, and exit statuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fmplex import cli, demo, perf
from fmplex_controller import foreground
from fmplex_controller.errors import ServerExited
from fmplex_controller.options import ServerOptions
from fmplex_controller.server import Server

runner = CliRunner()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServerOptions]:
    """What `fmplex serve` would have served, without a server."""
    seen: list[ServerOptions] = []

    def serve(server: Server, when_ready: Callable[[], None]) -> int:
        seen.append(server.options)
        when_ready()
        return 0

    monkeypatch.setattr(foreground, "serve", serve)
    return seen


class TestServe:
    def test_ready_alone_on_stdout(self, served: list[ServerOptions]) -> None:
        result = runner.invoke(cli.app, ["serve"])
        assert (result.exit_code, result.stdout) == (0, "ready\n")
        assert served == [ServerOptions(Path("model_repository"))]

    def test_options_reach_the_server(self, served: list[ServerOptions]) -> None:
        line = "serve models --host 0.0.0.0 --http-port 1 --grpc-port 2 --metrics-port 3 --control poll"
        assert runner.invoke(cli.app, line.split(), env={"FMPLEX_CONTROL_KEY": "s3cret"}).exit_code == 0
        assert served == [ServerOptions(Path("models"), "0.0.0.0", 1, 2, 3, control="poll", control_key="s3cret")]

    @pytest.mark.parametrize("repository", [[], ["models"]])
    def test_what_follows_two_dashes_goes_to_tritonserver(
        self, served: list[ServerOptions], repository: list[str]
    ) -> None:
        line = ["serve", *repository, "--", "--log-verbose=1", "--", "--http-port=9"]
        assert runner.invoke(cli.app, line).exit_code == 0
        assert served[0].extra == ("--log-verbose=1", "--", "--http-port=9")
        assert served[0].repository == Path(*repository or ["model_repository"])

    @pytest.mark.parametrize("line", [["--http-port", "0"], ["--control", "none"], ["--log-verbose=1"]])
    def test_wrong_usage_is_status_2(self, served: list[ServerOptions], line: list[str]) -> None:
        assert runner.invoke(cli.app, ["serve", *line]).exit_code == 2
        assert not served

    def test_an_error_is_one_message_and_status_1(self, tmp_path: Path) -> None:
        result = runner.invoke(cli.app, ["serve", str(tmp_path / "none")])
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith("fmplex: there is no model repository at")
        assert "Traceback" not in result.stderr


class TestOthers:
    def test_version(self) -> None:
        assert runner.invoke(cli.app, ["--version"]).stdout.startswith("fmplex 0.")

    def test_as_a_module(self) -> None:
        line = [sys.executable, "-m", "fmplex", "--help"]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("Usage: fmplex ")

    @pytest.mark.parametrize("dashes", [[], ["--"]])
    def test_perf_passes_everything_on(self, monkeypatch: pytest.MonkeyPatch, dashes: list[str]) -> None:
        seen: list[list[str]] = []
        monkeypatch.setattr(perf, "run", seen.append)
        arguments = ["-m", "sentiment", "--concurrency-range", "1:64:4", "-i", "grpc"]
        assert runner.invoke(cli.app, ["perf", *dashes, *arguments]).exit_code == 0
        assert seen == [arguments]

    def test_demo_gets_its_ports(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[ServerOptions, bool]] = []
        monkeypatch.setattr(demo, "run", lambda options, once: seen.append((options, once)) or 0)
        line = "demo models --once --http-port 1 --grpc-port 2 --metrics-port 3"
        assert runner.invoke(cli.app, line.split()).exit_code == 0
        assert seen == [(ServerOptions(Path("models"), "127.0.0.1", 1, 2, 3), True)]

    def test_importing_it_loads_neither_torch_nor_triton_s_stub(self) -> None:
        program = (
            "import sys, fmplex.cli, fmplex.demo, fmplex.perf, fmplex_controller.foreground\n"
            "sys.exit(bool({'torch', 'transformers', 'triton_python_backend_utils'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class Process:
    """A Server whose process only remembers what was asked of it."""

    def __init__(self, code: int, signals: int = 0, during_load: bool = False) -> None:
        self.code, self.signals, self.during_load = code, signals, during_load
        self.started = self.stopping = False
        self.calls: list[str] = []

    def start(self) -> None:
        self.started = True

    def wait_ready(self) -> None:
        if self.during_load:
            self._signal()
            raise self.exited(self.code)

    def wait(self, timeout: float | None = None) -> int:
        self._signal()
        return self.code

    def _signal(self) -> None:
        for _ in range(self.signals):
            signal.raise_signal(signal.SIGTERM)
        self.signals = 0

    def terminate(self) -> None:
        self.stopping = True
        self.calls.append("terminate")

    def kill(self) -> None:
        self.stopping = True
        self.calls.append("kill")

    def stop(self) -> None:
        self.calls.append("stop")

    def exited(self, code: int) -> ServerExited:
        return ServerExited(f"status {code}")


def serve(process: Process) -> int:
    """Through the foreground, which must leave the signal handlers as it found them."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return foreground.serve(process, lambda: None)  # type: ignore[arg-type]
    finally:
        assert signal.getsignal(signal.SIGTERM) is before


class TestForeground:
    def test_a_signal_drains(self) -> None:
        process = Process(code=0, signals=1)
        assert serve(process) == 0
        assert process.calls == ["terminate", "stop"]

    def test_a_second_one_kills(self, capsys: pytest.CaptureFixture[str]) -> None:
        process = Process(code=-signal.SIGKILL, signals=2)
        assert serve(process) == 1
        assert process.calls == ["terminate", "kill", "stop"]
        assert "did not drain" in capsys.readouterr().err

    def test_a_signal_while_it_loads_is_no_failure(self) -> None:
        process = Process(code=-signal.SIGTERM, signals=1, during_load=True)
        assert serve(process) == 0

    @pytest.mark.parametrize("during_load", [True, False])
    def test_a_server_that_ends_unasked_is_one(self, during_load: bool) -> None:
        process = Process(code=0, during_load=during_load)
        with pytest.raises(ServerExited):
            serve(process)
        assert process.calls == ["stop"]
