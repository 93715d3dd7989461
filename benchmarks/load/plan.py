"""What to send, and what was measured: plain data, which crosses to the generator's process as JSON.

A plan's measurement window is the time after its warm-up. A request belongs to it if it is due in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Protocol = Literal["grpc", "http", "embeddings"]  # the last is OpenAI's API of that name; its answers are not read
OUTPUTS = ("SCORES", "LABEL")


@dataclass(frozen=True, slots=True)
class Reads:
    """The input of a stream's requests; dims of one item. Of others than TEXT, each text is its content in base64."""

    name: str = "TEXT"
    datatype: str = "BYTES"
    dims: tuple[int, ...] = (1,)


TEXT = Reads()


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests that go to `tasks` in turn, with `texts` in turn.

    With `together` each text goes to all tasks at once, and a client goes on when all have answered. With `times`
    (seconds from the start of the warm-up) it is an open loop, else a closed one of `clients`.
    """

    tasks: Sequence[str]
    texts: Sequence[str]
    clients: int = 0
    times: Sequence[float] | None = None
    slo_ms: float = 0.0  # answers within it are counted; 0: none
    ask_slo: bool = False  # send it with each request, too
    together: bool = False
    outputs: Sequence[str] = OUTPUTS  # that are asked for; none: all that the task has (gRPC only)
    ids: str = ""  # what the requests' ids begin with, before a number that counts up; "": they have none (gRPC only)
    reads: Reads = TEXT  # another one over gRPC only

    @property
    def name(self) -> str:
        """What its outcome is filed under."""
        return ",".join(self.tasks) if len(self.tasks) < 4 else f"{self.tasks[0]}..{self.tasks[-1]}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Streams that run together for `warmup` seconds and a measurement window of `seconds`.

    `usage` asks for the usage receipts too, which only tasks on a backbone have; over HTTP they are not read.
    """

    url: str
    streams: Sequence[Stream]
    seconds: float = 5.0
    warmup: float = 1.0
    usage: bool = False
    drain: float = 60.0  # seconds that answers are waited for after the window
    protocol: Protocol = "grpc"  # that the server speaks at `url`
    timeline: bool = False  # keep when each request of the window was due, and how long it took

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> Plan:
        """What `to_json` has written."""
        streams = []
        for stream in document.pop("streams"):
            name, datatype, dims = stream["reads"].values()
            reads = Reads(name, datatype, tuple(dims))
            streams.append(Stream(**stream | {"outputs": tuple(stream["outputs"]), "reads": reads}))
        return Plan(streams=streams, **document)


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts and latencies of a task, or of all of them.

    Latencies are in ms, from the time a request was due, of requests of the window that were answered without error.
    """

    offered: int  # requests due in the window
    answered: int  # answers without error that arrived in the window
    failures: int  # of those offered: answered with an error, or not before the end of the drain
    within_slo: int  # of those offered
    per_second: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    batch_items: float  # mean over requests of their batch's rows; 0 without receipts


@dataclass(frozen=True, slots=True)
class Outcome(Tally):
    """All tasks together, each task, and how busy the generator was."""

    tasks: dict[str, Tally] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    late_p99_ms: float = 0.0  # open loop: how long after they were due requests were sent
    cpu: float = 0.0  # share of a core that the generator used
    compute_ms: dict[str, float] = field(default_factory=dict)  # mean compute_us of the receipts, by batch_items
    # seconds from the start of the window at which each request was due, and those it took; infinite where it failed
    timeline: list[tuple[float, float]] = field(default_factory=list)
    began: float = 0.0  # the start of the window, in seconds since 1970
    ceiling: float = 0.0  # requests per second at which the generator would use its whole core

    @staticmethod
    def from_json(document: dict[str, Any]) -> Outcome:
        """What the generator's process has written."""
        tasks = {name: Tally(**tally) for name, tally in document.pop("tasks").items()}
        return Outcome(tasks=tasks, **document)


def closed(
    url: str,
    tasks: Sequence[str],
    texts: Sequence[str],
    *,
    clients: int = 64,
    seconds: float = 5.0,
    warmup: float = 1.0,
) -> Plan:
    """A closed loop of `clients` over all tasks in turn, with receipts."""
    return Plan(url, [Stream(tasks, texts, clients)], seconds, warmup, usage=True)
