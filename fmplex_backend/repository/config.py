"""A version's task.json and a backbone's parameters, read and checked by the family they name.

Pydantic checks them; an error becomes one `Refused` that names file, field and remedy.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, create_model, model_validator

from fmplex_backend import families
from fmplex_backend.errors import BackboneRefused, TaskRefused
from fmplex_backend.files import read_json, refused
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.section import FROM_FILE, kind_given

NO_OBJECT = ("model_type", "model_attributes_type", "dataclass_type", "dict_type", "mapping_type")  # pydantic's


class TrainedOn(BaseModel):
    """Which backbone the weights were trained for; `fingerprint` is `fmplex_backend.fingerprint` of its files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    fingerprint: str | None = None


class TaskConfig(BaseModel):
    """A version directory's `task.json`. The family defines its sections: see `config_of`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    family: str
    description: str = ""
    backbone: TrainedOn | None = None
    encoder: Any
    adapter: Any = None
    decoder: Any
    metrics: dict[str, float | int | str] = {}  # what was measured when it was trained; for people

    @model_validator(mode="after")
    def _consistent(self) -> TaskConfig:
        families.family(self.family).check(self)
        return self


@cache
def config_of(family: str) -> type[TaskConfig]:
    """TaskConfig with the sections of a family; raises KeyError where there is none of that name."""
    spec = families.family(family)
    default = spec.encoders[0]
    made: type[TaskConfig] = create_model(
        "TaskConfig",
        __base__=TaskConfig,
        encoder=(_one_of(spec.encoders, default=families.kind_of(default)), default()),
        adapter=(_one_of(spec.adapters) | None if spec.adapters else None, None),
        decoder=(_one_of(spec.decoders), ...),
    )
    return made


def _one_of(sections: Sequence[type[Any]], default: str = "") -> Any:
    """The section that `kind` names; with a default, `kind` may be left out."""
    if len(sections) == 1:
        return sections[0]
    if not default:
        return Annotated[Union[tuple(sections)], Field(discriminator="kind")]  # noqa: UP007 - made at run time
    tagged = [Annotated[section, Tag(families.kind_of(section))] for section in sections]
    return Annotated[Union[tuple(tagged)], Discriminator(lambda value: kind_given(value) or default)]  # noqa: UP007


def load_task_config(file: Path) -> TaskConfig:
    """Read a `task.json`; raises TaskRefused."""
    try:
        document = read_json(file)
    except OSError as error:
        raise refused(file, error, missing="Every version directory needs a task.json") from None
    except ValueError as error:
        raise TaskRefused(file, "(whole file)", f"not readable as JSON: {error}", "Write it again, whole") from None
    remedy = "docs/build-a-task.md lists the fields of task.json"
    name = document.get("family") if isinstance(document, dict) else None
    if isinstance(name, str) and name not in families.names():
        raise TaskRefused(file, "family", _no_family(name), remedy)
    try:
        kind = config_of(name) if isinstance(name, str) else TaskConfig
        return kind.model_validate(document, context=FROM_FILE)
    except ValidationError as error:
        tags = {families.kind_of(each) for each in families.family(name).encoders} if isinstance(name, str) else set()
        raise TaskRefused(file, *_problem(error, tags), remedy) from None


def load_backbone_config(file: Path, parameters: Mapping[str, str]) -> BackboneConfig:
    """Check a backbone's parameters (`file` is only for the message); raises BackboneRefused."""
    known = {name: value for name, value in parameters.items() if not name.isupper()}  # EXECUTION_ENV_PATH ...
    name = known.setdefault("family", families.DEFAULT)
    remedy = "docs/serve.md lists the parameters of a backbone"
    if name not in families.names():
        raise BackboneRefused(file, "parameters.family", _no_family(name), remedy)
    spec = families.family(name)
    try:
        config = spec.parameters.model_validate(known)
    except ValidationError as error:
        field, problem = _problem(error)
        raise BackboneRefused(file, f"parameters.{field}", problem, remedy) from None
    if config.runtime not in spec.runtimes:
        problem = f"input should be {' or '.join(map(repr, spec.runtimes))} (got {config.runtime!r})"
        raise BackboneRefused(file, "parameters.runtime", problem, remedy)
    return config


def _no_family(name: str) -> str:
    return f"input should be {' or '.join(map(repr, families.names()))} (got {name!r})"


def _problem(error: ValidationError, tags: Collection[str] = ()) -> tuple[str, str]:
    """Field and problem of the first error; `tags` are encoder kinds, which pydantic adds to a path."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    if path[:1] == ["encoder"] and path[1:2] and path[1] in tags:
        del path[1]
    field = ".".join(path) or "(whole file)"
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return field, "there is no such field"
    if first["type"] == "union_tag_invalid":
        expected = first["ctx"]["expected_tags"].replace(", ", " or ")
        return field, f"its kind should be {expected} (got {_as_json(first['input'].get('kind'))})"
    if first["type"] == "missing":
        return field, "it is missing"
    if first["type"] == "union_tag_not_found":
        return field, "it has no kind"
    wanted = "input should be an object" if first["type"] in NO_OBJECT else first["msg"]
    return field, f"{wanted[0].lower()}{wanted[1:]} (got {_as_json(first.get('input'))})"


def _as_json(value: Any) -> str:
    """A value as it stands in the file, cut off; a text in quotes like those of names in messages."""
    return repr(value[:80]) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)[:80]
