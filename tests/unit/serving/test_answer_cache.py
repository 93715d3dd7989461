"""Answers that are kept: who gets one, and who must not."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backend_fixtures import bytes_of, group_outputs, write_config, write_group, write_task, write_version
from service_fixtures import ServiceRig, until

from fmplex_backend.errors import ShuttingDown
from fmplex_backend.serving.answer_cache import OVERHEAD, AnswerCache
from fmplex_backend.serving.intake import Call
from fmplex_backend.types import Answer, Failed, Request, Usage, Vfm

NOTHING = Usage(0, 0, 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One task whose answers are kept and one whose are not, and a group of both."""
    write_task(tmp_path, "kept", 0, task={"mark": 1}, cache=True)
    write_task(tmp_path, "other", 1, task={"mark": 2})
    write_group(tmp_path, "both", 9, {"kept": 0, "other": 1})
    return tmp_path


def vfm(rig: ServiceRig, tag: int = 0) -> Vfm:
    found = rig.service.loader.table[tag]
    assert isinstance(found, Vfm)
    return found


def answer(rig: ServiceRig, tag: int = 0, **options: Any) -> Answer:
    reply = rig.ask(tag, **options)
    assert isinstance(reply, Answer), reply
    settled(rig)
    return reply


def settled(rig: ServiceRig) -> None:
    """Until the reply threads have done what they do after a reply."""
    done: list[None] = []
    rig.service.replies.post_last(lambda: done.append(None))
    until(lambda: bool(done))


def was_kept(rig: ServiceRig, tag: int = 0, **options: Any) -> bool:
    return answer(rig, tag, **options).usage == NOTHING


def mark(rig: ServiceRig, **options: Any) -> float:
    return float(answer(rig, **options).tensors["EMBEDDING"][0, 1])


def refresh(rig: ServiceRig) -> None:
    """Once the engine has done what the loader told it."""
    rig.service.loader.refresh()
    done: list[None] = []
    rig.service.engine.post(lambda: done.append(None))
    until(lambda: bool(done))


# -- what is found


def test_the_second_of_equal_requests_is_answered_without_a_batch_or_a_charge(rig: ServiceRig) -> None:
    first = answer(rig)
    batches, service = rig.service.engine.counts.batches, vfm(rig).service
    second = answer(rig)
    assert first.usage.batch_items == 1
    assert second.usage == NOTHING
    assert {name: array.tolist() for name, array in second.tensors.items()} == {
        name: array.tolist() for name, array in first.tensors.items()
    }
    assert (rig.service.engine.counts.batches, vfm(rig).service) == (batches, service)
    assert (vfm(rig).intake.cache_hits, vfm(rig).intake.cache_misses) == (1, 1)
    assert (vfm(rig).engine.requests, vfm(rig).queue_bytes) == (1, 0)
    assert (rig.service.answers.answers, rig.service.answers.bytes > OVERHEAD) == (1, True)


def test_a_task_that_does_not_say_cache_has_none(rig: ServiceRig) -> None:
    assert not any(was_kept(rig, 1) for _ in range(3))
    assert (vfm(rig, 1).intake.cache_misses, rig.service.answers.answers) == (0, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"text": "some  words"},
        {"text": "some words "},
        {"text": "some words", "parameters": {"wish": 1}},
    ],
)
def test_another_byte_is_another_request(rig: ServiceRig, options: Mapping[str, Any]) -> None:
    answer(rig)
    assert not was_kept(rig, **options)
    assert was_kept(rig, **options)


def test_parameters_that_python_takes_for_equal_are_not(rig: ServiceRig) -> None:
    for wish in (1, 1.0, True, "1", {"a": 1}):
        assert not was_kept(rig, parameters={"wish": wish}), wish
    assert was_kept(rig, parameters={"wish": 1.0})


def test_how_it_is_to_be_served_is_no_part_of_what_is_asked(rig: ServiceRig) -> None:
    answer(rig)
    assert was_kept(rig, parameters={"slo_ms": "50", "status_in_errors": "1"})
    assert rig.failure(0, parameters={"slo_ms": "soon"})[0] == "INVALID_ARG"


def test_the_same_bytes_in_another_shape_or_of_another_type_are_another_request(rig: ServiceRig) -> None:
    """Only what is asked is compared here: the task reads texts."""
    cache, task = AnswerCache(1 << 20), vfm(rig)
    extensions = object()
    task.extensions, former = extensions, task.extensions
    cache.open(extensions)
    arrays = [
        np.zeros((1, 4), np.int8),
        np.zeros((4, 1), np.int8),
        np.zeros((1, 4), np.uint8),
        np.zeros((1, 1), np.int32),
        bytes_of("ab", "c"),
        bytes_of("a", "bc"),
    ]
    requests = [Request(task, {"X": array}, (), 0.0, lambda reply, final: None) for array in arrays]
    requests.append(Request(task, {"Y": arrays[0]}, (), 0.0, lambda reply, final: None))
    for number, request in enumerate(requests):
        assert cache.find(request) is None
        request.extensions = extensions
        cache.keep(request, {"OUT": np.array([number])})
    found = [cache.find(request) for request in requests]
    assert [each and each["OUT"].item() for each in found] == list(range(len(requests)))
    task.extensions = former


def test_an_output_that_is_not_kept_is_computed(rig: ServiceRig) -> None:
    """A family may make only those outputs that are asked for."""
    answer(rig)
    (key,) = rig.service.answers._kept
    tensors, _ = rig.service.answers._kept[key]
    del tensors["EMBEDDING"]  # type: ignore[attr-defined]
    assert not was_kept(rig)
    assert was_kept(rig, asks=("TRUNCATED",))
    assert was_kept(rig)


def test_what_is_kept_is_no_view_of_something_larger(rig: ServiceRig) -> None:
    cache, task = AnswerCache(1 << 20), vfm(rig)
    cache.open(task.extensions)
    request = Request(task, {"X": bytes_of("a")}, (), 0.0, lambda reply, final: None, extensions=task.extensions)
    batch = np.zeros((1000, 1000), np.float32)
    cache.keep(request, {"OUT": batch[3:4]})
    found = cache.find(request)
    assert found is not None
    assert found["OUT"].base is None
    assert cache.bytes < 2 * OVERHEAD + 4000


# -- of which version


def test_a_new_version_a_changed_one_and_a_rollback_are_never_answered_by_another(rig: ServiceRig) -> None:
    assert mark(rig) == 1
    for number, wanted in ((2, 22), (2, 23), (3, 1)):
        write_version(rig.root, "kept", number, {"mark": wanted})
        refresh(rig)
        assert [mark(rig), mark(rig)] == [wanted, wanted]
    for number, wanted in ((3, 23), (2, 1)):
        shutil.rmtree(rig.root / "kept" / str(number))
        refresh(rig)
        assert not was_kept(rig)
        assert [mark(rig), mark(rig)] == [wanted, wanted]


def test_an_answer_of_a_version_that_was_replaced_meanwhile_is_not_kept(rig: ServiceRig) -> None:
    old = vfm(rig).extensions
    write_version(rig.root, "kept", 2, {"mark": 2})
    refresh(rig)
    late = Request(vfm(rig), {"X": bytes_of("a")}, (), 0.0, lambda reply, final: None, extensions=old)
    rig.service.answers.keep(late, {"OUT": np.zeros(1)})
    assert rig.service.answers.answers == 0


def test_a_task_whose_version_cannot_be_attached_is_not_answered_from_memory(
    rig: ServiceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(rig)

    def attach(extensions: Any) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr(rig.service.runtime, "attach", attach)
    write_version(rig.root, "kept", 2, {"mark": 2})
    refresh(rig)
    assert rig.failure(0)[0] == "INTERNAL"


def test_a_task_that_comes_back_has_none_of_its_former_answers(rig: ServiceRig) -> None:
    answer(rig)
    shutil.rmtree(rig.root / "kept")
    refresh(rig)
    write_task(rig.root, "kept", 0, task={"mark": 5}, cache=True)
    refresh(rig)
    assert [mark(rig), mark(rig)] == [5, 5]


def test_cache_is_turned_off_and_on_while_serving(rig: ServiceRig) -> None:
    answer(rig)
    for cache in (False, True):
        write_config(rig.root, "kept", 0, cache=cache)
        refresh(rig)
        assert [was_kept(rig), was_kept(rig)] == [False, cache]


def test_an_answer_that_may_differ_the_next_time_is_refused_the_cache(rig: ServiceRig) -> None:
    write_task(rig.root, "sampled", 5, task={"mark": 1, "repeats": False}, cache=True)
    code, text = rig.failure(5)
    assert code == "INTERNAL"
    assert "sampled/config.pbtxt: parameters.cache: it is 'true', but this task's answers are sampled" in text


def test_terms_do_not_have_answers_kept_that_may_differ_the_next_time(rig: ServiceRig) -> None:
    """Such terms load no version, so that nothing refuses them."""
    write_task(rig.root, "sampled", 5, task={"mark": 1, "repeats": False})
    refresh(rig)
    write_config(rig.root, "sampled", 5, cache=True)
    refresh(rig)
    assert not any(was_kept(rig, 5) for _ in range(3))


def test_a_former_version_that_goes_on_has_no_answers_kept_that_may_differ(rig: ServiceRig) -> None:
    write_task(rig.root, "sampled", 5, task={"mark": 1, "repeats": False})
    refresh(rig)
    write_version(rig.root, "sampled", 2, {"mark": 2})
    (rig.root / "sampled" / "2" / "task.json").write_text("{")
    write_config(rig.root, "sampled", 5, cache=True)
    refresh(rig)
    assert not any(was_kept(rig, 5) for _ in range(3))


# -- what is not


@pytest.mark.parametrize("text", ["refuse", "crash", "undecodable", "fail", "poison"])
def test_errors_are_never_kept(rig: ServiceRig, text: str) -> None:
    for _ in range(2):
        rig.failure(0, text=text)
    assert (rig.service.answers.answers, vfm(rig).intake.cache_hits) == (0, 0)


def test_what_was_asked_longest_ago_goes_first(root: Path) -> None:
    rig = ServiceRig(root, cache_bytes=2 * OVERHEAD + 200)
    rig.service.start()
    assert not was_kept(rig, text="a")
    assert not was_kept(rig, text="b")
    assert was_kept(rig, text="a")
    assert not was_kept(rig, text="c")
    assert was_kept(rig, text="a")
    assert not was_kept(rig, text="b")
    assert rig.service.answers.bytes <= 2 * OVERHEAD + 200
    rig.stop()


@pytest.mark.parametrize("room", [0, OVERHEAD])
def test_an_answer_beyond_the_bound_is_not_kept(root: Path, room: int) -> None:
    rig = ServiceRig(root, cache_bytes=room)
    rig.service.start()
    assert not any(was_kept(rig) for _ in range(3))
    assert rig.service.answers.bytes == 0
    rig.stop()


def test_a_kept_answer_that_meets_the_end_is_answered_once(rig: ServiceRig) -> None:
    answer(rig)
    rig.service.intake.close(ShuttingDown("going down"))
    replies: list[Any] = []
    call = Call({"TEXT": bytes_of("some words")}, ["EMBEDDING"], {}, lambda reply, final: replies.append(reply))
    rig.service.intake._enter_task(call, vfm(rig))
    settled(rig)
    assert len(replies) == 1
    assert isinstance(replies[0], (Answer, Failed))


# -- groups


def test_a_groups_tasks_use_it_each_for_itself(rig: ServiceRig) -> None:
    asks = group_outputs(0, 1)
    answer(rig, 0)
    batches = rig.service.engine.counts.batches
    both = answer(rig, 9, asks=asks)
    assert rig.service.engine.counts.batches == batches + 1
    assert both.tensors["MEMBER_0"].tolist() == [[0, 0, 0]]
    assert both.tensors["MEMBER_1"][0, 2] == 1
    assert [both.tensors[f"{place}.EMBEDDING"][0, 1] for place in (0, 1)] == [1, 2]
    assert not was_kept(rig, 9, asks=asks, text="others")
    assert was_kept(rig, 0, text="others")


# -- what is told of it


def test_the_status_tells_of_hits_and_misses(rig: ServiceRig) -> None:
    for _ in range(3):
        answer(rig)
    status = rig.service.reporter.status()
    task = next(each for each in status.tasks if each.name == "kept")
    assert (task.cache_hits, task.cache_misses, task.requests) == (2, 1, 1)
    assert (status.kept_answers, status.kept_bytes) == (1, rig.service.answers.bytes)
