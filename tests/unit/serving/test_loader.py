"""The vFMs follow the repository: what is served, what is refused and why, and what goes on meanwhile."""

from __future__ import annotations

import errno
import gc
import logging
import math
import shutil
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import BACKBONE, LoaderRig, edit, text_task, write_config, write_task, write_version
from fake_family.runtime import FakeExtensions
from model_fixtures import save_tiny, text_runtime, write_head

from fmplex_backend.confinement import Confinement
from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.configs import read_config
from fmplex_backend.repository.tasks import Repository
from fmplex_backend.serving import loader as loader_module
from fmplex_backend.serving import prefetching
from fmplex_backend.serving.loader import Loader, Refusal
from fmplex_backend.types import MAX_QUEUE_BYTES, Vfm


@pytest.fixture
def rig(tmp_path: Path) -> LoaderRig:
    return LoaderRig(tmp_path)


# -- what is there


def test_tasks_that_are_there_are_served(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, weight=3.0, slo_ms=50.0, max_queue=5, max_queue_bytes=1000, max_seconds=9.0)
    write_task(rig.root, "two", 7)
    rig.refresh()
    one, two = rig.vfm(0), rig.vfm(7)
    assert (one.id, one.name, one.weight, one.slo, one.max_queue) == (0, "one", 3.0, 0.05, 5)
    assert (two.id, two.name, two.weight, two.slo, two.max_queue) == (7, "two", 1.0, None, 100)
    assert (one.max_queue_bytes, two.max_queue_bytes) == (1000, MAX_QUEUE_BYTES)
    assert (one.max_seconds, two.max_seconds) == (9.0, math.inf)
    assert rig.engine.vfms == {one, two}
    assert (rig.mark(0), rig.mark(7)) == (0, 7)


def test_nothing_is_there(rig: LoaderRig) -> None:
    rig.refresh()
    assert rig.loader.table == {}


def test_looking_again_changes_nothing(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    vfm, extensions = rig.vfm(0), rig.vfm(0).extensions
    rig.refresh()
    rig.refresh("one")
    assert rig.vfm(0) is vfm
    assert vfm.extensions is extensions
    assert rig.runtime.attached == [extensions]


def test_an_adapter_counts_as_one(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, task={"adapter": "lora"})
    write_task(rig.root, "two", 1)
    rig.refresh()
    assert (rig.vfm(0).adapted, rig.vfm(1).adapted) == (True, False)


def test_a_request_may_be_prepared_before_the_engine_has_attached(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.loader.refresh()
    assert rig.vfm(0).extensions.mark == 0
    assert rig.runtime.attached == []


def test_a_task_that_goes_is_served_until_what_was_taken_in_is_prepared(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    vfm = rig.vfm(0)
    vfm.preparing.append(rig.engine_rig.make(vfm, "a"))
    shutil.rmtree(rig.root / "one")
    rig.refresh()
    assert vfm in rig.engine.vfms
    vfm.preparing.clear()
    rig.refresh()
    assert vfm not in rig.engine.vfms


# -- changes


def test_new_terms_without_loading_again(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, slo_ms=10.0)
    rig.refresh()
    vfm, extensions = rig.vfm(0), rig.vfm(0).extensions
    write_config(rig.root, "one", 0, weight=4.0, max_queue=3)
    rig.refresh("one")
    assert rig.vfm(0) is vfm
    assert vfm.extensions is extensions
    assert (vfm.weight, vfm.slo, vfm.max_queue) == (4.0, None, 3)


def test_a_new_version_takes_over_in_the_same_vfm(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, task={"mark": 1})
    rig.refresh()
    vfm = rig.vfm(0)
    write_version(rig.root, "one", 2, {"mark": 2})
    rig.refresh("one")
    assert rig.vfm(0) is vfm
    assert rig.mark(0) == 2
    assert rig.runtime.attached == [vfm.extensions]


def test_a_version_that_changes_in_place(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, task={"mark": 1})
    rig.refresh()
    write_version(rig.root, "one", 1, {"mark": 22})
    rig.refresh("one")
    assert rig.mark(0) == 22


def test_going_back_to_the_former_version(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, task={"mark": 1})
    write_version(rig.root, "one", 2, {"mark": 2})
    rig.refresh()
    shutil.rmtree(rig.root / "one" / "2")
    rig.refresh()
    assert rig.mark(0) == 1


def test_removal(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    write_task(rig.root, "two", 1)
    rig.refresh()
    shutil.rmtree(rig.root / "one")
    rig.refresh("one")
    assert set(rig.loader.table) == {1}
    assert rig.engine.vfms == {rig.vfm(1)}
    assert len(rig.runtime.attached) == 1


def test_what_waits_is_served_before_its_task_goes(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    requests = [rig.engine_rig.send(rig.vfm(0), "a") for _ in range(20)]
    shutil.rmtree(rig.root / "one")
    rig.refresh()
    assert [rig.engine_rig.reason(request) for request in requests] == [""] * 20
    rig.engine_rig.drain()
    assert rig.runtime.attached == []


def test_a_task_that_left_is_answered_for_until_the_server_has_let_go_of_its_entry(tmp_path: Path) -> None:
    rig = LoaderRig(tmp_path, grace=2.0)
    write_task(rig.root, "one", 0)
    write_task(rig.root, "two", 1)
    rig.refresh()
    shutil.rmtree(rig.root / "one")
    rig.refresh("one")
    assert rig.vfm(0).name == "one"
    assert rig.vfm(0) in rig.engine.vfms
    rig.engine_rig.clock.sleep(2.0)
    rig.refresh()
    assert set(rig.loader.table) == {1}
    assert rig.engine.vfms == {rig.vfm(1)}


def test_the_tag_of_a_task_that_left_is_answered_once_no_request_of_it_can_come(tmp_path: Path) -> None:
    """The server has the former task loaded for a while, then its last requests are on their way."""
    rig = LoaderRig(tmp_path, grace=2.0)
    write_task(rig.root, "one", 0)
    rig.refresh()
    rig.models.loaded = {"one", "new"}
    shutil.rmtree(rig.root / "one")
    write_task(rig.root, "new", 0)
    for _ in range(3):
        rig.refresh("one", "new")
        rig.engine_rig.clock.sleep(5.0)
        error = rig.error(0)
        assert "VFM_0 is the tag of 'new', and requests of 'one' may come with it too" in error
        assert "Unload 'one'. Or give 'new' a tag of its own: fmplex task set new --new-tag" in error
        assert not rig.loader.is_settled
    rig.models.loaded = {"new"}
    rig.loader.refresh(())
    rig.engine_rig.clock.sleep(1.9)
    rig.loader.refresh(())
    assert "'one'" in rig.error(0)
    rig.engine_rig.clock.sleep(0.2)
    rig.refresh()
    assert rig.vfm(0).name == "new"
    assert rig.mark(0) == 0
    assert rig.loader.is_settled
    assert rig.models.unloads == []
    assert rig.engine.vfms == {rig.vfm(0)}


def test_a_task_that_left_is_answered_for_no_longer_once_another_has_its_tag(tmp_path: Path) -> None:
    rig = LoaderRig(tmp_path, grace=2.0)
    write_task(rig.root, "one", 0)
    rig.refresh()
    accepted = rig.engine_rig.send(rig.vfm(0), "a")
    shutil.rmtree(rig.root / "one")
    rig.loader.refresh(["one"])
    assert rig.vfm(0).name == "one"
    write_task(rig.root, "new", 0)
    rig.refresh("new")
    assert "'one'" in rig.error(0)
    assert rig.engine_rig.reason(accepted) == ""


def test_a_task_that_moves_to_another_backbone(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    write_config(rig.root, "one", 0, backbone="other")
    rig.refresh("one")
    assert rig.loader.table == {}
    assert rig.runtime.attached == []
    write_config(rig.root, "one", 3)
    rig.refresh("one")
    assert rig.mark(3) == 0


def test_a_task_that_comes_from_another_backbone_brings_what_it_had_beyond_its_share(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    config = rig.root / "one" / "config.pbtxt"
    lines = [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in (("ahead_s", "0.5"), ("rebound_at", f"{time.time():.3f}"))
    ]
    config.write_text("\n".join([config.read_text(), *lines]))
    rig.refresh("one")
    assert rig.vfm(0).start == 0.5
    edit(config, "0.5", "0.75")
    rig.refresh("one")
    assert rig.vfm(0).start == 0.5, "only where it begins"


def test_a_new_name(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    former = rig.vfm(0)
    (rig.root / "one").rename(rig.root / "uno")
    edit(rig.root / "uno" / "config.pbtxt", 'name: "one"', 'name: "uno"')
    rig.refresh("one", "uno")
    assert rig.vfm(0) is not former
    assert rig.vfm(0).name == "uno"
    assert rig.engine.vfms == {rig.vfm(0)}


def test_a_new_tag(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    write_config(rig.root, "one", 9)
    rig.refresh("one")
    assert set(rig.loader.table) == {9}
    assert rig.engine.vfms == {rig.vfm(9)}


def test_two_tasks_that_swap_their_tags(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, task={"mark": 1})
    write_task(rig.root, "two", 1, task={"mark": 2})
    rig.refresh()
    write_config(rig.root, "one", 1)
    write_config(rig.root, "two", 0)
    rig.refresh("one", "two")
    assert (rig.mark(0), rig.mark(1)) == (2, 1)
    assert len(rig.runtime.attached) == 2


# -- tags


def test_of_two_with_one_tag_the_one_that_is_served_keeps_it(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    vfm, extensions = rig.vfm(0), rig.vfm(0).extensions
    write_task(rig.root, "a-copy", 0)
    for _ in range(2):
        rig.refresh("a-copy")
        assert rig.vfm(0) is vfm
        assert rig.runtime.attached == [extensions]
    text = rig.loader.task_log.refusals["a-copy"]
    assert text.startswith(str(rig.root / "a-copy" / "config.pbtxt"))
    assert "VFM_0 on 'base' is the tag of 'one', which keeps it" in text
    assert f"fmplex task set a-copy --new-tag --repository {rig.root}" in text
    assert "one" not in rig.loader.task_log.refusals


def test_copies_as_they_are_made_leave_the_original_alone(rig: LoaderRig) -> None:
    """A directory whose entry has another name is never loaded; a hidden one is no task at all."""
    write_task(rig.root, "one", 0)
    rig.refresh()
    vfm = rig.vfm(0)
    for name in ("one.bak", ".one.swp"):
        shutil.copytree(rig.root / "one", rig.root / name)
        rig.refresh(name)
        rig.refresh()
    assert rig.vfm(0) is vfm
    assert rig.loader.task_log.refusals.keys() == {"one.bak"}
    assert "name: it is 'one'" in rig.loader.task_log.refusals["one.bak"]
    assert rig.loader.is_settled


def test_a_newcomer_that_the_server_has_loaded_is_unloaded_and_the_tag_goes_on_after_the_grace(tmp_path: Path) -> None:
    rig = LoaderRig(tmp_path, grace=2.0)
    write_task(rig.root, "one", 0)
    rig.refresh()
    write_task(rig.root, "two", 0)
    rig.models.loaded = {"one", "two"}
    rig.refresh("two")
    assert "VFM_0 is the tag of 'one', and requests of 'two' may come with it too" in rig.error(0)
    assert "Or give 'two' a tag of its own: fmplex task set two --new-tag" in rig.error(0)
    rig.loader.rounds.unload_newcomers()
    assert rig.models.unloads == ["two"]
    rig.loader.refresh(())
    assert "'two'" in rig.error(0)
    rig.engine_rig.clock.sleep(2.1)
    rig.refresh()
    assert rig.mark(0) == 0
    rig.loader.rounds.unload_newcomers()
    assert rig.models.unloads == ["two"]


def test_a_newcomer_that_cannot_be_unloaded_is_said_once(rig: LoaderRig, caplog: pytest.LogCaptureFixture) -> None:
    """A server that polls unloads nothing that it is asked to."""
    write_task(rig.root, "one", 0)
    rig.refresh()
    write_task(rig.root, "two", 0)
    rig.models.loaded, rig.models.refuses = {"one", "two"}, "not if polling is enabled"
    for _ in range(3):
        rig.refresh()
        rig.loader.rounds.unload_newcomers()
    assert "'two'" in rig.error(0)
    said = [message for message in caplog.messages if "polling" in message]
    assert said == ["task two cannot be unloaded, so nothing with its tag is answered: not if polling is enabled"]
    write_config(rig.root, "two", 1)
    rig.refresh("two")
    rig.models.loaded = {"one"}
    rig.refresh()
    assert (rig.vfm(0).name, rig.vfm(1).name) == ("one", "two")


@pytest.mark.parametrize("gone", ["one", "two"])
def test_removing_one_of_them_heals_the_other(rig: LoaderRig, gone: str) -> None:
    write_task(rig.root, "one", 0)
    write_task(rig.root, "two", 0)
    rig.refresh()
    shutil.rmtree(rig.root / gone)
    rig.refresh(gone)
    assert {rig.vfm(0).name, gone} == {"one", "two"}


def test_a_broken_task_keeps_its_tag(rig: LoaderRig) -> None:
    """Its client must not be answered by another task, also where the entry can no longer be read at all."""
    write_task(rig.root, "one", 0, max_queue=3)
    rig.refresh()
    write_task(rig.root, "two", 0)
    edit(rig.root / "one" / "config.pbtxt", '"3"', '"none"')
    rig.refresh()
    assert "max_queue" in rig.error(0)
    (rig.root / "one" / "config.pbtxt").write_text("name: {" + BACKBONE)
    rig.refresh()
    assert "not a Triton model configuration" in rig.error(0)
    assert rig.engine.vfms == set()
    write_config(rig.root, "one", 0)
    rig.refresh()
    assert rig.vfm(0).name == "one"


def test_a_tag_beyond_the_slots(tmp_path: Path) -> None:
    rig = LoaderRig(tmp_path, slots=4)
    write_task(tmp_path, "last", 3)
    write_task(tmp_path, "over", 4)
    rig.refresh()
    assert isinstance(rig.loader.table[3], Vfm)
    assert "VFM_4 is beyond the backbone's vfm_slots of 4" in rig.error(4)


# -- what is broken


def test_a_broken_entry_is_refused_under_its_tag(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, weight=9.0)
    rig.refresh()
    edit(rig.root / "one" / "config.pbtxt", '"9"', '"heavy"')
    rig.refresh("one")
    assert "parameters.weight: 'heavy' is not a number above 0" in rig.error(0)
    assert rig.engine.vfms == set()
    edit(rig.root / "one" / "config.pbtxt", '"heavy"', '"2"')
    rig.refresh("one")
    assert rig.vfm(0).weight == 2


def test_a_broken_new_version_leaves_the_old_one_serving(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, task={"mark": 1})
    rig.refresh()
    vfm = rig.vfm(0)
    (write_version(rig.root, "one", 2, {}) / "task.json").write_text("{ half")
    for _ in range(2):
        rig.refresh("one")
        assert rig.vfm(0) is vfm
        assert rig.mark(0) == 1
    assert "version 1 goes on serving" in rig.loader.task_log.refusals["one"]
    write_version(rig.root, "one", 2, {"mark": 2})
    rig.refresh("one")
    assert rig.mark(0) == 2
    assert rig.loader.task_log.refusals == {}


def test_the_old_version_serves_on_new_terms(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    (write_version(rig.root, "one", 2, {}) / "task.json").unlink()
    write_config(rig.root, "one", 0, weight=6.0)
    rig.refresh()
    assert (rig.vfm(0).weight, rig.mark(0)) == (6.0, 0)


def test_an_old_version_that_is_gone_does_not_serve(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    (write_version(rig.root, "one", 2, {}) / "task.json").unlink()
    shutil.rmtree(rig.root / "one" / "1")
    rig.refresh("one")
    assert "task.json" in rig.error(0)
    assert rig.runtime.attached == []


def test_breaking_it_in_place_refuses(rig: LoaderRig) -> None:
    path = write_task(rig.root, "one", 0)
    rig.refresh()
    (path / "task.json").write_text("{ half")
    rig.refresh("one")
    assert str(path / "task.json") in rig.error(0)
    assert rig.engine.vfms == set()
    assert rig.runtime.attached == []
    write_version(rig.root, "one", 1, {"mark": 5})
    rig.refresh("one")
    assert rig.mark(0) == 5


@pytest.mark.parametrize("error", [ValueError("odd"), OSError("gone"), MemoryError(), KeyError("x")])
def test_whatever_loading_raises_refuses_that_task_alone(
    rig: LoaderRig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    former = rig.runtime.load

    def load(version: Path) -> FakeExtensions:
        if version.parent.name == "bad":
            raise error
        return former(version)

    monkeypatch.setattr(rig.runtime, "load", load)
    write_task(rig.root, "bad", 0)
    write_task(rig.root, "good", 1)
    rig.refresh()
    assert type(error).__name__ in rig.error(0)
    assert str(rig.root / "bad" / "1") in rig.error(0)
    assert rig.mark(1) == 1


class Content:
    """A file's bytes."""


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (lambda: TaskRefused("1/head", "weight", "it is odd", "Train it again"), "1/head: weight: it is odd. Train it"),
        (lambda: KeyError("odd"), "loading it raised KeyError: 'odd'"),
    ],
)
def test_a_refusal_keeps_its_message_and_not_the_files_it_read(
    rig: LoaderRig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Callable[[], Exception],
    says: str,
) -> None:
    caplog.set_level(logging.CRITICAL, "fmplex")  # what is captured would keep the traceback
    read: list[weakref.ref[Content]] = []

    def load(version: Path) -> FakeExtensions:
        content = Content()
        read.append(weakref.ref(content))
        try:
            raise ValueError(content)
        except ValueError:
            raise error() from None

    monkeypatch.setattr(rig.runtime, "load", load)
    write_task(rig.root, "bad", 0)
    rig.refresh()
    gc.collect()
    assert says in rig.error(0)
    assert [content() for content in read] == [None]
    rig.refresh()
    assert len(read) == 1, "it is read again though nothing has changed"


def test_what_reading_large_files_took_is_given_back_once(rig: LoaderRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []
    monkeypatch.setattr(loader_module, "give_back", lambda: rounds.append(1))
    write_task(rig.root, "small", 0)
    rig.refresh()
    assert rounds == []
    path = write_task(rig.root, "large", 1)
    (path / "decoder.safetensors").write_bytes(bytes(loader_module.LARGE_BYTES))
    rig.refresh()
    rig.refresh()
    assert rounds == [1]


def test_nothing_is_remembered_of_a_task_that_is_gone(rig: LoaderRig) -> None:
    path = write_task(rig.root, "bad", 0)
    (path / "task.json").write_text("{ half")
    rig.refresh()
    assert list(rig.loader.loading.refused) == ["bad"]
    shutil.rmtree(rig.root / "bad")
    rig.refresh("bad")
    assert rig.loader.loading.refused == {}
    assert rig.loader.repository._parsed == {}


@pytest.mark.parametrize("before", [False, True])
def test_what_cannot_be_attached_is_answered_with_an_error(
    rig: LoaderRig, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """No memory for one adapter: the task is refused, the others go on."""
    write_task(rig.root, "good", 1)
    if before:
        write_task(rig.root, "bad", 0)
        rig.refresh()
    former = rig.runtime.attach

    def attach(extensions: FakeExtensions) -> None:
        if extensions.mark == 99:
            raise MemoryError("no memory")
        former(extensions)

    monkeypatch.setattr(rig.runtime, "attach", attach)
    write_task(rig.root, "bad", 0, task={"mark": 99})
    rig.loader.refresh()
    requests = [rig.engine_rig.send(rig.vfm(tag), "a") for tag in (0, 1)]
    rig.engine_rig.drain()
    assert [rig.engine_rig.reason(request) for request in requests] == ["execution", ""]


def test_counts_of_a_refusal_go_on(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, max_queue=3)
    edit(rig.root / "one" / "config.pbtxt", '"3"', '"none"')
    rig.refresh()
    found = rig.loader.table[0]
    assert isinstance(found, Refusal)
    found.counts.fail("refused")
    rig.refresh()
    again = rig.loader.table[0]
    assert isinstance(again, Refusal)
    assert again.counts.failures == {"refused": 1}


def test_a_refusal_is_said_once(rig: LoaderRig, caplog: pytest.LogCaptureFixture) -> None:
    path = write_task(rig.root, "one", 0)
    (path / "task.json").unlink()
    with caplog.at_level(logging.INFO, "fmplex"):
        rig.refresh()
        rig.refresh()
    assert [record.message for record in caplog.records if "refused" in record.message] == [
        f"task one refused: {rig.error(0)}"
    ]


def test_what_goes_on_is_said_once(rig: LoaderRig, caplog: pytest.LogCaptureFixture) -> None:
    write_task(rig.root, "one", 0)
    with caplog.at_level(logging.INFO, "fmplex"):
        for _ in range(2):
            rig.refresh()
        write_config(rig.root, "one", 0, weight=3.0)
        (write_version(rig.root, "one", 2, {}) / "task.json").unlink()
        for _ in range(3):
            rig.refresh()
        shutil.rmtree(rig.root / "one")
        for _ in range(2):
            rig.refresh()
    first, refused, terms, removed = caplog.messages
    assert first == "task one: VFM_0, version 1, weight 1"
    assert refused.startswith("task one refused: ")
    assert refused.endswith("(version 1 goes on serving)")
    assert terms == "task one: VFM_0, version 1, weight 3"
    assert removed == "task one removed"


def test_a_former_version_that_disappears_later_serves_no_more(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    (write_version(rig.root, "one", 2, {}) / "task.json").unlink()
    rig.refresh()
    assert rig.mark(0) == 0
    shutil.rmtree(rig.root / "one" / "1")
    rig.refresh()
    assert "task.json" in rig.error(0)
    assert rig.runtime.attached == []


def test_a_refused_version_is_read_again_only_when_it_changes(rig: LoaderRig, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_task(rig.root, "one", 0)
    (path / "task.json").write_text("{ half")
    reads: list[Path] = []
    former = rig.runtime.load

    def load(version: Path) -> FakeExtensions:
        reads.append(version)
        return former(version)

    monkeypatch.setattr(rig.runtime, "load", load)
    for _ in range(3):
        rig.refresh()
    assert reads == [path]
    write_version(rig.root, "one", 1, {"mark": 7})
    rig.refresh()
    assert (reads, rig.mark(0)) == ([path, path], 7)


def test_what_raises_is_loaded_again_after_some_seconds_and_its_traceback_is_written_once(
    rig: LoaderRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A hundred requests with an unknown tag make a hundred rounds."""
    write_task(rig.root, "one", 0)
    loads: list[Path] = []

    def broken(version: Path) -> FakeExtensions:
        loads.append(version)
        raise RuntimeError("odd")

    with monkeypatch.context() as patch:
        patch.setattr(rig.runtime, "load", broken)
        for _ in range(100):
            rig.refresh()
        assert len(loads) == 1
        rig.engine_rig.clock.sleep(5.1)
        rig.refresh()
        assert len(loads) == 2
    assert "RuntimeError: odd" in rig.error(0)
    assert sum(record.exc_info is not None for record in caplog.records) == 1
    rig.engine_rig.clock.sleep(5.1)
    rig.refresh()
    assert rig.mark(0) == 0


def test_files_that_are_no_tasks_change_nothing(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    (rig.root / "notes.txt").write_text("x")
    rig.refresh("notes.txt", "one", "never-was")
    assert rig.mark(0) == 0


def test_a_repository_that_is_away_for_a_moment(rig: LoaderRig, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()

    def away() -> list[str]:
        raise OSError("stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr(rig.loader.repository, "names", away)
        rig.refresh()
    assert rig.mark(0) == 0


def test_nothing_is_loaded_by_a_reading_of_which_the_tags_could_not_be_settled(
    rig: LoaderRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has said then that a newcomer's tag is the served task's."""
    write_task(rig.root, "one", 0, task={"mark": 1})
    rig.refresh()
    for name, tag in (("another", 0), ("a", 5), ("b", 5)):  # of the last two the older one is looked for
        write_task(rig.root, name, tag, task={"mark": 2})

    def unreadable(names: Iterable[str]) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(rig.loader.tags, "oldest", unreadable)
        assert not rig.loader.settle()
    assert not rig.loader.load_next()
    assert rig.mark(0) == 1
    rig.refresh()
    assert (rig.mark(0), rig.vfm(5).name) == (1, "a")


# -- the real runtime: what is wrong with a version's files, by file and field

CLASSES = {"kind": "classification", "labels": ["a", "b"]}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return text_runtime(save_tiny(tmp_path_factory.mktemp("bert")))


def break_nothing(path: Path) -> None:
    """As it is."""


def truncate(path: Path) -> None:
    file = path / "decoder.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def refusal(root: Path, runtime: Any, change: Callable[[Path], object], **task: Any) -> Vfm | Refusal:
    """A classification task, changed, as the loader sees it."""
    rig = LoaderRig(root)
    options = {"sizes": {"SCORES": 2, "LABEL": 1}, **task.pop("entry", {})}
    path = write_task(root, "task", 0, task=text_task(CLASSES, **task), **{"decoder": "classification", **options})
    write_head(path / "decoder.safetensors", 2)
    change(path)
    loader = Loader(Repository(root, BACKBONE), runtime, rig.engine, max_queue=9, slots=9)
    loader.refresh()
    return loader.table[0]


@pytest.mark.parametrize(
    ("change", "file", "field"),
    [
        (lambda path: (path / "task.json").unlink(), "1/task.json", "(whole file)"),
        (lambda path: (path / "task.json").write_text("{"), "1/task.json", "(whole file)"),
        (lambda path: edit(path / "task.json", "classification", "sorcery"), "1/task.json", "decoder"),
        (lambda path: edit(path / "task.json", '["a", "b"]', '["a", "b", "c"]'), "1/decoder.safetensors", "weight"),
        (lambda path: (path / "decoder.safetensors").unlink(), "1/decoder.safetensors", "(whole file)"),
        (truncate, "1/decoder.safetensors", "(whole file)"),
        (lambda path: write_head(path / "decoder.safetensors", 2, 31), "1/decoder.safetensors", "weight"),
    ],
)
def test_a_version_that_is_broken(
    tmp_path: Path, runtime: Any, change: Callable[[Path], object], file: str, field: str
) -> None:
    found = refusal(tmp_path, runtime, change)
    assert isinstance(found, Refusal)
    assert isinstance(found.error, TaskRefused)
    assert (found.error.file, found.error.field) == (str(tmp_path / "task" / file), field)
    assert found.error.remedy


@pytest.mark.parametrize(
    ("task", "file", "field"),
    [
        ({"backbone": {"model": "m", "fingerprint": "sha256:1"}}, "1/task.json", "backbone.fingerprint"),
        ({"adapter": {"kind": "peft"}}, "1/adapter/adapter_config.json", "(whole file)"),
        ({"encoder": {"max_length": 900}}, "1/task.json", "encoder.max_length"),
        ({"entry": {"decoder": "embedding"}}, "config.pbtxt", "ensemble_scheduling.step.output_map.EMBEDDING"),
        ({"entry": {"decoder": "similarity", "sizes": {"SCORES": 3}}}, "config.pbtxt", "output.SCORES.dims"),
        ({"entry": {"sizes": {"SCORES": 2, "LABEL": 2}}}, "config.pbtxt", "output.LABEL.dims"),
    ],
)
def test_an_entry_and_a_version_that_do_not_fit(
    tmp_path: Path, runtime: Any, task: dict[str, Any], file: str, field: str
) -> None:
    found = refusal(tmp_path, runtime, break_nothing, **task)
    assert isinstance(found, Refusal)
    assert isinstance(found.error, TaskRefused)
    assert (found.error.file, found.error.field) == (str(tmp_path / "task" / file), field)


@pytest.mark.parametrize("sizes", [{"SCORES": 2, "LABEL": 1}, {"SCORES": -1}, {}])
def test_an_entry_and_a_version_that_fit(tmp_path: Path, runtime: Any, sizes: dict[str, int]) -> None:
    assert isinstance(refusal(tmp_path, runtime, break_nothing, entry={"sizes": sizes}), Vfm)


# -- what a version may have read


def test_a_version_whose_links_lead_out_is_refused_until_they_do_not(tmp_path: Path) -> None:
    rig = LoaderRig(tmp_path / "repository")
    rig.root.mkdir()
    (tmp_path / "outside.json").write_text('{"mark": 7}')
    version = write_task(rig.root, "one", 0)
    write_task(rig.root, "two", 1)
    (version / "task.json").unlink()
    (version / "task.json").symlink_to(tmp_path / "outside.json")
    rig.refresh()
    assert "1/task.json: (link): it leads to" in rig.error(0)
    assert rig.mark(1) == 1
    (version / "task.json").unlink()
    shutil.copy2(tmp_path / "outside.json", version / "task.json")  # of the same time and size
    rig.refresh()
    assert rig.mark(0) == 7


def test_a_root_that_the_operator_allows(tmp_path: Path) -> None:
    rig = LoaderRig(tmp_path / "repository")
    rig.root.mkdir()
    version = write_task(rig.root, "one", 0)
    version.rename(tmp_path / "elsewhere")
    version.symlink_to(tmp_path / "elsewhere")
    rig.refresh()
    assert "one/1: (link): it leads to" in rig.error(0)
    rig = LoaderRig(rig.root)
    rig.loader.loading.confinement = Confinement((str(tmp_path / "elsewhere"),))
    rig.refresh()
    assert rig.mark(0) == 0


def test_a_version_of_too_many_bytes(rig: LoaderRig) -> None:
    version = write_task(rig.root, "one", 0)
    with (version / "video.mp4").open("wb") as stream:
        stream.truncate(3 << 30)
    rig.refresh()
    assert "its files have 3072 MiB, 2048 MiB are allowed" in rig.error(0)
    (version / "video.mp4").unlink()
    rig.refresh()
    assert rig.mark(0) == 0


# -- what is read before it is bound here


@pytest.fixture
def loads(rig: LoaderRig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tasks whose versions were loaded."""
    found, load = [], rig.runtime.load

    def counting(version: Path, *arguments: Any) -> Any:
        found.append(version.parent.name)
        return load(version, *arguments)

    monkeypatch.setattr(rig.runtime, "load", counting)
    return found


def test_a_version_that_was_read_before_its_task_is_bound_here_is_not_read_again(
    rig: LoaderRig, loads: list[str]
) -> None:
    write_task(rig.root, "one", 0, backbone="other")
    rig.refresh()
    assert rig.loader.prefetch("one") == ""
    assert rig.loader.table == {}
    write_config(rig.root, "one", 0)
    rig.refresh("one")
    assert rig.mark(0) == 0
    assert loads == ["one"]
    write_task(rig.root, "two", 1, backbone="other")
    assert rig.loader.prefetch("two") == "", "the one before it was of use"


def test_a_version_that_was_written_since_it_was_read_is_read_again(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 3, backbone="other")
    assert rig.loader.prefetch("one") == ""
    write_config(rig.root, "one", 3)
    write_version(rig.root, "one", 1, {"mark": 8, "longer": "than before"})
    rig.refresh("one")
    assert rig.mark(3) == 8


def test_what_would_be_refused_is_said_before_it_is_bound_here_and_read_once(
    rig: LoaderRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_task(rig.root, "own", 1)
    write_task(rig.root, "one", 0, backbone="other")
    assert rig.loader.prefetch("own") is None
    assert rig.loader.prefetch("nothing") is None
    loads = []

    def load(version: Path) -> Any:
        loads.append(version)
        raise TaskRefused(version, "head", "it is torn", "Write it again")

    monkeypatch.setattr(rig.runtime, "load", load)
    for _ in range(3):
        assert "it is torn" in (rig.loader.prefetch("one") or "")
    assert len(loads) == 1
    rig.engine_rig.clock.sleep(prefetching.LEAST_APART_S)
    write_version(rig.root, "one", 1, {"mark": 8, "longer": "than before"})
    assert "it is torn" in (rig.loader.prefetch("one") or "")
    assert len(loads) == 2, "its files are others now"


def test_what_is_kept_is_not_given_up_for_what_anybody_asks_for(rig: LoaderRig, loads: list[str]) -> None:
    for tag, name in enumerate(("one", "two")):
        write_task(rig.root, name, tag, backbone="other")
    assert rig.loader.prefetch("one") == ""
    rig.engine_rig.clock.sleep(prefetching.KEPT_S - 1)
    assert rig.loader.prefetch("two") is None
    write_config(rig.root, "one", 0)
    rig.refresh("one")
    assert loads == ["one"]


def test_what_takes_long_to_read_is_not_read_again_and_again(
    rig: LoaderRig, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    load = rig.runtime.load

    def slow(version: Path) -> Any:
        rig.engine_rig.clock.sleep(2.0)
        return load(version)

    monkeypatch.setattr(rig.runtime, "load", slow)
    write_task(rig.root, "one", 0, backbone="other")
    for _ in range(100):
        rig.loader.prefetch("one")
        rig.engine_rig.clock.sleep(0.5)
    # 50 s, of which six are spent on three readings: at 0, 20 and 40 s
    assert loads == ["one"] * 3


def test_what_nobody_has_bound_here_is_given_up(
    rig: LoaderRig, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    given_back = []
    monkeypatch.setattr(loader_module, "LARGE_BYTES", 1)
    monkeypatch.setattr(loader_module, "give_back", lambda: given_back.append(True))
    write_task(rig.root, "one", 0, backbone="other")
    rig.refresh()
    assert rig.loader.is_settled
    assert rig.loader.prefetch("one") == ""
    assert not rig.loader.is_settled
    rig.loader.refresh(())
    assert given_back == []
    rig.engine_rig.clock.sleep(prefetching.KEPT_S)
    rig.loader.refresh(())
    assert given_back == [True]
    assert rig.loader.is_settled
    write_config(rig.root, "one", 0)
    rig.refresh("one")
    assert loads == ["one", "one"]


def test_nothing_outside_the_repository_is_read_before_it_is_bound_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "repository").mkdir()
    rig = LoaderRig(tmp_path / "repository")
    write_task(rig.root, "a", 0, backbone="other")
    write_task(tmp_path, "outside", 1, backbone="other")
    shutil.copytree(rig.root / "a", rig.root / ".hidden")
    read = list[Path]()

    def reading(file: Path) -> Any:
        read.append(file)
        return read_config(file)

    monkeypatch.setattr(loader_module, "read_config", reading)
    for name in (str(tmp_path / "outside"), "a/../../outside", "../outside", ".hidden", "", ".", "..", "a/", "x\0"):
        assert rig.loader.prefetch(name) is None
    assert read == []
    assert rig.loader.prefetch("a") == ""
