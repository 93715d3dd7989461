"""Canaries and shadows follow the entry: what is tried, on which terms, what is refused and why, and how it ends."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import LoaderRig, text_task, write_config, write_task, write_version

from fmplex_backend.serving.accounts import account_of
from fmplex_backend.serving.candidates import Beside, Candidate
from fmplex_backend.types import Vfm

CANARY = {"canary_version": "2", "canary_share": "0.25"}
SHADOW = {"shadow_version": "2"}


def version(mark: float, kind: str = "embedding", **rest: Any) -> dict[str, Any]:
    return text_task({"kind": kind, **rest}, metrics={"mark": mark})


class CandidatesRig(LoaderRig):
    """A task with two versions, of which the first serves."""

    def __init__(self, root: Path, *, grace: float = 0.0) -> None:
        super().__init__(root, grace=grace)
        write_task(root, "one", 0, task=version(1), serves=1)
        write_version(root, "one", 2, version(2))
        self.refresh()

    def say(self, parameters: dict[str, str], *, serves: int | None = 1, **terms: Any) -> None:
        """Another entry."""
        write_config(self.root, "one", 0, serves=serves, parameters=parameters, **terms)
        self.refresh()

    @property
    def beside(self) -> Beside:
        """What is tried beside the task."""
        return self.loader.candidates.beside.get(self.vfm(0), Beside())

    @property
    def canary(self) -> Candidate:
        """Which there is."""
        assert self.beside.canary is not None
        return self.beside.canary

    @property
    def shadow(self) -> Candidate:
        """Which there is."""
        assert self.beside.shadow is not None
        return self.beside.shadow


def serving(candidate: Candidate) -> Vfm:
    assert candidate.vfm is not None, candidate.problem
    assert not candidate.problem
    return candidate.vfm


@pytest.fixture
def rig(tmp_path: Path) -> CandidatesRig:
    return CandidatesRig(tmp_path)


def test_nothing_is_tried_that_the_entry_does_not_say(rig: CandidatesRig) -> None:
    assert rig.beside.every == ()
    assert rig.mark(0) == 1


def test_a_canary_is_a_vfm_of_the_task_with_its_part_of_the_weight(rig: CandidatesRig) -> None:
    task = rig.vfm(0)
    rig.say(CANARY, weight=4.0, slo_ms=20.0, max_queue=7)
    canary = serving(rig.canary)
    assert rig.vfm(0) is task
    assert (rig.mark(0), canary.extensions.mark) == (1, 2)
    assert rig.engine.vfms == {task, canary}
    assert (task.weight, canary.weight) == (3.0, 1.0)
    assert (canary.slo, canary.max_queue, canary.name, canary.spare) == (0.02, 7, "one", False)


@pytest.mark.parametrize(
    ("share", "running", "own", "canarys"), [("0.25", 8, 6, 2), ("0.01", 8, 8, 1), ("0.5", 1, 1, 1)]
)
def test_the_limits_of_a_task_are_divided_between_its_vfms(
    rig: CandidatesRig, share: str, running: int, own: int, canarys: int
) -> None:
    limits = {"max_running": str(running), "max_kv_share": "0.5"}
    rig.say(CANARY | limits | {"canary_share": share})
    task, canary = rig.vfm(0), serving(rig.canary)
    assert (task.max_running, canary.max_running) == (own, canarys)
    assert task.max_kv_share is not None
    assert canary.max_kv_share == pytest.approx(0.5 * float(share))
    assert task.max_kv_share + canary.max_kv_share == pytest.approx(0.5)
    rig.say(limits)
    assert (task.max_running, task.max_kv_share) == (running, 0.5)


def test_a_task_that_comes_from_another_backbone_with_a_canary_is_ahead_by_both(tmp_path: Path) -> None:
    write_task(tmp_path, "one", 0, task=version(1), serves=1)
    write_version(tmp_path, "one", 2, version(2))
    came = {"ahead_s": "0.5", "rebound_at": str(time.time())}
    write_config(tmp_path, "one", 0, serves=1, parameters=CANARY | came, weight=2.0)
    rig = LoaderRig(tmp_path)
    rig.refresh()
    canary = rig.loader.candidates.beside[rig.vfm(0)].canary
    assert canary is not None
    assert (rig.vfm(0).start, serving(canary).start) == (0.25, 0.25)


def test_a_share_of_the_requests_is_the_canarys_the_same_ids_each_time(rig: CandidatesRig) -> None:
    rig.say(CANARY)
    task, canary = rig.vfm(0), serving(rig.canary)
    chosen = [rig.beside.chosen(task, f"r{number}") for number in range(1000)]
    assert chosen.count(canary) == pytest.approx(250, abs=5)
    assert chosen == [rig.beside.chosen(task, f"r{number}") for number in range(1000)]


def test_requests_without_an_id_take_turns(rig: CandidatesRig) -> None:
    rig.say(CANARY)
    chosen = [rig.beside.chosen(rig.vfm(0), "") for _ in range(1000)]
    assert chosen.count(serving(rig.canary)) == pytest.approx(250, abs=5)


def test_another_share_keeps_the_vfm_and_whoever_was_in_it(rig: CandidatesRig) -> None:
    rig.say(CANARY)
    canary, ids = serving(rig.canary), [f"r{number}" for number in range(300)]
    before = {each for each in ids if rig.canary.answers(each)}
    rig.say(CANARY | {"canary_share": "0.5"})
    assert serving(rig.canary) is canary
    assert before < {each for each in ids if rig.canary.answers(each)}
    assert (rig.vfm(0).weight, canary.weight) == (0.5, 0.5)


def test_a_tiny_share_has_a_weight_all_the_same(rig: CandidatesRig) -> None:
    rig.say(CANARY | {"canary_share": "0.0001"}, weight=0.5)
    assert serving(rig.canary).weight == 1e-3


def test_the_end_of_a_canary(rig: CandidatesRig) -> None:
    rig.say(CANARY)
    canary = serving(rig.canary)
    rig.say({})
    assert rig.beside.every == ()
    assert rig.engine.vfms == {rig.vfm(0)}
    assert canary.extensions not in rig.runtime.attached
    assert rig.vfm(0).weight == 1.0
    assert [closed.account for closed in rig.engine.closed] == [canary.account]


def test_requests_on_their_way_to_a_canary_that_ends_are_answered(tmp_path: Path) -> None:
    rig = CandidatesRig(tmp_path, grace=2.0)
    rig.say(CANARY)
    canary = serving(rig.canary)
    rig.say({})
    assert not rig.loader.is_settled
    request = rig.engine_rig.send(canary, "a")
    rig.engine_rig.drain()
    assert rig.engine_rig.reason(request) == ""
    rig.engine_rig.clock.sleep(2.1)
    rig.refresh()
    assert rig.engine.vfms == {rig.vfm(0)}
    assert rig.loader.is_settled


def test_a_promoted_version_serves_and_the_canary_ends(rig: CandidatesRig) -> None:
    rig.say(CANARY)
    task = rig.vfm(0)
    rig.say({}, serves=None)
    assert rig.vfm(0) is task
    assert rig.mark(0) == 2
    assert rig.engine.vfms == {task}


def test_a_shadow_is_a_vfm_for_spare_time_with_no_weight_of_the_tasks(rig: CandidatesRig) -> None:
    rig.say(SHADOW, weight=2.0)
    shadow = serving(rig.shadow)
    assert shadow.spare
    assert (rig.vfm(0).weight, rig.vfm(0).spare) == (2.0, False)
    assert shadow.extensions.mark == 2
    assert rig.beside.chosen(rig.vfm(0), "r1") is rig.vfm(0)


def test_both_at_once(rig: CandidatesRig) -> None:
    write_version(rig.root, "one", 3, version(3))
    rig.say(CANARY | {"shadow_version": "3"})
    assert (serving(rig.canary).extensions.mark, serving(rig.shadow).extensions.mark) == (2, 3)
    assert len(rig.engine.vfms) == 3


def test_a_task_that_goes_takes_what_is_tried_along(rig: CandidatesRig) -> None:
    rig.say(CANARY | SHADOW)
    (rig.root / "one" / "config.pbtxt").unlink()
    rig.refresh()
    rig.refresh()
    assert rig.engine.vfms == set()
    assert rig.loader.candidates.beside == {}
    assert rig.runtime.attached == []


# -- what is refused: the task goes on as if it were not there


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"canary_version": "9", "canary_share": "0.1"}, ["one/9", "no such version directory"]),
        ({"canary_version": "x", "canary_share": "0.1"}, ["parameters.canary_version", "'x'"]),
        ({"canary_version": "1", "canary_share": "0.1"}, ["canary_version", "the version that the task serves"]),
        ({"canary_share": "0.1"}, ["canary_version", "missing"]),
        ({"canary_version": "2"}, ["canary_share", "missing"]),
        ({"canary_version": "2", "canary_share": "1.5"}, ["canary_share", "'1.5'", "between 0 and 1"]),
        ({"canary_version": "2", "canary_share": "5%"}, ["canary_share", "'5%'", '"0.05"']),
        ({"shadow_version": "2", "shadow_tolerance": "-1"}, ["shadow_tolerance", "'-1'"]),
        ({"shadow_tolerance": "0.1"}, ["shadow_version", "missing"]),
    ],
)
def test_an_entry_that_is_wrong_about_what_is_tried(
    rig: CandidatesRig, parameters: dict[str, str], words: list[str]
) -> None:
    rig.say(parameters, weight=2.0)
    (candidate,) = rig.beside.every
    assert candidate.vfm is None
    assert all(word in candidate.problem for word in words), candidate.problem
    assert not candidate.answers("r1")
    assert (rig.mark(0), rig.vfm(0).weight) == (1, 2.0)
    assert rig.engine.vfms == {rig.vfm(0)}


@pytest.mark.parametrize("parameters", [CANARY, SHADOW])
def test_a_version_that_cannot_be_read(
    rig: CandidatesRig, parameters: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    (rig.root / "one" / "2" / "task.json").write_text("{")
    rig.say(parameters)
    (candidate,) = rig.beside.every
    assert "task.json" in candidate.problem
    assert "JSON" in candidate.problem
    assert rig.mark(0) == 1
    rig.refresh()
    refused = [record.getMessage() for record in caplog.records if "is refused" in record.getMessage()]
    assert len(refused) == 1
    assert refused[0].startswith("task one: version 2 as a")


@pytest.mark.parametrize("gone", ["the task", "the entry's word", "the problem"])
def test_a_refusal_is_remembered_while_it_lasts_and_then_news(
    rig: CandidatesRig, caplog: pytest.LogCaptureFixture, gone: str
) -> None:
    """Tasks come and go: what is remembered of those that are gone would grow without end."""
    file = rig.root / "one" / "2" / "task.json"
    whole = file.read_text()
    file.write_text("{")
    rig.say(CANARY)
    (file.parent / "notes").write_text("other files, the same problem")
    rig.refresh()
    if gone == "the task":
        (rig.root / "one" / "config.pbtxt").unlink()
        rig.refresh()
    elif gone == "the problem":
        file.write_text(whole)
        rig.refresh()
    else:
        rig.say({})
    assert rig.loader.candidates._said == {}
    file.write_text("{")
    rig.say(CANARY)
    assert sum("version 2 as a canary is refused" in message for message in caplog.messages) == 2


def test_it_is_tried_once_its_files_are_mended(rig: CandidatesRig) -> None:
    file = rig.root / "one" / "2" / "task.json"
    file.write_text("{")
    rig.say(CANARY)
    assert rig.canary.problem
    file.write_text(json.dumps(version(22)))
    rig.refresh("one")
    assert serving(rig.canary).extensions.mark == 22


def test_a_version_that_does_not_make_what_the_entry_shows(rig: CandidatesRig) -> None:
    rig.say(CANARY, sizes={"EMBEDDING": 2})
    serving(rig.canary)
    write_config(rig.root, "one", 0, serves=1, parameters=CANARY, decoder="classification")
    rig.refresh()
    assert rig.loader.table[0].name == "one"


def test_what_nobody_expected_when_it_is_loaded(rig: CandidatesRig, monkeypatch: pytest.MonkeyPatch) -> None:
    load = rig.runtime.load

    def raising(path: Path) -> Any:
        if path.name == "2":
            raise MemoryError("no memory")
        return load(path)

    monkeypatch.setattr(rig.runtime, "load", raising)
    rig.say(CANARY)
    assert "MemoryError: no memory" in rig.canary.problem
    assert rig.mark(0) == 1


def test_extensions_that_cannot_be_attached(rig: CandidatesRig, monkeypatch: pytest.MonkeyPatch) -> None:
    attach = rig.runtime.attach

    def raising(extensions: Any) -> None:
        if extensions.mark == 2:
            raise MemoryError("no memory")
        attach(extensions)

    monkeypatch.setattr(rig.runtime, "attach", raising)
    rig.say(CANARY, weight=4.0)
    assert "no memory" in rig.canary.problem
    assert rig.beside.chosen(rig.vfm(0), "r1") is rig.vfm(0)
    assert not any(rig.canary.answers(f"r{number}") for number in range(100))
    assert rig.vfm(0).weight == 4.0
    rig.say(CANARY | {"canary_share": "0.5"}, weight=3.0)
    assert rig.vfm(0).weight == 3.0


def test_kinds_that_cannot_be_compared_make_no_shadow(rig: CandidatesRig) -> None:
    write_version(rig.root, "one", 2, version(2, "similarity", labels=["a"], weights="decoder.safetensors"))
    rig.say(SHADOW)
    assert "decoder.kind" in rig.shadow.problem
    assert "canary" in rig.shadow.problem


# -- what begins anew


def test_other_files_of_the_version_are_another_candidate(rig: CandidatesRig) -> None:
    rig.say(SHADOW)
    shadow = rig.shadow
    write_version(rig.root, "one", 2, version(22))
    rig.refresh("one")
    assert rig.shadow.compared is not shadow.compared
    assert serving(rig.shadow).extensions.mark == 22
    assert len(rig.engine.vfms) == 2


def test_beside_another_version_answers_are_compared_anew(rig: CandidatesRig) -> None:
    write_version(rig.root, "one", 3, version(3))
    rig.say(SHADOW)
    compared = rig.shadow.compared
    rig.say(SHADOW, weight=3.0)
    assert rig.shadow.compared is compared
    rig.say(SHADOW, serves=3)
    assert rig.shadow.compared is not compared
    assert (rig.mark(0), serving(rig.shadow).extensions.mark) == (3, 2)


def test_counts_are_compared_over_the_same_time(rig: CandidatesRig) -> None:
    task = rig.vfm(0)
    rig.engine_rig.send(task, "a")
    rig.engine_rig.drain()
    rig.say(CANARY)
    assert rig.canary.since.requests == 1


def test_what_one_that_ends_was_charged_is_told_all_along(tmp_path: Path) -> None:
    rig = CandidatesRig(tmp_path, grace=2.0)
    rig.say(CANARY)
    canary = serving(rig.canary)
    rig.engine_rig.send(canary, "a")
    rig.engine_rig.drain()
    rig.say({})
    assert rig.loader.draining.vfms == [canary]
    assert account_of(canary).service_s == canary.service == pytest.approx(rig.engine.counts.busy_s)
    rig.engine_rig.clock.sleep(2.1)
    rig.refresh()
    assert rig.loader.draining.vfms == []
    assert [each.account for each in rig.engine.closed] == [canary.account]
