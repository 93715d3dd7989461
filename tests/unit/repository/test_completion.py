"""Entries that lack a config, a name, a backbone or a tag are written to the end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from backend_fixtures import edit, text_task, write_config, write_version
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import FmplexError, TaskProblem, TaskRefused
from fmplex_backend.repository.completion import Completion
from fmplex_backend.repository.configs import read_config, tags_of
from fmplex_backend.repository.inspection import Inspected, inspect
from fmplex_backend.repository.tasks import Repository, TaskSpec

EMBEDDING = text_task({"kind": "embedding"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tiny_repository(tmp_path, slots=8)


def write_task(root: Path, name: str, tag: int, task: dict[str, Any] = EMBEDDING, **terms: Any) -> Path:
    write_config(root, name, tag, **terms)
    return write_version(root, name, 1, task)


def served(root: Path, name: str, backbone: str = BASE) -> TaskSpec:
    """A task that nothing is missing of and that is found to be one."""
    found = Repository(root, backbone).read_task(name)
    assert isinstance(found, TaskSpec), found
    assert inspect(root, name) == Inspected("task", backbone, found.vfm, age=Repository(root, backbone).age(name))
    return found


def file_of(root: Path, name: str) -> Path:
    return root / name / "config.pbtxt"


class TestInspect:
    def test_a_backbone_and_a_model_of_another_kind(self, root: Path) -> None:
        (root / "other" / "1").mkdir(parents=True)
        file_of(root, "other").write_text('backend: "python"\nsome_later_field: 1\n')
        assert inspect(root, BASE) == Inspected("backbone", slots=8)
        assert inspect(root, "other") == Inspected("model")

    @pytest.mark.parametrize(
        ("old", "new", "lack"),
        [
            ('"base"', '"auto"', "backbone"),
            ('name: "a"', 'name: "b"', "name"),
            ('key: "VFM_1"\n      value: "usage"', 'key: "CONFIDENCE"\n      value: "usage"', "tag"),
        ],
    )
    def test_what_an_entry_lacks(self, root: Path, old: str, new: str, lack: str) -> None:
        write_task(root, "a", 1)
        edit(file_of(root, "a"), old, new)
        found = inspect(root, "a")
        assert (found.kind, found.lack, found.problem) == ("task", lack, "")

    def test_a_version_alone(self, root: Path) -> None:
        write_version(root, "a", 1, EMBEDDING)
        assert inspect(root, "a") == Inspected("task", lack="config")
        write_version(root, "a", 1, {"family": "no such"})
        found = inspect(root, "a")
        assert found.lack == "config"
        assert "1/task.json: family: input should be" in found.problem

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("platform: ", "config.pbtxt: (whole file): not a Triton model configuration"),
            ('backend: "fmplex"', "config.pbtxt: parameters.model: it is missing"),
            ('name: "z" backend: "fmplex"', "config.pbtxt: name: it is 'z'"),
        ],
    )
    def test_problems_name_file_and_field(self, root: Path, text: str, problem: str) -> None:
        (root / "a" / "1").mkdir(parents=True)
        file_of(root, "a").write_text(text)
        assert f"{root / 'a'}/{problem}" in inspect(root, "a").problem

    def test_a_task_whose_version_is_broken(self, root: Path) -> None:
        version = write_task(root, "a", 1)
        (version / "task.json").write_text("{")
        found = inspect(root, "a")
        assert (found.kind, found.backbone, found.tag) == ("task", BASE, 1)
        assert "task.json: (whole file): not readable as JSON" in found.problem
        shutil.rmtree(version)
        assert "there is no such version directory" in inspect(root, "a").problem

    def test_an_entry_that_is_bound_anew_while_it_is_read(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_task(root, "a", 1)
        read = Repository.read_task

        def bound_anew(repository: Repository, name: str) -> Any:
            edit(file_of(root, "a"), f'"{BASE}"', '"second"')
            return read(repository, name)

        monkeypatch.setattr(Repository, "read_task", bound_anew)
        with pytest.raises(OSError, match=r"a/config.pbtxt is being written"):
            inspect(root, "a")


class TestComplete:
    def test_a_version_alone_gets_a_config(self, root: Path) -> None:
        labels = {"kind": "classification", "labels": ["yes", "no"]}
        write_version(root, "a", 2, text_task(labels))
        assert "config.pbtxt, with the backbone 'base' and the tag VFM_" in Completion(root).complete("a")
        assert served(root, "a").outputs["SCORES"] == (2,)

    def test_auto_is_bound_to_the_emptiest(self, root: Path, tmp_path: Path) -> None:
        shutil.copytree(root / BASE, root / "second")
        edit(file_of(root, "second"), f'name: "{BASE}"', 'name: "second"')
        for name in ("a", "b", "c"):
            write_task(root, name, 1, weight=3.0, backbone="auto")
            Completion(root).complete(name)
        assert [inspect(root, name).backbone for name in ("a", "b", "c")] == [BASE, "second", BASE]
        assert served(root, "a").weight == 3.0
        assert served(root, "a").vfm != served(root, "c").vfm

    def test_auto_is_bound_to_the_model_it_was_trained_for(self, root: Path) -> None:
        trained = text_task({"kind": "embedding"}, backbone={"model": "another/one", "fingerprint": "sha256:0"})
        version = write_task(root, "a", 1, trained, backbone="auto")
        with pytest.raises(TaskRefused, match=r"backbone.model: it was trained for 'another/one', which none of") as no:
            Completion(root).complete("a")
        assert "fmplex backbone add NAME another/one" in str(no.value)
        model = read_config(file_of(root, BASE)).parameters["model"].string_value
        trained["backbone"] = {"model": model}
        (version / "task.json").write_text(json.dumps(trained))
        Completion(root).complete("a")
        served(root, "a")

    def test_the_weights_tell_one_model_under_two_names(self, root: Path) -> None:
        from fmplex_backend.fingerprint import fingerprint

        model = read_config(file_of(root, BASE)).parameters["model"].string_value
        own = fingerprint(Path(model))
        assert own
        write_task(
            root, "a", 1, text_task({"kind": "embedding"}, backbone={"model": "x", "fingerprint": own}), backbone="auto"
        )
        Completion(root).complete("a")
        served(root, "a")

    def test_without_a_tag_it_gets_one(self, root: Path) -> None:
        write_task(root, "a", 1)
        text = file_of(root, "a").read_text()
        proto = read_config(file_of(root, "a"))
        del proto.output[-1]
        proto.ensemble_scheduling.step[0].output_map.pop("VFM_1")
        file_of(root, "a").write_text(str(proto))
        assert Completion(root).complete("a").startswith("the tag VFM_")
        assert len(tags_of(file_of(root, "a"), BASE)) == 1
        assert served(root, "a").inputs == ("TEXT",)
        assert 'name: "usage"' in file_of(root, "a").read_text()
        assert text

    def test_a_copy_gets_its_own_name_and_tag(self, root: Path) -> None:
        write_task(root, "a", 1)
        shutil.copytree(root / "a", root / "b")
        assert Completion(root).complete("b").startswith("its name, in the place of 'a' and the tag VFM_")
        assert served(root, "a").vfm == 1
        assert served(root, "b").vfm != 1

    def test_nothing_is_written_where_nothing_is_missing(self, root: Path) -> None:
        write_task(root, "a", 1)
        before = file_of(root, "a").stat()
        assert not Completion(root).complete("a")
        assert file_of(root, "a").stat() == before

    def test_a_tag_beyond_the_slots_is_replaced(self, root: Path) -> None:
        write_task(root, "a", 99)
        Completion(root).complete("a")
        assert served(root, "a").vfm < 8

    def test_what_cannot_be_completed_is_left_as_it_is(self, root: Path) -> None:
        write_task(root, "a", 1, backbone="nowhere")
        before = file_of(root, "a").read_text()
        with pytest.raises(TaskProblem, match=r"model_name: there is no backbone 'nowhere'.*which has base. Name one"):
            Completion(root).complete("a")
        write_version(root, "b", 1, text_task({"kind": "no such kind"}))
        with pytest.raises(FmplexError, match=r"task.json: decoder"):
            Completion(root).complete("b")
        assert file_of(root, "a").read_text() == before
        assert not file_of(root, "b").exists()

    def test_what_is_written_while_backbones_are_asked_stays(self, root: Path) -> None:
        shutil.copytree(root / BASE, root / "second")
        edit(file_of(root, "second"), f'name: "{BASE}"', 'name: "second"')

        def prefer(name: str, fitting: Sequence[str]) -> str:
            write_config(root, name, 5, weight=7.0, backbone="auto" if name == "a" else BASE)
            return fitting[-1]

        write_task(root, "a", 1, weight=3.0, backbone="auto")
        write_version(root, "b", 1, EMBEDDING)
        for name in "ab":
            Completion(root, prefer).complete(name)
        assert (served(root, "a", "second").weight, served(root, "a", "second").vfm) == (7.0, 5)
        assert (served(root, "b").weight, served(root, "b").vfm) == (7.0, 5)
