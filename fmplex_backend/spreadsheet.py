"""Text in the cells of a table that people open in a spreadsheet, which computes some of it."""

from __future__ import annotations

import re

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes the beginning of a cell for
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def text_cell(text: str) -> str:
    """The same text, with an apostrophe before one that would be taken for a formula: by that it is text there.

    A number, signed or not, stays one.
    """
    return f"'{text}" if text.startswith(FORMULA) and not NUMBER.fullmatch(text) else text
