"""Sections of task.json: what a file may say, and what only a program may."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fmplex_backend.section import CHECKED, FROM_FILE, PathInside, TrainingOnly, kind_given


@dataclass(config=CHECKED, frozen=True)
class Section:
    """One field for both, one for training."""

    size: int = 1
    dropout: TrainingOnly[float] = 0.1
    kind: Literal["odd"] = field(default="odd", kw_only=True)


ADAPTER = TypeAdapter(Section)


def test_a_program_may_set_what_training_needs() -> None:
    assert Section(dropout=0.5).dropout == 0.5
    assert ADAPTER.validate_python({"size": 2, "dropout": 0.5}) == Section(2, 0.5)


def test_a_file_neither_has_it_nor_may_have_it() -> None:
    assert ADAPTER.dump_python(Section(2, 0.5)) == {"size": 2, "kind": "odd"}
    assert ADAPTER.validate_python({"size": 2}, context=FROM_FILE) == Section(2)
    with pytest.raises(ValidationError, match=r"has no place in task\.json"):
        ADAPTER.validate_python({"dropout": 0.5}, context=FROM_FILE)


def test_other_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="colour"):
        ADAPTER.validate_python({"colour": "red"})


@pytest.mark.parametrize(
    ("value", "kind"), [({"kind": "odd"}, "odd"), (Section(), "odd"), ({}, ""), (None, ""), ("odd", "")]
)
def test_the_kind_of_json_and_of_objects(value: object, kind: str) -> None:
    assert kind_given(value) == kind


@pytest.mark.parametrize("path", ["decoder.safetensors", "adapter", "a/b", "./a", "a..b", "né"])
def test_a_path_inside_the_version_directory(path: str) -> None:
    assert TypeAdapter(PathInside).validate_python(path) == path


@pytest.mark.parametrize("path", ["/etc/shadow", "..", "../x", "a/../../x", "a/..", "", ".", "//x", "a\0b"])
def test_a_path_that_may_lead_out_of_it(path: str) -> None:
    with pytest.raises(ValidationError, match="inside the version directory"):
        TypeAdapter(PathInside).validate_python(path)
