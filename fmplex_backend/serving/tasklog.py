"""What the log says about tasks. The repository is read every few seconds: each event is logged once."""

from __future__ import annotations

import logging
from collections.abc import Collection

from fmplex_backend.repository.tasks import TaskSpec

log = logging.getLogger("fmplex")

UNKNOWN_TAG_S = 60.0


class TaskLog:
    """Logs what changes for tasks. `refusals`: the text last logged for each task that is refused now."""

    def __init__(self) -> None:
        self.refusals: dict[str, str] = {}
        self._stay_loaded: dict[str, str] = {}
        self._raised: dict[str, str] = {}
        self._unknown: dict[int, float] = {}  # by tag: when it may be said again
        self._contested: dict[int, str] = {}  # the text last logged for each tag that two tasks' requests come with

    def serves(self, spec: TaskSpec) -> None:
        """A task is served with this version, on these terms."""
        log.info("task %s: VFM_%d, version %d, weight %g", spec.name, spec.vfm, spec.version.number, spec.weight)

    def removed(self, name: str) -> None:
        """A task is served no more."""
        log.info("task %s removed", name)

    def refused(self, name: str, text: str) -> None:
        """A task, or its new version, is refused; nothing where that was the last thing said about it."""
        if self.refusals.get(name) != text:
            self.refusals[name] = text
            log.error("task %s refused: %s", name, text)

    def contested(self, tag: int, text: str) -> None:
        """Requests with a tag are refused; nothing where that was the last thing said about it."""
        if self._contested.get(tag) != text:
            self._contested[tag] = text
            log.error("%s", text)

    def raised(self, name: str, error: Exception) -> None:
        """Loading a task raised what nobody expected: the traceback, once for each text of the error."""
        text = f"{type(error).__name__}: {error}"
        if self._raised.get(name) != text:
            self._raised[name] = text
            log.error("loading task %s", name, exc_info=error)

    def unknown_tag(self, tag: int, now: float) -> None:
        """A request came with a tag that no task has: once a minute."""
        if now >= self._unknown.get(tag, now):
            self._unknown[tag] = now + UNKNOWN_TAG_S
            log.warning("a request came with VFM_%d, which is no task's tag (said once a minute)", tag)

    def unloaded(self, name: str, tag: int, keeper: str) -> None:
        """A task was taken off the server."""
        log.warning("task %s unloaded: its requests would come with VFM_%d, the tag of %s", name, tag, keeper)

    def stays_loaded(self, name: str, text: str) -> None:
        """A task could not be taken off the server."""
        if self._stay_loaded.get(name) != text:
            self._stay_loaded[name] = text
            log.error("task %s cannot be unloaded, so nothing with its tag is answered: %s", name, text)

    def forget_refusals(self, refused: Collection[str], contested: Collection[int] = ()) -> None:
        """Of all tasks and tags but these: if one is refused again, that is news."""
        self.refusals = {name: text for name, text in self.refusals.items() if name in refused}
        self._contested = {tag: text for tag, text in self._contested.items() if tag in contested}
        self._raised = {name: text for name, text in self._raised.items() if name in refused}
        if not contested:
            self._stay_loaded = {}
