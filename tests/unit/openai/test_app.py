"""OpenAI's API over a server that only remembers: what is asked of it, and how it is answered."""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai_tasks import FakeTasks, Said, told
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from fmplex.client.problems import server_problem
from fmplex.client.wire import Address
from fmplex_backend.errors import DeadlineExceeded, FmplexError, InvalidRequest, ServerProblem, Unreachable
from fmplex_backend.families.causal_lm.asking import Reader
from fmplex_backend.families.causal_lm.sampling import Sampling
from fmplex_backend.families.causal_lm.sections import Generator, Prompt
from fmplex_backend.types import Request, Vfm

HELLO = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}
LOCAL = "http://127.0.0.1:9000"
Ask = Callable[..., Any]


@pytest.fixture
def tasks() -> FakeTasks:
    return FakeTasks()


@pytest.fixture
def asks(tasks: FakeTasks) -> Iterator[TestClient]:
    with TestClient(tasks.app(), base_url=LOCAL, raise_server_exceptions=False) as client:
        yield client


def chat(asks: TestClient, **fields: Any) -> Any:
    return asks.post("/v1/chat/completions", json=HELLO | fields)


def complete(asks: TestClient, **fields: Any) -> Any:
    return asks.post("/v1/completions", json={"model": "chat", "prompt": "Once"} | fields)


def error(response: Any) -> tuple[int, str, str, str]:
    """Status, param, code and the message."""
    (told,) = response.json().values()
    assert set(told) == {"message", "type", "param", "code"}
    return response.status_code, str(told["param"]), str(told["code"]), told["message"]


def events(response: Any) -> list[dict[str, Any]]:
    lines = response.text.split("\n\n")
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


# -- what is answered


def test_a_chat(asks: TestClient, tasks: FakeTasks) -> None:
    found = chat(
        asks,
        temperature=0.5,
        stop="x",
        max_tokens=9,
        max_completion_tokens=8,
        top_k=3,
        presence_penalty=1,
        logit_bias={"5": -100},
        user="me",
    ).json()
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    assert found["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert (found["object"], found["model"]) == ("chat.completion", "chat")
    ((task, text, parameters, stream),) = tasks.asked
    assert (task, text, stream) == ("chat", "", False)
    assert json.loads(parameters["messages"]) == HELLO["messages"]
    asked = {"temperature": 0.5, "stop": "x", "max_tokens": 8, "top_k": 3, "presence_penalty": 1}
    assert tasks.sampling() == asked | {"logit_bias": {"5": -100}}


def test_a_stream_with_usage_at_its_end(asks: TestClient) -> None:
    parts = events(chat(asks, stream=True, stream_options={"include_usage": True}))
    deltas = [part["choices"][0]["delta"] for part in parts[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}]
    assert [part["choices"][0]["finish_reason"] for part in parts[:-1]] == [None, None, "stop"]
    assert [part["usage"] for part in parts[:-1]] == [None] * 3
    assert (parts[-1]["choices"], parts[-1]["usage"]["total_tokens"]) == ([], 9)
    assert len({part["id"] for part in parts}) == 1
    assert all("usage" not in part for part in events(chat(asks, stream=True)))


def test_several_answers_to_several_prompts(asks: TestClient, tasks: FakeTasks) -> None:
    found = complete(asks, prompt=["a", "b"], n=2, seed=2**63 - 1, echo=True).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["usage"] == {"prompt_tokens": 14, "completion_tokens": 8, "total_tokens": 22}, "a prompt counts once"
    assert [asked[1] for asked in tasks.asked] == ["a", "a", "b", "b"]
    assert [tasks.sampling(number)["seed"] for number in range(4)] == [2**63 - 1, -(2**63)] * 2
    assert [asked[2]["exclude_input_in_output"] for asked in tasks.asked] == [False] * 4
    parts = events(complete(asks, prompt="a", n=2, stream=True))
    assert "".join(part["choices"][0]["text"] for part in parts if part["choices"][0]["index"] == 1) == "Hello"
    assert error(complete(asks, prompt=["a"] * 43, n=3))[:2] == (400, "n")


def test_log_probabilities(asks: TestClient, tasks: FakeTasks) -> None:
    token, part = told(("é", -2.0), ("b", -1.0), ("c", -3.0)), told(("\N{REPLACEMENT CHARACTER}", -0.5))
    tasks.parts = [Said("é", logprobs=[token]), Said("", "length", logprobs=[part])]
    first, second = chat(asks, logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["logprob"], first["bytes"]) == ("é", -2.0, [195, 169])
    assert [each["token"] for each in first["top_logprobs"]] == ["b", "é"]
    assert second["bytes"] is None
    assert tasks.sampling()["logprobs"] == 2
    parts = events(chat(asks, logprobs=True, stream=True))
    assert [len((each["choices"][0]["logprobs"] or {"content": ()})["content"]) for each in parts] == [0, 1, 1]
    assert tasks.sampling()["logprobs"] == 0
    for stream in (False, True):
        answer = complete(asks, logprobs=1, stream=stream)
        told_ = [each["choices"][0]["logprobs"] for each in (events(answer) if stream else [answer.json()])]
        assert [place for each in told_ for place in each["text_offset"]] == [0, 1]
        assert told_[0]["tokens"][0] == "é"
        assert told_[0]["top_logprobs"][0] == {"b": -1.0, "é": -2.0}
        assert told_[0]["token_logprobs"][0] == -2.0


def test_a_completions_best_tokens_of_one_text_are_all_told(asks: TestClient, tasks: FakeTasks) -> None:
    part = "\N{REPLACEMENT CHARACTER}"
    tasks.parts = [Said(part, "length", logprobs=[told((part, -2.0), (part, -1.0), ("b", -1.5), ("b", -3.0))])]
    (best,) = complete(asks, logprobs=4).json()["choices"][0]["logprobs"]["top_logprobs"]
    assert best == {"token_id:1": -1.0, "b": -1.5, part: -2.0, "token_id:3": -3.0}
    (best,) = complete(asks, logprobs=1).json()["choices"][0]["logprobs"]["top_logprobs"]
    assert best == {"token_id:1": -1.0, part: -2.0}


def test_content_in_parts_and_what_an_answer_brought_along(asks: TestClient, tasks: FakeTasks) -> None:
    empty = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None, "name": "x"}
    turns = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", **empty},
        {"role": "user", "content": None},
    ]
    assert chat(asks, messages=turns, presence_penalty=0, tools=[], response_format={"type": "text"}).is_success
    said = json.loads(tasks.asked[-1][2]["messages"])
    assert [(each["role"], each["content"]) for each in said] == [("developer", "ab"), ("assistant", "c"), ("user", "")]
    assert all(each.keys() == {"role", "content"} for each in said)


def test_vectors(asks: TestClient) -> None:
    found = asks.post("/v1/embeddings", json={"model": "vectors", "input": ["a", "bcd"], "dimensions": 3}).json()
    assert [each["embedding"] for each in found["data"]] == [[0.5, -1.25, 1], [0.5, -1.25, 3]]
    assert found["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    (one,) = asks.post("/v1/embeddings", json={"model": "vectors", "input": "a", "encoding_format": "base64"}).json()[
        "data"
    ]
    assert struct.unpack("<3f", base64.b64decode(one["embedding"])) == (0.5, -1.25, 1)


def test_models_and_health(asks: TestClient, tasks: FakeTasks) -> None:
    listed = asks.get("/v1/models").json()
    assert [each["id"] for each in listed["data"]] == ["chat", "vectors"]
    assert asks.get("/v1/models/chat").json() == listed["data"][0]
    for name in ("topic", "nothing", "a/b"):
        assert error(asks.get(f"/v1/models/{name}"))[:3] == (404, "model", "model_not_found")
    assert asks.get("/health").status_code == 200
    tasks.parts = ()
    assert asks.get("/health").status_code == 503


# -- what is refused


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": [{"type": "function"}]}, "tools", "does not support it"),
        ({"response_format": {"type": "json_object"}}, "response_format", "does not support it"),
        ({"store": True}, "store", "does not support it"),
        ({"frobnicate": 1}, "frobnicate", "Unrecognized request argument supplied: frobnicate"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"top_logprobs": 2}, "top_logprobs", "it needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "field required"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].role", "calls no tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages[0].tool_calls", "not support"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "tasks read text alone",
        ),
        ({"model": "topic"}, "model", "does not generate text"),
        ({"model": ""}, "model", "at least 1 character"),
    ],
)
def test_a_chats_field_that_cannot_be_met(
    asks: TestClient, tasks: FakeTasks, fields: dict[str, Any], param: str, says: str
) -> None:
    status, named, _, message = error(chat(asks, **fields))
    assert (status, named) == (400, param)
    assert says in message
    assert not tasks.asked


@pytest.mark.parametrize(
    ("path", "fields", "param", "says"),
    [
        ("completions", {"prompt": [1, 2]}, "prompt", "token ids are not taken"),
        ("completions", {"prompt": [[1], [2]]}, "prompt", "token ids are not taken"),
        ("completions", {"prompt": []}, "prompt", "at least 1 item"),
        ("completions", {"prompt": "a", "best_of": 3}, "best_of", "leave it out"),
        ("completions", {"prompt": "a", "echo": True, "logprobs": 0}, "echo", "leave one of the two out"),
        ("completions", {"prompt": "a", "suffix": "b"}, "suffix", "does not support it"),
        ("completions", {"prompt": 5}, "prompt", "valid"),
        ("embeddings", {"input": [1, 2]}, "input", "check_embedding_ctx_length=False"),
        ("embeddings", {"input": "a", "dimensions": 2}, "dimensions", "the task's vectors have 3"),
        ("embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ("embeddings", {"input": "a", "model": "chat"}, "model", "does not embed texts"),
        ("embeddings", {"input": "a", "colour": 1}, "colour", "Unrecognized"),
    ],
)
def test_other_fields_that_cannot_be_met(
    asks: TestClient, path: str, fields: dict[str, Any], param: str, says: str
) -> None:
    model = "vectors" if path == "embeddings" else "chat"
    status, named, _, message = error(asks.post(f"/v1/{path}", json={"model": model} | fields))
    assert (status, named) == (400, param)
    assert says in message


def test_bodies_that_are_no_requests(tasks: FakeTasks) -> None:
    with TestClient(tasks.app(body_mib=0.001), base_url=LOCAL) as asks:
        assert error(asks.post("/v1/chat/completions", content=b"{"))[0] == 400
        assert error(asks.post("/v1/chat/completions", content=b"[]"))[0] == 400
        assert error(chat(asks, user="x" * 2000))[0] == 413
        chunks = iter([b" " * 500] * 3)  # without a content-length
        assert error(asks.post("/v1/embeddings", content=chunks))[0] == 413
        assert error(asks.get("/v1/chat/completions"))[::2] == (405, "unknown_url")
        assert error(asks.post("/v1/responses", json={}))[::2] == (404, "unknown_url")
        assert chat(asks).is_success


def of_triton(status: str, message: str) -> FmplexError:
    """What the client makes of a task's error."""
    error = InferenceServerException(f"in ensemble 'chat', {message}", f"StatusCode.{status}")
    return server_problem(error, Address.of("grpc.internal:8001"))


@pytest.mark.parametrize(
    ("problem", "status", "param", "code"),
    [
        (of_triton("UNAVAILABLE", "'chat' has 8 requests waiting, its max_queue"), 429, "None", "rate_limit_exceeded"),
        (of_triton("UNAVAILABLE", "it gives 1 s (its max_seconds), and these are over"), 504, "None", "timeout"),
        (of_triton("UNAVAILABLE", "it is being unloaded"), 503, "None", "unavailable"),
        (of_triton("UNAVAILABLE", "Connection refused"), 503, "None", "unavailable"),
        (of_triton("DEADLINE_EXCEEDED", "Deadline Exceeded"), 504, "None", "timeout"),
        (of_triton("INVALID_ARGUMENT", "sampling_parameters.top_p: too small"), 400, "top_p", ""),
        (Unreachable("a:1: unknown model: 'chat' has no available versions"), 404, "model", "model_not_found"),
        (Unreachable("a:1: unknown model: 'llm' has no available versions"), 503, "None", "unavailable"),
        (DeadlineExceeded("no answer"), 504, "None", "timeout"),
        (Unreachable("no server there"), 503, "None", "unavailable"),
        (ServerProblem("the logits hold NaN", "INTERNAL"), 500, "None", ""),
        (ServerProblem("in ensemble 'a', messages: too long", "INVALID_ARGUMENT"), 400, "messages", ""),
        (ServerProblem("'chat' has no available versions", "UNAVAILABLE"), 404, "model", "model_not_found"),
    ],
)
def test_errors_of_the_server(
    asks: TestClient, tasks: FakeTasks, problem: FmplexError, status: int, param: str, code: str
) -> None:
    tasks.parts = [problem]
    for stream in (False, True):  # before the first part an error has a status of its own
        answer = chat(asks, stream=stream)
        found, named, coded, message = error(answer)
        assert (found, named, coded) == (status, param, code or "None")
        assert not re.search(r"in ensemble|:\d|internal|sampling_parameters", message)
        assert ("retry-after" in answer.headers) == (status in (429, 503))
    tasks.parts = [Said("Hel"), problem]
    *parts, last = events(chat(asks, stream=True))
    assert parts[-1]["choices"][0]["delta"] == {"content": "Hel"}
    assert last["error"]["code"] == (code or None)


@pytest.mark.parametrize(
    ("door", "fields"), [("chat/completions", HELLO), ("completions", {"prompt": "a"}), ("embeddings", {"input": "a"})]
)
def test_a_model_that_there_is_not(asks: TestClient, door: str, fields: dict[str, Any]) -> None:
    status, param, code, message = error(asks.post(f"/v1/{door}", json={**fields, "model": "other"}))
    assert (status, param, code) == (404, "model", "model_not_found")
    assert message.startswith("The model `other` does not exist")


@pytest.mark.parametrize(
    ("text", "sampling", "param"),
    [("x" * 5000, {}, "text_input"), ("x" * 8, {}, "text_input"), ("xx", {"max_tokens": 7}, "max_tokens")],
)
def test_what_is_too_long_has_openais_code(
    asks: TestClient, tasks: FakeTasks, text: str, sampling: dict[str, Any], param: str
) -> None:
    """In the words of the backbone's own reader; clients cut their conversations by the code."""

    def tokenizer(given: str) -> dict[str, list[int]]:
        return {"input_ids": [1] * len(given)}

    reader = Reader(tokenizer, Prompt(), Generator(), Sampling(), chat=False, max_length=8, vocabulary=10)
    inputs = {"text_input": np.array([[text.encode()]], dtype=np.object_)}
    wishes = {"sampling_parameters": json.dumps(sampling)}
    with pytest.raises(InvalidRequest) as refused:
        reader.read(Request(Vfm(0, "chat"), inputs, (), 0.0, lambda *_: None, parameters=wishes))
    tasks.parts = [of_triton("INVALID_ARGUMENT", str(refused.value))]
    assert error(chat(asks))[:3] == (400, param, "context_length_exceeded")


def test_a_field_is_named_as_the_client_has_sent_it(asks: TestClient, tasks: FakeTasks) -> None:
    tasks.parts = [of_triton("INVALID_ARGUMENT", "sampling_parameters.max_tokens: 9 is too much: ask for 5 at most")]
    for name in ("max_tokens", "max_completion_tokens"):
        for stream in (False, True):
            _, param, _, message = error(chat(asks, stream=stream, **{name: 9}))
            assert (param, message) == (name, f"{name}: 9 is too much: ask for 5 at most")


def test_the_log_has_what_clients_are_not_told(
    asks: TestClient, tasks: FakeTasks, caplog: pytest.LogCaptureFixture
) -> None:
    tasks.parts = [of_triton("UNAVAILABLE", "Connection refused")]
    assert chat(asks).status_code == 503
    assert "chat: grpc.internal:8001: no server there" in caplog.text


def test_what_a_full_queue_says_is_told(asks: TestClient, tasks: FakeTasks) -> None:
    tasks.parts = [of_triton("UNAVAILABLE", "'chat' has 8 requests waiting, its max_queue is 8")]
    assert error(chat(asks))[3] == "'chat' has 8 requests waiting, its max_queue is 8"


def test_an_error_of_our_own_tells_nothing(tasks: FakeTasks) -> None:
    tasks.parts = [ValueError("secret")]
    with TestClient(tasks.app(), base_url=LOCAL, raise_server_exceptions=False) as asks:
        status, _, _, message = error(chat(asks))
    assert status == 500
    assert "secret" not in message


# -- who may ask


def test_keys(tasks: FakeTasks, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("s3cret\n")
    with TestClient(tasks.app(keys), base_url="http://anything.example") as asks:
        for headers in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic s3cret"}):
            for answer in (asks.get("/v1/models", headers=headers), asks.post("/v1/embeddings", headers=headers)):
                assert error(answer)[::2] == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
        assert asks.get("/v1/models", headers={"Authorization": "Bearer s3cret"}).is_success
        assert asks.get("/health").is_success


def test_without_keys_a_page_elsewhere_cannot_ask_by_another_name(asks: TestClient) -> None:
    assert asks.get("/v1/models", headers={"Host": "elsewhere.example"}).status_code == 400
