"""Vision encoders' entry in the contract test: a small DINOv2 with registers and random weights.

Its processor keeps the proportions of a picture, so that pictures of many shapes meet in a batch, and long ones cost
more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from encoder_case import EncoderCase, adapter_elsewhere, broken_cases, to_break
from family_cases import Broken, Fit
from peft import PeftModel
from reference import HeadReference
from text_encoder_case import fitting, ia3
from torch import Tensor
from transformers import AutoModel, Dinov2WithRegistersConfig, Dinov2WithRegistersModel
from transformers import BitImageProcessorPil as Processor
from vision_fixtures import SIDE, encoded, picture

from fmplex import (
    Backbone,
    Classifier,
    Embedder,
    ImageArray,
    ImageFile,
    LoRA,
    MultiLabel,
    Nearest,
    SegmentationMap,
    Task,
)
from testing import breaking
from testing.adapters import lora
from testing.clients import Outputs
from testing.repositories import Task as Recipe

HIDDEN, LAYERS, REGISTERS = 128, 6, 4  # a pass takes many times as long as preparing its pictures
MEDIUM = 48  # side of pictures, where a task has one of its own
PROPORTIONAL: dict[str, Any] = {"size": {"shortest_edge": SIDE}, "do_center_crop": False}
MODULES = ("q_proj", "v_proj")
MAP_SIZE = (9, 14)


def recipe(name: str, tag: int, *arguments: Any, side: int | None = None, **options: Any) -> Recipe:
    """A task on files."""
    encoder = {"side": side} if side else {}
    reads = ("IMAGE_BYTES", "TYPE_STRING", (1,))
    more = {"family": "vision-encoder", "reads": reads, "truncates": False, "hidden": HIDDEN}
    return Recipe(name, tag, *arguments, encoder=encoder, **{**more, **options})


SERVED = (
    recipe("none", 0, "embedding"),
    recipe("none-head", 1, layers=3, options={"activation": "gelu", "pooling": "max"}),
    recipe("none-cls", 2, "similarity", labels=4, options={"pooling": "cls"}),
    recipe("none-nearest", 3, "nearest", labels=5, options={"k": 1}),
    recipe("none-number", 4, "regression", labels=5),
    recipe("medium-lora", 5, adapter=lora(8, *MODULES), side=MEDIUM, options={"normalize": True}),
    recipe("lora4", 6, "multi-label", adapter=lora(4, "fc1", "o_proj"), labels=6, options={"pooling": "cls"}),
    recipe("lora8", 7, "embedding", adapter=lora(8, *MODULES), seed=7, options={"normalize": False}),
    recipe("dora", 8, adapter=lora(8, *MODULES, use_dora=True)),
    recipe("ia3", 9, adapter=ia3("k_proj", "v_proj", feedforward=["fc2"])),
    recipe("lora-depth", 10, "depth", adapter=lora(8, *MODULES), seed=10, labels=1, options={"size": MAP_SIZE}),
)
VERSIONS = (
    recipe("version-lora", 0, seed=50, adapter=lora(8, *MODULES)),
    recipe("version-deep", 0, seed=51, adapter=lora(16, "q_proj", "fc1"), layers=2),
    recipe("version-plain", 0, seed=53),
    recipe("version-large", 0, seed=54, side=MEDIUM, options={"pooling": "max"}),
)
BROKEN = to_break(recipe, MODULES)
PROBLEMS = {
    "side-too-small": (
        breaking.edit_json("task.json", encoder__side=2),
        ("1/task.json", "encoder.side", "greater than or equal to 8", "docs/"),
    ),
    "adapter-elsewhere": adapter_elsewhere(8, HIDDEN),
}
BREAKABLE = {name: recipe(f"to-break-{name}", 0, adapter=lora(8, *MODULES)) for name in PROBLEMS}

BRIGHT = [encoded(np.clip(picture(seed) // 3 + 150, 0, 255)) for seed in range(16)]
DARK = [encoded(picture(seed + 100) // 3) for seed in range(16)]
HALVES = np.repeat([[0] * 24 + [1] * 24], 40, axis=0).astype(np.uint8)  # of every picture
PICTURES, LABELS = [*BRIGHT, *DARK], ["bright"] * 16 + ["dark"] * 16


def unfitted(name: str, backbone: Backbone) -> Task:
    """An embedder has nothing to fit; it reads pixels."""
    return Task(name, backbone, decoder=Embedder(pooling="cls"), encoder=ImageArray())


def odd_pictures() -> list[bytes]:
    """Of all shapes, modes and formats."""
    shapes = [(1, 1), (1, 9), (3, 3), (3, 60), (400, 60), (32, 32), (36, 36), (64, 48), (300, 200), (31, 33)]
    plain = [encoded(picture(seed, *shape)) for seed, shape in enumerate(shapes)]
    jpeg = [encoded(picture(20 + seed, 50, 70), "JPEG", quality=60 + 5 * seed) for seed in range(5)]
    webp = [encoded(picture(40 + seed, 60, 40), "WEBP", lossless=bool(seed % 2)) for seed in range(5)]
    return [*plain, *jpeg, *webp]


class VisionReference(HeadReference):
    """What a version must answer: transformers' processor and model, and PEFT, on one picture alone, in float32."""

    def __init__(self, model: Path, version: Path) -> None:
        document = json.loads((version / "task.json").read_text(encoding="utf-8"))
        self._read_decoder(document, version)
        self.processor = Processor.from_pretrained(model)
        self.size = {"shortest_edge": (document.get("encoder") or {}).get("side") or SIDE}
        self.model = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
        if adapter := document.get("adapter"):
            whole = PeftModel.from_pretrained(self.model, str(version / adapter.get("path", "adapter")))
            self.model = whole.eval()
        self._known: dict[bytes, Outputs] = {}

    def __call__(self, item: bytes) -> Outputs:
        """All outputs of a picture."""
        if item not in self._known:
            self._known[item] = self._answer(item)
        return self._known[item]

    def _answer(self, item: bytes) -> Outputs:
        return self._map(item) if self.decoder["kind"] == "depth" else self._pooled(self._normalised(self.pooled(item)))

    def _map(self, item: bytes) -> Outputs:
        """Of the whole picture, resized to a square by the processor."""
        side = self.size["shortest_edge"]
        patches = self._states(item, {"height": side, "width": side})[1 + REGISTERS :]
        grid = self._linear(patches).reshape(1, side // 8, side // 8, 1).permute(0, 3, 1, 2)
        size = tuple(self.decoder["size"])
        return {"MAP": torch.nn.functional.interpolate(grid, size=size, mode="bilinear")[0, 0].numpy()}

    def _states(self, item: bytes, size: dict[str, int]) -> Tensor:
        """[t, h]; patches come after the class token and the registers."""
        from transformers.image_utils import load_image

        found = self.processor(
            images=load_image(_image(item)), input_data_format="channels_last", return_tensors="pt", size=size
        )
        with torch.no_grad():
            states: Tensor = self.model(pixel_values=found["pixel_values"]).last_hidden_state[0]
        return states

    def pooled(self, item: bytes) -> Tensor:
        """[h]."""
        states = self._states(item, self.size)
        patches = states[1 + REGISTERS :]
        pooling = self.decoder.get("pooling", "mean")
        return {"mean": patches.mean(dim=0), "max": patches.amax(dim=0), "cls": states[0]}[pooling]


def _image(item: bytes) -> Any:
    from io import BytesIO

    from PIL import Image

    return Image.open(BytesIO(item))


class VisionEncoderCase(EncoderCase):
    """Checked against transformers and PEFT, one picture at a time."""

    family = "vision-encoder"
    recipes: ClassVar = {each.name: each for each in (*SERVED, *VERSIONS, *BROKEN.values(), *BREAKABLE.values())}
    served = tuple(each.name for each in SERVED)
    adapted = frozenset(each.name for each in SERVED if each.adapter is not None)
    rivals = ("lora8", "none")
    versions = tuple(each.name for each in VERSIONS)
    items = odd_pictures()
    short = tuple(encoded(picture(200 + seed, SIDE, SIDE)) for seed in range(32))
    long = tuple(encoded(picture(300 + seed, SIDE, 4 * SIDE), "JPEG", quality=50) for seed in range(256))
    longest = tuple(encoded(picture(600 + seed, SIDE, 12 * SIDE)) for seed in range(32))
    broken: ClassVar = broken_cases(BROKEN) | {
        name: Broken(BREAKABLE[name].name, spoil, says) for name, (spoil, says) in PROBLEMS.items()
    }
    broken_versions = ("no-task-json", "foreign", "head-nan", "adapter-cut", "side-too-small")
    fitted: ClassVar[dict[str, Fit]] = {
        "head": fitting(Classifier(), PICTURES, LABELS),
        "lora": fitting(Classifier(["bright", "dark"], pooling="cls"), PICTURES, LABELS, adapter=LoRA(r=4)),
        "several": fitting(
            MultiLabel(), PICTURES, [[label, "any"] for label in LABELS], encoder=ImageFile(side=MEDIUM)
        ),
        "nearest": fitting(Nearest(k=3), PICTURES, LABELS),
        "map": fitting(SegmentationMap(["left", "right"], size=16), PICTURES, [HALVES] * len(PICTURES)),
        "pixels": unfitted,
    }

    @cached_property
    def model(self) -> tuple[Any, Any]:
        """The backbone and its processor."""
        torch.manual_seed(0)
        config = Dinov2WithRegistersConfig(
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=8,
            num_register_tokens=REGISTERS,
        )
        model = Dinov2WithRegistersModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(std=0.07)
        return model.eval(), Processor(**PROPORTIONAL)

    @property
    def saved(self) -> Sequence[Any]:
        return self.model

    def reference(self, version: Path) -> VisionReference:
        return VisionReference(self.path, version)

    def asked(self, kind: str) -> Sequence[Any]:
        return [picture(seed) for seed in range(4)] if kind == "pixels" else self.items[:4]
