"""What a backbone tells of itself and of its tasks: the JSON of its output STATUS, for clients and for probes."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from pydantic import BaseModel, ConfigDict

State = Literal["serving", "serving former version", "refused", "leaving", "not served"]


class Report(BaseModel):
    """Base of all; a field that a newer backbone adds is no error to an older client."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class CandidateStatus(Report):
    """A version that is tried beside the one that a task serves; refused where `error` says why.

    Its counts are since it came, and those of the served version since then stand beside them. Of a canary `requests`
    are what it answered. Of a shadow they are the copies that were compared, `agreed` of `compared` rows being the
    same, and `dropped` the requests that were not copied, since there was no spare time.
    """

    role: Literal["canary", "shadow"]
    version: int | None
    error: str = ""
    share: float | None = None  # of the requests, of a canary
    queued: int = 0
    running: int = 0  # as a task's
    requests: int = 0
    items: int = 0  # rows of these
    tokens: float = 0.0  # of a canary's rows
    failures: dict[str, int] = {}  # by reason
    misses: int = 0
    cache_hits: int = 0  # as a task's, of a canary
    cache_misses: int = 0
    queue_s: float = 0.0  # seconds that its requests waited, summed
    compute_s: float = 0.0  # seconds from being scheduled to being finished, summed over its requests
    service_s: float = 0.0  # seconds of the backbone's time, charged to the task beside its own
    preparation_s: float = 0.0
    account: int | None = None  # as a task's
    compared: int = 0
    agreed: int = 0
    dropped: int = 0
    served_requests: int = 0
    served_failures: int = 0
    served_queue_s: float = 0.0
    served_compute_s: float = 0.0

    @property
    def agreement(self) -> float | None:
        """The part of a shadow's compared rows that agree; None where there are none yet."""
        return self.agreed / self.compared if self.compared else None


# Of a task and of its canary, what adds up to what is asked of both.
ADDED_UP = (
    "queued",
    "running",
    "requests",
    "items",
    "tokens",
    "misses",
    "cache_hits",
    "cache_misses",
    "queue_s",
    "service_s",
    "preparation_s",
)


class TaskStatus(Report):
    """One task, or one group of tasks, as its backbone serves it.

    `state` is "refused" where its requests are answered with `error`; "serving former version" where its newest version
    is refused for `error`; "leaving" where it was removed or moved a moment ago; "not served" where the server does
    not send it any requests, which clients find out. Counts are since the task was attached. A task that serves has an
    `error`, too, where it is `contested`, and a group that serves where some of its tasks cannot be asked. A group's
    requests are also its tasks'.
    """

    name: str
    backbone: str
    tag: int | None = None  # None where its entry does not say it
    state: State
    version: int | None = None
    weight: float | None = None
    slo_ms: float | None = None
    max_queue: int | None = None
    max_queue_bytes: int | None = None
    max_seconds: float | None = None
    max_running: int | None = None
    max_kv_share: float | None = None
    queued: int = 0  # requests that wait
    running: int = 0  # requests in the batch at hand; 0 from an older backbone
    queue_bytes: int = 0  # of the requests that are not answered yet
    requests: int = 0  # that went through the backbone
    items: int = 0  # rows of these
    tokens: float = 0.0  # of these rows; those of a row that ran once for several tasks are divided among them
    failures: dict[str, int] = {}  # by reason
    misses: int = 0  # requests that finished after their latency objective
    cache_hits: int = 0  # requests that had a kept answer: no part of `requests`, and charged nothing
    cache_misses: int = 0  # requests of a task with `cache` that had none
    queue_s: float = 0.0  # seconds that its requests waited, summed
    service_s: float = 0.0  # seconds of the backbone's time charged to it
    preparation_s: float = 0.0  # seconds of preparing its requests, charged beside that
    ahead_s: float = 0.0  # seconds of the backbone's time by which it has had more than its share, where others wait
    account: int | None = None  # what these counts belong to: another number in this process is another account
    adapter_in_memory: bool | None = None  # where its backbone has `adapter_memory`: False where it is in its file
    error: str = ""
    # Whether requests of another task may come with its tag, so that none is answered meanwhile; `error` says whose.
    contested: bool = False
    attached: bool | None = None  # whether the engine has taken it over from the loader; None from an older backbone
    members: tuple[str, ...] = ()  # of a group: its tasks
    candidates: tuple[CandidateStatus, ...] = ()  # tried beside its version; what is theirs is not in the counts above

    @property
    def healthy(self) -> bool:
        """Whether it answers, with the version that its entry asks for."""
        return self.state == "serving"

    @property
    def with_canary(self) -> TaskStatus:
        """What clients asked of it in all: what its canary counted is in its own counts."""
        canary = self._canary
        if canary is None:
            return self
        sums = {name: getattr(self, name) + getattr(canary, name) for name in ADDED_UP}
        failures = dict(Counter(self.failures) + Counter(canary.failures))
        others = tuple(each for each in self.candidates if each is not canary)
        return self.model_copy(update={**sums, "failures": failures, "candidates": others})

    def with_canary_of(self, later: TaskStatus) -> TaskStatus:
        """`with_canary`, or without it where it has ended before a later reading, which cannot tell of it any more.

        What was counted between both readings is the difference of this one and `later.with_canary`.
        """
        canary, other = self._canary, later._canary
        if canary is not None and (other is None or other.account != canary.account):
            return self
        return self.with_canary

    @property
    def _canary(self) -> CandidateStatus | None:
        own = (each for each in self.candidates if each.role == "canary" and each.account is not None)
        return next(own, None)


class Cost(Report):
    """What a pass takes, as the backbone's cost model is fitted now: seconds; see scheduling/cost.py."""

    fixed: float
    per_token: float
    per_area: float
    per_group: float
    once: float  # seconds of a batch that do not depend on its rows, without adapters: its passes, and what is between


class ClosedAccount(Report):
    """What a task was charged that the backbone serves no more, or serves anew under another account."""

    account: int
    task: str
    requests: int
    items: int
    service_s: float
    preparation_s: float


class BackboneStatus(Report):
    """A backbone and its tasks.

    A probe can tell by it that the engine stands still: requests are `queued` or `running`, and the last batch ended
    long ago, `last_batch_s` seconds (None before the first).
    """

    name: str
    family: str
    model: str
    dtype: str  # of the weights in memory, also where the config leaves the choice
    scheduler: str
    slots: int
    max_batch: int = 0  # rows of a batch at most; 0 from an older backbone
    hardware: str = ""  # that it runs on
    cost: Cost | None = None
    threads: int = 0  # of a pass on a CPU; 0: all cores
    cores: int = 0  # that its process may use; 0 from an older backbone
    memory: int = 0  # bytes of its process's main memory; 0: not known
    machine_memory: int = 0  # bytes of the machine's main memory
    fmplex: str  # its version
    pid: int = 0  # of its process, in the server's container; 0 from an older backbone
    started_at: float = 0.0  # seconds since 1970 by the server's clock; with `pid` it tells processes apart
    up_s: float
    batches: int
    items: int = 0  # rows of these
    busy_s: float = 0.0  # seconds that batches ran which have ended; what all tasks, also former ones, are charged
    last_batch_s: float | None
    queued: int  # requests of all tasks that wait, also of those that have left and whose last ones are still to run
    running: int  # requests of the batch at hand
    running_s: float = 0.0  # for how long it has run; its seconds are no part of `busy_s` yet
    failures: dict[str, int]  # by reason, of requests that name no task
    kept_answers: int = 0  # of tasks with `cache`; also of former versions, until others need their room
    kept_bytes: int = 0  # that these take
    tasks: tuple[TaskStatus, ...]
    closed: tuple[ClosedAccount, ...] = ()  # the latest ones
    # Of a task that was to be read before it is bound here: why it would be refused, "" where it would not; else None.
    prefetched: str | None = None
    reserved: int | None = None  # its tag, where that is kept here for it: `reserved_s` seconds from now, if need be
    reserved_s: float = 0.0

    @property
    def tag_holders(self) -> dict[int, str]:
        """By tag, the task or group that has it: one that is refused since another has its tag is told of without it.

        Names are as `printable` makes them.
        """
        return {task.tag: task.name for task in self.tasks if task.tag is not None and task.state != "leaving"}
