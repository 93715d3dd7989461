"""Tags as the entries of a repository have them: which are taken, and which a task gets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from fmplex_backend.errors import TaskProblem
from fmplex_backend.interface import USAGE, USAGE_DIMS, tag_name, tag_of
from fmplex_backend.printable import printable
from fmplex_backend.repository.configs import CONFIG, tags_of
from fmplex_backend.repository.tasks import Repository

NONE_TOLD: Mapping[int, str] = {}


def free_tag(root: Path, names: Iterable[str], name: str, backbone: str, slots: int) -> int:
    """A tag below `slots` that none of the directories `names` has on the backbone; raises TaskProblem."""
    tag = first_free(name, claimed(root, names, backbone), slots)
    if tag is None:
        raise TaskProblem(
            f"all {slots} tags of the backbone {backbone!r} are taken. Raise vfm_slots in "
            f"{root / backbone / CONFIG} (and load the backbone again), or remove a task"
        )
    return tag


def first_free(name: str, used: Collection[int], slots: int) -> int | None:
    """The first tag that is free, counted from one that depends on the task's name; None where all are taken.

    A tag that has become free is so hardly ever given to another task soon, while a server may still have the former
    one loaded; and a task that is removed and saved again has the tag that it had. Nothing has to be remembered for it.
    """
    first = crc32(name.encode()) % slots
    return next((tag for tag in (*range(first, slots), *range(first)) if tag not in used), None)


def claimed(root: Path, names: Iterable[str], backbone: str) -> dict[int, list[str]]:
    """By tag, the directories whose entry has it on a backbone, whether a server would take them or not."""
    found: dict[int, list[str]] = {}
    for name in names:
        for tag in tags_of(root / name / CONFIG, backbone):
            found.setdefault(tag, []).append(name)
    return found


def keeper_of(
    names: Collection[str],
    *,
    holder: str | None,
    is_loaded: Callable[[str], object],
    oldest: Callable[[Iterable[str]], str],
) -> str:
    """Which of several tasks keeps a tag that all of them claim: a server answers for that one alone.

    It is the one that its backbone has served with it so far, `holder`; else the only one that the server has loaded;
    else the oldest. Dates decide last: what is copied may be of an earlier date than what is served.
    """
    if holder is not None and holder in names:
        return holder
    loaded = [name for name in names if is_loaded(name)]
    return loaded[0] if len(loaded) == 1 else oldest(names)


def check_tag(
    root: Path, names: Iterable[str], name: str, backbone: str, tag: int, holders: Mapping[int, str] = NONE_TOLD
) -> None:
    """Raise TaskProblem where another task keeps the tag.

    Args:
        holders: `BackboneStatus.tag_holders` of the server that runs on this repository, where it was asked.
    """
    claimants = {*claimed(root, names, backbone).get(tag, ()), name}
    holder = next((each for each in claimants if printable(each) == holders.get(tag)), None)
    oldest = Repository(root, backbone).oldest
    keeper = keeper_of(claimants, holder=holder, is_loaded=lambda _: False, oldest=oldest)
    if keeper == name:
        return
    why = (
        "which the server answers for"
        if holder
        else "whose files in the repository are older: a server that serves neither of them yet answers for that one"
    )
    raise TaskProblem(
        f"VFM_{tag} on {backbone!r} is the tag of {keeper!r} too, {why}. Give {name!r} another tag first: "
        f"fmplex task set {name} --new-tag --repository {root}"
    )


def put_tag(proto: Any, backbone: str, tag: int) -> None:
    """Put a tag into the steps of an entry, a ModelConfig message, in the place of those it has on the backbone.

    An entry without one gets it in its first step into the backbone, with the output `usage`.
    """
    steps = [step for step in proto.ensemble_scheduling.step if step.model_name == backbone]
    formers = [(step, key) for step in steps for key in step.output_map if tag_of(key) is not None]
    for step, former in formers:
        shown = step.output_map.pop(former)
        step.output_map[tag_name(tag)] = shown
    if steps and not formers:
        steps[0].output_map[tag_name(tag)] = USAGE
        if USAGE not in {output.name for output in proto.output}:
            proto.output.add(name=USAGE, data_type="TYPE_INT64", dims=USAGE_DIMS)
