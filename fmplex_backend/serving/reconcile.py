"""What has to change so that the tasks that are served become those in the model repository.

Pure functions: entries that were read go in, changes come out. `serving/served_tasks.py` carries them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

from fmplex_backend.errors import TagContested, TaskRefused
from fmplex_backend.repository.check import tag_refused
from fmplex_backend.repository.tasks import BrokenTask, Entry, ReadTask, TaskSpec
from fmplex_backend.types import Vfm


@dataclass(frozen=True, slots=True)
class Served:
    """A task that is served: its vFM, and the spec by which it was loaded."""

    spec: TaskSpec
    vfm: Vfm


class RefusedVersion(NamedTuple):
    """A version that could not be loaded. It is not read again until its spec changes."""

    spec: TaskSpec
    error: TaskRefused


# -- the changes


@dataclass(frozen=True, slots=True)
class Attach:
    """Load a version and let the task's vFM serve with it: a new vFM where the task is not served yet."""

    spec: TaskSpec
    former: Served | None


@dataclass(frozen=True, slots=True)
class SetTerms:
    """Set the vFM's weight, SLO and max_queue; its version stays attached."""

    spec: TaskSpec
    former: Served


@dataclass(frozen=True, slots=True)
class KeepFormer:
    """A new version is refused: the former one goes on serving, on the new terms, as long as its files are intact."""

    spec: TaskSpec
    former: Served
    error: TaskRefused


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer requests with this tag with an error; `vfm` is None where the entry has no tag, or another task's."""

    name: str
    vfm: int | None
    error: TaskRefused


@dataclass(frozen=True, slots=True)
class Retire:
    """Stop serving a vFM once its queue is empty.

    A task that was removed, or moved to another tag or backbone, is answered for some seconds more: the server sends
    requests by the entry that it has loaded until it has loaded the next.
    """

    served: Served
    cause: Literal["removed", "moved", "refused"]


Settling = SetTerms | KeepFormer | Refuse | Retire  # what loads no version
Change = Attach | Settling

# -- the comparison


def changes(
    served: Mapping[str, Served], entries: Mapping[str, ReadTask], refused: Mapping[str, RefusedVersion]
) -> list[Change]:
    """What to do, in the order of the entries, and then for the tasks that have none any more.

    Refuse and KeepFormer come again as long as their cause is there. A task that is served as its entry says needs
    nothing.

    Args:
        served: by name, what is served now.
        entries: by name, what stands in the repository.
        refused: by name, the version that was last refused when it was loaded.
    """
    of_entries = (_changes_of(entry, served.get(name), refused.get(name)) for name, entry in entries.items())
    removed = (Retire(now, "removed") for name, now in served.items() if name not in entries)
    return [*chain.from_iterable(of_entries), *removed]


def _changes_of(entry: ReadTask, now: Served | None, refused: RefusedVersion | None) -> Iterator[Change]:
    if isinstance(entry, BrokenTask):
        if now is not None:
            yield Retire(now, "refused")
        yield Refuse(entry.name, entry.vfm, entry.error)
    elif now is not None and now.spec.vfm != entry.vfm:
        yield Retire(now, "moved")
        yield from _changes_of(entry, None, refused)
    elif now is not None and now.spec == entry:
        return
    elif now is not None and now.spec.version == entry.version and now.spec.outputs == entry.outputs:
        yield SetTerms(entry, now)
    elif refused is not None and refused.spec == entry:
        yield from changes_of_refused(entry, now, refused.error)
    else:
        yield Attach(entry, now)


def changes_of_refused(spec: TaskSpec, former: Served | None, error: TaskRefused) -> Iterator[Settling]:
    """What to do where a version cannot be loaded: another version that is served goes on, else the task is refused."""
    if former is not None and former.spec.version.number != spec.version.number:
        yield KeepFormer(spec, former, error)
    else:
        yield from changes_without_former(spec, former, error)


def changes_without_former(spec: TaskSpec, former: Served | None, error: TaskRefused) -> Iterator[Settling]:
    """What to do where a version cannot be loaded and none can go on in its place."""
    if former is not None:
        yield Retire(former, "refused")
    yield Refuse(spec.name, spec.vfm, error)


# -- tags


def without_conflicts(
    entries: Mapping[str, Entry],
    by_tag: Mapping[int, Sequence[str]],
    keepers: Mapping[int, str],
    *,
    slots: int,
    root: Path,
    backbone: str,
) -> dict[str, Entry]:
    """The entries, those broken whose tag another task keeps or that does not exist: tags go from 0 to slots - 1.

    Args:
        by_tag: the names of the entries that claim each tag.
        keepers: by tag, which of them has it. It is refused under its tag where it is broken; the others are refused
            without one.
    """
    checked = dict(entries)
    for tag, names in by_tag.items():
        for name in names:
            file, entry = root / name / "config.pbtxt", entries[name]
            if (beyond := tag_refused(file, tag, (), slots=slots, backbone=backbone)) is not None:
                checked[name] = BrokenTask(name, tag, beyond)
            elif name != keepers[tag]:
                problem = f"VFM_{tag} on {backbone!r} is the tag of {keepers[tag]!r}, which keeps it"
                checked[name] = _untagged(name, file, problem, new_tag(name, root))
            elif isinstance(entry, BrokenTask):
                checked[name] = replace(entry, vfm=tag)
    return checked


def _untagged(name: str, file: Path, problem: str, remedy: str) -> BrokenTask:
    return BrokenTask(name, None, TaskRefused(file, "ensemble_scheduling.step.output_map", problem, remedy))


def new_tag(name: str, root: Path) -> str:
    """How a task gets another tag."""
    return f"Give it another tag, then load it: fmplex task set {name} --new-tag --repository {root}"


def contested(tag: int, keeper: str, rivals: Sequence[str], newcomers: Sequence[str], root: Path) -> TagContested:
    """Why nothing with a tag is answered: requests of `rivals` may come with it, of which `newcomers` claim it."""
    others = ", ".join(map(repr, rivals))
    given = [name for name in rivals if name in newcomers] or [keeper]
    return TagContested(
        f"VFM_{tag} is the tag of {keeper!r}, and requests of {others} may come with it too: they cannot be told apart "
        f"while the server has {others} loaded. Unload {others}. Or give {given[0]!r} a tag of its own: "
        f"fmplex task set {given[0]} --new-tag --repository {root}"
    )
