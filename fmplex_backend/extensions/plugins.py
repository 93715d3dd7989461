"""Classes of installed packages, found by entry point: code never comes out of a model repository.

A package registers a decoder (encoders likewise: extensions/encoders.py) in its pyproject.toml:

    [project.entry-points."fmplex.decoders"]
    ordinal = "my_package:Ordinal"

and a task.json says {"kind": "plugin", "name": "ordinal", "options": {...}}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor, nn

from fmplex_backend.config import Plugin, PluginEncoder
from fmplex_backend.errors import TaskRefused
from fmplex_backend.extensions.decoders import Encoded
from fmplex_backend.extensions.weights import expect_shape, read_safetensors

GROUP = "fmplex.decoders"
OUTPUTS = ("EMBEDDING", "SCORES", "LABEL")

Module = TypeVar("Module", bound=nn.Module)


class CustomDecoder(nn.Module):
    """What a package's decoder inherits: a module on pooled vectors, and what clients get of its values.

    `pooling` is mean, cls or max; `gives` names the outputs, some of EMBEDDING, SCORES and LABEL. A subclass takes
    `options` (those of task.json) and `hidden`, the width of the vectors.
    """

    pooling: ClassVar[str] = "mean"
    gives: ClassVar[tuple[str, ...]] = ("SCORES",)

    def __init__(self, options: Mapping[str, Any], hidden: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Pooled vectors [n, hidden] -> values [n, ...]."""
        raise NotImplementedError

    def outputs(self, values: Tensor) -> dict[str, npt.NDArray[Any]]:
        """Values -> tensors by name (`gives`), batch first."""
        raise NotImplementedError

    def sizes(self) -> dict[str, int]:
        """The last dim of each output that has a fixed one."""
        return {}

    def targets(self, labels: Sequence[Any]) -> Tensor:
        """What `loss` compares with, of the labels given to `fit`."""
        raise NotImplementedError

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """What training makes small; a number."""
        raise NotImplementedError


class PluginDecoder:
    """A CustomDecoder as the server calls it."""

    def __init__(self, section: Plugin, directory: Path, hidden: int) -> None:
        self.module = make_decoder(section, directory / "task.json", hidden).eval()
        load_weights(self.module, directory / section.weights, "decoder")
        self.pooling = self.module.pooling
        self.gives = self.module.gives

    def decode(self, encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
        """Through the module."""
        with torch.inference_mode():
            return self.module.outputs(self.module(torch.from_numpy(encoded.pooled)))

    def sizes(self) -> dict[str, int]:
        """The module's."""
        return self.module.sizes()


def make_decoder(section: Plugin, file: Path | str, hidden: int) -> CustomDecoder:
    """The decoder a section names, with weights of its own making; raises TaskRefused."""
    module = make_plugin(GROUP, CustomDecoder, section, file, hidden)
    if not set(module.gives) <= set(OUTPUTS) or not module.gives:
        raise TaskRefused(
            file,
            "decoder.name",
            f"{section.name!r} gives {list(module.gives)}, a decoder gives some of {', '.join(OUTPUTS)}",
            "Set `gives`",
        )
    return module


def make_plugin(
    group: str, base: type[Module], section: Plugin | PluginEncoder, file: Path | str, width: int
) -> Module:
    """The object of an entry point that a section names; raises TaskRefused."""
    part = group.removeprefix("fmplex.").removesuffix("s")
    found = list(entry_points(group=group, name=section.name))
    if not found:
        known = ", ".join(sorted(entry_points(group=group).names)) or "(none is installed)"
        raise TaskRefused(
            file,
            f"{part}.name",
            f"no installed package registers {'an' if part == 'encoder' else 'a'} {part} {section.name!r}; "
            f"registered: {known}",
            f"Install the package that does, where the server runs (entry point group {group})",
        )
    try:
        module = found[0].load()(section.options, width)
    except Exception as error:  # another package's code raises what it likes
        raise TaskRefused(
            file,
            f"{part}.name",
            f"the {part} {section.name!r} ({found[0].value}) cannot be made: {type(error).__name__}: {error}",
            f"Correct {part}.options, or the package",
        ) from error
    if not isinstance(module, base):
        raise TaskRefused(
            file, f"{part}.name", f"{found[0].value} is no {base.__name__}", f"Inherit fmplex.{base.__name__}"
        )
    return module


def load_weights(module: nn.Module, file: Path, part: str) -> None:
    """Fill the module from a safetensors file; raises TaskRefused."""
    wanted = module.state_dict()
    if not wanted:
        return
    tensors = read_safetensors(file)
    if tensors.keys() != wanted.keys():
        raise TaskRefused(
            file,
            ", ".join(sorted(tensors.keys() ^ wanted.keys())),
            f"the {part} has the tensors {sorted(wanted)}, the file {sorted(tensors)}",
            "Save the task again, with the version of the package that is installed here",
        )
    for name, tensor in tensors.items():
        expect_shape(file, name, tensor, tuple(wanted[name].shape), f"the {part}")
    module.load_state_dict(tensors)
