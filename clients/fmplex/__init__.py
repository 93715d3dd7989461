"""One foundation model in one Triton server, shared by many tasks.

    from fmplex import Backbone, Classifier, LoRA, Task

    task = Task("spam", Backbone("minilm"), adapter=LoRA(r=8), decoder=Classifier(["ham", "spam"]))
    task.fit(train_texts, train_labels, validation=0.1)
    task.save("model_repository")

Names are loaded when they are used: a client needs no torch.
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
    from fmplex_backend.families.text_encoder.encoders import CustomEncoder
    from fmplex_backend.families.text_encoder.sections import PluginEncoder, Projection, Text
    from fmplex_backend.families.vision_encoder.sections import ImageArray, ImageFile

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
    "fmplex_backend.families.text_encoder.encoders": ("CustomEncoder",),
    "fmplex_backend.families.text_encoder.sections": ("PluginEncoder", "Projection", "Text"),
    "fmplex_backend.families.vision_encoder.sections": ("ImageArray", "ImageFile"),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "IA3",
    "Answers",
    "AsyncClient",
    "Backbone",
    "Busy",
    "Classifier",
    "Client",
    "ControlClosed",
    "CustomDecoder",
    "CustomEncoder",
    "DeadlineExceeded",
    "DoRA",
    "Embedder",
    "FmplexError",
    "ImageArray",
    "ImageFile",
    "Label",
    "Labels",
    "LoRA",
    "MultiLabel",
    "Nearest",
    "Plugin",
    "PluginEncoder",
    "Pretrained",
    "Projection",
    "Raw",
    "Refused",
    "Regressor",
    "ServerProblem",
    "Similarity",
    "Span",
    "Spans",
    "Task",
    "TaskProblem",
    "TaskRefused",
    "Text",
    "TokenClassifier",
    "Unreachable",
    "Values",
    "Vector",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'fmplex' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
