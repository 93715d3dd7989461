"""From a task's parts and labelled rows to a `Fit`: what is checked, encoded, split and weighed before training.

What cannot be fitted is said before the first step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fmplex import data, heads
from fmplex.adapters import AdapterState, fresh
from fmplex.backbone import Backbone
from fmplex.checkpoints import Checkpoint
from fmplex.errors import TaskProblem
from fmplex.features import WORDS, Features
from fmplex.inputs import Columns, Inputs, rows_of
from fmplex.parts import (
    IA3,
    Adapter,
    Classifier,
    Decoder,
    Embedder,
    Encoder,
    LoRA,
    Plugin,
    Projection,
    Regressor,
    Similarity,
    Text,
    TokenClassifier,
)
from fmplex.progress import Progress
from fmplex.state import History
from fmplex.training import Examples, Fit, Settings, split

RATES = {"IA3": 5e-3, "head": 1e-3}  # learning rates by what is fitted; LORA_RATE for all else
LORA_RATE = 1e-3

Which = Literal["both", "adapter", "decoder", "encoder"]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What training leaves: an adapter, the decoder's and the encoder's tensors as their files have them."""

    adapter: AdapterState | None = None
    head: dict[str, Tensor] = field(default_factory=dict)
    encoder: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class How:
    """What is fitted, and around it: columns of validation files, the checkpoint, a bar."""

    parts: Which
    class_weights: str | Mapping[str, float] | None
    text: Columns
    label: str
    checkpoint: Path | None
    progress: bool


@dataclass
class Fitting:
    """A task's parts; `run` leaves the decoder with its labels, what was fitted, and notes for task.json."""

    name: str
    backbone: Backbone
    encoder: Encoder
    adapter: Adapter | None
    decoder: Decoder
    fitted: Fitted
    seed: int = 0
    metrics: dict[str, float | int | str] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> Inputs:
        """The encoder, with its weights if it has some."""
        return Inputs(self.encoder, self.backbone, self.fitted.encoder, self.seed)

    def run(self, rows: data.Rows, validation: Any, settings: Settings, how: How) -> History:
        """Fit."""
        self._check_fittable(how.parts)
        self._learn_labels(rows)
        examples = self._examples(rows)
        training, held = self._split(rows, examples, validation, settings, how.text, how.label)
        if not self.fitted.encoder:
            self.inputs.observe(training.encoded)
        if isinstance(self.decoder, Similarity):
            return self._fit_similarity(training, self.decoder)
        weights = self._class_weights(how.class_weights, training)
        fit = self._fitting(how.parts, settings, training, held, weights, how.progress)
        if how.checkpoint is not None:
            fit.checkpoint = Checkpoint(how.checkpoint, self._digest(rows, settings, how.parts))
        history = fit.run()
        adapter = AdapterState.of(fit.features.model) if self.adapter is not None else None
        self.fitted = Fitted(adapter, heads.tensors_of(fit.head.module), self.inputs.tensors())
        self.metrics = {"train_rows": len(training), "seed": settings.seed} | history.notes()
        return history

    def _fit_similarity(self, training: Examples, decoder: Similarity) -> History:
        missing = set(range(len(decoder.labels))) - set(training.targets)
        if missing:
            names = ", ".join(decoder.labels[number] for number in sorted(missing))
            raise TaskProblem(f"there is no text for the labels {names}. Give some, or leave the labels out")
        bare, runtime = self.backbone.for_training(), self.backbone.runtime
        model = self.fitted.adapter.around(bare).eval() if self.fitted.adapter else bare
        features = Features(model, model, decoder.pooling, runtime.pad, runtime.device, self.inputs.module)
        vectors = features.fixed(training.encoded).cpu()
        head = heads.prototypes(vectors, training.targets, decoder.labels, decoder.per_label)
        self.fitted, self.metrics = replace(self.fitted, head=head), {"train_rows": len(training)}
        return History()

    def _check_fittable(self, which: Which) -> None:
        if which not in ("both", "adapter", "decoder", "encoder"):
            raise TaskProblem(f"parts is {which!r}; it must be both, adapter, decoder or encoder")
        if which == "encoder" and isinstance(self.encoder, Text):
            raise TaskProblem("a text encoder has no weights to fit. Fit the adapter, the decoder, or both")
        if which == "adapter" and self.adapter is None:
            raise TaskProblem("the task has no adapter to fit. Attach one: task.attach('adapter', LoRA(r=8))")
        if isinstance(self.decoder, Embedder):
            raise TaskProblem(
                "an embedding has nothing to fit to labels. Fit a Classifier or a Similarity, or save it as it is"
            )
        if which in ("adapter", "encoder") and not self.fitted.head:
            raise TaskProblem(f"the decoder is not fitted yet, and fits together with the {which}. Say parts='both'")
        if isinstance(self.decoder, TokenClassifier) and not isinstance(self.encoder, Text):
            raise TaskProblem("a token-classification task reads text. Leave its encoder out, or choose a Classifier")
        fits_encoder = which == "both" and not isinstance(self.decoder, Similarity)
        if isinstance(self.encoder, Projection) and not self.fitted.encoder and not fits_encoder:
            raise TaskProblem("the encoder is not fitted yet. Fit it with a decoder that learns, and parts='both'")

    def _learn_labels(self, rows: data.Rows) -> None:
        decoder = self.decoder
        if isinstance(decoder, (Classifier, TokenClassifier, Similarity)) and not decoder.labels:
            self.decoder = replace(decoder, labels=data.labels_in(decoder.kind, rows))

    def _examples(self, rows: data.Rows) -> Examples:
        if isinstance(self.decoder, Plugin):
            targets: list[Any] = list(rows.labels)
        else:
            outputs = self.decoder.outputs if isinstance(self.decoder, Regressor) else 1
            targets = data.targets(self.decoder.kind, self.decoder.labels, rows, outputs)
        encoded = self.inputs.encoded(rows, by_word=self.decoder.kind == "token-classification")
        if rows.words and self.decoder.kind == "token-classification":
            targets = [
                [number if word >= 0 else data.IGNORED for number, word in zip(row, each.words, strict=True)]
                for row, each in zip(targets, encoded, strict=True)
            ]
            kept = [place for place, each in enumerate(encoded) if any(word >= 0 for word in each.words)]
            return Examples(encoded, targets).pick(kept)
        return Examples(encoded, targets)

    def _split(
        self, rows: data.Rows, examples: Examples, validation: Any, settings: Settings, text: Columns, label: str
    ) -> tuple[Examples, Examples | None]:
        if validation is None:
            return examples, None
        if isinstance(validation, float):
            whole = len(examples) == len(rows) and self.decoder.kind in ("classification", "similarity")
            groups = [str(value) for value in rows.labels] if whole else [""] * len(examples)
            training, held = split(len(examples), validation, groups, settings.seed)
            return examples.pick(training), examples.pick(held)
        own = isinstance(validation, tuple) and len(validation) == 2
        given, labels = validation if own else (validation, None)
        other = rows_of(self.encoder, given, labels, text, label)
        return examples, self._examples(other)

    def _fitting(
        self,
        which: Which,
        settings: Settings,
        training: Examples,
        held: Examples | None,
        weights: Tensor | None,
        progress: bool,
    ) -> Fit:
        runtime, fitted = self.backbone.runtime, self.fitted.adapter
        model = None
        named: dict[str, Any] = {}
        if self.adapter is not None:
            model = fitted.around(self.backbone.for_training()) if fitted else self._fresh(settings)
            model.eval()
            for name, module in model.named_modules():
                module.train("lora_dropout" in name)
            if which in ("both", "adapter"):
                named = {f"adapter.{name}": each for name, each in model.named_parameters() if each.requires_grad}
        if self.inputs.module is not None and which in ("both", "encoder"):
            self.inputs.module.requires_grad_(True)
            named |= {f"encoder.{name}": each for name, each in self.inputs.module.named_parameters()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            head = heads.trainable(self.decoder, self.backbone.hidden, weights)
        if self.fitted.head and self._head_fits(head):
            heads.fill(head.module, self.fitted.head)
        head.module.to(runtime.device)
        adapted = model is not None and (fitted or which in ("decoder", "encoder"))
        fixed = model if adapted else self.backbone.for_training()
        pooling = WORDS if self.decoder.kind == "token-classification" else self._pooling(head)
        return Fit(
            Features(fixed, model or fixed, pooling, runtime.pad, runtime.device, self.inputs.module),
            head,
            named,
            train_head=which in ("both", "decoder"),
            warm=not self.fitted.head,
            rate=settings.learning_rate or self._rate(named),
            settings=settings,
            training=training,
            validation=held,
            progress=Progress(self.name, shown=progress),
        )

    def _fresh(self, settings: Settings) -> Any:
        assert isinstance(self.adapter, (LoRA, IA3))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return fresh(self.adapter, self.backbone)

    def _head_fits(self, head: heads.Head | heads.PluginHead) -> bool:
        own = heads.tensors_of(head.module)
        return {name: each.shape for name, each in own.items()} == {
            n: each.shape for n, each in self.fitted.head.items()
        }

    def _pooling(self, head: heads.Head | heads.PluginHead) -> str:
        return head.module.pooling if isinstance(head, heads.PluginHead) else str(self.decoder.pooling)  # type: ignore[union-attr]

    def _rate(self, named: Mapping[str, Any]) -> float:
        if not named:
            return RATES["head"]
        return RATES["IA3"] if isinstance(self.adapter, IA3) else LORA_RATE

    def _class_weights(self, wanted: str | Mapping[str, float] | None, examples: Examples) -> Tensor | None:
        if wanted is None:
            return None
        labels = list(self.decoder.labels)
        if self.decoder.kind not in ("classification", "multi-label", "token-classification"):
            raise TaskProblem(f"class_weights do nothing for a {self.decoder.kind} decoder. Leave them out")
        if isinstance(wanted, str):
            if wanted != "balanced":
                raise TaskProblem(f"class_weights is {wanted!r}; it must be 'balanced' or a weight by label")
            return _balanced(self.decoder.kind, len(labels), examples)
        unknown = set(wanted) - set(labels)
        if unknown:
            raise TaskProblem(f"class_weights names {', '.join(sorted(unknown))}, the labels are {', '.join(labels)}")
        return torch.tensor([float(wanted.get(label, 1.0)) for label in labels])

    def _digest(self, rows: data.Rows, settings: Settings, which: str) -> str:
        pipeline = {"encoder": repr(self.encoder), "adapter": repr(self.adapter), "decoder": repr(self.decoder)}
        about = {
            "settings": asdict(settings),
            "parts": which,
            "backbone": self.backbone.runtime.fingerprint,
            **pipeline,
        }
        sha = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
        for text, label in zip(rows.texts, rows.labels, strict=True):
            sha.update(f"{text}\0{label}\0".encode())
        return sha.hexdigest()


def settings_of(given: Mapping[str, Any]) -> Settings:
    """Checked; raises TaskProblem where one is unknown or out of range."""
    try:
        settings = Settings(**given)
    except TypeError:
        known = ", ".join(Settings.__dataclass_fields__)
        unknown = ", ".join(sorted(set(given) - set(Settings.__dataclass_fields__)))
        raise TaskProblem(f"fit knows no {unknown}. Its settings are {known}") from None
    settings.check()
    return settings


def _balanced(kind: str, labels: int, examples: Examples) -> Tensor:
    """Each label as heavy as any other in sum; of several labels, the weight of what is there against what is not."""
    if kind == "multi-label":
        flags = np.array(examples.targets)
        present = flags.sum(axis=0)
        return torch.tensor((len(flags) - present) / np.maximum(present, 1), dtype=torch.float32).clamp(1.0, 100.0)
    flat = np.array([n for each in examples.targets for n in (each if isinstance(each, list) else [each])])
    counts = np.bincount(flat[flat >= 0], minlength=labels)
    return torch.tensor(counts.sum() / (labels * np.maximum(counts, 1)), dtype=torch.float32)
