"""Reading safetensors; a broken file is an error that names it, never a wrong answer."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fmplex_backend.errors import TaskRefused
from fmplex_backend.safetensors_header import Check, Header, StoredTensor, read_content

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def _any(header: Header) -> None:
    """No demands on a file's tensors."""


def read_safetensors(file: Path, check: Check = _any) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU, as they are stored; raises TaskRefused.

    The library maps files, and a mapped file that is truncated in place (as `cp` does before it writes) ends the
    process with a bus error at the next access; where it does not, it holds the interpreter's lock while it copies,
    which stops every other thread for two seconds a gigabyte. Here the lock is free while bytes are read and copied.

    Args:
        check: is called with the file's header before its tensors are read.
    """
    header, content = read_content(file, check)
    tensors = {name: _tensor(file, name, stored, content) for name, stored in header.items()}
    for name, tensor in tensors.items():
        expect_finite(file, name, tensor, "it holds NaN or infinite values")
    return tensors


def _tensor(file: Path, name: str, stored: StoredTensor, content: npt.NDArray[np.uint8]) -> Tensor:
    if stored.dtype not in DTYPES:
        raise TaskRefused(file, name, f"it holds {stored.dtype}, which is not read here", "Save it with another dtype")
    if stored.start == stored.end:
        return torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    own = torch.from_numpy(content[stored.start : stored.end]).clone()  # at an address that its dtype wants
    return own.view(DTYPES[stored.dtype]).reshape(stored.shape)


def cast(file: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another floating-point format; raises TaskRefused where a number is too large for that."""
    changed = tensor.to(dtype)
    if changed is not tensor:
        expect_finite(file, name, changed, f"it holds numbers that {_short(dtype)} does not hold")
    return changed


def expect_finite(file: Path, name: str, tensor: Tensor, problem: str) -> None:
    """Raise TaskRefused where a tensor of floating-point or complex numbers holds NaN or infinite ones."""
    if tensor.is_floating_point() and math.isfinite(float(tensor.sum())):  # one pass; a sum may also overflow
        return
    if (tensor.is_floating_point() or tensor.is_complex()) and not bool(torch.isfinite(tensor).all()):
        raise TaskRefused(file, name, problem, "Train or export the task again")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
