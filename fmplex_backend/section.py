"""Sections of task.json: frozen dataclasses that pydantic checks, and that the Task-API takes as they are.

    @dataclass(config=CHECKED, frozen=True)
    class Regressor(Decoder): ...

A field that only training reads has the type `TrainingOnly[...]`: it is not written to task.json, and refused in one.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo

CHECKED = ConfigDict(extra="forbid")
FROM_FILE = {"from_file": True}  # pydantic's context while a task.json is read

Value = TypeVar("Value")


def is_from_file(info: ValidationInfo) -> bool:
    """Whether the value that is validated comes from a task.json, not from a program."""
    return bool(info.context and info.context.get("from_file"))


def _refuse_in_file(value: Value, info: ValidationInfo) -> Value:
    if is_from_file(info):
        raise ValueError("it is chosen when a task is trained and has no place in task.json")
    return value


TrainingOnly = Annotated[Value, Field(exclude=True), AfterValidator(_refuse_in_file)]


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError("it must be a path inside the version directory: relative, and without '..'")
    return path


PathInside = Annotated[str, AfterValidator(_inside)]  # of a file in the version directory


def kind_given(value: Any) -> str:
    """The kind of a section, given as JSON or as an object: pydantic's discriminator."""
    return str(value.get("kind", "") if isinstance(value, dict) else getattr(value, "kind", ""))
