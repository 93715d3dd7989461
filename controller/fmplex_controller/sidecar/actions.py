"""What is done about a difference between the repository and the server."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Complete:
    """Write into a task's entry what it lacks; the outcome is remembered by `fingerprint`, `depends`, `still_s`."""

    name: str
    fingerprint: str
    depends: str = ""
    still_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Load:
    """Load a model, or let the server take up its changed files; the outcome is remembered as `Complete`'s is."""

    name: str
    fingerprint: str
    depends: str = ""
    backbone: str = ""  # of a task: it is asked first
    again: bool = False  # it is loaded already
    confirms: bool = False  # and was so when this controller began: most likely nothing has changed
    why: str = field(default="", compare=False)
    still_s: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload a model; of a backbone whose process hangs, `pid` is that, which would go on taking memory."""

    name: str
    why: str
    pid: int = 0


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Say in ERROR.txt why a directory is not loaded, or not as it is now."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Lift:
    """Remove ERROR.txt."""

    name: str


Action = Complete | Load | Unload | Quarantine | Lift
