"""The vocabulary of the backbone. Standard library only: the scheduler stands on it.

A `Request` goes Triton -> engine -> runtime -> reply. A `Runtime` is a family: it prepares requests off the
engine thread and runs batches on it, pass by pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from fmplex_backend.errors import FmplexError
    from fmplex_backend.vfm import Vfm


class Work(NamedTuple):
    """What a request (or its part in a pass) asks of the backbone: the cost model's features."""

    items: int  # rows
    tokens: int  # sum of the rows' lengths
    area: int  # sum of the squares of the rows' lengths: attention

    def __add__(self, other: object) -> Work:
        if not isinstance(other, Work):
            return NotImplemented
        return Work(self.items + other.items, self.tokens + other.tokens, self.area + other.area)


NO_WORK = Work(0, 0, 0)


class Usage(NamedTuple):
    """The receipt a task's client may ask for: INT64 [queue_us, compute_us, batch_items]."""

    queue_us: int
    compute_us: int
    batch_items: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The request is answered; `value` is what the decoder takes."""

    value: Any


@dataclass(frozen=True, slots=True)
class Running:
    """The request needs another step of this much work: it goes back to its vFM (language models)."""

    next_work: Work


@dataclass(frozen=True, slots=True)
class Failed:
    """The request gets this error and nothing else."""

    error: FmplexError


Outcome = Finished | Running | Failed


@dataclass(frozen=True, slots=True)
class Answer:
    """Output tensors by their names on the wire, and the receipt."""

    tensors: Mapping[str, Any]
    usage: Usage


Reply = Answer | Failed


@dataclass(slots=True, eq=False)
class Request:
    """One inference request of one vFM, and its account while it is here.

    Times are seconds of the engine's clock. `reply` is called exactly once, by `resolve`.
    """

    vfm: Vfm
    inputs: Mapping[str, Any]
    outputs: tuple[str, ...]  # requested, tag left out
    arrival: float
    reply: Callable[[Request, Reply], None]
    slo: float | None = None  # seconds; overrides the vFM's
    handle: Any = None  # the boundary's own
    # set by Runtime.prepare
    work: Work = NO_WORK
    payload: Any = None
    # set by the engine and the scheduler
    order: int = 0  # of admission
    deadline: float = math.inf
    extensions: Any = None  # those of the vFM when it was taken; its decoder answers
    charge: float = 0.0  # virtual seconds (estimate / weight) that its vFM's tag moved on when it was taken
    share: float = 0.0  # measured service
    taken_at: float = 0.0  # seconds of the engine's clock; the receipt's times are seconds too
    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_items: int = 0
    _unanswered: list[bool] = field(default_factory=lambda: [True], init=False)

    @property
    def resolved(self) -> bool:
        """Whether it has been answered."""
        return not self._unanswered

    def resolve(self, reply: Reply) -> bool:
        """Answer; False (and nothing sent) where it was answered before. Any thread."""
        try:
            self._unanswered.pop()  # at once, so that of two threads one answers
        except IndexError:
            return False
        self.reply(self, reply)
        return True


@dataclass(frozen=True, slots=True)
class PassShape:
    """A pass over the backbone as the cost model sees it, padding included."""

    tokens: int  # rows * longest
    longest: int
    adapter_groups: int


@dataclass(frozen=True, slots=True)
class Pass:
    """What one pass did: who took part with how much work, and what came out."""

    shape: PassShape | None  # None where it broke off: nothing to learn from
    portions: Sequence[tuple[Request, Work]]
    outcomes: Sequence[tuple[Request, Outcome]]
    worked: float | None = None  # seconds at work on it, where the runtime can tell them from the pass's


class Runtime(Protocol):
    """A family on an executor. What says nothing else runs on the engine thread."""

    max_batch_tokens: int

    def prepare(self, request: Request) -> None:
        """Validate and tokenise: sets `work` and `payload`; raises InvalidRequest. Any thread."""

    def load(self, version: Path) -> Any:
        """Read and check a version directory's extensions; raises TaskRefused. Not the engine thread."""

    def attach(self, extensions: Any) -> None:
        """Make loaded extensions ready to run, between two batches."""

    def detach(self, extensions: Any) -> None:
        """Free what `attach` took; nothing that uses them is queued any more."""

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        """Run a batch; yields after every pass, so that replies need not wait for the rest."""

    def decode(self, request: Request, value: Any) -> Mapping[str, Any]:
        """Output tensors of a finished request. The reply thread."""

    def is_fatal(self, error: Exception) -> bool:
        """Whether nothing can run after this error of a pass: a device that is gone. The process then ends."""

    def profile(self) -> Iterator[tuple[PassShape, float]]:
        """A few measured passes at load: seeds of the cost model."""
