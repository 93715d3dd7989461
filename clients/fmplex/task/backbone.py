"""A foundation model in this process, shared by any number of tasks, run by the very code that the server runs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from fmplex_backend import families
from fmplex_backend.decoders import Decoder
from fmplex_backend.errors import FmplexError, TaskProblem
from fmplex_backend.families.spec import Family, FittingInputs, SequenceInputs
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.configs import backbone_parameters
from fmplex_backend.scheduling import CostModel
from fmplex_backend.types import Extensions, Failed, Reply, Request, Running, Vfm

BATCH = 32
FITTED_IN = "float32"
Tensors = dict[str, npt.NDArray[Any]]


class Backbone:
    """A backbone of a model repository, a directory, `package:<module>`, or a hub id.

    Its weights are loaded when they are first needed, and never written to.

    Args:
        source: what it is; a name of a backbone in `repository` goes first.
        repository: where names are looked up.
        name: the backbone's name where tasks are served; that of the repository by default.
        device: e.g. "cuda:0"; a GPU if there is one.
        dtype: of the weights, as a backbone's parameter `dtype` says it; that of the repository by default.
        family: what kind of model it is, where the repository does not say; a text encoder by default.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        repository: str | Path = "model_repository",
        name: str = "",
        device: str = "",
        dtype: str = "",
        family: str = families.DEFAULT,
    ) -> None:
        self.repository = Path(repository)
        self.file = self.repository / str(source) / "config.pbtxt"
        parameters = backbone_parameters(self.repository, str(source))
        given = {"dtype": dtype} if dtype else {}
        if parameters is None:
            where = str(source) if str(source).startswith("package:") else str(_absolute(source))
            self.config = load_backbone_config(self.file, {"model": where, "family": family} | given)
            self.name = name or Path(str(source).removeprefix("package:")).name
        else:
            self.config = load_backbone_config(self.file, parameters | given)
            self.name = name or str(source)
        self.device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, model={self.config.model!r})"

    @property
    def family(self) -> Family:
        """The spec of its family."""
        return families.family(self.config.family)

    @cached_property
    def runtime(self) -> Any:
        """The family's runtime with the model in it, as the server has it; raises TaskProblem or BackboneRefused."""
        try:
            return self._make_runtime(self.config)
        except FmplexError as error:
            if self.file.is_file():
                raise
            raise TaskProblem(
                f"there is no backbone {self.name!r} in {self.repository}, and as a model: {error}"
            ) from error

    @cached_property
    def fitting_runtime(self) -> Any:
        """The runtime that tasks are fitted on: in float32 where the config leaves the choice of dtype.

        Small steps of a fitting are lost in bfloat16. The weights are in memory a second time where they are served so.
        """
        if self._fits_as_served:
            return self.runtime
        return self._make_runtime(self.config.model_copy(update={"dtype": FITTED_IN}))

    def _make_runtime(self, config: Any) -> Any:
        """With all adapters in memory: there is no engine here that lets them go and come back."""
        config = config.model_copy(update={"adapter_memory": 0})
        return self.family.make_runtime(config, self.file, self.device, BATCH, CostModel().predict)

    @property
    def _fits_as_served(self) -> bool:
        return self.config.dtype != "auto" or self.runtime.dtype == FITTED_IN

    @cached_property
    def _pristine(self) -> Any:
        """The modules before any task's adapter was put around them; the weights are the same tensors."""
        return _same_weights(self.fitting_runtime.model)

    @property
    def hidden(self) -> int:
        """The width of its vectors."""
        return int(self.runtime.hidden)

    def width_of(self, reads: str) -> int:
        """The width of what a decoder reads."""
        return int(self.runtime.width_of(reads))

    @property
    def model_type(self) -> str:
        """As transformers names the architecture."""
        return str(self.runtime.model.config.model_type)

    def for_training(self) -> Any:
        """Modules of one's own, to put an adapter around, on the shared, frozen weights."""
        return _same_weights(self._pristine)

    def completed(self, decoder: Decoder) -> Decoder:
        """A decoder that is about to be fitted, with the settings that only the backbone tells."""
        return self.family.completed(decoder, self.fitting_runtime)

    def fitting_inputs(self, encoder: Any, tensors: Mapping[str, Tensor], seed: int) -> FittingInputs:
        """A task's encoder while the task is fitted, with the tensors it has, if any."""
        return self.family.fitting_inputs(encoder, self.fitting_runtime, tensors, seed)

    def sequence_inputs(self, encoder: Any, decoder: Any) -> SequenceInputs:
        """A task whose decoder learns from whole sequences, while it is fitted or evaluated."""
        return self.family.sequence_inputs(encoder, decoder, self.fitting_runtime)

    # -- running tasks

    def load(self, version: Path) -> Extensions:
        """A version directory, read and checked as the server does it; raises TaskRefused."""
        if hasattr(self.runtime, "model") and self._fits_as_served:
            _ = self._pristine  # copied before the first adapter is put around a module
        loaded: Extensions = self.runtime.load(version)
        return loaded

    def attach(self, extensions: Extensions) -> None:
        """Make a loaded version ready to run."""
        self.runtime.attach(extensions)

    def detach(self, extensions: Extensions) -> None:
        """Free what it took."""
        self.runtime.detach(extensions)

    def replies(
        self,
        extensions: Extensions,
        items: Sequence[Any],
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> list[list[Tensors]]:
        """Of each item (a text, a row of numbers) the output tensors of every part of its reply, mostly one part.

        They are what the server computes, under the backbone's names for them. `parameters` are the requests', or one's
        each of a family whose requests are not batched.
        """
        size = BATCH if self.family.batched else 1
        batches = [items[start : start + size] for start in range(0, len(items), size)]
        own = parameters if isinstance(parameters, Sequence) else [parameters or {}] * len(batches)
        requests = [self._request(extensions, *each) for each in zip(batches, own, strict=True)]
        together = 1 if self.family.batched else self.family.max_items(self.config, BATCH)
        found: list[list[Tensors]] = []
        for start in range(0, len(requests), together):
            some = requests[start : start + together]
            for parts, batch in zip(self._run(some), batches[start : start + together], strict=True):
                found += [
                    [{name: value[row] for name, value in part.items()} for part in parts] for row in range(len(batch))
                ]
        return found

    def _request(self, extensions: Extensions, items: Sequence[Any], parameters: Mapping[str, Any]) -> Request:
        reads = families.input_named(extensions.takes)
        assert reads is not None
        vfm = Vfm(0, self.name)
        vfm.extensions = extensions
        request = Request(vfm, {extensions.takes: reads.array(items)}, (), 0.0, _no_reply, parameters=parameters)
        request.extensions = extensions
        self.runtime.prepare(request)
        return request

    def _run(self, requests: Sequence[Request]) -> list[list[Tensors]]:
        """Requests, step by step until they are finished: of each the parts of its reply, batch first."""
        parts: dict[Request, list[Tensors]] = {request: [] for request in requests}
        left = dict.fromkeys(requests)
        try:
            while left:
                batch = [request for request in left if self.runtime.has_room(request)]
                for request, outcome in [each for done in self.runtime.run(batch) for each in done.outcomes]:
                    if isinstance(outcome, Failed):
                        raise outcome.error
                    if outcome.value is not None:
                        parts[request].append(dict(self.runtime.decode(request, outcome.value)))
                    if isinstance(outcome, Running):
                        request.work, request.rows = outcome.next_work, outcome.next_rows
                    else:
                        left.pop(request)
                        self.runtime.forget(request)
        finally:
            for request in left:
                self.runtime.forget(request)
        return list(parts.values())


def _no_reply(reply: Reply, final: bool) -> None:
    """The outcome is read from the pass."""


def _absolute(source: str | Path) -> str | Path:
    return Path(source).resolve() if Path(source).is_dir() else source


def _same_weights(model: Any) -> Any:
    """A copy of the modules over the same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
