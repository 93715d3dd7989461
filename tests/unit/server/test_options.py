"""A server's options as tritonserver's command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmplex_backend.errors import SetupProblem
from fmplex_controller.server.installation import Installation
from fmplex_controller.server.options import ServerOptions, command


class TestCommand:
    def test_explicit_control_loads_everything_there_is(self, system: Installation, repository: Path) -> None:
        line = command(system, Path("/backends"), ServerOptions(repository, host="::1"))
        assert line[0] == str(system.binary)
        assert {"--model-control-mode=explicit", "--load-model=*", "--exit-on-error=false"} <= set(line)
        assert {f"--{name}-address=::1" for name in ("http", "grpc", "metrics")} <= set(line)

    def test_poll_control(self, system: Installation, repository: Path) -> None:
        line = command(system, Path("/backends"), ServerOptions(repository, control="poll"))
        assert {"--model-control-mode=poll", "--repository-poll-secs=1"} <= set(line)
        assert "--load-model=*" not in line

    def test_extra_arguments_come_last(self, system: Installation, repository: Path) -> None:
        line = command(system, Path("/backends"), ServerOptions(repository, extra=("--log-verbose=1",)))
        assert line[-1] == "--log-verbose=1"

    def test_control_and_shared_memory_are_closed(self, system: Installation, repository: Path) -> None:
        line = command(system, Path("/backends"), ServerOptions(repository, control_key="s3cret"))
        closed = "model-repository,logging,trace,shared-memory:fmplex-key={control key}"
        assert {f"--http-restricted-api={closed}", f"--grpc-restricted-protocol={closed}"} <= set(line)
        assert not any("s3cret" in argument for argument in line)
        assert "s3cret" not in repr(ServerOptions(repository, control_key="s3cret"))

    def test_shared_memory_can_be_opened_alone(self, system: Installation, repository: Path) -> None:
        line = command(system, Path("/backends"), ServerOptions(repository, shared_memory=True))
        closed = [argument.split("=", 1)[1] for argument in line if "restricted" in argument]
        assert closed == ["model-repository,logging,trace:fmplex-key={control key}"] * 2

    def test_an_open_server_is_open(self, system: Installation, repository: Path) -> None:
        line = command(system, Path("/backends"), ServerOptions(repository, open=True, control_key="unused"))
        assert not any("restricted" in argument for argument in line)

    def test_a_service_turned_off_has_no_port(self, repository: Path) -> None:
        options = ServerOptions(repository, extra=("--allow-metrics=false",))
        assert options.ports == {"http": 8000, "grpc": 8001}

    @pytest.mark.parametrize(
        ("extra", "seconds"),
        [
            ((), 30),
            (("--log-verbose=1",), 30),
            (("--exit-timeout-secs=5",), 5),
            (("--log-verbose=1", "--exit-timeout-secs", "7", "--log-info=false"), 7),
            (("--exit-timeout-secs=many",), 30),
        ],
    )
    def test_how_long_triton_takes_to_end(self, repository: Path, extra: tuple[str, ...], seconds: float) -> None:
        assert ServerOptions(repository, extra=extra).exit_timeout == seconds

    def test_roots_of_links_are_in_the_servers_environment(self, repository: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path)
        options = ServerOptions(repository, allow_links=(tmp_path / "link", Path("/srv")), variables={"A": "b"})
        control = {
            "FMPLEX_MODEL_CONTROL": "explicit",
            "FMPLEX_GRPC_ADDRESS": "127.0.0.1:8001",
            "FMPLEX_HTTP_ADDRESS": "127.0.0.1:8000",
        }
        assert options.environment == {**control, "A": "b", "FMPLEX_ALLOW_LINKS": f"{tmp_path.resolve()}:/srv"}
        assert ServerOptions(repository).environment == control

    def test_where_its_backbones_reach_it(self, repository: Path) -> None:
        for host, address in (("0.0.0.0", "127.0.0.1:9"), ("::", "[::1]:9"), ("10.0.0.7", "10.0.0.7:9")):
            assert ServerOptions(repository, host=host, grpc_port=9).environment["FMPLEX_GRPC_ADDRESS"] == address
            assert ServerOptions(repository, host=host, http_port=9).environment["FMPLEX_HTTP_ADDRESS"] == address
        for service in ("grpc", "http"):
            options = ServerOptions(repository, extra=(f"--allow-{service}=false",))
            assert f"FMPLEX_{service.upper()}_ADDRESS" not in options.environment


def test_two_services_on_one_port() -> None:
    with pytest.raises(SetupProblem, match=r"http and grpc cannot both listen on port 8000.*--grpc-port"):
        ServerOptions(Path("models"), grpc_port=8000)
    ServerOptions(Path("models"), grpc_port=8000, extra=("--allow-http=false",))
