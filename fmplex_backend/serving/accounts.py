"""What vFMs were charged that are no more, so that what all were charged still sums to the backbone's busy time."""

from __future__ import annotations

from typing import NamedTuple

from fmplex_backend.types import Counts, Vfm

MOST = 200  # closed accounts that are kept: a controller reads them several times a second


class Closed(NamedTuple):
    """The account of a vFM when it was retired."""

    account: int
    task: str
    requests: int
    items: int
    service_s: float
    preparation_s: float


def account_of(vfm: Vfm) -> Closed:
    """As it is now."""
    counts = Counts() if vfm.spare else vfm.engine  # copies are no requests of the task
    return Closed(vfm.account, vfm.name, counts.requests, counts.items, vfm.service, vfm.preparation_s)


def with_closed(closed: tuple[Closed, ...], vfm: Vfm) -> tuple[Closed, ...]:
    """The latest closed accounts, that of a vFM which is being retired included."""
    return (*closed, account_of(vfm))[-MOST:]
