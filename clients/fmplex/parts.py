"""What a task is made of: an encoder before the backbone, an adapter inside it, a decoder after it.

Each is plain data, and says what its section of task.json is. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from fmplex.errors import TaskProblem
from fmplex_backend import config as cfg


@dataclass(frozen=True, slots=True)
class _FromPackage:
    """A part of an installed package, by the name of its entry point."""

    name: str
    options: cfg.Options = field(default_factory=dict)


# -- before


@dataclass(frozen=True, slots=True)
class Text:
    """How texts become tokens: a prefix or a template, a cut-off, and windows for long ones.

    Args:
        prefix: e.g. "query: ".
        template: e.g. "Review: {text} It was", in the place of a prefix.
        max_length: tokens, specials included; the backbone's own by default.
        windows: how many windows of max_length a long text is read in; their vectors are averaged.
        overlap: tokens that neighbouring windows share.
    """

    prefix: str = ""
    template: str = "{text}"
    max_length: int | None = None
    windows: int = 1
    overlap: int = 0

    def section(self) -> cfg.TextEncoder:
        """Of task.json."""
        return cfg.TextEncoder(
            prefix=self.prefix,
            template=self.template,
            max_length=self.max_length,
            windows=self.windows,
            overlap=self.overlap,
        )


@dataclass(frozen=True, slots=True)
class Projection:
    """Rows of numbers become `tokens` vectors of the backbone's embedding space, learned by `fit`.

    Args:
        features: numbers of a row; they are standardised as the training rows are.
        tokens: how many vectors the backbone reads.
        hidden: widths of layers between, each followed by `activation`.
    """

    features: int
    tokens: int = 8
    hidden: Sequence[int] = ()
    activation: cfg.Activation = "gelu"

    def section(self) -> cfg.Projection:
        """Of task.json."""
        return cfg.Projection(
            kind="projection",
            features=self.features,
            tokens=self.tokens,
            hidden=list(self.hidden),
            activation=self.activation,
        )


@dataclass(frozen=True, slots=True)
class PluginEncoder(_FromPackage):
    """An encoder of an installed package, by the name of its entry point in the group fmplex.encoders."""

    def section(self) -> cfg.PluginEncoder:
        """Of task.json."""
        return cfg.PluginEncoder(kind="plugin", name=self.name, options=self.options)


Encoder = Text | Projection | PluginEncoder


def encoder_of(section: cfg.Encoder) -> Encoder:
    """A task.json's encoder section -> the part."""
    kinds: dict[str, type[Any]] = {"text": Text, "projection": Projection, "plugin": PluginEncoder}
    known = section.model_dump(exclude={"kind", "weights"})
    if section.kind == "projection":
        known["hidden"] = tuple(known["hidden"])
    part: Encoder = kinds[section.kind](**known)
    return part


# -- inside


@dataclass(frozen=True, slots=True)
class LoRA:
    """Low-rank adaptation (Hu et al. 2021), as PEFT does it.

    Args:
        r: rank.
        alpha: scale times rank; twice the rank by default.
        targets: names of Linear modules, "all-linear", or "auto" for PEFT's choice for the architecture.
        rslora: scale by 1/sqrt(r) (Kalajdzievski 2023).
        rank_pattern: other ranks by module name; alpha_pattern likewise.
    """

    r: int = 8
    alpha: int | None = None
    targets: str | Sequence[str] = "auto"
    dropout: float = 0.0
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    dora: ClassVar[bool] = False

    def peft_config(self, model_type: str) -> Any:
        """PEFT's."""
        from peft import LoraConfig

        if not 1 <= self.r <= 512:
            raise TaskProblem(f"rank {self.r} is not between 1 and 512. Choose one that is, e.g. LoRA(r=8)")
        return LoraConfig(
            r=self.r,
            lora_alpha=2 * self.r if self.alpha is None else self.alpha,
            target_modules=_targets(self.targets, "LORA", model_type),
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            use_dora=self.dora,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            bias="none",
        )


@dataclass(frozen=True, slots=True)
class DoRA(LoRA):
    """Weight-decomposed LoRA (Liu et al. 2024). It cannot share a matrix product with other tasks' adapters."""

    dora: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class IA3:
    """Learned rescaling (Liu et al. 2022).

    Args:
        targets: names of Linear modules, or "auto".
        feedforward: those of them whose input is scaled, not their output.
    """

    targets: str | Sequence[str] = "auto"
    feedforward: Sequence[str] = ()

    def peft_config(self, model_type: str) -> Any:
        """PEFT's."""
        from peft import IA3Config
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD

        targets = _targets(self.targets, "IA3", model_type)
        auto = self.targets == "auto"
        inner = FEEDFORWARD.get(model_type, []) if auto else list(self.feedforward)
        return IA3Config(target_modules=targets, feedforward_modules=inner)


@dataclass(frozen=True, slots=True)
class Pretrained:
    """An adapter that exists: a directory that `save_pretrained` wrote, or a hub id."""

    source: str | Path


Adapter = LoRA | IA3 | Pretrained


def _targets(wanted: str | Sequence[str], kind: str, model_type: str) -> str | list[str]:
    from peft.utils import constants

    if not isinstance(wanted, str):
        return list(wanted)
    if wanted != "auto":
        return wanted if wanted == "all-linear" else [wanted]
    known: Mapping[str, Sequence[str]] = getattr(constants, f"TRANSFORMERS_MODELS_TO_{kind}_TARGET_MODULES_MAPPING")
    if model_type not in known:
        raise TaskProblem(
            f"PEFT has no default modules for {kind} in a {model_type}. Name them: LoRA(targets=['query', 'value']), "
            "or targets='all-linear'"
        )
    return list(known[model_type])


# -- after


@dataclass(frozen=True, slots=True)
class Classifier:
    """One label of several. `hidden` are widths of layers between the backbone and the scores."""

    labels: Sequence[str] = ()
    hidden: Sequence[int] = ()
    activation: cfg.Activation = "tanh"
    pooling: cfg.Pooling = "mean"
    normalize: bool = False
    dropout: float = 0.1

    kind: ClassVar[str] = "classification"

    def section(self) -> dict[str, Any]:
        """Of task.json."""
        return {
            "kind": self.kind,
            "labels": list(self.labels),
            "activation": self.activation,
            "pooling": self.pooling,
            "normalize": self.normalize,
        }


@dataclass(frozen=True, slots=True)
class MultiLabel(Classifier):
    """Any number of labels: those whose probability reaches the threshold."""

    threshold: float = 0.5

    kind: ClassVar[str] = "multi-label"

    def section(self) -> dict[str, Any]:
        """Of task.json."""
        return Classifier.section(self) | {"threshold": self.threshold}


@dataclass(frozen=True, slots=True)
class Regressor:
    """`outputs` numbers."""

    outputs: int = 1
    hidden: Sequence[int] = ()
    activation: cfg.Activation = "tanh"
    pooling: cfg.Pooling = "mean"
    normalize: bool = False
    dropout: float = 0.1

    kind: ClassVar[str] = "regression"
    labels: ClassVar[Sequence[str]] = ()

    def section(self) -> dict[str, Any]:
        """Of task.json."""
        return {
            "kind": self.kind,
            "activation": self.activation,
            "pooling": self.pooling,
            "normalize": self.normalize,
        }


@dataclass(frozen=True, slots=True)
class TokenClassifier:
    """A label for every token, e.g. BIO tags of names; O comes first."""

    labels: Sequence[str] = ()
    hidden: Sequence[int] = ()
    activation: cfg.Activation = "tanh"
    dropout: float = 0.1

    kind: ClassVar[str] = "token-classification"
    pooling: ClassVar[str] = "tokens"
    normalize: ClassVar[bool] = False

    def section(self) -> dict[str, Any]:
        """Of task.json."""
        return {"kind": self.kind, "labels": list(self.labels), "activation": self.activation}


@dataclass(frozen=True, slots=True)
class Embedder:
    """The pooled vector itself. It has nothing to fit."""

    pooling: cfg.Pooling = "mean"
    normalize: bool = True

    kind: ClassVar[str] = "embedding"
    labels: ClassVar[Sequence[str]] = ()

    def section(self) -> dict[str, Any]:
        """Of task.json."""
        return {"kind": self.kind, "pooling": self.pooling, "normalize": self.normalize}


@dataclass(frozen=True, slots=True)
class Similarity:
    """The nearest of the labels' mean vectors; `fit` takes the means of at most `per_label` texts each."""

    labels: Sequence[str] = ()
    pooling: cfg.Pooling = "mean"
    per_label: int = 64

    kind: ClassVar[str] = "similarity"
    normalize: ClassVar[bool] = True

    def section(self) -> dict[str, Any]:
        """Of task.json."""
        return {"kind": self.kind, "labels": list(self.labels), "pooling": self.pooling}


@dataclass(frozen=True, slots=True)
class Plugin(_FromPackage):
    """A decoder of an installed package, by the name of its entry point in the group fmplex.decoders."""

    kind: ClassVar[str] = "plugin"

    @property
    def labels(self) -> Sequence[str]:
        """Those in its options, if it has some."""
        labels = self.options.get("labels", [])
        return labels if isinstance(labels, list) else []

    def section(self) -> dict[str, Any]:
        """Of task.json."""
        return {"kind": self.kind, "name": self.name, "options": self.options}


Decoder = Classifier | Regressor | TokenClassifier | Embedder | Similarity | Plugin

BY_KIND: dict[str, type[Any]] = {
    each.kind: each for each in (Classifier, MultiLabel, Regressor, TokenClassifier, Embedder, Similarity, Plugin)
}


def decoder_of(section: Any, *, outputs: int = 1, hidden: Sequence[int] = ()) -> Decoder:
    """A task.json's decoder section -> the part; the head's file knows the widths of its layers."""
    kind = BY_KIND[section.kind]
    taken = {each.name for each in fields(kind)}
    known = {name: value for name, value in section if name in taken}
    if section.kind in ("classification", "multi-label", "regression", "token-classification"):
        known["hidden"] = tuple(hidden)
    if section.kind == "regression":
        known["outputs"] = outputs
    part: Decoder = kind(**known)
    return part
