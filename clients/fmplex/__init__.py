"""One foundation model in one Triton server, shared by many tasks.

    from fmplex import Backbone, Classifier, LoRA, Task

    task = Task("spam", Backbone("minilm"), adapter=LoRA(r=8), decoder=Classifier(["ham", "spam"]))
    task.fit(train_texts, train_labels, validation=0.1)
    task.save("model_repository")

Names are loaded when they are used: a client needs no torch. The encoders and decoders of families that other packages
bring are here, too, by their class's name.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmplex.client.aio import AsyncClient
    from fmplex.client.results import Answers
    from fmplex.client.sync import Client
    from fmplex.task.backbone import Backbone
    from fmplex.task.task import Task
    from fmplex_backend.adapters.kinds import IA3, DoRA, LoRA, Pretrained
    from fmplex_backend.decoders import (
        Classifier,
        Embedder,
        MultiLabel,
        Nearest,
        Plugin,
        Regressor,
        Similarity,
        TokenClassifier,
    )
    from fmplex_backend.decoders.custom import CustomDecoder
    from fmplex_backend.decoders.results import Label, Labels, Raw, Span, Spans, Values, Vector
    from fmplex_backend.errors import (
        Busy,
        ControlClosed,
        DeadlineExceeded,
        FmplexError,
        Refused,
        ServerProblem,
        TaskProblem,
        TaskRefused,
        Unreachable,
    )
    from fmplex_backend.families.audio_encoder.sections import AudioFile, AudioSamples
    from fmplex_backend.families.causal_lm.sections import Generated, Generator, Prompt
    from fmplex_backend.families.text_encoder.encoders import CustomEncoder
    from fmplex_backend.families.text_encoder.sections import PluginEncoder, Projection, Text
    from fmplex_backend.families.time_series.anomaly import AnomalyDetector
    from fmplex_backend.families.time_series.forecasting import Forecaster
    from fmplex_backend.families.time_series.imputation import Imputer
    from fmplex_backend.families.time_series.own_head import OwnForecaster
    from fmplex_backend.families.time_series.results import Anomalies, Filled, Forecast
    from fmplex_backend.families.time_series.sections import Window
    from fmplex_backend.families.time_series.series import TimeSeries
    from fmplex_backend.families.vision_encoder.depth import DepthMap
    from fmplex_backend.families.vision_encoder.results import LabelMap, ValueMap
    from fmplex_backend.families.vision_encoder.sections import ImageArray, ImageFile
    from fmplex_backend.families.vision_encoder.segmentation import SegmentationMap

_PLACES = {
    "fmplex.client.aio": ("AsyncClient",),
    "fmplex.client.results": ("Answers",),
    "fmplex.client.sync": ("Client",),
    "fmplex.task.backbone": ("Backbone",),
    "fmplex.task.task": ("Task",),
    "fmplex_backend.adapters.kinds": ("IA3", "DoRA", "LoRA", "Pretrained"),
    "fmplex_backend.decoders": (
        "Classifier",
        "Embedder",
        "MultiLabel",
        "Nearest",
        "Plugin",
        "Regressor",
        "Similarity",
        "TokenClassifier",
    ),
    "fmplex_backend.decoders.custom": ("CustomDecoder",),
    "fmplex_backend.decoders.results": ("Label", "Labels", "Raw", "Span", "Spans", "Values", "Vector"),
    "fmplex_backend.errors": (
        "Busy",
        "ControlClosed",
        "DeadlineExceeded",
        "FmplexError",
        "Refused",
        "ServerProblem",
        "TaskProblem",
        "TaskRefused",
        "Unreachable",
    ),
    "fmplex_backend.families.audio_encoder.sections": ("AudioFile", "AudioSamples"),
    "fmplex_backend.families.causal_lm.sections": ("Generated", "Generator", "Prompt"),
    "fmplex_backend.families.text_encoder.encoders": ("CustomEncoder",),
    "fmplex_backend.families.text_encoder.sections": ("PluginEncoder", "Projection", "Text"),
    "fmplex_backend.families.time_series.anomaly": ("AnomalyDetector",),
    "fmplex_backend.families.time_series.forecasting": ("Forecaster",),
    "fmplex_backend.families.time_series.imputation": ("Imputer",),
    "fmplex_backend.families.time_series.own_head": ("OwnForecaster",),
    "fmplex_backend.families.time_series.results": ("Anomalies", "Filled", "Forecast"),
    "fmplex_backend.families.time_series.sections": ("Window",),
    "fmplex_backend.families.time_series.series": ("TimeSeries",),
    "fmplex_backend.families.vision_encoder.depth": ("DepthMap",),
    "fmplex_backend.families.vision_encoder.results": ("LabelMap", "ValueMap"),
    "fmplex_backend.families.vision_encoder.sections": ("ImageArray", "ImageFile"),
    "fmplex_backend.families.vision_encoder.segmentation": ("SegmentationMap",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "IA3",
    "Anomalies",
    "AnomalyDetector",
    "Answers",
    "AsyncClient",
    "AudioFile",
    "AudioSamples",
    "Backbone",
    "Busy",
    "Classifier",
    "Client",
    "ControlClosed",
    "CustomDecoder",
    "CustomEncoder",
    "DeadlineExceeded",
    "DepthMap",
    "DoRA",
    "Embedder",
    "Filled",
    "FmplexError",
    "Forecast",
    "Forecaster",
    "Generated",
    "Generator",
    "ImageArray",
    "ImageFile",
    "Imputer",
    "Label",
    "LabelMap",
    "Labels",
    "LoRA",
    "MultiLabel",
    "Nearest",
    "OwnForecaster",
    "Plugin",
    "PluginEncoder",
    "Pretrained",
    "Projection",
    "Prompt",
    "Raw",
    "Refused",
    "Regressor",
    "SegmentationMap",
    "ServerProblem",
    "Similarity",
    "Span",
    "Spans",
    "Task",
    "TaskProblem",
    "TaskRefused",
    "Text",
    "TimeSeries",
    "TokenClassifier",
    "Unreachable",
    "ValueMap",
    "Values",
    "Vector",
    "Window",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if not name.startswith("_"):
        from fmplex_backend import families

        try:
            return families.section_named(name)
        except LookupError as error:
            raise AttributeError(f"module 'fmplex' has no attribute {name!r}: {error}") from None
    raise AttributeError(f"module 'fmplex' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
