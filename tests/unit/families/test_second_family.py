"""A family that nothing in the packages names: the writer, the Task-API and the command line take it as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_family.spec import Counted, Counter, Words
from google.protobuf import text_format
from installed import fake_family_installed
from tritonclient.grpc import model_config_pb2
from typer.testing import CliRunner

from fmplex import Backbone, Task, TaskProblem, TaskRefused
from fmplex.cli import app as cli
from fmplex_backend.errors import BackboneRefused, InvalidRequest
from fmplex_backend.interface import tag_name
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.tags import free_tag
from testing.repositories import write_backbone

BACKBONE = "counting"


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A repository with a backbone of the family."""
    root = tmp_path / "repository"
    root.mkdir()
    write_backbone(root, BACKBONE, model="none", family="fake", step_ms="0")
    with fake_family_installed(tmp_path / "site-packages"):
        yield root


def counting(root: Path, mark: float = 7.0, **options: Any) -> Task:
    return Task("count", Backbone(BACKBONE, repository=root), decoder=Counter(mark=mark), **options)


class TestTask:
    def test_all_steps_run_and_their_parts_are_joined(self, root: Path) -> None:
        task = counting(root)
        assert task.predict("stream steps=4 a b c") == [Counted((1, 2, 3, 5), 7.0)]
        assert task.predict(["a b", "c"]) == [Counted((2,), 7.0), Counted((1,), 7.0)]
        assert task.predict("steps=3 a b") == [Counted((3,), 7.0)], "a step without a part"
        assert counting(root, encoder=Words(repeat=2)).predict("a b") == [Counted((4,), 7.0)]

    def test_a_text_that_is_refused(self, root: Path) -> None:
        with pytest.raises(InvalidRequest):
            counting(root).predict("refuse")
        with pytest.raises(TaskProblem, match=r"row 0: 1\.5 is no line of words"):
            counting(root).outputs([1.5])

    def test_it_has_nothing_to_fit(self, root: Path) -> None:
        with pytest.raises(TaskProblem, match="the count decoder has no weights to fit"):
            counting(root).fit(["a", "b"], ["x", "y"], progress=False)

    def test_without_a_repository(self, root: Path, tmp_path: Path) -> None:
        backbone = Backbone("none", repository=tmp_path, name="elsewhere", family="fake")
        assert Task("count", backbone, decoder=Counter()).predict("a") == [Counted((1,), 0.0)]

    def test_saved_and_loaded(self, root: Path) -> None:
        task = counting(root, encoder=Words(repeat=3), weight=2.0)
        path = task.save()
        task.check()
        assert json.loads((path / "task.json").read_text())["decoder"] == {"kind": "count", "mark": 7.0}
        again = Task.load(root / "count")
        assert (again.encoder, again.decoder, again.terms.weight) == (task.encoder, task.decoder, 2.0)
        assert again.predict("stream steps=2 a b") == task.predict("stream steps=2 a b") == [Counted((3, 12), 7.0)]

    def test_its_entry(self, root: Path) -> None:
        counting(root).save()
        text = (root / "count" / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert [(each.name, list(each.dims)) for each in config.input] == [("WORDS", [1])]
        assert [(each.name, list(each.dims)) for each in config.output] == [
            ("COUNTS", [1]),
            ("MARK", [1]),
            ("usage", [3]),
        ]
        (step,) = config.ensemble_scheduling.step
        tag = tag_name(free_tag(root, [], "count", BACKBONE, 256))
        assert dict(step.output_map) == {"COUNTS": "COUNTS", "MARK": "MARK", tag: "usage"}
        assert config.parameters["decoder"].string_value == "count"

    def test_a_rollback_says_the_same_of_its_tensors(self, root: Path) -> None:
        counting(root, mark=1.0).save()
        first = (root / "count" / "config.pbtxt").read_text()
        counting(root, mark=2.0).save()
        assert Task.load(root / "count").predict("a") == [Counted((1,), 2.0)]
        assert counting(root).rollback() == 1
        assert [counting(root).rollback(to=version) for version in (2, 1)] == [2, 1]
        assert Task.load(root / "count").predict("a") == [Counted((1,), 1.0)]
        config, before = (
            text_format.Parse(text, model_config_pb2.ModelConfig())
            for text in ((root / "count" / "config.pbtxt").read_text(), first)
        )
        assert (list(config.input), list(config.output)) == (list(before.input), list(before.output))

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"decoder": {"kind": "classification", "labels": ["a"]}}, "decoder.kind"),
            ({"decoder": {"kind": "count", "marks": 1}}, "decoder.marks"),
            ({"encoder": {"repeat": 0}}, "encoder.repeat"),
            ({"adapter": {"kind": "peft"}}, "adapter"),
            ({"family": "faked"}, "family"),
        ],
    )
    def test_a_task_json_that_is_wrong(self, root: Path, change: dict[str, Any], field: str) -> None:
        path = counting(root).save() / "task.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(TaskRefused) as caught:
            Task.load(root / "count").check()
        assert (caught.value.file, caught.value.field) == (str(path), field)

    def test_a_parameter_of_its_backbone(self, root: Path) -> None:
        with pytest.raises(BackboneRefused) as caught:
            load_backbone_config(Path("c"), {"model": "none", "family": "fake", "step_ms": "slow"})
        assert caught.value.field == "parameters.step_ms"


class TestCommandLine:
    def run(self, *arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(cli.app, [*map(str, arguments), "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def test_a_tasks_life(self, root: Path) -> None:
        for mark in (1.0, 2.0):
            counting(root, mark).save()
        repository = ("-r", root)
        (row,) = self.run("task", "list", *repository)
        assert (row["task"], row["backbone"], row["version"], row["decoder"]) == ("count", BACKBONE, 2, "count")
        assert (row["error"], row["adapter"]) == (None, None)
        assert self.run("task", "check", root / "count")["ok"]
        shown = self.run("task", "show", "count", *repository)
        assert (shown["versions"], shown["task.json"]["family"]) == ([1, 2], "fake")
        assert self.run("task", "set", "count", *repository, "--weight", 3)["weight"] == 3
        assert self.run("task", "rollback", "count", *repository)["version"] == 1
        assert self.run("task", "remove", "count", *repository)["removed"]
        assert self.run("task", "list", *repository) == []

    def test_a_task_that_would_be_refused(self, root: Path) -> None:
        path = counting(root).save() / "task.json"
        path.write_text(path.read_text().replace("count", "guess"))
        assert self.run("task", "check", root / "count", code=1)["kind"] == "TaskRefused"
