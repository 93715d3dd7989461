"""Files that anybody may have put there: only regular ones are opened, and never waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fmplex_backend import files
from fmplex_backend.files import open_regular, read_json, read_text, refused


def loop(path: Path) -> None:
    path.symlink_to(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))  # a socket's path has at most 107 bytes


IRREGULAR: dict[str, tuple[Callable[[Path], None], str]] = {
    "directory": (Path.mkdir, "it is a directory"),
    "FIFO": (os.mkfifo, "it is a FIFO"),
    "socket": (listening, "No such device or address"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "symlink loop": (loop, "symbolic links"),
    "dangling symlink": (lambda path: path.symlink_to("nowhere"), "No such file"),
}


@pytest.mark.parametrize(("make", "says"), IRREGULAR.values(), ids=IRREGULAR)
def test_what_is_no_regular_file_is_an_error_at_once(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    make(tmp_path / "file")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=says):
        open_regular(tmp_path / "file")
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor is left open"


@pytest.mark.parametrize(
    ("name", "says"),
    [("a\0b", "no file can have"), ("\ud800", "no file can have"), ("x" * 256, "too long"), ("a/" * 3000, "too long")],
    ids=["zero", "surrogate", "long", "deep"],
)
def test_a_name_that_no_file_can_have_is_an_error_as_a_missing_file_is(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(OSError, match=says):
        open_regular(tmp_path / name)


def test_a_regular_file_is_read_also_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "né.txt").write_text("tâche", encoding="utf-8")
    (tmp_path / "link").symlink_to("né.txt")
    for name in ("né.txt", "link"):
        assert read_text(tmp_path / name) == "tâche"


def test_no_more_is_read_than_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "sparse"
    file.touch()
    os.truncate(file, 1 << 40)
    with pytest.raises(OSError, match="larger than 16 MiB"):
        read_text(file)
    os.truncate(file, files.TEXT_BYTES)
    assert len(read_text(file)) == files.TEXT_BYTES


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": {"b": 1, "c": 2, "b": 3}}', "the name 'b' stands twice in one object"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "Exceeds the limit"),
        ('{"weights": "\\ud800"}', "half a surrogate pair"),
        ('{"\\udc80": 1}', "half a surrogate pair"),
        (b'{"a": "\xff"}', "can't decode"),
        ("{ half", "Expecting"),
        ("", "Expecting value"),
    ],
)
def test_json_that_has_no_meaning_or_two_is_an_error(tmp_path: Path, text: str | bytes, says: str) -> None:
    file = tmp_path / "task.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=says):
        read_json(file)


def test_json_holds_any_text_and_any_number(tmp_path: Path) -> None:
    file = tmp_path / "task.json"
    file.write_text('{"né": "\\ud83d\\ude42\\u0000", "big": 1e999, "long": ' + "7" * 4000 + "}", encoding="utf-8")
    assert read_json(file) == {"né": "🙂\0", "big": float("inf"), "long": int("7" * 4000)}


PROBE = """
import os, pathlib, sys
from fmplex_backend.files import native, read_text
from fmplex_backend.printable import printable
root = pathlib.Path(native(sys.stdin.buffer.read().decode("utf-8")))
assert sys.getfilesystemencoding() == "ascii"
assert read_text(pathlib.Path(str(root) + "/n\\u00e9.txt")) == read_text(root / os.listdir(root)[0]) == "x"
sys.stdout.buffer.write(printable(str(root / os.listdir(root)[0])).encode("utf-8"))
"""


def test_utf8_names_are_found_by_a_python_whose_file_names_are_ascii(tmp_path: Path) -> None:
    """As Triton's is."""
    root = tmp_path / "tâche"
    root.mkdir()
    (root / "né.txt").write_text("x")
    ascii_names = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    line = [sys.executable, "-c", PROBE]
    done = subprocess.run(line, input=os.fsencode(root), env=ascii_names, capture_output=True, check=False)
    assert done.stdout.decode() == str(root / "né.txt"), done.stderr.decode()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError(2, "No such file"), "there is no such file. Copy it"),
        (NotADirectoryError(20, "Not a directory"), "there is no such file. Copy it"),
        (PermissionError(13, "Permission denied"), "Permission denied. Let the server's user read it"),
        (OSError(22, "it is a FIFO"), "it cannot be read: it is a FIFO. Put a regular file there"),
    ],
)
def test_a_refusal_says_what_to_do(error: OSError, says: str) -> None:
    assert str(refused(Path("1/task.json"), error, missing="Copy it")).endswith(says)
