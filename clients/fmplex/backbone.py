"""A foundation model in this process, shared by any number of tasks, run by the very code that the server runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from fmplex.configs import backbone_parameters
from fmplex.errors import TaskProblem
from fmplex.wire import array_of
from fmplex_backend.config import BackboneConfig, load_backbone_config
from fmplex_backend.errors import FmplexError
from fmplex_backend.runtime.text_encoder import Extensions, TextEncoderRuntime
from fmplex_backend.scheduling import CostModel
from fmplex_backend.types import Failed, Finished, Reply, Request
from fmplex_backend.vfm import Vfm

BATCH = 32


class Backbone:
    """A backbone of a model repository, a directory, `package:<module>`, or a hub id.

    Its weights are loaded when they are first needed, and never written to.

    Args:
        source: what it is; a name of a backbone in `repository` goes first.
        repository: where names are looked up.
        name: the backbone's name where tasks are served; that of the repository by default.
        device: e.g. "cuda:0"; a GPU if there is one.
        dtype: of the weights, where the repository does not say; float32 on CPUs.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        repository: str | Path = "model_repository",
        name: str = "",
        device: str = "",
        dtype: str = "auto",
    ) -> None:
        self.repository = Path(repository)
        self.file = self.repository / str(source) / "config.pbtxt"
        parameters = backbone_parameters(self.repository, str(source))
        if parameters is None:
            where = str(source) if str(source).startswith("package:") else str(_absolute(source))
            self.config = BackboneConfig.model_validate({"model": where, "dtype": dtype})
            self.name = name or Path(str(source).removeprefix("package:")).name
        else:
            self.config = load_backbone_config(self.file, parameters)
            self.name = name or str(source)
        self.device = torch.device(device or ("cuda:0" if torch.cuda.is_available() else "cpu"))

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, model={self.config.model!r})"

    @cached_property
    def runtime(self) -> TextEncoderRuntime:
        """The model with its tokenizer, as the server has it."""
        try:
            return TextEncoderRuntime(self.config, self.file, self.device, BATCH, CostModel().predict)
        except FmplexError as error:
            if self.file.is_file():
                raise
            raise TaskProblem(
                f"there is no backbone {self.name!r} in {self.repository}, and as a model: {error}"
            ) from error

    @cached_property
    def _pristine(self) -> Any:
        """The modules before any task's adapter was put around them; the weights are the same tensors."""
        return _same_weights(self.runtime.model)

    @property
    def hidden(self) -> int:
        """The width of its vectors."""
        return self.runtime.hidden

    @property
    def model_type(self) -> str:
        """As transformers names the architecture."""
        return str(self.runtime.model.config.model_type)

    def for_training(self) -> Any:
        """Modules of one's own, to put an adapter around, on the shared, frozen weights."""
        return _same_weights(self._pristine)

    # -- running tasks

    def load(self, version: Path) -> Extensions:
        """A version directory, read and checked as the server does it; raises TaskRefused."""
        _ = self._pristine  # taken before the first adapter comes
        return self.runtime.load(version)

    def attach(self, extensions: Extensions) -> None:
        """Make a loaded version ready to run."""
        self.runtime.attach(extensions)

    def detach(self, extensions: Extensions) -> None:
        """Free what it took."""
        self.runtime.detach(extensions)

    def outputs(self, extensions: Extensions, rows: Sequence[Any]) -> list[dict[str, npt.NDArray[Any]]]:
        """Output tensors of each text (or row of numbers), as the server computes them."""
        found: list[dict[str, npt.NDArray[Any]]] = []
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            tensors = self._run(extensions, part)
            found += [{name: value[row] for name, value in tensors.items()} for row in range(len(part))]
        return found

    def _run(self, extensions: Extensions, rows: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
        vfm = Vfm(0, self.name)
        vfm.extensions = extensions
        request = Request(vfm, {extensions.takes: array_of(extensions.takes, rows)}, (), 0.0, _no_reply)
        request.extensions = extensions
        self.runtime.prepare(request)
        for done in self.runtime.run([request]):
            for _, outcome in done.outcomes:
                if isinstance(outcome, Failed):
                    raise outcome.error
                assert isinstance(outcome, Finished)
                return dict(self.runtime.decode(request, outcome.value))
        raise RuntimeError("the backbone left a request without an outcome")


def _no_reply(request: Request, reply: Reply) -> None:
    """The outcome is read from the pass."""


def _absolute(source: str | Path) -> str | Path:
    return Path(source).resolve() if Path(source).is_dir() else source


def _same_weights(model: Any) -> Any:
    """A copy of the modules over the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
