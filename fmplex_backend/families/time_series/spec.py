"""The spec of time-series models. Imports neither torch nor Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmplex_backend.adapters.kinds import PeftAdapter
from fmplex_backend.decoders import KINDS, Decoder
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.heads import CarriedOver
from fmplex_backend.families.model_files import find_model, fingerprint_of, hidden_width
from fmplex_backend.families.spec import Family, FittingInputs
from fmplex_backend.families.time_series.anomaly import AnomalyDetector
from fmplex_backend.families.time_series.architectures import architecture_of, width_of
from fmplex_backend.families.time_series.carried import carried_over
from fmplex_backend.families.time_series.forecasting import Forecaster
from fmplex_backend.families.time_series.imputation import Imputer
from fmplex_backend.families.time_series.inputs import SERIES
from fmplex_backend.families.time_series.own_head import OwnForecaster
from fmplex_backend.families.time_series.parameters import TimeSeriesConfig
from fmplex_backend.families.time_series.sections import Window
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.types import Predict, Runtime

if TYPE_CHECKING:
    from torch import Tensor


class TimeSeriesModels(Family):
    """PatchTST, PatchTSMixer, TimesFM, Tiny Time Mixer, Chronos-Bolt and MOMENT."""

    name = "time-series"
    inputs = (SERIES,)
    encoders = (Window,)
    adapters = (PeftAdapter,)
    decoders = (
        *(each for kind, each in KINDS.items() if kind != "token-classification"),
        Forecaster,
        AnomalyDetector,
        OwnForecaster,
        Imputer,
    )
    parameters = TimeSeriesConfig

    def encoder_for(self, columns: Sequence[str], options: Mapping[str, Any]) -> Window:
        """The last steps of a series, whose channels are columns; raises TaskProblem for options of texts."""
        if options:
            raise TaskProblem(
                f"a task on a {self.name} reads numbers: {', '.join(options)} are of texts. Leave them out"
            )
        return Window()

    def make_runtime(
        self, config: BackboneConfig, file: Path, device: str, max_items: int, predict: Predict
    ) -> Runtime:
        from fmplex_backend.families.time_series.runtime import TimeSeriesRuntime

        assert isinstance(config, TimeSeriesConfig)
        return TimeSeriesRuntime(config, file, device, max_items, predict)

    def takes_model(self, config: Mapping[str, Any]) -> bool:
        return architecture_of(config) is not None

    def hidden_width(self, config: BackboneConfig, file: Path) -> int | None:
        return hidden_width(find_model(config.model, file, fetch=False), width_of)

    def fingerprint(self, config: BackboneConfig, file: Path) -> str | None:
        return fingerprint_of(config.model, file)

    def carried_over(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CarriedOver:
        return carried_over(config, tensors)

    def completed(self, decoder: Decoder, runtime: Any) -> Decoder:
        return decoder.completed(runtime.anatomy) if isinstance(decoder, Imputer) else decoder

    def fitting_inputs(self, encoder: Any, runtime: Any, tensors: Mapping[str, Tensor], seed: int) -> FittingInputs:
        from fmplex_backend.families.time_series.fitting import SeriesFittingInputs

        return SeriesFittingInputs(encoder, runtime)
