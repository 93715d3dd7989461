"""The spec of vision encoders. Imports neither torch nor Triton."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmplex_backend.adapters.kinds import PeftAdapter
from fmplex_backend.decoders import KINDS
from fmplex_backend.errors import BackboneRefused, TaskProblem
from fmplex_backend.families.heads import CarriedOver
from fmplex_backend.families.model_files import find_model, fingerprint_of, model_config, width_in
from fmplex_backend.families.spec import Family, FittingInputs
from fmplex_backend.families.vision_encoder.depth import DepthMap
from fmplex_backend.families.vision_encoder.heads import carried_over
from fmplex_backend.families.vision_encoder.inputs import IMAGE, IMAGE_BYTES
from fmplex_backend.families.vision_encoder.parameters import VisionEncoderConfig
from fmplex_backend.families.vision_encoder.sections import ImageArray, ImageFile
from fmplex_backend.families.vision_encoder.segmentation import SegmentationMap
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.types import Predict, Runtime

if TYPE_CHECKING:
    from torch import Tensor

OTHER_KINDS = ("CausalLM", "ConditionalGeneration", "Detection", "Segmentation", "DepthEstimation", "Video", "Audio")


class VisionEncoders(Family):
    """DINOv2, ViT, Swin, ConvNeXt, the vision towers of CLIP and SigLIP, and their like, through AutoModel."""

    name = "vision-encoder"
    inputs = (IMAGE_BYTES, IMAGE)
    encoders = (ImageFile, ImageArray)
    adapters = (PeftAdapter,)
    decoders = (
        *(each for kind, each in KINDS.items() if kind != "token-classification"),
        SegmentationMap,
        DepthMap,
    )
    parameters = VisionEncoderConfig

    def encoder_for(self, columns: Sequence[str], options: Mapping[str, Any]) -> ImageFile:
        """Pictures as files, of one column; raises TaskProblem for several."""
        if columns or options:
            wrong = "columns of numbers" if columns else ", ".join(options)
            raise TaskProblem(f"a task on a {self.name} reads pictures: {wrong} are of other families. Leave them out")
        return ImageFile()

    def make_runtime(
        self, config: BackboneConfig, file: Path, device: str, max_items: int, predict: Predict
    ) -> Runtime:
        from fmplex_backend.families.vision_encoder.runtime import VisionEncoderRuntime

        assert isinstance(config, VisionEncoderConfig)
        return VisionEncoderRuntime(config, file, device, max_items, predict)

    def takes_model(self, config: Mapping[str, Any]) -> bool:
        """Models that take pictures alone, and pairs of a vision and a text tower, of which the former is taken."""
        made_for = " ".join(map(str, config.get("architectures") or ()))
        pair = isinstance(config.get("vision_config"), dict)
        towers = [key for key, part in config.items() if key.endswith("_config") and isinstance(part, dict)]
        reads_pictures = (
            any(key in config for key in ("image_size", "num_channels")) or "ImageClassification" in made_for
        )
        return (
            (set(towers) == {"vision_config", "text_config"} if pair else reads_pictures and not towers)
            and not any(config.get(key) for key in ("is_decoder", "is_encoder_decoder", "num_frames", "sampling_rate"))
            and not any(kind in made_for for kind in OTHER_KINDS)
        )

    def hidden_width(self, config: BackboneConfig, file: Path) -> int | None:
        directory = find_model(config.model, file, fetch=False)
        try:
            found = model_config(directory, directory)
        except BackboneRefused:
            return None
        return _width(found.get("vision_config") or found)

    def fingerprint(self, config: BackboneConfig, file: Path) -> str | None:
        return fingerprint_of(config.model, file)

    def carried_over(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CarriedOver:
        return carried_over(config, tensors)

    def fitting_inputs(self, encoder: Any, runtime: Any, tensors: Mapping[str, Tensor], seed: int) -> FittingInputs:
        from fmplex_backend.families.vision_encoder.fitting import VisionFittingInputs

        return VisionFittingInputs(encoder, runtime)


def _width(config: Mapping[str, Any]) -> int | None:
    """Of the last stage, where a model has several."""
    if sizes := config.get("hidden_sizes"):
        return int(sizes[-1])
    if (found := width_in(config)) is not None:
        return found
    embedded, depths = config.get("embed_dim"), config.get("depths")
    return int(embedded * 2 ** (len(depths) - 1)) if embedded and depths else None
