"""Memory given back to the system."""

from __future__ import annotations

import ctypes

import pytest

from fmplex_backend.serving.memory import give_back


def test_it_asks_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Libc:
        def __init__(self, name: None) -> None: ...

        def malloc_trim(self, pad: int) -> None:
            asked.append(pad)

    monkeypatch.setattr(ctypes, "CDLL", Libc)
    give_back()
    assert asked == [0]


def test_another_malloc_has_nothing_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    give_back()


def test_the_real_one_is_called() -> None:
    give_back()
