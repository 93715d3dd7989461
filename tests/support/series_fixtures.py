"""Tiny time-series backbones with random weights, as the hub has them, and series that such ones can tell apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from runtime_requests import unanswered
from transformers import (
    PatchTSMixerConfig,
    PatchTSMixerForPrediction,
    PatchTSTConfig,
    PatchTSTForPrediction,
    PatchTSTForPretraining,
    TimesFmConfig,
    TimesFmModelForPrediction,
)

from fmplex_backend.families.time_series.parameters import TimeSeriesConfig
from fmplex_backend.families.time_series.runtime import TimeSeriesRuntime
from fmplex_backend.scheduling import CostModel
from fmplex_backend.types import Finished, Request, Running, Vfm

CONTEXT, PATCH, HIDDEN, OWN_STEPS = 64, 8, 32, 12
Array = npt.NDArray[np.float32]
_SIZES: dict[str, Any] = {
    "context_length": CONTEXT,
    "patch_length": PATCH,
    "patch_stride": PATCH,
    "d_model": HIDDEN,
    "prediction_length": OWN_STEPS,
}
_TST: dict[str, Any] = {
    **_SIZES,
    "num_input_channels": 1,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "ffn_dim": 64,
    "pooling_type": None,
}
_MIXER: dict[str, Any] = {**_SIZES, "num_layers": 2, "num_input_channels": 3}
# Those with a number of channels of their own see these at once.
MODELS: dict[str, Callable[[], Any]] = {
    "patchtst": lambda: PatchTSTForPrediction(PatchTSTConfig(**_TST)),
    "class-token": lambda: PatchTSTForPrediction(
        PatchTSTConfig(**_TST | {"use_cls_token": True, "num_input_channels": 7, "norm_type": "layernorm"})
    ),
    "overlapping": lambda: PatchTSTForPretraining(
        PatchTSTConfig(**_TST | {"patch_stride": 4, "scaling": "mean", "mask_type": "random"})
    ),
    "channel-attention": lambda: PatchTSTForPrediction(
        PatchTSTConfig(**_TST | {"channel_attention": True, "num_input_channels": 3})
    ),
    "timesfm": lambda: TimesFmModelForPrediction(
        TimesFmConfig(
            context_length=CONTEXT,
            patch_length=PATCH,
            horizon_length=OWN_STEPS,
            num_hidden_layers=2,
            hidden_size=HIDDEN,
            intermediate_size=48,
            head_dim=16,
            num_attention_heads=2,
            quantiles=[0.1, 0.5, 0.9],
        )
    ),
    "mixer": lambda: PatchTSMixerForPrediction(PatchTSMixerConfig(**_MIXER, mode="common_channel")),
    "mixed-channels": lambda: PatchTSMixerForPrediction(
        PatchTSMixerConfig(**_MIXER, mode="mix_channel", self_attn=True, gated_attn=True)
    ),
}
CHANNELS = {"channel-attention": 3, "mixed-channels": 3}  # of the others any number


def tiny_series_model(kind: str, seed: int = 0) -> Any:
    """With its head, and weights large enough for attention and adapters to change its outputs."""
    torch.manual_seed(seed)
    model = MODELS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.1 if kind.startswith("mix") else 0.2)
    return model.eval().requires_grad_(False)


def save_series_model(directory: Path, kind: str = "patchtst", seed: int = 0) -> Path:
    """Save a model as the hub has it."""
    tiny_series_model(kind, seed).save_pretrained(directory)
    return directory


def series_runtime(directory: Path, *, max_items: int = 32, **config: Any) -> TimeSeriesRuntime:
    """The real runtime over a tiny model."""
    settings = TimeSeriesConfig(model=str(directory), threads=1, **config)
    return TimeSeriesRuntime(settings, directory / "config.pbtxt", "cpu", max_items, CostModel().predict)


def series(seed: int, steps: int = CONTEXT, channels: int = 1, *, missing: float = 0.0) -> Array:
    """Waves of their own periods, levels and heights with some noise: [steps, channels]."""
    rng = np.random.default_rng(seed)
    periods, phases = rng.uniform(5, 25, channels), rng.uniform(0, 6, channels)
    levels, heights = rng.normal(0, 50, channels), rng.uniform(0.5, 20, channels)
    waves = np.sin(np.arange(steps)[:, None] * 2 * np.pi / periods + phases) + rng.normal(0, 0.1, (steps, channels))
    values = (levels + heights * waves).astype(np.float32)
    values[rng.random(values.shape) < missing] = np.nan
    return values


def filled(values: Array, context: int = CONTEXT) -> tuple[Array, Array]:
    """What a model sees, and where it was observed: the last steps, means in the gaps. Both [context, channels]."""
    last = values[-context:]
    whole = np.concatenate([np.full((context - len(last), last.shape[1]), np.nan, dtype=np.float32), last])
    known = ~np.isnan(whole)
    return np.where(known, whole, np.nanmean(last, axis=0, dtype=np.float64)).astype(np.float32), known


def serve(runtime: TimeSeriesRuntime, folder: Path, **task: Any) -> Vfm:
    """A vFM that is attached."""
    folder.mkdir(exist_ok=True)
    document = {"family": "time-series", "decoder": {"kind": "embedding", "normalize": False}, **task}
    (folder / "task.json").write_text(json.dumps(document))
    vfm = Vfm(0, folder.name)
    vfm.extensions = runtime.load(folder)
    runtime.attach(vfm.extensions)
    return vfm


def ask(runtime: TimeSeriesRuntime, vfm: Vfm, *items: Array) -> Request:
    """Items of one length."""
    request = Request(vfm, {"SERIES": np.stack(items)}, (), 0.0, unanswered)
    request.extensions = vfm.extensions
    runtime.prepare(request)
    return request


def finished(runtime: TimeSeriesRuntime, request: Request) -> dict[str, Any]:
    """Its tensors, after as many steps as it takes."""
    while True:
        ((_, outcome),) = [each for done in runtime.run([request]) for each in done.outcomes]
        if isinstance(outcome, Finished):
            return dict(runtime.decode(request, outcome.value))
        assert isinstance(outcome, Running)
