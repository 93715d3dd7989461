"""What a task's `task.json` and a backbone's `parameters` may say (design: the wire contract).

Pydantic checks them; `describe` turns its errors into one `Refused` that names file, field and remedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from fmplex_backend.errors import BackboneRefused, TaskRefused

Pooling = Literal["mean", "cls", "max"]
Activation = Literal["tanh", "gelu", "relu"]
Options = dict[str, str | int | float | bool | list[str]]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextEncoder(_Section):
    """How a task's text becomes tokens.

    A prefix ("query: ") or a template ("Review: {text} It was"), a cut-off in tokens, specials included, and how many
    windows of that length a longer text is read in, each beginning `overlap` tokens before the last one's end; their
    vectors are averaged (with pooling "max": the largest of each).
    """

    kind: Literal["text"] = "text"
    prefix: str = ""
    template: str = "{text}"
    max_length: int | None = Field(default=None, ge=4)
    windows: int = Field(default=1, ge=1, le=64)
    overlap: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> TextEncoder:
        if self.template.count("{text}") != 1:
            raise ValueError(f"template must hold {{text}} once, {self.template!r} does not")
        if self.prefix and self.template != "{text}":
            raise ValueError("prefix and template exclude each other: put the prefix into the template")
        if self.overlap and (self.windows == 1 or self.max_length is None or self.overlap > self.max_length // 2):
            raise ValueError("overlap needs windows above 1 and may be at most half of max_length")
        return self

    @property
    def around(self) -> tuple[str, str]:
        """What stands before and after the text."""
        before, after = self.template.split("{text}")
        return self.prefix + before, after


class _FromPackage(_Section):
    """What an installed package brings: `name` is its entry point."""

    kind: Literal["plugin"]
    name: str
    options: Options = {}


class Projection(_Section):
    """Numbers (FEATURES, [features]) become `tokens` vectors of the backbone's embedding space, read from `weights`.

    `hidden` are widths of layers between, `activation` follows each of these.
    """

    kind: Literal["projection"]
    features: int = Field(ge=1)
    tokens: int = Field(default=8, ge=1)
    hidden: list[int] = []
    activation: Activation = "gelu"
    weights: str = "encoder.safetensors"


class PluginEncoder(_FromPackage):
    """An encoder: an entry point in the group fmplex.encoders."""

    weights: str = "encoder.safetensors"


def _encoder_kind(value: Any) -> str:
    return str(value.get("kind", "text") if isinstance(value, Mapping) else getattr(value, "kind", ""))


Encoder = Annotated[
    Annotated[TextEncoder, Tag("text")]
    | Annotated[Projection, Tag("projection")]
    | Annotated[PluginEncoder, Tag("plugin")],
    Discriminator(_encoder_kind),
]


class PeftAdapter(_Section):
    """A PEFT directory inside the version directory."""

    kind: Literal["peft"] = "peft"
    path: str = "adapter"


class Embedding(_Section):
    """The pooled hidden state itself: EMBEDDING."""

    kind: Literal["embedding"]
    pooling: Pooling = "mean"
    normalize: bool = True


class _Head(_Section):
    """A head read from `weights`: linear layers, `weight`/`bias` or `0.weight`, `0.bias`, `1.weight`, ..."""

    weights: str = "decoder.safetensors"
    activation: Activation = "tanh"  # between layers, where there are several


class _PooledHead(_Head):
    pooling: Pooling = "mean"
    normalize: bool = False  # L2-normalise the pooled vector before the head


class _Labelled(_Section):
    labels: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _distinct(self) -> _Labelled:
        twice = {label for label in self.labels if self.labels.count(label) > 1}
        if twice:
            raise ValueError(f"labels must differ, these are given twice: {sorted(twice)}")
        return self


class Classification(_Labelled, _PooledHead):
    """One label of several: SCORES (softmax, [C]) and LABEL ([1])."""

    kind: Literal["classification"]


class MultiLabel(_Labelled, _PooledHead):
    """Any number of labels: SCORES (sigmoid, [C]) and LABEL ([C]: those over the threshold, best first, then "")."""

    kind: Literal["multi-label"]
    threshold: float = Field(default=0.5, ge=0, le=1)


class Regression(_PooledHead):
    """Numbers: SCORES ([outputs], the head's own values)."""

    kind: Literal["regression"]


class TokenClassification(_Labelled, _Head):
    """A label for every token: SCORES ([T, C]), LABEL ([T]) and OFFSETS ([T, 2], characters in the text)."""

    kind: Literal["token-classification"]


class Similarity(_Labelled):
    """Cosine to `vectors` ([labels, hidden]) of a safetensors file: SCORES ([labels]) and LABEL ([1])."""

    kind: Literal["similarity"]
    pooling: Pooling = "mean"
    weights: str = "decoder.safetensors"


class Plugin(_FromPackage):
    """A decoder: an entry point in the group fmplex.decoders."""

    weights: str = "decoder.safetensors"


Decoder = Annotated[
    Embedding | Classification | MultiLabel | Regression | TokenClassification | Similarity | Plugin,
    Field(discriminator="kind"),
]


class TrainedOn(_Section):
    """Which backbone the weights were trained for; `fingerprint` is `repository.fingerprint` of its files."""

    model: str
    fingerprint: str | None = None


class TaskConfig(_Section):
    """A version directory's `task.json`."""

    family: Literal["text-encoder"]
    description: str = ""
    backbone: TrainedOn | None = None
    encoder: Encoder = TextEncoder()
    adapter: PeftAdapter | None = None
    decoder: Decoder
    metrics: dict[str, float | int | str] = {}  # what was measured when it was trained; for people

    @model_validator(mode="after")
    def _tokens_of_one_text(self) -> TaskConfig:
        if self.decoder.kind == "token-classification":
            if not isinstance(self.encoder, TextEncoder):
                raise ValueError("encoder.kind: a token-classification task reads text, and needs the kind text")
            if self.encoder.windows > 1:
                raise ValueError("encoder.windows: a token-classification task reads one window; leave it at 1")
        return self


class BackboneConfig(_Section):
    """A backbone's `parameters` in config.pbtxt; every value is a string there."""

    model: str
    family: Literal["text-encoder"] = "text-encoder"
    runtime: Literal["torch"] = "torch"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    scheduler: Literal["bfq", "stfq", "fifo"] = "bfq"
    vfm_slots: int = Field(default=256, ge=1, le=16384)
    max_queue: int = Field(default=1024, ge=1)
    max_batch_tokens: int = Field(default=0, ge=0)  # 0: chosen by the runtime for its device
    max_length: int = Field(default=0, ge=0)  # tokens; 0: what the tokenizer says
    threads: int = Field(default=0, ge=0)  # intra-op threads; 0: the cores this process may use


_Model = TypeVar("_Model", bound=BaseModel)


def _problem(error: ValidationError) -> tuple[str, str]:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    if path[:1] == ["encoder"]:
        del path[1:2]  # the kind, which pydantic adds and the file has not there
    field = ".".join(path) or "(whole file)"
    return field, f"{first['msg'][0].lower()}{first['msg'][1:]} (got {str(first.get('input'))[:80]!r})"


def load_task_config(file: Path) -> TaskConfig:
    """Read a `task.json`; raises TaskRefused."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TaskRefused(
            file, "(whole file)", "there is no such file", "Every version directory needs a task.json"
        ) from None
    except (OSError, ValueError) as error:
        raise TaskRefused(file, "(whole file)", f"not readable as JSON: {error}", "Write it again, whole") from None
    try:
        return TaskConfig.model_validate(document)
    except ValidationError as error:
        field, problem = _problem(error)
        raise TaskRefused(file, field, problem, "docs/build-a-task.md lists the fields of task.json") from None


def load_backbone_config(file: Path, parameters: Mapping[str, str]) -> BackboneConfig:
    """Check a backbone's parameters (`file` is only for the message); raises BackboneRefused."""
    known = {name: value for name, value in parameters.items() if not name.isupper()}  # EXECUTION_ENV_PATH ...
    try:
        return BackboneConfig.model_validate(known)
    except ValidationError as error:
        field, problem = _problem(error)
        raise BackboneRefused(
            file, f"parameters.{field}", problem, "docs/serve.md lists the parameters of a backbone"
        ) from None
