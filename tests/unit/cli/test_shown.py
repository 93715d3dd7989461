"""Errors as a command shows them, and the exit status."""

from __future__ import annotations

import json

import pytest
import typer

from fmplex.cli.shown import errors_shown
from fmplex_backend.errors import Busy, DeadlineExceeded, FmplexError, ServerProblem, TaskProblem, Unreachable


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (TaskProblem("wrong"), 1),
        (ServerProblem("wrong"), 1),
        (Unreachable("wrong"), 3),
        (Busy("wrong"), 3),
        (DeadlineExceeded("wrong"), 3),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_has_a_message_and_a_status(
    capsys: pytest.CaptureFixture[str], error: FmplexError, status: int, as_json: bool
) -> None:
    with pytest.raises(typer.Exit) as caught, errors_shown(as_json):
        raise error
    assert caught.value.exit_code == status
    out, err = capsys.readouterr()
    assert err == "fmplex: wrong\n"
    assert (json.loads(out) if out else None) == ({"error": "wrong", "kind": type(error).__name__} if as_json else None)


def test_a_defect_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), errors_shown():
        _ = 1 / 0
