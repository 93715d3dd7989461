"""The control key: which ones can be sent, and the file in which a server keeps its own."""

from __future__ import annotations

import os
import socket
import stat
import string
from pathlib import Path

import pytest

from fmplex_backend.control_key import MAX_LENGTH, check_key, forget_key, keep_key, kept_key, key_file, read_key
from fmplex_backend.errors import SetupProblem


class TestForm:
    @pytest.mark.parametrize("key", ["x", string.ascii_letters + string.digits + string.punctuation, "k" * MAX_LENGTH])
    def test_printable_ascii_without_spaces(self, key: str) -> None:
        assert check_key(key, "--control-key") == key

    @pytest.mark.parametrize(
        ("key", "problem"),
        [
            ("", "is empty"),
            ("kl\u00e4r", "is not printable ASCII"),
            ("two words", "has a space"),
            (" ", "has a space"),
            ("line\n", "has a space or is not"),
            ("\x7f", "is not printable"),
            ("\u0661", "is not printable"),
            ("k" * (MAX_LENGTH + 1), f"has {MAX_LENGTH + 1} characters"),
        ],
    )
    def test_what_no_header_carries_is_refused(self, key: str, problem: str) -> None:
        with pytest.raises(SetupProblem, match=f"^--control-key: the control key .*{problem}.*none: the server then"):
            check_key(key, "--control-key")


class TestGivenFile:
    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_a_newline_at_its_end_is_not_the_key_s(self, tmp_path: Path, end: str) -> None:
        (tmp_path / "key").write_text(f"s3cret{end}", newline="")
        assert read_key(tmp_path / "key") == "s3cret"

    @pytest.mark.parametrize("content", [None, b"", b"\n", b"two\nlines", b"\xff"])
    def test_one_that_holds_no_key_is_named(self, tmp_path: Path, content: bytes | None) -> None:
        if content is not None:
            (tmp_path / "key").write_bytes(content)
        with pytest.raises(SetupProblem, match=f"^{tmp_path / 'key'}: the control key"):
            read_key(tmp_path / "key")


class TestKept:
    @pytest.fixture(autouse=True)
    def state(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        return tmp_path / "state"

    def test_its_owner_alone_reads_it(self, state: Path) -> None:
        before = os.umask(0)
        try:
            file = keep_key(8001, "s3cret")
        finally:
            os.umask(before)
        assert file == state / "fmplex" / "control-keys" / f"{socket.gethostname()}-8001"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert [each.name for each in file.parent.iterdir()] == [file.name]

    def test_servers_on_other_ports_have_their_own(self) -> None:
        keep_key(8001, "one")
        keep_key(9001, "two")
        assert [kept_key(port) for port in (8001, 9001, 7001)] == ["one", "two", ""]

    def test_what_a_server_before_left_is_replaced(self) -> None:
        key_file(8001).parent.mkdir(parents=True)
        key_file(8001).write_text("stale")
        key_file(8001).chmod(0o644)
        file = keep_key(8001, "new")
        assert kept_key(8001) == "new"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600

    def test_a_link_in_its_place_is_not_followed(self, tmp_path: Path) -> None:
        key_file(8001).parent.mkdir(parents=True)
        (tmp_path / "precious").write_text("as it was")
        key_file(8001).symlink_to(tmp_path / "precious")
        keep_key(8001, "new")
        assert (tmp_path / "precious").read_text() == "as it was"

    def test_one_s_own_is_forgotten(self) -> None:
        keep_key(8001, "later")
        forget_key(8001, "earlier")
        assert kept_key(8001) == "later"
        forget_key(8001, "later")
        forget_key(8001)
        assert kept_key(8001) == ""

    def test_a_place_that_cannot_be_written_is_named_with_what_helps(self, state: Path) -> None:
        state.write_text("a file")
        with pytest.raises(SetupProblem, match=r"cannot be kept.*--control-key-file.*XDG_STATE_HOME.*--open"):
            keep_key(8001, "s3cret")
        assert kept_key(8001) == ""

    def test_without_a_state_directory_it_is_at_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        for relative in ("", "relative"):
            monkeypatch.setenv("XDG_STATE_HOME", relative)
            assert key_file(1).is_relative_to(tmp_path / ".local" / "state")
