"""What a planner is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

# (rows of a batch, tokens of each row) -> seconds that the batch takes
Latency = Callable[[int, float], float]


@dataclass(frozen=True, slots=True)
class Server:
    """A machine, or a part of one, that backbones run on.

    `parallel` backbones run side by side without slowing each other down: a GPU has one, eight cores have four
    backbones of two threads each. More may be started; then they share the time of so many.
    """

    name: str
    memory: int  # bytes
    parallel: float = 1.0


@dataclass(frozen=True, slots=True)
class Model:
    """A foundation model of which there may be any number of backbones."""

    name: str
    memory: int  # bytes of a backbone, its tasks left out
    latency: Latency
    max_batch: int = 32  # rows
    slots: int = 256  # tasks that a backbone can take
    label: str = ""  # what names of new backbones begin with; the model's name by default


@dataclass(frozen=True, slots=True)
class Backbone:
    """A model in memory."""

    name: str
    model: str
    server: str


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked of a task: `rate` in rows per second, `tokens` in each row."""

    name: str
    model: str
    rate: float
    tokens: float
    slo: float | None = None  # seconds
    memory: int = 0  # bytes of its extensions


@dataclass(frozen=True, slots=True)
class Binding:
    """A task on a backbone, with a part of the task's load; all parts of a task add up to 1."""

    task: str
    backbone: str
    share: float = 1.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything a plan goes by. Names are unique; bindings name tasks and backbones that are there."""

    servers: tuple[Server, ...]
    models: tuple[Model, ...]
    tasks: tuple[Task, ...]
    backbones: tuple[Backbone, ...] = ()
    bindings: tuple[Binding, ...] = ()
    taken: frozenset[str] = frozenset()  # names that no new backbone may have


@dataclass(frozen=True, slots=True)
class Move:
    """A task that changes its backbones; `before` is empty for one that had none."""

    task: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Change:
    """A backbone that is started or stopped."""

    backbone: Backbone
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What should be.

    `unplaced` tasks are bound to nothing, and why. `remarks` say what no plan can mend, such as an SLO that is shorter
    than one row takes. `used` is the part of its capacity that each backbone needs, 1 being all of it.
    """

    bindings: tuple[Binding, ...]
    backbones: tuple[Backbone, ...]
    starts: tuple[Change, ...] = ()
    stops: tuple[Change, ...] = ()
    moves: tuple[Move, ...] = ()
    unplaced: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    used: Mapping[str, float] = field(default_factory=dict)

    @property
    def changes_nothing(self) -> bool:
        """Whether everything is as it should be already."""
        return not (self.starts or self.stops or self.moves)

    @property
    def summary(self) -> str:
        """What changes, in a line."""
        used = ", ".join(f"{name} {part:.2f}" for name, part in self.used.items())
        counts = {"moves": self.moves, "starts": self.starts, "stops": self.stops}
        said = ", ".join(f"{len(each)} {name}" for name, each in counts.items())
        return f"{said}; of each backbone's capacity is used then: {used}"

    def applied_to(self, situation: Situation) -> Situation:
        """The situation once this plan is carried out."""
        return replace(situation, backbones=self.backbones, bindings=self.bindings)
