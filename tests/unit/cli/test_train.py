"""`fmplex task train`: what is found before the first step, and what becomes of a task when a later one fails."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from task_fixtures import labelled
from typer.testing import CliRunner, Result

from fmplex.cli import app as cli
from fmplex.cli import changes
from fmplex.task import destination, serving
from fmplex.task.task import Task
from fmplex.training import trainer
from fmplex_backend.errors import ServerProblem, TaskProblem, Unreachable
from fmplex_backend.repository import writer
from fmplex_backend.status import BackboneStatus, TaskStatus

runner = CliRunner()


def table(file: Path, labels: list[str], texts: list[str] | None = None) -> Path:
    texts = texts or [f"w{number} w{number + 1}" for number in range(len(labels))]
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True)))
    return file


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts, labels = labelled(60)
    return table(tmp_path / "rows.csv", labels, texts)


class FakeServer:
    """Client in the modules that ask a server: `models` is what it has, `problem` what a load raises."""

    def __init__(self, models: tuple[str, ...] = ("base",), problem: Exception | None = None) -> None:
        self.models, self.problem = models, problem
        self.loaded: list[str] = []

    def __call__(self, url: str, **options: Any) -> FakeServer:
        return self

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def tasks(self) -> Mapping[str, TaskStatus]:
        return {f"of {model}": TaskStatus(name=f"of {model}", backbone=model, state="serving") for model in self.models}

    def status(self, backbone: str) -> BackboneStatus:
        raise ServerProblem("it is too busy to tell")

    def ready(self, model: str) -> bool:
        return model in self.models

    def load(self, name: str) -> None:
        if self.problem is not None:
            raise self.problem
        self.loaded.append(name)

    def wait_for(self, name: str, condition: Callable[[], bool], timeout: float) -> None:
        """It answers at once."""


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail a test in which training begins."""

    def begin(self: Any) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr(trainer.Trainer, "run", begin)


def invoke(root: Path, rows: Path, *more: Any, name: str = "spam") -> Result:
    arguments = ["task", "train", name, "--backbone", "base", "-r", root, "--data", rows, "--epochs", 1, "--rank", 2]
    return runner.invoke(cli.app, [str(each) for each in [*arguments, *more]])


def serve(monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> FakeServer:
    for module in (destination, serving, changes):
        monkeypatch.setattr(module, "Client", server)
    return server


# -- before the first step


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("sp am", [], "cannot name a task"),
        ("base", [], "exists and is not a task"),
        ("spam", ["--backbone", "other"], "there is no backbone 'other'"),
        ("spam", ["-r", "nowhere"], "there is no model repository nowhere"),
        ("spam", ["--text", "body"], "has no column 'body', but text, label"),
        ("spam", ["--label", "kind"], "has no column 'kind', but text, label"),
        ("spam", ["--labels", "ham,eggs"], "none of the labels ham, eggs"),
        ("spam", ["--test", "none.csv"], "there is no file none.csv"),
        ("spam", ["--weight", "-1"], "weight is -1.0"),
        ("spam", ["--epochs", "0"], "epochs is 0"),
    ],
)
def test_mistakes_are_found_before(root: Path, rows: Path, name: str, more: list[str], said: str) -> None:
    result = invoke(root, rows, *more, name=name)
    assert (result.exit_code, said in result.output) == (1, True), result.output


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["ham", "eggs"], "row 1: 'eggs' is none of the labels ham, spam"),
        (["ham", ""], "row 1: there is no label. Fill it in"),
        ([], "has no rows"),
    ],
)
def test_so_are_those_of_the_test_file(root: Path, rows: Path, tmp_path: Path, labels: list[str], said: str) -> None:
    result = invoke(root, rows, "--test", table(tmp_path / "test.csv", labels))
    assert (result.exit_code, said in result.output) == (1, True), result.output
    assert "test.csv" in result.output


@pytest.mark.usefixtures("no_training")
def test_so_are_a_full_disk_and_a_server_that_is_none_of_ours(
    root: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = invoke(root, rows, "--server", "127.0.0.1:9")
    assert (away.exit_code, "127.0.0.1:9" in away.output) == (3, True)
    serve(monkeypatch, FakeServer(("minilm",)))
    other = invoke(root, rows, "--server", "localhost:8001")
    assert other.exit_code == 1
    assert "has no backbone 'base', but minilm: it runs on another repository" in other.output
    monkeypatch.setattr(writer, "MIN_FREE_BYTES", 2**80)
    assert "Make some room" in invoke(root, rows).output


@pytest.mark.usefixtures("no_training")
def test_a_checkpoint_of_something_else(root: Path, rows: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    for more in ([], ["--restart"]):
        result = invoke(root, rows, "--checkpoint", tmp_path / "full", *more)
        assert "is not a checkpoint, and not empty" in result.output
    assert (tmp_path / "full" / "thesis.tex").is_file()


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--reject-below", "0"], "reject_below: Input should be greater than 0"),
        (["--decoder", "multi-label", "--reject-below", "0.5"], "a multi-label decoder has no --reject-below"),
        (["--reject-label", "oos"], "no row has the label 'oos'"),
    ],
)
def test_what_is_to_be_rejected(root: Path, rows: Path, more: list[str], said: str) -> None:
    result = invoke(root, rows, *more)
    assert (result.exit_code, said in result.output) == (1, True), result.output


def test_a_name_that_is_taken_is_meant(root: Path, rows: Path) -> None:
    assert invoke(root, rows).exit_code == 0
    again = invoke(root, rows)
    assert (again.exit_code, "Give --new-version" in again.output) == (1, True)
    assert invoke(root, rows, "--new-version").exit_code == 0
    assert (root / "spam" / "2").is_dir()


# -- afterwards


def test_the_end_says_figures_place_and_how_to_ask(
    root: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = serve(monkeypatch, FakeServer())
    texts, labels = labelled(20, seed=1)
    test = table(tmp_path / "test.csv", [*labels, "ham"], [*texts, labelled(60)[0][0]])
    result = invoke(root, rows, "--server", "there:8001", "--test", test)
    assert result.exit_code == 0, result.output
    saved, main, others, served, ask = result.stdout.splitlines()
    assert saved == f"spam: saved in {root / 'spam' / '1'}"
    assert main.startswith("accuracy ")
    assert "on 21 test rows (the head alone, without the adapter: " in main
    assert others.startswith("macro_f1 ")
    assert served == "served at there:8001"
    command = shlex.split(ask.removeprefix("to ask it: "))
    assert command[:3] == ["fmplex", "predict", "spam"]
    assert command[3] in labelled(60)[0]
    assert command[4:] == ["--server", "there:8001"]
    assert server.loaded == ["spam"]
    assert "row 20: 1 of 21 test rows are training rows too" in result.stderr
    assert "spam: checking, 0%" in result.stderr  # no terminal: lines
    metrics = json.loads((root / "spam" / "1" / "task.json").read_text())["metrics"]
    assert {"accuracy", "head_only_accuracy", "validation_accuracy", "head_only_validation_accuracy"} <= metrics.keys()


def test_without_server_and_test_rows(root: Path, rows: Path) -> None:
    result = invoke(root, rows)
    _, main, serve_it, ask = result.stdout.splitlines()
    assert "on the validation rows (the head alone" in main
    assert serve_it == "to serve it: fmplex task load spam --server localhost:8001"
    assert ask.startswith("to ask it: fmplex predict spam '")
    document = json.loads(invoke(root, rows, "--new-version", "--json").stdout)
    assert (document["served"], document["notes"]) == (None, [])


def test_a_server_that_goes_away_costs_nothing(root: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, FakeServer(problem=Unreachable("there:8001: gone", "UNAVAILABLE")))
    result = invoke(root, rows, "--server", "there:8001")
    assert result.exit_code == 3
    assert f"'spam' is saved in {root / 'spam' / '1'}" in result.stderr
    command = result.stderr.strip().split("when that is mended: ")[1]
    back = serve(monkeypatch, FakeServer())
    done = runner.invoke(cli.app, shlex.split(command)[1:])
    assert (done.exit_code, done.stdout) == (0, "spam: loaded\n")
    assert back.loaded == ["spam"]
    assert not (root / "spam" / "2").exists()


def test_a_repository_that_goes_away_costs_nothing(root: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Task, "save", _refuse)
        result = invoke(root, rows)
    assert result.exit_code == 1
    command = shlex.split(result.stderr.strip().split("when that is mended: ")[1])
    serve(monkeypatch, FakeServer())
    done = runner.invoke(cli.app, command[1:])
    assert (done.exit_code, (root / "spam" / "1" / "task.json").is_file()) == (0, True), done.output


def _refuse(self: Task, repository: Path, *, held: bool, server: str) -> Path:
    raise TaskProblem("the disk is full")


@pytest.mark.parametrize("error", [TaskProblem("no figures"), KeyboardInterrupt()])
def test_a_test_that_fails_costs_nothing(
    root: Path, rows: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(self: Task, *rest: Any) -> None:
        raise error

    monkeypatch.setattr(Task, "_evaluate", fail)
    result = invoke(root, rows, "--test", rows)
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert f"what was trained is saved in {root / 'spam' / '1'}" in result.stderr
    assert (root / "spam" / "1" / "task.json").is_file()


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(
    root: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = root.resolve().parent / ".fmplex-training" / "spam"
    steps = trainer.Trainer.step

    def press(self: Any, *rest: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return steps(self, *rest)

    with monkeypatch.context() as pressed:
        pressed.setattr(trainer.Trainer, "step", press)
        result = invoke(root, rows)
    assert result.exit_code == 130
    assert f"step 1 of 2. It goes on from the checkpoint {folder}" in result.stderr
    other = invoke(root, rows, "--rank", 3)
    assert (other.exit_code, "is of other data, options or another task" in other.output) == (1, True)
    assert invoke(root, rows).exit_code == 0
    assert not folder.exists()

    def at_once(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "run", at_once)
    early = invoke(root, rows, "--new-version")
    assert (early.exit_code, "there is nothing to save yet" in early.stderr) == (130, True)


def test_rows_are_checked_before_anything_is_loaded(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fmplex.task.backbone", None)  # which imports torch: importing it is an error
    same, blank = table(tmp_path / "same.csv", ["ham"] * 4), table(tmp_path / "blank.csv", ["ham", "", "spam"])
    good = table(tmp_path / "good.csv", ["ham", "spam"])
    other = table(tmp_path / "other.csv", ["eggs"])
    assert "all rows have the label 'ham'" in invoke(root, same).stderr
    assert "row 1: there is no label" in invoke(root, blank).stderr
    assert "none of the labels ham, spam" in invoke(root, good, "--test", other).stderr


@pytest.mark.usefixtures("no_training")
def test_a_prefix_that_leaves_no_room_is_said_before_the_first_step(root: Path, rows: Path) -> None:
    failed = invoke(root, rows, "--prefix", "w1 w2 w3 w4 w5 w6 w7 w8 w9", "--max-length", 6)
    assert failed.exit_code == 1
    assert "encoder.prefix: it fills all tokens before the text begins" in failed.stderr


def test_add_takes_no_name_that_is_there(root: Path, rows: Path) -> None:
    assert invoke(root, rows).exit_code == 0
    adapter = root / "spam" / "1" / "adapter"
    add = ["task", "add", "spam", "--backbone", "base", "-r", str(root), "--adapter", str(adapter)]
    refused = runner.invoke(cli.app, add)
    assert (refused.exit_code, "Give --new-version" in refused.stderr) == (1, True), refused.output
    assert not (root / "spam" / "2").exists()
    assert runner.invoke(cli.app, [*add, "--new-version"]).exit_code == 0
    assert (root / "spam" / "2").exists()


def test_a_version_that_is_held_is_saved_and_does_not_serve(root: Path, rows: Path) -> None:
    early = invoke(root, rows, "--hold")
    assert (early.exit_code, "--hold goes with --new-version" in early.output) == (1, True)
    assert invoke(root, rows).exit_code == 0
    held = invoke(root, rows, "--new-version", "--hold", "--server", "nobody:1")
    assert held.exit_code == 0, held.output
    assert "to try it: fmplex task canary spam" in held.output
    assert writer.ModelRepository(root).task("spam")[1].version.number == 1
    assert (root / "spam" / "2").exists()


def test_restart_begins_anew(root: Path, rows: Path) -> None:
    folder = root.resolve().parent / ".fmplex-training" / "spam"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text('{"digest": "another"}')
    assert "is of other data" in invoke(root, rows).output
    assert invoke(root, rows, "--restart").exit_code == 0


def test_a_score_head_without_labels_is_said(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(self: Task, what: Any) -> None:
        self.remarks.append("the adapter's score head (3 outputs) is left out, for want of labels")

    rows = table(tmp_path / "rows.csv", *reversed(labelled(40)))
    assert invoke(root, rows).exit_code == 0
    monkeypatch.setattr(Task, "_take_imported", imported)
    add = ["task", "add", "more", "--backbone", "base", "-r", root, "--adapter", root / "spam" / "1" / "adapter"]
    monkeypatch.setattr(Task, "save", lambda self, repository, held: root)
    done = runner.invoke(cli.app, [str(each) for each in add])
    assert "note: the adapter's score head (3 outputs) is left out" in done.stdout, done.output
