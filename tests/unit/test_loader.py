"""The vFMs follow the repository: what is served, what is refused and why, and what goes on meanwhile."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import BACKBONE, LoaderRig, edit, text_task, write_config, write_task, write_version
from model_fixtures import save_tiny, text_runtime, write_head

from fmplex_backend.errors import TaskRefused
from fmplex_backend.loader import Loader, Refusal
from fmplex_backend.repository import Repository
from fmplex_backend.runtime.fake import FakeExtensions
from fmplex_backend.vfm import Vfm


@pytest.fixture
def rig(tmp_path: Path) -> LoaderRig:
    return LoaderRig(tmp_path)


# -- what is there


def test_tasks_that_are_there_are_served(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0, weight=3.0, slo_ms=50.0, max_queue=5)
    write_task(rig.root, "two", 7)
    rig.refresh()
    one, two = rig.vfm(0), rig.vfm(7)
    assert (one.id, one.name, one.weight, one.slo, one.max_queue) == (0, "one", 3.0, 0.05, 5)
    assert (two.id, two.name, two.weight, two.slo, two.max_queue) == (7, "two", 1.0, None, 100)
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


def test_the_tag_of_a_task_that_left_is_free_at_once(tmp_path: Path) -> None:
    rig = LoaderRig(tmp_path, grace=2.0)
    write_task(rig.root, "one", 0)
    rig.refresh()
    shutil.rmtree(rig.root / "one")
    rig.refresh("one")
    write_task(rig.root, "new", 0)
    rig.refresh("new")
    assert rig.vfm(0).name == "new"
    assert rig.engine.vfms == {rig.vfm(0)}


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


def test_a_new_name(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    former = rig.vfm(0)
    (rig.root / "one").rename(rig.root / "uno")
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


def test_one_tag_for_two_refuses_both_and_names_them(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    rig.refresh()
    write_task(rig.root, "two", 0)
    rig.refresh("two")
    assert "VFM_0 is the tag of" in rig.error(0)
    said = " ".join(rig.loader.refused_by_name.values())
    assert all(name in said for name in ("'one'", "'two'"))
    for name, other in (("one", "two"), ("two", "one")):
        text = rig.loader.refused_by_name[name]
        assert text.startswith(str(rig.root / name / "config.pbtxt"))
        assert f"'{other}'" in text
    assert rig.engine.vfms == set()


@pytest.mark.parametrize("gone", ["one", "two"])
def test_removing_one_of_them_heals_the_other(rig: LoaderRig, gone: str) -> None:
    write_task(rig.root, "one", 0)
    write_task(rig.root, "two", 0)
    rig.refresh()
    shutil.rmtree(rig.root / gone)
    rig.refresh(gone)
    assert {rig.vfm(0).name, gone} == {"one", "two"}


def test_a_broken_task_takes_its_tag_too(rig: LoaderRig) -> None:
    """Its client must not be answered by another task."""
    write_task(rig.root, "one", 0)
    write_task(rig.root, "two", 0, max_queue=3)
    edit(rig.root / "two" / "config.pbtxt", '"3"', '"none"')
    rig.refresh()
    assert "VFM_0 is the tag of" in rig.error(0)


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
    assert "version 1 goes on serving" in rig.loader.refused_by_name["one"]
    write_version(rig.root, "one", 2, {"mark": 2})
    rig.refresh("one")
    assert rig.mark(0) == 2
    assert rig.loader.refused_by_name == {}


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


# -- threads


def test_watching_follows_a_change(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    seen = threading.Event()
    former = rig.loader.refresh

    def refresh(names: Any = None) -> None:
        former(names)
        if 5 in rig.loader.table:
            seen.set()

    rig.loader.refresh = refresh  # type: ignore[method-assign]
    thread = threading.Thread(target=rig.loader.watch_forever)
    thread.start()
    try:
        for _ in range(50):  # the watch may begin after the first write
            write_config(rig.root, "one", 5)
            if seen.wait(0.2):
                break
    finally:
        rig.loader.stop()
        thread.join(20)
    assert seen.is_set()
    assert not thread.is_alive()


def test_a_question_is_answered_after_a_look(rig: LoaderRig) -> None:
    write_task(rig.root, "one", 0)
    found: list[bool] = []
    for _ in range(3):
        rig.loader.look_again(lambda: found.append(0 in rig.loader.table))
    rig.loader.stop()
    thread = threading.Thread(target=rig.loader.serve_questions)
    thread.start()
    thread.join(20)
    assert found == [True] * 3
    assert not thread.is_alive()
