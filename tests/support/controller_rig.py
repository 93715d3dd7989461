"""A controller on a repository on disk and a server that only remembers, whose rounds and time a test decides."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from backend_fixtures import text_task, write_config, write_version
from live_server import status, task

from fmplex_backend.errors import ServerProblem
from fmplex_backend.status import BackboneStatus
from fmplex_controller.records.journal import Journal
from fmplex_controller.sidecar.adaptation import ElasticOptions
from fmplex_controller.sidecar.controller import Controller
from fmplex_controller.sidecar.seen import Miss
from fmplex_controller.sidecar.triton import DEAD, PROBE_S

EMBEDDING = text_task({"kind": "embedding"})


class FakeTriton:
    """Loads whatever it is told to, but for what `refuses` says.

    Args:
        clock: by which the processes of backbones tell how long they have run.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.models: dict[str, float] = {}  # and when each was loaded
        self.calls: list[str] = []
        self.refuses: dict[str, ServerProblem] = {}
        self.errors: dict[str, str] = {}  # by task: why its backbone refuses it
        self.problem: ServerProblem | None = None
        self.dead: set[str] = set()  # backbones whose processes end as soon as they run
        self._clock = clock

    def loaded(self) -> set[str]:
        if self.problem is not None:
            raise self.problem
        return set(self.models)

    def load(self, name: str) -> None:
        if name in self.refuses:
            raise self.refuses[name]
        self.calls.append(f"load {name}")
        self.models.setdefault(name, self._clock())

    def unload(self, name: str) -> None:
        self.calls.append(f"unload {name}")
        self.models.pop(name, None)

    def status(self, backbone: str, name: str = "") -> BackboneStatus:
        names = [name] if name else sorted(self.models.keys() - {backbone})
        return status(
            *(
                task(each, state="refused" if each in self.errors else "serving", error=self.errors.get(each, ""))
                for each in names
                if each != "unknown"
            )
        )

    def probe(self, backbone: str, timeout: float = PROBE_S) -> BackboneStatus | Miss:
        if backbone not in self.models:
            raise ServerProblem(f"{backbone} is not loaded", "NOT_FOUND")
        if backbone in self.dead:
            return Miss("its process is dead", DEAD)
        return self.status(backbone).model_copy(update={"up_s": self._clock() - self.models[backbone]})


class Rig:
    """The controller, its server, and what it has told."""

    def __init__(self, root: Path) -> None:
        self.root, self.now = root, 100.0
        self.triton = FakeTriton(lambda: self.now)
        self.begin_anew()
        self.pool = ThreadPoolExecutor(2)

    def begin_anew(self, elastic: ElasticOptions | None = None, journal: Journal | None = None) -> None:
        """Another controller, which knows nothing."""
        fake: Any = self.triton
        self.journal = journal or Journal()
        self.events: list[tuple[str, str]] = []  # kinds and models
        self.journal.listeners.append(lambda event: self.events.append((event.kind, event.model)))
        self.controller = Controller(self.root, fake, lambda: self.now, self.journal, elastic)

    def run(self, seconds: float, step_s: float = 0.5, *, probes: bool = False) -> list[str]:
        """Rounds every so many seconds; what the server was told in them.

        Args:
            probes: whether backbones are probed in each round.
        """
        before = len(self.triton.calls)
        for _ in range(int(seconds / step_s)):
            self.controller.observer.changed(None)
            self.controller.round(self.pool)
            for work in self.controller._working.values():
                work.exception(20)
            if probes:
                self.probe()
            self.now += step_s
        return self.triton.calls[before:]

    def probe(self) -> None:
        """Each loaded backbone is probed once, and has answered or not."""
        with ThreadPoolExecutor(1) as pool:
            self.controller.probes.send(pool)

    def write(self, name: str, tag: int = 1, document: Any = EMBEDDING, **terms: Any) -> Path:
        """A task."""
        write_config(self.root, name, tag, **terms)
        return write_version(self.root, name, 1, document)

    def error(self, name: str) -> str:
        """What its ERROR.txt says."""
        file = self.root / name / "ERROR.txt"
        return file.read_text() if file.exists() else ""
