"""What has to be done so that the server has loaded what the repository holds. Pure: no file, no server, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

from fmplex_backend.errors import TaskRefused
from fmplex_backend.printable import printable
from fmplex_backend.repository.binding import AUTO
from fmplex_backend.repository.configs import CONFIG
from fmplex_backend.repository.tags import keeper_of
from fmplex_controller.sidecar.actions import Action, Complete, Lift, Load, Quarantine, Unload
from fmplex_controller.sidecar.seen import Attempt, Directory, Model, Seen

STILL_S = 1.0  # a directory is loaded, and a model without a directory unloaded, after so long without a change
BAD_S = 5.0  # what is wrong may be that a copy is not finished: it is said after so long without a change
ONCE_MORE_S = 60.0  # what was refused is tried once more: another host may see changes of a shared file system so late
DOWN_S = 2.0  # what others have unloaded is loaded again after so long: they may be about to load it themselves
ABSENT = Model(ready=False, for_s=DOWN_S)


def reconcile(seen: Seen, root: str = "") -> list[Action]:
    """What to do, in this order; `root` is the repository's path, for messages.

    A task is not loaded before its backbone, nor an ensemble of tasks before these, because Triton would load them with
    it; nor is a backbone unloaded before its tasks. What waits for another action is left to the next round.
    """
    return _Round(seen, root).actions()


class _Round:
    def __init__(self, seen: Seen, root: str) -> None:
        self.seen, self.root = seen, root
        self.keepers = _keepers(seen)
        taken = Counter(backbone for backbone, _ in self.keepers)
        self.slots_left = {
            name: each.inspected.slots - taken[name]
            for name, each in seen.directories.items()
            if each.inspected.kind == "backbone"
        }
        self.problems = {name: self._problem(each) for name, each in seen.directories.items()}

    def actions(self) -> list[Action]:
        names = sorted(self.seen.directories)
        every = [self.seen.directories[name] for name in names]
        backbones = [each for each in every if each.inspected.kind == "backbone"]
        tasks = [each for each in every if each.inspected.kind == "task"]
        others = [each for each in every if each.inspected.kind == "model"]
        return [
            *chain.from_iterable(map(self._reports, every)),
            *self._unloads(),
            *chain.from_iterable(map(self._completions, tasks)),
            *chain.from_iterable(map(self._loads, [*backbones, *tasks, *others])),
        ]

    # -- each kind of action

    def _reports(self, directory: Directory) -> Iterator[Action]:
        """ERROR.txt: for what is wrong with what is still; gone with what was mended and is loaded."""
        text = printable(self.problems[directory.name] or self._given_up(directory.name))
        if text:
            if directory.error != text and directory.still_s >= BAD_S:
                yield Quarantine(directory.name, text)
        elif directory.error and (directory.unloaded or self._is_taken_up(directory)):
            yield Lift(directory.name)

    def _unloads(self) -> Iterator[Action]:
        """Tasks before the backbones that they are on."""
        backbones = self._backbones()
        found = {name: why for name, model in self.seen.models.items() if (why := self._why_unload(name, model))}
        for name in sorted(found, key=lambda name: (name in backbones, name)):
            unhealthy = self.seen.unhealthy.get(name)
            yield Unload(name, found[name], 0 if unhealthy is None else unhealthy.pid)

    def _completions(self, task: Directory) -> Iterator[Action]:
        # A tag that is given while a task that had it is still loaded would answer for neither.
        leaving = any(self._model(name).ready for name in self.seen.gone_s)
        waits = task.still_s < STILL_S or task.unloaded or bool(self.problems[task.name]) or leaving
        has_place = self._is_unbound(task) or task.inspected.backbone in self.slots_left
        if not waits and self._lacks(task) and has_place and not self._is_undecided(task):
            yield Complete(task.name, task.fingerprint, self._depends(task), task.still_s)

    def _loads(self, directory: Directory) -> Iterator[Action]:
        name, model = directory.name, self._model(directory.name)
        unhealthy = self.seen.unhealthy.get(name)
        waits = directory.still_s < STILL_S or (unhealthy is not None and (unhealthy.unload or unhealthy.hold))
        if waits or directory.unloaded or self.problems[name] or self._lacks(directory):
            return
        by_others = self._was_taken_up(directory) and unhealthy is None
        if self._is_taken_up(directory) or (by_others and model.for_s < DOWN_S):
            return
        backbone, steps = directory.inspected.backbone, directory.inspected.steps
        if (backbone and not self._serves(backbone)) or not all(map(self._serves, steps)):
            return
        confirms = model.ready and name not in self.seen.attempts
        why = self._why_load(directory)
        depends, still_s = self._depends(directory), directory.still_s
        yield Load(name, directory.fingerprint, depends, backbone, model.ready, confirms, why, still_s)

    # -- what these go by

    def _why_load(self, directory: Directory) -> str:
        if self._model(directory.name).ready:
            return "its files have changed"
        return "it was not loaded any more" if self._was_taken_up(directory) else "its directory is new, or was mended"

    def _why_unload(self, name: str, model: Model) -> str:
        if not model.ready:
            return ""
        directory = self.seen.directories.get(name)
        if directory is None:
            return "its directory is gone" if self.seen.gone_s.get(name, 0.0) >= STILL_S else ""
        if directory.unloaded:
            return "its directory holds UNLOADED"
        backbone = directory.inspected.backbone
        if backbone and backbone != AUTO and backbone not in self.seen.directories:
            return f"its backbone {backbone!r} is gone" if self.seen.gone_s.get(backbone, STILL_S) >= STILL_S else ""
        if backbone in self.seen.directories and self.seen.directories[backbone].unloaded:
            return f"the directory of its backbone {backbone!r} holds UNLOADED"
        for each in (name, backbone):
            unhealthy = self.seen.unhealthy.get(each)
            if unhealthy is not None and unhealthy.unload:
                return unhealthy.reason if each == name else f"its backbone {each!r}: {unhealthy.reason}"
        return ""

    def _serves(self, name: str) -> bool:
        """Whether what steps into it can be loaded: it is loaded itself, as its directory is now."""
        directory, unhealthy = self.seen.directories.get(name), self.seen.unhealthy.get(name)
        return directory is not None and unhealthy is None and not directory.unloaded and self._is_taken_up(directory)

    def _is_taken_up(self, directory: Directory) -> bool:
        """Whether the server has loaded it as its files are now."""
        return self._model(directory.name).ready and self._was_taken_up(directory)

    def _was_taken_up(self, directory: Directory) -> bool:
        """The same, also where somebody has unloaded it since."""
        attempt = self.seen.attempts.get(directory.name)
        return attempt is not None and attempt.fingerprint == directory.fingerprint and not attempt.error

    def _lacks(self, task: Directory) -> bool:
        """Also where it has a tag that is another task's, or none of its backbone's."""
        own = task.inspected
        if own.kind != "task" or own.lack is not None:
            return own.lack is not None
        backbone = self.seen.directories.get(own.backbone)
        beyond = own.tag is not None and backbone is not None and 0 < backbone.inspected.slots <= own.tag
        return beyond or self.keepers.get((own.backbone, own.tag), task.name) != task.name

    def _is_undecided(self, task: Directory) -> bool:
        """Whether a task lacks nothing but a tag of its own, and its backbone has not told yet who has that one.

        Clients are answered by that: to give the task another tag would take it from the one that is served.
        """
        own = task.inspected
        is_served = self._model(own.backbone).ready and own.backbone not in self.seen.unhealthy
        if own.lack or not is_served or self.keepers.get((own.backbone, own.tag), task.name) == task.name:
            return False
        told = self.seen.tags.get(own.backbone)
        return told is None or told.age_s >= task.still_s

    def _problem(self, directory: Directory) -> str:
        """Why it cannot be loaded as it is, by its own files, by its backbone's absence, or by what was tried."""
        if directory.inspected.problem:
            return directory.inspected.problem
        if missing := self._missing_backbone(directory):
            return missing
        attempt = self.seen.attempts.get(directory.name)
        if attempt is None or directory.name in self.seen.unhealthy:  # which is tried again until it is given up
            return ""
        return attempt.error if self._is_current(attempt, directory) else ""

    def _is_current(self, attempt: Attempt, directory: Directory) -> bool:
        """Whether it would most likely come out the same now.

        What could not be loaded then, somebody may have loaded by hand; or the reason may have been one that passes.
        """
        by_hand = self._model(directory.name).ready and not attempt.again
        as_then = (attempt.fingerprint, attempt.depends) == (directory.fingerprint, self._depends(directory))
        return as_then and not by_hand and not attempt.still_s < ONCE_MORE_S <= directory.still_s

    def _depends(self, directory: Directory) -> str:
        """What an attempt goes by beside the directory: its backbone, or all of them where it is bound to none."""
        own, unbound = directory.inspected.backbone, self._is_unbound(directory)
        names = [name for name in sorted(self.slots_left) if unbound or name == own]
        return " ".join(
            f"{self.seen.directories[name].fingerprint}{'' if self.slots_left[name] > 0 else ' full'}" for name in names
        )

    def _is_unbound(self, task: Directory) -> bool:
        return task.inspected.lack in ("config", "backbone")

    def _missing_backbone(self, task: Directory) -> str:
        name = task.inspected.backbone
        if not name or task.inspected.lack == "backbone":
            return ""
        found = self.seen.directories.get(name)
        if found is None:
            waits = self.seen.gone_s.get(name, BAD_S) < BAD_S
        else:  # it may be about to be mended, and has its own ERROR.txt else
            waits = found.still_s < BAD_S or bool(found.inspected.problem) or found.inspected.kind == "backbone"
        if waits:
            return ""
        every = self.seen.directories.items()
        known = ", ".join(name for name, each in sorted(every) if each.inspected.kind == "backbone") or "none"
        refused = TaskRefused(
            f"{self.root}/{task.name}/{CONFIG}",
            "ensemble_scheduling.step.model_name",
            f"there is no backbone {name!r} in the repository, which has {known}",
            f"Add it with `fmplex backbone add {name} MODEL`, or write the name of one of those, or {AUTO!r}",
        )
        return str(refused)

    def _given_up(self, name: str) -> str:
        unhealthy = self.seen.unhealthy.get(name)
        return unhealthy.reason if unhealthy is not None and unhealthy.given_up else ""

    def _model(self, name: str) -> Model:
        return self.seen.models.get(name, ABSENT)

    def _backbones(self) -> set[str]:
        """Those that are there, and those of tasks."""
        named = {each.inspected.backbone for each in self.seen.directories.values()}
        return named | {name for name, each in self.seen.directories.items() if each.inspected.kind == "backbone"}


def _keepers(seen: Seen) -> dict[tuple[str, int | None], str]:
    """By backbone and tag, the task that has it, as backbones see it (`Tags` in fmplex_backend/serving/tags.py).

    A backbone keeps a tag for who had it first, which no entry shows: it tells of that one.
    """
    found: dict[tuple[str, int | None], list[Directory]] = {}
    for each in seen.directories.values():
        if each.inspected.kind == "task" and not each.inspected.lack and each.inspected.tag is not None:
            found.setdefault((each.inspected.backbone, each.inspected.tag), []).append(each)
    return {claim: _keeper(seen, claimants) for claim, claimants in found.items()}


def _keeper(seen: Seen, claimants: Sequence[Directory]) -> str:
    backbone, tag = claimants[0].inspected.backbone, claimants[0].inspected.tag
    told = seen.tags.get(backbone)
    holder = None if told is None or tag is None else told.by_tag.get(tag)
    ages = {each.name: each.inspected.age for each in claimants}
    return keeper_of(
        ages,
        holder=next((name for name in ages if printable(name) == holder), None),
        is_loaded=lambda name: seen.models.get(name, ABSENT).ready,
        oldest=lambda names: min(names, key=ages.__getitem__),
    )
