"""Groups written into a repository: of what, and what is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from backend_fixtures import text_task, write_task
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import FmplexError, TaskProblem, TaskRefused
from fmplex_backend.families import family
from fmplex_backend.repository.completion import Completion
from fmplex_backend.repository.configs import Terms, read_config
from fmplex_backend.repository.grouping import GroupRepository
from fmplex_backend.repository.groups import GroupSpec
from fmplex_backend.repository.tags import claimed
from fmplex_backend.repository.tasks import Repository
from testing.repositories import write_backbone

EMBED = text_task({"kind": "embedding"})
LABELS = text_task({"kind": "classification", "labels": ["a", "b", "c"]})


@pytest.fixture
def models(tmp_path: Path) -> GroupRepository:
    root = tiny_repository(tmp_path, slots=32)
    write_task(root, "embed", 7, task=EMBED, sizes={"EMBEDDING": 32})
    write_task(root, "topic", 3, decoder="classification", task=LABELS, sizes={"SCORES": 3, "LABEL": 1}, slo_ms=20.0)
    return GroupRepository(root)


def spec(models: GroupRepository, name: str = "guard") -> GroupSpec:
    found = Repository(models.root, BASE).read_task(name)
    assert isinstance(found, GroupSpec), found
    return found


def test_what_is_written_is_read(models: GroupRepository) -> None:
    tag = models.create("guard", ["embed", "topic"], terms=Terms(slo_ms=50.0))
    group = spec(models)
    assert (group.vfm, group.slo) == (tag, 0.05)
    assert tag not in (3, 7)
    assert [(member.name, member.tag) for member in group.members] == [("embed", 7), ("topic", 3)]
    topic = {each.name: each.dims for each in group.members[1].outputs}
    assert topic == {"SCORES": (-1,), "LABEL": (-1,), "TRUNCATED": (1,)}  # the next version may have more labels
    assert (models.root / "guard" / "1" / ".gitkeep").is_file()
    models.check_group(group)


def test_the_entry_is_plain_triton(models: GroupRepository) -> None:
    models.create("guard", ["embed", "topic"])
    proto = read_config(models.root / "guard" / "config.pbtxt")
    (step,) = proto.ensemble_scheduling.step
    assert (proto.platform, proto.max_batch_size, step.model_name) == ("ensemble", 8, BASE)
    assert dict(step.input_map) == {"TEXT": "TEXT"}
    assert step.output_map["0.SCORES"] == "topic.SCORES"  # topic has the lower tag
    assert step.output_map["1.EMBEDDING"] == "embed.EMBEDDING"
    assert step.output_map["MEMBER_3"] == "topic.usage"
    assert {output.name for output in proto.output} == set(step.output_map.values())  # Triton wants all to be used
    assert proto.parameters["group"].string_value == "embed,topic"


def test_it_has_one_tag_and_claims_no_member_s(models: GroupRepository) -> None:
    tag = models.create("guard", ["embed", "topic"])
    assert claimed(models.root, models.names(), BASE) == {7: ["embed"], 3: ["topic"], tag: ["guard"]}
    assert models.tasks().keys() == {"embed", "topic"}
    assert models.groups().keys() == {"guard"}
    assert models.unreadable() == {}


def test_replacing_keeps_the_tag(models: GroupRepository) -> None:
    tag = models.create("guard", ["embed", "topic"], terms=Terms(slo_ms=50.0))
    with pytest.raises(TaskProblem, match="guard exists"):
        models.create("guard", ["embed"])
    assert models.create("guard", ["topic"], replace=True) == tag
    assert [member.name for member in spec(models).members] == ["topic"]
    assert spec(models).slo is None
    assert models.create("fresh", ["topic"], replace=True) != tag


def test_a_new_tag_of_a_task_is_taken_up_by_renewing(models: GroupRepository) -> None:
    tag = models.create("guard", ["embed", "topic"], terms=Terms(slo_ms=50.0))
    moved = models.set_new_tag("topic")
    assert models.groups_of("topic") == ["guard"]
    assert models.groups_of("guard") == []
    with pytest.raises(TaskProblem, match=r"asks for topic by tags that they had before. Write it anew: fmplex group"):
        models.check_group(spec(models))
    models.renew("guard")
    group = spec(models)
    assert (group.vfm, group.slo, group.members[1].tag) == (tag, 0.05, moved)
    models.check_group(group)


def test_a_group_can_have_a_new_tag_too(models: GroupRepository) -> None:
    tag = models.create("guard", ["embed"])
    assert models.set_new_tag("guard") != tag
    assert spec(models).members[0].tag == 7


def test_a_copy_is_completed(models: GroupRepository) -> None:
    tag = models.create("guard", ["embed", "topic"])
    shutil.copytree(models.root / "guard", models.root / "copy")
    assert "its name" in Completion(models.root).complete("copy")
    copy = spec(models, "copy")
    assert copy.vfm != tag
    assert copy.members == spec(models).members


def test_removing_leaves_the_tasks(models: GroupRepository) -> None:
    models.create("guard", ["embed"])
    models.remove_group("guard")
    assert models.names() == [BASE, "embed", "topic"]
    with pytest.raises(TaskProblem, match="there is no group 'guard'"):
        models.remove_group("guard")
    with pytest.raises(TaskProblem, match="there is no group 'embed'"):
        models.remove_group("embed")


def refusal(models: GroupRepository, *members: str, name: str = "guard", **options: str) -> str:
    with pytest.raises(FmplexError) as raised:
        models.create(name, members, **options)  # type: ignore[arg-type]
    assert not (models.root / "guard").exists()
    return str(raised.value)


def test_what_makes_no_group(models: GroupRepository) -> None:
    models.create("other", ["embed"])
    assert "there is no task 'nobody'" in refusal(models, "embed", "nobody")
    assert "'other' is a group itself. Name its tasks" in refusal(models, "other")
    assert "Name at least one task, and each once" in refusal(models, "embed", "embed")
    assert "Name at least one task" in refusal(models)
    assert "exists. Choose another name" in refusal(models, "embed", name="topic")
    assert "'.x' cannot name" in refusal(models, "embed", name=".x")
    with pytest.raises(TaskProblem, match="topic exists and is no group"):
        models.create("topic", ["embed"], replace=True)


def test_a_refused_task_is_told_as_it_is(models: GroupRepository) -> None:
    shutil.rmtree(models.root / "embed" / "1")
    with pytest.raises(TaskRefused, match="there is no such version directory"):
        models.create("guard", ["embed", "topic"])


def test_tasks_of_two_backbones(models: GroupRepository, tmp_path: Path) -> None:
    write_backbone(models.root, "second", model=str(tmp_path / "model"), max_batch_size=16)
    write_task(models.root, "far", 1, backbone="second", task=EMBED)
    said = refusal(models, "embed", "far")
    assert "a group is of one backbone: embed on base, far on second. Name tasks of one of" in said
    assert "embed on base, second is asked for" in refusal(models, "embed", backbone="second")
    models.create("guard", ["far"], backbone="second")


def test_tasks_that_read_other_inputs(models: GroupRepository) -> None:
    write_task(models.root, "numbers", 1, task=EMBED, takes="FEATURES", sizes={"FEATURES": 4})
    said = refusal(models, "embed", "numbers")
    assert "a group's tasks read the same input, these do not: embed TEXT [1], numbers FEATURES [4]" in said


def test_more_than_the_backbone_takes(models: GroupRepository) -> None:
    file = models.root / BASE / "config.pbtxt"
    file.write_text(file.read_text() + '\nparameters { key: "group_members" value { string_value: "1" } }\n')
    said = refusal(models, "embed", "topic")
    assert "'guard' has 2 tasks, 'base' takes 1 in a group" in said
    assert f"raise group_members in {file}" in said


def test_tasks_that_answer_in_parts(models: GroupRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(family("text-encoder")), "streams", True)
    assert "embed, topic may answer in several parts" in refusal(models, "embed", "topic")
