"""Marks of tests that need a package of one of FMplex's extras."""

from __future__ import annotations

import importlib.util

import pytest

needs_chronos = pytest.mark.skipif(
    importlib.util.find_spec("chronos") is None, reason="pip install 'fmplex[chronos-bolt]'"
)
needs_moment = pytest.mark.skipif(
    importlib.util.find_spec("momentfm") is None, reason="pip install --no-deps momentfm==0.1.4"
)
