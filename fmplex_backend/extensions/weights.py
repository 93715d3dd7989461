"""Reading safetensors so that a broken file is an error with a name, never a wrong answer."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from fmplex_backend.errors import TaskRefused


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, on the CPU, as they are stored; raises TaskRefused.

    Copies, where safetensors' own way maps the file: were it cut short in place then (as `cp` does before it writes),
    the next look at a weight would end the process with a bus error.
    """
    if not file.is_file():
        raise TaskRefused(file, "(whole file)", "there is no such file", "Copy it into the version directory")
    try:
        tensors = dict(sorted(load(file.read_bytes()).items()))
    except (SafetensorError, OSError) as error:
        raise TaskRefused(
            file,
            "(whole file)",
            f"not readable as safetensors: {error}",
            "Copy it again: it may be cut short",
        ) from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise TaskRefused(file, name, "it holds NaN or infinite values", "Train or export the task again")
    return tensors


def expect_shape(file: Path, name: str, tensor: torch.Tensor, shape: tuple[int, ...], of: str) -> None:
    """Raise TaskRefused where a tensor has another shape than `shape` (-1: any)."""
    same = tensor.dim() == len(shape) and all(
        want in (-1, have) for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not same:
        raise TaskRefused(
            file,
            name,
            f"its shape is {list(tensor.shape)}, {of} needs {list(shape)}",
            "Was it trained for this backbone and these labels?",
        )
