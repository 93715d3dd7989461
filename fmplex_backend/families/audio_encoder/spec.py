"""The spec of audio encoders. Imports neither torch nor Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmplex_backend.adapters.kinds import PeftAdapter
from fmplex_backend.decoders import KINDS
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.audio_encoder.inputs import AUDIO, AUDIO_BYTES
from fmplex_backend.families.audio_encoder.parameters import AudioEncoderConfig
from fmplex_backend.families.audio_encoder.samples import clips_of_about
from fmplex_backend.families.audio_encoder.sections import AudioFile, AudioSamples
from fmplex_backend.families.model_files import find_model, fingerprint_of, hidden_width
from fmplex_backend.families.spec import Family, FittingInputs
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.types import Predict, Runtime

if TYPE_CHECKING:
    from torch import Tensor


class AudioEncoders(Family):
    """The encoders of Whisper models."""

    name = "audio-encoder"
    inputs = (AUDIO_BYTES, AUDIO)
    encoders = (AudioFile, AudioSamples)
    adapters = (PeftAdapter,)
    decoders = tuple(each for kind, each in KINDS.items() if kind != "token-classification")
    parameters = AudioEncoderConfig

    def encoder_for(self, columns: Sequence[str], options: Mapping[str, Any]) -> AudioFile:
        """Clips as files, of one column; raises TaskProblem for several."""
        if columns or options:
            wrong = "columns of numbers" if columns else ", ".join(options)
            raise TaskProblem(f"a task on an {self.name} reads audio: {wrong} are of other families. Leave them out")
        return AudioFile()

    def make_runtime(
        self, config: BackboneConfig, file: Path, device: str, max_items: int, predict: Predict
    ) -> Runtime:
        from fmplex_backend.families.audio_encoder.runtime import AudioEncoderRuntime

        assert isinstance(config, AudioEncoderConfig)
        return AudioEncoderRuntime(config, file, device, max_items, predict)

    def takes_model(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == "whisper"

    def hidden_width(self, config: BackboneConfig, file: Path) -> int | None:
        return hidden_width(find_model(config.model, file, fetch=False))

    def fingerprint(self, config: BackboneConfig, file: Path) -> str | None:
        return fingerprint_of(config.model, file)

    def samples(self, tensor: str, length: int, count: int, seed: int) -> list[Any]:
        return list(clips_of_about(length, count, seed))

    def fitting_inputs(self, encoder: Any, runtime: Any, tensors: Mapping[str, Tensor], seed: int) -> FittingInputs:
        from fmplex_backend.families.audio_encoder.fitting import AudioFittingInputs

        return AudioFittingInputs(encoder, runtime)
