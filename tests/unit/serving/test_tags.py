"""Who has a tag: no request is ever answered by another task's vFM, whatever repository and server go through."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from backend_fixtures import BACKBONE, LoaderRig, edit, write_config, write_task
from hypothesis import given, settings
from hypothesis import strategies as st

from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.tasks import CONFIG, BrokenTask, Entry, Repository
from fmplex_backend.serving.ownership import Ownership
from fmplex_backend.serving.table import Answering
from fmplex_backend.serving.tags import Tags
from fmplex_backend.types import Vfm

GRACE = 2.0
BROKEN = TaskRefused("config.pbtxt", "name", "it is wrong", "Correct it")

# -- the decision alone


class TagsRig:
    """Tags, and what they ask."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loaded: set[str] | None = set()
        self.moved: set[tuple[str, int]] = set()
        self.with_tags: dict[str, list[int]] = {}  # as the server tells, of those that are loaded
        self.tags = Tags(
            lambda: self.now,
            models=self,
            has_moved=lambda name, tag: (name, tag) in self.moved,
            oldest=min,
            grace=GRACE,
        )

    def is_loaded(self, name: str) -> bool | None:
        return None if self.loaded is None else name in self.loaded

    def close_old(self) -> None:
        """There are no connections."""

    def loaded_tags(self, name: str) -> list[int] | None:
        return self.with_tags.get(name)

    def unload(self, name: str) -> None:
        raise AssertionError("a decision alone unloads nothing")

    def settle(self, **tags: int | None) -> None:
        """A round in which the repository has these tasks, with these tags."""
        entries: dict[str, Entry] = {name: BrokenTask(name, tag, BROKEN) for name, tag in tags.items()}
        self.tags.settle(entries)


@pytest.fixture
def rig() -> TagsRig:
    return TagsRig()


def test_at_a_start_the_one_that_is_loaded_alone_keeps_a_tag_else_the_older(rig: TagsRig) -> None:
    rig.loaded = {"b", "y", "x"}
    rig.settle(a=0, b=0, x=1, y=1, m=2, n=2)
    assert rig.tags.keepers == {0: "b", 1: "x", 2: "m"}
    assert rig.tags.newcomers == {0: ("a",), 1: ("y",), 2: ("n",)}
    assert rig.tags.rivals == {1: ("y",)}


def test_a_round_that_cannot_be_decided_leaves_all_as_it_was(rig: TagsRig) -> None:
    """Else the next one would not know that requests of a former task may be on their way."""

    def unreadable(names: Iterable[str]) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    rig.settle(a=0)
    rig.tags.oldest = unreadable
    with pytest.raises(OSError, match="Too many open files"):
        rig.settle(b=0, c=0)
    assert (rig.tags.claims.by_tag, rig.tags.keepers) == ({0: ("a",)}, {0: "a"})
    rig.tags.oldest = min
    rig.settle(b=0, c=0)
    assert rig.tags.rivals == {0: ("a",)}


def test_before_the_first_request_nothing_is_contested_but_a_former_tasks_tag(rig: TagsRig) -> None:
    """Whether the server has loaded a task is not known by then."""
    rig.loaded = None
    rig.settle(a=0, b=0, c=1)
    assert rig.tags.rivals == {}
    assert rig.tags.may_send("b", 0)
    rig.settle(a=0, b=0, d=1)
    rig.now += GRACE
    rig.settle(a=0, b=0, d=1)
    assert rig.tags.rivals == {1: ("c",)}
    rig.loaded = {"a", "b"}
    rig.settle(a=0, b=0, d=1)
    assert rig.tags.rivals == {0: ("b",), 1: ("c",)}
    rig.now += GRACE
    rig.settle(a=0, b=0, d=1)
    assert rig.tags.rivals == {0: ("b",)}


def test_who_keeps_a_tag_keeps_it_also_while_its_entry_cannot_be_read(rig: TagsRig) -> None:
    rig.settle(b=0)
    rig.settle(a=0, b=0)
    rig.loaded = {"a"}
    rig.settle(a=0, b=None)
    assert rig.tags.keepers == {0: "b"}
    rig.settle(a=0)
    assert rig.tags.keepers == {0: "a"}


def test_a_former_task_is_a_rival_until_it_was_seen_unloaded_for_the_grace(rig: TagsRig) -> None:
    rig.settle(a=0)
    rig.settle()
    rig.now = 100.0
    rig.loaded = {"a"}
    rig.settle(b=0)
    assert rig.tags.rivals == {0: ("a",)}
    rig.loaded = set()
    rig.settle(b=0)
    rig.loaded = {"a"}  # loaded again, by an entry that is not this one
    rig.now += GRACE - 0.1
    rig.settle(b=0)
    assert rig.tags.rivals == {0: ("a",)}
    rig.now += 0.2
    rig.settle(b=0)
    assert rig.tags.rivals == {}


def test_a_task_that_moved_is_no_rival_once_requests_come_with_its_new_tag(rig: TagsRig) -> None:
    rig.loaded = {"a", "b"}
    rig.settle(a=0)
    rig.settle(a=1, b=0)
    assert rig.tags.rivals == {0: ("a",)}
    rig.moved = {("a", 0)}
    rig.settle(a=1, b=0)
    rig.now += GRACE
    rig.settle(a=1, b=0)
    assert rig.tags.rivals == {}


def test_a_tag_is_free_for_a_task_where_no_requests_of_another_can_come_with_it(rig: TagsRig) -> None:
    rig.loaded = {"a"}
    rig.settle(a=0)
    assert not rig.tags.is_free(0, "b")
    assert rig.tags.is_free(1, "b")
    rig.settle(a=1)
    assert rig.tags.is_free(0, "a"), "it was its own"
    assert not rig.tags.is_free(0, "b")


def test_one_that_had_a_tag_until_it_went_to_whom_it_was_kept_for_is_a_rival(rig: TagsRig) -> None:
    """Requests that the server sent while it had the tag may be on their way, loaded as it may be or not."""
    rig.settle(a=0)
    rig.tags.settle({name: BrokenTask(name, 0, BROKEN) for name in "ab"}, {0: "b"})
    assert (rig.tags.keepers, rig.tags.newcomers, rig.tags.rivals) == ({0: "b"}, {0: ("a",)}, {0: ("a",)})
    rig.now += GRACE
    rig.settle(a=0, b=0)
    assert (rig.tags.keepers, rig.tags.rivals) == ({0: "b"}, {})


def test_a_newcomer_that_was_never_loaded_is_no_rival(rig: TagsRig) -> None:
    rig.settle(a=0)
    rig.settle(a=0, b=0)
    rig.settle(a=0)
    assert rig.tags.rivals == {}
    rig.settle(a=0, b=0)
    assert not rig.tags.may_send("b", 0)
    rig.loaded = {"b"}
    assert rig.tags.may_send("b", 0)


def test_it_is_known_when_a_rival_that_was_unloaded_sends_no_more(rig: TagsRig) -> None:
    rig.settle(a=0, c=1)
    assert rig.tags.until == math.inf
    rig.loaded = {"b"}
    rig.settle(a=0, b=0, c=1)
    assert rig.tags.until == math.inf, "it may be loaded for ever"
    rig.loaded = set()
    rig.settle(a=0, b=0, c=1)
    assert rig.tags.until == GRACE
    rig.now = 1.0
    rig.settle(a=0, b=0)
    assert rig.tags.until == GRACE, "the first of two"
    rig.now = GRACE
    rig.settle(a=0, b=0)
    assert rig.tags.rivals.get(0, ()) == ()


def test_a_newcomer_that_is_loaded_again_is_a_rival_again(rig: TagsRig) -> None:
    rig.settle(a=0)
    for loaded, rivals in ((set(), {}), ({"b"}, {0: ("b",)}), (set(), {0: ("b",)}), ({"b"}, {0: ("b",)})):
        rig.loaded = loaded
        rig.settle(a=0, b=0)
        assert rig.tags.rivals == rivals
        rig.now += GRACE - 0.1


def test_a_newcomer_that_is_loaded_with_another_tag_is_no_rival(rig: TagsRig) -> None:
    rig.loaded = {"a", "b"}
    rig.settle(a=0, b=1)
    rig.with_tags = {"b": [1]}
    rig.settle(a=0, b=0)
    assert not rig.tags.may_send("b", 0)
    assert rig.tags.loaded_newcomers == {0: ("b",)}
    assert 0 not in rig.tags.rivals
    rig.with_tags = {"b": [0]}
    assert rig.tags.may_send("b", 0), "it has been loaded again"
    rig.settle(a=0, b=0)
    assert rig.tags.rivals[0] == ("b",)
    rig.with_tags = {"b": [1]}
    rig.settle(a=0, b=0)
    assert rig.tags.rivals[0] == ("b",), "what it sent with this tag may be on its way"
    rig.now = GRACE
    rig.settle(a=0, b=0)
    assert 0 not in rig.tags.rivals


# -- with a loader, and a server that sends by the entries it has loaded


class Served:
    """A repository, a loader over it, and a server's models. Time passes by hand.

    Args:
        tells: whether the server can be asked by which entry it has loaded a task.
    """

    def __init__(self, root: Path, *, tells: bool = False) -> None:
        self.tells = tells
        self.rig = LoaderRig(root, grace=GRACE)
        self.root, self.models, self.loader = root, self.rig.models, self.rig.loader
        self.ownership = Ownership(self.loader, self.rig.engine_rig.clock)
        self.sent_by: dict[str, int] = {}  # by task: the tag in the entry that the server has loaded

    def put(self, name: str, tag: int) -> None:
        """A new directory, or another tag in one that is there."""
        if (self.root / name).exists():
            write_config(self.root, name, tag)
            return
        aside = self.root.parent / "aside"
        aside.mkdir(exist_ok=True)
        write_task(aside, name, tag)
        (aside / name).rename(self.root / name)

    def remove(self, name: str) -> None:
        shutil.rmtree(self.root / name, ignore_errors=True)

    def load(self, name: str) -> None:
        """As it stands on disk, where it is there."""
        if (tag := self.on_disk().get(name)) is not None:
            self.sent_by[name] = tag
            self.models.loaded.add(name)
            if self.tells:
                self.models.tags[name] = [tag]

    def unload(self, name: str) -> None:
        self.sent_by.pop(name, None)
        self.models.loaded.discard(name)

    def on_disk(self) -> dict[str, int]:
        repository = Repository(self.root, BACKBONE)  # the server has no part in what the loader remembers
        found = ((path.name, repository.tag(path.name)) for path in self.root.iterdir())
        return {name: tag for name, tag in found if tag is not None}

    def round(self, name: str = "") -> None:
        """What the watch does every now and then."""
        self.loader.rounds.unload_newcomers()
        for unloaded in set(self.sent_by) - self.models.loaded:
            del self.sent_by[unloaded]
        self.rig.refresh()

    def tick(self, name: str = "") -> None:
        self.rig.engine_rig.clock.sleep(0.7)

    def read(self, name: str) -> None:
        """What a request of another task has read, without loading anything."""
        self.loader.read_claims({name})

    def _found(self, tag: int) -> Answering | None:
        return self.loader.table.get(tag)

    def ask(self, name: str) -> str:
        """A request by a task's loaded entry: the name of the vFM that answers it, or "" where none does."""
        if name not in self.sent_by:
            return ""
        tag = self.sent_by[name]
        found = self._found(tag)
        if isinstance(found, Vfm) and (doubts := self.ownership.doubts([(found.name, tag)])):
            self.loader.read_claims(doubts)
            found = self._found(tag)
        if found is None or (isinstance(found, Vfm) and self.ownership.doubts([(found.name, tag)])):
            self.rig.refresh()
            found = self._found(tag)
        if not isinstance(found, Vfm):
            return ""
        found.intake.add(requests=1)  # as `Intake` does
        return found.name


@pytest.fixture
def served(tmp_path: Path) -> Served:
    (tmp_path / "repository").mkdir()
    return Served(tmp_path / "repository")


NAMES = st.sampled_from(["a", "b", "c"])
STEPS = st.one_of(
    st.tuples(st.just("put"), NAMES, st.integers(0, 1)),
    st.tuples(st.sampled_from(["remove", "load", "load", "unload", "round", "read", "tick"]), NAMES),
)


@settings(max_examples=60)
@given(st.lists(STEPS, max_size=20), st.booleans())
def test_no_tag_is_ever_answered_by_another_tasks_vfm(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, ...]], tells: bool
) -> None:
    root = tmp_path_factory.mktemp("served") / "repository"
    root.mkdir()
    served = Served(root, tells=tells)
    for action, *arguments in steps:
        getattr(served, action)(*arguments)
        for name in "abc":
            assert served.ask(name) in ("", name), (action, arguments)
    for name in set(served.sent_by) | {"a", "b", "c"}:  # in the end the server has what is on disk
        served.unload(name)
    for _ in range(2):
        served.round()
        served.rig.engine_rig.clock.sleep(GRACE)
    served.round()
    tags = served.on_disk()
    for name, tag in tags.items():
        if list(tags.values()).count(tag) == 1:
            served.load(name)
            assert served.ask(name) == name


@pytest.mark.parametrize("tells", [True, False])
def test_a_loaded_task_whose_entry_is_given_anothers_tag(served: Served, tells: bool) -> None:
    """As a copy from another repository does: the server goes on by the entry that it has loaded."""
    served.tells = tells
    for name, tag in (("a", 0), ("b", 1)):
        served.put(name, tag)
        served.load(name)
        assert served.ask(name) == name
    served.remove("b")
    served.put("b", 0)
    assert served.ask("a") == ("a" if tells else ""), "nobody else's requests come with its tag"
    assert served.ask("b") in ("", "b")
    served.round()
    assert served.models.unloads == ["b"]
    assert served.ask("a") == ("a" if tells else "")


# -- before the watch tells of it


def test_a_directory_that_came_is_seen_with_the_request(served: Served) -> None:
    served.put("a", 0)
    served.load("a")
    assert served.ask("a") == "a"
    served.remove("a")
    served.put("b", 0)
    served.load("b")
    assert (served.ask("b"), served.ask("a")) == ("", "")


@pytest.mark.parametrize(
    ("written", "doubtful"),
    [
        ('"VFM_0"', True),
        ('"VFM_2" # not VFM_0\n', False),
        ('"VFM\\1370"', True),
        ('"VFM_" "0"', True),
        ('"VFM_" # the tag\n "0"', True),
    ],
)
def test_a_tag_however_it_is_written(served: Served, written: str, doubtful: bool) -> None:
    served.put("a", 0)
    served.load("a")
    assert served.ask("a") == "a"
    write_task(served.root.parent, "b", 1)
    entry = served.root.parent / "b" / CONFIG
    entry.write_text(entry.read_text().replace('"VFM_1"', written))
    (served.root.parent / "b").rename(served.root / "b")
    assert ("b" in served.ownership.doubts([("a", 0)])) == doubtful
    served.load("b")
    assert served.ask("a") == ("" if doubtful else "a")


def test_a_directory_that_fills_slowly_is_seen_too(served: Served) -> None:
    """As `cp -r` fills it: the repository's directory does not change when the entry comes."""
    served.put("a", 0)
    served.load("a")
    (served.root / "b").mkdir()
    assert served.ask("a") == "a"
    write_task(served.root, "b", 0)
    served.load("b")
    assert (served.ask("b"), served.ask("a")) == ("", "")
    served.round()
    assert served.models.unloads == ["b"]
    served.round()
    served.rig.engine_rig.clock.sleep(GRACE)
    served.round()
    assert served.ask("a") == "a"


def test_a_task_that_is_given_its_tag_back_is_seen_with_its_first_request(served: Served) -> None:
    """Its former vFM, which has not left yet, must not take the request that shows it."""
    for name, tag in (("a", 0), ("b", 1)):
        served.put(name, tag)
        served.load(name)
        assert served.ask(name) == name
    served.remove("b")  # also what an entry that is being written looks like
    served.round()
    served.put("b", 0)
    served.load("b")
    assert (served.ask("b"), served.ask("a")) == ("", "")
    assert served.loader.has_left(1)
    served.put("b", 1)
    served.load("b")
    assert (served.ask("b"), served.ask("a")) == ("b", "")
    served.round()
    served.rig.engine_rig.clock.sleep(GRACE)
    served.round()
    assert served.ask("a") == "a"


def test_a_newcomer_that_is_loaded_is_seen_with_the_request(served: Served) -> None:
    """Nothing changes on disk when the server loads it."""
    for name in "ab":
        served.put(name, 0)
        served.round()
    served.load("a")
    assert served.ask("a") == "a"
    served.load("b")
    assert (served.ask("b"), served.ask("a")) == ("", "")


def test_a_task_that_left_a_contested_tag_is_not_answered_for(served: Served) -> None:
    """The requests that come may be those of the one that had the tag before."""
    for name in "ab":
        served.put(name, 1)
    served.load("b")
    assert served.ask("b") == "b"
    served.remove("b")
    assert served.ask("b") == ""
    served.put("a", 0)
    assert served.ask("b") == ""


def test_an_entry_that_changed_is_read_with_the_request(served: Served) -> None:
    served.put("a", 0)
    served.load("a")
    assert served.ask("a") == "a"
    former = served.loader.table[0]
    assert isinstance(former, Vfm)
    write_config(served.root, "a", 0, weight=3.0)
    assert served.ask("a") == "a"
    assert served.loader.table[0] is former
    assert former.weight == 1.0  # the watch has not been there
    write_config(served.root, "a", 1)
    write_task(served.root, "b", 0)
    served.load("b")
    assert served.ask("b") == ""


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_an_entry_that_was_given_another_tasks_tag_is_seen_with_the_request(
    served: Served, in_place: bool, is_known: bool
) -> None:
    """Nothing of the one that has the tag changes, nor does the repository's directory."""
    for name, tag in (("a", 0), ("b", 1)):
        served.put(name, tag)
        served.load(name)
        assert served.ask(name) == name
    if is_known:
        assert served.ask("a") == "a"
    file, times = served.root / "b" / CONFIG, os.stat(served.root / "b" / CONFIG)
    text = file.read_text().replace("VFM_1", "VFM_0")
    if in_place:
        file.write_text(text)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as it is within one tick of the file system's clock
    else:
        aside = served.root / "b" / "aside"
        aside.write_text(text)
        aside.rename(file)
    served.load("b")
    assert (served.ask("b"), served.ask("a")) == ("", "")


@pytest.mark.parametrize("change", [lambda root: root.rename(root.with_name("away")), lambda root: root.chmod(0)])
def test_a_repository_that_is_away_for_a_moment(served: Served, change: Callable[[Path], object]) -> None:
    served.put("a", 0)
    served.load("a")
    assert served.ask("a") == "a"
    change(served.root)
    try:
        assert served.ask("a") == "a"
    finally:
        if not served.root.exists():
            served.root.with_name("away").rename(served.root)
        served.root.chmod(0o755)
    assert served.ask("a") == "a"


def test_a_tag_of_one_task_costs_no_question_to_the_server(served: Served) -> None:
    for name, tag in (("a", 0), ("b", 1)):
        served.put(name, tag)
        served.load(name)
    served.round()
    served.models.asked = 0
    for _ in range(10):
        assert served.ask("a") == "a"
    assert served.models.asked == 0


def test_a_copy_that_nobody_loads_costs_the_original_nothing_but_a_question(served: Served) -> None:
    served.put("a", 0)
    served.load("a")
    shutil.copytree(served.root / "a", served.root / "b")
    edit(served.root / "b" / "config.pbtxt", 'name: "a"', 'name: "b"')
    shutil.copytree(served.root / "a", served.root / "a.bak")
    for _ in range(3):
        assert served.ask("a") == "a"
        served.round()
