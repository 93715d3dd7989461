"""What a round found is carried out: on which terms a task is served, how it changes, and how long one that left is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from backend_fixtures import BACKBONE, EngineRig, write_config, write_task, write_version

from fmplex_backend.confinement import Confinement
from fmplex_backend.errors import ExecutionFailed, TaskRefused
from fmplex_backend.repository.configs import CONFIG
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.serving.answer_cache import AnswerCache
from fmplex_backend.serving.reconcile import Attach, KeepFormer, Refuse, Retire, Served, SetTerms
from fmplex_backend.serving.served_tasks import ServedTasks
from fmplex_backend.serving.tasklog import TaskLog
from fmplex_backend.serving.version_loading import VersionLoading
from fmplex_backend.types import Extensions, Vfm

GRACE, MOVED_GRACE = 2.0, 30.0
CACHED = {"cache": "true"}
CANARY = {"canary_version": "2", "canary_share": "0.25"}
CAME_AHEAD = {"ahead_s": "0.5", "rebound_at": "1e12"}  # from another backbone, and just now whenever that is


class ServedRig:
    """Served tasks over an engine with no model, which runs when it is told to."""

    def __init__(self, root: Path) -> None:
        self.root, self.engine_rig = root, EngineRig()
        self.engine, self.clock = self.engine_rig.engine, self.engine_rig.clock
        self.answers = AnswerCache(1 << 20)
        repository, task_log = Repository(root, BACKBONE), TaskLog()
        self.repository = repository
        self.loading = VersionLoading(self.engine_rig.runtime, Confinement(), self.clock, task_log)
        self.tasks = ServedTasks(
            repository,
            self.engine,
            self.loading,
            self.answers,
            task_log,
            max_queue=100,
            max_queue_bytes=1000,
            max_seconds=60.0,
            grace=GRACE,
            moved_grace=MOVED_GRACE,
        )

    def spec(self, name: str = "one") -> TaskSpec:
        """As its entry says now."""
        found = self.repository.read_task(name)
        assert isinstance(found, TaskSpec), found
        return found

    def attach(self, loaded: Extensions | Exception | None = None, name: str = "one") -> Vfm:
        """Serve a task as its entry says, with its version or what loading it gave; returns the vFM that serves."""
        spec = self.spec(name)
        self.tasks.attach(Attach(spec, self.tasks.served.get(name)), loaded or self.loading.read(spec))
        self.engine_rig.drain()
        return self.tasks.served[name].vfm

    def refuse(self, raised: Exception, name: str = "one") -> None:
        """Loading what the entry says now raised this."""
        self.tasks.attach(Attach(self.spec(name), self.tasks.served.get(name)), raised)
        self.engine_rig.drain()

    def terms(self, parameters: Mapping[str, str] | None = None, **terms: Any) -> None:
        """Write other terms, and set them."""
        write_config(self.root, "one", 0, parameters=parameters, **terms)
        self.tasks.apply(SetTerms(self.spec(), self.tasks.served["one"]))
        self.engine_rig.drain()

    def keeps_an_answer(self, vfm: Vfm) -> bool:
        """Whether the answer to a request of a vFM is found again."""
        request = self.engine_rig.make(vfm, "some words")
        self.answers.keep(request, {"EMBEDDING": np.zeros((1, 2), dtype=np.float32)})
        return self.answers.find(request) is not None


def torn(spec: TaskSpec) -> TaskRefused:
    return TaskRefused(spec.version.path, "(whole version)", "it is torn", "Write it again")


@pytest.fixture
def rig(tmp_path: Path) -> ServedRig:
    """There is a task `one` with VFM_0."""
    write_task(tmp_path, "one", 0)
    return ServedRig(tmp_path)


# -- a version that was loaded


def test_a_new_task_is_served_by_a_vfm_of_its_own_on_its_terms(rig: ServedRig) -> None:
    write_config(rig.root, "one", 0, weight=3.0, slo_ms=50.0, parameters={"max_running": "4", "max_kv_share": "0.5"})
    vfm = rig.attach()
    assert rig.tasks.served == {"one": Served(rig.spec(), vfm)}
    assert rig.engine.vfms == {vfm}
    assert (vfm.id, vfm.name, vfm.weight, vfm.slo, vfm.max_running, vfm.max_kv_share) == (0, "one", 3.0, 0.05, 4, 0.5)


def test_limits_are_the_tasks_or_the_backbones(rig: ServedRig) -> None:
    vfm = rig.attach()
    assert (vfm.max_queue, vfm.max_queue_bytes, vfm.max_seconds) == (100, 1000, 60.0)
    assert (vfm.max_running, vfm.max_kv_share) == (None, None)
    rig.terms(max_queue=5, max_queue_bytes=50, max_seconds=9.0)
    assert (vfm.max_queue, vfm.max_queue_bytes, vfm.max_seconds) == (5, 50, 9.0)
    rig.terms()
    assert (vfm.max_queue, vfm.max_queue_bytes, vfm.max_seconds) == (100, 1000, 60.0)


def test_requests_of_a_new_task_are_prepared_and_limited_before_the_engine_knows_it(rig: ServedRig) -> None:
    spec, extensions = rig.spec(), rig.loading.read(rig.spec())
    assert not isinstance(extensions, Exception)
    rig.tasks.attach(Attach(spec, None), extensions)
    vfm = rig.tasks.served["one"].vfm
    assert (vfm.extensions, vfm.max_queue) == (extensions, 100)
    assert rig.engine.vfms == set()


def test_a_new_version_takes_the_place_of_the_former_between_two_batches(rig: ServedRig) -> None:
    vfm = rig.attach()
    former = vfm.extensions
    write_version(rig.root, "one", 2, {"mark": 2})
    spec = rig.spec()
    extensions = rig.loading.read(spec)
    assert not isinstance(extensions, Exception)
    rig.tasks.attach(Attach(spec, rig.tasks.served["one"]), extensions)
    assert vfm.extensions is former, "what the engine runs now is prepared for these"
    rig.engine_rig.drain()
    assert rig.tasks.served == {"one": Served(spec, vfm)}
    assert (vfm.extensions, rig.engine_rig.runtime.attached) == (extensions, [extensions])


def test_a_task_begins_ahead_by_what_it_had_elsewhere_and_once(rig: ServedRig) -> None:
    write_config(rig.root, "one", 0, parameters=CAME_AHEAD)
    assert rig.spec().ahead_s == 0.5
    vfm = rig.attach()
    assert vfm.start == 0.5
    write_version(rig.root, "one", 2, {"mark": 2})
    rig.attach()
    rig.terms(CAME_AHEAD, weight=2.0)
    assert vfm.start == 0.5


def test_a_canary_has_its_part_of_all_that_the_task_may_have(rig: ServedRig) -> None:
    write_version(rig.root, "one", 2, {"mark": 2})
    may = CANARY | CAME_AHEAD | {"max_running": "8", "max_kv_share": "0.5"}
    write_config(rig.root, "one", 0, serves=1, weight=4.0, max_queue=7, parameters=may)
    vfm = rig.attach()
    (canary,) = rig.engine.vfms - {vfm}
    assert (vfm.weight, canary.weight) == (3.0, 1.0)
    assert (vfm.max_running, canary.max_running) == (6, 2)
    assert (vfm.max_kv_share, canary.max_kv_share) == (0.375, 0.125)
    assert (vfm.max_queue, canary.max_queue) == (7, 7)
    assert (vfm.start, canary.start) == (0.125, 0.125), "0.5 s of service, of which a canary has a fourth"
    rig.terms(CANARY | {"max_running": "1"}, serves=1)
    assert (vfm.max_running, canary.max_running) == (1, 1), "some at least"


def test_what_cannot_be_attached_is_refused_by_the_engine_and_told(
    rig: ServedRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(extensions: Any) -> None:
        raise MemoryError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(rig.engine_rig.runtime, "attach", full)
        vfm = rig.attach()
    assert isinstance(vfm.refused, ExecutionFailed)
    assert str(vfm.refused) == "the extensions of 'one' cannot be attached: no memory"
    assert [(each.message, each.exc_info is not None) for each in caplog.records] == [("attaching task one", True)]
    write_version(rig.root, "one", 2, {"mark": 2})
    assert rig.attach() is vfm
    assert vfm.refused is None


# -- a version that was not


def test_a_task_whose_version_is_refused_is_answered_with_that_under_its_tag(rig: ServedRig) -> None:
    error = torn(rig.spec())
    rig.refuse(error)
    assert rig.tasks.served == {}
    refused = rig.tasks.refused["one"]
    assert isinstance(refused, Refuse)
    assert (refused.vfm, str(refused.error)) == (0, str(error))
    assert rig.loading.refused.keys() == {"one"}
    rig.attach()
    assert rig.loading.refused == {}, "what was loaded is not refused any more"


def test_what_loading_raised_is_a_refusal_too(rig: ServedRig) -> None:
    rig.refuse(KeyError("odd"))
    assert "loading it raised KeyError: 'odd'" in str(rig.tasks.refused["one"].error)


def test_a_version_that_changed_in_place_and_is_refused_ends_the_former_at_once(rig: ServedRig) -> None:
    vfm = rig.attach()
    rig.refuse(torn(rig.spec()))
    assert rig.tasks.served == {}
    assert isinstance(rig.tasks.refused["one"], Refuse)
    assert rig.tasks.end_left({}) == {0: (vfm, rig.clock())}


def test_where_a_new_version_is_refused_the_former_goes_on_by_the_new_terms(rig: ServedRig) -> None:
    vfm, former = rig.attach(), rig.spec()
    write_version(rig.root, "one", 2, {"mark": 2})
    write_config(rig.root, "one", 0, weight=3.0)
    rig.refuse(torn(rig.spec()))
    served = rig.tasks.served["one"]
    assert (served.vfm, served.spec.version, served.spec.weight) == (vfm, former.version, 3.0)
    assert vfm.weight == 3.0
    assert isinstance(rig.tasks.refused["one"], KeepFormer)
    assert rig.engine.vfms == {vfm}


def test_a_former_version_whose_files_are_others_now_does_not_go_on(rig: ServedRig) -> None:
    rig.attach()
    former = rig.tasks.served["one"]
    write_version(rig.root, "one", 1, {"mark": 1, "longer": "than before"})
    write_version(rig.root, "one", 2, {"mark": 2})
    spec = rig.spec()
    rig.tasks.apply(KeepFormer(spec, former, torn(spec)))
    assert rig.tasks.served == {}
    assert isinstance(rig.tasks.refused["one"], Refuse)


def test_what_goes_on_unchanged_is_not_served_anew(rig: ServedRig, caplog: pytest.LogCaptureFixture) -> None:
    rig.attach()
    write_version(rig.root, "one", 2, {"mark": 2})
    caplog.set_level("INFO", "fmplex")
    for _ in range(3):
        rig.refuse(torn(rig.spec()))
    assert [message for message in caplog.messages if "weight" in message] == []
    assert sum("version 1 goes on serving" in message for message in caplog.messages) == 1


# -- answers that are kept


def test_answers_are_kept_as_the_entry_says(rig: ServedRig) -> None:
    vfm = rig.attach()
    assert not rig.keeps_an_answer(vfm)
    rig.terms(CACHED)
    assert rig.keeps_an_answer(vfm)
    rig.terms()
    assert not rig.keeps_an_answer(vfm)


def test_answers_of_what_does_not_repeat_itself_are_not_kept(rig: ServedRig) -> None:
    """Such a version is refused where it is loaded for an entry that says `cache`; one that serves goes on."""
    write_version(rig.root, "one", 1, {"mark": 1, "repeats": False})
    vfm = rig.attach()
    rig.terms(CACHED, weight=2.0)
    assert vfm.weight == 2.0
    assert not rig.keeps_an_answer(vfm)


@pytest.mark.parametrize("how", ["replaced", "retired", "refused"])
def test_answers_of_extensions_that_serve_no_more_are_not_found(
    rig: ServedRig, monkeypatch: pytest.MonkeyPatch, how: Literal["replaced", "retired", "refused"]
) -> None:
    write_config(rig.root, "one", 0, parameters=CACHED)
    vfm = rig.attach()
    former = vfm.extensions
    assert rig.keeps_an_answer(vfm)
    if how == "retired":
        rig.tasks.draining.add(vfm, 0.0)
        rig.tasks.draining.retire_due()
        rig.engine_rig.drain()
    else:
        if how == "refused":
            monkeypatch.setattr(rig.engine_rig.runtime, "attach", lambda extensions: 1 / 0)
        write_version(rig.root, "one", 2, {"mark": 2})
        rig.attach()
    assert rig.keeps_an_answer(vfm) == (how == "replaced"), "by those that serve now"
    vfm.extensions = former
    assert not rig.keeps_an_answer(vfm)


# -- one that leaves


@pytest.mark.parametrize(
    ("cause", "entry", "seconds"),
    [
        ("removed", "gone", GRACE),
        ("removed", "no entry at all", GRACE),
        ("removed", "elsewhere", MOVED_GRACE),
        ("moved", "here", MOVED_GRACE),
        ("refused", "here", 0.0),
    ],
)
def test_how_long_one_that_left_is_answered_for(
    rig: ServedRig, cause: Literal["removed", "moved", "refused"], entry: str, seconds: float
) -> None:
    """The server sends by the entry that it has loaded: one that is bound elsewhere may wait for a long load."""
    vfm = rig.attach()
    if entry == "gone":
        (rig.root / "one" / CONFIG).unlink()
    elif entry == "elsewhere":
        write_config(rig.root, "one", 0, backbone="other")
    elif entry != "here":
        (rig.root / "one" / CONFIG).write_text("{ " + entry)
    rig.tasks.apply(Retire(rig.tasks.served["one"], cause))
    assert rig.tasks.served == {}
    assert rig.tasks.leaving == {0: (vfm, rig.clock() + seconds)}
    assert rig.engine.vfms == {vfm}, "until nothing refers to it"


def test_one_that_left_ends_when_its_time_is_over_or_another_has_its_tag(rig: ServedRig) -> None:
    vfms = []
    for tag, name in enumerate(("one", "two", "three")):
        write_task(rig.root, name, tag)
        vfms.append(rig.attach(name=name))
    for name in ("one", "two"):
        (rig.root / name / CONFIG).unlink()
        rig.tasks.apply(Retire(rig.tasks.served[name], "removed"))
    rig.tasks.apply(Retire(rig.tasks.served["three"], "moved"))
    began = rig.clock()
    assert rig.tasks.end_left({}) == {}
    assert rig.tasks.end_left({1: vfms[1], 7: vfms[2]}) == {1: (vfms[1], began + GRACE)}
    rig.clock.sleep(GRACE)
    assert rig.tasks.end_left({}) == {0: (vfms[0], began + GRACE)}
    assert rig.tasks.leaving.keys() == {2}


def test_what_is_tried_beside_one_that_leaves_ends_with_it(rig: ServedRig) -> None:
    write_version(rig.root, "one", 2, {"mark": 2})
    write_config(rig.root, "one", 0, serves=1, parameters=CANARY)
    vfm = rig.attach()
    (canary,) = rig.engine.vfms - {vfm}
    rig.tasks.apply(Retire(rig.tasks.served["one"], "removed"))
    assert rig.tasks.candidates.beside == {}
    assert rig.tasks.draining.vfms == [canary]
    rig.clock.sleep(GRACE)
    rig.tasks.draining.retire_due()
    rig.engine_rig.drain()
    assert rig.engine.vfms == {vfm}


def test_a_task_that_is_refused_is_told_once_and_its_removal_too(
    rig: ServedRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.attach()
    caplog.set_level("INFO", "fmplex")
    error = torn(rig.spec())
    for _ in range(2):
        rig.tasks.apply(Refuse("two", None, error))
    rig.tasks.apply(Retire(rig.tasks.served["one"], "removed"))
    assert caplog.messages == [f"task two refused: {error}", "task one removed"]
