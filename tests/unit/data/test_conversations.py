"""Rows of prompts with their answers, and conversations, in every form that a language model's task is fitted on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from fmplex.data.rows import items_of, rows_of
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.causal_lm.inputs import PROMPT, Conversation
from fmplex_backend.families.causal_lm.sections import Generator

ASKED, ANSWERS = ["two and two?", "a city"], ["four", "Paris"]
TALKS = [
    [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    for text, answer in zip(ASKED, ANSWERS, strict=True)
]
LONG = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "now?"}]},
    {"role": "assistant", "content": "bye"},
]


def read(data: Any, labels: Any = None, **names: Any) -> Rows:
    return rows_of(data, labels, PROMPT, decoder=Generator, **names)


def forms(folder: Path) -> dict[str, Any]:
    columns = {"prompt": ASKED, "completion": ANSWERS}
    table = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    halves = [{"prompt": talk[:1], "completion": talk[1:]} for talk in TALKS]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in table))
    (folder / "talks.jsonl").write_text("".join(f"{json.dumps({'messages': talk})}\n" for talk in TALKS))
    for name, rows in (("rows", table), ("talks", [{"messages": json.dumps(talk)} for talk in TALKS])):
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return {
        "pairs": list(zip(ASKED, ANSWERS, strict=True)),
        "dicts": table,
        "dicts of messages": halves,
        "conversations": TALKS,
        "dicts of conversations": [{"messages": talk} for talk in TALKS],
        "dataset": Dataset.from_dict(columns),
        "dataset of conversations": Dataset.from_dict({"messages": TALKS}),
        **{name: folder / name for name in ("rows.jsonl", "talks.jsonl", "rows.csv", "talks.csv")},
    }


FORMS = (
    "pairs",
    "dicts",
    "dicts of messages",
    "conversations",
    "dicts of conversations",
    "dataset",
    "dataset of conversations",
    "rows.jsonl",
    "talks.jsonl",
    "rows.csv",
    "talks.csv",
)


def test_all_forms_are_read(tmp_path: Path) -> None:
    assert tuple(forms(tmp_path)) == FORMS


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    rows = read(forms(tmp_path)[form])
    assert (rows.items, Generator().targets(rows)) == (ASKED, ANSWERS)


def test_named_columns_go_before_conversations() -> None:
    rows = read([{"q": "a", "a": "b", "messages": TALKS[0]}], columns="q", label="a")
    assert (rows.items, rows.labels) == (["a"], ["b"])
    assert read(["a"], ["b"]).items == ["a"]


def test_what_is_said_before_the_last_answer_is_the_item() -> None:
    rows = read([LONG])
    turns = (("system", "be kind"), ("user", "hello"), ("assistant", "hi"), ("user", "and now?"))
    assert (rows.items, rows.labels) == ([Conversation(turns)], ["bye"])
    assert PROMPT.show(rows.items[0]) == "and now?"


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([TALKS[0], TALKS[1][:1]], "row 1: its last message is no answer of the assistant's"),
        ([TALKS[0], [{"role": "bot", "content": "x"}, TALKS[0][1]]], r"row 1: message\[0\].role is 'bot'"),
        ([[{"role": "user", "content": None}, TALKS[0][1]]], r"row 0: message\[0\].content is 'None'"),
        ([{"messages": TALKS[0]}, {"messages": "hello"}], "row 1: 'hello' is none of the messages"),
        ([{"body": "x"}], "no column 'prompt', but body"),
        ([TALKS[0], ("a", "b")], "row 0: .* is not a text"),
    ],
)
def test_what_is_wrong_is_named(data: Any, match: str) -> None:
    with pytest.raises(TaskProblem, match=match):
        read(data)


def test_rows_without_answers_are_read_by_the_same_column(tmp_path: Path) -> None:
    forms(tmp_path)
    assert items_of(tmp_path / "rows.csv", PROMPT) == ASKED


TEXTS_IN_JSON = ('[{"id": 1}]', '[{"role": "user"}]', '[{"content": "x"}, 5]', "[]", "[1]", '[{"a": ' + "[" * 100_000)


@pytest.mark.parametrize("text", TEXTS_IN_JSON, ids=lambda text: str(text[:20]))
def test_other_json_is_a_text(text: str) -> None:
    rows = read([(text, text)])
    assert (rows.items, Generator().targets(rows)) == ([text], [text])
    assert items_of(text, PROMPT) == [text]


def test_a_conversation_in_a_tables_cell_may_be_json_but_what_is_asked_is_a_text(tmp_path: Path) -> None:
    text = json.dumps(LONG[:4])
    rows = read([{"prompt": text, "completion": "bye"}])
    assert isinstance(rows.items[0], Conversation)
    assert items_of([text], PROMPT) == [text]
