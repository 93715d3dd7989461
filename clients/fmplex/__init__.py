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
    from fmplex.aio import AsyncClient
    from fmplex.backbone import Backbone
    from fmplex.client import Client
    from fmplex.errors import (
        DeadlineExceeded,
        FmplexError,
        Refused,
        ServerProblem,
        TaskProblem,
        TaskRefused,
        Unreachable,
    )
    from fmplex.parts import (
        IA3,
        Classifier,
        DoRA,
        Embedder,
        LoRA,
        MultiLabel,
        Plugin,
        PluginEncoder,
        Pretrained,
        Projection,
        Regressor,
        Similarity,
        Text,
        TokenClassifier,
    )
    from fmplex.results import Label, Labels, Raw, Span, Spans, Values, Vector
    from fmplex.task import Task
    from fmplex_backend.extensions.encoders import CustomEncoder
    from fmplex_backend.extensions.plugins import CustomDecoder

_PLACES = {
    "fmplex.aio": ("AsyncClient",),
    "fmplex.backbone": ("Backbone",),
    "fmplex.client": ("Client",),
    "fmplex.errors": (
        "DeadlineExceeded",
        "FmplexError",
        "Refused",
        "ServerProblem",
        "TaskProblem",
        "TaskRefused",
        "Unreachable",
    ),
    "fmplex.parts": (
        "IA3",
        "Classifier",
        "DoRA",
        "Embedder",
        "LoRA",
        "MultiLabel",
        "Plugin",
        "PluginEncoder",
        "Pretrained",
        "Projection",
        "Regressor",
        "Similarity",
        "Text",
        "TokenClassifier",
    ),
    "fmplex.results": ("Label", "Labels", "Raw", "Span", "Spans", "Values", "Vector"),
    "fmplex.task": ("Task",),
    "fmplex_backend.extensions.encoders": ("CustomEncoder",),
    "fmplex_backend.extensions.plugins": ("CustomDecoder",),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "IA3",
    "AsyncClient",
    "Backbone",
    "Classifier",
    "Client",
    "CustomDecoder",
    "CustomEncoder",
    "DeadlineExceeded",
    "DoRA",
    "Embedder",
    "FmplexError",
    "Label",
    "Labels",
    "LoRA",
    "MultiLabel",
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
