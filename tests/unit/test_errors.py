"""The tree of errors, as the file says it is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from fmplex_backend import errors
from fmplex_backend.errors import BackboneRefused, FmplexError, Refused, TaskRefused

CLASSES = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, FmplexError)}
# triton_python_backend_utils.TritonError, as documented
TRITON_CODES = {
    "UNKNOWN",
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "UNAVAILABLE",
    "UNSUPPORTED",
    "ALREADY_EXISTS",
    "CANCELLED",
}


def test_the_tree_at_the_top_of_the_file_is_the_classes() -> None:
    """Names, parents (by how far a line is indented) and codes."""
    drawn = {"FmplexError": ("Exception", "INTERNAL")}
    above = {0: "FmplexError"}
    for indent, name, code in re.findall(
        r"^    ((?:\|   )*(?:\|--|`--) )(\w+) +.*? ([A-Z_]{6,})$", errors.__doc__ or "", re.MULTILINE
    ):
        depth = len(indent) // 4
        drawn[name], above[depth] = (above[depth - 1], code), name
    assert drawn == {name: (kind.__base__.__name__, kind.code) for name, kind in CLASSES.items() if kind.__base__}


@pytest.mark.parametrize("kind", CLASSES.values())
def test_each_is_a_triton_status_and_a_reason_of_its_own(kind: type[FmplexError]) -> None:
    assert kind.code in TRITON_CODES
    assert re.fullmatch(r"[a-z_]+", kind.reason)
    assert (kind.__doc__ or "").strip()


def test_reasons_tell_them_apart() -> None:
    reasons = [kind.reason for kind in CLASSES.values() if kind.__base__ in (Exception, FmplexError)]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("kind", [TaskRefused, BackboneRefused])
def test_a_refusal_names_file_field_problem_and_remedy(kind: type[Refused]) -> None:
    error = kind(Path("a/task.json"), "decoder.kind", "it is wrong", "Correct it")
    assert str(error) == "a/task.json: decoder.kind: it is wrong. Correct it"
    assert (error.file, error.field, error.problem, error.remedy) == (
        "a/task.json",
        "decoder.kind",
        "it is wrong",
        "Correct it",
    )


def test_a_refusal_does_not_quote_megabytes() -> None:
    error = TaskRefused("task.json", "f" * 5000, "p" * 5000, "Correct it")
    assert len(str(error)) < 5000
    assert str(error).startswith("task.json: fff")
    assert error.problem.endswith("ppp ... (5000 characters)")
