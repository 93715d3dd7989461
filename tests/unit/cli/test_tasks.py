"""`fmplex task ...`: what is done, what is said, in words and in JSON, and exit statuses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from task_fixtures import labelled
from typer.testing import CliRunner

from fmplex.cli import app as cli

runner = CliRunner()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    texts, labels = labelled(80)
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True)))
    return file


def run(*arguments: Any, code: int = 0) -> str:
    result = runner.invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout


def document(*arguments: Any, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code))


def train(root: Path, rows: Path, name: str = "spam", *more: Any) -> Any:
    return document(
        "task",
        "train",
        name,
        "--backbone",
        "base",
        "-r",
        root,
        "--data",
        rows,
        "--test",
        rows,
        "--epochs",
        1,
        "--rank",
        2,
        *more,
    )


def test_a_tasks_life(root: Path, rows: Path) -> None:
    made = train(root, rows, "spam", "--weight", 3, "--max-queue-bytes", 4096)
    assert made["metrics"]["accuracy"] > 0.8
    assert made["path"] == str(root / "spam" / "1")
    (row,) = document("task", "list", "-r", root)
    assert (row["task"], row["weight"], row["max_queue_bytes"], row["version"]) == ("spam", 3.0, 4096, 1)
    assert (row["adapter"], row["decoder"]) == ("LoRA r=2", "classification")
    assert row["figure"].startswith("accuracy 0.")
    assert "spam" in run("task", "list", "-r", root)
    assert document("task", "set", "spam", "-r", root, "--weight", 5, "--slo-ms", 40)["weight"] == 5
    assert document("task", "set", "spam", "-r", root, "--new-tag")["tag"] != row["tag"]
    assert not document("task", "list", "-r", root)[0]["cache"]
    assert "spam: cache true" in run("task", "set", "spam", "-r", root, "--cache")
    assert document("task", "list", "-r", root)[0]["cache"]
    assert document("task", "set", "spam", "-r", root, "--no-cache")["cache"] is False
    shown = document("task", "show", "spam", "-r", root)
    assert (shown["weight"], shown["slo_ms"], shown["versions"]) == (5.0, 40.0, [1])
    assert shown["task.json"]["decoder"]["labels"] == ["ham", "spam"]
    assert document("task", "check", root / "spam") == {"directory": str(root / "spam"), "ok": True}
    assert document("task", "check", root / "spam" / "1", "--backbone", "base", "-r", root)["ok"]
    assert train(root, rows, "spam", "--adapter", "none", "--new-version")["path"] == str(root / "spam" / "2")
    assert document("task", "rollback", "spam", "-r", root)["version"] == 1
    assert document("task", "rollback", "spam", "-r", root, "--to", 2)["version"] == 2
    assert document("task", "remove", "spam", "-r", root)["removed"]
    assert document("task", "list", "-r", root) == []


@pytest.mark.parametrize("numbers", ["all", "high, low"])
def test_columns_of_numbers_in_the_place_of_a_text(root: Path, tmp_path: Path, numbers: str) -> None:
    rng = random.Random(0)
    cells = [(rng.random(), rng.random()) for _ in range(80)]
    file = tmp_path / "numbers.csv"
    file.write_text("high,low,kind\n" + "".join(f"{a},{b},{'up' if a > b else 'down'}\n" for a, b in cells))
    made = train(root, file, "slope", "--numbers", numbers, "--label", "kind", "--adapter", "none", "--epochs", 20)
    assert made["metrics"]["test_rows"] == 80
    assert made["metrics"]["accuracy"] > 0.8
    shown = document("task", "show", "slope", "-r", root)
    assert (shown["task.json"]["encoder"]["kind"], shown["task.json"]["encoder"]["features"]) == ("projection", 2)
    assert document("task", "check", root / "slope")["ok"]
    missing = ["task", "train", "slope", "--backbone", "base", "-r", root, "--data", file, "--label", "kind"]
    missing += ["--numbers", "depth", "--new-version"]
    assert "has no column 'depth', but high, low, kind" in document(*missing, code=1)["error"]


def test_an_adapter_becomes_a_task(root: Path, rows: Path) -> None:
    adapter = Path(train(root, rows)["path"]) / "adapter"
    bounds = ("--max-queue", 9, "--max-queue-bytes", 8192)
    assert (
        document("task", "add", "vectors", "--backbone", "base", "-r", root, "--adapter", adapter, *bounds)["task"]
        == "vectors"
    )
    rows_by_name = {row["task"]: row for row in document("task", "list", "-r", root)}
    assert {name: row["decoder"] for name, row in rows_by_name.items()} == {
        "spam": "classification",
        "vectors": "embedding",
    }
    assert (rows_by_name["vectors"]["max_queue"], rows_by_name["vectors"]["max_queue_bytes"]) == (9, 8192)
    failed = document(
        "task", "add", "more", "--backbone", "base", "-r", root, "--adapter", adapter, "--labels", "a,b", code=1
    )
    assert "has no score head" in failed["error"]
    again = train(root, rows, "again", "--from", adapter)
    assert again["metrics"]["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("task", "set", "spam", "--weight", "2"), 1, "there is no task 'spam'"),
        (("task", "set", "spam"), 1, "nothing to set"),
        (("task", "remove", "spam"), 1, "there is no task 'spam'"),
        (("task", "rollback", "spam"), 1, "there is no task 'spam'"),
        (("task", "show", "spam"), 1, "there is no task 'spam'"),
        (("task", "train", "spam", "--backbone", "base", "--data", "none.csv"), 1, "there is no file none.csv"),
        (("task", "set", "spam", "--new-tag"), 1, "there is no task 'spam'"),
        (("task", "add", "spam", "--adapter", "none", "--max-queue-bytes", "0"), 1, "max_queue_bytes is 0. It must be"),
        (("task", "set", "spam", "--weight", "1001"), 1, "not a number from 0.001 to 1000"),
        (("task", "set", "spam", "--weight", "1e-18", "--new-tag"), 1, "not a number from 0.001 to 1000"),
        (
            ("task", "train", "spam", "--backbone", "base", "--data", "none.csv", "--weight", "0"),
            1,
            "not a number from",
        ),
        (("task", "set", "spam", "--weight", "much"), 2, ""),
        (("task", "nonsense"), 2, ""),
    ],
)
def test_problems_and_exit_statuses(root: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    more = ["-r", str(root)] if code == 1 else []
    result = runner.invoke(cli.app, [*arguments, *more])
    assert result.exit_code == code
    assert said in result.output


def test_a_broken_task_is_named(root: Path, rows: Path) -> None:
    path = Path(train(root, rows)["path"])
    (path / "decoder.safetensors").write_bytes(b"short")
    failed = document("task", "check", root / "spam", code=1)
    assert failed["kind"] == "TaskRefused"
    assert "decoder.safetensors" in failed["error"]
    (path / "task.json").write_text("{")
    (row,) = document("task", "list", "-r", root)
    assert "not readable as JSON" in row["error"]


def test_no_server(root: Path) -> None:
    result = runner.invoke(cli.app, ["predict", "spam", "hello", "--server", "127.0.0.1:9", "--timeout", "0.3"])
    assert result.exit_code == 3
    assert "127.0.0.1:9" in result.output


def test_completion_is_offered() -> None:
    assert "--install-completion" in run("--help")
