"""`fmplex chat`: a conversation with a task that generates text, its words as they come."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Annotated, Any, Protocol

import typer

from fmplex.cli.options import SERVER, Asked
from fmplex.cli.shown import errors_shown
from fmplex_backend.errors import FmplexError, ServerProblem, TaskProblem

PROMPT = ">>> "
RESET, EXIT, HELP = "/reset", "/exit", "/help"
COMMANDS = {RESET: "begin a new conversation", EXIT: "leave, as Ctrl-D does", HELP: "this list"}
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a model says is to be read, not to control a terminal


class Streams(Protocol):
    """A `Client`, as far as it is needed here."""

    def stream(self, task: str, item: Any, *, parameters: Mapping[str, Any]) -> Iterator[Any]:
        """Parts of an answer."""


@dataclass
class Conversation:
    """What was said, and what is asked with it."""

    client: Streams
    task: str
    write: Callable[[str], object]
    system: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    turns: list[dict[str, str]] = field(default_factory=list)

    def reset(self) -> None:
        """Begin anew."""
        self.turns.clear()

    def say(self, text: str) -> str:
        """Write the answer as it comes; returns why it ends.

        What came before a KeyboardInterrupt stays a part of the conversation; of an answer that fails nothing does.
        """
        asked = [*self.turns, {"role": "user", "content": text}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        parameters = {"messages": [*system, *asked], "sampling_parameters": dict(self.sampling)}
        answer, reason = "", ""
        parts = self.client.stream(self.task, "", parameters=parameters)
        try:
            for part in parts:
                answer, reason = answer + part.text, part.finish_reason
                self.write(part.text)
        except ServerProblem:
            answer = ""
            raise
        finally:
            if answer or reason:
                self.turns = [*asked, {"role": "assistant", "content": answer}]
        return reason


def chat(
    task: Annotated[str, typer.Argument(help="Name of the task.")],
    text: Annotated[str | None, typer.Argument(help="One question: answer it and end.", show_default=False)] = None,
    server: Asked = SERVER,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds for an answer.")] = 600.0,
    system: Annotated[str, typer.Option(help="System prompt, behind the task's own.")] = "",
    parameters: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", "-p", help="A sampling parameter, such as temperature=0; may be given several times."
        ),
    ] = None,
) -> None:
    """Talk with a task that generates text; the conversation is kept until /reset.

    Ctrl-C stops an answer, Ctrl-D ends. Of input from a pipe each line is a turn, and the first error ends it.
    """
    from fmplex.client.sync import Client

    with errors_shown():
        sampling = dict(map(_parameter, parameters or ()))
        with Client(server, timeout=timeout) as client:
            if "text_output" not in client.interface(task).outputs:
                raise TaskProblem(f"{task!r} does not generate text. Ask it with fmplex predict")
            conversation = Conversation(client, task, _write, system, sampling)
            if text is not None:
                _answer(conversation, text)
            elif sys.stdin.isatty():
                _talk(conversation)
            else:
                _read(conversation)


def _parameter(given: str) -> tuple[str, Any]:
    name, equals, value = given.partition("=")
    if not equals or not name:
        raise TaskProblem(f"--parameter {given}: say NAME=VALUE, e.g. temperature=0")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _talk(conversation: Conversation) -> None:
    """With a person at a terminal."""
    with contextlib.suppress(ImportError):
        import_module("readline")  # input() then edits lines and remembers them
    _say(f"{conversation.task}: {HELP} lists the commands")
    while True:
        try:
            line = input(PROMPT).strip()
        except EOFError:
            print(flush=True)
            return
        except KeyboardInterrupt:
            _say(f"\nCtrl-D or {EXIT} ends")
            continue
        if line == EXIT:
            return
        if line == HELP:
            _say("\n".join(f"{name}: {what}" for name, what in COMMANDS.items()))
        elif line == RESET:
            conversation.reset()
        elif line.startswith("/") and " " not in line:
            _say(f"there is no command {line}; {HELP} lists those there are")
        elif line:
            try:
                _answer(conversation, line)
            except KeyboardInterrupt:
                _say("\n(stopped)")
            except FmplexError as error:
                _say(f"fmplex: {error}")


def _read(conversation: Conversation) -> None:
    """Turns out of a pipe or a file."""
    for line in map(str.strip, sys.stdin):
        if line == EXIT:
            return
        if line == RESET:
            conversation.reset()
        elif line:
            _answer(conversation, line)


def _answer(conversation: Conversation, text: str) -> None:
    reason = conversation.say(text)
    print(flush=True)
    if reason == "length":
        _say("(cut off at max_tokens)")


def _write(text: str) -> None:
    print(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if sys.stdout.isatty() else text, end="", flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
