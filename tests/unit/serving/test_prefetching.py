"""A tag that is kept for a task which is about to be bound here: who gets it, and when it is free again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from backend_fixtures import LoaderRig, write_config, write_task

from fmplex_backend.serving.prefetching import KEPT_S

GRACE = 2.0


@pytest.fixture
def rig(tmp_path: Path) -> LoaderRig:
    """The task `one` is about to be bound here with VFM_3."""
    rig = LoaderRig(tmp_path, grace=GRACE)
    write_task(rig.root, "one", 3, backbone="other")
    rig.refresh()
    assert rig.loader.prefetch("one") == ""
    return rig


def test_the_tag_of_a_task_that_was_read_is_kept_for_it(rig: LoaderRig) -> None:
    assert rig.loader.reserve("one") == (3, KEPT_S)
    rig.engine_rig.clock.sleep(1.0)
    assert rig.loader.reserve("one") == (3, KEPT_S - 1.0)
    assert rig.loader.table == {}, "the entry says who is served"
    write_config(rig.root, "one", 3)
    rig.refresh("one")
    assert rig.vfm(3).name == "one"
    assert rig.loader.reserve("one") == (None, 0.0), "it is the entry's now"


def test_none_is_kept_for_a_task_that_was_not_read(rig: LoaderRig) -> None:
    write_task(rig.root, "two", 4, backbone="other")
    assert rig.loader.prefetch("two") is None
    assert rig.loader.reserve("two") == (None, 0.0)
    assert rig.loader.reserve("nothing") == (None, 0.0)


def test_a_tag_of_another_task_is_not_kept(rig: LoaderRig) -> None:
    write_task(rig.root, "two", 3)
    rig.refresh("two")
    assert rig.loader.reserve("one") == (None, 0.0)


def test_a_tag_by_which_requests_of_a_former_task_may_come_is_not_kept(rig: LoaderRig) -> None:
    write_task(rig.root, "two", 3)
    rig.models.loaded = {"two"}
    rig.refresh("two")
    write_config(rig.root, "two", 3, backbone="other")
    rig.refresh("two")
    assert rig.loader.reserve("one") == (None, 0.0)


def test_the_tag_that_a_task_had_here_before_is_kept_for_it(rig: LoaderRig) -> None:
    rig.models.loaded = {"one"}
    for backbone in ("base", "other"):
        write_config(rig.root, "one", 3, backbone=backbone)
        rig.refresh("one")
    assert rig.loader.prefetch("one") == ""
    assert rig.loader.reserve("one") == (3, KEPT_S)


def test_a_tag_that_the_backbone_does_not_have_is_not_kept(tmp_path: Path) -> None:
    rig = LoaderRig(tmp_path, slots=3)
    write_task(rig.root, "one", 3, backbone="other")
    assert rig.loader.prefetch("one") == ""
    assert rig.loader.reserve("one") == (None, 0.0)


def test_of_two_that_claim_a_tag_the_one_it_is_kept_for_has_it(rig: LoaderRig) -> None:
    rig.loader.reserve("one")
    write_task(rig.root, "a-copy", 3)  # by hand: nothing else gives out a tag that a task has
    write_config(rig.root, "one", 3)
    rig.refresh()
    assert rig.vfm(3).name == "one"
    assert "VFM_3 on 'base' is the tag of 'one'" in rig.loader.task_log.refusals["a-copy"]


def test_it_has_the_tag_also_where_the_other_entry_was_read_first(rig: LoaderRig) -> None:
    rig.loader.reserve("one")
    write_task(rig.root, "a-copy", 3)
    rig.refresh("a-copy")
    assert rig.vfm(3).name == "a-copy"
    assert rig.loader.reserve("one") == (None, 0.0), "the entry is the truth"
    write_config(rig.root, "one", 3)
    rig.refresh("one")
    assert "VFM_3 is the tag of 'one', and requests of 'a-copy' may come with it too" in rig.error(3)
    rig.engine_rig.clock.sleep(GRACE)
    rig.refresh()
    assert rig.vfm(3).name == "one"


def test_once_the_time_is_over_another_may_have_the_tag(rig: LoaderRig) -> None:
    rig.loader.reserve("one")
    rig.engine_rig.clock.sleep(KEPT_S)
    assert rig.loader.reserve("one") == (None, 0.0)
    write_task(rig.root, "two", 3)
    rig.refresh("two")
    write_config(rig.root, "one", 3)
    rig.refresh("one")
    assert rig.vfm(3).name == "two"
    assert "VFM_3 on 'base' is the tag of 'two'" in rig.loader.task_log.refusals["one"]


def test_a_task_with_another_tag_by_then_has_none_kept(rig: LoaderRig) -> None:
    rig.loader.reserve("one")
    write_config(rig.root, "one", 4, backbone="other")
    assert rig.loader.prefetch("one") == ""
    write_task(rig.root, "two", 3)
    rig.refresh("two")
    assert rig.vfm(3).name == "two"
    assert rig.loader.reserve("one") == (4, KEPT_S)


def test_a_binding_that_is_undone_leaves_nothing_kept(rig: LoaderRig) -> None:
    rig.loader.reserve("one")
    for backbone in ("base", "other"):
        write_config(rig.root, "one", 3, backbone=backbone)
        rig.refresh("one")
    shutil.rmtree(rig.root / "one")
    write_task(rig.root, "two", 3)
    rig.refresh()
    rig.engine_rig.clock.sleep(GRACE)
    rig.refresh()
    assert rig.vfm(3).name == "two"
