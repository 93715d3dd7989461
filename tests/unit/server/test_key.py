"""A server's control key: whose it is, where it is kept, and that nobody sees it among the arguments."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fmplex_backend.control_key import keep_key, kept_key
from fmplex_controller.server.arguments import hide
from fmplex_controller.server.key import ControlKey
from fmplex_controller.server.options import ServerOptions


@pytest.fixture
def options(repository: Path) -> ServerOptions:
    return ServerOptions(repository, http_port=1, grpc_port=2)


def kept() -> list[str]:
    return [kept_key(port) for port in (1, 2)]


class TestControlKey:
    def test_each_server_makes_its_own(self, options: ServerOptions) -> None:
        values = {ControlKey(options).value for _ in range(20)}
        assert len(values) == 20
        assert all(len(value) >= 40 for value in values)

    def test_a_key_that_was_made_is_kept_until_it_is_forgotten(self, options: ServerOptions) -> None:
        key = ControlKey(options)
        key.keep()
        assert kept() == [key.value] * 2
        assert [file.read_text().strip() for file in key.files] == kept()
        key.forget()
        assert kept() == ["", ""]

    def test_a_later_server_s_is_not_forgotten_with_it(self, options: ServerOptions) -> None:
        before, after = ControlKey(options), ControlKey(options)
        before.keep()
        after.keep()
        before.forget()
        assert kept() == [after.value] * 2

    def test_a_service_that_is_off_has_none(self, options: ServerOptions) -> None:
        ControlKey(replace(options, extra=("--allow-http=false",))).keep()
        assert [bool(key) for key in kept()] == [False, True]

    def test_a_given_one_is_not_kept_nor_what_a_server_before_left(self, options: ServerOptions) -> None:
        keep_key(1, "stale")
        key = ControlKey(replace(options, control_key="given"))
        key.keep()
        assert key.value == "given"
        assert (kept(), key.files) == (["", ""], [])
        assert key.grpc_headers == {"triton-grpc-protocol-fmplex-key": "given"}

    def test_the_environment_s_is_given_too(self, options: ServerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FMPLEX_CONTROL_KEY", "environment")
        assert ControlKey(options).value == "environment"
        assert ControlKey(replace(options, control_key="given")).value == "given"

    def test_an_open_server_has_none(self, options: ServerOptions, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FMPLEX_CONTROL_KEY", "environment")
        keep_key(1, "stale")
        key = ControlKey(replace(options, open=True))
        key.keep()
        assert (key.value, key.grpc_headers, kept()) == ("", {}, ["", ""])


class TestHide:
    PROGRAM = "import sys; print(sys.argv[1:], flush=True); sys.stdin.read(); print(sys.argv[1:])"

    def test_in_the_arguments_of_another_process(self) -> None:
        line = [sys.executable, "-c", self.PROGRAM, "a:key=s3cret", "s3cret", "b:key=s3cret"]
        with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert hide(process.pid, "key=", "s3cret")
            shown = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
            assert shown[3:-1] == ["a:key=******", "s3cret", "b:key=******"]
            assert hide(process.pid, "key=", "s3cret")  # again: nothing to do
            assert process.communicate("")[0] == said

    def test_of_a_process_that_is_gone(self) -> None:
        with subprocess.Popen(["/bin/true"]) as process:
            process.wait()
        assert hide(process.pid, "key=", "s3cret")

    def test_where_the_kernel_forbids_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbidden(*_args: object, **_options: object) -> None:
            raise PermissionError

        line = [sys.executable, "-c", "input()", "key=s3cret"]
        with subprocess.Popen(line, stdin=subprocess.PIPE) as process:
            with monkeypatch.context() as patched:
                patched.setattr(Path, "open", forbidden)
                assert not hide(process.pid, "key=", "s3cret")
            process.communicate(b"\n")
