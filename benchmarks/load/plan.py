"""What to send, and what came back: plain data that crosses to the generator's process as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests of one kind: request k goes to task k with text k, both in turn.

    `times` makes it an open loop: seconds from the start of the warm-up. Without, `clients` make a closed one.
    """

    tasks: Sequence[str]
    texts: Sequence[str]
    clients: int = 0
    times: Sequence[float] | None = None
    slo_ms: float = 0.0  # for counting who kept it; 0: none
    ask_slo: bool = False  # say it in each request, too

    @property
    def name(self) -> str:
        """What its outcome is filed under."""
        return ",".join(self.tasks) if len(self.tasks) < 4 else f"{self.tasks[0]}..{self.tasks[-1]}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Streams that run together for `warmup` seconds that are not counted and `seconds` that are.

    `usage` asks for the receipts too, which only the tasks of a backbone can give.
    """

    url: str
    streams: Sequence[Stream]
    seconds: float = 5.0
    warmup: float = 1.0
    usage: bool = False
    drain: float = 60.0  # how long answers are waited for after the end

    def to_json(self) -> dict[str, Any]:
        """For the other process."""
        return asdict(self)

    @staticmethod
    def from_json(document: dict[str, Any]) -> Plan:
        """In the other process."""
        streams = [Stream(**stream) for stream in document.pop("streams")]
        return Plan(streams=streams, **document)


@dataclass(frozen=True, slots=True)
class Tally:
    """What came back of a task, or of all of them. Latencies are of good answers, in ms, from the intended sending."""

    offered: int  # meant to be sent in the counted time
    answered: int  # good answers that arrived in the counted time
    failures: int  # of those offered: refused, broken, or not answered when the drain ended
    within_slo: int  # of those offered
    per_second: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    batch_items: float  # mean over requests; 0 without receipts


@dataclass(frozen=True, slots=True)
class Outcome(Tally):
    """All tasks together, and each; and how the generator itself fared."""

    tasks: dict[str, Tally] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    late_p99_ms: float = 0.0  # sent after the time it was meant for, open loop
    cpu: float = 0.0  # share of a core that the generator took
    compute_ms: dict[str, float] = field(default_factory=dict)  # mean time in the backbone by batch size, of receipts
    ceiling: float = 0.0  # requests per second its core would allow at this cost per request

    @property
    def requests(self) -> int:
        """Good answers in the counted time."""
        return self.answered

    @property
    def by_task(self) -> dict[str, int]:
        """Good answers in the counted time, by task."""
        return {task: tally.answered for task, tally in self.tasks.items()}

    @staticmethod
    def from_json(document: dict[str, Any]) -> Outcome:
        """Back from the other process."""
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
    """The simple load: so many clients over all tasks in turn."""
    return Plan(url, [Stream(tasks, texts, clients)], seconds, warmup, usage=True)
