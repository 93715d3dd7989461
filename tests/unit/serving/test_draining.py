"""vFMs that end: not before what they have taken in is prepared."""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import MOVED_TIMES, LoaderRig, write_config, write_task
from fake_family.runtime import FakeClock

from fmplex_backend.serving.draining import Draining
from fmplex_backend.types import Vfm

GRACE = 2.0


def test_each_is_kept_for_its_time_and_while_requests_are_prepared() -> None:
    clock, retired = FakeClock(), list[Vfm]()
    draining = Draining(retired.append, clock)
    busy, idle, soon = (Vfm(number, f"task{number}") for number in range(3))
    request: Any = object()
    busy.preparing = deque([request])
    for vfm, grace in ((busy, GRACE), (idle, GRACE), (soon, 0.0)):
        draining.add(vfm, grace)
    draining.retire_due()
    assert (retired, draining.vfms) == ([soon], [busy, idle])
    clock.sleep(GRACE)
    draining.retire_due()
    assert (retired, draining.vfms) == ([soon, idle], [busy])
    busy.preparing.clear()
    assert not draining.is_empty
    draining.retire_due()
    assert retired == [soon, idle, busy]
    assert draining.is_empty


@pytest.fixture
def rig(tmp_path: Path) -> LoaderRig:
    """The task `one` is served with VFM_0."""
    rig = LoaderRig(tmp_path, grace=GRACE)
    write_task(rig.root, "one", 0)
    rig.refresh()
    return rig


def test_what_is_being_prepared_is_answered_where_a_move_is_undone(rig: LoaderRig) -> None:
    former = rig.vfm(0)
    request = rig.engine_rig.make(former, "a")
    former.preparing.append(request)
    write_config(rig.root, "one", 0, backbone="other")
    rig.refresh("one")
    write_config(rig.root, "one", 0)
    rig.refresh("one")
    assert rig.vfm(0) is not former
    rig.engine_rig.clock.sleep(GRACE)
    rig.refresh()
    assert former in rig.engine.vfms
    assert not rig.loader.is_settled
    rig.engine.add_request(former.preparing.popleft())
    rig.engine_rig.drain()
    assert rig.engine_rig.reason(request) == ""
    rig.refresh()
    assert rig.engine.vfms == {rig.vfm(0)}
    assert rig.loader.is_settled


def test_what_was_about_to_be_prepared_is_answered_where_a_move_is_undone(rig: LoaderRig) -> None:
    former = rig.vfm(0)
    for backbone in ("other", "base"):
        write_config(rig.root, "one", 0, backbone=backbone)
        rig.refresh("one")
    request = rig.engine_rig.send(former, "a")  # the former table was read before this one came
    rig.engine_rig.drain()
    assert rig.engine_rig.reason(request) == ""


def test_one_that_has_moved_is_answered_for_longer_than_one_that_was_removed(rig: LoaderRig) -> None:
    """The server may be long about a load, and sends to the former backbone meanwhile."""
    write_task(rig.root, "two", 1)
    rig.refresh()
    write_config(rig.root, "one", 0, backbone="other")
    (rig.root / "two" / "config.pbtxt").unlink()
    rig.refresh()
    assert set(rig.loader.table) == {0, 1}
    rig.engine_rig.clock.sleep(GRACE)
    rig.refresh()
    assert set(rig.loader.table) == {0}
    rig.engine_rig.clock.sleep((MOVED_TIMES - 1) * GRACE)
    rig.refresh()
    assert rig.loader.table == {}
    assert rig.engine.vfms == set()


def test_one_whose_successor_leaves_before_the_table_refers_to_it_ends_too(rig: LoaderRig) -> None:
    former = rig.vfm(0)
    shutil.rmtree(rig.root / "one")
    rig.loader.settle()
    write_task(rig.root, "one", 0)
    write_task(rig.root, "unrelated", 5)  # is loaded after it: the table is not replaced between them
    rig.loader.settle()
    assert rig.loader.load_next()
    shutil.rmtree(rig.root / "one")
    rig.loader.settle()
    for _ in range(2):
        rig.engine_rig.clock.sleep(MOVED_TIMES * GRACE)
        rig.refresh()
    assert former not in rig.engine.vfms
    assert {vfm.name for vfm in rig.engine.vfms} == {"unrelated"}
