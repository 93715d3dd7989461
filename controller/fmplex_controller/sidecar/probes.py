"""Asks backbones through the way that requests take whether their processes are alive."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fmplex_backend.errors import ServerProblem
from fmplex_backend.status import BackboneStatus
from fmplex_controller.sidecar.seen import Miss
from fmplex_controller.sidecar.triton import ENDED_S, PROBE_S, Triton

log = logging.getLogger("fmplex.controller")

PERIOD_S = 0.4  # two probes that overlap tell of a dead process within two seconds
OVERLAP = 8  # probes of a backbone that may be under way
# (backbone, what its process tells, or that it does not, when the probe was sent)
Told = Callable[[str, BackboneStatus | Miss, float], None]


class Probes:
    """Probes the backbones `targets` from a thread of its own, `run`; calls `told` for each answer, on any thread.

    Args:
        has_ended: whether a backbone's process is known to have ended: then a probe does not wait for long.
    """

    def __init__(
        self,
        triton: Triton,
        told: Told,
        clock: Callable[[], float],
        period_s: float = PERIOD_S,
        has_ended: Callable[[str], bool] = lambda backbone: False,
    ) -> None:
        self.targets: frozenset[str] = frozenset()
        self._triton, self._told, self._clock, self.period_s = triton, told, clock, period_s
        self._has_ended = has_ended
        self._under_way: dict[str, int] = {}
        self._lock = threading.Lock()

    def run(self, stop: threading.Event) -> None:
        """Until stopped."""
        with ThreadPoolExecutor(32, "fmplex-probe") as pool:
            while not stop.wait(self.period_s):
                try:
                    self.send(pool)
                except RuntimeError as error:  # no thread can be started at the moment; those there are go on
                    log.warning("backbones cannot be probed at the moment: %s", error)

    def send(self, pool: ThreadPoolExecutor) -> None:
        """Probe each of the targets once, but for those of which too many probes are under way."""
        for backbone in self.targets:
            with self._lock:
                if self._under_way.get(backbone, 0) >= OVERLAP:
                    continue
                self._under_way[backbone] = self._under_way.get(backbone, 0) + 1
            pool.submit(self._probe, backbone)

    def _probe(self, backbone: str) -> None:
        sent = self._clock()
        try:
            timeout = ENDED_S if self._has_ended(backbone) else PROBE_S
            self._told(backbone, self._triton.probe(backbone, timeout), sent)
        except ServerProblem:  # nothing is known: the server is not there, or the backbone is unloaded
            pass
        except Exception:
            log.exception("probing %s", backbone)
        finally:
            with self._lock:
                self._under_way[backbone] -= 1
