"""Which backbones' processes are sick, by what probes hear of them, and when each may be loaded again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fmplex_backend.status import BackboneStatus
from fmplex_controller.server.ends import WINDOW_S, Ends
from fmplex_controller.sidecar.seen import Miss, Sick

Turn = Literal["", "dead", "back"]  # of a backbone's process
STALL_S = 60.0  # requests wait for so long, and no batch ends


@dataclass(slots=True)
class _Patient:
    misses: int = 0
    batches: int = -1  # that had ended when requests were first seen to wait
    waiting_since: float | None = None
    pid: int = 0
    ends: Ends = field(default_factory=Ends)
    reason: str = ""  # "" while it is well
    since: float = 0.0
    unloaded: bool = False  # since then: what is loaded now is another process
    loaded_at: float | None = None  # when that was first seen
    hold_until: float = 0.0
    is_given_up: bool = False
    given_up_as: str | None = None  # the fingerprint of its directory then


class Health:
    """Of the backbones of one server.

    Args:
        stall_s: for how long no batch may end while requests wait.
    """

    def __init__(self, stall_s: float = STALL_S) -> None:
        self.stall_s = stall_s
        self._patients: dict[str, _Patient] = {}

    def answered(self, backbone: str, status: BackboneStatus, now: float) -> Turn:
        """A process has told of itself; what that changes."""
        patient = self._patients.setdefault(backbone, _Patient())
        patient.misses = 0
        if patient.reason:
            if status.up_s < now - patient.since:  # another process than the one that was sick
                patient.reason, patient.waiting_since, patient.pid = "", None, status.pid
                if patient.is_given_up:  # somebody has loaded it by hand
                    patient.ends.forget()
                patient.is_given_up, patient.given_up_as = False, None
                patient.loaded_at = now if patient.loaded_at is None else patient.loaded_at
                return "back"
            return ""
        patient.pid = status.pid
        if status.queued + status.running == 0 or status.batches != patient.batches:
            patient.batches, patient.waiting_since = status.batches, None
        if status.queued + status.running > 0 and patient.waiting_since is None:
            patient.waiting_since = now
        if patient.waiting_since is not None and now - patient.waiting_since > self.stall_s:
            self._end(patient, f"no batch has ended for {self.stall_s:g} s while requests wait", now)
            return "dead"
        return ""

    def reason(self, backbone: str) -> str:
        """Why it is sick, and whether it is given up; "" where it is well."""
        patient = self._patients.get(backbone)
        return _words(patient) if patient is not None and patient.reason else ""

    def is_given_up(self, backbone: str) -> bool:
        """Whether it is not loaded again by itself."""
        patient = self._patients.get(backbone)
        return patient is not None and patient.is_given_up

    def missed(self, backbone: str, miss: Miss, sent: float, now: float) -> bool:
        """A process has not answered a probe that was sent then; whether it counts as sick from now on."""
        patient = self._patients.setdefault(backbone, _Patient())
        is_known = bool(patient.reason) and not patient.unloaded
        is_of_former = patient.unloaded and (patient.loaded_at is None or sent < patient.loaded_at)
        if is_known or is_of_former:
            return False
        patient.misses += 1
        if patient.misses < miss.enough:
            return False
        self._end(patient, miss.reason, now)
        return True

    def refused(self, backbone: str, why: str, now: float) -> bool:
        """The server could not load it; whether it is given up now.

        What could not be loaded since its process ended may find its memory free again a moment later: that is another
        end. Nothing is tried again by itself that had not been served before.
        """
        patient = self._patients.get(backbone)
        if patient is None or not patient.reason or patient.is_given_up:
            return False
        self._end(patient, why, now)
        return patient.is_given_up

    def _end(self, patient: _Patient, reason: str, now: float) -> None:
        pause = patient.ends.add(now)
        patient.reason, patient.since, patient.unloaded, patient.misses = reason, now, False, 0
        patient.is_given_up, patient.hold_until = pause is None, now + (pause or 0.0)

    def judge(self, backbone: str, fingerprint: str, ready: bool, now: float) -> Sick | None:
        """What is to be done about a backbone; None where it is well.

        Args:
            fingerprint: of its directory.
            ready: whether the server has it loaded.
        """
        patient = self._patients.get(backbone)
        if patient is None or not patient.reason:
            return None
        patient.unloaded |= not ready
        if not ready:
            patient.loaded_at = None
        elif patient.unloaded and patient.loaded_at is None:
            patient.loaded_at = now
        if patient.is_given_up:
            patient.given_up_as = patient.given_up_as or fingerprint
            if patient.given_up_as != fingerprint:  # somebody has mended something
                patient.ends.forget()
                patient.is_given_up, patient.given_up_as = False, None
        return Sick(
            _words(patient),
            unload=ready and not patient.unloaded,
            hold=ready or patient.is_given_up or now < patient.hold_until,
            given_up=patient.is_given_up,
            pid=patient.pid,
        )

    def forget_others(self, backbones: set[str]) -> None:
        """Of backbones that are no more."""
        for name in self._patients.keys() - backbones:
            del self._patients[name]


def _words(patient: _Patient) -> str:
    if not patient.is_given_up:
        return patient.reason
    return (
        f"given up after {len(patient.ends)} ends within {WINDOW_S / 60:g} minutes: {patient.reason}. The server's log "
        "may say why; change something in this directory, or load it by hand, to try again"
    )
