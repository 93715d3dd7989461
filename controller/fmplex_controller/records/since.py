"""Times that people name: so long ago, or a date."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhdw])", re.ASCII)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def time_of(text: str, now: datetime | None = None) -> datetime | None:
    """The time that a text names, None for ""; a date without a zone is this host's. Raises ValueError."""
    text = text.strip()
    if not text:
        return None
    try:
        if ago := _AGO.fullmatch(text):
            return (now or datetime.now(timezone.utc)) - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        return datetime.fromisoformat(text).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time. Give a number with s, m, h, d or w (such as 1h), or a date (such as 2026-01-31)"
        ) from None
