"""The encoders of text backbones: sections `encoder` of task.json, which the Task-API takes as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from fmplex_backend.decoders.head import Activation
from fmplex_backend.errors import TaskRefused
from fmplex_backend.families.spec import Input
from fmplex_backend.families.text_encoder.inputs import FEATURES, TEXT
from fmplex_backend.plugins import Options, make_plugin, with_weights
from fmplex_backend.section import CHECKED, PathInside

if TYPE_CHECKING:
    from fmplex_backend.families.text_encoder.encoders import CustomEncoder, LoadedEncoder, ProjectionLayers
    from fmplex_backend.families.text_encoder.tokenizer import TextTokenizer

GROUP = "fmplex.encoders"
MAX_LAYERS = 64
Width = Annotated[int, Field(ge=1)]
WEIGHTS = "encoder.safetensors"
MAX_TEMPLATE = 65_536  # characters of a prefix or a template: they are tokenised with every text


@dataclass(config=CHECKED, frozen=True)
class Text:
    """How texts become tokens: a prefix or a template, a cut-off, and windows for long ones.

    Args:
        prefix: e.g. "query: ".
        template: e.g. "Review: {text} It was"; excludes a prefix.
        max_length: tokens, specials included; the backbone's own by default.
        windows: how many windows of max_length a long text is read in; their vectors are averaged (with the pooling
            "max": the largest of each).
        overlap: tokens that neighbouring windows share.
    """

    prefix: str = ""
    template: str = "{text}"
    max_length: Annotated[int | None, Field(ge=4)] = None
    windows: Annotated[int, Field(ge=1, le=64)] = 1
    overlap: Annotated[int, Field(ge=0)] = 0

    kind: Literal["text"] = field(default="text", kw_only=True, repr=False)
    learns: ClassVar[Literal["nothing", "optionally", "always"]] = "nothing"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.template.count("{text}") != 1:
            raise ValueError(f"template must hold {{text}} once, {self.template!r} does not")
        if self.prefix and self.template != "{text}":
            raise ValueError("prefix and template exclude each other: put the prefix into the template")
        if len(self.prefix) + len(self.template) > MAX_TEMPLATE:
            raise ValueError(f"prefix and template may have {MAX_TEMPLATE} characters: shorten them")
        if self.overlap and (self.windows == 1 or self.max_length is None or self.overlap > self.max_length // 2):
            raise ValueError("overlap needs windows above 1 and may be at most half of max_length")
        return self

    @property
    def around(self) -> tuple[str, str]:
        """What stands before and after the text."""
        before, after = self.template.split("{text}")
        return self.prefix + before, after

    def reads(self) -> Input:
        return TEXT

    def size(self) -> int | None:
        return 1

    def load(self, directory: Path, tokenizer: TextTokenizer, width: int, placeholder: int) -> LoadedEncoder:
        """As the runtime calls it; raises TaskRefused where the backbone takes fewer tokens."""
        from fmplex_backend.families.text_encoder.tokenizer import TextTokens

        if problem := self.problem(tokenizer):
            raise TaskRefused(directory / "task.json", *problem)
        return TextTokens(tokenizer, self)

    def problem(self, tokenizer: TextTokenizer) -> tuple[str, str, str] | None:
        """What the backbone cannot read in this way: the field, what is wrong with it, and the remedy."""
        if self.max_length and self.max_length > tokenizer.max_length:
            return _too_long("encoder.max_length", self.max_length, tokenizer.max_length)
        if self._leaves_no_room(tokenizer):
            field = "encoder.prefix" if self.prefix else "encoder.template"
            reason = "it fills all tokens before the text begins: no text would be read"
            return field, reason, "Shorten it, or raise max_length"
        return None

    def _leaves_no_room(self, tokenizer: TextTokenizer) -> bool:
        before, _ = self.around
        if not before:
            return False
        windows = tokenizer.encode("", replace(self, prefix=before, template="{text}"), spans=False)
        longest = min(self.max_length or tokenizer.max_length, tokenizer.max_length)
        return len(windows) == self.windows and len(windows[-1].ids) >= longest


@dataclass(config=CHECKED, frozen=True)
class Projection:
    """Rows of numbers become `tokens` vectors of the backbone's embedding space, learned by `fit`.

    Args:
        features: numbers in a row; they are standardised by the training rows' mean and deviation.
        tokens: how many vectors a row becomes.
        hidden: widths of the hidden layers, each followed by `activation`.
    """

    features: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=1)] = 8
    hidden: Annotated[Sequence[Width], AfterValidator(tuple), Field(max_length=MAX_LAYERS)] = ()
    activation: Activation = "gelu"
    weights: PathInside = field(default=WEIGHTS, kw_only=True, repr=False)

    kind: Literal["projection"] = field(default="projection", kw_only=True, repr=False)
    learns: ClassVar[Literal["nothing", "optionally", "always"]] = "always"

    def reads(self) -> Input:
        return FEATURES

    def size(self) -> int | None:
        return self.features

    def make(self, width: int) -> ProjectionLayers:
        """The module, with weights as they are before training; `width` is that of the backbone's embeddings."""
        from fmplex_backend.families.text_encoder.encoders import ProjectionLayers

        return ProjectionLayers(self.features, self.tokens, self.hidden, self.activation, width)

    def load(self, directory: Path, tokenizer: TextTokenizer, width: int, placeholder: int) -> LoadedEncoder:
        """As the runtime calls it; raises TaskRefused."""
        if self.tokens > tokenizer.max_length:
            problem = _too_long("encoder.tokens", self.tokens, tokenizer.max_length)
            raise TaskRefused(directory / "task.json", *problem)
        from fmplex_backend.families.text_encoder.encoders import VectorEncoder, load_projection

        module = load_projection(partial(self.make, width), directory, self.weights)
        return VectorEncoder(module, tokenizer.max_length, placeholder)


@dataclass(config=CHECKED, frozen=True)
class PluginEncoder:
    """An encoder of an installed package: the entry point `name` in the group fmplex.encoders, made with `options`."""

    name: str
    options: Options = field(default_factory=dict)
    weights: PathInside = field(default=WEIGHTS, kw_only=True, repr=False)

    kind: Literal["plugin"] = field(default="plugin", kw_only=True, repr=False)
    learns: ClassVar[Literal["nothing", "optionally", "always"]] = "optionally"

    def reads(self) -> Input:
        return TEXT if self.make(1).takes == "TEXT" else FEATURES

    def size(self) -> int | None:
        module = self.make(1)
        return 1 if module.takes == "TEXT" else module.features

    def make(self, width: int, file: Path | str = "the encoder") -> CustomEncoder:
        """The package's module; raises TaskRefused that names `file`."""
        from fmplex_backend.families.text_encoder.encoders import CustomEncoder

        module = make_plugin(GROUP, CustomEncoder, self.name, self.options, file, width)
        if module.takes not in ("FEATURES", "TEXT"):
            raise TaskRefused(
                file, "encoder.name", f"{self.name!r} takes {module.takes!r}", "Set `takes` to FEATURES or TEXT"
            )
        return module

    def load(self, directory: Path, tokenizer: TextTokenizer, width: int, placeholder: int) -> LoadedEncoder:
        """As the runtime calls it; raises TaskRefused."""
        from fmplex_backend.families.text_encoder.encoders import VectorEncoder

        make = partial(self.make, width, directory / "task.json")
        module = with_weights(make, directory / self.weights, "encoder")
        return VectorEncoder(module, tokenizer.max_length, placeholder)


def _too_long(name: str, wanted: int, most: int) -> tuple[str, str, str]:
    return name, f"{wanted} is more than the backbone's {most} tokens", "Lower it"
