"""tritonserver's output: passed on, its tail and errors kept."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from fmplex_controller.server import log as logs
from fmplex_controller.server.log import ServerLog, one_line


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

    @pytest.mark.parametrize(("first", "called"), [(b"E1123 04:49:16.1 3509 a.cc:1] x", [1]), (b"ld.so: preload", [])])
    def test_the_first_line_of_triton_s_own_says_that_it_runs(self, first: bytes, called: list[int]) -> None:
        calls: list[int] = []
        lines = io.BytesIO(b"a library's line\n" + first + b"\n" + first)
        ServerLog(lines, io.StringIO(), when_it_runs=lambda: calls.append(1)).join(timeout=10)
        assert calls == called

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


NO_GPU = (
    b'E1126 09:55:03.871951 10928 server.cc:241] "CudaDriverHelper has not been initialized."\n'
    b'E1126 09:55:11.230738 10928 ensemble_scheduler.cc:1468] "unable to create stream for two: CUDA driver version is '
    b'insufficient for CUDA runtime version"\n'
)
OTHER = b'E1126 09:55:12.439852 10928 model_repository_manager.cc:1415] "unable to create stream for two: no"\n'


@pytest.mark.parametrize(("gpu", "left"), [(False, OTHER), (True, NO_GPU + OTHER)])
def test_errors_that_only_say_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, gpu: bool, left: bytes) -> None:
    """Where there is one, they say that its driver does not work."""
    monkeypatch.setattr(logs, "has_gpu", lambda: gpu)
    log, passed_on = TestLog().log_of(NO_GPU + OTHER)
    assert passed_on == left.decode()
    assert log.error_of("two")


def test_a_gpu_is_known_by_its_device(tmp_path: Path) -> None:
    assert not logs.has_gpu(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert logs.has_gpu(tmp_path)
