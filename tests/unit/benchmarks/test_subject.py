"""The backbone that is measured, in this process and in those that it starts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.harness.subject import VARIABLE, subject, subject_in


def test_another_dtype_holds_within() -> None:
    before = os.environ.get(VARIABLE)
    assert subject().dtype == "float32"
    with subject_in("bfloat16"):
        assert subject().dtype == "bfloat16"
        with subject_in("float16"):
            assert subject().dtype == "float16"
        assert subject().dtype == "bfloat16"
    assert subject().dtype == "float32"
    assert os.environ.get(VARIABLE) == before


def test_a_process_that_is_started_measures_the_same() -> None:
    code = "from benchmarks.harness.subject import subject; print(subject().dtype)"
    with subject_in("bfloat16"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "bfloat16"


def test_it_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), subject_in("bfloat16"):
        _ = 1 / 0
    assert subject().dtype == "float32"
