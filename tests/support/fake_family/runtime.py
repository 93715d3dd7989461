"""The fake family's runtime has no model: the words of a request's text say what happens to it.

Every word of a row is a token. Some have an effect:

    refuse        `prepare` raises InvalidRequest
    crash         `prepare` raises RuntimeError
    fail          the outcome is Failed
    poison        every pass that it is in raises RuntimeError
    die           the pass raises SystemExit, which ends the engine thread
    steps=N       a sequence of N steps; after the first, a step is one token per row
    stream        with steps=N: step k of N yields the first k words of each row as a part of the reply
    undecodable   the decoder raises ValueError for a reply, or a part of one, that holds this word

Standard library and numpy only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex_backend.errors import ExecutionFailed, InvalidRequest
from fmplex_backend.types import (
    NO_WORK,
    Failed,
    Finished,
    KeepsNothing,
    Outcome,
    Pass,
    PassShape,
    Request,
    Running,
    Work,
)

PROFILE = ((1, 16), (8, 16), (8, 128), (32, 64))  # rows, tokens


class FakeClock:
    """A clock that stands still except in `sleep`."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds


@dataclass(frozen=True, slots=True, eq=False)
class FakeExtensions:
    """What a version directory holds; implements `types.Extensions`."""

    mark: float = 0.0
    adapter: str | None = None
    repeat: int = 1
    takes: str = "WORDS"
    repeats: bool = True

    @property
    def adapted(self) -> bool:
        """Whether an adapter is named."""
        return self.adapter is not None

    @property
    def outputs(self) -> Mapping[str, int | None]:
        """Those of `FakeRuntime.tensors`."""
        return {"COUNTS": 1, "MARK": 1}


@dataclass(slots=True)
class Prepared:
    """A request's rows, and how far it is: `Request.prepared`."""

    rows: list[list[str]]
    lengths: list[int]  # of the rows, in the step at hand
    steps: int
    streams: bool
    done: int = 0  # steps
    missing: int = 0  # rows of this step that have not been in a pass


class FakeRuntime(KeepsNothing):
    """Implements `types.Runtime`.

    Args:
        seconds: how long a pass takes.
        sleep: what lets that time pass; a FakeClock's, so that a test does not wait for it.
        rows_per_pass: a batch is cut into passes of so many rows; None: one pass.
        queues_passes: see `types.Runtime`; passes are run when they are asked for all the same.
    """

    def __init__(
        self,
        seconds: Callable[[PassShape], float] = lambda shape: 1e-3 + 1e-5 * shape.tokens,
        sleep: Callable[[float], None] = time.sleep,
        *,
        rows_per_pass: int | None = None,
        max_batch_tokens: int = 1 << 20,
        queues_passes: bool = False,
    ) -> None:
        self.queues_passes = queues_passes
        self.seconds, self.sleep = seconds, sleep
        self.rows_per_pass, self.max_batch_tokens = rows_per_pass, max_batch_tokens
        self.dtype = "float32"
        self.fingerprint: str | None = None
        self.attached: list[FakeExtensions] = []

    def load(self, version: Path) -> FakeExtensions:
        """Read `task.json`; raises TaskRefused."""
        from fmplex_backend.repository.config import load_task_config  # the engine's tests do without pydantic

        config = load_task_config(version / "task.json")
        return FakeExtensions(config.decoder.mark, repeat=config.encoder.repeat)

    def attach(self, extensions: FakeExtensions) -> None:
        """Remember them: `run` raises where the extensions of a request are not attached."""
        self.attached.append(extensions)

    def detach(self, extensions: FakeExtensions) -> None:
        """Forget them."""
        self.attached.remove(extensions)

    def prepare(self, request: Request) -> None:
        """Split the one input, [n, 1] of strings, into rows of words."""
        ((name, texts),) = request.inputs.items()
        cells = np.asarray(texts, dtype=np.object_).reshape(-1)
        rows = [(cell.decode() if isinstance(cell, bytes) else str(cell)).split() for cell in cells]
        words = {word for row in rows for word in row}
        if not rows or "refuse" in words:
            raise InvalidRequest("this text says so" if rows else f"{name} holds no items")
        if "crash" in words:
            raise RuntimeError("this text says so")
        steps = [int(word.removeprefix("steps=")) for word in words if word.startswith("steps=")]
        lengths = [max(1, len(row)) for row in rows]
        request.prepared = Prepared(rows, lengths, max(steps, default=1), "stream" in words)
        request.work = Work(len(rows), sum(lengths), sum(length * length for length in lengths))
        request.items, request.prepared_bytes = len(rows), 64 * sum(lengths)

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        """One pass, or several of `rows_per_pass` rows."""
        rows = []
        for request in batch:
            if request.extensions not in self.attached:
                raise RuntimeError(f"the extensions of {request.vfm.name!r} are not attached")
            prepared: Prepared = request.prepared
            prepared.missing = len(prepared.rows)
            rows += [(request, *row) for row in zip(prepared.rows, prepared.lengths, strict=True)]
        size = self.rows_per_pass or len(rows)
        for start in range(0, len(rows), size):
            yield self._pass(rows[start : start + size])

    def cut_short(self, request: Request) -> list[list[str]] | None:
        """The words so far, of a sequence that streams."""
        prepared: Prepared = request.prepared
        return [words[: prepared.done] for words in prepared.rows] if prepared.streams else None

    def decode(self, request: Request, value: list[list[str]]) -> Mapping[str, Any]:
        """Rows of words -> output tensors."""
        if any("undecodable" in words for words in value):
            raise ValueError("this text says so")
        return self.tensors(value, request.extensions)

    def tensors(self, rows: Sequence[Sequence[str]], extensions: FakeExtensions) -> dict[str, npt.NDArray[Any]]:
        """COUNTS [n, 1]: how many words a row has. MARK [n, 1]: that of the extensions it ran with."""
        return {
            "COUNTS": np.array([[extensions.repeat * len(words)] for words in rows], dtype=np.int64),
            "MARK": np.full((len(rows), 1), extensions.mark, dtype=np.float32),
        }

    def is_fatal(self, error: Exception) -> bool:
        """False: what `die` raises is not an Exception."""
        return False

    def profile(self) -> Iterator[tuple[PassShape, float]]:
        """The seconds of a few shapes, without a pass."""
        for rows, tokens in PROFILE:
            shape = PassShape(rows * tokens, tokens, 0)
            yield shape, self.seconds(shape)

    def _pass(self, rows: list[tuple[Request, list[str], int]]) -> Pass:
        longest = max(length for _, _, length in rows)
        adapters = {id(request.extensions) for request, _, _ in rows if request.extensions.adapter}
        shape = PassShape(len(rows) * longest, longest, len(adapters))
        self.sleep(self.seconds(shape))
        words = {word for _, row, _ in rows for word in row}
        if "poison" in words:
            raise RuntimeError("this text says so")
        if "die" in words:
            raise SystemExit("this text says so")
        work: dict[Request, Work] = {}
        outcomes: list[tuple[Request, Outcome]] = []
        for request, _, length in rows:
            work[request] = work.get(request, NO_WORK) + Work(1, length, length * length)
            request.prepared.missing -= 1
            if not request.prepared.missing:
                outcomes.append((request, _outcome(request.prepared)))
        return Pass(shape, list(work.items()), outcomes)


def _outcome(prepared: Prepared) -> Outcome:
    prepared.done += 1
    if any("fail" in words for words in prepared.rows):
        return Failed(ExecutionFailed("this text says so"))
    if prepared.done >= prepared.steps:
        return Finished(prepared.rows)
    items = len(prepared.rows)
    prepared.lengths = [1] * items
    part = [words[: prepared.done] for words in prepared.rows] if prepared.streams else None
    return Running(Work(items, items, items), part)
