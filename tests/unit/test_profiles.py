"""Profiles are files of the user's, found by model, dtype and hardware; a broken one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmplex_backend.errors import TaskProblem
from fmplex_backend.hardware import cores, hardware, memory_of_machine, memory_of_process
from fmplex_backend.profiles import Point, Profile, file_of, find_profile, read_profile, write_profile
from fmplex_backend.scheduling.cost import CostModel
from fmplex_backend.types import PassShape

POINTS = tuple(
    Point(rows=rows, tokens=tokens, seconds=1e-3 + 2e-5 * rows * tokens)
    for rows in (1, 4, 16, 32)
    for tokens in (8, 32, 64)
)
PROFILE = Profile(model="package:some_model", dtype="float32", hardware="a CPU, 2 threads", points=POINTS)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMPLEX_PROFILES", str(tmp_path / "profiles"))


def test_what_is_written_is_found_for_that_hardware_alone() -> None:
    file = file_of(PROFILE.model, PROFILE.dtype, PROFILE.hardware)
    assert file.name.startswith("some_model-float32-")
    write_profile(file, PROFILE)
    assert find_profile(PROFILE.model, "float32", "a CPU, 2 threads") == PROFILE
    assert find_profile(PROFILE.model, "float32", "a CPU, 1 thread") is None
    assert find_profile(PROFILE.model, "bfloat16", "a CPU, 2 threads") is None
    assert [each.name for each in file.parent.iterdir()] == [file.name]


def test_without_a_folder_of_its_own_it_lies_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FMPLEX_PROFILES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert file_of("m", "float32", "x").parent == tmp_path / "cache" / "fmplex" / "profiles"


def test_the_cost_model_is_fitted_to_it() -> None:
    assert max(map(abs, PROFILE.errors())) < 0.02
    seeded = CostModel()
    seeded.seed(PROFILE.passes())
    assert seeded.predict(PassShape(256, 16, 0)) == pytest.approx(1e-3 + 2e-5 * 256, rel=0.05)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "Invalid JSON"),
        ('{"model": "m", "dtype": "d", "hardware": "h", "points": []}', "points: Tuple should have at least 1 item"),
        (
            '{"model": "m", "dtype": "d", "hardware": "h", "points": [{"rows": 0, "tokens": 1, "seconds": 1}]}',
            "points.0.rows: Input should be greater than or equal to 1",
        ),
    ],
)
def test_a_broken_one_is_named_with_the_field(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text)
    with pytest.raises(TaskProblem, match=problem) as error:
        read_profile(file)
    assert str(file) in str(error.value)
    with pytest.raises(TaskProblem, match="there is no profile"):
        read_profile(tmp_path / "none.json")


def test_hardware_is_named_by_gpus_or_by_the_processor(tmp_path: Path) -> None:
    cpus = tmp_path / "cpuinfo"
    cpus.write_text("processor\t: 0\nmodel name\t: Some  CPU\n")
    assert hardware(1, cpus=cpus, gpus=tmp_path) == "Some CPU, 1 thread"
    assert hardware(0, cpus=cpus, gpus=tmp_path).startswith(f"Some CPU, {cores()} thread")
    (tmp_path / "0000:01").mkdir()
    (tmp_path / "0000:01" / "information").write_text("Model: \t NVIDIA H100\n")
    assert hardware(1, cpus=cpus, gpus=tmp_path) == "NVIDIA H100"


def test_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert memory_of_machine() > memory_of_process() > 2**20
    assert memory_of_machine(tmp_path / "none") == memory_of_process(tmp_path / "none") == 0
