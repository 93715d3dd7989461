"""Text encoders' entry in the contract test: all-MiniLM-L6-v2, every kind of decoder and adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
from family_cases import BACKBONE, Broken, FamilyCase, Fit
from peft import IA3Config
from reference import Reference
from sentences import mixture, sentence

from fmplex import (
    Backbone,
    Classifier,
    Embedder,
    LoRA,
    MultiLabel,
    Projection,
    Regressor,
    Similarity,
    Task,
    Text,
    TokenClassifier,
)
from testing import breaking, repositories
from testing.adapters import lora
from testing.models import minilm
from testing.repositories import Task as Recipe

EVERY_LINEAR = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
PATTERNS = {
    "rank_pattern": {"query": 3, "layer.2.attention.self.key": 20},
    "alpha_pattern": {"value": 64, "layer.4.attention.self.query": 1},
}


def ia3(*targets: str, feedforward: Sequence[str] = ()) -> IA3Config:
    """Random factors."""
    return IA3Config(
        target_modules=[*targets, *feedforward], feedforward_modules=list(feedforward), init_ia3_weights=False
    )


SERVED = (
    Recipe("none", 0, "embedding"),
    Recipe("none-head", 1, layers=3, options={"activation": "gelu", "pooling": "max"}),
    Recipe("lora1", 2, adapter=lora(1, "query")),
    Recipe("lora2", 3, "regression", adapter=lora(2, "value"), labels=5, options={"pooling": "cls"}),
    Recipe("lora4", 4, "multi-label", adapter=lora(4, "key", "output.dense"), labels=6),
    Recipe("lora8", 5, adapter=lora(8), labels=77, options={"normalize": True}),
    Recipe("lora8-too", 6, "embedding", adapter=lora(8), seed=6, options={"normalize": False, "pooling": "cls"}),
    Recipe("lora13", 7, "token-classification", adapter=lora(13, "intermediate.dense"), labels=9),
    Recipe("lora64", 8, adapter=lora(64, *EVERY_LINEAR), layers=2, options={"activation": "relu"}),
    Recipe("lora-dense", 9, "similarity", adapter=lora(16, "query", "dense"), labels=4),  # the pooler's too
    Recipe("patterns", 10, adapter=lora(8, "query", "key", "value", **PATTERNS)),
    Recipe("rslora", 11, adapter=lora(16, "query", "value", use_rslora=True)),
    Recipe("in-classifier", 12, adapter=lora(8, "query", "key"), classifier=True),
    Recipe("dora", 13, adapter=lora(8, use_dora=True)),
    Recipe("dora-too", 14, "token-classification", adapter=lora(4, "output.dense", use_dora=True), seed=14),
    Recipe("ia3", 15, adapter=ia3("key", "value", feedforward=["output.dense"])),
    Recipe("ia3-too", 16, "embedding", adapter=ia3("query"), seed=16),
    Recipe("prefixed", 17, adapter=lora(8), seed=17, encoder={"prefix": "query: ", "max_length": 24}),
    Recipe(
        "prefixed-tokens", 18, "token-classification", adapter=lora(8), encoder={"prefix": "tag é: ", "max_length": 16}
    ),
)
VERSIONS = (
    Recipe("version-lora", 0, seed=50, adapter=lora(8)),
    Recipe("version-deep", 0, seed=51, adapter=lora(16, "query", "output.dense"), layers=2),
    Recipe("version-prefix", 0, seed=52, adapter=lora(8), encoder={"prefix": "classify this text: "}),
    Recipe("version-plain", 0, seed=53),
    Recipe("version-dora", 0, seed=54, adapter=lora(8, use_dora=True), options={"pooling": "max"}),
    Recipe("version-short", 0, seed=55, adapter=lora(4), encoder={"max_length": 8}),
)
BROKEN = {
    case.name: Recipe(f"to-break-{case.name}", 0, adapter=case.adapter, parameters={"weight": "1.5"})
    for case in breaking.CASES
}

PRIZES = ["win a prize now", "free money, call today", "you have won a free holiday", "claim your cash prize"]
PLAIN = ["see you at lunch", "the meeting is at three", "thanks for the notes", "can you send the report"]
TEXTS = [f"{text}, {number}" for number in range(8) for text in (*PRIZES, *PLAIN)]
LABELS = ["spam" if text.split(",")[0] in {p.split(",")[0] for p in PRIZES} else "ham" for text in TEXTS]
ASKED = ["win a free prize", "lunch at three?", "call me", " ".join(["a long text"] * 30)]
NAMES = [f"{a} {b}".split() for a in ("Ada met", "Ben saw") for b in ("Cleo in Rome", "Dora at home")]
TAGS = [["B-P", "O", "B-P", "O", "B-L" if words[-1] == "Rome" else "O"] for words in NAMES]
FLOWERS = [[1000.0 + n, 7.0 + n / 100] for n in range(16)]


def fitting(decoder: Any, rows: Any, labels: Any, **parts: Any) -> Fit:
    """One epoch."""

    def fit(name: str, backbone: Backbone) -> Task:
        task = Task(name, backbone, decoder=decoder, **parts)
        task.fit(rows, labels, epochs=1, learning_rate=2e-3, progress=False)
        return task

    return fit


def unfitted(name: str, backbone: Backbone) -> Task:
    """An embedder has nothing to fit."""
    return Task(name, backbone, decoder=Embedder(), encoder=Text(prefix="query: "))


class TextEncoderCase(FamilyCase):
    """Checked against Transformers and PEFT, one text at a time."""

    family = "text-encoder"
    recipes: ClassVar = {recipe.name: recipe for recipe in (*SERVED, *VERSIONS, *BROKEN.values())}
    served = tuple(recipe.name for recipe in SERVED)
    adapted = frozenset(recipe.name for recipe in SERVED if recipe.adapter is not None)
    rivals = ("lora8", "none")
    versions = tuple(recipe.name for recipe in VERSIONS)
    items = mixture(26, seed=5, longest=120)
    short = tuple(sentence(12, seed) for seed in range(32))
    long = tuple(sentence(24, seed) for seed in range(256))
    longest = tuple(sentence(160, seed) for seed in range(32))
    broken: ClassVar = {case.name: Broken(BROKEN[case.name].name, case.spoil, case.says) for case in breaking.CASES}
    broken_versions = (
        "no-task-json",
        "task-json-cut",
        "unknown-decoder",
        "foreign",
        "head-nan",
        "head-narrow",
        "adapter-cut",
        "adapter-foreign",
        "adapter-kind",
    )
    fitted: ClassVar = {
        "head": fitting(Classifier(["ham", "spam"]), TEXTS, LABELS),
        "lora": fitting(Classifier(["ham", "spam"]), TEXTS, LABELS, adapter=LoRA(r=4)),
        "deep": fitting(Classifier(hidden=(16,), pooling="cls"), TEXTS, LABELS),
        "several": fitting(MultiLabel(threshold=0.3), TEXTS, [[label, "any"] for label in LABELS]),
        "number": fitting(Regressor(outputs=2), TEXTS, [[len(text) / 40, 1.0] for text in TEXTS]),
        "names": fitting(TokenClassifier(), NAMES * 4, TAGS * 4, adapter=LoRA(r=2)),
        "nearest": fitting(Similarity(), TEXTS, LABELS),
        "vector": unfitted,
        "flower": fitting(
            Classifier(), FLOWERS, ["long", "wide"] * 8, adapter=LoRA(r=2), encoder=Projection(2, hidden=(8,))
        ),
        "windows": fitting(Classifier(), TEXTS, LABELS, encoder=Text(max_length=16, windows=4, overlap=4)),
    }

    def write_backbone(self, repository: Path, name: str, max_batch_size: int) -> None:
        repositories.write_backbone(repository, name, max_batch_size=max_batch_size, threads="1")

    def write_task(self, repository: Path, name: str, tag: int, variant: str) -> Path:
        return repositories.write_task(
            repository, replace(self.recipes[variant], name=name, vfm=tag, backbone=BACKBONE)
        )

    def write_version(self, version: Path, name: str, variant: str) -> Path:
        return repositories.write_version(version, replace(self.recipes[variant], name=name))

    def reference(self, version: Path) -> Reference:
        return Reference(minilm(), version)

    def states(self, reference: Any, item: Any) -> npt.NDArray[Any]:
        states: npt.NDArray[Any] = reference.encode(reference.tokenizer(item)["input_ids"]).numpy()
        return states

    def asked(self, kind: str) -> Sequence[Any]:
        return FLOWERS[:3] if kind == "flower" else ASKED
