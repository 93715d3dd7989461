"""Errors as the command line shows them: their message, or JSON, and an exit status that scripts can use.

0 done; 1 a problem with a task, its data or its files; 2 wrong arguments; 3 no server answers, or not in time, or its
queue was full all the time; 130 interrupted by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from fmplex_backend.errors import Busy, DeadlineExceeded, FmplexError, ServerProblem, Unreachable

PROBLEM, NO_SERVER, INTERRUPTED = 1, 3, 130  # exit statuses; 2 is typer's


@contextlib.contextmanager
def errors_shown(as_json: bool = False) -> Iterator[None]:
    """Print an FmplexError on stderr, with `as_json` on stdout too, and exit with its status."""
    try:
        yield
    except FmplexError as error:
        code = NO_SERVER if isinstance(error, (Busy, Unreachable, DeadlineExceeded)) else PROBLEM
        if as_json:
            print(json.dumps({"error": str(error), "kind": type(error).__name__}, ensure_ascii=False))
        print(f"fmplex: {error}", file=sys.stderr)
        raise typer.Exit(code) from None
    except KeyboardInterrupt as error:
        message = str(error) or "interrupted"
        if as_json:
            print(json.dumps({"error": message, "kind": "Interrupted"}, ensure_ascii=False))
        print(f"fmplex: {message}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def print_result(document: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print what a command has done: as JSON, or in words."""
    print(json.dumps(document, ensure_ascii=False) if as_json else text)


@contextlib.contextmanager
def after(done: str) -> Iterator[None]:
    """Say in a server's error what has been done on disk before it."""
    try:
        yield
    except ServerProblem as error:
        raise type(error)(f"{done} {error}", error.status) from None
