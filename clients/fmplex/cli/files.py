"""`fmplex predict --file`: the rows of a file through a task, into another file or onto stdout."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fmplex.cli.answers import result_line
from fmplex.cli.meter import Meter
from fmplex.client.aio import AsyncClient
from fmplex.client.bulk import Entry, answered
from fmplex.client.results import above, fields
from fmplex.client.wire import Interface
from fmplex.data.items import columns_for, item_of
from fmplex.data.sink import Sink, json_lines, open_sink
from fmplex.data.stream import STDIN, Source, open_source
from fmplex_backend.errors import FmplexError, ServerProblem, TaskProblem
from fmplex_backend.families import default_columns, input_named

KEEP_S = 1.0  # between two notes of how far the output is
ERRORS_SAID = 20
ERROR = "error"  # the column of what is wrong with a row


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be done with a file's rows."""

    task: str
    file: Path
    out: Path | None
    kind: str | None = None
    column: str = ""
    top: int | None = 0  # the scores to keep beside a label's; None: all
    threshold: float | None = None
    as_json: bool = False
    overwrite: bool = False

    def identity(self, columns: list[str]) -> dict[str, Any]:
        """What makes two runs the same: the input's file, what is read of it, and what is written."""
        stat = None if self.file == STDIN else self.file.stat()
        size, changed = (None, None) if stat is None else (stat.st_size, stat.st_mtime_ns)
        return {"task": self.task, "input": str(self.file.absolute()), "size of the input": size} | {
            "date of the input": changed,
            "--column": columns,
            "--top": self.top,
            "--threshold": self.threshold,
        }


@dataclass
class Done:
    """How many rows are answered, or named as wrong."""

    rows: int = 0
    failed: int = 0
    said: int = 0  # of those that failed in this run


def run(job: Job, server: str, timeout: float, clock: Callable[[], float] = time.monotonic) -> Done:
    """Raises FmplexError where it had to stop: what was written stays, and a second run goes on there."""
    try:
        return asyncio.run(_run(job, server, timeout, clock))
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # of `| head`
            raise
        raise TaskProblem(f"{error.filename or job.out or job.file}: {error.strerror or error}") from None


async def _run(job: Job, server: str, timeout: float, clock: Callable[[], float]) -> Done:
    with ExitStack() as stack:
        named = [job.column] if job.column else default_columns()
        source = stack.enter_context(open_source(job.file, job.kind, named))
        async with AsyncClient(server, timeout=timeout) as client:
            interface = await client.interface(job.task)
            reads = _input(interface)
            columns = columns_for(source, reads, job.column, interface.size)
            table = Table(job, source, await _probe(client, job, reads.probe(interface.size)))
            output = Output(job, source, table, stack, columns, clock, reads)
            folder = None if job.file == STDIN else job.file.parent
            entries = islice(_entries(source, columns, reads, folder), output.done.rows, None)
            try:
                async for batch in answered(client, job.task, entries, interface.max_batch_size):
                    output.take(batch)
            except ServerProblem as error:
                output.keep()
                raise _stopped(error, job, output.done) from None
            except BaseException:
                output.keep()
                raise
            output.finish()
    return output.done


def _input(interface: Interface) -> Any:
    reads = input_named(interface.takes)
    if reads is None:
        raise TaskProblem(f"the task reads {interface.takes}, which no family here has. Send it with a Triton client")
    return reads


async def _probe(client: AsyncClient, job: Job, item: Any) -> list[str]:
    """The columns of a result. A task that cannot be asked, or not so, is told before anything is written."""
    (found,) = await client.predict(job.task, [item])
    return list(fields(found if job.threshold is None else above(found, job.threshold), job.top))


def _entries(source: Source, columns: list[str], reads: Any, folder: Path | None) -> Iterator[Entry]:
    for row in source.rows:
        entry = Entry(row, error=row.error)
        if not row.error:
            try:
                entry.item = item_of(row.cells, columns, reads, folder)
            except ValueError as error:
                entry.error = str(error)
        yield entry


class Output:
    """Where answers go: a file, or stdout; errors and the progress go to stderr."""

    def __init__(
        self,
        job: Job,
        source: Source,
        table: Table,
        stack: ExitStack,
        columns: list[str],
        clock: Callable[[], float],
        reads: Any,
    ) -> None:
        self._reads = reads
        self._job, self._source, self._table, self._clock = job, source, table, clock
        self._sink: Sink | None = None
        self.done = Done()
        if job.out is not None:
            self._sink = open_sink(
                job.out, job.identity(columns), table.columns, schema=source.schema, overwrite=job.overwrite
            )
            stack.enter_context(self._sink)
            self.done = Done(self._sink.progress.rows, self._sink.progress.failed)
            if self.done.rows:
                print(f"fmplex: going on after {self.done.rows:,} rows of {job.out}", file=sys.stderr)
        self._meter = Meter(job.task, source.total, hidden=job.out is None and sys.stdout.isatty())
        stack.enter_context(self._meter.shown())
        self._kept = clock()

    def take(self, batch: list[Entry]) -> None:
        """The next rows, each with a result or an error."""
        job, failed = self._job, [entry for entry in batch if entry.error]
        for entry in batch:
            if entry.result is not None and job.threshold is not None:
                entry.result = above(entry.result, job.threshold)
        if self._sink is not None:
            self._sink.write(self._table.rows(batch), len(failed))
        elif job.as_json:
            print(json_lines(self._table.rows(batch)), end="", flush=True)
        else:
            print("\n".join(_line(entry, job, self._reads) for entry in batch), flush=True)
        self.done.rows += len(batch)
        self.done.failed += len(failed)
        self._say(failed)
        self._meter.at(self._source.done, self.done.rows)
        if self._clock() - self._kept >= KEEP_S:
            self.keep()
            self._kept = self._clock()

    def _say(self, failed: list[Entry]) -> None:
        for entry in failed[: max(0, ERRORS_SAID - self.done.said)]:
            print(f"fmplex: {self._source.name}, {entry.row.place}: {entry.error}", file=sys.stderr)
        self.done.said += len(failed)

    def keep(self) -> None:
        """What was written stays, whatever happens."""
        if self._sink is not None:
            self._sink.keep()

    def finish(self) -> None:
        """There are no more."""
        if self._sink is not None:
            self._sink.finish()
        if self.done.said > ERRORS_SAID:
            print(f"fmplex: {self.done.said - ERRORS_SAID:,} more rows have an error", file=sys.stderr)


def _line(entry: Entry, job: Job, reads: Any) -> str:
    shown = shortened(reads.show(entry.item)) if entry.item is not None else entry.row.place
    return f"{shown}: {f'error: {entry.error}' if entry.result is None else result_line(entry.result, job.top)}"


def shortened(text: str, most: int = 80) -> str:
    """An item, shown, as the beginning of a line."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


class Table:
    """Rows of the output: the input's columns, the result's, and the error."""

    def __init__(self, job: Job, source: Source, names: list[str]) -> None:
        self._top, self._given, self._names = job.top, source.columns, names

    @property
    def columns(self) -> list[str]:
        """A result's column that the input has too is named `predicted_...`."""
        return [*self._given, *map(self._name, [*self._names, ERROR])]

    def rows(self, batch: list[Entry]) -> list[dict[str, Any]]:
        """Their cells, by column."""
        found = [{} if entry.result is None else fields(entry.result, self._top) for entry in batch]
        return [
            {name: entry.row.cells.get(name) for name in self._given}
            | {self._name(name): result.get(name) for name in self._names}
            | {self._name(ERROR): entry.error}
            for entry, result in zip(batch, found, strict=True)
        ]

    def _name(self, name: str) -> str:
        return f"predicted_{name}" if name in self._given else name


def _stopped(error: FmplexError, job: Job, done: Done) -> FmplexError:
    if job.out is None or not done.rows:
        return error
    error.args = (f"stopped after {done.rows:,} rows: {error}. The same command again goes on there",)
    return error
