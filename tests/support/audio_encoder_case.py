"""Audio encoders' entry in the contract test: a small Whisper with random weights and a window of 8 seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

import soundfile
import torch
from audio_fixtures import RATE, TOKEN, clip, encoded, tiny_whisper, whole_states
from encoder_case import EncoderCase, adapter_elsewhere, broken_cases, to_break
from family_cases import Broken, Fit
from peft import PeftModel
from reference import HeadReference
from text_encoder_case import fitting, ia3
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperModel

from fmplex import AudioFile, AudioSamples, Backbone, Classifier, Embedder, LoRA, MultiLabel, Nearest, Task
from testing import breaking, repositories
from testing.adapters import lora, save_adapter
from testing.clients import Outputs
from testing.repositories import Task as Recipe

HIDDEN, LAYERS = 128, 6  # a pass takes many times as long as preparing its clips
MODULES = ("q_proj", "v_proj")
SILENCE = 1.0  # seconds


def recipe(name: str, tag: int, *arguments: Any, silence: float | None = None, **options: Any) -> Recipe:
    """A task on files."""
    encoder = {} if silence is None else {"silence": silence}
    reads = ("AUDIO_BYTES", "TYPE_STRING", (1,))
    more = {"family": "audio-encoder", "reads": reads, "truncates": False, "hidden": HIDDEN}
    return Recipe(name, tag, *arguments, encoder=encoder, **{**more, **options})


SERVED = (
    recipe("none", 0, "embedding"),
    recipe("none-head", 1, layers=3, options={"activation": "gelu", "pooling": "max"}),
    recipe("none-similar", 2, "similarity", labels=4),
    recipe("none-nearest", 3, "nearest", labels=5, options={"k": 1}),
    recipe("none-number", 4, "regression", labels=5),
    recipe("still-lora", 5, adapter=lora(8, *MODULES), silence=2.5, options={"normalize": True}),
    recipe("lora4", 6, "multi-label", adapter=lora(4, "fc1", "out_proj"), labels=6, options={"pooling": "max"}),
    recipe("lora8", 7, "embedding", adapter=lora(8, *MODULES), seed=7, options={"normalize": False}),
    recipe("dora", 8, adapter=lora(8, *MODULES, use_dora=True), silence=0),
    recipe("ia3", 9, adapter=ia3("k_proj", "v_proj", feedforward=["fc2"])),
)
VERSIONS = (
    recipe("version-lora", 0, seed=50, adapter=lora(8, *MODULES)),
    recipe("version-deep", 0, seed=51, adapter=lora(16, "q_proj", "fc1"), layers=2),
    recipe("version-plain", 0, seed=53),
    recipe("version-still", 0, seed=54, silence=2, options={"pooling": "max"}),
)
BROKEN = to_break(recipe, MODULES)
PROBLEMS = {
    "silence-below-none": (
        breaking.edit_json("task.json", encoder__silence=-1),
        ("1/task.json", "encoder.silence", "greater than or equal to 0", "docs/"),
    ),
    "no-class-token": (
        breaking.edit_json("task.json", decoder__pooling="cls"),
        ("1/task.json", "decoder.pooling", "no class token", "mean or max"),
    ),
    "adapter-elsewhere": adapter_elsewhere(8, HIDDEN),
}
BREAKABLE = {name: recipe(f"to-break-{name}", 0, adapter=lora(8, *MODULES)) for name in PROBLEMS}

LOW = [encoded(clip(seed, pitch=150)) for seed in range(16)]
HIGH = [encoded(clip(seed + 100, pitch=2500)) for seed in range(16)]
CLIPS, LABELS = [*LOW, *HIGH], ["low"] * 16 + ["high"] * 16


def unfitted(name: str, backbone: Backbone) -> Task:
    """An embedder has nothing to fit; it reads samples."""
    return Task(name, backbone, decoder=Embedder(pooling="max"), encoder=AudioSamples())


def odd_clips() -> list[bytes]:
    """Of all lengths, rates and formats."""
    seconds = [1 / RATE, 0.01, 0.02, 0.1, 0.15, 0.21, 0.4, 0.5, 0.77, 1.3, 2.2, 7.9]
    plain = [encoded(clip(seed, each)) for seed, each in enumerate(seconds)]
    flac = [encoded(clip(20 + seed, 0.3 + 0.1 * seed), kind="FLAC") for seed in range(4)]
    wide = [encoded(clip(40 + seed, 0.4), kind="WAV", subtype=kind) for seed, kind in enumerate(("PCM_24", "FLOAT"))]
    loud = [encoded(clip(50 + seed, 0.3) * 2**-seed) for seed in range(2)]
    return [*plain, *flac, *wide, *loud]


class AudioReference(HeadReference):
    """What a version must answer: transformers' extractor and encoder, and PEFT, on one clip alone, in float32."""

    def __init__(self, model: Path, version: Path) -> None:
        document = json.loads((version / "task.json").read_text(encoding="utf-8"))
        self._read_decoder(document, version)
        self.extractor = WhisperFeatureExtractor.from_pretrained(model)
        self.silence = (document.get("encoder") or {}).get("silence", SILENCE)
        self.model = WhisperModel.from_pretrained(model, dtype=torch.float32).encoder.eval()
        self.window = self.model.config.max_source_positions
        if adapter := document.get("adapter"):
            whole = PeftModel.from_pretrained(self.model, str(version / adapter.get("path", "adapter")))
            self.model = whole.eval()
        self._known: dict[bytes, Outputs] = {}

    def __call__(self, item: bytes) -> Outputs:
        """All outputs of a clip."""
        if item not in self._known:
            self._known[item] = self._pooled(self._normalised(self.pooled(item)))
        return self._known[item]

    def pooled(self, item: bytes) -> Tensor:
        """[h], of the clip's own tokens."""
        samples, rate = soundfile.read(BytesIO(item), dtype="float32")
        assert rate == RATE
        own = ceil(len(samples) / TOKEN)
        length = min(self.window, own + round(self.silence * RATE / TOKEN))
        states = whole_states(self.model, self.extractor, samples, length)[:own]
        return states.amax(dim=0) if self.decoder.get("pooling") == "max" else states.mean(dim=0)


class AudioEncoderCase(EncoderCase):
    """Checked against transformers and PEFT, one clip at a time."""

    family = "audio-encoder"
    recipes: ClassVar = {each.name: each for each in (*SERVED, *VERSIONS, *BROKEN.values(), *BREAKABLE.values())}
    served = tuple(each.name for each in SERVED)
    adapted = frozenset(each.name for each in SERVED if each.adapter is not None)
    rivals = ("lora8", "none")
    versions = tuple(each.name for each in VERSIONS)
    items = odd_clips()
    short = tuple(encoded(clip(200 + seed, 0.1)) for seed in range(32))
    long = tuple(encoded(clip(300 + seed, 2)) for seed in range(256))
    longest = tuple(encoded(clip(600 + seed, 7)) for seed in range(32))
    broken: ClassVar = broken_cases(BROKEN) | {
        name: Broken(BREAKABLE[name].name, spoil, says) for name, (spoil, says) in PROBLEMS.items()
    }
    broken_versions = ("no-task-json", "foreign", "head-nan", "adapter-cut", "silence-below-none")
    fitted: ClassVar[dict[str, Fit]] = {
        "head": fitting(Classifier(), CLIPS, LABELS),
        "lora": fitting(Classifier(["low", "high"], pooling="max"), CLIPS, LABELS, adapter=LoRA(r=4)),
        "several": fitting(MultiLabel(), CLIPS, [[label, "any"] for label in LABELS], encoder=AudioFile(silence=0)),
        "nearest": fitting(Nearest(k=3), CLIPS, LABELS),
        "samples": unfitted,
    }

    @cached_property
    def model(self) -> tuple[Any, Any]:
        """The whole model and its feature extractor."""
        return tiny_whisper(HIDDEN, LAYERS, deviation=0.07)

    @property
    def saved(self) -> Sequence[Any]:
        return self.model

    def reference(self, version: Path) -> AudioReference:
        return AudioReference(self.path, version)

    def asked(self, kind: str) -> Sequence[Any]:
        return [clip(seed, 0.25) for seed in range(4)] if kind == "samples" else self.items[:4]

    def _recipe(self, variant: str, **changes: Any) -> Recipe:
        """An adapter of the encoder alone: AutoModel has the decoder too."""
        found = super()._recipe(variant, **changes)
        if found.adapter is None:
            return found
        directory = self.path.parent / "adapters" / variant
        if not directory.is_dir():
            encoder = WhisperModel.from_pretrained(self.path, dtype=torch.float32).encoder
            save_adapter(directory, encoder, found.adapter, seed=found.seed, scale=repositories.ADAPTER_SCALE)
        return replace(found, adapter=directory)
