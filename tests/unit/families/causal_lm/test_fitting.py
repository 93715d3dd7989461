"""Rows as sequences of tokens, and their loss in packs, against transformers on each sequence alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Qwen3Config

from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.causal_lm.fitting import Answered, Answers, packed
from fmplex_backend.families.causal_lm.inputs import Conversation
from fmplex_backend.families.causal_lm.parameters import CausalLmConfig
from fmplex_backend.families.causal_lm.runtime import CausalLmRuntime
from fmplex_backend.families.causal_lm.sections import Generator, Prompt
from fmplex_backend.types import Request, Vfm
from testing.language_models import save_tiny

ROWS = Rows(
    ["the quick brown fox", "日本語", "dog", "zwölf Boxkämpfer jagen the fox"],
    ["jumps over", "🙂", "lazy", "Viktor the dog"],
    [],
    "rows.jsonl",
)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
ARCHITECTURES: dict[str, Any] = {
    "llama": None,
    "gemma2": Gemma2Config(**SIZES, num_key_value_heads=2, head_dim=16, sliding_window=8),  # and capped scores
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=16),
}
TALK = Conversation((("user", "the fox"), ("assistant", "the dog"), ("user", "jumps")))


def runtime_of(model: Path) -> CausalLmRuntime:
    config = CausalLmConfig(model=str(model), family="causal-lm", dtype="float32", threads=1, kv_cache_bytes=1 << 22)
    return CausalLmRuntime(config, Path("backbone/config.pbtxt"), "cpu")


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> CausalLmRuntime:
    return runtime_of(save_tiny(tmp_path_factory.mktemp("model")))


def answers_of(runtime: CausalLmRuntime, decoder: Generator | None = None, encoder: Prompt | None = None) -> Answers:
    return Answers(encoder or Prompt(), decoder or Generator(system="be brief"), runtime)


def spelled(runtime: CausalLmRuntime, example: Answered) -> str:
    """What the loss is of."""
    return str(runtime.tokenizer.decode([example.tokens[place] for place in example.answers]))


def alone(model: Any, example: Answered) -> torch.Tensor:
    """The loss as transformers computes it."""
    labels = torch.full((1, example.length), -100)
    labels[0, example.answers] = torch.tensor(example.tokens)[example.answers]
    loss: torch.Tensor = model(torch.tensor([example.tokens]), labels=labels).loss
    return loss * example.counted


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_of_packs_is_that_of_each_sequence_alone(tmp_path: Path, architecture: str) -> None:
    """And so is its gradient; how many tokens a pack has changes nothing."""
    runtime = runtime_of(save_tiny(tmp_path, config=ARCHITECTURES[architecture]))
    inputs = answers_of(runtime, Generator(chat=False))
    examples = inputs.examples(ROWS)
    assert max(each.length for each in examples) > 8, "longer than a sliding window"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = sum(alone(plain, each) for each in examples)
    assert isinstance(expected, torch.Tensor)
    expected.backward()  # type: ignore[no-untyped-call]
    name = "model.layers.1.self_attn.v_proj.weight"
    for most in (1, 24, 10_000):
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        found = list(inputs.losses(model, most).losses(examples))
        assert len(found) == len(list(packed(examples, most)))
        sum(loss for loss, _ in found).backward()  # type: ignore[union-attr]
        assert sum(count for _, count in found) == sum(each.counted for each in examples)
        assert sum(float(loss.detach()) for loss, _ in found) == pytest.approx(float(expected.detach()), rel=1e-5)
        gradient = dict(model.named_parameters())[name].grad
        assert torch.allclose(gradient, dict(plain.named_parameters())[name].grad, rtol=1e-3, atol=1e-4)


def test_packs_keep_the_order_and_the_limit() -> None:
    sizes = [5, 3, 9, 20, 1, 1]
    packs = [[each.length for each in pack] for pack in packed([Answered([0] * n, [1]) for n in sizes], 10)]
    assert packs == [[5, 3], [9], [20], [1, 1]]


@pytest.mark.parametrize("decoder", [Generator(system="be brief"), Generator(), Generator(chat=False)], ids=repr)
def test_a_sequence_begins_as_the_request_that_is_served(runtime: CausalLmRuntime, decoder: Generator) -> None:
    encoder = Prompt("Say: {text}")
    inputs = answers_of(runtime, decoder, encoder)
    end = runtime.tokenizer.decode([inputs.end])
    for example, text, answer in zip(inputs.examples(ROWS), ROWS.items, ROWS.labels, strict=True):
        request = Request(Vfm(0, "task"), {"text_input": np.array([[text.encode()]])}, (), 0.0, lambda *_: None)
        asked = inputs.reader.read(request).prompt
        assert example.tokens[: len(asked)] == asked
        assert example.answers == list(range(len(asked), example.length))
        assert spelled(runtime, example) == answer + end


def test_a_template_that_refuses_answers_ends_them_as_the_model_does(runtime: CausalLmRuntime) -> None:
    template = "{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}{{ messages[0]['content'] }}>"
    inputs = answers_of(runtime, Generator(chat_template=template))
    assert inputs.end == runtime.tokenizer.eos_token_id
    assert runtime.tokenizer.decode(inputs.examples(ROWS)[2].tokens) == "dog>lazy<|im_end|>"


class TestConversations:
    def test_earlier_answers_are_learned_too(self, runtime: CausalLmRuntime) -> None:
        inputs = answers_of(runtime)
        (example,) = inputs.examples(Rows([TALK], ["over the lazy dog"], []))
        assert spelled(runtime, example) == "the dog<|im_end|>over the lazy dog<|im_end|>"
        whole = runtime.tokenizer.decode(example.tokens)
        assert whole == inputs.reader.rendered(TALK.messages) + "over the lazy dog<|im_end|>"
        assert whole.startswith("<|im_start|>system\nbe brief<|im_end|>")

    def test_their_own_system_prompt_follows_the_tasks(self, runtime: CausalLmRuntime) -> None:
        own = Conversation((("system", "be long"), *TALK.turns))
        (example,) = answers_of(runtime).examples(Rows([own], ["x"], []))
        whole = runtime.tokenizer.decode(example.tokens)
        assert whole.startswith("<|im_start|>system\nbe brief\n\nbe long<|im_end|>")

    def test_a_template_that_changes_what_was_said_leaves_the_last_answer(self, runtime: CausalLmRuntime) -> None:
        shouted = (
            "{% for message in messages %}{{ message['content'] | upper }}|{% endfor %}"
            "{% if add_generation_prompt %}>{% endif %}"
        )
        inputs = answers_of(runtime, Generator(chat_template=shouted))
        (example,) = inputs.examples(Rows([TALK], ["lazy"], []))
        assert spelled(runtime, example) == "lazy<|im_end|>"
        assert runtime.tokenizer.decode(example.tokens).startswith("THE FOX|THE DOG|JUMPS|>")

    def test_they_need_a_template(self, runtime: CausalLmRuntime) -> None:
        with pytest.raises(TaskProblem, match=r"chats, row 1: a conversation needs a chat template"):
            answers_of(runtime, Generator(chat=False)).examples(Rows(["a", TALK], ["x", "y"], [], "chats"))

    def test_only_what_one_request_asks_is_compared(self, runtime: CausalLmRuntime) -> None:
        inputs = answers_of(runtime)
        rows = Rows(["a", TALK, "b"], ["x", "y", "the fox"], [])
        assert inputs.compared(rows) == [0, 2]


class TestAskedAgain:
    """The requests whose answers are compared with those of the rows."""

    def test_each_row_asks_for_a_token_more_than_its_answer_has(self, runtime: CausalLmRuntime) -> None:
        inputs = answers_of(runtime)
        examples = inputs.examples(ROWS)
        told = [int(each["max_tokens"]) for each in inputs.compared_by(examples)]
        assert told == [1 + each.counted for each in examples]
        assert len(set(told)) > 1

    @pytest.mark.parametrize("decoder", [Generator(chat=False), Generator(chat=False, min_tokens=40)], ids=repr)
    def test_no_row_that_fits_is_refused(self, runtime: CausalLmRuntime, decoder: Generator) -> None:
        """Beside longer answers, where it fills the model's context, and where the task's own answers are long."""
        inputs = answers_of(runtime, decoder)
        most, texts = inputs.reader.max_length, ["a" * 400, "b", "c"]
        full = Rows(texts, ["x", "y" * 300, "z"], [])
        full.labels[0] += "x" * (most - inputs.examples(full)[0].length)
        examples = inputs.examples(full)
        assert examples[0].length == most
        for example, text, wishes in zip(examples, texts, inputs.compared_by(examples), strict=True):
            request = Request(Vfm(0, "task"), {"text_input": np.array([[text.encode()]])}, (), 0.0, lambda *_: None)
            request.parameters = wishes
            asked = inputs.reader.read(request)
            assert asked.sampling.max_tokens == min(1 + example.counted, most - len(asked.prompt))


def test_rows_that_are_too_long_are_named(runtime: CausalLmRuntime) -> None:
    rows = Rows(["a", "日本" * 200, "b"], ["x", "y", "語 " * 200], [], "long.csv")
    with pytest.raises(TaskProblem, match=r"long\.csv, rows 1 and 2: prompt and answer are \d+ tokens, the backbone"):
        answers_of(runtime).examples(rows)


def test_an_empty_prompt_is_named(runtime: CausalLmRuntime) -> None:
    """The first token follows from nothing: in a pack it would follow from the sequence before it."""
    rows = Rows(["a", "", "b", ""], ["w", "x", "y", "z"], [], "rows.csv")
    with pytest.raises(TaskProblem, match=r"rows\.csv, rows 1 and 3: the prompt holds no tokens\. Fill it in"):
        answers_of(runtime, Generator(chat=False)).examples(rows)
    assert len(answers_of(runtime).examples(rows)) == 4, "a template puts tokens before the answer"


def test_a_row_that_the_template_refuses_is_named(runtime: CausalLmRuntime) -> None:
    template = "{% if messages[0]['content'] == 'no' %}{{ raise_exception('never') }}{% endif %}x>"
    inputs = answers_of(runtime, Generator(chat_template=template))
    for item in ("no", Conversation((("user", "no"), ("assistant", "x"), ("user", "y")))):
        with pytest.raises(TaskProblem, match=r"^rows\.csv, row 1: the chat template does not take it: never$"):
            inputs.examples(Rows(["a", item], ["x", "y"], [], "rows.csv"))
