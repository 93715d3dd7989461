"""What the tests of the backend share: repositories on disk, and rigs of the engine, the loader and calls."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from fake_family.runtime import FakeClock, FakeExtensions, FakeRuntime

from fmplex_backend.errors import ServerProblem, TaskRefused
from fmplex_backend.interface import member_name, tag_name
from fmplex_backend.repository.entry import TaskEntry
from fmplex_backend.repository.tasks import Repository
from fmplex_backend.scheduling import POLICIES, CostModel
from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.intake import Call
from fmplex_backend.serving.loader import Loader
from fmplex_backend.serving.table import Refusal
from fmplex_backend.types import Answer, Failed, Finished, Outcome, PassShape, Reply, Request, Running, Vfm

BACKBONE = "base"

# -- a model repository on disk


def write_task(
    root: Path,
    name: str,
    vfm: int,
    *,
    backbone: str = BACKBONE,
    decoder: str = "embedding",
    sizes: Mapping[str, int] | None = None,
    task: Mapping[str, Any] | None = None,
    version: int = 1,
    **terms: Any,
) -> Path:
    """A task's directory with one version in it; returns the version's directory."""
    write_config(root, name, vfm, backbone=backbone, decoder=decoder, sizes=sizes, **terms)
    return write_version(root, name, version, task or {"mark": vfm})


def write_config(
    root: Path,
    name: str,
    vfm: int,
    *,
    backbone: str = BACKBONE,
    decoder: str = "embedding",
    sizes: Mapping[str, int] | None = None,
    serves: int | None = None,
    parameters: Mapping[str, str] | None = None,
    **terms: Any,
) -> Path:
    """Write a task's config.pbtxt without a version; `serves`: which one, where it is not the highest."""
    shape = tuple((sizes or {}).items())
    entry = TaskEntry(name, backbone, vfm, "text-encoder", decoder, 8, sizes=shape, version=serves, **terms)
    file = root / name / "config.pbtxt"
    file.parent.mkdir(exist_ok=True)
    aside = root / name / ".config.pbtxt"
    more = (
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in (parameters or {}).items()
    )
    aside.write_text("".join([entry.to_pbtxt(), *more]))
    return aside.replace(file)


def write_group(root: Path, name: str, vfm: int, members: Mapping[str, int], *, slo_ms: float | None = None) -> Path:
    """A group of tasks with these tags, each with its EMBEDDING and TRUNCATED; returns its config.pbtxt."""
    mapped = {tag_name(vfm): "usage", "ERRORS": "errors"}
    declared = [
        'output [ { name: "usage" data_type: TYPE_INT64 dims: [ 3 ] } ]',
        f'output [ {{ name: "errors" data_type: TYPE_STRING dims: [ {len(members)} ] }} ]',
    ]
    for position, (member, tag) in enumerate(sorted(members.items(), key=lambda item: item[1])):
        mapped |= {f"{position}.{output}": f"{member}.{output}" for output in ("EMBEDDING", "TRUNCATED")}
        mapped[member_name(tag)] = f"{member}.usage"
        declared += [
            f'output [ {{ name: "{member}.EMBEDDING" data_type: TYPE_FP32 dims: [ -1 ] }} ]',
            f'output [ {{ name: "{member}.TRUNCATED" data_type: TYPE_BOOL dims: [ 1 ] }} ]',
            f'output [ {{ name: "{member}.usage" data_type: TYPE_INT64 dims: [ 3 ] }} ]',
        ]
    parameters = {"group": ",".join(members)} | ({} if slo_ms is None else {"slo_ms": f"{slo_ms:g}"})
    lines = [
        f'name: "{name}" platform: "ensemble" max_batch_size: 8',
        'input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]',
        *declared,
        *(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()),
        f'ensemble_scheduling {{ step [ {{ model_name: "{BACKBONE}" model_version: -1',
        'input_map { key: "TEXT" value: "TEXT" }',
        *(f'output_map {{ key: "{wire}" value: "{shown}" }}' for wire, shown in mapped.items()),
        "} ] }",
    ]
    (root / name / "1").mkdir(parents=True, exist_ok=True)
    file, aside = root / name / "config.pbtxt", root / name / ".config.pbtxt"
    aside.write_text("\n".join(lines))
    return aside.replace(file)


def group_outputs(*tags: int) -> list[str]:
    """What a group's entry asks for beside its own tag."""
    places = [f"{position}.{output}" for position in range(len(tags)) for output in ("EMBEDDING", "TRUNCATED")]
    return [*places, *map(member_name, tags), "ERRORS"]


def edit(file: Path, old: str, new: str) -> None:
    """Replace a piece of a text file; it must be there."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def write_version(root: Path, name: str, version: int, task: Mapping[str, Any]) -> Path:
    """A version directory with its task.json."""
    directory = root / name / str(version)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "task.json").write_text(json.dumps(task))
    return directory


def text_task(decoder: Mapping[str, Any], **rest: Any) -> dict[str, Any]:
    """A task.json of the text-encoder family."""
    return {"family": "text-encoder", "decoder": dict(decoder), **rest}


# -- an engine with no model and a clock of its own


class TextStandIn(FakeRuntime):
    """The fake runtime in the place of a text encoder's: TEXT in, EMBEDDING and TRUNCATED out.

    A task.json may hold `mark` (a number that comes back in the answer), `adapter` (any name) and `repeats`, and lack
    all else; one that the text encoders' family reads, too, has the mark among its `metrics`.
    """

    def load(self, version: Path) -> TextExtensions:
        file = version / "task.json"
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TaskRefused(file, "(whole file)", f"not readable as JSON: {error}", "Write it again") from None
        mark = document.get("mark", document.get("metrics", {}).get("mark", 0))
        repeats = document.get("repeats", True)
        return TextExtensions(float(mark), document.get("adapter"), takes="TEXT", repeats=repeats)

    def tensors(self, rows: Sequence[Sequence[str]], extensions: FakeExtensions) -> dict[str, npt.NDArray[Any]]:
        """EMBEDDING [n, 2]: how many words a row has, and the mark. TRUNCATED [n, 1]: no."""
        return {
            "EMBEDDING": np.array([[len(words), extensions.mark] for words in rows], dtype=np.float32),
            "TRUNCATED": np.zeros((len(rows), 1), dtype=np.bool_),
        }


class TextExtensions(FakeExtensions):
    """What `TextStandIn` loads."""

    @property
    def outputs(self) -> Mapping[str, int | None]:
        """Those of `TextStandIn.tensors`."""
        return {"EMBEDDING": 2, "TRUNCATED": 1}


class EngineRig:
    """An engine over the fake runtime, and what it handed over. Time passes only in passes, or by hand."""

    def __init__(
        self,
        policy: str = "bfq",
        *,
        max_items: int = 8,
        seconds: Callable[[PassShape], float] = lambda shape: 0.01 + 0.001 * shape.tokens,
        rows_per_pass: int | None = None,
        queues_passes: bool = False,
    ) -> None:
        self.clock = FakeClock(100.0)
        self.runtime = TextStandIn(seconds, self.clock.sleep, rows_per_pass=rows_per_pass, queues_passes=queues_passes)
        self.cost = CostModel(fixed=0.01, per_token=0.001)
        scheduler = POLICIES[policy](self.cost, max_items=max_items)
        self.handed: list[tuple[Request, Finished | Failed]] = []
        self.parts: list[tuple[Request, Any]] = []  # of replies, in the order in which they were handed over
        self.engine = Engine(self.runtime, scheduler, self.cost, self._hand_over, self.clock)
        self.engine.preparer = self
        self.vfms: list[Vfm] = []
        self.sent: list[Request] = []

    def prepare_again(self, request: Request) -> None:
        """As `Preparer` has it, at once."""
        request.extensions = request.vfm.extensions
        self.runtime.prepare(request)
        self.engine.scheduler.admit(request)

    def resume(self) -> None:
        """As `Preparer` has it: nothing waits."""

    def _hand_over(self, request: Request, outcome: Outcome) -> None:
        if isinstance(outcome, Running):
            assert all(other is not request for other, _ in self.handed), "a part after the last reply"
            self.parts.append((request, outcome.value))
        else:
            self.handed.append((request, outcome))

    def vfm(self, version: Path, *, weight: float = 1.0, slo: float | None = None) -> Vfm:
        """One more vFM, attached in the next round."""
        vfm = Vfm(len(self.vfms), f"task{len(self.vfms)}", weight=weight, slo=slo)
        self.vfms.append(vfm)
        self.swap(vfm, version)
        return vfm

    def swap(self, vfm: Vfm, version: Path) -> None:
        """Other extensions, from the next round on."""
        extensions = self.runtime.load(version)
        vfm.extensions = vfm.extensions or extensions  # as the loader does
        self.engine.post(lambda: self.engine.attach(vfm, extensions))

    def make(self, vfm: Vfm, *texts: str, slo: float | None = None) -> Request:
        """A request that arrives now, not posted."""
        rows = np.array([[text.encode()] for text in texts], dtype=np.object_)
        request = Request(vfm, {"TEXT": rows}, ("EMBEDDING",), self.clock(), _no_reply, slo)
        request.extensions = vfm.extensions
        self.runtime.prepare(request)
        self.sent.append(request)
        return request

    def send(self, vfm: Vfm, *texts: str, slo: float | None = None) -> Request:
        """A request that arrives now."""
        request = self.make(vfm, *texts, slo=slo)
        self.engine.add_request(request)
        return request

    def step(self) -> list[Request]:
        """One round; what was handed over in it."""
        before = len(self.handed)
        self.engine.step(wait=False)
        return [request for request, _ in self.handed[before:]]

    def drain(self) -> None:
        """Rounds until there is nothing to run."""
        while self.engine.step(wait=False):
            pass

    def outcome(self, request: Request) -> Finished | Failed:
        """The one outcome of a request."""
        (outcome,) = [outcome for other, outcome in self.handed if other is request]
        return outcome

    def reason(self, request: Request) -> str:
        """Why it failed; empty where it did not."""
        outcome = self.outcome(request)
        return outcome.error.reason if isinstance(outcome, Failed) else ""

    def service(self) -> float:
        """Seconds of all vFMs."""
        return sum(vfm.service for vfm in self.vfms)


def _no_reply(reply: Reply, final: bool) -> None:
    raise AssertionError("the engine hands over, it does not reply")


# -- a loader with no model


MOVED_TIMES = 15  # a task that has moved is answered for so many times the grace


class LoaderRig:
    """A loader over the fake runtime; its engine runs when it is told to."""

    def __init__(self, root: Path, *, slots: int = 16, max_queue: int = 100, grace: float = 0.0) -> None:
        self.root = root
        self.engine_rig = EngineRig()
        self.engine, self.runtime = self.engine_rig.engine, self.engine_rig.runtime
        self.models = FakeModels()
        self.loader = Loader(
            Repository(root, BACKBONE),
            self.runtime,
            self.engine,
            max_queue=max_queue,
            slots=slots,
            grace=grace,
            moved_grace=MOVED_TIMES * grace,
            models=self.models,
        )

    def refresh(self, *names: str) -> None:
        """Read the repository, then let the engine do what it was told."""
        self.loader.refresh(names or None)
        self.engine_rig.drain()

    def vfm(self, tag: int) -> Vfm:
        """The vFM that serves this tag."""
        found = self.loader.table[tag]
        assert isinstance(found, Vfm), found
        return found

    def error(self, tag: int) -> str:
        """Why this tag is refused."""
        found = self.loader.table[tag]
        assert isinstance(found, Refusal), found
        return str(found.error)

    def mark(self, tag: int) -> float:
        """The mark of the extensions that serve this tag."""
        extensions = self.vfm(tag).extensions
        assert extensions in self.runtime.attached
        return float(extensions.mark)


# -- calls to a service


class Caller:
    """Makes calls and keeps their replies."""

    def __init__(self) -> None:
        self.replies: list[list[Reply]] = []  # per call: the last reply, once and no more
        self.parts: list[list[Answer]] = []  # per call
        self._changed = threading.Condition()

    def call(
        self,
        tags: Sequence[int] = (0,),
        text: str = "some words",
        *,
        asks: Sequence[str] = ("EMBEDDING",),
        parameters: Mapping[str, Any] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
        request_id: str = "",
    ) -> Call:
        """One call, numbered."""
        number = len(self.replies)
        self.replies.append([])
        self.parts.append([])
        outputs = [*asks, *map(tag_name, tags)]
        send = partial(self._replied, number)
        return Call({"TEXT": bytes_of(text)}, outputs, parameters or {}, send, is_cancelled, request_id)

    def _replied(self, number: int, reply: Reply, final: bool) -> None:
        with self._changed:
            if final:
                self.replies[number].append(reply)
            else:
                assert isinstance(reply, Answer)
                assert not self.replies[number], "a part after the last reply"
                self.parts[number].append(reply)
            self._changed.notify_all()

    def wait(self, count: int | None = None) -> None:
        """Until so many calls, or all, have a reply."""
        with self._changed:
            want = len(self.replies) if count is None else count
            assert self._changed.wait_for(lambda: sum(map(bool, self.replies)) >= want, 20), self.replies

    def only(self, number: int = -1) -> Reply:
        """The one reply of a call."""
        (reply,) = self.replies[number]
        return reply

    def failure(self, number: int = -1) -> tuple[str, str]:
        """Code and message of a call that failed."""
        reply = self.only(number)
        assert isinstance(reply, Failed), reply
        return reply.error.code, str(reply.error)

    def answer(self, number: int = -1) -> Answer:
        """The answer of a call that was served."""
        reply = self.only(number)
        assert isinstance(reply, Answer), reply
        return reply


def bytes_of(*texts: str) -> Any:
    """A TEXT tensor."""
    return np.array([[text.encode()] for text in texts], dtype=np.object_)


class FakeModels:
    """Which models a server has loaded, as a test says."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self.tags: dict[str, list[int]] = {}  # in the entries by which they are loaded, as far as the server tells
        self.unloads: list[str] = []
        self.asked = 0
        self.refuses = ""  # why nothing is unloaded

    def is_loaded(self, name: str) -> bool:
        """Whether it is."""
        self.asked += 1
        return name in self.loaded

    def close_old(self) -> None:
        """There are no connections."""

    def loaded_tags(self, name: str) -> list[int] | None:
        """As the server tells them."""
        return self.tags.get(name)

    def unload(self, name: str) -> None:
        """Unload it."""
        if self.refuses:
            raise ServerProblem(self.refuses)
        self.unloads.append(name)
        self.loaded.discard(name)
