"""The vocabulary of the backbone. Standard library only: the scheduler stands on it.

A `Request` of a `Vfm` goes boundary -> engine -> runtime -> reply. A `Runtime` executes a family's model: it prepares
requests off the engine thread and runs batches on it, pass by pass.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from fmplex_backend.errors import FmplexError

# -- what a request asks, and what becomes of it


class Work(NamedTuple):
    """What a request (or its part in a pass) asks of the backbone: the cost model's features."""

    items: int  # rows
    tokens: float  # sum of the rows' lengths
    area: float  # sum of the squares of the rows' lengths: attention

    def __add__(self, other: object) -> Work:
        if not isinstance(other, Work):
            return NotImplemented
        return Work(self.items + other.items, self.tokens + other.tokens, self.area + other.area)

    @classmethod
    def of_row(cls, length: int) -> Work:
        """Of one row of so many tokens."""
        return cls(1, length, length * length)

    def divided(self, sharers: int) -> Work:
        """The part of each of those who share a row: they all have the row, and each an equal part of its tokens."""
        return self if sharers == 1 else Work(self.items, self.tokens / sharers, self.area / sharers)


NO_WORK = Work(0, 0, 0)
# Rows by their keys: of a batch's rows with equal keys one runs, for all who asked (see families.shared_rows).
RowWork = Mapping[Hashable, Work]


class Usage(NamedTuple):
    """The receipt a task's client may ask for: INT64 [queue_us, compute_us, batch_items]."""

    queue_us: int
    compute_us: int
    batch_items: int


NO_USAGE = Usage(0, 0, 0)  # of an answer that no batch made


class Kept(NamedTuple):
    """What is in memory for a request that has not begun."""

    found: int  # tokens that it need not compute if it begins now
    fits: bool  # whether it can begin now, and nobody who has begun gives anything up
    displaces: bool  # whether it cannot, or takes what others would find


@dataclass(frozen=True, slots=True)
class Finished:
    """The request is answered; `Runtime.decode` turns `value` into output tensors."""

    value: Any


@dataclass(frozen=True, slots=True)
class Running:
    """The request needs another step of `next_work` and goes back to its vFM.

    `value`, where there is one, is a part of the reply (a token of a language model), sent to the client at once. Like
    the last one it has a row for each of the request's items.
    """

    next_work: Work
    value: Any = None
    next_rows: RowWork = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """The request gets this error and nothing else."""

    error: FmplexError


Outcome = Finished | Running | Failed


@dataclass(frozen=True, slots=True)
class Answer:
    """Output tensors by their names on the wire, and the receipt: a whole reply, or a part of one."""

    tensors: Mapping[str, Any]
    usage: Usage


Reply = Answer | Failed
MAX_QUEUE_BYTES = 256 << 20  # of a vFM's requests, by default
REPLY_THREADS = 4  # more bring nothing: the interpreter's lock is then the limit
Send = Callable[[Reply, bool], None]  # a reply or a part of one, and whether it is the last


@dataclass(slots=True, eq=False)
class Request:
    """One inference request of one vFM, and its account while it is here.

    Times are seconds of the engine's clock. `send` is called by `send_part` any number of times and by `resolve` once.
    """

    vfm: Vfm
    inputs: Mapping[str, Any]
    requested_outputs: tuple[str, ...]  # the tag left out
    arrived_at: float
    send: Send
    slo_s: float | None = None  # overrides the vFM's
    is_cancelled: Callable[[], bool] | None = None  # asks the server: a round trip
    parameters: Mapping[str, Any] = field(default_factory=dict)  # the client's wishes, and whatever else it sent
    input_bytes: int = 0
    lane: int = 0  # which of the reply threads answers it
    # set when it is prepared
    extensions: Any = None  # those of the vFM at that time: they run all its steps, and their decoder answers
    preparation_s: float = 0.0  # measured; 0 once its vFM is charged for them
    # set by Runtime.prepare
    work: Work = NO_WORK  # of the next step
    rows: RowWork = field(default_factory=dict)  # of the next step; empty: it shares no rows with others
    items: int = 0  # rows of all steps
    prepared: Any = None  # the runtime's own: rows as tokens, the state of a sequence
    prepared_bytes: int = 0  # about what `prepared` and the results kept until the reply take
    # set by the engine and the scheduler
    admission_number: int = 0
    deadline: float = math.inf
    charge: float = 0.0  # virtual seconds (estimate / weight) that its vFM's tag moved on when it was scheduled
    service_s: float = 0.0  # measured, of the step at hand; 0 once the tags are settled
    scheduled_at: float = 0.0
    passed_at: float | None = None  # its vFM's tag when a later one of its vFM first began before it
    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_items: int = 0
    _unanswered: list[bool] = field(default_factory=lambda: [True], init=False)

    @property
    def bytes(self) -> int:
        """What it takes of its vFM's `max_queue_bytes`."""
        return self.input_bytes + self.prepared_bytes

    @property
    def expires_at(self) -> float:
        """When its vFM's time limit is over."""
        return self.arrived_at + self.vfm.max_seconds

    @property
    def resolved(self) -> bool:
        """Whether its last reply has been sent."""
        return not self._unanswered

    def send_part(self, part: Answer) -> None:
        """Send a part of a reply that goes on; nothing once the request is resolved. Its reply thread."""
        if self._unanswered:
            self.send(part, False)

    def resolve(self, reply: Reply) -> bool:
        """Send the last (mostly the only) reply; False, and nothing sent, where one was sent before. Any thread."""
        try:
            self._unanswered.pop()  # atomic, so that of two threads only one answers
        except IndexError:
            return False
        self.send(reply, True)
        return True


ARRIVED_AT = attrgetter("arrived_at")  # a request's place among others by age

# -- what the backbone keeps per task

# Shares beyond these are no shares: a task of weight 1e-18 would move virtual time so far that the others' tags mean
# nothing beside it.
LEAST_WEIGHT, MOST_WEIGHT = 1e-3, 1e3


def weight_problem(weight: float) -> str:
    """What is wrong with a weight, or ""; the end of a sentence that names it."""
    if LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        return ""
    return f"not a number from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}"


class Counts:
    """Plain numbers, written by one thread only unless they are `SharedCounts`; the metrics thread reads them."""

    __slots__ = (
        "cache_hits",
        "cache_misses",
        "compute_s",
        "failures",
        "items",
        "misses",
        "queue_s",
        "requests",
        "shared",
        "tokens",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.items = 0
        self.shared = 0  # rows that ran once for several who asked
        self.tokens = 0.0  # of the rows; each who shares one has a part of it
        self.queue_s = 0.0
        self.compute_s = 0.0
        self.misses = 0
        self.cache_hits = 0
        self.cache_misses = 0
        self.failures: dict[str, int] = {}  # by reason

    def fail(self, reason: str) -> None:
        """Count a failure."""
        self.failures[reason] = self.failures.get(reason, 0) + 1


class SharedCounts(Counts):
    """Those of the threads that take requests in: they write by `add` and `fail` alone."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()

    def add(self, *, requests: int = 0, cache_hits: int = 0, cache_misses: int = 0) -> None:
        """Count so many more."""
        with self._lock:
            self.requests += requests
            self.cache_hits += cache_hits
            self.cache_misses += cache_misses

    def fail(self, reason: str) -> None:
        """Count a failure."""
        with self._lock:
            super().fail(reason)


_ACCOUNTS = itertools.count(1)


class Vfm:
    """A virtual foundation model: the queue, the extensions and the account of one task on a backbone.

    The engine thread owns all of it but `intake` and `replied` and what is said to be another's.
    """

    def __init__(
        self,
        vfm: int,
        name: str,
        *,
        weight: float = 1.0,
        slo: float | None = None,
        max_queue: int = 1024,
        max_queue_bytes: int = MAX_QUEUE_BYTES,
        max_seconds: float = math.inf,
        spare: bool = False,
    ) -> None:
        self.id = vfm
        self.name = name
        self.account = next(_ACCOUNTS)  # its number: no other vFM of this process has it
        self.set_weight(weight)
        self.slo = slo  # seconds
        self.max_queue = max_queue
        self.max_queue_bytes = max_queue_bytes
        self.max_seconds = max_seconds  # from a request's arrival to its last reply
        # The most of its requests that are between two of their steps, and the part of what is kept in memory for such
        # that may be for its own, where its family keeps anything; None: no limit.
        self.max_running: int | None = None
        self.max_kv_share: float | None = None
        self.held_back = False  # set by `Runtime.has_room`: its head waits for such a limit, not for others
        self.spare = spare  # its requests are copies, which run in time that nobody else wants
        # under the lock of `Preparation`
        self.preparing: deque[Request] = deque()  # wait to be prepared
        self.small_s = math.inf  # seconds of preparing a small request (exponential moving average)
        self.taken_bytes = 0  # of all requests that were taken in
        self.prepared = Counts()
        # the engine's
        self.given_bytes = 0  # of those of them that have their outcome
        self.arriving: deque[Request] = deque()  # posted to the engine, not received by it yet
        self.queue: deque[Request] = deque()
        self.start = 0.0  # virtual seconds: start tag of the head request, or finish tag of the last one scheduled
        self.entry = 0  # the id of its valid entry in the scheduler's heap; 0: none, nothing is queued
        self.adapted = False  # an adapter of its own takes part in a pass
        self.service = 0.0  # seconds of backbone time received
        self.preparation_s = 0.0  # seconds of preparing its requests that it was charged for
        self.waiting_preparation_s = 0.0  # seconds of preparing the requests in its queue: not charged yet
        self.extensions: Any = None
        self.refused: FmplexError | None = None  # its extensions could not be attached
        self.engine = Counts()
        self.intake = SharedCounts()  # its requests are those that came with its tag, a group's left out
        self.replied = tuple(Counts() for _ in range(REPLY_THREADS))  # of each reply thread

    def set_weight(self, weight: float) -> None:
        """Set the share; raises ValueError beyond the limits."""
        if problem := weight_problem(weight):
            raise ValueError(f"the weight of {self.name!r} is {weight}, {problem}")
        self.weight = weight

    @property
    def depth(self) -> int:
        """Requests waiting, those on their way to the engine included. Any thread may ask.

        One that is just being prepared, or moved from `arriving` to `queue`, may be left out, but none is counted
        twice: a queue that is not full never appears to be.
        """
        return len(self.queue) + len(self.arriving) + len(self.preparing)

    @property
    def queue_bytes(self) -> int:
        """Bytes of the requests that have no outcome yet. Any thread may ask."""
        return self.taken_bytes - self.given_bytes

    def failures(self) -> dict[str, int]:
        """Requests that failed, by reason. Any thread may ask."""
        total: dict[str, int] = {}
        for part in (self.engine, self.intake, self.prepared, *self.replied):
            for reason, count in list(part.failures.items()):
                total[reason] = total.get(reason, 0) + count
        return total

    def __repr__(self) -> str:
        return f"Vfm({self.id}, {self.name!r}, weight={self.weight:g}, queued={len(self.queue)})"


# -- a pass over the backbone


@dataclass(frozen=True, slots=True)
class PassShape:
    """A pass over the backbone as the cost model sees it, padding included."""

    tokens: int  # rows * longest
    longest: int  # tokens * longest is the work of attention; of rows of several lengths without padding the mean
    adapter_groups: int


Predict = Callable[[PassShape], float]  # seconds a pass of a shape will take


class Sharing(NamedTuple):
    """The rows of a pass that ran once for several who asked."""

    rows: Mapping[Request, int]  # how many of each request's
    saved: int  # rows that did not run, since one with an equal key did


NOTHING_SHARED = Sharing({}, 0)


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass did: who took part with how much work, and what came out."""

    shape: PassShape | None  # None where it broke off: nothing to learn from
    portions: Sequence[tuple[Request, Work]]  # the work of a row that several share is divided among them
    outcomes: Sequence[tuple[Request, Outcome]]
    worked: float | None = None  # seconds at work on it, where the runtime can tell them from the pass's
    sharing: Sharing = NOTHING_SHARED


# -- what a family implements


class Extensions(Protocol):
    """A task's version, read and checked: its encoder, adapter and decoder, ready to be attached."""

    @property
    def takes(self) -> str:
        """The input tensor that its encoder reads."""

    @property
    def adapted(self) -> bool:
        """Whether an adapter of its own takes part in a pass."""

    @property
    def repeats(self) -> bool:
        """Whether it gives equal requests equal answers, each in one part: only such answers can be kept."""

    @property
    def outputs(self) -> Mapping[str, int | None]:
        """Every tensor it answers with -> its last dim, None where that varies."""


RESIDENT = "fmplex_adapter_resident"  # the metric of what a backbone's `adapter_memory` has room for, by vFM


class Metric(NamedTuple):
    """A metric on the server's port."""

    kind: Literal["counter", "gauge"]
    description: str


class Reading(NamedTuple):
    """The present value of one, with labels beside those of the backbone and the vFM."""

    metric: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


Post = Callable[[Callable[[], None]], None]  # lets the engine call a function between two batches; any thread


class Runtime(Protocol):
    """A family on an executor. What says nothing else runs on the engine thread.

    One that keeps nothing between two steps, and has no metrics of its own, inherits `KeepsNothing`.
    """

    max_batch_tokens: int
    dtype: str  # of the weights in memory, as a backbone's parameter `dtype` names it
    fingerprint: str | None  # of the model's files, see `fmplex_backend.fingerprint`; None where it has none
    # Whether `run` queues a batch's passes on a device and returns, so that the next batch can be queued behind it;
    # else each pass is run when it is asked for.
    queues_passes: bool
    # Whether preparing takes time by a request's bytes, so that small ones may be prepared where they come in; False
    # where few bytes may unfold into much, as those of compressed files do.
    quick_when_small: bool
    # Seconds of service by which a vFM may be ahead of its turn when a request of it begins that finds more in memory
    # than the one whose turn it is; 0: each waits for its turn.
    locality_s: float
    metrics: Mapping[str, Metric]  # those of its own, by name
    post: Post  # the engine sets it

    def prepare(self, request: Request) -> None:
        """Validate and tokenise for `request.extensions`; raises InvalidRequest. Any thread.

        Sets `work`, `items`, `prepared` and `prepared_bytes`, and `rows` where its rows may be shared. A request of
        more than `max_batch_tokens` or Bmax rows is cut into steps that are not: others' requests run between them.
        """

    def load(self, version: Path) -> Extensions:
        """Read and check a version directory's extensions; raises TaskRefused. Not the engine thread."""

    def attach(self, extensions: Any) -> None:
        """Make loaded extensions ready to run, between two batches."""

    def detach(self, extensions: Any) -> None:
        """Free what `attach` took; nothing that uses them is queued any more."""

    def has_room(self, request: Request) -> bool:
        """Whether a request's next step fits into memory, beside those asked about before since the last `run`.

        Asked in the order in which the next batch is put together: those with True are in it. Others may lose what is
        kept for them between two steps: their next step begins anew, and their `work` says so. Of the requests at the
        heads of their vFMs' queues, one has room at least, or a function is posted to the engine soon: then it asks
        again. True where nothing is kept between steps.
        """

    def kept(self, request: Request) -> Kept | None:
        """What is in memory for a queued request; None for one that has begun and keeps what it has computed.

        Of a vFM's queue, those that have begun stand before the others. Asked only where `locality_s` is not 0.
        """

    def forget(self, request: Request) -> None:
        """Free what is kept for a request that has its outcome, whether it ran or not."""

    def cut_short(self, request: Request) -> Any:
        """The value of a `Finished` with what a request has after its last step; None where that is no answer.

        Asked between two of its steps, where its time is over.
        """

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        """Run a batch; yields after every pass, so that replies need not wait for the rest. See `queues_passes`."""

    def decode(self, request: Request, value: Any) -> Mapping[str, Any]:
        """Output tensors of a `Finished`'s or a `Running`'s value. Reply threads, several requests at a time."""

    def is_fatal(self, error: Exception) -> bool:
        """Whether nothing can run after this error of a pass: a device that is gone. The process then ends."""

    def profile(self) -> Iterator[tuple[PassShape, float]]:
        """A few measured passes at load, of few and of many rows: the cost model starts from them."""

    def readings(self, vfm: Vfm | None) -> Iterable[Reading]:
        """Values of `metrics`: those of a vFM, or of the backbone. The metrics thread."""


class KeepsNothing:
    """What a runtime says that keeps nothing between two steps, and has no metrics of its own."""

    quick_when_small: bool = True
    locality_s: float = 0.0
    metrics: Mapping[str, Metric] = MappingProxyType({})
    post: Post

    def has_room(self, request: Request) -> bool:
        """Always."""
        return True

    def kept(self, request: Request) -> Kept | None:
        """Nothing."""
        return None

    def forget(self, request: Request) -> None:
        """There is nothing to free."""

    def cut_short(self, request: Request) -> Any:
        """An answer is whole, or none."""
        return None

    def readings(self, vfm: Vfm | None) -> Iterable[Reading]:
        """None."""
        return ()
