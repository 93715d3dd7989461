"""What a safetensors file holds is known, and compared with what is wanted, before any of it takes memory."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fmplex_backend.errors import TaskRefused
from fmplex_backend.safetensors_header import (
    MAX_HEADER,
    Header,
    expect_floats,
    expect_name,
    expect_names,
    expect_shape,
    read_content,
    read_header,
    some,
)

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I8": torch.int8}


def write(file: Path, header: Any, size: int = 0) -> Path:
    """A file with any header, and as many bytes after it, which take no space on disk."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(file, 8 + len(text) + size)
    return file


def described(dtype: str, shape: list[Any], end: int, start: int = 0) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


def accept(header: Header) -> None:
    pass


@pytest.mark.parametrize("name", DTYPES)
def test_names_dtypes_and_shapes(tmp_path: Path, name: str) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"b": torch.ones(2, 3, dtype=DTYPES[name]), "a": torch.ones(())}, file, metadata={"format": "pt"})
    header = read_header(file)
    assert list(header) == ["a", "b"]
    assert (header["b"].dtype, header["b"].shape, header["a"].shape) == (name, (2, 3), ())
    _, content = read_content(file, accept)
    assert content.tobytes() == file.read_bytes()[-len(content) :]


@pytest.mark.parametrize(
    ("header", "size", "says"),
    [
        (described("F32", [2], 8), 4, "its header says"),
        (described("F32", [2], 8), 1 << 40, "its header says"),
        (described("F32", [3], 8), 8, "the shape of a is not that of its bytes"),
        (described("F32", [1 << 40], 8), 8, "the shape of a is not that of its bytes"),
        (described("F32", [-2], 8), 8, "that no tensor has"),
        (described("F32", [1 << 70], 8), 8, "that no tensor has"),
        (described("F32", [2.0], 8), 8, "that no tensor has"),
        (described("F32", [True], 4), 4, "that no tensor has"),
        (described("F32", [1] * 65, 4), 4, "that no tensor has"),
        (described("F32", [2], -8), 8, "that no tensor has"),
        (b'{"a": {}, "a": {}}', 0, "one name twice"),
        (b'{"a": {}}', 0, "KeyError"),
        (b'{"a": 7}', 0, "TypeError"),
        (b"[1, 2]", 0, "not as it should be"),
        (b"[" * 100_000, 0, "not readable"),
        (b"{", 0, "not readable"),
        (b"\xff", 0, "not readable"),
    ],
)
def test_a_header_that_is_wrong(tmp_path: Path, header: Any, size: int, says: str) -> None:
    file = write(tmp_path / "w.safetensors", header, size)
    for read in (read_header, lambda path: read_content(path, accept)):
        with pytest.raises(TaskRefused, match="not readable as safetensors") as caught:
            read(file)
        assert says in caught.value.problem
        assert (caught.value.file, caught.value.field) == (str(file), "(whole file)")


@pytest.mark.parametrize("length", [MAX_HEADER + 1, 1 << 63])
def test_a_header_that_is_too_long_is_not_read(tmp_path: Path, length: int) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(length.to_bytes(8, "little"))
    os.truncate(file, 1 << 40)
    with pytest.raises(TaskRefused, match=f"would take {length} bytes"):
        read_header(file)


def test_a_sparse_file_of_4_gigabytes_is_refused_without_reading_it(tmp_path: Path) -> None:
    file = write(tmp_path / "w.safetensors", described("F32", [1 << 30], 1 << 32), 1 << 32)

    def check(header: Header) -> None:
        expect_shape(file, "a", header["a"], (2, 384), "the head")

    tracemalloc.start()
    try:
        with pytest.raises(TaskRefused, match=r"a: its shape is \[1073741824\], the head needs \[2, 384\]"):
            read_content(file, check)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_what_is_no_float(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"good": torch.ones(2), "bad": torch.ones(2, dtype=torch.complex64)}, file)
    with pytest.raises(TaskRefused, match="bad: it holds C64, not F64 or F32 or F16 or BF16"):
        expect_floats(file, read_header(file))


def test_names_that_are_wanted(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, file)
    header = read_header(file)
    expect_names(file, header, ["b", "a"], "the encoder")
    expect_name(file, header, "a")
    with pytest.raises(TaskRefused, match="b, c: the encoder has the tensors a, c, the file a, b"):
        expect_names(file, header, ["a", "c"], "the encoder")
    with pytest.raises(TaskRefused, match="c: there is no such tensor, but a, b"):
        expect_name(file, header, "c")


def test_a_message_lists_some_names_only() -> None:
    assert some(["b", "a"]) == "a, b"
    assert some([]) == ""
    assert some(map(str, range(1000, 2000))).endswith("1006, 1007 and 992 more")
