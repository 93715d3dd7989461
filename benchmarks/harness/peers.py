"""Servers of embeddings that are no part of FMplex: installed by pip, each into an environment of its own, and started.

The environments lie in the user's cache directory, by the hash of what is pinned in `benchmarks/peers`, and are made
once.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks.harness.repositories import model_directory
from benchmarks.load.http import embeddings_body
from fmplex_controller.server.process import free_ports

PINNED = Path(__file__).parents[1] / "peers"
READY_S = 120.0  # until a server must answer
INSTALL_S = 1800.0
NAME = "all-MiniLM-L6-v2"

Settings = Mapping[str, Any]


class NotInstalled(Exception):
    """A peer's environment cannot be made here; the message is what pip says."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that speaks OpenAI's embeddings API.

    `choices` are its settings and what is tried of each, the likeliest first (`workers`: processes with the model, and
    the threads of each; `tokenizers`: whether the tokenizer has threads of its own); `line` makes its command line of
    an environment, a port and settings.
    """

    name: str
    choices: Mapping[str, tuple[Any, ...]]
    line: Callable[[Path, int, Settings], list[str]]

    @contextlib.contextmanager
    def running(self, settings: Settings) -> Iterator[tuple[str, psutil.Process]]:
        """The server, once it answers: host and port, and its first process.

        Raises NotInstalled, or RuntimeError with its log.
        """
        environment = installed(self.name)
        (port,) = free_ports(1)
        _, threads = settings["workers"]
        variables = {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": settings["tokenizers"],
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
        }
        with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
            process = subprocess.Popen(
                self.line(environment, port, settings),
                cwd=folder,
                env={**_outer(), **variables},
                stdout=log,
                stderr=log,
                start_new_session=True,  # it may start processes of its own, which end with it
            )
            try:
                host = f"127.0.0.1:{port}"
                _wait(process, host, Path(folder, "log"))
                yield host, psutil.Process(process.pid)
            finally:
                _end(process)


def _infinity(environment: Path, port: int, settings: Settings) -> list[str]:
    options = {
        "model-id": model_directory(),
        "served-model-name": NAME,
        "device": "cpu",
        "dtype": settings["dtype"],
        "batch-size": settings["batch"],
        "url-prefix": "/v1",
        "host": "127.0.0.1",
        "port": port,
        "log-level": "warning",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    # Its "better transformer" is optimum's, for transformers before 4.49.
    return [str(environment / "bin" / "infinity_emb"), "v2", *words, "--no-bettertransformer"]


def _litserve(environment: Path, port: int, settings: Settings) -> list[str]:
    workers, threads = settings["workers"]
    given = [model_directory(), port, threads, settings["batch"], settings["dtype"], workers, settings["wait_ms"]]
    return [str(environment / "bin" / "python"), str(PINNED / "litserve_server.py"), *map(str, given)]


PEERS = (
    Peer(
        "infinity",
        {
            "dtype": ("bfloat16", "float32"),
            "workers": ((1, 2), (1, 1)),
            "batch": (32, 16),
            "tokenizers": ("false", "true"),
        },
        _infinity,
    ),
    Peer(
        "litserve",
        {
            "dtype": ("bfloat16", "float32"),
            "workers": ((1, 2), (2, 1), (1, 1)),
            "wait_ms": (5, 0),
            "batch": (32, 16),
            "tokenizers": ("false", "true"),
        },
        _litserve,
    ),
)


# -- environments


def installed(name: str) -> Path:
    """A peer's environment, made now where it is not there; raises NotInstalled."""
    pinned = PINNED / f"{name}.txt"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fmplex-benchmarks")
    folder = cache / f"{name}-{hashlib.sha256(pinned.read_bytes()).hexdigest()[:12]}"
    if (folder / ".ready").exists():
        return folder
    print(f"installing {name} into {folder} (1 GB; once)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    line = [str(folder / "bin" / "python"), "-m", "pip", "install", "-qq", "-r", str(pinned)]
    try:
        venv.create(folder, with_pip=True)
        subprocess.run(line, check=True, env=_outer(), capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.CalledProcessError as error:
        last = [text for text in str(error.stderr).splitlines() if text.strip() and not text.startswith("WARNING")]
        raise NotInstalled(f"{' '.join(line)}: {' / '.join(last[-3:])}") from None
    except (subprocess.TimeoutExpired, OSError) as error:
        raise NotInstalled(str(error)) from None
    (folder / ".ready").touch()
    return folder


def _outer() -> dict[str, str]:
    """This process's environment without what points into its own virtual environment."""
    own = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_PRELOAD")
    return {name: value for name, value in os.environ.items() if name not in own}


# -- processes


def _wait(process: subprocess.Popen[Any], host: str, log: Path) -> None:
    end = time.monotonic() + READY_S
    while True:
        try:
            embedding(host, "is it there yet")
            return
        except urllib.error.HTTPError as error:
            if error.code < 500:  # it is there, and takes no such request
                raise RuntimeError(f"{process.args!r} answers {error.code}: {error.read()[:500]!r}") from None
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} does not answer:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


# -- requests


def embedding(host: str, text: str) -> npt.NDArray[np.float32]:
    """Of one text; raises OSError."""
    request = urllib.request.Request(
        f"http://{host}/v1/embeddings", data=embeddings_body(NAME, text), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        found = json.load(answer)["data"][0]["embedding"]
    return np.frombuffer(base64.b64decode(found), dtype=np.float32)
