"""An entry against the extensions of its version: what does not fit names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import TextExtensions

from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.check import check_entry
from fmplex_backend.repository.tasks import TaskSpec
from fmplex_backend.repository.versions import Version

FAKE = TextExtensions(takes="TEXT")  # EMBEDDING of 2, TRUNCATED of 1


class Varying(TextExtensions):
    """One of its outputs has no fixed size."""

    @property
    def outputs(self) -> dict[str, int | None]:
        """TOKENS varies."""
        return {"EMBEDDING": 2, "TOKENS": None}


def spec(outputs: dict[str, tuple[int, ...]], inputs: tuple[str, ...] = ("TEXT",)) -> TaskSpec:
    return TaskSpec("one", 0, Path("one/config.pbtxt"), 1.0, None, None, Version(1, Path("one/1"), ()), inputs, outputs)


@pytest.mark.parametrize(
    ("extensions", "outputs"),
    [
        (FAKE, {}),
        (FAKE, {"EMBEDDING": (2,), "TRUNCATED": (1,)}),
        (FAKE, {"EMBEDDING": (-1,)}),
        (FAKE, {"EMBEDDING": (7, 2)}),
        (FAKE, {"EMBEDDING": ()}),
        (Varying(takes="TEXT"), {"TOKENS": (5,)}),
        (Varying(takes="TEXT"), {"TOKENS": (-1, -1)}),
    ],
)
def test_what_fits(extensions: Any, outputs: dict[str, tuple[int, ...]]) -> None:
    check_entry(spec(outputs), extensions)
    check_entry(spec(outputs, ("FEATURES", "TEXT")), extensions)


@pytest.mark.parametrize(
    ("outputs", "inputs", "field", "remedy"),
    [
        ({}, (), "ensemble_scheduling.step.input_map", "Map TEXT"),
        ({}, ("FEATURES",), "ensemble_scheduling.step.input_map", "Map TEXT"),
        ({"SCORES": (2,)}, ("TEXT",), "ensemble_scheduling.step.output_map.SCORES", "Map one of those"),
        ({"EMBEDDING": (3,)}, ("TEXT",), "output.EMBEDDING.dims", "Say 2, or -1"),
        ({"EMBEDDING": (2,), "TRUNCATED": (2,)}, ("TEXT",), "output.TRUNCATED.dims", "Say 1, or -1"),
    ],
)
def test_what_does_not_fit_is_refused_by_field(
    outputs: dict[str, tuple[int, ...]], inputs: tuple[str, ...], field: str, remedy: str
) -> None:
    with pytest.raises(TaskRefused) as raised:
        check_entry(spec(outputs, inputs), FAKE)
    assert (raised.value.file, raised.value.field, raised.value.remedy) == ("one/config.pbtxt", field, remedy)
