"""vFMs that are drained: no new requests are sent to them, and they are retired once what they have is prepared."""

from __future__ import annotations

from collections.abc import Callable

from fmplex_backend.types import Vfm


class Draining:
    """Keeps each for a time, and for as long as requests of it are being prepared: what was taken in is answered.

    Under the loader's lock, but for `vfms`, which any thread may read.

    Args:
        retire: lets the engine retire one.
    """

    def __init__(self, retire: Callable[[Vfm], None], clock: Callable[[], float]) -> None:
        self._retire, self._clock = retire, clock
        self._kept: list[tuple[Vfm, float]] = []  # and until when, at least

    @property
    def vfms(self) -> list[Vfm]:
        """Those that are not retired yet. Any thread."""
        return [vfm for vfm, _ in list(self._kept)]

    @property
    def is_empty(self) -> bool:
        """Whether none is about to be retired. Any thread."""
        return not self._kept

    def add(self, vfm: Vfm, grace: float) -> None:
        """Retire one once so many seconds have passed, in which requests may still be on their way to it."""
        self._kept.append((vfm, self._clock() + grace))

    def retire_due(self) -> None:
        """Retire those that nothing is sent to any more."""
        now = self._clock()
        due = [vfm for vfm, until in self._kept if now >= until and not vfm.preparing]
        self._kept = [(vfm, until) for vfm, until in self._kept if vfm not in due]
        for vfm in due:
            self._retire(vfm)
