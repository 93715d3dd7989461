"""The log of events: a JSON line for each thing that was done, and why, in files that are only appended to."""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timezone
from itertools import islice, takewhile
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from fmplex_backend.printable import printable

log = logging.getLogger("fmplex.controller")

MOST_BYTES, FORMER_FILES = 8 << 20, 4  # of a file, after which the next one is begun; and how many are kept
MOST_CHARACTERS = 2000  # of a reason
DONE = "done"
# Writers have a file each: files of several processes could not be rotated. Commands share one, under a lock.
CONTROLLER, SERVER, COMMANDS = "controller", "server", "commands"
WRITERS = (CONTROLLER, SERVER, COMMANDS)
LOCK_S = 5.0  # how long a command waits for another one


class Event(BaseModel):
    """Something that was done or found out about a model, or about the server where `model` is empty."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    time: AwareDatetime
    kind: str
    model: str = ""
    reason: str = ""
    outcome: str = DONE  # or what went wrong


def event_now(kind: str, model: str = "", reason: str = "", outcome: str = DONE) -> Event:
    """An event of this moment, with all that cannot be shown escaped."""
    texts = {"kind": kind, "model": model, "reason": reason, "outcome": outcome}
    return Event(time=datetime.now(timezone.utc), **{name: _cut(printable(text)) for name, text in texts.items()})


class EventLog:
    """Appends events to the file of one writer. Any thread.

    A line that a killed process left unfinished is ended by the next writer, and left out by readers.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        self._handler = _Handler(file_of(folder, writer))

    def add(self, event: Event) -> None:
        """Append an event."""
        self._handler.handle(logging.LogRecord("", logging.INFO, "", 0, event.model_dump_json(), None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class SharedEventLog:
    """Appends events to the file that all commands of this host write to, each for a moment. Any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, event: Event) -> None:
        """Append an event; what goes wrong is said in the log: what was done stays done."""
        try:
            with FileLock(self._folder / f"{COMMANDS}.lock", timeout=LOCK_S):
                log_of_all = EventLog(self._folder, COMMANDS)
                log_of_all.add(event)
                log_of_all.close()
        except (OSError, Timeout) as error:
            log.warning("no event can be written to %s: %s", self._folder, error)

    def close(self) -> None:
        """Nothing is kept open."""


class _Handler(RotatingFileHandler):
    def __init__(self, file: Path) -> None:
        if not _ends_with_a_line(file):
            with file.open("a", encoding="utf-8") as half:
                half.write("\n")
        super().__init__(file, maxBytes=MOST_BYTES, backupCount=FORMER_FILES, encoding="utf-8", delay=True)
        self._has_failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is no reason to stop controlling."""
        if not self._has_failed:
            self._has_failed = True
            log.exception("no event can be written to %s; this is not said again", self.baseFilename)


def file_of(folder: Path, writer: str) -> Path:
    """The file that a writer appends to."""
    return folder / f"events-{writer}.jsonl"


def read_events(folder: Path, since: datetime | None = None, model: str = "") -> Iterator[Event]:
    """Events in the order of their times, of all models or one, those of the server itself included."""
    every = heapq.merge(*(_in_files(_files(folder, name)) for name in WRITERS), key=lambda each: each.time)
    return (each for each in every if (since is None or each.time >= since) and model in ("", each.model))


def latest_events(folder: Path, most: int, since: datetime | None = None, model: str = "") -> list[Event]:
    """The last events, in order; as little as that takes is read."""
    newest = heapq.merge(
        *(_newest_first(_files(folder, writer)) for writer in WRITERS),
        key=lambda each: each.time,
        reverse=True,
    )
    recent = takewhile(lambda each: since is None or each.time >= since, newest)
    return list(islice((each for each in recent if model in ("", each.model)), most))[::-1]


class Following:
    """New events of all writers, again and again; those that were there when it was made are left out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}
        for writer in WRITERS:
            with contextlib.suppress(FileNotFoundError):
                self._open[writer] = stream = file_of(folder, writer).open(encoding="utf-8", errors="replace")
                stream.seek(0, 2)
        self._begun = dict.fromkeys(WRITERS, "")  # a line that is not whole yet

    def close(self) -> None:
        """Close the files."""
        for stream in self._open.values():
            stream.close()

    def new(self) -> list[Event]:
        """Those since the last call."""
        found = [event for writer in WRITERS for event in self._of(writer)]
        return sorted(found, key=lambda each: each.time)

    def _of(self, writer: str) -> Iterator[Event]:
        stream = self._open.get(writer)
        if stream is not None:
            yield from self._rest(writer, stream)
        file = file_of(self._folder, writer)
        if file.exists() and (stream is None or not _is_at(stream, file)):  # the writer has begun another file
            if stream is not None:
                yield from self._rest(writer, stream)
                stream.close()
            self._begun[writer] = ""
            self._open[writer] = file.open(encoding="utf-8", errors="replace")
            yield from self._rest(writer, self._open[writer])

    def _rest(self, writer: str, stream: Any) -> Iterator[Event]:
        *lines, self._begun[writer] = (self._begun[writer] + stream.read()).split("\n")
        yield from _parsed(lines)


def _is_at(stream: Any, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), file.stat())
    except FileNotFoundError:  # just being rotated
        return True


def _files(folder: Path, writer: str) -> list[Path]:
    """Oldest first."""
    file = file_of(folder, writer)
    return [*(file.with_name(f"{file.name}.{number}") for number in range(FORMER_FILES, 0, -1)), file]


def _in_files(files: Iterable[Path]) -> Iterator[Event]:
    for file in files:
        with contextlib.suppress(FileNotFoundError), file.open(encoding="utf-8", errors="replace") as lines:
            yield from _parsed(lines)


def _newest_first(files: Sequence[Path]) -> Iterator[Event]:
    for file in reversed(files):
        with contextlib.suppress(FileNotFoundError):
            yield from _parsed(reversed(file.read_text(encoding="utf-8", errors="replace").split("\n")))


def _parsed(lines: Iterable[str]) -> Iterator[Event]:
    for line in lines:
        with contextlib.suppress(ValidationError):
            yield Event.model_validate_json(line)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."


def _ends_with_a_line(file: Path) -> bool:
    if not file.exists():
        return True
    with file.open("rb") as content:
        if content.seek(0, 2) == 0:
            return True
        content.seek(-1, 2)
        return content.read(1) == b"\n"
