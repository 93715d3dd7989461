"""The command line: what reaches the server, what is printed where, and exit statuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fmplex.cli import app as cli
from fmplex.cli import demo, perf
from fmplex_backend.control_key import keep_key
from fmplex_controller.api import options
from fmplex_controller.openai.process import OpenAiProcess
from fmplex_controller.server import foreground
from fmplex_controller.server.options import ServerOptions
from fmplex_controller.server.process import Server, free_ports
from fmplex_controller.sidecar.adaptation import ElasticOptions
from fmplex_controller.sidecar.elastic import Settings
from fmplex_controller.sidecar.planning import Limits
from fmplex_controller.sidecar.process import SidecarProcess

runner = CliRunner()
companions: list[SidecarProcess | None] = []  # of the servers of `served`
apis: list[OpenAiProcess] = []  # of the last of them


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ServerOptions]:
    """What `fmplex serve` would have served, without a server."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(options, "DEFAULT_PORT", free_ports(1)[0])
    seen: list[ServerOptions] = []
    companions.clear()

    def serve(server: Server, when_ready: Callable[[], None], companion: SidecarProcess | None, beside: Any) -> int:
        seen.append(server.options)
        companions.append(companion)
        apis[:] = beside
        when_ready()
        return 0

    monkeypatch.setattr(foreground, "serve", serve)
    monkeypatch.delenv("FMPLEX_CONTROL_KEY", raising=False)
    return seen


class TestServe:
    def test_ready_alone_on_stdout(self, served: list[ServerOptions]) -> None:
        result = runner.invoke(cli.app, ["serve"])
        assert (result.exit_code, result.stdout) == (0, "ready\n")
        assert served == [ServerOptions(Path("model_repository"))]

    def test_options_reach_the_server(self, served: list[ServerOptions]) -> None:
        line = "serve models --host 0.0.0.0 --http-port 1 --grpc-port 2 --metrics-port 3 --control poll"
        assert runner.invoke(cli.app, [*line.split(), "--shared-memory"]).exit_code == 0
        assert served == [ServerOptions(Path("models"), "0.0.0.0", 1, 2, 3, control="poll", shared_memory=True)]

    def test_a_controller_beside_it_unless_triton_polls(self, served: list[ServerOptions]) -> None:
        for line in ([], ["--no-controller"], ["--control", "poll"]):
            assert runner.invoke(cli.app, ["serve", *line]).exit_code == 0
        assert [companion is not None for companion in companions] == [True, False, False]

    def test_what_the_controller_is_given(self, served: list[ServerOptions], tmp_path: Path) -> None:
        (tmp_path / "token").write_text("t0ken\n")
        line = f"serve --records {tmp_path}/records --api-host 0.0.0.0 --api-token-file {tmp_path}/token"
        assert runner.invoke(cli.app, [*line.split(), "--no-api"]).exit_code == 0
        (port,) = free_ports(1)
        assert runner.invoke(cli.app, [*line.split(), "--api-port", str(port)]).exit_code == 0
        without, with_api = (companion._options for companion in companions if companion is not None)
        assert without == ("--records", f"{tmp_path}/records")
        assert with_api == (*without, "--api-host", "0.0.0.0", "--api-port", str(port))
        assert companions[1] is not None
        assert companions[1]._variables == {"FMPLEX_API_TOKEN": "t0ken"}
        refused = runner.invoke(cli.app, ["serve", "--api-host", "0.0.0.0"])
        assert (refused.exit_code, "Give a token" in refused.stderr) == (1, True)

    def test_openais_api_beside_it(
        self, served: list[ServerOptions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(OpenAiProcess, "wait_ready", lambda _: True)
        (tmp_path / "keys").write_text("s3cret\n")
        (port,) = free_ports(1)
        line = f"serve --no-controller --openai-port {port} --openai-keys {tmp_path}/keys"
        result = runner.invoke(cli.app, line.split())
        assert (result.exit_code, result.stdout) == (0, "ready\n")
        (api,) = apis
        assert (api.api.port, api.api.keys, api.command()[-1]) == (port, tmp_path / "keys", "127.0.0.1:8001")
        assert f"OpenAI's API at http://127.0.0.1:{port}/v1, with the keys in {tmp_path}/keys" in result.stderr
        for wrong, says in {
            "--openai-port 8000": "is one of Triton's own",
            "--openai-keys keys": "need --openai-port",
            f"--openai-port {port} --openai-keys {tmp_path}/none": "API keys cannot be read",
        }.items():
            refused = runner.invoke(cli.app, ["serve", *wrong.split()])
            assert (refused.exit_code, says in refused.stderr) == (1, True), refused.stderr

    def test_elasticity_is_asked_for_and_needs_the_controller(self, served: list[ServerOptions]) -> None:
        line = "serve --no-api --elastic --elastic-moves 3 --no-elastic-start --elastic-memory 2 --elastic-parallel 4"
        assert runner.invoke(cli.app, ["serve", "--no-api"]).exit_code == 0
        assert runner.invoke(cli.app, line.split()).exit_code == 0
        without, with_it = (companion._options for companion in companions if companion is not None)
        assert "--elastic" not in without
        found = ElasticOptions.of(with_it[-1])
        assert found == ElasticOptions(Settings(moves_per_minute=3, start=False), Limits(memory=2 << 30, parallel=4))
        for more in (["--no-controller"], ["--control", "poll"]):
            refused = runner.invoke(cli.app, [*line.split(), *more])
            assert (refused.exit_code, "--elastic needs the controller" in refused.stderr) == (1, True)

    def test_who_may_control_it(self, served: list[ServerOptions], tmp_path: Path) -> None:
        (tmp_path / "key").write_text("s3cret\n")
        ways: list[tuple[list[str], dict[str, str]]] = [
            (["--control-key", "s3cret"], {}),
            ([], {"FMPLEX_CONTROL_KEY": "s3cret"}),
            (["--control-key-file", str(tmp_path / "key")], {}),
            ([], {"FMPLEX_CONTROL_KEY_FILE": str(tmp_path / "key")}),
        ]
        for line, variables in ways:
            result = runner.invoke(cli.app, ["serve", *line], env=variables)
            assert (result.exit_code, result.stdout) == (0, "ready\n")
            assert result.stderr == "fmplex: model control needs the key that was given\n"
        assert {options.control_key for options in served} == {"s3cret"}
        assert "everyone" in runner.invoke(cli.app, ["serve", "--open"]).stderr
        assert served[-1].open
        runner.invoke(cli.app, ["serve"], env={"FMPLEX_CONTROL_KEY": ""})
        assert (served[-1].control_key, served[-1].open) == ("", False)

    @pytest.mark.parametrize(
        ("line", "problem"),
        [
            (["--control-key", "kl\u00e4r"], "is not printable ASCII"),
            (["--control-key", ""], "the control key is empty"),
            (["--control-key", "a", "--open"], "exclude each other"),
            (["--control-key-file", "/none"], "/none: the control key cannot be read"),
        ],
    )
    def test_a_bad_key_is_one_message(self, served: list[ServerOptions], line: list[str], problem: str) -> None:
        result = runner.invoke(cli.app, ["serve", *line])
        assert result.exit_code == 1
        assert problem in result.stderr
        assert result.stderr.startswith("fmplex: ")
        assert not served

    def test_links_may_be_allowed(self, served: list[ServerOptions], tmp_path: Path) -> None:
        line = ["serve", "--allow-links", str(tmp_path), "--allow-links", "/"]
        assert runner.invoke(cli.app, line).exit_code == 0
        assert served[0].allow_links == (tmp_path, Path("/"))
        assert runner.invoke(cli.app, ["serve", "--allow-links", str(tmp_path / "nowhere")]).exit_code == 2

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


class TestControlKey:
    @pytest.mark.parametrize("server", ["localhost:7001", "http://127.0.0.1:7001"])
    def test_it_is_printed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        keep_key(7001, "s3cret")
        result = runner.invoke(cli.app, ["control-key", "--server", server])
        assert (result.exit_code, result.stdout) == (0, "s3cret\n")

    def test_there_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        result = runner.invoke(cli.app, ["control-key"])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith("fmplex: no key of localhost:8001 is kept on this host")


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
            "import sys, fmplex.cli.app, fmplex.cli.demo, fmplex.cli.perf, fmplex_controller.server.foreground\n"
            "sys.exit(bool({'torch', 'transformers', 'triton_python_backend_utils'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
