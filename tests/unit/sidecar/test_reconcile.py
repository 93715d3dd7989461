"""From what the repository holds and what the server has loaded to the list of actions, without either."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.inspection import Inspected
from fmplex_backend.repository.tasks import BrokenTask, Entry
from fmplex_backend.serving.tags import Tags as BackboneTags
from fmplex_backend.serving.tags import UnknownModels
from fmplex_controller.sidecar.actions import Action, Complete, Lift, Load, Quarantine, Unload
from fmplex_controller.sidecar.reconcile import BAD_S, DOWN_S, ONCE_MORE_S, STILL_S, reconcile
from fmplex_controller.sidecar.seen import Attempt, Directory, Model, Seen, Since, Tags, Unhealthy

LONG = 100.0
BASE = Inspected("backbone", slots=4)


class Loaded(UnknownModels):
    """Models of a server that can be asked which it has loaded."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def is_loaded(self, name: str) -> bool:
        return name in self.names


def backbone(name: str = "base", **fields: Any) -> Directory:
    return Directory(name, f"{name}-files", LONG, BASE, **fields)


def task(name: str, tag: int | None = None, still_s: float = LONG, **fields: Any) -> Directory:
    """A task on `base`; `fields` are Inspected's."""
    return Directory(name, f"{name}-files", still_s, Inspected("task", **{"backbone": "base", "tag": tag, **fields}))


def seen(*directories: Directory, ready: str = "", **rest: Any) -> Seen:
    """All of the models `ready` were loaded as their directories are."""
    by_name = {each.name: each for each in directories}
    names = ready.split()
    attempts = {name: Attempt(by_name[name].fingerprint) for name in names if name in by_name}
    models = {name: Model(name in names, LONG) for name in [*by_name, *names]}
    return Seen(**{"directories": by_name, "models": models, "attempts": attempts, **rest})


def names(actions: list[Action], kind: type) -> list[str]:
    return [action.name for action in actions if isinstance(action, kind)]


def one(actions: list[Action]) -> Action:
    (action,) = actions
    return action


class TestLoad:
    def test_nothing_where_all_is_as_it_should_be(self) -> None:
        assert reconcile(seen(backbone(), task("a", 1), ready="base a")) == []

    def test_a_backbone_first_and_its_tasks_in_the_next_round(self) -> None:
        every = (task("a", 1), backbone(), Directory("z", "z-files", LONG, Inspected("model")))
        assert names(reconcile(seen(*every)), Load) == ["base", "z"]
        assert names(reconcile(seen(*every, ready="base z")), Load) == ["a"]

    def test_an_ensemble_of_tasks_after_these(self) -> None:
        """Triton would load its tasks with it, whatever is wrong with them."""
        group = Directory("all", "all-files", LONG, Inspected("model", steps=("a", "b")))
        every = (backbone(), task("a", 1), task("b", 2), group)
        assert names(reconcile(seen(*every, ready="base a")), Load) == ["b"]
        assert names(reconcile(seen(*every, ready="base a b")), Load) == ["all"]

    def test_not_before_it_is_still(self) -> None:
        assert reconcile(seen(backbone(), task("a", 1, still_s=STILL_S - 0.1), ready="base")) == []
        action = one(reconcile(seen(backbone(), task("a", 1, still_s=STILL_S), ready="base")))
        assert action == Load("a", "a-files", "base-files", "base")

    def test_a_changed_one_again(self) -> None:
        before = seen(backbone(), task("a", 1), ready="base a")
        changed = replace(before.directories["a"], fingerprint="other files")
        action = one(reconcile(replace(before, directories={**before.directories, "a": changed})))
        assert action == Load("a", "other files", "base-files", "base", again=True)

    def test_tasks_wait_for_a_changed_backbone(self) -> None:
        now = seen(backbone(), task("a", 1), ready="base")
        attempts = {"base": Attempt("former files")}
        assert names(reconcile(replace(now, attempts=attempts)), Load) == ["base"]

    def test_a_new_controller_confirms_what_is_loaded(self) -> None:
        now = replace(seen(backbone(), task("a", 1), ready="base a"), attempts={"base": Attempt("base-files")})
        assert one(reconcile(now)) == Load("a", "a-files", "base-files", "base", again=True, confirms=True)

    def test_what_somebody_unloads_is_loaded_again_after_a_while(self) -> None:
        now = seen(backbone(), task("a", 1), ready="base a")
        for seconds, loads in ((DOWN_S - 0.1, []), (DOWN_S, ["a"])):
            down = replace(now, models={**now.models, "a": Model(False, seconds)})
            assert names(reconcile(down), Load) == loads

    def test_a_failure_is_not_tried_again_until_something_changes(self) -> None:
        failed = Attempt("a-files", "base-files", "a: no such label. Correct it")
        now = seen(backbone(), task("a", 1), ready="base")
        attempts = {**now.attempts, "a": failed}
        assert names(reconcile(replace(now, attempts=attempts)), Load) == []
        for other in (replace(failed, fingerprint="before"), replace(failed, depends="before")):
            assert names(reconcile(replace(now, attempts={**now.attempts, "a": other})), Load) == ["a"]

    def test_what_failed_soon_is_tried_once_more_a_minute_later(self) -> None:
        """The server's host may not have seen yet what was written on this one, or its file system was away."""
        soon = Attempt("a-files", "base-files", "its backbone does not find it", still_s=STILL_S)
        for still_s, last, loads in (
            (ONCE_MORE_S - 0.1, soon, []),
            (ONCE_MORE_S, soon, ["a"]),
            (2 * ONCE_MORE_S, replace(soon, still_s=ONCE_MORE_S), []),
        ):
            now = seen(backbone(), task("a", 1, still_s), ready="base")
            assert names(reconcile(replace(now, attempts={**now.attempts, "a": last})), Load) == loads


class TestUnload:
    def test_one_whose_directory_is_gone_after_a_while(self) -> None:
        for seconds, expected in ((STILL_S - 0.1, []), (STILL_S, [Unload("a", "its directory is gone")])):
            assert reconcile(seen(backbone(), ready="base a", gone_s={"a": seconds})) == expected

    def test_tasks_before_their_backbone(self) -> None:
        gone = {"base": STILL_S, "zoo": STILL_S}
        actions = reconcile(seen(task("z", 1), ready="base z", gone_s=gone))
        assert names(actions, Unload) == ["z", "base"]

    def test_the_file_unloaded_keeps_a_model_unloaded(self) -> None:
        off = replace(task("a", 1), unloaded=True)
        assert one(reconcile(seen(backbone(), off, ready="base a"))) == Unload("a", "its directory holds UNLOADED")
        assert reconcile(seen(backbone(), off, ready="base")) == []

    def test_tasks_are_unloaded_before_a_backbone_that_is_kept_so(self) -> None:
        actions = reconcile(seen(backbone(unloaded=True), task("a", 1), task("z", 2), ready="base a z"))
        assert names(actions, Unload) == ["a", "z", "base"]
        assert actions[0] == Unload("a", "the directory of its backbone 'base' holds UNLOADED")

    def test_no_task_pulls_in_an_unloaded_backbone(self) -> None:
        assert reconcile(seen(backbone(unloaded=True), task("a", 1))) == []


class TestComplete:
    @pytest.mark.parametrize("lack", ["config", "name", "backbone", "tag"])
    def test_what_is_missing_is_written_before_it_is_loaded(self, lack: str) -> None:
        bound = "" if lack == "config" else "auto" if lack == "backbone" else "base"
        now = seen(backbone(), task("a", backbone=bound, lack=lack), ready="base")
        assert reconcile(now) == [Complete("a", "a-files", "base-files")]
        moving = replace(now.directories["a"], still_s=0.5)
        assert reconcile(replace(now, directories={**now.directories, "a": moving})) == []

    def test_of_two_with_one_tag_the_one_that_is_served_keeps_it_whatever_its_date(self) -> None:
        """Whatever else somebody loads, and also where it was unloaded by hand a moment ago."""
        served, copied = task("a", 1, age=(2, 2, "a")), task("z", 1, age=(1, 1, "z"))
        for ready in ("base a", "base a z", "base z", "base"):
            now = seen(backbone(), served, copied, ready=ready, tags={"base": Tags({1: "a", 2: "z"}, 0.4)})
            assert names(reconcile(now), Complete) == ["z"]

    @pytest.mark.parametrize("ready", ["base a", "base a z", "base z", "base"])
    def test_which_of_two_is_given_another_tag_is_as_the_backbone_decides(self, ready: str) -> None:
        """It has had the tag given to the one that came first; the older directory came later."""
        loaded = set(ready.split())
        tags = BackboneTags(lambda: 0.0, models=Loaded(loaded), has_moved=lambda *_: False, oldest=max, grace=2.0)
        came: dict[str, Entry] = {}
        for name in "az":
            came[name] = BrokenTask(name, 1, TaskRefused("", "", "", ""))
            tags.settle(came)
        served, copied = task("a", 1, age=(2, 2, "a")), task("z", 1, age=(1, 1, "z"))
        now = seen(backbone(), served, copied, ready=ready, tags={"base": Tags(tags.keepers, 0.4)})
        assert names(reconcile(now), Complete) == list(tags.newcomers[1])

    def test_of_two_with_one_tag_none_is_given_another_before_the_backbone_tells_who_has_it(self) -> None:
        old, new = task("z", 1, 50.0, age=(1, 1, "z")), task("a", 1, 50.0, age=(2, 2, "a"))
        now = seen(backbone(), old, new, ready="base z a")
        assert reconcile(now) == []
        for age_s in (49.0, 50.0):  # since then it may have read the directory
            told = replace(now, tags={"base": Tags({}, age_s)})
            assert names(reconcile(told), Complete) == (["a"] if age_s < 50.0 else [])

    def test_of_two_with_one_tag_the_older_keeps_it_of_a_backbone_that_serves_nobody(self) -> None:
        old, new = task("z", 1, age=(1, 1, "z")), task("a", 1, age=(2, 2, "a"))
        assert names(reconcile(seen(backbone(), old, new)), Complete) == ["a"]
        unhealthy = {"base": Unhealthy("it does not answer", unload=False, hold=True)}
        assert names(reconcile(seen(backbone(), old, new, ready="base", unhealthy=unhealthy)), Complete) == ["a"]

    def test_no_tag_is_given_while_a_task_without_a_directory_is_loaded(self) -> None:
        now = seen(backbone(), task("a", lack="tag"), ready="base gone", gone_s={"gone": 0.1})
        assert reconcile(now) == []
        assert names(reconcile(replace(now, models={"base": Model(True)})), Complete) == ["a"]

    def test_a_tag_beyond_the_slots(self) -> None:
        assert names(reconcile(seen(backbone(), task("a", 4), ready="base")), Complete) == ["a"]

    def test_where_none_is_free_it_is_tried_again_when_one_is(self) -> None:
        tasks = [task(f"t{tag}", tag) for tag in range(4)]
        new = task("new", lack="tag")
        full = seen(backbone(), *tasks, new, ready="base t0 t1 t2 t3")
        (complete,) = reconcile(full)
        assert isinstance(complete, Complete)
        attempts = {**full.attempts, "new": Attempt("new-files", complete.depends, "all tags are taken")}
        assert names(reconcile(replace(full, attempts=attempts)), Complete) == []
        freed = {name: each for name, each in full.directories.items() if name != "t3"}
        assert names(reconcile(replace(full, directories=freed, attempts=attempts)), Complete) == ["new"]


class TestQuarantine:
    def test_what_is_bad_and_still_is_said_and_not_loaded(self) -> None:
        for still, expected in ((BAD_S - 0.1, []), (BAD_S, [Quarantine("a", "file: field: why")])):
            assert (
                reconcile(seen(backbone(), task("a", 1, still, problem="file: field: why"), ready="base")) == expected
            )

    def test_it_is_said_once(self) -> None:
        bad = replace(task("a", 1, problem="why"), error="why")
        assert reconcile(seen(backbone(), bad, ready="base")) == []
        assert one(reconcile(seen(backbone(), replace(bad, error="another reason"), ready="base")))

    def test_what_its_backbone_refuses_too(self) -> None:
        now = seen(backbone(), task("a", 1), ready="base")
        attempts = {**now.attempts, "a": Attempt("a-files", "base-files", "a/1: too few labels")}
        assert reconcile(replace(now, attempts=attempts)) == [Quarantine("a", "a/1: too few labels")]

    def test_it_goes_once_the_mended_one_is_loaded(self) -> None:
        mended = replace(task("a", 1), error="why")
        assert names(reconcile(seen(backbone(), mended, ready="base")), Load) == ["a"]
        assert reconcile(seen(backbone(), mended, ready="base a")) == [Lift("a")]

    def test_one_that_is_served_stays_loaded(self) -> None:
        """Its backbone goes on with the former version, or answers with the reason."""
        now = seen(backbone(), task("a", 1, problem="why"), ready="base a")
        assert reconcile(now) == [Quarantine("a", "why")]

    def test_a_task_without_its_backbone(self) -> None:
        action = one(reconcile(seen(backbone("other"), task("a", 1), ready="other"), "/models"))
        assert isinstance(action, Quarantine)
        assert action.text.startswith(
            "/models/a/config.pbtxt: ensemble_scheduling.step.model_name: there is no backbone 'base' in the "
            "repository, which has other. Add it with `fmplex backbone add base MODEL`"
        )

    def test_tasks_are_not_blamed_for_a_backbone_that_is_bad_or_moved_for_a_moment(self) -> None:
        broken = replace(backbone(), inspected=Inspected("model", problem="config.pbtxt: not a configuration"))
        assert names(reconcile(seen(broken, task("a", 1), ready="a")), Quarantine) == ["base"]
        moved = seen(task("a", 1), gone_s={"base": BAD_S - 0.1})
        assert reconcile(moved) == []


class TestSick:
    def test_it_is_unloaded_with_its_tasks_and_loaded_again(self) -> None:
        now = seen(backbone(), task("a", 1), task("b", 2), ready="base a b")
        unhealthy = replace(now, unhealthy={"base": Unhealthy("dead", unload=True, hold=False)})
        assert reconcile(unhealthy) == [
            Unload("a", "its backbone 'base': dead"),
            Unload("b", "its backbone 'base': dead"),
            Unload("base", "dead"),
        ]
        down = {name: Model(False, 0.1) for name in now.models}
        held = replace(now, models=down, unhealthy={"base": Unhealthy("dead", unload=False, hold=True)})
        assert reconcile(held) == []
        free = replace(held, unhealthy={"base": Unhealthy("dead", unload=False, hold=False)})
        assert names(reconcile(free), Load) == ["base"]
        loaded = replace(free, models={**down, "base": Model(True, 0.1)}, unhealthy=free.unhealthy)
        assert reconcile(loaded) == [], "the new process has not answered yet"
        answered = replace(loaded, models={name: Model(name == "base", DOWN_S) for name in down}, unhealthy={})
        assert names(reconcile(answered), Load) == ["a", "b"]

    def test_one_that_is_given_up_says_so(self) -> None:
        now = seen(backbone(), task("a", 1))
        unhealthy = {"base": Unhealthy("given up: dead", unload=False, hold=True, given_up=True)}
        assert reconcile(replace(now, unhealthy=unhealthy)) == [Quarantine("base", "given up: dead")]


def test_since_when_something_is_as_it_is() -> None:
    since = Since()
    assert since.seconds("a", 1, 10.0) == 0.0
    assert since.seconds("a", 1, 12.0) == 2.0
    assert since.seconds("a", 2, 13.0) == 0.0
    since.keep({})
    assert since.seconds("a", 2, 20.0) == 0.0
