"""A family with no model, for tests: what is to happen to a request stands in its text.

Every word of a row of TEXT is a token. Some mean something besides:

    refuse        `prepare` raises InvalidRequest
    crash         `prepare` raises
    fail          the request comes back as Failed
    poison        the pass raises, for everybody in it
    die           the pass ends the engine's thread
    steps=N       a sequence of N steps, each after the first of one token per row
    undecodable   the decoder raises

`task.json` may hold `mark` (a number that comes back in the answer) and `adapter` (any name).
Standard library and numpy only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fmplex_backend.errors import ExecutionFailed, InvalidRequest, TaskRefused
from fmplex_backend.types import NO_WORK, Failed, Finished, Outcome, Pass, PassShape, Request, Running, Work

PROFILE = ((1, 16), (8, 16), (8, 128), (32, 64))  # rows, tokens


class FakeClock:
    """Seconds that pass only when they are told to."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class FakeDecoder:
    """EMBEDDING [n, 2]: how many tokens a row has, and the mark of the extensions it ran with."""

    gives = ("EMBEDDING",)

    def decode(self, rows: Sequence[Sequence[str]], mark: float) -> dict[str, npt.NDArray[np.float32]]:
        """Output tensors by name, batch first."""
        if any("undecodable" in words for words in rows):
            raise ValueError("this text says so")
        return {"EMBEDDING": np.array([[len(words), mark] for words in rows], dtype=np.float32)}

    def sizes(self) -> dict[str, int]:
        """The last dim of each output."""
        return {"EMBEDDING": 2}


@dataclass(frozen=True, slots=True, eq=False)
class FakeExtensions:
    """What a version directory holds."""

    mark: float = 0.0
    adapter: str | None = None
    takes: str = "TEXT"
    decoder: FakeDecoder = field(default_factory=FakeDecoder)


@dataclass(slots=True)
class _Payload:
    rows: list[list[str]]
    lengths: list[int]  # of the rows, in the step at hand
    steps: int
    left: int = 0  # rows of this step that have not been in a pass


class FakeRuntime:
    """Implements `types.Runtime`.

    Args:
        seconds: how long a pass takes.
        sleep: what lets that time pass; a FakeClock's, so that a test does not wait for it.
        rows_per_pass: a batch is cut into passes of so many rows; None: one pass.
    """

    def __init__(
        self,
        seconds: Callable[[PassShape], float] = lambda shape: 1e-3 + 1e-5 * shape.tokens,
        sleep: Callable[[float], None] = time.sleep,
        *,
        rows_per_pass: int | None = None,
        max_batch_tokens: int = 1 << 20,
    ) -> None:
        self.seconds, self.sleep = seconds, sleep
        self.rows_per_pass, self.max_batch_tokens = rows_per_pass, max_batch_tokens
        self.attached: list[FakeExtensions] = []

    def load(self, version: Path) -> FakeExtensions:
        """Read `task.json`; raises TaskRefused."""
        file = version / "task.json"
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TaskRefused(file, "(whole file)", f"not readable as JSON: {error}", "Write it again") from None
        return FakeExtensions(float(document.get("mark", 0)), document.get("adapter"))

    def attach(self, extensions: FakeExtensions) -> None:
        """Remember them: only what is attached may run."""
        self.attached.append(extensions)

    def detach(self, extensions: FakeExtensions) -> None:
        """Forget them."""
        self.attached.remove(extensions)

    def prepare(self, request: Request) -> None:
        """Split the rows into words."""
        cells = np.asarray(request.inputs["TEXT"], dtype=np.object_).reshape(-1)
        rows = [(cell.decode() if isinstance(cell, bytes) else str(cell)).split() for cell in cells]
        words = {word for row in rows for word in row}
        if not rows or "refuse" in words:
            raise InvalidRequest("this text says so" if rows else "TEXT holds no items")
        if "crash" in words:
            raise RuntimeError("this text says so")
        steps = [int(word.removeprefix("steps=")) for word in words if word.startswith("steps=")]
        lengths = [max(1, len(row)) for row in rows]
        request.payload = _Payload(rows, lengths, max(steps, default=1))
        request.work = Work(len(rows), sum(lengths), sum(length * length for length in lengths))

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        """A pass, or several of `rows_per_pass` each."""
        rows = []
        for request in batch:
            if request.extensions not in self.attached:
                raise RuntimeError(f"the extensions of {request.vfm.name!r} are not attached")
            payload: _Payload = request.payload
            payload.left = len(payload.rows)
            rows += [(request, *row) for row in zip(payload.rows, payload.lengths, strict=True)]
        size = self.rows_per_pass or len(rows)
        for start in range(0, len(rows), size):
            yield self._pass(rows[start : start + size])

    def decode(self, request: Request, value: list[list[str]]) -> Mapping[str, Any]:
        """The decoder's tensors."""
        extensions: FakeExtensions = request.extensions
        return extensions.decoder.decode(value, extensions.mark)

    def is_fatal(self, error: Exception) -> bool:
        """Never: `die` raises what is no Exception."""
        return False

    def profile(self) -> Iterator[tuple[PassShape, float]]:
        """As `seconds` says."""
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
            request.payload.left -= 1
            if not request.payload.left:
                outcomes.append((request, _outcome(request.payload)))
        return Pass(shape, list(work.items()), outcomes)


def _outcome(payload: _Payload) -> Outcome:
    payload.steps -= 1
    if any("fail" in words for words in payload.rows):
        return Failed(ExecutionFailed("this text says so"))
    if payload.steps > 0:
        items = len(payload.rows)
        payload.lengths = [1] * items
        return Running(Work(items, items, items))
    return Finished(payload.rows)
