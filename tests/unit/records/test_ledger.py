"""The ledger of usage: nothing is entered twice, and nothing that was sampled is lost, whatever is killed and when."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import status, task

from fmplex_backend.errors import SetupProblem
from fmplex_backend.status import BackboneStatus, CandidateStatus, ClosedAccount
from fmplex_controller.records.ledger import FILE, HOUR, MINUTES_FOR_S, SAMPLE_S, Ledger
from fmplex_controller.records.usage import as_csv, read_usage

NOW = 1_800_000_000.0
# Samples until it is killed: of two processes after each other, with counts that a test can work out.
WRITER = """
import sys
from pathlib import Path
from live_server import status, task
from fmplex_controller.records.ledger import Ledger

ledger, counted = Ledger(Path(sys.argv[1])), int(sys.argv[2])
print("ready", flush=True)
while True:
    counted += 1
    told = task("a", account=1, service_s=counted / 1000, requests=counted)
    update = {"pid": 7, "started_at": 5.0, "busy_s": counted / 1000}
    ledger.sample(status(told).model_copy(update=update), 1_800_000_000.0 + counted)
"""


def told(service: dict[str, float], started_at: float = 5.0, closed: dict[str, float] | None = None) -> BackboneStatus:
    """Accounts by the names of tasks, with their seconds; those that are closed were opened first."""
    gone = closed or {}
    numbers = {name: number for number, name in enumerate([*gone, *service], 1)}
    tasks = [
        task(name, account=numbers[name], service_s=seconds, requests=10, items=20, preparation_s=seconds / 10)
        for name, seconds in service.items()
    ]
    former = tuple(
        ClosedAccount(account=numbers[name], task=name, requests=10, items=20, service_s=seconds, preparation_s=0)
        for name, seconds in gone.items()
    )
    busy = sum([*service.values(), *gone.values()])
    update = {"pid": 7, "started_at": started_at, "busy_s": busy, "closed": former}
    return status(*tasks).model_copy(update=update)


def seconds(folder: Path, since: float | None = None) -> dict[str, float]:
    return {row.task: row.seconds for row in read_usage(folder, since).tasks}


def test_counts_are_entered_as_they_grow(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.sample(told({"a": 1.0, "b": 2.0}), NOW)
    assert not ledger.sample(told({"a": 9.0}), NOW + SAMPLE_S / 2)
    assert ledger.sample(told({"a": 1.5, "b": 2.0}), NOW + 1)
    found = read_usage(tmp_path)
    assert [(row.task, row.seconds, row.requests, row.items) for row in found.tasks] == [
        ("b", 2.0, 10, 20),
        ("a", 1.5, 10, 20),
    ]
    (backbone,) = found.backbones
    assert (backbone.busy_s, backbone.charged_s) == (3.5, 3.5)
    assert as_csv(found).splitlines()[1] == "base,b,2.000000,0.200000,10,20"
    ledger.close()


def test_a_task_that_left_and_one_that_came_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.sample(told({"a": 1.0}), NOW)
    ledger.sample(told({}, closed={"a": 1.25}), NOW + 1)
    ledger.sample(told({"b": 0.5}, closed={"a": 1.25}), NOW + 2)
    assert seconds(tmp_path) == {"a": 1.25, "b": 0.5}
    again = told({}, closed={"a": 1.25}).model_copy(
        update={"tasks": (task("a", account=3, service_s=0.75),), "busy_s": 2.5}
    )
    ledger.sample(again, NOW + 3)
    assert seconds(tmp_path) == {"a": 2.0, "b": 0.5}
    ledger.close()


def test_an_account_that_stands_twice_in_a_status_is_entered_once(tmp_path: Path) -> None:
    """A task that is removed while the status is told is among those served and among those closed."""
    gone = ClosedAccount(account=1, task="a", requests=12, items=22, service_s=1.25, preparation_s=0.1)
    ledger = Ledger(tmp_path)
    ledger.sample(told({"a": 1.0}).model_copy(update={"closed": (gone,)}), NOW)
    ledger.sample(told({}).model_copy(update={"closed": (gone, gone), "busy_s": 1.25}), NOW + 1)
    (row,) = read_usage(tmp_path).tasks
    assert (row.seconds, row.requests, row.items) == (1.25, 12, 22)
    ledger.close()


def test_from_a_time_on(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.sample(told({"a": 1.0}), NOW)
    ledger.sample(told({"a": 3.0}), NOW + 600)
    assert seconds(tmp_path, NOW + 590) == {"a": 2.0}
    assert seconds(tmp_path, NOW + 6000) == {}
    assert read_usage(tmp_path, NOW + 599).since == (NOW + 599) // 60 * 60
    ledger.close()


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["serve", "restart", "controller", "old answer"]), st.integers(0, 9)), max_size=30
    )
)
def test_whatever_is_restarted_the_sums_stay_right(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    """Against sums that are kept beside it; a process's last sample is entered, as it served nothing after it."""
    folder = tmp_path_factory.mktemp("ledger")
    ledger, now, process, busy = Ledger(folder), NOW, 5.0, 0.0
    counts = {"a": 0.0, "b": 0.0}
    expected = {"a": 0.0, "b": 0.0}
    former = told(counts, process)
    for step, amount in steps:
        now += SAMPLE_S
        if step == "serve":
            name = "ab"[amount % 2]
            counts[name] += amount
            expected[name] += amount
            busy += amount
            former = told(counts, process)
            ledger.sample(former, now)
        elif step == "restart":
            counts, process = {"a": 0.0, "b": 0.0}, process + 100
            ledger.sample(told(counts, process), now)
        elif step == "controller":  # killed: it closes nothing
            ledger = Ledger(folder)
        else:  # an answer of before, which comes late
            ledger.sample(former, now)
    assert {"a": 0.0, "b": 0.0} | seconds(folder) == expected
    assert sum(each.busy_s for each in read_usage(folder).backbones) == busy
    ledger.close()


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment(tmp_path: Path, seed: int) -> None:
    chance, counted = random.Random(seed), 0
    for _ in range(5):
        line = [sys.executable, "-c", WRITER, str(tmp_path), str(counted)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2] / "support") as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.0, 0.2))
            process.send_signal(signal.SIGKILL)
        found = read_usage(tmp_path)
        (row,) = found.tasks
        assert row.seconds == pytest.approx(row.requests / 1000)
        assert found.backbones[0].busy_s == pytest.approx(row.seconds)
        assert row.requests > counted
        counted = row.requests


def test_minutes_of_old_hours_are_put_together(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    start = NOW // HOUR * HOUR
    for minute in range(180):
        ledger.sample(told({"a": float(minute + 1)}), start + 60 * minute)
    ledger.sample(told({"a": 181.0}), start + MINUTES_FOR_S + 2 * HOUR)
    assert seconds(tmp_path) == {"a": 181.0}
    assert seconds(tmp_path, start + 2 * HOUR) == {"a": 61.0}
    assert read_usage(tmp_path).backbones[0].busy_s == 181.0
    with sqlite3.connect(tmp_path / FILE) as connection:
        assert connection.execute("SELECT COUNT(*) FROM usage WHERE seconds = 3600").fetchone() == (2,)
        assert connection.execute("SELECT COUNT(*) FROM usage").fetchone() == (63,)
    connection.close()
    ledger.close()


def test_backbones_that_do_not_tell_when_they_started_are_left_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert not ledger.sample(told({"a": 1.0}, started_at=0.0), NOW)
    assert seconds(tmp_path) == {}
    ledger.close()


def test_files_that_are_no_ledgers(tmp_path: Path) -> None:
    with pytest.raises(SetupProblem, match="no usage has been recorded"):
        read_usage(tmp_path)
    (tmp_path / FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(SetupProblem, match="Move the file away"):
        Ledger(tmp_path)
    with pytest.raises(SetupProblem, match="usage cannot be read"):
        read_usage(tmp_path)
    (tmp_path / FILE).unlink()
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(SetupProblem, match="version 9"):
        Ledger(tmp_path)


def test_what_a_canary_and_a_shadow_are_charged_is_the_tasks(tmp_path: Path) -> None:
    """The copies of a shadow are no requests, also once its account is closed."""
    canary = CandidateStatus(
        role="canary", version=2, account=2, service_s=0.5, preparation_s=0.1, requests=3, items=4, share=0.1
    )
    shadow = CandidateStatus(role="shadow", version=3, account=3, service_s=0.25, requests=90, items=90)
    refused = CandidateStatus(role="shadow", version=4, error="it is wrong")
    own = task("a", account=1, service_s=1.0, requests=10, items=20, candidates=(canary, shadow, refused))
    ledger = Ledger(tmp_path)
    at_first = {"pid": 7, "started_at": 5.0, "busy_s": 1.75}
    ledger.sample(status(own).model_copy(update=at_first), NOW)
    gone = ClosedAccount(account=3, task="a", requests=0, items=0, service_s=0.5, preparation_s=0)
    later = at_first | {"busy_s": 2.0, "closed": (gone,)}
    ledger.sample(status(own.model_copy(update={"candidates": (canary,)})).model_copy(update=later), NOW + 5)
    (row,), (backbone,) = read_usage(tmp_path).tasks, read_usage(tmp_path).backbones
    assert (row.seconds, row.preparation_s, row.requests, row.items) == (2.0, 0.1, 13, 24)
    assert (backbone.busy_s, backbone.charged_s) == (2.0, 2.0)
    ledger.close()
