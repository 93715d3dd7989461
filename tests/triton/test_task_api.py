"""The Task-API against the real server: what was fitted here is what is served there, and changes lose no request."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from text_encoder_case import ASKED, LABELS, PLAIN, PRIZES, TEXTS
from typer.testing import CliRunner

import fmplex
from fmplex import (
    AsyncClient,
    Backbone,
    Busy,
    Classifier,
    Client,
    DeadlineExceeded,
    Label,
    LoRA,
    Projection,
    ServerProblem,
    Task,
    Unreachable,
)
from fmplex.cli import app as commands
from fmplex_backend.status import TaskStatus
from testing.repositories import write_backbone
from testing.servers import Serving, eventually, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with a backbone and no task yet, in a folder where it is `model_repository`."""
    folder = tmp_path_factory.mktemp("api")
    repository = folder / "model_repository"
    write_backbone(repository, threads="1")
    with serving(repository, folder) as server:
        assert not server.refused
        yield server


@pytest.fixture(scope="module")
def backbone(served: Serving) -> Backbone:
    return Backbone("minilm", repository=served.repository)


@pytest.fixture
def client(served: Serving) -> Iterator[Client]:
    with Client(served.grpc_url) as client:
        yield client


def spam(name: str, backbone: Backbone, odd: int = 0, **options: Any) -> Task:
    """`odd` gives so many texts the other label: versions that answer differently."""
    task = Task(name, backbone, decoder=Classifier(["ham", "spam"]), **options)
    other = {"ham": "spam", "spam": "ham"}
    labels = [other[label] if place < odd else label for place, label in enumerate(LABELS)]
    task.fit(TEXTS, labels, epochs=1, learning_rate=2e-3, progress=False)
    return task


# -- numbers

HUGE = [3e38, -3e38]  # numbers that overflow on their way to an answer


def test_an_answer_that_is_no_number_is_an_error_of_its_request_alone(served: Serving, backbone: Backbone) -> None:
    rows = [[float(number), number / 7] for number in range(16)]
    task = Task("overflowing", backbone, encoder=Projection(2), decoder=Classifier())
    task.fit(rows, ["low"] * 8 + ["high"] * 8, epochs=1, progress=False)
    task.deploy(served.grpc_url)
    with Client(served.grpc_url) as client, ThreadPoolExecutor(8) as pool:
        asked = [HUGE if place % 4 == 2 else rows[place] for place in range(16)]
        answers = [pool.submit(client.predict, "overflowing", [row]) for row in asked]
        for row, answer in zip(asked, answers, strict=True):
            if row is HUGE:
                with pytest.raises(ServerProblem, match="'overflowing' holds NaN or infinite numbers in SCORES"):
                    answer.result()
            else:
                (here,), (there,) = task.predict([row]), answer.result()
                assert isinstance(here, Label)
                assert isinstance(there, Label)
                assert there.scores == pytest.approx(dict(here.scores), abs=1e-4)


# -- changes under load


def test_versions_come_and_go_with_no_failed_request(served: Serving, backbone: Backbone) -> None:
    versions = [spam("moving", backbone, odd, adapter=LoRA(r=2)) for odd in (0, 24, 64)]
    scores = [task.outputs(ASKED[0])[0]["SCORES"] for task in versions]
    versions[0].deploy(served.grpc_url)
    failures: list[Exception] = []
    seen: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        with Client(served.grpc_url, retries=0) as own:
            while not stop.is_set():
                try:
                    (answer,) = own.outputs("moving", [ASKED[0]])
                    near = [
                        number for number, each in enumerate(scores) if np.allclose(answer["SCORES"], each, atol=1e-4)
                    ]
                    assert near, answer
                    seen.append(near[0])
                except Exception as error:  # whatever it is, it is a failure
                    failures.append(error)
                    return

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for task in versions[1:]:
            task.deploy(served.grpc_url)
        assert versions[0].rollback(server=served.grpc_url) == 2
        eventually(lambda: bool(failures) or set(seen[-16:]) == {1}, "all answers are version 2's")
        assert versions[0].rollback(server=served.grpc_url) == 1
        eventually(lambda: bool(failures) or set(seen[-16:]) == {0}, "all answers are version 1's")
        assert versions[2].deploy(served.grpc_url).name == "4"
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert {0, 1, 2} <= set(seen)


def test_a_weight_set_from_the_shell_is_in_effect_at_once(served: Serving, backbone: Backbone) -> None:
    spam("weighed", backbone).deploy(served.grpc_url)
    assert served.metric("weight", "weighed") in (0.0, 1.0)  # published once a second
    done = CliRunner().invoke(
        commands.app, ["task", "set", "weighed", "-r", str(served.repository), "--weight", "7", "--json"]
    )
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"task": "weighed", "weight": 7.0})
    eventually(lambda: served.metric("weight", "weighed") == 7.0, "the backbone has the weight", 5)
    listed = CliRunner().invoke(
        commands.app, ["task", "list", "-r", str(served.repository), "--server", served.grpc_url, "--json"]
    )
    (row,) = [row for row in json.loads(listed.stdout) if row["task"] == "weighed"]
    assert (row["weight"], row["queue"], row["state"], row["error"]) == (7.0, 0, "serving", None)
    assert row["share"] is not None


def test_the_shell_asks_and_removes(served: Serving, backbone: Backbone) -> None:
    spam("gone", backbone).deploy(served.grpc_url)
    asked = CliRunner().invoke(commands.app, ["predict", "gone", PRIZES[0], PLAIN[0], "--server", served.grpc_url])
    assert asked.exit_code == 0
    assert PRIZES[0] in asked.stdout
    whole = ["task", "remove", "gone", "-r", str(served.repository), "--server", served.grpc_url]
    assert CliRunner().invoke(commands.app, whole).exit_code == 0
    assert not (served.repository / "gone").exists()
    again = CliRunner().invoke(commands.app, ["predict", "gone", "x", "--server", served.grpc_url, "--json"])
    assert again.exit_code in (1, 3)
    assert "gone" in json.loads(again.stdout.splitlines()[0])["error"]


def test_what_is_rejected_here_is_rejected_there(served: Serving, backbone: Backbone, client: Client) -> None:
    for name, settings in (("unsure", {"reject_below": 0.9}), ("strange", {"reject_label": "oos"})):
        task = Task(name, backbone, adapter=LoRA(r=2), decoder=Classifier(**settings))
        outside = [f"the weather of day {number}" for number in range(16)]
        labels = LABELS if "reject_below" in settings else [*LABELS, *["oos"] * len(outside)]
        task.fit([*TEXTS, *outside][: len(labels)], labels, epochs=1)
        task.deploy(served.grpc_url)
        asked = [*ASKED, "the weather of tomorrow", "rain"]
        for here, there in zip(task.predict(asked), client.predict(name, asked), strict=True):
            assert isinstance(here, Label)
            assert isinstance(there, Label)
            assert (there.label, there.rejected) == (here.label, here.rejected)
            assert there.confidence == pytest.approx(here.confidence, abs=1e-4)
            assert there.scores == pytest.approx(dict(here.scores), abs=1e-5)
        assert any(each.rejected for each in task.predict(asked))  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["csv", pytest.param("parquet", marks=pytest.mark.slow)])
def test_a_file_whose_answering_is_killed_goes_on(
    served: Serving, backbone: Backbone, tmp_path: Path, kind: str
) -> None:
    spam("bulk", backbone).deploy(served.grpc_url)
    texts = [f"{TEXTS[number % len(TEXTS)]} {'word ' * 20}{number}" for number in range(1500)]
    (tmp_path / "in.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    out = tmp_path / f"out.{kind}"
    note = tmp_path / f"{out.name}.progress"
    line = [sys.executable, "-m", "fmplex", "predict", "bulk", "--server", served.grpc_url]
    line += ["--file", str(tmp_path / "in.csv"), "--out", str(out)]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as first:
        eventually(lambda: note.exists() and json.loads(note.read_text())["rows"] > 0, "some rows are written", 120)
        first.kill()
    kept = json.loads(note.read_text())["rows"]
    assert 0 < kept < len(texts)
    again = subprocess.run(line, capture_output=True, text=True, check=True)
    assert f"going on after {kept:,} rows" in again.stderr
    with Client(served.grpc_url) as client:
        expected = [found.label for found in client.predict("bulk", texts[kept - 20 : kept + 20])]  # type: ignore[attr-defined]
    in_csv = csv.DictReader(out.read_text().splitlines()) if kind == "csv" else ()
    rows = list(in_csv) or parquet.read_table(out).to_pylist()
    assert [row["text"] for row in rows] == texts
    assert [row["label"] for row in rows[kept - 20 : kept + 20]] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", out.name]


# -- the client


def test_more_texts_than_the_server_takes_at_once(served: Serving, backbone: Backbone, client: Client) -> None:
    task = spam("many", backbone)
    task.deploy(served.grpc_url)
    texts = [f"text number {number}" for number in range(75)]
    found = client.predict("many", texts)
    assert len(found) == 75
    here = task.predict(texts)
    assert all(one.scores == pytest.approx(two.scores, abs=1e-5) for one, two in zip(found, here, strict=True))  # type: ignore[union-attr]

    async def ask() -> list[Any]:
        async with AsyncClient(served.grpc_url) as grpc, AsyncClient(f"http://{served.http_url}") as http:
            return [await grpc.predict("many", texts), await http.predict("many", texts)]

    for answers in asyncio.run(ask()):
        assert all(a.scores == pytest.approx(b.scores, abs=1e-5) for a, b in zip(answers, found, strict=True))
    (one,) = client.submit("many", texts[0]).result(10)
    assert one.scores == pytest.approx(found[0].scores, abs=1e-5)  # type: ignore[union-attr]


def test_a_full_queue_is_tried_again(served: Serving, backbone: Backbone) -> None:
    spam("narrow", backbone, max_queue=1).deploy(served.grpc_url)
    with Client(served.grpc_url, retries=0) as once, Client(served.grpc_url, retries=12) as patient:
        once.interface("narrow")
        refused = [_outcome(call) for call in [once.submit("narrow", different(text, 32)) for text in TEXTS[:16]]]
        assert Busy in refused
        assert {*refused} <= {Busy, None}
        kept = [_outcome(call) for call in [patient.submit("narrow", different(text, 8)) for text in TEXTS[:16]]]
    assert kept == [None] * 16


def different(text: str, count: int) -> list[str]:
    """Equal ones would run once."""
    return [f"{text} {number}" for number in range(count)]


def _outcome(call: Any) -> type[BaseException] | None:
    error = call.exception(60)
    return None if error is None else type(error)


@pytest.fixture(scope="module")
def crowded(served: Serving, backbone: Backbone) -> str:
    """A task whose queue is far shorter than the crowd that comes."""
    spam("crowded", backbone, max_queue=16).deploy(served.grpc_url)
    return "crowded"


Times = list[tuple[type[BaseException] | None, float]]


def asyncio_crowd(url: str, task: str, calls: int, timeout: float) -> Times:
    """Calls of one AsyncClient at a time: what each raised, and its seconds."""

    async def one(client: AsyncClient, number: int) -> tuple[type[BaseException] | None, float]:
        start = time.monotonic()
        try:
            await client.predict(task, f"text number {number}", timeout=timeout)
        except fmplex.FmplexError as error:
            return type(error), time.monotonic() - start
        return None, time.monotonic() - start

    async def every() -> Times:
        async with AsyncClient(url) as client:
            return list(await asyncio.gather(*(one(client, number) for number in range(calls))))

    return asyncio.run(every())


def threads_crowd(url: str, task: str, calls: int, timeout: float) -> Times:
    """The same, from threads that share a Client."""

    def one(number: int) -> tuple[type[BaseException] | None, float]:
        start = time.monotonic()
        try:
            client.predict(task, f"text number {number}", timeout=timeout)
        except fmplex.FmplexError as error:
            return type(error), time.monotonic() - start
        return None, time.monotonic() - start

    with Client(url) as client, ThreadPoolExecutor(calls) as threads:
        return list(threads.map(one, range(calls)))


@pytest.mark.parametrize(
    ("crowd", "scheme", "calls"),
    [(asyncio_crowd, "grpc", 1500), (asyncio_crowd, "http", 500), (threads_crowd, "grpc", 300)],
    ids=["asyncio", "asyncio over HTTP", "threads"],
)
def test_a_crowd_is_answered(served: Serving, crowded: str, crowd: Any, scheme: str, calls: int) -> None:
    url = served.grpc_url if scheme == "grpc" else f"http://{served.http_url}"
    assert [raised for raised, _ in crowd(url, crowded, calls, 60.0) if raised] == []


@pytest.mark.parametrize("crowd", [asyncio_crowd, threads_crowd], ids=["asyncio", "threads"])
def test_who_is_not_answered_waits_until_the_deadline(served: Serving, crowded: str, crowd: Any) -> None:
    timeout = 1.0
    stop, numbers = threading.Event(), itertools.count()

    def fill() -> None:
        """Keep the queue full, with texts that are not equal: those would run once."""
        with Client(served.grpc_url, retries=0) as client:
            while not stop.is_set():
                texts = [f"{next(numbers)} " + "word " * 40 for _ in range(16)]
                with contextlib.suppress(Busy):
                    client.predict(crowded, texts, timeout=60)

    with ThreadPoolExecutor(24) as filling:
        for _ in range(24):
            filling.submit(fill)
        try:
            eventually(lambda: served.metric("failures_total", crowded, "queue_full") > 0, "the queue is full")
            ended = crowd(served.grpc_url, crowded, 100, timeout)
        finally:
            stop.set()
    failed = [(raised, seconds) for raised, seconds in ended if raised]
    # How many there are is the machine's: the last try of each may be refused, answered, or on its way at the deadline.
    assert failed
    assert {raised for raised, _ in failed} <= {Busy, DeadlineExceeded}
    assert all(seconds > 0.9 * timeout for _, seconds in failed)


def test_deadlines_and_cancelling(served: Serving, backbone: Backbone, client: Client) -> None:
    spam("slow", backbone).deploy(served.grpc_url)
    long = [f"{number} " + " ".join(["word"] * 200) for number in range(32)]
    client.interface("slow")
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        client.predict("slow", long, timeout=0.05)
    assert time.monotonic() - start < 2

    async def give_up() -> None:
        async with AsyncClient(served.grpc_url) as own:
            await own.interface("slow")
            call = asyncio.create_task(own.predict("slow", long * 4))
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(DeadlineExceeded):
                await own.predict("slow", long, timeout=0.05)

    asyncio.run(give_up())
    assert client.predict("slow", "still there", timeout=60)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_both_clients_say_the_same(served: Serving, backbone: Backbone, scheme: str) -> None:
    saved = spam("alike", backbone)
    saved.deploy(served.grpc_url)
    url = f"{scheme}://{served.grpc_url if scheme == 'grpc' else served.http_url}"

    async def ask() -> tuple[Any, ...]:
        async with AsyncClient(url, timeout=60) as own:

            async def answers() -> bool:
                return bool(await own.outputs("alike", "x"))

            await own.load("alike")
            await own.wait_for("alike", answers, 60)
            said = await own.interface("alike"), states(await own.tasks()), await own.outputs("alike", ASKED)
            await own.unload("alike")
            with pytest.raises(ServerProblem, match="alike"):
                await own.interface("alike")
            return said

    with Client(url, timeout=60) as client:
        here = client.interface("alike"), states(client.tasks()), client.outputs("alike", ASKED)
        there = asyncio.run(ask())
        assert there[:2] == here[:2]
        for one, other in zip(here[2], there[2], strict=True):
            assert one["SCORES"] == pytest.approx(other["SCORES"], abs=1e-5)
        client.load("alike")  # the entry is still on disk
        client.wait_for("alike", lambda: bool(client.predict("alike", "x")), 60)
        assert client.tasks()["alike"].healthy


def states(tasks: Mapping[str, TaskStatus]) -> dict[str, str]:
    return {name: task.state for name, task in tasks.items()}


def test_what_the_server_says_reaches_the_caller(client: Client) -> None:
    with pytest.raises(ServerProblem, match="nowhere"):
        client.predict("nowhere", "x")
    with pytest.raises(Unreachable), Client("127.0.0.1:9", retries=1) as nobody:
        nobody.predict("spam", "x")
    with pytest.raises(Unreachable), Client("http://127.0.0.1:9", retries=1) as nobody:
        nobody.predict("spam", "x")


def test_addresses_of_the_wrong_kind_are_told_in_one_line(served: Serving) -> None:
    grpc_port, http_port = served.grpc_url.rpartition(":")[2], served.http_url.rpartition(":")[2]
    metrics_port = served.server.options.metrics_port
    for url, says in (
        (f"http://localhost:{grpc_port}", f"does not speak HTTP. If this is its gRPC port, say localhost:{grpc_port}"),
        (f"localhost:{http_port}", f"hangs up on gRPC. If this is its HTTP port, say http://localhost:{http_port}"),
        (f"http://localhost:{metrics_port}", "is not Triton's HTTP endpoint"),
        (f"grpcs://localhost:{grpc_port}", f"does not speak TLS. Without TLS its address is localhost:{grpc_port}"),
        (f"https://localhost:{http_port}", f"Without TLS its address is http://localhost:{http_port}"),
        ("localhost:9", "no server there (Connection refused). Start one with fmplex serve"),
    ):
        done = CliRunner().invoke(commands.app, ["predict", "spam", "x", "--server", url])
        assert (done.exit_code, done.stdout) == (3, ""), done.output
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_examples(served: Serving, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "clients" / "examples"))
    import csv_classifier
    import feature_rows
    import peft_adapter

    rows = "".join(f'"{text}",{label}\n' for text, label in zip(TEXTS, LABELS, strict=True))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    csv_classifier.main(tmp_path / "rows.csv", name="reviews", repository=served.repository, server=served.grpc_url)
    adapter = served.repository / "reviews" / "1" / "adapter"
    shutil.copytree(adapter, tmp_path / "adapter")
    peft_adapter.main(str(tmp_path / "adapter"), name="adapted", repository=served.repository, server=served.grpc_url)
    feature_rows.main(repository=served.repository, epochs=4, server=served.grpc_url)
    with Client(served.grpc_url) as own:
        assert {"reviews", "adapted", "wine"} <= own.tasks().keys()
        row = feature_rows.datasets.load_wine().data[0]  # type: ignore[attr-defined]
        assert isinstance(own.predict("wine", [row])[0], Label)
        assert isinstance(own.predict("adapted", "x")[0], fmplex.Vector)
