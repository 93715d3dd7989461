"""`fmplex chat` with a client that only remembers."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner

from fmplex.cli import app as cli
from fmplex.cli import chat
from fmplex.cli.chat import Conversation
from fmplex.client import sync
from fmplex.client.wire import Interface
from fmplex_backend.errors import ServerProblem

runner = CliRunner()


@dataclass(frozen=True)
class Part:
    text: str
    finish_reason: str = ""


class FakeClient:
    """Repeats what it is told last, a letter at a time; `raises` comes after so many letters."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.asked: list[tuple[list[tuple[str, str]], Any]] = []
        self.raises: dict[int, BaseException] = {}
        self.outputs: tuple[str, ...] = ("text_output",)
        self.reason = "stop"

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""

    def interface(self, task: str) -> Interface:
        return Interface(task, "", (), self.outputs, 1)

    def stream(self, task: str, item: Any, *, parameters: Mapping[str, Any]) -> Iterator[Part]:
        turns = [(turn["role"], turn["content"]) for turn in parameters["messages"]]
        self.asked.append((turns, parameters["sampling_parameters"]))
        for number, letter in enumerate(turns[-1][1]):
            if number in self.raises:
                raise self.raises.pop(number)
            yield Part(letter)
        yield Part("!", self.reason)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    found = FakeClient()
    monkeypatch.setattr(sync, "Client", lambda *_, **__: found)
    return found


def test_what_was_said_goes_with_every_question(client: FakeClient) -> None:
    written: list[str] = []
    conversation = Conversation(client, "chat", written.append, "be kind", {"seed": 1})
    assert conversation.say("ab") == "stop"
    assert written == ["a", "b", "!"]
    conversation.say("cd")
    before = [("user", "ab"), ("assistant", "ab!"), ("user", "cd")]
    assert client.asked[-1] == ([("system", "be kind"), *before], {"seed": 1})
    client.raises = {1: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        conversation.say("stopped")
    client.raises = {1: ServerProblem("it fails")}
    with pytest.raises(ServerProblem):
        conversation.say("failed")
    conversation.say("ef")
    now = [*before, ("assistant", "cd!"), ("user", "stopped"), ("assistant", "s"), ("user", "ef")]
    assert client.asked[-1][0][1:] == now, "of an answer that fails nothing is kept"
    conversation.reset()
    conversation.say("gh")
    assert client.asked[-1][0] == [("system", "be kind"), ("user", "gh")]


def test_lines_of_a_pipe_are_turns(client: FakeClient) -> None:
    found = runner.invoke(cli.app, ["chat", "a"], input="ab\n\n/reset\ncd\n/etc\n/exit\nnever\n")
    assert (found.exit_code, found.stdout) == (0, "ab!\ncd!\n/etc!\n")
    assert [len(turns) for turns, _ in client.asked] == [1, 1, 3]


def test_a_question_and_parameters(client: FakeClient) -> None:
    client.reason = "length"
    line = ["chat", "a", "ab", "-p", "temperature=0", "-p", 'stop=["x"]', "-p", "stop_word=end", "--system", "s"]
    found = runner.invoke(cli.app, line)
    assert (found.exit_code, found.stdout) == (0, "ab!\n")
    assert "cut off at max_tokens" in found.stderr
    turns, sampling = client.asked[0]
    assert turns == [("system", "s"), ("user", "ab")]
    assert sampling == {"temperature": 0, "stop": ["x"], "stop_word": "end"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["chat", "a", "b", "-p", "seed"], "say NAME=VALUE"),
        (["chat", "topic", "b"], "does not generate text. Ask it with fmplex predict"),
        (["chat", "a", "fails"], "fmplex: it fails"),
    ],
)
def test_errors(client: FakeClient, line: list[str], says: str) -> None:
    client.outputs = ("SCORES",) if "topic" in line else client.outputs
    client.raises = {0: ServerProblem("it fails")}
    found = runner.invoke(cli.app, line)
    assert found.exit_code == 1
    assert says in found.stderr


def test_with_a_person(client: FakeClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors and Ctrl-C end an answer, not the conversation."""
    lines: list[str | BaseException] = [
        "ab",
        "/help",
        "/nope",
        "",
        KeyboardInterrupt(),
        "c\x1b[2J",
        "de",
        "fg",
        EOFError(),
    ]

    def typed(_prompt: str) -> str:
        line = lines.pop(0)
        if line == "de":
            client.raises = {1: KeyboardInterrupt()}
        if line == "fg":
            client.raises = {1: ServerProblem("it fails")}
        if isinstance(line, BaseException):
            raise line
        return line

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(sys, "stdout", shown)
    chat._talk(Conversation(client, "a", chat._write))
    assert shown.getvalue() == "ab!\nc\N{REPLACEMENT CHARACTER}[2J!\ndf\n"
    said = capsys.readouterr().err
    for each in ("/reset: begin", "there is no command /nope", "Ctrl-D or /exit ends", "(stopped)", "fmplex: it fails"):
        assert each in said
