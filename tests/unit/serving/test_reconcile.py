"""The comparison alone: entries and what is served go in, changes come out; nothing is read and nothing runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.tasks import BrokenTask, Entry, TaskSpec
from fmplex_backend.repository.versions import Version
from fmplex_backend.serving.reconcile import (
    Attach,
    KeepFormer,
    Refuse,
    RefusedVersion,
    Retire,
    Served,
    SetTerms,
    changes,
    changes_of_refused,
    changes_without_former,
    without_conflicts,
)
from fmplex_backend.types import Vfm

ROOT = Path("/repository/that/is/not/there")
ERROR = TaskRefused(ROOT / "one" / "2" / "task.json", "decoder", "it is not known", "Correct it")


def version(number: int = 1, mtime: int = 0) -> Version:
    return Version(number, ROOT / "one" / str(number), (("task.json", mtime, 10),))


def spec(name: str = "one", vfm: int = 0, **fields: Any) -> TaskSpec:
    about: dict[str, Any] = {
        "weight": 1.0,
        "slo": None,
        "max_queue": None,
        "version": version(),
        "inputs": ("TEXT",),
        "outputs": {"EMBEDDING": (32,)},
    }
    return TaskSpec(name, vfm, ROOT / name / "config.pbtxt", **(about | fields))


def served(own: TaskSpec) -> Served:
    return Served(own, Vfm(own.vfm, own.name))


NOW = served(spec())


def test_nothing_is_there_and_nothing_is_served() -> None:
    assert changes({}, {}, {}) == []


def test_a_new_task_is_attached() -> None:
    assert changes({}, {"one": spec()}, {}) == [Attach(spec(), None)]


def test_what_is_served_as_its_entry_says_needs_nothing() -> None:
    assert changes({"one": NOW}, {"one": spec()}, {}) == []


@pytest.mark.parametrize("terms", [{"weight": 2.0}, {"slo": 0.1}, {"max_queue": 5}])
def test_new_terms_are_set(terms: dict[str, Any]) -> None:
    assert changes({"one": NOW}, {"one": spec(**terms)}, {}) == [SetTerms(spec(**terms), NOW)]


@pytest.mark.parametrize(
    "fields", [{"version": version(2)}, {"version": version(1, mtime=7)}, {"outputs": {"EMBEDDING": (64,)}}]
)
def test_a_version_that_is_new_or_has_changed_is_attached_to_the_same_vfm(fields: dict[str, Any]) -> None:
    """So is one whose entry declares other outputs: they have to be checked."""
    assert changes({"one": NOW}, {"one": spec(**fields)}, {}) == [Attach(spec(**fields), NOW)]


def test_a_task_that_has_no_entry_any_more_is_removed() -> None:
    assert changes({"one": NOW}, {}, {}) == [Retire(NOW, "removed")]


def test_a_new_tag_is_a_new_vfm() -> None:
    moved = spec(vfm=9)
    assert changes({"one": NOW}, {"one": moved}, {}) == [Retire(NOW, "moved"), Attach(moved, None)]


def test_a_new_name_is_a_new_vfm() -> None:
    assert changes({"one": NOW}, {"uno": spec("uno")}, {}) == [Attach(spec("uno"), None), Retire(NOW, "removed")]


def test_two_tasks_that_swap_their_tags() -> None:
    one, two = NOW, served(spec("two", 1))
    found = changes({"one": one, "two": two}, {"one": spec("one", 1), "two": spec("two", 0)}, {})
    assert found == [
        Retire(one, "moved"),
        Attach(spec("one", 1), None),
        Retire(two, "moved"),
        Attach(spec("two", 0), None),
    ]


@pytest.mark.parametrize("tag", [0, None])
def test_a_broken_entry_is_refused_and_not_served(tag: int | None) -> None:
    broken = BrokenTask("one", tag, ERROR)
    assert changes({}, {"one": broken}, {}) == [Refuse("one", tag, ERROR)]
    assert changes({"one": NOW}, {"one": broken}, {}) == [Retire(NOW, "refused"), Refuse("one", tag, ERROR)]


# -- versions that were refused


def test_a_refused_version_is_not_loaded_again() -> None:
    refused = {"one": RefusedVersion(spec(), ERROR)}
    assert changes({}, {"one": spec()}, refused) == [Refuse("one", 0, ERROR)]


@pytest.mark.parametrize("fields", [{"version": version(1, mtime=7)}, {"version": version(2)}, {"weight": 2.0}])
def test_it_is_loaded_again_once_it_or_its_entry_changes(fields: dict[str, Any]) -> None:
    refused = {"one": RefusedVersion(spec(), ERROR)}
    assert changes({}, {"one": spec(**fields)}, refused) == [Attach(spec(**fields), None)]


def test_a_former_version_goes_on() -> None:
    new = spec(version=version(2))
    refused = {"one": RefusedVersion(new, ERROR)}
    assert changes({"one": NOW}, {"one": new}, refused) == [KeepFormer(new, NOW, ERROR)]


def test_after_the_former_version_was_kept_it_is_kept_again() -> None:
    """Whether its files are still intact has to be looked at in every round."""
    new = spec(version=version(2), weight=6.0)
    kept = Served(replace(new, version=version(1)), NOW.vfm)
    refused = {"one": RefusedVersion(new, ERROR)}
    assert changes({"one": kept}, {"one": new}, refused) == [KeepFormer(new, kept, ERROR)]


def test_a_version_that_was_broken_in_place_leaves_nothing_to_go_on() -> None:
    broken = spec(version=version(1, mtime=7))
    assert list(changes_of_refused(broken, NOW, ERROR)) == [Retire(NOW, "refused"), Refuse("one", 0, ERROR)]


def test_a_first_version_that_is_broken_is_refused() -> None:
    assert list(changes_of_refused(spec(), None, ERROR)) == [Refuse("one", 0, ERROR)]


def test_without_the_former_one_the_task_is_refused() -> None:
    new = spec(version=version(2))
    assert list(changes_without_former(new, NOW, ERROR)) == [Retire(NOW, "refused"), Refuse("one", 0, ERROR)]


# -- tags


def checked(entries: dict[str, Entry], keepers: dict[int, str], slots: int = 8) -> dict[str, Entry]:
    by_tag: dict[int, list[str]] = {}
    for name, entry in entries.items():
        if entry.vfm is not None:
            by_tag.setdefault(entry.vfm, []).append(name)
    return without_conflicts(entries, by_tag, keepers, slots=slots, root=ROOT, backbone="base")


def error(entry: Entry) -> TaskRefused:
    assert isinstance(entry, BrokenTask)
    return entry.error


def test_tags_that_differ_change_nothing() -> None:
    entries: dict[str, Entry] = {"one": spec(), "two": spec("two", 1), "bad": BrokenTask("bad", None, ERROR)}
    assert checked(entries, {0: "one", 1: "two"}) == entries


def test_of_tasks_that_share_a_tag_one_keeps_it_and_the_others_have_none() -> None:
    entries: dict[str, Entry] = {
        "one": spec(),
        "two": spec("two"),
        "three": BrokenTask("three", 0, ERROR),
        "four": spec("four", 1),
    }
    found = checked(entries, {0: "two", 1: "four"})
    assert (found["two"], found["four"]) == (entries["two"], entries["four"])
    for name in ("one", "three"):
        assert found[name].vfm is None
        assert error(found[name]).file == str(ROOT / name / "config.pbtxt")
        assert error(found[name]).problem == "VFM_0 on 'base' is the tag of 'two', which keeps it"
        assert f"fmplex task set {name} --new-tag" in error(found[name]).remedy


def test_a_broken_entry_keeps_its_tag_from_others() -> None:
    bad = BrokenTask("bad", 0, ERROR)
    found = checked({"one": spec(), "bad": bad}, {0: "bad"})
    assert found["bad"] == bad
    assert error(found["one"]).problem == "VFM_0 on 'base' is the tag of 'bad', which keeps it"


def test_a_tag_beyond_the_slots_is_broken() -> None:
    found = checked({"last": spec("last", 3), "over": spec("over", 4)}, {3: "last", 4: "over"}, slots=4)
    assert found["last"] == spec("last", 3)
    assert found["over"].vfm == 4
    assert error(found["over"]).problem == "VFM_4 is beyond the backbone's vfm_slots of 4"
    assert error(found["over"]).remedy.startswith("Give it a tag below 4")
