"""Classes of installed packages, found by entry point: code never comes out of a model repository.

A package registers a decoder (or an encoder) in its pyproject.toml:

    [project.entry-points."fmplex.decoders"]
    ordinal = "my_package:Ordinal"

and a task.json says {"kind": "plugin", "name": "ordinal", "options": {...}}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fmplex_backend.errors import TaskRefused
from fmplex_backend.safetensors_header import (
    FLOATS,
    Header,
    expect_dtype,
    expect_names,
    expect_shape,
    read_header,
)

if TYPE_CHECKING:
    from torch import nn

Options = dict[str, str | int | float | bool | list[str]]
Made = TypeVar("Made")
Module = TypeVar("Module", bound="nn.Module")


def make_plugin(group: str, base: type[Made], name: str, options: Options, file: Path | str, width: int) -> Made:
    """The object of an entry point that a section names; raises TaskRefused.

    Args:
        group: fmplex.decoders or fmplex.encoders.
        base: what the class must inherit; it is called with the options and the width.
    """
    part = group.removeprefix("fmplex.").removesuffix("s")
    found = list(entry_points(group=group, name=name))
    if not found:
        known = ", ".join(sorted(entry_points(group=group).names)) or "(none is installed)"
        raise TaskRefused(
            file,
            f"{part}.name",
            f"no installed package registers {'an' if part == 'encoder' else 'a'} {part} {name!r}; registered: {known}",
            f"Install the package that does, where the server runs (entry point group {group})",
        )
    try:
        made = found[0].load()(options, width)
    except Exception as error:  # another package's code may raise anything
        raise TaskRefused(
            file,
            f"{part}.name",
            f"the {part} {name!r} ({found[0].value}) cannot be made: {type(error).__name__}: {error}",
            f"Correct {part}.options, or the package",
        ) from error
    if not isinstance(made, base):
        raise TaskRefused(
            file, f"{part}.name", f"{found[0].value} is not a {base.__name__}", f"Inherit fmplex.{base.__name__}"
        )
    return made


def with_weights(make: Callable[[], Module], file: Path, part: str) -> Module:
    """A package's module, filled from a safetensors file; raises TaskRefused.

    Options of a task.json may ask for more memory than there is: a module that can be made on the meta device, where
    tensors are shapes alone, is compared with the file before it is made.
    """
    import torch

    outline: dict[str, Any] = {}
    with suppress(TaskRefused), torch.device("meta"):  # one that computes with its tensors cannot be made there
        outline = make().state_dict()
    if outline:
        _check(file, outline, part, read_header(file))
    module = make()
    load_weights(module, file, part)
    return module


def load_weights(module: nn.Module, file: Path, part: str) -> None:
    """Fill a module from a safetensors file; raises TaskRefused. One on the meta device takes the file's tensors."""
    from fmplex_backend.weights import cast, read_safetensors

    wanted: Mapping[str, Any] = module.state_dict()
    if not wanted:
        return
    tensors = read_safetensors(file, partial(_check, file, wanted, part))
    kept = {
        name: cast(file, name, tensor, wanted[name].dtype) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }
    module.load_state_dict(kept, assign=any(own.is_meta for own in wanted.values()))


def _check(file: Path, wanted: Mapping[str, Any], part: str, header: Header) -> None:
    from fmplex_backend.weights import DTYPES

    expect_names(file, header, wanted, f"the {part}")
    for name, tensor in header.items():
        own = wanted[name]
        same = [stored for stored, dtype in DTYPES.items() if dtype == own.dtype]
        expect_dtype(file, name, tensor, FLOATS if own.is_floating_point() else same)
        expect_shape(file, name, tensor, tuple(own.shape), f"the {part}")
