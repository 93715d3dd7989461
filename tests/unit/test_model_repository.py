"""Tasks written into a repository: whole, one tag each, and never half of one where a server looks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from task_fixtures import BASE, tiny_repository

from fmplex import TaskProblem
from fmplex.configs import Terms
from fmplex.repository import ModelRepository, Pipeline, write_config
from fmplex_backend.config import TaskConfig
from fmplex_backend.repository import Repository, TaskSpec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny_repository(tmp_path, slots=4)


def pipeline(labels: tuple[str, ...] = ()) -> Pipeline:
    """An embedding, or a classification."""
    decoder = {"kind": "classification", "labels": list(labels)} if labels else {"kind": "embedding"}
    config = TaskConfig.model_validate({"family": "text-encoder", "decoder": decoder})
    sizes = (("SCORES", len(labels)), ("LABEL", 1)) if labels else (("EMBEDDING", 32),)
    return Pipeline(config, sizes, (), lambda path: write_config(path, config))


def spec(root: Path, name: str) -> TaskSpec:
    found = Repository(root, BASE).read_task(name)
    assert isinstance(found, TaskSpec), found
    return found


def save(root: Path, name: str, terms: Terms | None = None, labels: tuple[str, ...] = ()) -> int:
    return ModelRepository(root).save(name, BASE, pipeline(labels), terms or Terms()).vfm


def test_tags_are_free_ones(root: Path) -> None:
    assert [save(root, name) for name in ("a", "b", "c")] == [0, 1, 2]
    ModelRepository(root).remove("b")
    assert save(root, "d") == 1
    assert save(root, "e") == 3
    with pytest.raises(TaskProblem, match=r"all 4 tags of the backbone 'base' are taken. Raise vfm_slots"):
        save(root, "f")
    assert not (root / "f").exists()


def test_many_writers_at_once(tmp_path: Path) -> None:
    root = tiny_repository(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        tags = list(pool.map(lambda number: save(root, f"task{number}"), range(24)))
    assert sorted(tags) == list(range(24))


def test_saving_again_makes_the_next_version(root: Path) -> None:
    save(root, "a", Terms(weight=3.0, slo_ms=50.0))
    config = (root / "a" / "config.pbtxt").read_bytes()
    saved = ModelRepository(root).save("a", BASE, pipeline(), Terms())
    assert (saved.version, saved.vfm) == (2, 0)
    assert (root / "a" / "config.pbtxt").read_bytes() == config
    assert (spec(root, "a").weight, spec(root, "a").slo) == (3.0, 0.05)
    ModelRepository(root).save("a", BASE, pipeline(("x", "y")), Terms(weight=5.0))
    entry = spec(root, "a")
    assert (entry.version.number, entry.weight, entry.slo) == (3, 5.0, 0.05)
    assert entry.outputs["SCORES"] == (2,)


def test_rollback_goes_back_and_saving_goes_on(root: Path) -> None:
    save(root, "a")
    save(root, "a", labels=("x", "y", "z"))
    save(root, "a")
    models = ModelRepository(root)
    assert models.rollback("a").version == 2
    assert spec(root, "a").version.number == 2
    assert spec(root, "a").outputs["SCORES"] == (3,)
    assert models.rollback("a").version == 1
    assert "EMBEDDING" in spec(root, "a").outputs
    with pytest.raises(TaskProblem, match="no version before 1"):
        models.rollback("a")
    assert models.save("a", BASE, pipeline(), Terms()).version == 4
    assert spec(root, "a").version.number == 4


def test_what_a_person_wrote_stays(root: Path) -> None:
    save(root, "a")
    file = root / "a" / "config.pbtxt"
    file.write_text(file.read_text() + 'parameters { key: "team" value { string_value: "search" } }\n')
    models = ModelRepository(root)
    models.set("a", Terms(weight=2.0, slo_ms=40.0, max_queue=7))
    models.save("a", BASE, pipeline(("x", "y")), Terms())
    assert '"search"' in file.read_text()
    entry = spec(root, "a")
    assert (entry.weight, entry.slo, entry.max_queue) == (2.0, 0.04, 7)


def test_a_write_that_fails_leaves_nothing(root: Path) -> None:
    def broken(path: Path) -> None:
        (path / "task.json").write_text("{")
        raise OSError("no space left")

    before = {path.name for path in root.iterdir()} | {".fmplex.lock"}
    config = pipeline().config
    for name in ("a", "a"):
        with pytest.raises(OSError, match="no space"):
            ModelRepository(root).save(name, BASE, Pipeline(config, (), (), broken), Terms())
    assert {path.name for path in root.iterdir()} | {".fmplex.lock"} == before
    assert not [path for path in root.parent.iterdir() if path.name.startswith(".fmplex-")]
    save(root, "a")
    with pytest.raises(OSError, match="no space"):
        ModelRepository(root).save("a", BASE, Pipeline(config, (), (), broken), Terms())
    assert ModelRepository(root).versions("a") == [1]


def test_files_are_readable_by_a_server_of_another_user(root: Path) -> None:
    save(root, "a")
    ModelRepository(root).set("a", Terms(weight=2))
    modes = {path: path.stat().st_mode & 0o777 for path in [root / "a", *(root / "a").rglob("*")]}
    assert all(mode == (0o755 if path.is_dir() else 0o644) for path, mode in modes.items()), modes


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a b", "../up"])
def test_names_that_are_none(root: Path, name: str) -> None:
    with pytest.raises(TaskProblem, match="cannot name a task"):
        save(root, name)


@pytest.mark.parametrize(
    "terms", [Terms(weight=0.0), Terms(slo_ms=-1.0), Terms(weight=float("inf")), Terms(max_queue=0)]
)
def test_terms_out_of_range(root: Path, terms: Terms) -> None:
    save(root, "a")
    with pytest.raises(TaskProblem, match="must be a number above 0"):
        ModelRepository(root).set("a", terms)
    with pytest.raises(TaskProblem, match="must be a number above 0"):
        save(root, "b", terms)


def test_what_is_not_there_is_named(root: Path, tmp_path: Path) -> None:
    save(root, "a")
    with pytest.raises(TaskProblem, match=r"there is no task 'z' in .* which has a"):
        ModelRepository(root).set("z", Terms(weight=1))
    with pytest.raises(TaskProblem, match="there is no task 'z'"):
        ModelRepository(root).remove("z")
    with pytest.raises(TaskProblem, match=r"there is no backbone 'other' in .* which has base"):
        ModelRepository(root).save("b", "other", pipeline(), Terms())
    with pytest.raises(TaskProblem, match="there is no model repository"):
        ModelRepository(tmp_path / "none").tasks()
    (root / "plain").mkdir()
    with pytest.raises(TaskProblem, match="exists and is no task"):
        save(root, "plain")


def test_a_config_that_cannot_be_read_is_named(root: Path) -> None:
    (root / "odd").mkdir()
    (root / "odd" / "config.pbtxt").write_text("name: {")
    with pytest.raises(TaskProblem, match=r"odd/config.pbtxt is no Triton model configuration"):
        save(root, "a")
