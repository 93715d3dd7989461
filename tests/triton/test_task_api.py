"""The Task-API against the real server: what was fitted here is what is served there, and changes lose no request."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import Serving, eventually, serving
from tasks import write_backbone
from typer.testing import CliRunner

import fmplex
from fmplex import (
    AsyncClient,
    Backbone,
    Classifier,
    Client,
    DeadlineExceeded,
    Embedder,
    Label,
    LoRA,
    MultiLabel,
    Projection,
    Regressor,
    ServerProblem,
    Similarity,
    Task,
    Text,
    TokenClassifier,
    Unreachable,
)
from fmplex import cli as commands

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

ROOT = Path(__file__).parents[2]
PRIZES = ["win a prize now", "free money, call today", "you have won a free holiday", "claim your cash prize"]
PLAIN = ["see you at lunch", "the meeting is at three", "thanks for the notes", "can you send the report"]
TEXTS = [f"{text}, {number}" for number in range(8) for text in (*PRIZES, *PLAIN)]
LABELS = ["spam" if text.split(",")[0] in {p.split(",")[0] for p in PRIZES} else "ham" for text in TEXTS]
ASKED = ["win a free prize", "lunch at three?", "call me", " ".join(["a long text"] * 30)]


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


def test_the_readmes_first_block_as_it_is_written(
    served: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing but the server's address is changed."""
    (block,) = re.findall(r"```python\n(.*?Task\(\"spam\".*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("import", "from"))]
    assert len(lines) <= 7
    monkeypatch.chdir(served.repository.parent)
    names: dict[str, Any] = {"train_texts": TEXTS[8:], "train_labels": LABELS[8:]}
    names |= {"test_texts": TEXTS[:8], "test_labels": LABELS[:8]}
    exec(compile(block.replace("localhost:8001", served.grpc_url), "README.md", "exec"), names)
    task = names["task"]
    assert task.evaluation["accuracy"] >= 0.75
    with Client(served.grpc_url) as client:
        (here,), (there,) = task.predict(PRIZES[0]), client.predict("spam", PRIZES[0])
    assert isinstance(here, Label)
    assert isinstance(there, Label)
    assert there.label == here.label == "spam"
    assert there.scores == pytest.approx(dict(here.scores), abs=1e-5)
    assert sorted(path.name for path in (served.repository / "spam").iterdir()) == ["1", "2", "config.pbtxt"]


NAMES = [f"{a} {b}".split() for a in ("Ada met", "Ben saw") for b in ("Cleo in Rome", "Dora at home")]
TAGS = [["B-P", "O", "B-P", "O", "B-L" if words[-1] == "Rome" else "O"] for words in NAMES]
FLOWERS = [[1000.0 + n, 7.0 + n / 100] for n in range(16)]
KINDS: dict[str, Callable[[Backbone], Task]] = {
    "head": lambda backbone: spam("head", backbone),
    "lora": lambda backbone: spam("lora", backbone, adapter=LoRA(r=4)),
    "deep": lambda backbone: fitted("deep", backbone, Classifier(hidden=(16,), pooling="cls"), TEXTS, LABELS),
    "several": lambda backbone: fitted(
        "several", backbone, MultiLabel(threshold=0.3), TEXTS, [[label, "any"] for label in LABELS]
    ),
    "number": lambda backbone: fitted(
        "number", backbone, Regressor(outputs=2), TEXTS, [[len(text) / 40, 1.0] for text in TEXTS]
    ),
    "names": lambda backbone: fitted("names", backbone, TokenClassifier(), NAMES * 4, TAGS * 4, LoRA(r=2)),
    "nearest": lambda backbone: fitted("nearest", backbone, Similarity(), TEXTS, LABELS),
    "vector": lambda backbone: Task("vector", backbone, decoder=Embedder(), encoder=Text(prefix="query: ")),
    "flower": lambda backbone: fitted(
        "flower", backbone, Classifier(), FLOWERS, ["long", "wide"] * 8, LoRA(r=2), Projection(2, hidden=(8,))
    ),
    "windows": lambda backbone: fitted(
        "windows", backbone, Classifier(), TEXTS, LABELS, encoder=Text(max_length=16, windows=4, overlap=4)
    ),
}


def fitted(
    name: str,
    backbone: Backbone,
    decoder: Any,
    texts: Any,
    labels: Any,
    adapter: Any = None,
    encoder: Text | Projection | None = None,
) -> Task:
    task = Task(name, backbone, adapter=adapter, decoder=decoder, encoder=encoder)
    task.fit(texts, labels, epochs=1, progress=False)
    return task


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_fitted_is_what_is_served(served: Serving, backbone: Backbone, client: Client, kind: str) -> None:
    task = KINDS[kind](backbone)
    task.deploy(served.grpc_url)
    asked: list[Any] = FLOWERS[:3] if kind == "flower" else ASKED
    here = [task.outputs([row])[0] for row in asked]
    with Client(f"http://{served.http_url}") as http:
        for own in (client, http):
            there = [own.outputs(kind, [row])[0] for row in asked]
            for one, other in zip(here, there, strict=True):
                assert {*other} <= {*one}
                for name, value in other.items():
                    if np.issubdtype(value.dtype, np.floating):
                        assert np.allclose(value, one[name], atol=1e-5), name
                    else:
                        assert [_text(cell) for cell in value.ravel()] == [_text(cell) for cell in one[name].ravel()]
            (mine,), (theirs,) = task.predict(asked[:1]), own.predict(kind, asked[:1])
            assert type(mine) is type(theirs)
            if hasattr(mine, "scores"):
                assert theirs.scores == pytest.approx(mine.scores, abs=1e-5)  # type: ignore[union-attr]


def _text(cell: Any) -> Any:
    return cell.decode() if isinstance(cell, bytes) else cell


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
    url = f"http://127.0.0.1:{served.server.options.metrics_port}/metrics"
    listed = CliRunner().invoke(
        commands.app, ["task", "list", "-r", str(served.repository), "--metrics-url", url, "--json"]
    )
    (row,) = [row for row in json.loads(listed.stdout) if row["task"] == "weighed"]
    assert (row["weight"], row["queue"]) == (7.0, 0)
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
        refused = [_outcome(call) for call in [once.submit("narrow", [text] * 32) for text in TEXTS[:16]]]
        assert Unreachable in refused
        assert {*refused} <= {Unreachable, None}
        kept = [_outcome(call) for call in [patient.submit("narrow", [text] * 8) for text in TEXTS[:16]]]
    assert kept == [None] * 16


def _outcome(call: Any) -> type[BaseException] | None:
    error = call.exception(60)
    return None if error is None else type(error)


def test_deadlines_and_cancelling(served: Serving, backbone: Backbone, client: Client) -> None:
    spam("slow", backbone).deploy(served.grpc_url)
    long = [" ".join(["word"] * 200)] * 32
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


def test_what_the_server_says_reaches_the_caller(client: Client) -> None:
    with pytest.raises(ServerProblem, match="nowhere"):
        client.predict("nowhere", "x")
    with pytest.raises(Unreachable), Client("127.0.0.1:9", retries=1) as nobody:
        nobody.predict("spam", "x")
    with pytest.raises(Unreachable), Client("http://127.0.0.1:9", retries=1) as nobody:
        nobody.predict("spam", "x")


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
