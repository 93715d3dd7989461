"""OpenAI's API before the real server: the official client, LangChain's, and plain Triton clients beside them."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from typer.testing import CliRunner

from fmplex import Backbone, Client, Embedder, Generator, Task
from fmplex.cli import app as cli
from fmplex_controller.openai.options import OpenAiOptions
from fmplex_controller.openai.process import OpenAiProcess
from fmplex_controller.server.process import free_ports
from testing.language_models import save_tiny, tiny_tokenizer
from testing.repositories import write_backbone
from testing.servers import Serving, serving

KEY, SYSTEM = "s3cret", "be brief"
TEXTS = ["fox", "日本語 🙂", "the lazy dog jumps"]


@dataclass(frozen=True)
class House:
    """The server, and OpenAI's API before it."""

    serving: Serving
    base_url: str

    def openai(self, key: str = KEY) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Tasks `plain`, `brief` (greedy, with a system prompt) and `embed`."""
    folder = tmp_path_factory.mktemp("openai")
    model, repository = save_tiny(folder / "model"), folder / "repository"
    family = {"family": "causal-lm", "dtype": "float32", "kv_cache_bytes": str(1 << 24)}
    write_backbone(repository, "tiny", model=str(model), max_batch_size=0, threads="1", **family)
    write_backbone(repository, threads="1", dtype="float32")
    backbone = Backbone("tiny", repository=repository)
    Task("plain", backbone, decoder=Generator(chat=False, max_tokens=12)).save()
    Task("brief", backbone, decoder=Generator(system=SYSTEM, temperature=0, max_tokens=12)).save()
    Task("embed", Backbone("minilm", repository=repository), decoder=Embedder(count_tokens=True)).save()
    (folder / "keys").write_text(f"{KEY}\n")
    with serving(repository, folder) as server:
        assert not server.refused, server.log.read_text()[-3000:]
        api = OpenAiProcess(server.server, OpenAiOptions(free_ports(1)[0], keys=folder / "keys"))
        api.start()
        try:
            assert api.wait_ready()
            yield House(server, api.api.url)
        finally:
            api.stop()


@pytest.fixture
def client(house: House) -> Iterator[Client]:
    with Client(house.serving.grpc_url, timeout=60) as client:
        yield client


@pytest.fixture
def asks(house: House) -> Iterator[openai.OpenAI]:
    with house.openai() as asks:
        yield asks


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def test_a_chat_says_what_the_task_says_over_tritons_own_interface(asks: openai.OpenAI, client: Client) -> None:
    for text, expected in zip(TEXTS, client.predict("brief", TEXTS), strict=True):
        found: Any = asks.chat.completions.create(model="brief", messages=[user(text)], logprobs=True, top_logprobs=2)
        (choice,) = found.choices
        assert choice.message.content == expected.text  # type: ignore[attr-defined]
        assert choice.finish_reason == expected.finish_reason  # type: ignore[attr-defined]
        counts = (expected.input_tokens, expected.output_tokens)  # type: ignore[attr-defined]
        assert (found.usage.prompt_tokens, found.usage.completion_tokens) == counts
        assert len(choice.logprobs.content) == expected.output_tokens  # type: ignore[attr-defined]
        assert all(len(each.top_logprobs) == 2 for each in choice.logprobs.content)
        parts: list[Any] = list(
            asks.chat.completions.create(
                model="brief", messages=[user(text)], stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(part.choices[0].delta.content or "" for part in parts[:-1]) == choice.message.content
        assert parts[-1].usage == found.usage
        assert len(parts) > 4


def test_a_conversation_is_the_chat_template_of_all_its_turns(asks: openai.OpenAI, house: House) -> None:
    turns = [
        {"role": "system", "content": "and kind"},
        user("fox"),
        {"role": "assistant", "content": "dog"},
        user("日"),
    ]
    found = asks.chat.completions.create(model="brief", messages=turns)  # type: ignore[arg-type]
    shown = [{"role": "system", "content": f"{SYSTEM}\n\nand kind"}, *turns[1:]]
    prompt = tiny_tokenizer().apply_chat_template(shown, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(prompt)
    body = {"text_input": "", "messages": json.dumps(turns)}
    request = urllib.request.Request(
        f"http://{house.serving.http_url}/v2/models/brief/generate", json.dumps(body).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["text_output"] == found.choices[0].message.content


def test_completions(asks: openai.OpenAI) -> None:
    wishes: dict[str, Any] = {"model": "plain", "max_tokens": 8, "seed": 5, "logprobs": 1}
    wishes["extra_body"] = {"ignore_eos": True, "top_k": 50}
    found: Any = asks.completions.create(prompt=["fox", "dog"], n=2, **wishes)
    again: Any = asks.completions.create(prompt=["fox", "dog"], n=2, **wishes)
    texts = [choice.text for choice in found.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 4
    assert found.usage.completion_tokens == 32
    assert [len(choice.logprobs.tokens) for choice in found.choices] == [8] * 4
    streamed: dict[int, str] = dict.fromkeys(range(4), "")
    for part in asks.completions.create(prompt=["fox", "dog"], n=2, stream=True, **wishes):
        streamed[part.choices[0].index] += part.choices[0].text
    assert list(streamed.values()) == texts
    del wishes["logprobs"]
    stop = texts[0][len(texts[0]) // 2]
    stopped = asks.completions.create(prompt="fox", stop=[stop, "never"], echo=True, **wishes)
    assert stopped.choices[0].text == f"fox{texts[0][: texts[0].index(stop)]}"
    assert stopped.choices[0].finish_reason == "stop"


def test_vectors(asks: openai.OpenAI, client: Client) -> None:
    expected = [each.vector for each in client.predict("embed", TEXTS)]  # type: ignore[attr-defined]
    for encoding in ("float", "base64"):  # the client asks for base64 by itself, and decodes it
        found = asks.embeddings.create(model="embed", input=TEXTS, encoding_format=encoding)  # type: ignore[arg-type]
        vectors = [
            np.frombuffer(base64.b64decode(each.embedding), np.float32)
            if isinstance(each.embedding, str)
            else np.array(each.embedding, np.float32)
            for each in found.data
        ]
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert found.usage.prompt_tokens > 3 * len(TEXTS)


def test_errors(asks: openai.OpenAI, house: House) -> None:
    assert [model.id for model in asks.models.list()] == ["brief", "embed", "plain"]
    with pytest.raises(openai.NotFoundError) as missing:
        asks.chat.completions.create(model="nothing", messages=[user("fox")])
    assert missing.value.code == "model_not_found"
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="ask for") as long:
            asks.chat.completions.create(model="brief", messages=[user("fox")], max_tokens=5000, stream=stream)
        assert long.value.param == "max_tokens"
    with pytest.raises(openai.BadRequestError, match="has no chat template"):
        asks.chat.completions.create(model="plain", messages=[user("fox")])
    with pytest.raises(openai.BadRequestError, match="text_input holds no tokens"):
        asks.completions.create(model="plain", prompt="")
    with house.openai("other") as stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with asks.chat.completions.create(
        model="brief", messages=[user("fox")], stream=True, max_tokens=300, extra_body={"ignore_eos": True}
    ) as stream:
        next(iter(stream))  # and then hang up
    assert asks.chat.completions.create(model="brief", messages=[user("fox")]).choices[0].message.content


def test_langchain(house: House, client: Client) -> None:
    shared: dict[str, Any] = {"base_url": house.base_url, "api_key": KEY, "max_retries": 0}
    (expected,) = client.predict("brief", "fox")
    chat = ChatOpenAI(model="brief", **shared)
    answer = chat.invoke([HumanMessage("fox")])
    assert answer.content == expected.text  # type: ignore[attr-defined]
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] == expected.input_tokens  # type: ignore[attr-defined]
    assert "".join(str(part.content) for part in chat.stream("fox")) == answer.content
    assert chat.invoke([SystemMessage("kind"), HumanMessage("fox"), AIMessage(answer.content), HumanMessage("dog")])
    (whole,) = client.predict("plain", "fox", parameters={"temperature": 0})
    complete = OpenAI(model="plain", temperature=0, max_tokens=12, **shared)
    assert complete.invoke("fox") == whole.text  # type: ignore[attr-defined]
    vectors = OpenAIEmbeddings(model="embed", check_embedding_ctx_length=False, **shared).embed_documents(TEXTS)
    expected_vectors = [each.vector for each in client.predict("embed", TEXTS)]  # type: ignore[attr-defined]
    np.testing.assert_allclose(vectors, expected_vectors, atol=1e-5)


def test_fmplex_chat(house: House, client: Client) -> None:
    (expected,) = client.predict("brief", "fox")
    line = ["chat", "brief", "--server", house.serving.grpc_url]
    found = CliRunner().invoke(cli.app, line, input="fox\n/reset\nfox\n")
    assert found.exit_code == 0, found.stderr
    assert found.stdout == 2 * f"{expected.text}\n"  # type: ignore[attr-defined]
    refused = CliRunner().invoke(cli.app, ["chat", "embed", "fox", "--server", house.serving.grpc_url])
    assert "does not generate text. Ask it with fmplex predict" in refused.stderr


@pytest.mark.slow
def test_perf_analyzer_measures_streams(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sampling = json.dumps({"max_tokens": 8, "ignore_eos": True})
    data = {"data": [{"text_input": ["fox"], "stream": [True], "sampling_parameters": [sampling]}]}
    (tmp_path / "prompts.json").write_text(json.dumps(data))
    asked = ["-m", "plain", "-i", "grpc", "-u", house.serving.grpc_url, "--streaming", "--async"]
    short = ["--concurrency-range", "2", "--measurement-interval", "1000", "--stability-percentage", "999"]
    line = [
        sys.executable,
        "-m",
        "fmplex",
        "perf",
        "--",
        *asked,
        "--input-data",
        str(tmp_path / "prompts.json"),
        *short,
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (requests,) = re.findall(r"^ *Throughput: ([\d.]+) infer/sec", done.stdout, re.MULTILINE)
    (responses,) = re.findall(r"^ *Response Throughput: ([\d.]+) infer/sec", done.stdout, re.MULTILINE)
    assert float(responses) > 2 * float(requests) > 0, "answers come in parts"
