"""What a spreadsheet would compute is text, and numbers stay numbers."""

from __future__ import annotations

import pytest

from fmplex_backend.spreadsheet import text_cell


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        '=HYPERLINK("http://host/"&A1)',
        "+a",
        "-a",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "-1+2",
        "+1-A1",
        "-1\n",
        "-1e5e5",
        "--1",
        "-",
        "-1,5",
        "-\u0661",
    ],
)
def test_what_would_be_computed_is_text(text: str) -> None:
    assert text_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a", "a=b", "'=1", " =1", "1-a", "[-1]", "2", "2.5"])
def test_other_text_is_as_it_is(text: str) -> None:
    assert text_cell(text) == text


@pytest.mark.parametrize("text", ["-1", "+1", "-0.5", "-.5", "-5.", "-1e-07", "+2.5E+10"])
def test_a_number_stays_one(text: str) -> None:
    assert text_cell(text) == text
