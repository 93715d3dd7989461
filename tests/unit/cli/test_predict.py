"""`fmplex predict`: what is printed and written, resuming, and exit statuses; the server is the test's."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from typer.testing import CliRunner, Result

from fmplex import Label, ServerProblem, Unreachable, Values
from fmplex.cli import app as cli
from fmplex.cli import files
from fmplex.client import sync
from fmplex.client.wire import Interface

runner = CliRunner()
TEXTS = Interface("spam", "classification", ("ham", "spam", "eggs", "beans"), ("SCORES", "LABEL"), 4)
NUMBERS = Interface("slope", "regression", (), ("SCORES",), 4, "FEATURES", 2)


class Server:
    """Says how long texts are, and the sum of numbers; `fails` are items that make a request fail, in their order."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.fails: dict[str, Exception] = {}
        self.timeouts: list[float | None] = []

    def interface(self, task: str) -> Interface:
        if task not in ("spam", "slope"):
            raise ServerProblem(f"no task {task!r}")
        return TEXTS if task == "spam" else NUMBERS

    def predict(self, task: str, items: Sequence[Any], timeout: float | None = None) -> list[Any]:
        self.timeouts.append(timeout)
        self.asked += items
        for item in items:
            if isinstance(item, str) and item in self.fails:
                raise self.fails[item]
        return [self._answer(item) for item in items]

    def _answer(self, item: Any) -> Any:
        if not isinstance(item, str):
            return Values(np.float32([sum(item)]))
        long = len(item) > 10
        first, second = ("spam", "ham") if long else ("ham", "spam")
        return Label(first, {"beans": 0.05, "eggs": 0.1, second: 0.2, first: 0.6})


class FakeClient:
    """Of either kind, with the server behind it."""

    server: Server

    def __init__(self, url: str, timeout: float) -> None:
        self.timeout = timeout

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def interface(self, task: str) -> Interface:
        return self.server.interface(task)

    def predict(self, task: str, items: Sequence[Any], timeout: float | None = None) -> list[Any]:
        return self.server.predict(task, items, timeout)


class FakeAsyncClient(FakeClient):
    async def __aenter__(self) -> FakeAsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def interface(self, task: str) -> Interface:  # type: ignore[override]
        return self.server.interface(task)

    async def predict(self, task: str, items: Sequence[Any]) -> list[Any]:  # type: ignore[override]
        return self.server.predict(task, items)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(FakeClient, "server", made, raising=False)
    monkeypatch.setattr(sync, "Client", FakeClient)
    monkeypatch.setattr(files, "AsyncClient", FakeAsyncClient)
    return made


def run(*arguments: Any, code: int = 0, stdin: str | None = None) -> Result:
    result = runner.invoke(cli.app, ["predict", *map(str, arguments)], input=stdin)
    assert result.exit_code == code, result.output
    return result


def write(folder: Path, rows: int, name: str = "in.csv") -> Path:
    file = folder / name
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text", "label"])
        writer.writerows([number, f"text {number}" + " long" * (number % 2), "old"] for number in range(rows))
    return file


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def rows_in(file: Path) -> Any:
    return parquet.read_table(file).to_pylist() if file.suffix == ".parquet" else file.read_bytes()


class TestTexts:
    def test_the_best_three(self, server: Server) -> None:
        assert run("spam", "a long text it is").stdout == "spam 0.600, ham 0.200, eggs 0.100\n"
        assert run("spam", "a long text it is", "--top", 1).stdout == "spam 0.600\n"
        assert run("spam", "a long text it is", "--all").stdout == "spam 0.600, ham 0.200, eggs 0.100, beans 0.050\n"

    def test_several_have_their_beginnings_before_them(self, server: Server) -> None:
        lines = run("spam", "a\nrose", "x" * 200).stdout.splitlines()
        assert lines[0].startswith("a rose: ham ")
        assert lines[1].startswith("x" * 79 + "…: spam ")

    def test_rows_of_numbers(self, server: Server) -> None:
        assert run("slope", "1,2", "0.5,0.5").stdout == "1,2: 3.000\n0.5,0.5: 1.000\n"

    def test_json_is_whole(self, server: Server) -> None:
        (found,) = json.loads(run("spam", "a long text it is", "--json").stdout)
        assert (found["label"], len(found["scores"])) == ("spam", 4)

    def test_a_threshold(self, server: Server) -> None:
        line = run("spam", "a long text it is", "--threshold", 0.7, "--top", 1).stdout
        assert line == "no label (best: spam 0.600)\n"
        (found,) = json.loads(run("spam", "a long text it is", "--threshold", 0.7, "--json").stdout)
        assert found["label"] == ""
        assert "Leave --threshold out" in run("slope", "1,2", "--threshold", 0.7, code=1).stderr

    def test_one_deadline_for_the_look_up_and_the_request(self, server: Server) -> None:
        run("spam", "a", "--timeout", 5)
        (left,) = server.timeouts
        assert left is not None
        assert 4 < left < 5

    @pytest.mark.parametrize(
        "arguments",
        [
            ["spam"],
            ["spam", "a", "--file", "in.csv"],
            ["spam", "a", "--out", "o.csv"],
            ["spam", "-f", "x", "--format", "xls"],
            ["spam", "-f", "x.csv", "--out", "x.csv", "--overwrite"],
        ],
    )
    def test_wrong_usage(self, server: Server, arguments: list[str]) -> None:
        run(*arguments, code=2)


class TestFiles:
    @pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
    def test_every_row_in_order_with_its_columns(self, server: Server, tmp_path: Path, kind: str) -> None:
        out = tmp_path / f"out.{kind}"
        done = run("spam", "--file", write(tmp_path, 30), "--out", out)
        assert done.stdout == ""
        assert done.stderr.endswith(f"fmplex: 30 rows: {out}\n")
        if kind == "csv":
            rows = table(out)
            assert [row["id"] for row in rows] == [str(number) for number in range(30)]
            assert list(rows[0]) == ["id", "text", "label", "predicted_label", "score", "truncated", "error"]
            assert [row["predicted_label"] for row in rows[:2]] == ["ham", "spam"]
            assert {row["label"] for row in rows} == {"old"}
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", out.name]

    def test_numbers(self, server: Server, tmp_path: Path) -> None:
        file, out = tmp_path / "in.csv", tmp_path / "out.csv"
        file.write_text("a,b,name\n1,2,x\n3,tall,y\n5,6,z\n")
        assert (
            "the task reads 2 numbers, a, b, name are 3 columns" in run("slope", "-f", file, "-o", out, code=1).stderr
        )
        done = run("slope", "-f", file, "-o", out, "--column", "a,b", code=1)
        assert f"{file}, line 3: ['3', 'tall'] is not a row of numbers" in done.stderr
        assert [row["value"] for row in table(out)] == ["3", "", "11"]

    def test_bad_rows_are_named_and_keep_their_place(self, server: Server, tmp_path: Path) -> None:
        file, out = tmp_path / "in.csv", tmp_path / "out.csv"
        file.write_bytes(b"text,id\nfine,1\n,2\n\xff,3\nfine,4\nodd one,5\n")
        server.fails["odd one"] = ServerProblem("too odd")
        done = run("spam", "-f", file, "-o", out, code=1)
        for line, error in ((3, "'text' is empty"), (4, "'text' is not valid UTF-8"), (6, "too odd")):
            assert f"fmplex: {file}, line {line}: {error}\n" in done.stderr
        assert done.stderr.endswith(f"fmplex: 5 rows, 3 of them with an error: {out}\n")
        assert [row["label"] for row in table(out)] == ["ham", "", "", "ham", ""]
        assert [bool(row["error"]) for row in table(out)] == [False, True, True, False, True]

    def test_only_so_many_errors_are_said(self, server: Server, tmp_path: Path) -> None:
        file = tmp_path / "in.csv"
        file.write_text("text,id\n" + ",1\n" * 50 + "fine,1\n")
        done = run("spam", "-f", file, "-o", tmp_path / "out.csv", code=1)
        assert done.stderr.count("is empty") == 20
        assert "30 more rows have an error" in done.stderr

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_stopped_it_goes_on(self, server: Server, tmp_path: Path, kind: str) -> None:
        file, out, whole = write(tmp_path, 40), tmp_path / f"out.{kind}", tmp_path / f"whole.{kind}"
        run("spam", "-f", file, "-o", whole)
        server.fails["text 21 long"] = Unreachable("localhost:8001: gone")
        stopped = run("spam", "-f", file, "-o", out, code=3)
        assert "stopped after 20 rows: localhost:8001: gone. The same command again goes on there" in stopped.stderr
        server.fails.clear()
        server.asked.clear()
        again = run("spam", "-f", file, "-o", out)
        assert f"going on after 20 rows of {out}" in again.stderr
        assert not {f"text {number}" for number in range(20)} & {*server.asked}
        assert rows_in(out) == rows_in(whole)
        assert "is there already" in run("spam", "-f", file, "-o", out, code=1).stderr
        run("spam", "-f", file, "-o", out, "--overwrite")

    def test_another_input_does_not_go_on(self, server: Server, tmp_path: Path) -> None:
        file, out = write(tmp_path, 40), tmp_path / "out.csv"
        server.fails["text 21 long"] = Unreachable("gone")
        run("spam", "-f", file, "-o", out, code=3)
        assert "begun with another --top" in run("spam", "-f", file, "-o", out, "--top", 2, code=1).stderr
        write(tmp_path, 41)
        assert "begun with another size of the input" in run("spam", "-f", file, "-o", out, code=1).stderr

    def test_a_task_that_cannot_be_asked_leaves_nothing(self, server: Server, tmp_path: Path) -> None:
        server.fails["a short text"] = ServerProblem("refused: decoder.safetensors")
        done = run("spam", "-f", write(tmp_path, 4), "-o", tmp_path / "out.csv", code=1)
        assert done.stderr == "fmplex: refused: decoder.safetensors\n"
        assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]

    def test_no_rows(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "in.csv").write_text("text,id\n")
        run("spam", "-f", tmp_path / "in.csv", "-o", tmp_path / "out.csv")
        assert (tmp_path / "out.csv").read_text() == "text,id,label,score,truncated,error\n"

    def test_a_place_that_cannot_be_written(self, server: Server, tmp_path: Path) -> None:
        (tmp_path / "out.csv.progress.new").mkdir()
        done = run("spam", "-f", write(tmp_path, 4), "-o", tmp_path / "out.csv", code=1)
        assert done.stderr == f"fmplex: {tmp_path / 'out.csv.progress.new'}: Is a directory\n"

    def test_scores_are_kept_where_they_are_asked_for(self, server: Server, tmp_path: Path) -> None:
        file = write(tmp_path, 2)
        run("spam", "-f", file, "-o", tmp_path / "a.jsonl", "--top", 2)
        run("spam", "-f", file, "-o", tmp_path / "b.jsonl", "--all")
        found = [json.loads((tmp_path / name).read_text().splitlines()[1]) for name in ("a.jsonl", "b.jsonl")]
        assert [len(row["scores"]) for row in found] == [2, 4]

    def test_a_threshold_empties_labels(self, server: Server, tmp_path: Path) -> None:
        run("spam", "-f", write(tmp_path, 2), "-o", tmp_path / "out.csv", "--threshold", 0.7)
        assert [(row["predicted_label"], row["score"]) for row in table(tmp_path / "out.csv")] == [("", "0.6")] * 2


class TestStreams:
    def test_onto_stdout(self, server: Server, tmp_path: Path) -> None:
        lines = run("spam", "-f", write(tmp_path, 6)).stdout.splitlines()
        assert lines[1] == "text 1 long: spam 0.600, ham 0.200, eggs 0.100"
        rows = [json.loads(line) for line in run("spam", "-f", tmp_path / "in.csv", "--json").stdout.splitlines()]
        assert [row["id"] for row in rows] == list("012345")

    @pytest.mark.parametrize("dash", [["-"], ["--file", "-"]])
    def test_from_stdin(self, server: Server, dash: list[str]) -> None:
        assert run("spam", *dash, "--top", 1, stdin="one\na long text it is\n").stdout == (
            "one: ham 0.600\na long text it is: spam 0.600\n"
        )
        assert run("spam", *dash, "--top", 1, stdin="id,text\n7,one\n").stdout == "one: ham 0.600\n"

    def test_numbers_from_stdin(self, server: Server) -> None:
        assert run("slope", "-", stdin="1,2\n3,4\n").stdout == "1,2: 3.000\n3,4: 7.000\n"
        assert run("slope", "-", "--column", "b,a", stdin="a,n,b\n1,x,2\n").stdout == "2,1: 3.000\n"

    def test_a_bad_row_has_its_place(self, server: Server) -> None:
        done = run("spam", "-", "--top", 1, stdin="text,id\none,1\n,2\n", code=1)
        assert done.stdout == "one: ham 0.600\nline 3: error: 'text' is empty\n"
        assert "fmplex: stdin, line 3: 'text' is empty\n" in done.stderr


def test_no_task(server: Server, tmp_path: Path) -> None:
    assert "no task 'gone'" in run("gone", "-f", write(tmp_path, 2), "-o", tmp_path / "out.csv", code=1).stderr
    assert "no task 'gone'" in run("gone", "a", code=1).stderr


def test_a_file_without_rows_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert "empty.txt has no rows. Name a file" in run("spam", "-f", tmp_path / "empty.txt").stderr
