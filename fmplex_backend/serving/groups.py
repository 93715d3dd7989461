"""The groups of a backbone, kept in step with their entries."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from fmplex_backend.repository.groups import GroupSpec
from fmplex_backend.serving.table import Group


class Groups:
    """Which groups there are, and which have left.

    Args:
        grace: seconds that a group which was removed, or has another tag, is still answered by its former one.
    """

    def __init__(self, grace: float) -> None:
        self.grace = grace
        self.served: dict[str, Group] = {}
        self.leaving: dict[int, tuple[Group, float]] = {}  # by tag, until when

    def settle(self, specs: Mapping[str, GroupSpec], refused: Collection[str], now: float) -> None:
        """Take in what stands in the repository; `refused` are names of what cannot be served any more."""
        former = self.served
        self.served = {name: _renewed(former.get(name), spec) for name, spec in specs.items()}
        for name, group in former.items():
            has_left = name not in specs or specs[name].vfm != group.spec.vfm
            if has_left and name not in refused:
                self.leaving[group.spec.vfm] = group, now + self.grace
        taken = {group.spec.vfm for group in self.served.values()}
        self.leaving = {tag: left for tag, left in self.leaving.items() if tag not in taken and now < left[1]}

    def table(self) -> dict[int, Group]:
        """By tag, those that are leaving among them."""
        leaving = {tag: group for tag, (group, _) in self.leaving.items()}
        return leaving | {group.spec.vfm: group for group in self.served.values()}


def _renewed(former: Group | None, spec: GroupSpec) -> Group:
    if former is None or former.spec.vfm != spec.vfm:
        return Group(spec)
    return former if former.spec == spec else Group(spec, former.spec, former.counts)
