"""Errors as the command line shows them: their message, or JSON, and an exit status that scripts can use.

0 done; 1 a problem with a task, its data or its files; 2 wrong arguments; 3 no server answers, or not in time.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator

import typer

from fmplex.errors import DeadlineExceeded, FmplexError, Unreachable

PROBLEM, NO_SERVER = 1, 3


@contextlib.contextmanager
def errors_shown(as_json: bool = False) -> Iterator[None]:
    """What FMplex raises on purpose is for people."""
    try:
        yield
    except FmplexError as error:
        code = NO_SERVER if isinstance(error, (Unreachable, DeadlineExceeded)) else PROBLEM
        if as_json:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}, ensure_ascii=False))
        print(f"fmplex: {error}", file=sys.stderr)
        raise typer.Exit(code) from None
