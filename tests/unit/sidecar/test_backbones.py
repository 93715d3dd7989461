"""Backbones that are written after others, put away and removed."""

from __future__ import annotations

from pathlib import Path

import pytest
from backend_fixtures import text_task, write_config, write_version
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.model_files import find_model
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.configs import CONFIG, backbone_parameters, read_config
from fmplex_controller.sidecar.backbones import Backbones
from testing.repositories import write_backbone


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """`a` is on `base`."""
    found = tiny_repository(tmp_path, slots=8)
    write_config(found, "a", 0)
    write_version(found, "a", 1, text_task({"kind": "embedding"}))
    return found


def test_one_is_written_after_another_and_one_put_away_is_taken_again(root: Path) -> None:
    backbones = Backbones(root)
    backbones.copy("base-2", BASE)
    former, copied = (read_config(root / name / CONFIG) for name in (BASE, "base-2"))
    former.name = "base-2"
    assert copied == former
    backbones.put_away("base-2")
    backbones.copy("base-2", BASE)
    assert not (root / "base-2" / "UNLOADED").exists()
    with pytest.raises(TaskProblem, match="a are bound to it"):
        backbones.put_away(BASE)
    with pytest.raises(TaskProblem, match="exists"):
        backbones.copy("a", BASE)


def test_a_controller_removes_what_it_has_written_and_nothing_else(root: Path) -> None:
    backbones = Backbones(root)
    backbones.copy("base-2", BASE, elastic=True)
    parameters = backbone_parameters(root, "base-2")
    assert parameters is not None
    assert load_backbone_config(root / "base-2" / CONFIG, parameters).elastic
    backbones.copy("base-3", "base-2")
    assert backbones.elastic() == {"base-2"}, "a copy of it is not its own"
    write_config(root, "b", 0, backbone="base-2")
    write_version(root, "b", 1, text_task({"kind": "embedding"}))
    with pytest.raises(TaskProblem, match="b are bound to it"):
        backbones.remove_elastic("base-2")
    write_config(root, "b", 1)
    backbones.remove_elastic("base-2")
    assert not (root / "base-2").exists()
    for name in (BASE, "base-3", "a"):
        with pytest.raises(TaskProblem, match="no controller has written it"):
            backbones.remove_elastic(name)
    backbones.copy("base-2", BASE, elastic=True)
    backbones.put_away("base-2")
    assert not backbones.elastic(), "somebody keeps it unloaded: it is theirs"
    with pytest.raises(TaskProblem, match="exists"):
        backbones.copy("base-2", BASE, elastic=True)
    assert (root / "base-2" / "UNLOADED").exists()


def test_a_model_beside_the_entry_is_found_from_the_copy_too(root: Path, tmp_path: Path) -> None:
    (root / "own" / "weights").mkdir(parents=True)
    write_backbone(root, "own", model="weights")
    backbones = Backbones(root)
    backbones.copy("own-2", "own")
    backbones.copy("own-3", "own-2")
    for name in ("own-2", "own-3"):
        parameters = backbone_parameters(root, name)
        assert parameters is not None
        assert find_model(parameters["model"], root / name / CONFIG).resolve() == root / "own" / "weights"
