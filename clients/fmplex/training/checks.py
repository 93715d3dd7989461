"""Labelled rows, checked before the first step: what cannot be learned or compared, and what is only odd."""

from __future__ import annotations

from collections.abc import Sequence

from fmplex_backend.decoders import Decoder
from fmplex_backend.decoders.rows import Rows, places
from fmplex_backend.errors import TaskProblem


def check_rows(decoder: Decoder, rows: Rows, validation: Rows | None = None, test: Rows | None = None) -> list[str]:
    """What a person should know about the rows, in whole sentences; raises TaskProblem for what cannot go on.

    Args:
        rows: to be fitted on. validation, test: rows of their own.
    """
    given = [each for each in (rows, validation, test) if each is not None]
    for each in given:
        _check_texts(each)
        decoder.check_labels(each)
    named = decoder.with_labels_of(rows)
    if test is not None and not named.has_figures:
        raise TaskProblem(f"a {named.kind} decoder cannot be evaluated. Leave the test rows out")
    for each in given:
        named.targets(each)  # raises for a label that is none of the decoder's
    found = [remark for each in given for remark in _blank_texts(each)] + named.remarks(rows)
    for name, other in (("validation", validation), ("test", test)):
        if other is not None:
            found += _repeated(rows, other, name)
    return found


def _check_texts(rows: Rows) -> None:
    if not any(_filled(item) for item in rows.items):
        raise TaskProblem(f"{rows.source}: all {len(rows)} texts are empty. Name another column")


def _blank_texts(rows: Rows) -> list[str]:
    blank = [place for place, item in enumerate(rows.items) if not _filled(item)]
    return [f"{rows.source}, {places(blank)}: the text is empty. Leave out what says nothing"] if blank else []


def _filled(item: object) -> bool:
    return bool(item.strip()) if isinstance(item, str) else True


def _repeated(rows: Rows, other: Rows, name: str) -> list[str]:
    """Rows of `other` whose item was trained on."""
    known = {_key(item) for item in rows.items}
    twice = [place for place, item in enumerate(other.items) if _key(item) in known]
    if not twice:
        return []
    return [
        f"{other.source}, {places(twice)}: {len(twice)} of {len(other)} {name} rows are training rows too, which "
        "makes the figures better than they are. Leave them out of one of the two"
    ]


def _key(item: object) -> object:
    return tuple(item) if isinstance(item, Sequence) and not isinstance(item, str) else item
