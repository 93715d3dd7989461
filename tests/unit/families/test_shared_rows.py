"""Equal rows become one, and what it costs is divided among those who asked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fmplex_backend.families.shared_rows import Asked, divide, unite
from fmplex_backend.types import NO_WORK, NOTHING_SHARED, Request, Sharing, Vfm, Work


def asking(*rows: str) -> Request:
    """A request whose rows are their own keys, a token a letter."""
    request = Request(Vfm(0, "task"), {}, (), 0.0, lambda reply, final: None)
    request.prepared = rows
    request.work = sum((Work.of_row(len(row)) for row in rows), NO_WORK)
    return request


def asked(*requests: Request) -> Iterator[Asked[str]]:
    for request in requests:
        for index, row in enumerate(request.prepared):
            yield Asked(row, row, Work.of_row(len(row)), request, index)


def united(*requests: Request) -> list[tuple[str, list[tuple[Request, int]]]]:
    return [(row.row, row.askers) for row in unite(asked(*requests))]


def divided(*requests: Request) -> tuple[dict[Request, Work], Sharing]:
    portions, sharing = divide(unite(asked(*requests)))
    return dict(portions), sharing


def test_equal_rows_are_one_whoever_asks() -> None:
    one, two = asking("aa", "b"), asking("c", "aa", "aa")
    assert united(one, two) == [
        ("aa", [(one, 0), (two, 1), (two, 2)]),
        ("b", [(one, 1)]),
        ("c", [(two, 0)]),
    ]


def test_nothing_is_asked() -> None:
    assert united() == []
    assert divided() == ({}, NOTHING_SHARED)


def test_keys_with_one_hash_are_compared() -> None:
    assert hash(-1) == hash(-2), "in CPython"
    rows = [Asked(key, "a", Work.of_row(1), asking("a"), 0) for key in (-1, -2)]
    assert len(unite(rows)) == 2


def test_a_row_is_divided_equally_among_those_who_ask() -> None:
    one, two, three = asking("aaaa", "bb"), asking("aaaa"), asking("ccc")
    portions, sharing = divided(one, two, three)
    assert portions == {one: Work(2, 2 + 2, 8 + 4), two: Work(1, 2, 8), three: three.work}
    assert sharing == Sharing({one: 1, two: 1}, saved=1)


def test_who_asks_twice_has_two_parts() -> None:
    twice, once = asking("aaa", "aaa"), asking("aaa")
    portions, sharing = divided(twice, once)
    assert portions[twice] == Work(2, pytest.approx(2), pytest.approx(6))
    assert portions[once] == Work(1, pytest.approx(1), pytest.approx(3))
    assert sharing == Sharing({twice: 2, once: 1}, saved=2)
