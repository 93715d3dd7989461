"""A round by itself: what is read of a repository, whose the tags are, and what has to change."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from backend_fixtures import BACKBONE, FakeModels, edit, write_config, write_group, write_task, write_version
from fake_family.runtime import FakeClock

from fmplex_backend.errors import ServerProblem, TaskRefused
from fmplex_backend.repository.configs import CONFIG
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.serving.reconcile import Attach, Refuse, RefusedVersion, Retire, Served, SetTerms
from fmplex_backend.serving.rounds import Rounds
from fmplex_backend.serving.tasklog import TaskLog
from fmplex_backend.types import Vfm

GRACE = 2.0
SLOTS = 8


class RoundsRig:
    """Rounds over a repository; what they find is carried out by the test. Time passes by hand."""

    def __init__(self, root: Path, models: FakeModels | None = None) -> None:
        self.root, self.clock, self.models = root, FakeClock(100.0), models or FakeModels()
        self.served: dict[str, Served] = {}
        self.rounds = Rounds(
            Repository(root, BACKBONE), self.served, self.models, self.clock, TaskLog(), slots=SLOTS, grace=GRACE
        )

    def read(self, *names: str) -> None:
        """Some directories, or all."""
        assert self.rounds.read(names or None, {})

    def serve(self, name: str) -> Served:
        """Serve a task as its entry, which was read, says."""
        (change,) = (each for each in self.rounds.compare({}) if isinstance(each, Attach) and each.spec.name == name)
        self.served[name] = Served(change.spec, Vfm(change.spec.vfm, name))
        return self.served[name]


@pytest.fixture
def rig(tmp_path: Path) -> RoundsRig:
    return RoundsRig(tmp_path)


# -- reading


def test_all_is_read_or_what_is_named(rig: RoundsRig) -> None:
    for tag, name in enumerate(("one", "two")):
        write_task(rig.root, name, tag)
    rig.read()
    assert set(rig.rounds.names) == {"one", "two"}
    shutil.rmtree(rig.root / "one")
    shutil.rmtree(rig.root / "two")
    write_task(rig.root, "three", 2)
    rig.read("two")
    assert set(rig.rounds.names) == {"one"}, "what is not named stays as it was read"
    rig.read("three")
    assert rig.rounds.tags.keepers == {0: "one", 2: "three"}
    rig.read()
    assert set(rig.rounds.names) == {"three"}
    assert rig.rounds.readings == 4


def test_a_repository_that_is_away_leaves_all_as_it_was_read(rig: RoundsRig, caplog: pytest.LogCaptureFixture) -> None:
    write_task(rig.root, "one", 0)
    rig.read()
    rig.serve("one")
    rig.root.rename(rig.root.with_name("away"))
    assert not rig.rounds.read(None, {})
    assert (set(rig.rounds.names), rig.rounds.readings) == ({"one"}, 1)
    assert rig.rounds.compare({}) == []
    assert "the model repository cannot be read, the tasks stay as they are: " in caplog.text


def test_a_tag_that_is_reserved_is_kept_by_whom_it_is_reserved_for(rig: RoundsRig) -> None:
    for name in ("one", "two"):
        write_task(rig.root, name, 0)
    rig.models.loaded = {"one"}
    assert rig.rounds.read(None, {0: "two"})
    assert rig.rounds.tags.keepers == {0: "two"}


# -- tags


def test_which_tags_are_free(rig: RoundsRig) -> None:
    write_task(rig.root, "one", 0)
    rig.read()
    assert not rig.rounds.is_free(0, "new")
    assert rig.rounds.is_free(SLOTS - 1, "new")
    assert not rig.rounds.is_free(SLOTS, "new"), "there is no such tag"
    rig.models.loaded = {"one"}
    shutil.rmtree(rig.root / "one")
    rig.read()
    assert not rig.rounds.is_free(0, "new"), "requests by the entry that the server has loaded may come"
    assert rig.rounds.is_free(0, "one")


def test_contested_are_tags_that_are_asked_for_and_each_is_said_once(
    rig: RoundsRig, caplog: pytest.LogCaptureFixture
) -> None:
    for tag, name in enumerate(("left", "kept")):
        write_task(rig.root, name, tag)
    rig.read()
    rig.models.loaded = {"kept", "late", "left"}
    shutil.rmtree(rig.root / "left")
    write_task(rig.root, "late", 1)
    rig.read()
    for _ in range(2):
        assert rig.rounds.contested([]).keys() == {1}, "nobody keeps the tag of the one that has left"
    assert "'late'" in str(rig.rounds.contested([])[1])
    assert caplog.text.count("VFM_1 is the tag of 'kept', and requests of 'late' may come with it too") == 1
    write_task(rig.root, "heir", 0)
    rig.read()
    assert rig.rounds.contested([]).keys() == {0, 1}
    shutil.rmtree(rig.root / "heir")
    rig.read()
    assert rig.rounds.contested([]).keys() == {1}
    assert rig.rounds.contested([0]).keys() == {0, 1}, "of a task that is answered for a time"


@pytest.mark.parametrize("requests", [0, 1])
def test_the_former_tag_of_a_task_is_free_once_requests_of_it_come_with_another(rig: RoundsRig, requests: int) -> None:
    write_task(rig.root, "one", 0)
    rig.read()
    rig.models.loaded = {"one"}
    write_config(rig.root, "one", 1)
    write_task(rig.root, "new", 0)
    rig.read()
    rig.serve("one").vfm.intake.requests = requests
    rig.read()
    assert rig.rounds.contested([]).keys() == {0}, "some may be on their way"
    rig.clock.sleep(GRACE)
    rig.read()
    assert rig.rounds.contested([]).keys() == (set() if requests else {0})


@pytest.mark.parametrize("requests", [0, 1])
def test_the_former_tag_of_a_group_too(rig: RoundsRig, requests: int) -> None:
    write_task(rig.root, "one", 0)
    write_group(rig.root, "both", 5, {"one": 0})
    rig.read()
    rig.rounds.compare({})
    rig.models.loaded = {"both"}
    write_group(rig.root, "both", 6, {"one": 0})
    write_task(rig.root, "new", 5)
    rig.read()
    rig.rounds.compare({})
    rig.rounds.groups.served["both"].counts.requests = requests
    rig.read()
    assert rig.rounds.contested([]).keys() == {5}, "some may be on their way"
    rig.clock.sleep(GRACE)
    rig.read()
    assert rig.rounds.contested([]).keys() == (set() if requests else {5})


# -- newcomers are taken off the server


def with_newcomers(rig: RoundsRig) -> RoundsRig:
    """VFM_0 is the tag of `one`; the server has loaded `two` and `three` with it as well."""
    write_task(rig.root, "one", 0)
    rig.read()
    for name in ("two", "three"):
        write_task(rig.root, name, 0)
    rig.models.loaded = {"one", "two", "three"}
    rig.read()
    return rig


@pytest.fixture
def newcomers(rig: RoundsRig) -> RoundsRig:
    return with_newcomers(rig)


def test_newcomers_that_are_loaded_are_unloaded(newcomers: RoundsRig, caplog: pytest.LogCaptureFixture) -> None:
    newcomers.rounds.unload_newcomers()
    assert sorted(newcomers.models.unloads) == ["three", "two"]
    assert "task two unloaded: its requests would come with VFM_0, the tag of one" in caplog.text


def _other_tag(rig: RoundsRig) -> None:
    write_config(rig.root, "two", 3)


def _removed(rig: RoundsRig) -> None:
    shutil.rmtree(rig.root / "two")


def _unloaded(rig: RoundsRig) -> None:
    rig.models.loaded.discard("two")


@pytest.mark.parametrize("since", [_other_tag, _removed, _unloaded])
def test_one_that_sends_nothing_with_the_tag_any_more_is_let_be(
    newcomers: RoundsRig, since: Callable[[RoundsRig], None]
) -> None:
    """Nothing was read since: the entry is asked as it is now."""
    since(newcomers)
    newcomers.rounds.unload_newcomers()
    assert newcomers.models.unloads == ["three"]


class RefusesOne(FakeModels):
    """A server that does not unload `two`."""

    def unload(self, name: str) -> None:
        if name == "two":
            raise ServerProblem("it is busy")
        super().unload(name)


def test_one_that_cannot_be_unloaded_does_not_keep_the_next_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = with_newcomers(RoundsRig(tmp_path, RefusesOne()))
    rig.rounds.unload_newcomers()
    assert rig.models.unloads == ["three"]
    assert "task two cannot be unloaded, so nothing with its tag is answered: it is busy" in caplog.messages


# -- the comparison


def test_what_is_new_what_has_other_terms_and_what_is_gone(rig: RoundsRig) -> None:
    for tag, name in enumerate(("gone", "kept", "terms")):
        write_task(rig.root, name, tag)
    rig.read()
    served = {name: rig.serve(name) for name in ("gone", "kept", "terms")}
    assert rig.rounds.compare({}) == []
    shutil.rmtree(rig.root / "gone")
    write_config(rig.root, "terms", 2, weight=3.0)
    write_task(rig.root, "new", 3)
    rig.read()
    new, terms, gone = rig.rounds.compare({})
    assert isinstance(new, Attach)
    assert (new.spec.name, new.former) == ("new", None)
    assert isinstance(terms, SetTerms)
    assert (terms.spec.weight, terms.former) == (3.0, served["terms"])
    assert gone == Retire(served["gone"], "removed")


def test_a_version_that_was_refused_is_not_to_be_loaded_again(rig: RoundsRig) -> None:
    version = write_task(rig.root, "one", 0)
    rig.read()
    (attach,) = rig.rounds.compare({})
    assert isinstance(attach, Attach)
    error = TaskRefused(version, "(whole version)", "it is torn", "Write it again")
    refused = {"one": RefusedVersion(attach.spec, error)}
    assert rig.rounds.compare(refused) == [Refuse("one", 0, error)]
    write_version(rig.root, "one", 2, {"mark": 2})
    rig.read()
    (again,) = rig.rounds.compare(refused)
    assert isinstance(again, Attach)
    assert again.spec.version.number == 2


def test_of_a_tag_that_several_claim_one_is_served_and_a_tag_that_there_is_not_none(rig: RoundsRig) -> None:
    write_task(rig.root, "one", 0)
    rig.read()
    write_task(rig.root, "copy", 0)
    write_task(rig.root, "over", SLOTS)
    rig.read()
    changes = {each.spec.name if isinstance(each, Attach) else "": each for each in rig.rounds.compare({})}
    refused = {each.name: each for each in rig.rounds.compare({}) if isinstance(each, Refuse)}
    assert changes.keys() == {"one", ""}
    assert (refused["copy"].vfm, refused["over"].vfm) == (None, SLOTS)
    assert "VFM_0 on 'base' is the tag of 'one', which keeps it" in str(refused["copy"].error)


def test_groups_are_brought_in_step_and_change_no_task(rig: RoundsRig) -> None:
    write_task(rig.root, "one", 0)
    write_group(rig.root, "both", 5, {"one": 0})
    rig.read()
    rig.serve("one")
    assert rig.rounds.groups.served.keys() == {"both"}
    shutil.rmtree(rig.root / "both")
    rig.read()
    assert rig.rounds.compare({}) == []
    assert rig.rounds.groups.leaving.keys() == {5}


def test_a_group_that_cannot_be_read_is_refused_at_once(rig: RoundsRig) -> None:
    """Its former entry would ask for tasks that it does not name any more."""
    write_task(rig.root, "one", 0)
    write_group(rig.root, "both", 5, {"one": 0})
    rig.read()
    rig.serve("one")
    edit(rig.root / "both" / CONFIG, 'key: "ERRORS"', 'key: "STATUS"')
    rig.read()
    (refuse,) = rig.rounds.compare({})
    assert isinstance(refuse, Refuse)
    assert (refuse.name, refuse.vfm) == ("both", 5)
    assert rig.rounds.groups.served == rig.rounds.groups.leaving == {}


def test_a_task_in_the_place_of_a_group_is_a_task(rig: RoundsRig) -> None:
    write_task(rig.root, "one", 0)
    write_group(rig.root, "both", 5, {"one": 0})
    rig.read()
    rig.serve("one")
    write_task(rig.root, "both", 5)
    rig.read()
    (attach,) = rig.rounds.compare({})
    assert isinstance(attach, Attach)
    assert isinstance(attach.spec, TaskSpec)
    assert rig.rounds.groups.served == {}
