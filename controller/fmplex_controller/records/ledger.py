"""The ledger of usage: what each task was charged of its backbones' time, kept over the ends of every process.

Backbones count from their own start. A sample of these counts enters what has been added since the sample before, and
remembers the counts themselves, in one transaction: however often a sample is entered, and wherever a process is
killed, nothing is entered twice. What a backbone counted after its last sample is lost with its process.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fmplex_backend.errors import SetupProblem
from fmplex_backend.status import BackboneStatus

FILE = "usage.sqlite3"
SAMPLE_S = 1.0  # between samples of a backbone
MINUTE, HOUR = 60, 3600
MINUTES_FOR_S = 48 * HOUR  # so long usage is kept by minutes, then by hours
FORGET_S = HOUR  # after which the counts of a process that another one has replaced are not needed any more
VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS process (
    id INTEGER PRIMARY KEY, backbone TEXT, pid INTEGER, started_at REAL, seen_at REAL, busy_s REAL,
    UNIQUE (backbone, pid, started_at));
CREATE TABLE IF NOT EXISTS account (
    process INTEGER, account INTEGER, service_s REAL, preparation_s REAL, requests INTEGER, items INTEGER,
    PRIMARY KEY (process, account)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (
    start INTEGER, seconds INTEGER, backbone TEXT, task TEXT,
    service_s REAL, preparation_s REAL, requests INTEGER, items INTEGER,
    PRIMARY KEY (start, seconds, backbone, task)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS busy (
    start INTEGER, seconds INTEGER, backbone TEXT, busy_s REAL, PRIMARY KEY (start, seconds, backbone)) WITHOUT ROWID;
"""
ADD_TO_USAGE = """ON CONFLICT DO UPDATE SET
    service_s = service_s + excluded.service_s, preparation_s = preparation_s + excluded.preparation_s,
    requests = requests + excluded.requests, items = items + excluded.items"""
ADD_TO_BUSY = "ON CONFLICT DO UPDATE SET busy_s = busy_s + excluded.busy_s"
ADD_USAGE = f"INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?) {ADD_TO_USAGE}"
ADD_BUSY = f"INSERT INTO busy VALUES (?, ?, ?, ?) {ADD_TO_BUSY}"
KEEP_ACCOUNT = "INSERT OR REPLACE INTO account VALUES (?, ?, ?, ?, ?, ?)"


class Counts(NamedTuple):
    """Of one account, since it was opened."""

    service_s: float
    preparation_s: float
    requests: int
    items: int

    def since(self, before: Counts) -> Counts:
        """What has been added. Counts are read while they are written, so that one may seem to have gone back."""
        return Counts(
            max(0.0, self.service_s - before.service_s),
            max(0.0, self.preparation_s - before.preparation_s),
            max(0, self.requests - before.requests),
            max(0, self.items - before.items),
        )

    def at_least(self, before: Counts) -> Counts:
        """What is remembered, so that nothing is entered twice."""
        return Counts(
            max(self.service_s, before.service_s),
            max(self.preparation_s, before.preparation_s),
            max(self.requests, before.requests),
            max(self.items, before.items),
        )


NOTHING = Counts(0.0, 0.0, 0, 0)


class _Process:
    """What the ledger remembers of a backbone's process."""

    def __init__(self, number: int, busy_s: float, accounts: dict[int, Counts]) -> None:
        self.number, self.busy_s, self.accounts = number, busy_s, accounts
        self.sampled_at = float("-inf")


class Ledger:
    """Enters samples. One process at a time, any of its threads. Raises SetupProblem, and sqlite3.Error later."""

    def __init__(self, folder: Path) -> None:
        self._connection = _opened(folder / FILE)
        self._lock = threading.Lock()
        self._known: dict[tuple[str, int, float], _Process] = {}
        self._thinned_at = 0.0

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def sample(self, status: BackboneStatus, now: float) -> bool:
        """Enter what a backbone tells, unless the last sample is less than a second old; whether that was due.

        Args:
            now: seconds since 1970.
        """
        key = (status.name, status.pid, status.started_at)
        with self._lock:
            known = self._known.get(key)
            if status.started_at == 0 or (known is not None and 0 <= now - known.sampled_at < SAMPLE_S):
                return False
            with _transaction(self._connection):
                process = known or self._process(key, now)
                entered = self._enter(process, status, now)
                self._thin(now)
            process.sampled_at = now
            self._known = {other: each for other, each in self._known.items() if other[0] != status.name}
            self._known[key] = process
            busy_s, accounts = entered  # remembered only once it is on disk
            process.busy_s = busy_s
            process.accounts |= accounts
            return True

    def _process(self, key: tuple[str, int, float], now: float) -> _Process:
        run = self._connection.execute
        columns = "backbone, pid, started_at, seen_at, busy_s"
        run(f"INSERT OR IGNORE INTO process ({columns}) VALUES (?, ?, ?, ?, 0)", (*key, now))
        wanted = "backbone = ? AND pid = ? AND started_at = ?"
        number, busy_s = run(f"SELECT id, busy_s FROM process WHERE {wanted}", key).fetchone()
        accounts = {
            account: Counts(*counts)
            for account, *counts in run(
                "SELECT account, service_s, preparation_s, requests, items FROM account WHERE process = ?", (number,)
            )
        }
        old = "SELECT id FROM process WHERE backbone = ? AND id <> ? AND seen_at < ?"
        given = (key[0], number, now - FORGET_S)
        run(f"DELETE FROM account WHERE process IN ({old})", given)
        run(f"DELETE FROM process WHERE id IN ({old})", given)
        return _Process(number, busy_s, accounts)

    def _enter(self, process: _Process, status: BackboneStatus, now: float) -> tuple[float, dict[int, Counts]]:
        """Write the differences; the counts that are to be remembered."""
        run, start = self._connection.execute, int(now) // MINUTE * MINUTE
        changed: dict[int, Counts] = {}
        for account, task, counts in _accounts(status):
            # One may stand there twice: its vFM was retired while the status was put together.
            before = changed.get(account) or process.accounts.get(account, NOTHING)
            added = counts.since(before)
            if added != NOTHING:
                changed[account] = counts.at_least(before)
                run(ADD_USAGE, (start, MINUTE, status.name, task, *added))
                run(KEEP_ACCOUNT, (process.number, account, *changed[account]))
        busy_s = max(status.busy_s, process.busy_s)
        if busy_s > process.busy_s:
            run(ADD_BUSY, (start, MINUTE, status.name, busy_s - process.busy_s))
        if changed or busy_s > process.busy_s or now - process.sampled_at > MINUTE:
            run("UPDATE process SET busy_s = ?, seen_at = ? WHERE id = ?", (busy_s, now, process.number))
        return busy_s, changed

    def _thin(self, now: float) -> None:
        """Put the minutes of old hours together."""
        if now - self._thinned_at < HOUR:
            return
        run, before = self._connection.execute, int(now - MINUTES_FOR_S) // HOUR * HOUR
        old = f"seconds = {MINUTE} AND start < {before}"
        hour = f"start / {HOUR} * {HOUR}"
        sums = "SUM(service_s), SUM(preparation_s), SUM(requests), SUM(items)"
        usage = f"SELECT {hour}, {HOUR}, backbone, task, {sums} FROM usage WHERE {old} GROUP BY 1, 3, 4"
        busy = f"SELECT {hour}, {HOUR}, backbone, SUM(busy_s) FROM busy WHERE {old} GROUP BY 1, 3"
        run(f"INSERT INTO usage {usage} {ADD_TO_USAGE}")
        run(f"INSERT INTO busy {busy} {ADD_TO_BUSY}")
        run(f"DELETE FROM usage WHERE {old}")
        run(f"DELETE FROM busy WHERE {old}")
        self._thinned_at = now


def _accounts(status: BackboneStatus) -> Iterator[tuple[int, str, Counts]]:
    for task in status.tasks:
        if task.account is not None:
            yield task.account, task.name, Counts(task.service_s, task.preparation_s, task.requests, task.items)
        for each in task.candidates:
            if each.account is not None:
                copies = each.role == "shadow"  # which are no requests of the task
                requests, items = (0, 0) if copies else (each.requests, each.items)
                yield each.account, task.name, Counts(each.service_s, each.preparation_s, requests, items)
    for ended in status.closed:
        yield ended.account, ended.task, Counts(ended.service_s, ended.preparation_s, ended.requests, ended.items)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _opened(file: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(file, timeout=10.0, isolation_level=None, check_same_thread=False)
        # Readers do not hold up the writer, and what was committed survives the end of any process.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise SetupProblem(f"{file}: it is of version {version}, this FMplex writes {VERSION}. Move it away")
        connection.executescript(SCHEMA)
        connection.execute(f"PRAGMA user_version = {VERSION}")
    except sqlite3.Error as error:
        raise SetupProblem(f"{file}: usage cannot be recorded there: {error}. Move the file away, or mend it") from None
    return connection
