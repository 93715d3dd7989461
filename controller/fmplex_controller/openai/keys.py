"""API keys out of a file, which is read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
from pathlib import Path

from fmplex_backend.errors import SetupProblem
from fmplex_backend.files import read_text

log = logging.getLogger("fmplex.openai")

KEYS_BYTES = 1 << 20
DIGEST = "sha256:"
_DIGEST = re.compile(rf"{DIGEST}([0-9a-f]{{64}})", re.IGNORECASE)
_KEY = re.compile(r"[!-~]{1,512}")


class ApiKeys:
    """One key a line; `sha256:` and a key's digest in hexadecimal stands for that key, # begins a comment line.

    Keys are compared by their digests, each time with all of them, so that the time says nothing of a key. While the
    file cannot be read, nobody may ask.

    Args:
        file: None: everyone may ask.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._seen: tuple[int, ...] | None = None  # what the file looked like when it was read
        self._digests: tuple[bytes, ...] = ()
        self._problem = ""

    def check(self) -> None:
        """Raise SetupProblem where the file cannot be read, or has no key."""
        if self.file is None:
            return
        try:
            if not digests_in(read_text(self.file, KEYS_BYTES)):
                raise ValueError("it has no key")
        except (OSError, ValueError) as error:
            raise SetupProblem(f"{self.file}: API keys cannot be read: {error}. Write one a line") from None

    def allow(self, key: str) -> bool:
        """Whether who has this key may ask."""
        if self.file is None:
            return True
        self._read_again()
        own, found = _digest(key), False
        for each in self._digests:
            found |= hmac.compare_digest(each, own)
        return found

    def _read_again(self) -> None:
        assert self.file is not None
        try:
            status = os.stat(self.file)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen == self._seen:
                return
            self._digests, self._seen = digests_in(read_text(self.file, KEYS_BYTES)), seen
            log.info("%s: %d API keys", self.file, len(self._digests))
            self._problem = ""
        except (OSError, ValueError) as error:
            self._digests, self._seen = (), None
            if str(error) != self._problem:
                log.error("%s: API keys cannot be read, nobody may ask: %s", self.file, error)
            self._problem = str(error)


def digests_in(text: str) -> tuple[bytes, ...]:
    """Of a file's keys; raises ValueError that names a line which is none."""
    found = []
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        if digest := _DIGEST.fullmatch(line):
            found.append(bytes.fromhex(digest[1]))
        elif line.lower().startswith(DIGEST) or not _KEY.fullmatch(line):
            raise ValueError(f"line {number} is neither a key (1 to 512 letters, digits and signs of ASCII) nor sha256")
        else:
            found.append(_digest(line))
    return tuple(found)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
