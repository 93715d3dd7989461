"""API keys out of a file that changes."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest

from fmplex_backend.errors import PortInUse, SetupProblem
from fmplex_controller.openai.keys import ApiKeys
from fmplex_controller.openai.options import OpenAiOptions
from fmplex_controller.server.process import free_ports


def write(file: Path, text: str) -> None:
    """As editors do: another file in its place."""
    aside = file.with_suffix(".new")
    aside.write_text(text)
    aside.replace(file)


def test_keys_and_digests(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"second").hexdigest()
    file.write_text(f"# ours\n\nfirst\n  sha256:{digest.upper()}  \n")
    keys = ApiKeys(file)
    keys.check()
    assert [keys.allow(key) for key in ("first", "second", "third", "", digest, f"sha256:{digest}")] == [
        *(True, True),
        *(False, False, False, False),
    ]
    assert ApiKeys(None).allow("")


def test_the_file_is_read_again_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text("first")
    keys = ApiKeys(file)
    assert keys.allow("first")
    write(file, "other")
    assert not keys.allow("first")
    assert keys.allow("other")
    file.unlink()
    assert not keys.allow("other"), "while it cannot be read, nobody may ask"
    assert not keys.allow("other")
    assert sum("nobody may ask" in each.message for each in caplog.records) == 1
    write(file, "other")
    assert keys.allow("other")
    before = os.stat(file)
    file.write_text("wrong key of spaces")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert not keys.allow("other")


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "it has no key"), ("# none\n", "it has no key"), ("a\nb c\n", "line 2"), ("sha256:ab", "line 1")],
)
def test_files_without_keys(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SetupProblem, match=says):
        ApiKeys(file).check()
    with pytest.raises(SetupProblem, match="No such file"):
        ApiKeys(tmp_path / "nothing").check()


def test_options(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    options = OpenAiOptions(port, "::1", tmp_path / "keys", 5.0)
    assert options.arguments == [
        *("--host", "::1", "--port", str(port), "--timeout", "5.0", "--body-mib", "4.0"),
        *("--keys", f"{tmp_path}/keys"),
    ]
    assert (options.url, options.is_local) == (f"http://[::1]:{port}/v1", True)
    with pytest.raises(SetupProblem, match="No such file"):
        options.check()

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PortInUse, match="Choose another port"):
            OpenAiOptions(taken.getsockname()[1]).check()
