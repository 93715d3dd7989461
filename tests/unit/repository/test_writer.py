"""Tasks written into a repository: whole, one tag each, and never half of one where a server looks."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from task_fixtures import BASE, tiny_repository

from fmplex import TaskProblem
from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.config import config_of
from fmplex_backend.repository.configs import Terms, read_config
from fmplex_backend.repository.tags import claimed
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.repository.writer import ModelRepository, Pipeline, write_config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny_repository(tmp_path, slots=4)


def pipeline(labels: tuple[str, ...] = ()) -> Pipeline:
    """An embedding, or a classification."""
    decoder = {"kind": "classification", "labels": list(labels)} if labels else {"kind": "embedding"}
    config = config_of("text-encoder").model_validate({"family": "text-encoder", "decoder": decoder})
    outputs = config.decoder.sizes(Path("unused"), 32)
    return Pipeline(config, "TEXT", 1, outputs, lambda path: write_config(path, config))


def spec(root: Path, name: str) -> TaskSpec:
    found = Repository(root, BASE).read_task(name)
    assert isinstance(found, TaskSpec), found
    return found


def save(root: Path, name: str, terms: Terms | None = None, labels: tuple[str, ...] = (), backbone: str = BASE) -> int:
    """The task's tag."""
    return ModelRepository(root).save(name, backbone, pipeline(labels), terms or Terms()).vfm


def test_tags_are_free_ones(root: Path) -> None:
    tags = {name: save(root, name) for name in ("a", "b", "c")}
    assert len(set(tags.values())) == 3
    assert set(tags.values()) < set(range(4))
    ModelRepository(root).remove("b")
    assert save(root, "b") == tags["b"]
    ModelRepository(root).remove("b")
    assert {save(root, name) for name in ("d", "e")} | {tags["a"], tags["c"]} == set(range(4))
    with pytest.raises(TaskProblem, match=r"all 4 tags of the backbone 'base' are taken. Raise vfm_slots"):
        save(root, "f")
    assert not (root / "f").exists()


def test_many_writers_at_once(tmp_path: Path) -> None:
    root = tiny_repository(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        tags = list(pool.map(lambda number: save(root, f"task{number}"), range(24)))
    assert len(set(tags)) == 24


def test_a_tag_that_has_become_free_is_hardly_given_to_another_task(tmp_path: Path) -> None:
    """Also where it was the last one that was given out, as when a task is replaced by another."""
    models = ModelRepository(tiny_repository(tmp_path))
    given = []
    for number in range(20):
        given.append(save(models.root, f"task{number}"))
        models.remove(f"task{number}")
    assert len(set(given)) > 15
    assert all(one != other for one, other in itertools.pairwise(given))


def test_a_new_tag(root: Path) -> None:
    first = save(root, "a")
    models = ModelRepository(root)
    shutil.copytree(root / "a", root / "copy")  # which still has the name of the original
    tag = models.set_new_tag("copy")
    assert tag != first
    assert (spec(root, "a").vfm, spec(root, "copy").vfm) == (first, tag)
    assert spec(root, "copy").outputs == spec(root, "a").outputs
    with pytest.raises(TaskProblem, match="there is no task 'z'"):
        models.set_new_tag("z")


def test_a_version_of_a_task_whose_tag_is_anothers_is_not_saved(root: Path) -> None:
    tag = save(root, "a")
    shutil.copytree(root / "a", root / "later")
    config = root / "later" / "config.pbtxt"
    config.write_text(config.read_text().replace('"a"', '"later"'))
    with pytest.raises(TaskProblem, match=rf"VFM_{tag} on 'base' is the tag of 'a' too.* task set later --new-tag"):
        save(root, "later")
    assert ModelRepository(root).versions("later") == [1]
    ModelRepository(root).set("a", Terms(weight=2.0))
    assert save(root, "a") == tag
    ModelRepository(root).set_new_tag("later")
    save(root, "later")


def test_saving_again_makes_the_next_version(root: Path) -> None:
    save(root, "a", Terms(weight=3.0, slo_ms=50.0))
    config = (root / "a" / "config.pbtxt").read_bytes()
    saved = ModelRepository(root).save("a", BASE, pipeline(), Terms())
    assert (saved.version, saved.vfm) == (2, spec(root, "a").vfm)
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
    with pytest.raises(TaskProblem, match=r"no version before 1 to go back to\. Name a later one with --to: 2, 3"):
        models.rollback("a")
    assert models.save("a", BASE, pipeline(), Terms()).version == 4
    assert spec(root, "a").version.number == 4


def dims(root: Path, name: str) -> dict[str, list[int]]:
    """Of the entry's own inputs and outputs, as clients read them."""
    proto = read_config(root / name / "config.pbtxt")
    return {each.name: list(each.dims) for each in (*proto.input, *proto.output)}


def test_a_rollback_writes_the_widths_of_the_version(root: Path) -> None:
    """The width of an EMBEDDING is not in the version's files: it is that of the backbone's model."""
    models = ModelRepository(root)
    save(root, "a")
    first = dims(root, "a")
    assert first == {"TEXT": [1], "EMBEDDING": [32], "TRUNCATED": [1], "usage": [3]}
    save(root, "a", labels=("x", "y"))
    assert dims(root, "a") == {"TEXT": [1], "SCORES": [2], "LABEL": [1], "TRUNCATED": [1], "usage": [3]}
    models.rollback("a")
    assert dims(root, "a") == first


def test_a_rollback_writes_a_projections_features_and_a_regressions_outputs(root: Path) -> None:
    encoder = {"kind": "projection", "features": 7}
    config = config_of("text-encoder").model_validate(
        {"family": "text-encoder", "encoder": encoder, "decoder": {"kind": "regression"}}
    )

    def write(path: Path) -> None:
        save_file({"weight": torch.zeros(3, 32), "bias": torch.zeros(3)}, path / "decoder.safetensors")
        write_config(path, config)

    models = ModelRepository(root)
    models.save("a", BASE, Pipeline(config, "FEATURES", 7, {"SCORES": 3}, write), Terms())
    first = dims(root, "a")
    assert first == {"FEATURES": [7], "SCORES": [3], "TRUNCATED": [1], "usage": [3]}
    save(root, "a")
    models.rollback("a")
    assert dims(root, "a") == first


def test_a_rollback_without_the_backbones_model_leaves_the_width_open(root: Path) -> None:
    save(root, "a")
    save(root, "a", labels=("x", "y"))
    shutil.rmtree(root.parent / "model")
    ModelRepository(root).rollback("a")
    assert dims(root, "a")["EMBEDDING"] == [-1]


def test_what_a_person_wrote_stays(root: Path) -> None:
    save(root, "a")
    file = root / "a" / "config.pbtxt"
    file.write_text(file.read_text() + 'parameters { key: "team" value { string_value: "search" } }\n')
    models = ModelRepository(root)
    models.set("a", Terms(weight=2.0, slo_ms=40.0, max_queue=7, max_queue_bytes=1 << 30, cache=True))
    models.save("a", BASE, pipeline(("x", "y")), Terms())
    assert '"search"' in file.read_text()
    entry = spec(root, "a")
    assert (entry.weight, entry.slo, entry.max_queue, entry.max_queue_bytes) == (2.0, 0.04, 7, 1 << 30)
    assert entry.cache
    models.set("a", Terms(cache=False))
    assert not spec(root, "a").cache


def test_limits_of_another_family_are_refused(root: Path) -> None:
    save(root, "a")
    before = (root / "a" / "config.pbtxt").read_text()
    with pytest.raises(TaskProblem, match="max_kv_share limits nothing in a task of the family 'text-encoder'"):
        ModelRepository(root).set("a", Terms(max_kv_share=0.5))
    with pytest.raises(TaskProblem, match=r"max_kv_share is 2\. It is a part: give one of 1 at most"):
        ModelRepository(root).set("a", Terms(max_kv_share=2.0))
    for held in (True, False):
        with pytest.raises(TaskProblem, match="max_running limits nothing in a task of the family 'text-encoder'"):
            ModelRepository(root).save("a", BASE, pipeline(), Terms(max_running=3), held=held)
    assert (root / "a" / "config.pbtxt").read_text() == before
    assert ModelRepository(root).versions("a") == [1]


def test_answers_that_are_sampled_are_not_kept_from_the_first_version_on(root: Path) -> None:
    config = config_of("causal-lm").model_validate({"family": "causal-lm", "decoder": {"kind": "generator"}})
    sampled = Pipeline(config, "PROMPT", 1, {}, lambda path: write_config(path, config))
    with pytest.raises(TaskProblem, match="'a' is of the family 'causal-lm', whose answers are sampled"):
        ModelRepository(root).save("a", BASE, sampled, Terms(cache=True))
    assert not (root / "a").exists()


def test_a_write_that_fails_leaves_nothing(root: Path) -> None:
    def broken(path: Path) -> None:
        (path / "task.json").write_text("{")
        raise OSError("no space left")

    before = {path.name for path in root.iterdir()} | {".fmplex.lock"}
    for name in ("a", "a"):
        with pytest.raises(OSError, match="no space"):
            ModelRepository(root).save(name, BASE, replace(pipeline(), write=broken), Terms())
    assert {path.name for path in root.iterdir()} | {".fmplex.lock"} == before
    assert not [path for path in root.parent.iterdir() if path.name.startswith(".fmplex-")]
    save(root, "a")
    with pytest.raises(OSError, match="no space"):
        ModelRepository(root).save("a", BASE, replace(pipeline(), write=broken), Terms())
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
    "terms",
    [
        Terms(slo_ms=-1.0),
        Terms(max_queue=0),
        Terms(max_seconds=0.0),
        *(Terms(weight=weight) for weight in (0.0, 0.0009, 1000.1, 1e-18, -1.0, float("inf"), float("nan"))),
    ],
)
def test_terms_out_of_range(root: Path, terms: Terms) -> None:
    problem = "must be a number above 0" if terms.weight is None else "not a number from 0.001 to 1000"
    save(root, "a")
    with pytest.raises(TaskProblem, match=problem):
        ModelRepository(root).set("a", terms)
    with pytest.raises(TaskProblem, match=problem):
        save(root, "b", terms)


@pytest.mark.parametrize("weight", [1e-3, 1e3])
def test_weights_at_the_limits(root: Path, weight: float) -> None:
    save(root, "a", Terms(weight=weight))
    assert spec(root, "a").weight == weight


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
    with pytest.raises(TaskProblem, match="exists and is not a task"):
        save(root, "plain")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.write_text("name: {"), "is not a Triton model configuration"),
        (lambda file: file.write_bytes(b"# \xff"), "is not UTF-8"),
        (Path.mkdir, "cannot be read: it is a directory"),
        (os.mkfifo, "cannot be read: it is a FIFO"),
        (lambda file: file.symlink_to(file), "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_a_config_that_cannot_be_read_is_named_and_stops_no_other_task(
    root: Path, spoil: Callable[[Path], Any], says: str
) -> None:
    (root / "odd").mkdir()
    spoil(root / "odd" / "config.pbtxt")
    (root / os.fsdecode(b"x\xff")).mkdir()
    with pytest.raises(TaskProblem, match=rf"odd/config.pbtxt {says}"):
        save(root, "a", backbone="odd")
    save(root, "a")
    assert isinstance(ModelRepository(root).tasks()["a"][1], TaskSpec)


def test_an_entry_that_cannot_be_parsed_keeps_its_tag(root: Path) -> None:
    tag = save(root, "a")
    file = root / "a" / "config.pbtxt"
    file.write_text(file.read_text() + "name: {")
    assert tag in claimed(root, ["a"], "base")


def test_a_task_that_triton_would_not_survive_is_not_saved_for_it(root: Path) -> None:
    save(root, "a")
    save(root, "a")
    (root / "a" / str(2**63)).mkdir()
    for change in (lambda: save(root, "a"), lambda: ModelRepository(root).rollback("a")):
        with pytest.raises(TaskRefused, match=r"a/9223372036854775808: \(directory\)"):
            change()
    assert ModelRepository(root).versions("a") == [1, 2]


# -- other versions, and terms that are taken back


def test_back_to_any_version_and_forward_again(root: Path) -> None:
    for _ in range(3):
        save(root, "a", Terms(weight=2.0))
    models = ModelRepository(root)
    assert models.rollback("a", to=1).version == 1
    assert spec(root, "a").version.number == 1
    assert models.rollback("a", to=2).path == root / "a" / "2"
    assert models.rollback("a", to=3).version == 3
    assert not read_config(root / "a" / "config.pbtxt").HasField("version_policy"), "the highest goes on by itself"
    assert (spec(root, "a").version.number, spec(root, "a").weight) == (3, 2.0)
    with pytest.raises(TaskProblem, match=r"'a' has no version 9, but 1, 2, 3\. Name one of them"):
        models.rollback("a", to=9)


def test_an_objective_and_a_bound_are_taken_back(root: Path) -> None:
    save(root, "a", Terms(weight=2.0, slo_ms=50.0, max_queue=9))
    models = ModelRepository(root)
    models.set("a", Terms(weight=3.0, cleared=frozenset({"slo_ms"})))
    entry = spec(root, "a")
    assert (entry.weight, entry.slo, entry.max_queue) == (3.0, None, 9)
    models.set("a", Terms(cleared=frozenset({"slo_ms", "max_queue"})))
    assert spec(root, "a").max_queue is None


def test_what_prevents_a_write_is_told_also_where_its_staging_is_gone(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(root, "a")

    def chmod(path: str, mode: int) -> None:
        os.unlink(path)
        raise PermissionError("not yours")

    monkeypatch.setattr(os, "chmod", chmod)
    with pytest.raises(PermissionError, match="not yours"):
        ModelRepository(root).set("a", Terms(weight=2.0))


def test_what_a_killed_writer_has_left_is_removed_and_nothing_else(root: Path) -> None:
    save(root, "a")
    beside, name = root.parent, root.name
    ours = [beside / f".fmplex-staging-{name}-abc_1234", beside / f".fmplex-staging-{name}-xyz98765"]
    ours[0].write_text("torn")
    (ours[1] / "b" / "1").mkdir(parents=True)
    others = [beside / each for each in (".fmplex-training", f".fmplex-staging-{name}-2-abc_1234", ".fmplex-staging-x")]
    for each in others:
        each.mkdir()
    ModelRepository(root).set("a", Terms(weight=2.0))
    assert not [each for each in ours if each.exists()]
    assert all(each.is_dir() for each in others)


def is_beside(root: Path, path: str | os.PathLike[str]) -> bool:
    return root.resolve() not in Path(path).resolve().parents


def be_a_volume(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a repository be a file system of its own, as a container's volume is: a rename leads neither in nor out."""
    is_mount = os.path.ismount
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == root.resolve() or is_mount(path))
    for name in ("rename", "replace"):
        rename = getattr(os, name)

        def within(old: str, new: str, rename: Callable[[str, str], None] = rename) -> None:
            if is_beside(root, old) != is_beside(root, new):
                raise OSError(errno.EXDEV, "Invalid cross-device link")
            rename(old, new)

        monkeypatch.setattr(os, name, within)


def test_a_repository_that_is_a_volume_is_written_to(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_a_volume(root, monkeypatch)
    models = ModelRepository(root)
    for version in (1, 2):
        save(root, "a")
        assert models.versions("a")[-1] == version
    models.set("a", Terms(weight=2.0))
    assert spec(root, "a").weight == 2.0
    models.remove("a")
    assert sorted(os.listdir(root)) == [".fmplex.lock", BASE]


def test_a_repository_beside_which_nothing_can_be_written_is_written_to(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access

    def not_beside(path: str | os.PathLike[str], mode: int) -> bool:
        return Path(path) != root.resolve().parent and access(path, mode)

    monkeypatch.setattr(os, "access", not_beside)
    monkeypatch.setattr(tempfile, "mkstemp", partial(inside_only, root, tempfile.mkstemp))
    monkeypatch.setattr(tempfile, "mkdtemp", partial(inside_only, root, tempfile.mkdtemp))
    ModelRepository(root).check_place("a", BASE, Terms())
    save(root, "a")
    left = root / f".fmplex-staging-{root.name}-abc_1234"
    left.mkdir()
    ModelRepository(root).set("a", Terms(weight=2.0))
    assert spec(root, "a").weight == 2.0
    assert not left.exists()


def inside_only(root: Path, make: Callable[..., Any], *, prefix: str, dir: Path) -> Any:
    if dir != root.resolve():
        raise PermissionError(errno.EACCES, "Permission denied")
    return make(prefix=prefix, dir=dir)
