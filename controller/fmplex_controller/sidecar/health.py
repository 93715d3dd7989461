"""Which backbones' processes are unhealthy, by what probes hear of them, and when each may be loaded again. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fmplex_backend.status import BackboneStatus
from fmplex_controller.server.ends import WINDOW_S, Ends
from fmplex_controller.sidecar.seen import Miss, Unhealthy

Turn = Literal["", "dead", "back"]  # of a backbone's process
STALL_S = 60.0  # requests wait for so long, and no batch ends


@dataclass(slots=True)
class _Record:
    """What is known of one backbone's process."""

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
        self._records: dict[str, _Record] = {}

    def answered(self, backbone: str, status: BackboneStatus, now: float) -> Turn:
        """A process has told of itself; what that changes."""
        record = self._records.setdefault(backbone, _Record())
        record.misses = 0
        if record.reason:
            if status.up_s < now - record.since:  # another process than the one that was unhealthy
                record.reason, record.waiting_since, record.pid = "", None, status.pid
                if record.is_given_up:  # somebody has loaded it by hand
                    record.ends.forget()
                record.is_given_up, record.given_up_as = False, None
                record.loaded_at = now if record.loaded_at is None else record.loaded_at
                return "back"
            return ""
        record.pid = status.pid
        if status.queued + status.running == 0 or status.batches != record.batches:
            record.batches, record.waiting_since = status.batches, None
        if status.queued + status.running > 0 and record.waiting_since is None:
            record.waiting_since = now
        if record.waiting_since is not None and now - record.waiting_since > self.stall_s:
            self._end(record, f"no batch has ended for {self.stall_s:g} s while requests wait", now)
            return "dead"
        return ""

    def reason(self, backbone: str) -> str:
        """Why it is unhealthy, and whether it is given up; "" where it is well."""
        record = self._records.get(backbone)
        return _words(record) if record is not None and record.reason else ""

    def is_given_up(self, backbone: str) -> bool:
        """Whether it is not loaded again by itself."""
        record = self._records.get(backbone)
        return record is not None and record.is_given_up

    def missed(self, backbone: str, miss: Miss, sent: float, now: float) -> bool:
        """A process has not answered a probe that was sent then; whether it counts as unhealthy from now on."""
        record = self._records.setdefault(backbone, _Record())
        is_known = bool(record.reason) and not record.unloaded
        is_of_former = record.unloaded and (record.loaded_at is None or sent < record.loaded_at)
        if is_known or is_of_former:
            return False
        record.misses += 1
        if record.misses < miss.enough:
            return False
        self._end(record, miss.reason, now)
        return True

    def refused(self, backbone: str, why: str, now: float) -> bool:
        """The server could not load it; whether it is given up now.

        What could not be loaded since its process ended may find its memory free again a moment later: that is another
        end. Nothing is tried again by itself that had not been served before.
        """
        record = self._records.get(backbone)
        if record is None or not record.reason or record.is_given_up:
            return False
        self._end(record, why, now)
        return record.is_given_up

    def _end(self, record: _Record, reason: str, now: float) -> None:
        pause = record.ends.add(now)
        record.reason, record.since, record.unloaded, record.misses = reason, now, False, 0
        record.is_given_up, record.hold_until = pause is None, now + (pause or 0.0)

    def judge(self, backbone: str, fingerprint: str, ready: bool, now: float) -> Unhealthy | None:
        """What is to be done about a backbone; None where it is well.

        Args:
            fingerprint: of its directory.
            ready: whether the server has it loaded.
        """
        record = self._records.get(backbone)
        if record is None or not record.reason:
            return None
        record.unloaded |= not ready
        if not ready:
            record.loaded_at = None
        elif record.unloaded and record.loaded_at is None:
            record.loaded_at = now
        if record.is_given_up:
            record.given_up_as = record.given_up_as or fingerprint
            if record.given_up_as != fingerprint:  # somebody has mended something
                record.ends.forget()
                record.is_given_up, record.given_up_as = False, None
        return Unhealthy(
            _words(record),
            unload=ready and not record.unloaded,
            hold=ready or record.is_given_up or now < record.hold_until,
            given_up=record.is_given_up,
            pid=record.pid,
        )

    def forget_others(self, backbones: set[str]) -> None:
        """Of backbones that are no more."""
        for name in self._records.keys() - backbones:
            del self._records[name]


def _words(record: _Record) -> str:
    if not record.is_given_up:
        return record.reason
    return (
        f"given up after {len(record.ends)} ends within {WINDOW_S / 60:g} minutes: {record.reason}. The server's log "
        "may say why; change something in this directory, or load it by hand, to try again"
    )
