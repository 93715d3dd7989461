"""Canaries, shadows, promotions and rollbacks as they are written: one change of the entry each."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from backend_fixtures import text_task, write_config, write_task, write_version
from task_fixtures import BASE, tiny_repository

from fmplex_backend.errors import TaskProblem, TaskRefused
from fmplex_backend.repository.candidates import CandidateSpec
from fmplex_backend.repository.config import load_task_config
from fmplex_backend.repository.configs import Terms, read_config
from fmplex_backend.repository.rollout import Rollout
from fmplex_backend.repository.tasks import Repository, TaskSpec
from fmplex_backend.repository.writer import Pipeline
from fmplex_backend.repository.writer import write_config as write_task_config

EMBED = text_task({"kind": "embedding"})


@pytest.fixture
def models(tmp_path: Path) -> Rollout:
    """A task with three versions of which the highest serves."""
    root = tiny_repository(tmp_path)
    write_task(root, "one", 0, backbone=BASE, task=EMBED, weight=2.0)
    for number in (2, 3):
        write_version(root, "one", number, EMBED)
    return Rollout(root)


def spec(models: Rollout) -> TaskSpec:
    found = Repository(models.root, BASE).read_task("one")
    assert isinstance(found, TaskSpec), found
    return found


def candidates(models: Rollout) -> list[tuple[str, int | None, float]]:
    assert not [each.problem for each in spec(models).candidates if each.problem]
    return [(each.role, each.number, each.share) for each in spec(models).candidates]


def test_what_was_saved_a_moment_ago_is_tried_and_the_version_before_serves(models: Rollout) -> None:
    tried = models.canary("one", 0.05)
    assert (tried.role, tried.version, tried.served) == ("canary", 3, 2)
    assert spec(models).version.number == 2
    assert candidates(models) == [("canary", 3, 0.05)]
    assert spec(models).weight == 2.0


def test_the_share_is_changed(models: Rollout) -> None:
    models.canary("one", 0.05)
    assert models.canary("one", 1 / 3).served == 2
    assert candidates(models) == [("canary", 3, 0.333333)]


def test_an_older_version_is_tried_while_the_highest_serves(models: Rollout) -> None:
    assert models.canary("one", 0.5, version=1).served == 3
    assert not read_config(models.root / "one" / "config.pbtxt").HasField("version_policy")


def test_promoted_in_one_step(models: Rollout) -> None:
    models.canary("one", 0.05)
    saved = models.promote("one")
    assert (saved.version, spec(models).version.number, candidates(models)) == (3, 3, [])
    proto = read_config(models.root / "one" / "config.pbtxt")
    assert not proto.HasField("version_policy"), "the next version that is saved serves"
    assert set(proto.parameters) == {"decoder", "weight"}


def test_rolled_back_in_one_step(models: Rollout) -> None:
    models.canary("one", 0.05)
    models.shadow("one", 1)
    assert models.rollback("one").version == 2
    assert (spec(models).version.number, candidates(models)) == (2, [])
    assert models.rollback("one").version == 1, "without a canary it goes back by one"


def test_a_shadow(models: Rollout) -> None:
    assert models.shadow("one", tolerance=0.1).served == 2
    (candidate,) = spec(models).candidates
    assert (candidate.role, candidate.number, candidate.tolerance) == ("shadow", 3, 0.1)
    assert models.promote("one").version == 3


def test_both_and_one_of_them_ends(models: Rollout) -> None:
    models.shadow("one", 1)
    models.canary("one", 0.1, 3)
    models.stop("one", "shadow")
    assert candidates(models) == [("canary", 3, 0.1)]
    models.stop("one", "canary")
    assert candidates(models) == []
    assert spec(models).version.number == 2
    with pytest.raises(TaskProblem, match="'one' has no canary"):
        models.stop("one", "canary")


def test_what_becomes_the_version_that_serves_is_tried_no_more(models: Rollout) -> None:
    models.shadow("one", 2)
    assert spec(models).version.number == 3
    models.canary("one", 0.1, 3)
    assert candidates(models) == [("canary", 3, 0.1)], "2 serves beside it, and was the shadow"


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_shares_that_are_none(models: Rollout, share: float) -> None:
    with pytest.raises(TaskProblem, match="between 0 and 1"):
        models.canary("one", share)


def test_versions_that_are_not_there(models: Rollout) -> None:
    with pytest.raises(TaskProblem, match=r"'one' has no version 9, but 1, 2, 3\. Name one of them"):
        models.canary("one", 0.1, 9)
    with pytest.raises(TaskProblem, match="there is no task 'two'"):
        models.shadow("two")
    with pytest.raises(TaskProblem, match="neither a canary nor a shadow"):
        models.promote("one")
    with pytest.raises(TaskProblem, match="the tolerance is 2"):
        models.shadow("one", tolerance=2)


def test_a_task_with_one_version_has_nothing_to_try(tmp_path: Path) -> None:
    root = tiny_repository(tmp_path)
    write_task(root, "one", 0, backbone=BASE, task=EMBED)
    with pytest.raises(TaskProblem, match="no version before 1"):
        Rollout(root).canary("one", 0.1)


def test_versions_that_cannot_stand_behind_one_entry(models: Rollout) -> None:
    labelled = text_task({"kind": "similarity", "labels": ["a", "b"]})
    write_version(models.root, "one", 3, labelled)
    write_config(models.root, "one", 0, backbone=BASE, serves=2)
    with pytest.raises(TaskProblem, match="version 3 of 'one' does not make EMBEDDING, as version 2 does"):
        models.canary("one", 0.1)
    write_version(models.root, "one", 2, text_task({"kind": "similarity", "labels": ["a", "b", "c"]}))
    with pytest.raises(TaskProblem, match=r"makes SCORES of 2 instead of 3.*task rollback one --to 3"):
        models.canary("one", 0.1)
    write_version(models.root, "one", 2, text_task({"kind": "nearest", "labels": ["a", "b"]}))
    assert models.canary("one", 0.1).served == 2
    with pytest.raises(TaskProblem, match="cannot be compared"):
        models.shadow("one")


def test_a_version_that_is_held_waits_to_be_promoted(models: Rollout) -> None:
    config = load_task_config(models.root / "one" / "3" / "task.json")
    pipeline = Pipeline(config, "TEXT", 1, {"EMBEDDING": 32}, lambda path: write_task_config(path, config))
    assert models.save("one", BASE, pipeline, Terms(), held=True).version == 4
    assert spec(models).version.number == 3
    models.canary("one", 0.1)
    assert models.save("one", BASE, pipeline, Terms(), held=True).version == 5
    assert candidates(models) == [("canary", 4, 0.1)]
    assert models.rollback("one").version == 3
    assert models.promote("one").version == 5
    with pytest.raises(TaskProblem, match="'two' is new"):
        models.save("two", BASE, pipeline, Terms(), held=True)


def test_nothing_is_saved_while_a_version_is_tried(models: Rollout) -> None:
    models.canary("one", 0.1)
    with pytest.raises(TaskProblem, match="version 3 of 'one' is tried as its canary"):
        models.check_place("one", BASE, Terms())
    models.check_place("one", BASE, Terms(), held=True)
    models.promote("one")
    models.check_place("one", BASE, Terms())


def test_an_entry_that_is_wrong_about_it_is_a_task_all_the_same(models: Rollout) -> None:
    write_config(models.root, "one", 0, backbone=BASE, parameters={"canary_version": "7", "canary_share": "0.1"})
    assert spec(models).version.number == 3
    (candidate,) = spec(models).candidates
    assert candidate == CandidateSpec("canary", 7, problem=candidate.problem)
    assert "one/7" in candidate.problem
    assert models.rollback("one").version == 3
    assert candidates(models) == []


# -- the version that serves is gone


def serving_a_version_that_is_gone(models: Rollout, number: int) -> None:
    """As its entry says; other versions are there."""
    models.rollback("one", to=number)
    if number == 3:  # the highest is named by no entry, unless a person or a canary has written it
        config = models.root / "one" / "config.pbtxt"
        config.write_text(config.read_text() + "version_policy { specific { versions: 3 } }")
    shutil.rmtree(models.root / "one" / str(number))


def test_rolled_back_from_a_version_that_is_gone(models: Rollout) -> None:
    serving_a_version_that_is_gone(models, 3)
    with pytest.raises(TaskRefused, match="Put it back, or serve another one: fmplex task rollback one --to 2"):
        models.task("one")
    assert models.rollback("one").version == 2
    assert (spec(models).version.number, spec(models).weight, spec(models).vfm) == (2, 2.0, 0)


def test_rolled_forward_from_a_version_that_is_gone(models: Rollout) -> None:
    serving_a_version_that_is_gone(models, 1)
    with pytest.raises(TaskProblem, match=r"no version before 1 to go back to\. Name a later one with --to: 2, 3"):
        models.rollback("one")
    with pytest.raises(TaskProblem, match="'one' has no version 1, but 2, 3"):
        models.rollback("one", to=1)
    assert models.rollback("one", to=3).version == 3
    assert spec(models).version.number == 3


@pytest.mark.parametrize("how", ["rollback", "promote"])
def test_a_canary_beside_a_version_that_is_gone(models: Rollout, how: str) -> None:
    """Back is before the version that is gone, forward is the canary."""
    models.canary("one", 0.5)
    shutil.rmtree(models.root / "one" / "2")
    saved = models.rollback("one") if how == "rollback" else models.promote("one")
    assert saved.version == (1 if how == "rollback" else 3)
    assert spec(models).version.number == saved.version
    assert candidates(models) == []


def test_a_held_version_is_promoted_where_the_one_that_serves_is_gone(models: Rollout) -> None:
    serving_a_version_that_is_gone(models, 2)
    assert models.promote("one").version == 3
    serving_a_version_that_is_gone(models, 3)
    with pytest.raises(TaskProblem, match="no version after 3, whose directory is gone"):
        models.promote("one")


def test_what_else_is_wrong_with_an_entry_is_said(models: Rollout) -> None:
    """No version is left; or another line of the entry cannot be read."""
    serving_a_version_that_is_gone(models, 2)
    config = models.root / "one" / "config.pbtxt"
    text = config.read_text()
    config.write_text(text + 'parameters { key: "weight" value { string_value: "heavy" } }')
    for change in (models.rollback, models.promote):
        with pytest.raises(TaskRefused, match="weight"):
            change("one")
    config.write_text(text)
    for number in (1, 3):
        shutil.rmtree(models.root / "one" / str(number))
    for change in (models.rollback, models.promote):
        with pytest.raises(TaskRefused, match="there is no such version directory"):
            change("one")
