"""How other servers are tuned, and what is said of one that cannot be installed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.experiments import peers
from benchmarks.experiments.peers import Server, tune
from benchmarks.harness import peers as harness
from benchmarks.harness.peers import PEERS, NotInstalled, Settings, installed
from benchmarks.load.http import embeddings

TEXTS = {16: ["short"], 64: ["long"]}


class Rates:
    """Servers whose rates are known, in the place of those that run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **gains: float) -> None:
        self.gains, self.started, self.running = gains, 0, 0
        monkeypatch.setattr(peers, "rate", self.rate)

    @contextlib.contextmanager
    def start(self, settings: Settings) -> Iterator[Server]:
        self.started, self.running = self.started + 1, self.running + 1
        yield Server({"embeddings": json.dumps(dict(settings))}, "m", lambda sentence: None, psutil.Process())
        self.running -= 1

    def rate(self, generator: Any, server: Server, protocol: str, texts: list[str], seconds: float) -> Any:
        assert self.running == 1, "one at a time, or they take each other's cores"
        settings = json.loads(server.urls["embeddings"])
        per_second = 100.0
        for name, value in settings.items():
            per_second *= self.gains.get(f"{name}_{value}", 1.0)
        return type("Outcome", (), {"per_second": per_second})()


@pytest.mark.parametrize(
    ("gains", "best"),
    [
        ({}, {"dtype": "bfloat16", "threads": 2, "batch": 32}),
        ({"threads_1": 1.1}, {"dtype": "bfloat16", "threads": 1, "batch": 32}),
        ({"dtype_float32": 2.0, "batch_16": 1.01, "batch_8": 1.2}, {"dtype": "float32", "threads": 2, "batch": 8}),
    ],
)
def test_each_setting_is_the_one_that_serves_most(
    monkeypatch: pytest.MonkeyPatch, gains: dict[str, float], best: dict[str, Any]
) -> None:
    rates = Rates(monkeypatch, **gains)
    choices = {"dtype": ("bfloat16", "float32"), "threads": (2, 1), "batch": (32, 16, 8)}
    found = tune(rates.start, choices, None, TEXTS)  # type: ignore[arg-type]
    assert found.settings == best
    assert (rates.started, rates.running, len(found.tried)) == (5, 0, 5)


def test_a_peer_that_cannot_be_installed_is_told_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pip(line: list[str], **options: Any) -> None:
        raise subprocess.CalledProcessError(1, line, stderr="WARNING: old\nERROR: No matching distribution found for x")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(harness.venv, "create", lambda folder, with_pip: folder.mkdir(parents=True))
    monkeypatch.setattr(harness.subprocess, "run", pip)
    with pytest.raises(NotInstalled, match="No matching distribution found for x") as raised:
        installed("infinity")
    assert "WARNING" not in str(raised.value)
    with pytest.raises(NotInstalled):
        installed("infinity")  # what was left half made is not taken for it
    peers.show([{"peer": "infinity", "problem": str(raised.value)}])
    assert "infinity: NOT MEASURED, its environment cannot be installed" in capsys.readouterr().out


def test_an_environment_is_made_once_for_what_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def create(folder: Path, with_pip: bool) -> None:
        folder.mkdir(parents=True)
        made.append(folder)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(harness.venv, "create", create)
    monkeypatch.setattr(harness.subprocess, "run", lambda line, **options: None)
    assert installed("litserve") == installed("litserve") == made[0]
    assert len(made) == 1
    pinned = tmp_path / "pinned"
    pinned.mkdir()
    (pinned / "litserve.txt").write_text("litserve==0\n")
    monkeypatch.setattr(harness, "PINNED", pinned)
    assert installed("litserve") != made[0]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_everything_a_peer_is_started_with_is_pinned(peer: Any) -> None:
    lines = (harness.PINNED / f"{peer.name}.txt").read_text().split()
    assert all("==" in line for line in lines)
    assert {"torch==2.13.0"} < set(lines)
    settings = {name: values[0] for name, values in peer.choices.items()}
    line = peer.line(Path("environment"), 1234, settings)
    assert line[0].startswith("environment/bin/")
    assert "1234" in line


def test_a_request_for_an_embedding_is_whole() -> None:
    head, body = embeddings("host:1", "m", "a \N{SNOWMAN}").split(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head.split(b"\r\n")
    assert json.loads(body) == {"model": "m", "input": ["a \N{SNOWMAN}"], "encoding_format": "base64"}


def test_a_vector_of_another_model_is_noticed() -> None:
    servers = {
        name: Server({}, "m", lambda sentence, vector=vector: vector, psutil.Process())  # type: ignore[misc]
        for name, vector in (("fmplex", [1.0, 0.0]), ("infinity", [2.0, 0.001]), ("litserve", [1.0, 0.5]))
    }
    with pytest.raises(RuntimeError, match="litserve answers 'a warm, funny film' with another vector"):
        peers.check_alike(servers)


def test_a_server_is_stopped_but_for_its_turn() -> None:
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    server = Server({}, "m", lambda sentence: None, psutil.Process(started.pid))

    def fails() -> Any:
        assert os.WIFCONTINUED(os.waitpid(started.pid, os.WCONTINUED)[1])
        raise RuntimeError("3 requests failed")

    try:
        server.stop()
        assert os.WIFSTOPPED(os.waitpid(started.pid, os.WUNTRACED)[1])
        with pytest.raises(RuntimeError, match="3 requests"):
            peers.in_turn(server, fails)
        assert os.WIFSTOPPED(os.waitpid(started.pid, os.WUNTRACED)[1])
    finally:
        server.go_on()
        started.kill()
        started.wait()
