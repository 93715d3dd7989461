from __future__ import annotations

import pytest

from fmplex_backend.error_status import split_status, with_status


@pytest.mark.parametrize(
    ("code", "status"), [("INVALID_ARG", "INVALID_ARGUMENT"), ("UNAVAILABLE", "UNAVAILABLE"), ("INTERNAL", "INTERNAL")]
)
def test_a_status_goes_there_and_back(code: str, status: str) -> None:
    assert split_status(with_status(code, "no [items] here")) == (status, "no [items] here")


def test_what_triton_writes_before_a_message_stays_there() -> None:
    told = "in ensemble 'spam', " + with_status("INTERNAL", "it raised")
    assert split_status(told) == ("INTERNAL", "in ensemble 'spam', it raised")


@pytest.mark.parametrize(
    "message", ["", "unknown model", "[3, 4] is no shape", "it says [INTERNAL] inside", "[INTERNAL]"]
)
def test_other_messages_have_none(message: str) -> None:
    assert split_status(message) == ("", message)
