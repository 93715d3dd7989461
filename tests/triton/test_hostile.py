"""No file and no request takes the backbone down, holds the others up, or gets a wrong answer out of it.

Directories are those of testing/hostile_directories.py, requests those of tests/support/fuzz, by their seeds. A seed
that ever found something is kept in `FOUND`. `make test` takes a sample, `make test-all` all of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from asking import Hammer
from changing import Others, remove
from fuzz.requests import grpc_request, http_request, send_grpc, send_http
from sentences import sentence
from tritonclient.utils import InferenceServerException

from testing.adapters import lora
from testing.clients import GrpcClient
from testing.hostile_directories import Directories, Hostile
from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving, eventually, serving

TEXTS = [sentence(n, n) for n in range(1, 9)]
GOOD = (Task("sentiment", 0, adapter=lora()), Task("entities", 1, "token-classification", adapter=lora(4)))
FIRST_TAG, ORDINARY_TAG = 10, 100
WAVE = 10  # directories in the repository at a time
FOUND: tuple[int, ...] = ()
SAMPLE, ALL = range(30), range(500)
HTTP_SAMPLE, HTTP_ALL = range(30), range(160)
GRPC_SAMPLE, GRPC_ALL = range(15), range(50)
GROWTH = 64 << 20  # bytes that allocators and caches may keep


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with two tasks that nothing is done to."""
    folder = tmp_path_factory.mktemp("attacked")
    repository = folder / "repository"
    write_backbone(repository)
    for good in GOOD:
        write_task(repository, good)
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


@pytest.fixture(scope="module")
def others(attacked: Serving) -> Others:
    """The good tasks."""
    return Others.of(attacked, GOOD, TEXTS)


@pytest.fixture(autouse=True)
def others_go_on(others: Others) -> Iterator[Hammer]:
    """Clients of the good tasks."""
    with others.go_on() as hammer:
        yield hammer


def try_all(server: Serving, directories: Sequence[Hostile]) -> None:
    """Load each and ask it: an error, or numbers."""
    with server.client() as client:
        for each in directories:
            if not each.loadable:
                continue
            with contextlib.suppress(InferenceServerException, UnicodeEncodeError, ValueError):
                client.load(each.name)
            with contextlib.suppress(UnicodeEncodeError):
                is_finite(each, client)


def is_finite(each: Hostile, client: GrpcClient) -> None:
    answer = client.ask_one(each.name, *TEXTS[:3])
    assert answer.status != "DEADLINE_EXCEEDED", f"{each.name} ({each.what}) hangs"
    for name, tensor in answer.outputs.items():
        if np.issubdtype(tensor.dtype, np.floating):
            assert np.isfinite(tensor).all(), f"{each.name} ({each.what}) answers {name} with {tensor}"


def remove_all(server: Serving, directories: Sequence[Hostile]) -> None:
    """Unload and delete."""
    with server.client() as client:
        for each in directories:
            with contextlib.suppress(InferenceServerException, UnicodeEncodeError, ValueError):
                client.unload(each.name)
            each.remove()


def put_and_remove(server: Serving, make: Directories, seeds: Sequence[int]) -> None:
    """A wave of them."""
    put: list[Hostile] = []
    try:
        for place, seed in enumerate(seeds):
            with contextlib.suppress(FileExistsError, OSError):  # a name that two seeds give, or that is too long
                put.append(make.put(server.repository, seed, FIRST_TAG + place))
        try_all(server, put)
    finally:
        remove_all(server, put)


def resident(server: Serving) -> int:
    """Bytes of the backbone's process."""
    return int(server.stub().memory_info().rss)


def try_directories(server: Serving, folder: Path, seeds: Sequence[int]) -> None:
    make = Directories(folder, taken=[task.vfm for task in GOOD])
    waves = [seeds[at : at + WAVE] for at in range(0, len(seeds), WAVE)]
    put_and_remove(server, make, waves[0])  # what the first tasks load stays loaded: libraries, pools
    before = resident(server)
    for wave in waves[1:]:
        put_and_remove(server, make, wave)
    eventually(lambda: resident(server) < before + GROWTH, "memory is given back", 60)
    served = len(GOOD)
    eventually(lambda: server.metric("backbone_vfms") == served, "the good tasks alone are left", 60)


def try_requests(server: Serving, http_seeds: Sequence[int], grpc_seeds: Sequence[int]) -> None:
    models = [*(task.name for task in GOOD), "minilm"]
    for seed in http_seeds:
        request = http_request(seed, models)
        assert send_http(server.http_url, request) is not None, request
    for seed in grpc_seeds:
        status = send_grpc(server.grpc_url, grpc_request(seed, models))
        assert status != "DEADLINE_EXCEEDED", f"gRPC request {seed} hangs"


def test_directories(attacked: Serving, tmp_path: Path) -> None:
    try_directories(attacked, tmp_path, [*FOUND, *SAMPLE])


def test_requests(attacked: Serving) -> None:
    try_requests(attacked, HTTP_SAMPLE, GRPC_SAMPLE)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_directory(attacked: Serving, tmp_path: Path, others_go_on: Hammer) -> None:
    """Prints what the answers of the good tasks take, also while ordinary tasks come and go (a figure to look at)."""
    said = [f"alone {percentiles(others_go_on, lambda: time.sleep(20))}"]
    said += [f"beside ordinary tasks {percentiles(others_go_on, lambda: come_and_go(attacked, 60))}"]
    said += [f"beside these {percentiles(others_go_on, lambda: try_directories(attacked, tmp_path, ALL))}"]
    print("; ".join(said))


def percentiles(hammer: Hammer, meanwhile: Callable[[], object]) -> str:
    start = len(hammer.taken)
    meanwhile()
    taken = np.array(hammer.taken[start:]) * 1e3
    return f"p50 {np.percentile(taken, 50):.0f} ms, p99 {np.percentile(taken, 99):.0f} ms of {len(taken)}"


def come_and_go(server: Serving, count: int) -> None:
    """As `put_and_remove`, of good tasks."""
    with server.client() as client:
        for number in range(count):
            name = f"ordinary{number}"
            write_task(server.repository, Task(name, ORDINARY_TAG + number, adapter=lora(), seed=number))
            client.load(name)
            client.ask_one(name, *TEXTS[:3]).good()
            remove(server, name)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_request(attacked: Serving) -> None:
    try_requests(attacked, HTTP_ALL, GRPC_ALL)
