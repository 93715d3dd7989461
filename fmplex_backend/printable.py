"""Text that any log, error message and metric can carry, whatever names and strings of a repository are in it."""

from __future__ import annotations

import re

# Zero bytes end a C string, other control characters steer a terminal; halves of surrogate pairs are no Unicode text,
# but for those from U+DC80 to U+DCFF, by which Python stands for a byte of a file's name that it cannot decode.
_ESCAPED = re.compile("[\0-\x08\x0b-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")


def printable(text: str) -> str:
    r"""The same text as valid Unicode: what cannot be shown is escaped, as `\x00` or `\ud800`.

    A name that Python has decoded as ASCII, which is how Triton runs it, comes out as the UTF-8 that it is.
    """
    escaped = _ESCAPED.sub(_escape, text)
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}"
