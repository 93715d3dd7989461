"""FORECAST [horizon, channels] by the forecast head that a model was published with, or a fine-tuned one of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.decoder import Array, Encoded, LoadedDecoder, Outputs, Weighted
from fmplex_backend.decoders.results import Result
from fmplex_backend.errors import TaskProblem, TaskRefused
from fmplex_backend.families.time_series.architectures import PATCHES, architecture_of
from fmplex_backend.families.time_series.forecasting import Forecasting, Horizon
from fmplex_backend.families.time_series.results import Forecast
from fmplex_backend.files import read_json
from fmplex_backend.interface import TensorSpec
from fmplex_backend.section import CHECKED, TrainingOnly

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.families.time_series.anatomy import Anatomy
    from fmplex_backend.families.time_series.architectures import Architecture

QUANTILES = TensorSpec("QUANTILES", "TYPE_FP32", (-1, -1, -1))  # [levels, horizon, channels]
AGAIN = "Save the tensors of the head as the model's own checkpoint names them"


@dataclass(config=CHECKED, frozen=True)
class OwnForecaster(Weighted, Forecasting):
    """The forecast head of the model's own checkpoint: nothing is fitted.

    Args:
        horizon: steps; those of the head by default. Of a longer one the forecast is put behind the series and the
            model is run again, as often as it takes: errors add up.
        quantiles: levels that are answered too, of those that the head has; they are not rolled.
        head: whose it is: the backbone's, or one that the task brings, of a checkpoint with the same backbone.
        checkpoint: where the task's own is: a directory with model.safetensors, or such a file.
    """

    horizon: Horizon | None = None
    head: Literal["backbone", "task"] = "backbone"
    quantiles: Sequence[Annotated[float, Field(gt=0, lt=1)]] = ()
    checkpoint: TrainingOnly[str | Path | None] = field(default=None, compare=False)

    kind: Literal["own-forecast"] = field(default="own-forecast", kw_only=True, repr=False)
    learns = "nothing"
    needs_weights = False
    may_give = (QUANTILES,)

    @property
    def label_names(self) -> Sequence[str]:
        """The levels of QUANTILES."""
        return [f"{level:g}" for level in self.quantiles]

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return super().sizes(directory, hidden) | ({"QUANTILES": None} if self.quantiles else {})

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        quantiles = dict(zip(labels, outputs.get("QUANTILES", ()), strict=False))
        return Forecast(outputs["FORECAST"], truncated, quantiles)

    @property
    def steps(self) -> int:
        if self.horizon is None:
            raise TaskProblem("the horizon is the head's, which is not known here. Say it: OwnForecaster(horizon=96)")
        return self.horizon

    def brought(self) -> dict[str, Tensor]:
        """All tensors of the checkpoint but the backbone's, which its config.json tells apart."""
        if self.checkpoint is None:
            return {}
        if self.head != "task":
            raise TaskProblem('a checkpoint is given, but the head is the backbone\'s. Say head="task"')
        from fmplex_backend.weights import read_safetensors

        place = Path(self.checkpoint)
        file = place / "model.safetensors" if place.is_dir() else place
        described = file.parent / "config.json"
        architecture = architecture_of(read_json(described)) if described.is_file() else None
        tensors = read_safetensors(file)
        return architecture.head_of(tensors) if architecture else tensors


@plain_dataclass(frozen=True, slots=True)
class Rolled(Encoded):
    """The states of the last run, and the forecasts of those before: [n, steps, channels] each."""

    before: Sequence[Array] = ()


@plain_dataclass(frozen=True, slots=True)
class LoadedHead(LoadedDecoder):
    """A head with its weights."""

    times: int  # that a series runs
    forecast: Callable[[Encoded], Array]  # of one run: [n, steps, channels], without quantiles


@plain_dataclass(frozen=True, slots=True)
class _Head:
    """A head's module, and what a task wants of what it says.

    Args:
        chosen: the channels that it forecasts; None: all.
        levels: where those of QUANTILES stand in the last dim of `run`.
        horizon: steps; None: those of the head.
    """

    anatomy: Anatomy
    module: Any
    chosen: Sequence[int] | None
    levels: list[int]
    horizon: int | None

    def decode(self, encoded: Encoded) -> dict[str, Array]:
        """FORECAST [n, horizon, channels], and QUANTILES [n, levels, horizon, channels] where there are levels."""
        before, found = encoded.before if isinstance(encoded, Rolled) else (), self.run(encoded)
        whole = np.concatenate([*before, found[..., 0]], axis=1)
        answer = {"FORECAST": whole[:, : self.horizon]}
        if self.levels:
            answer["QUANTILES"] = np.moveaxis(found[:, : self.horizon][..., self.levels], -1, 1)
        return answer

    def forecast(self, encoded: Encoded) -> Array:
        """Of one run: [n, steps, channels]."""
        return self.run(encoded)[..., 0]

    def run(self, encoded: Encoded) -> Array:
        """[n, c, t * d + 2] -> [n, steps, channels, 1 + levels of the head]: the forecast, then its quantiles."""
        import torch

        with torch.inference_mode():
            found = self._scaled(torch.from_numpy(encoded.vectors))
        return found if found.ndim == 4 else found[..., None]

    def _scaled(self, vectors: Tensor) -> Array:
        """What the module says of states, in the units of the series; quantiles where there are four dims."""
        rows, channels = vectors.shape[:2]
        tokens = vectors[..., :-2].reshape(rows, channels, -1, self.anatomy.width)
        level, scale = vectors[..., -2][:, None], vectors[..., -1][:, None]  # [n, 1, c]
        found = self.anatomy.architecture.head(self.module, tokens)
        if self.chosen:
            level, scale = level[..., sorted(self.chosen)], scale[..., sorted(self.chosen)]
        if (distribution := getattr(self.module, "distribution_output", None)) is not None:
            found = distribution.distribution(found, loc=level, scale=scale).mean
        elif found.dim() == 4:  # with quantiles
            found = found * scale[..., None] + level[..., None]
        else:
            found = found * scale + level
        whole: Array = found.numpy()
        return whole


class OwnHeads:
    """The forecast heads of one model. A head is made when a task wants it.

    What the checkpoint has of one is read with the backbone: a task's load reads nothing but the task's own files.

    Args:
        directory: of the model.
        read: the backbone's tensors, whose names have no prefix in a checkpoint without a head.
    """

    def __init__(self, directory: Path, anatomy: Anatomy, read: Mapping[str, Tensor]) -> None:
        from fmplex_backend.families.time_series.anatomy import read_config

        self.anatomy = anatomy
        self.config = read_config(anatomy.architecture, directory)
        if hasattr(self.config, "do_mask_input"):
            self.config.do_mask_input = False
        self.tensors = _head_of(anatomy.architecture, read, directory) if anatomy.architecture.forecasts else {}

    def load(self, section: OwnForecaster, channels: int | None, version: Path) -> LoadedHead:
        """Raises TaskRefused.

        Args:
            channels: that a series of the task has; None: any number.
        """
        file, architecture = version / "task.json", self.anatomy.architecture
        module, config = self._module(section, version)
        chosen = getattr(config, "prediction_channel_indices", None)
        if not architecture.forecasts_any(config) and channels != config.num_input_channels:
            problem = f"it is {channels}, and the head sees {config.num_input_channels} channels at once"
            raise TaskRefused(file, "encoder.channels", problem, f"Say {config.num_input_channels}")
        times = _times(section, architecture.steps(config), chosen, file)
        levels = _places(section, config, architecture.levels(config), times, file)
        head = _Head(self.anatomy, module, chosen, levels, section.horizon)
        try:
            head.run(self._ones(channels))
        except Exception as error:  # the module raises whatever it stumbles over
            problem = f"the forecast head of a {config.model_type} does not run: {type(error).__name__}: {error}"
            raise TaskRefused(file, "decoder.kind", problem, "Fit a Forecaster") from error
        return LoadedHead(PATCHES, section.sizes(version, None), head.decode, times, head.forecast)

    def _ones(self, channels: int | None) -> Encoded:
        """States of a series, to try a head with."""
        width = self.anatomy.width_of(PATCHES) + 2
        return Encoded(np.ones((1, channels or 1, width), np.float32), [], [], np.zeros((1, 1), np.bool_))

    def _module(self, section: OwnForecaster, version: Path) -> tuple[Any, Any]:
        """The model without its backbone, with the weights of the head, and its config; raises TaskRefused."""
        import torch

        from fmplex_backend.families.time_series.anatomy import class_of
        from fmplex_backend.weights import read_safetensors

        architecture, config = self.anatomy.architecture, copy.deepcopy(self.config)
        if not architecture.forecasts:
            problem = f"the checkpoint of a {config.model_type} has no forecast head, or one that a Forecaster is"
            remedy = "Fit a Forecaster, or import a fine-tuned checkpoint: fmplex import"
            raise TaskRefused(version / "task.json", "decoder.kind", problem, remedy)
        with torch.device("meta"):  # the backbone's part would take memory, and is not used
            whole: Any = class_of(architecture, architecture.forecaster)(config)
        wanted = {name: each for name, each in whole.state_dict().items() if architecture.of_head(name)}
        if section.head == "task":
            file = version / section.weights
            given = {name: self.tensors[name] for name in architecture.tied if name in self.tensors}
            given |= read_safetensors(file)
        else:
            file = version / "task.json"
            given = {name: each for name, each in self.tensors.items() if name in wanted}
        _check(given, wanted, file, section.head)
        whole.load_state_dict(given, strict=False, assign=True)
        for part in [name for name, _ in whole.named_children() if not architecture.of_head(name)]:
            delattr(whole, part)
        return whole.float().eval().requires_grad_(False), config


def _head_of(architecture: Architecture, read: Mapping[str, Tensor], directory: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors of a head, but those that are read; of one that is not in safetensors the tied ones."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names: list[str] = opened.keys()
            own = [name for name in names if architecture.of_head(name) and name not in read]
            found |= {name: opened.get_tensor(name).clone() for name in own}
    return {name: read[own] for name, own in architecture.tied.items() if own in read} | found


def _times(section: OwnForecaster, steps: int, chosen: Sequence[int] | None, file: Path) -> int:
    """How often a series runs for a task's horizon, with a head of so many steps; raises TaskRefused."""
    times = -(-(section.horizon or steps) // steps)
    if times > 1 and chosen:  # the next run would lack the other channels
        problem = f"it is {section.horizon}; the head forecasts {steps} steps of {len(chosen)} channels alone"
        raise TaskRefused(file, "decoder.horizon", problem, f"Say {steps} or less")
    return times


def _places(section: OwnForecaster, config: Any, has: Sequence[float], times: int, file: Path) -> list[int]:
    """Of the levels that a task wants, in what a head says of a step; raises TaskRefused."""
    missing = [level for level in section.quantiles if level not in has]
    if missing:
        names = ", ".join(f"{level:g}" for level in has) or "none"
        problem = f"the head of a {config.model_type} does not have {missing[0]:g}, but {names}"
        raise TaskRefused(file, "decoder.quantiles", problem, "Name some of these, or leave it out")
    if section.quantiles and times > 1:
        problem = f"a horizon of {section.horizon} is rolled, which says nothing of quantiles"
        raise TaskRefused(file, "decoder.quantiles", problem, "Lower the horizon, or leave them out")
    return [1 + list(has).index(level) for level in section.quantiles]


def _check(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], file: Path, whose: str) -> None:
    """Raise TaskRefused where names or shapes differ."""
    remedy = AGAIN if whose == "task" else "Name a backbone that was saved with its head, or fit a Forecaster"
    if missing := sorted(wanted.keys() - given.keys()):
        holder = "the file" if whose == "task" else "the backbone's checkpoint"
        raise TaskRefused(file, missing[0], f"{holder} holds no such tensor of a forecast head", remedy)
    if unknown := sorted(given.keys() - wanted.keys()):
        raise TaskRefused(file, unknown[0], "the model's forecast head has no such tensor", remedy)
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            problem = f"its shape is {list(tensor.shape)}, the model's is {list(wanted[name].shape)}"
            raise TaskRefused(file, name, problem, remedy)
