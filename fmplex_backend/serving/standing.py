"""How each task stands after a round of the loader: what `serving/reporter.py` tells, with the counts as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fmplex_backend.serving.groups import Groups
from fmplex_backend.serving.reconcile import KeepFormer, Refuse, Served
from fmplex_backend.serving.table import Group
from fmplex_backend.status import State
from fmplex_backend.types import Vfm


@dataclass(frozen=True, slots=True)
class Standing:
    """A task or a group; `vfm` where it has one."""

    name: str
    tag: int | None
    state: State
    vfm: Vfm | None = None
    version: int | None = None
    error: str = ""
    group: Group | None = None


def standings(
    served: Mapping[str, Served], refused: Mapping[str, Refuse | KeepFormer], leaving: Mapping[int, Vfm]
) -> Iterator[Standing]:
    """Of every task that the backbone knows of.

    Args:
        served: by name.
        refused: by name, those refused in the last round, or whose new version was.
        leaving: by tag, those that were removed or moved and are still answered.
    """
    for name, now in served.items():
        change = refused.get(name)
        state: State = "serving" if change is None else "serving former version"
        error = "" if change is None else str(change.error)
        yield Standing(name, now.spec.vfm, state, now.vfm, now.spec.version.number, error)
    for name, change in refused.items():
        if isinstance(change, Refuse):
            yield Standing(name, change.vfm, "refused", error=str(change.error))
    for tag, vfm in leaving.items():
        yield Standing(vfm.name, tag, "leaving", vfm)


def standings_of_groups(groups: Groups) -> Iterator[Standing]:
    """Of every group that can be read, and of those that were removed or moved and are still answered."""
    for name, group in groups.served.items():
        yield Standing(name, group.spec.vfm, "serving", group=group)
    for tag, (group, _) in groups.leaving.items():
        yield Standing(group.name, tag, "leaving", group=group)
