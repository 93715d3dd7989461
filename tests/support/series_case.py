"""Time series' entry in the contract test: a small PatchTST with random weights, any number of channels.

A series costs as much as it has channels, however long it is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from encoder_case import EncoderCase, broken_cases, to_break
from family_cases import BACKBONE, Broken, Fit
from peft import PeftModel
from reference import HeadReference
from safetensors.torch import load_file, save_file
from series_fixtures import Array, filled, series
from text_encoder_case import fitting, ia3
from torch import Tensor
from transformers import AutoModel, PatchTSTConfig, PatchTSTForPrediction

from fmplex import AnomalyDetector, Backbone, Classifier, Embedder, Forecaster, LoRA, Regressor, Task, Window
from testing import breaking, repositories
from testing.adapters import lora
from testing.clients import Outputs
from testing.repositories import Task as Recipe

CONTEXT, PATCH, HIDDEN, LAYERS = 128, 8, 128, 10  # a pass takes many times as long as preparing its series
PATCHES = CONTEXT // PATCH
OWN_STEPS, HORIZON = 12, 6
CHANNELS = 4  # of most items
MODULES = ("q_proj", "v_proj")


def recipe(name: str, tag: int, *arguments: Any, steps: int | None = None, **options: Any) -> Recipe:
    """A task on series of any number of channels."""
    encoder = {"steps": steps} if steps else {}
    reads = ("SERIES", "TYPE_FP32", (-1, -1))
    more = {"family": "time-series", "reads": reads, "truncates": False, "hidden": HIDDEN}
    return Recipe(name, tag, *arguments, encoder=encoder, **{**more, **options})


def forecast(name: str, tag: int, kind: str = "forecast", **options: Any) -> Recipe:
    """A task with a head on all patches."""
    return recipe(name, tag, kind, labels=HORIZON, hidden=PATCHES * HIDDEN, options={"horizon": HORIZON}, **options)


SERVED = (
    recipe("none", 0, "embedding"),
    recipe("none-head", 1, layers=3, options={"activation": "gelu", "pooling": "max"}),
    recipe("none-nearest", 2, "nearest", labels=5, options={"k": 1}),
    recipe("short-lora", 3, adapter=lora(8, *MODULES), steps=40, options={"normalize": True}),
    recipe("lora4", 4, "multi-label", adapter=lora(4, "ff.0", "out_proj"), labels=6),
    recipe("lora8", 5, "embedding", adapter=lora(8, *MODULES), seed=7, options={"normalize": False}),
    recipe("dora", 6, adapter=lora(8, *MODULES, use_dora=True)),
    recipe("ia3", 7, "regression", adapter=ia3("k_proj", "q_proj"), labels=5, options={"normalize": True}),
    forecast("forecast", 8),
    forecast("forecast-lora", 9, adapter=lora(16, *MODULES), seed=3),
    forecast("anomaly", 10, "anomaly", adapter=lora(4, *MODULES)),  # it shows the backbone fewer steps than others
    recipe("own", 11, "own-forecast"),
    recipe("own-rolled", 12, "own-forecast", adapter=lora(4, *MODULES), options={"horizon": 2 * OWN_STEPS + 1}),
)
VERSIONS = (
    recipe("version-lora", 0, seed=50, adapter=lora(8, *MODULES)),
    recipe("version-deep", 0, seed=51, adapter=lora(16, "q_proj", "ff.0"), layers=2),
    recipe("version-plain", 0, seed=53),
    recipe("version-short", 0, seed=54, steps=24, options={"pooling": "max"}),
)
BROKEN = to_break(recipe, MODULES)
PROBLEMS = {
    "steps-beyond-context": (
        recipe("to-break-steps", 0),
        breaking.edit_json("task.json", encoder__steps=CONTEXT + 1),
        ("1/task.json", "encoder.steps", f"takes {CONTEXT}", "Lower it"),
    ),
    "other-horizon": (
        forecast("to-break-horizon", 0),
        breaking.edit_json("task.json", decoder__horizon=HORIZON + 1),
        ("decoder.safetensors", "weight", f"[{HORIZON + 1}, {PATCHES * HIDDEN}]"),
    ),
    "no-bounds": (
        forecast("to-break-bounds", 0, "anomaly"),
        breaking.delete("confidence.safetensors"),
        ("confidence.safetensors", "(whole file)"),
    ),
    "head-of-nobody": (
        recipe("to-break-own", 0, "own-forecast"),
        breaking.edit_json("task.json", decoder__head="task"),
        ("decoder.safetensors", "(whole file)"),
    ),
}

SLOW = [np.sin(np.arange(90)[:, None] / (8 + seed / 4)).astype(np.float32) for seed in range(16)]
FAST = [np.sin(np.arange(90)[:, None] / (1 + seed / 32)).astype(np.float32) for seed in range(16)]
WAVES, LABELS = [*SLOW, *FAST], ["slow"] * 16 + ["fast"] * 16
WHOLE = series(1, 400, 2) / 50


def near_zero(seed: int, steps: int, channels: int, missing: float = 0.0) -> Array:
    """In a unit in which float32 has the digits that answers are compared to."""
    values = series(seed, steps, channels, missing=missing) / 50
    values[-3:] = np.nan_to_num(values[-3:])
    return values


def unfitted(name: str, backbone: Backbone) -> Task:
    """An embedder has nothing to fit; it takes series of so many channels alone."""
    return Task(name, backbone, decoder=Embedder(pooling="max"), encoder=Window(steps=60, channels=CHANNELS))


class SeriesReference(HeadReference):
    """What a version must answer: transformers' model, and PEFT, on the channels of one series, each by itself."""

    def __init__(self, model: Path, version: Path) -> None:
        document = json.loads((version / "task.json").read_text(encoding="utf-8"))
        if document["decoder"]["kind"] == "own-forecast":
            self.decoder, self.head = document["decoder"], {}
        else:
            self._read_decoder(document, version)
        if (bounds := version / "confidence.safetensors").is_file():
            self.bounds = load_file(bounds)["bounds"]
        self.steps = (document.get("encoder") or {}).get("steps") or CONTEXT
        self.whole = PatchTSTForPrediction.from_pretrained(model).eval()
        self.model = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
        if adapter := document.get("adapter"):
            self.model = PeftModel.from_pretrained(self.model, str(version / adapter.get("path", "adapter"))).eval()
        self._known: dict[int, Outputs] = {}

    def __call__(self, item: Array) -> Outputs:
        """All outputs of a series."""
        if id(item) not in self._known:
            kind = self.decoder["kind"]
            if kind == "own-forecast":
                found = {"FORECAST": self._own(item)}
            elif kind == "forecast":
                found = {"FORECAST": self._forecast(item)[0].numpy()}
            elif kind == "anomaly":
                found = {"ANOMALY": self._anomaly(item)}
            else:
                found = self._pooled(self._normalised(self.pooled(item)))
            self._known[id(item)] = found
        return self._known[id(item)]

    def run(self, values: Array, known: npt.NDArray[np.bool_]) -> Any:
        """Channels, [c, context, 1], each by itself -> the model's output."""
        with torch.no_grad():
            return self.model(past_values=torch.from_numpy(values), past_observed_mask=torch.from_numpy(known).float())

    def channels(self, item: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        """What the model sees of each, and where it was observed: [c, context, 1]."""
        values, known = filled(item[-self.steps :], CONTEXT)
        return np.ascontiguousarray(values.T[..., None]), np.ascontiguousarray(known.T[..., None])

    def pooled(self, item: Array) -> Tensor:
        """[h]; over the patches that hold something, and over channels."""
        values, known = self.channels(item)
        largest, found = self.decoder.get("pooling") == "max", []
        for states, own in zip(self.run(values, known).last_hidden_state[:, 0], known, strict=True):
            seen = states[torch.from_numpy(own.reshape(PATCHES, PATCH).any(axis=1))]
            found.append(seen.amax(dim=0) if largest else seen.mean(dim=0))
        whole = torch.stack(found)
        return whole.amax(dim=0) if largest else whole.mean(dim=0)

    def _forecast(self, item: Array) -> tuple[Tensor, Tensor]:
        """[horizon, channels] and the channels' scales."""
        found = self.run(*self.channels(item))
        scaled = found.last_hidden_state.flatten(1) @ self.head["weight"].T + self.head["bias"]
        return (scaled * found.scale[:, 0] + found.loc[:, 0]).T, found.scale.flatten()

    def _anomaly(self, item: Array) -> Array:
        expected, scales = self._forecast(item[:-HORIZON])
        scores = (torch.from_numpy(item[-HORIZON:]) - expected).abs() / (scales * self.bounds[:, None])
        found: Array = scores.nan_to_num(0).numpy()
        return found

    def _own(self, item: Array) -> Array:
        """What has been forecast is put behind the series, which runs again."""
        horizon, parts = self.decoder.get("horizon", OWN_STEPS), []
        values, known = self.channels(item)
        while len(parts) * OWN_STEPS < horizon:
            states = self.run(values, known)
            with torch.no_grad():
                part = (self.whole.head(states.last_hidden_state) * states.scale + states.loc).numpy()
            values = np.concatenate([values, part], axis=1)[:, -CONTEXT:]
            known = np.concatenate([known, np.ones_like(part, dtype=np.bool_)], axis=1)[:, -CONTEXT:]
            parts.append(part[..., 0].T)
        return np.concatenate(parts)[:horizon]


class SeriesCase(EncoderCase):
    """Checked against transformers and PEFT, one series at a time."""

    family = "time-series"
    recipes: ClassVar = {
        each.name: each for each in (*SERVED, *VERSIONS, *BROKEN.values(), *(made for made, _, _ in PROBLEMS.values()))
    }
    served = tuple(each.name for each in SERVED)
    adapted = frozenset(each.name for each in SERVED if each.adapter is not None)
    rivals = ("lora8", "none")
    versions = tuple(each.name for each in VERSIONS)
    items = tuple(near_zero(seed, 12 + 9 * seed, CHANNELS, 0.1 * (seed % 3)) for seed in range(22))
    rows = CHANNELS
    short = tuple(near_zero(200 + seed, CONTEXT, 1) for seed in range(32))
    long = tuple(near_zero(300 + seed, CONTEXT, 8) for seed in range(256))
    longest = tuple(near_zero(600 + seed, CONTEXT, 10) for seed in range(32))
    broken: ClassVar = broken_cases(BROKEN) | {
        name: Broken(made.name, spoil, says) for name, (made, spoil, says) in PROBLEMS.items()
    }
    broken_versions = ("no-task-json", "foreign", "head-nan", "adapter-cut", "steps-beyond-context")
    fitted: ClassVar[dict[str, Fit]] = {
        "head": fitting(Classifier(), WAVES, LABELS),
        "lora": fitting(Classifier(), WAVES, LABELS, adapter=LoRA(r=4)),
        "number": fitting(Regressor(), WAVES, [float(place) for place in range(32)]),
        "forecast": fitting(Forecaster(10, context=CONTEXT), WHOLE, None),
        "anomaly": fitting(AnomalyDetector(5, context=CONTEXT), WHOLE, None, adapter=LoRA(r=2)),
        "vector": unfitted,
    }

    @cached_property
    def model(self) -> Any:
        """The backbone, with its forecast head."""
        torch.manual_seed(0)
        config = PatchTSTConfig(
            num_input_channels=1,  # any other number may come
            context_length=CONTEXT,
            patch_length=PATCH,
            patch_stride=PATCH,
            d_model=HIDDEN,
            num_attention_heads=2,
            num_hidden_layers=LAYERS,
            ffn_dim=2 * HIDDEN,
            prediction_length=OWN_STEPS,
            norm_type="layernorm",
            pooling_type=None,
        )
        model = PatchTSTForPrediction(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(std=0.05)
        return model.eval()

    @property
    def saved(self) -> Sequence[Any]:
        return [self.model]

    def write_task(self, repository: Path, name: str, tag: int, variant: str) -> Path:
        built = repository.parent / f"aside-{name}"
        repositories.build(built, self._recipe(variant, name=name, vfm=tag, backbone=BACKBONE))
        self._bounds(built / "1", variant)
        return built.rename(repository / name)

    def write_version(self, version: Path, name: str, variant: str) -> Path:
        return self._bounds(repositories.write_version(version, self._recipe(variant, name=name)), variant)

    def reference(self, version: Path) -> SeriesReference:
        return SeriesReference(self.path, version)

    def states(self, reference: Any, item: Any) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = reference.run(*reference.channels(item)).last_hidden_state.numpy()
        return found

    def _bounds(self, version: Path, variant: str) -> Path:
        if self.recipes[variant].decoder == "anomaly":
            save_file({"bounds": torch.linspace(40, 160, HORIZON)}, version / "confidence.safetensors")
        return version
