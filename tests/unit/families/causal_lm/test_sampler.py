"""Filters and penalties against transformers' own; draws against their probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fmplex_backend.errors import InvalidRequest
from fmplex_backend.families.causal_lm.sampler import choose, filtered, penalised
from fmplex_backend.families.causal_lm.sampling import Sampling
from fmplex_backend.families.causal_lm.sequence import Asked, Sequence
from fmplex_backend.families.causal_lm.text import Detokenizer

VOCABULARY = 200


def answer(prompt: list[int], **options: Any) -> Sequence:
    return Sequence(Asked(prompt, Sampling(**options), False), 8, {3}, Detokenizer(lambda tokens: str(list(tokens))))


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 17},
        {"top_k": -1},
        {"top_p": 0.05},
        {"top_p": 0.9},
        {"min_p": 0.02},
        {"repetition_penalty": 1.7},
        {"temperature": 1.4, "top_k": 50, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 0.8},
    ],
)
def test_scores_are_those_of_transformers(options: dict[str, Any], seed: int) -> None:
    prompt = [1, 5, 5, 90]
    own = answer(prompt, **options)
    sampling, raw = own.asked.sampling, logits(seed)
    wanted: Any = [RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    wanted.append(TemperatureLogitsWarper(sampling.temperature))
    wanted += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k > 0 else []
    wanted += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    wanted += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    theirs = LogitsProcessorList(wanted)(torch.tensor([prompt]), raw[None].clone())[0]
    ours = filtered(penalised(raw, own), sampling)
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(ours, theirs)


def test_penalties_of_what_the_answer_has() -> None:
    """As OpenAI's documentation gives the formula; a prompt's tokens do not count."""
    own = answer([5, 6, 6], presence_penalty=0.5, frequency_penalty=0.25)
    raw = logits(0)
    assert torch.equal(penalised(raw, own), raw)
    own.tokens += [6, 7, 7, 7]
    wanted = raw.clone()
    wanted[6] -= 0.25 * 1 + 0.5
    wanted[7] -= 0.25 * 3 + 0.5
    torch.testing.assert_close(penalised(raw, own), wanted)
    both = answer([5, 6], presence_penalty=-2, repetition_penalty=2.0)
    both.tokens += [6]
    wanted = torch.where(raw < 0, raw * 2, raw / 2)
    assert float(penalised(raw, both)[6]) == pytest.approx(float(wanted[6]) + 2)
    own.asked.sampling.overridden({"frequency_penalty": -2}, "sampling_parameters")
    with pytest.raises(InvalidRequest, match=r"sampling_parameters.presence_penalty: .*less than or equal to 2"):
        own.asked.sampling.overridden({"presence_penalty": 2.5}, "sampling_parameters")


def test_a_penalty_changes_the_best_token() -> None:
    raw = torch.zeros(1, VOCABULARY)
    raw[0, 3], raw[0, 7] = 5.0, 4.5
    own = answer([1], temperature=0, frequency_penalty=1)
    own.tokens.append(3)
    (chosen,) = choose(raw, [own], str)
    assert chosen is not None
    assert chosen.token == 7


@pytest.mark.parametrize("temperature", [0, 1])
def test_biases_are_added_before_penalties(temperature: float) -> None:
    raw = logits(1)
    own = answer([7], temperature=temperature, logit_bias={"7": 4.5, 8: -100}, repetition_penalty=2.0)
    wanted = raw.clone()
    biased = float(raw[7]) + 4.5
    wanted[7] = biased * 2 if biased < 0 else biased / 2
    wanted[8] -= 100
    torch.testing.assert_close(penalised(raw, own), wanted)
    (chosen,) = choose(raw[None], [answer([1], temperature=temperature, logit_bias={"11": 100})], str)
    assert chosen is not None
    assert chosen.token == 11
    for wrong in ({"5": 101}, {"x": 1}, {str(each): 1 for each in range(301)}, 5):
        with pytest.raises(InvalidRequest, match=r"sampling_parameters\.logit_bias"):
            own.asked.sampling.overridden({"logit_bias": wrong}, "sampling_parameters")


def test_draws_have_their_probabilities() -> None:
    raw = torch.full((1, VOCABULARY), -torch.inf)
    raw[0, :3] = torch.tensor([0.5, 0.3, 0.2]).log()
    own = answer([1], seed=3)
    counts = [0, 0, 0]
    for _ in range(3000):
        (chosen,) = choose(raw, [own], str)
        assert chosen is not None
        counts[chosen.token] += 1
    assert [count / 3000 for count in counts] == pytest.approx([0.5, 0.3, 0.2], abs=0.04)


def test_the_end_is_not_chosen_too_early() -> None:
    raw = torch.zeros(1, VOCABULARY)
    raw[0, 3], raw[0, 7] = 9.0, 5.0
    (closed,) = choose(raw, [answer([1], min_tokens=1, temperature=0)], str)
    (open_,) = choose(raw, [answer([1], temperature=0)], str)
    assert (closed and closed.token, open_ and open_.token) == (7, 3)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("row", ["nan", "inf", "-inf"])
def test_a_row_that_nothing_can_be_drawn_from_fails_alone(row: str, temperature: float) -> None:
    raw = torch.zeros(3, VOCABULARY)
    raw[1, 4], raw[2, 9] = float(row), 90.0
    if row == "-inf":
        raw[1] = -torch.inf
    first, second, third = choose(raw, [answer([1], temperature=temperature, logprobs=1) for _ in range(3)], str)
    assert second is None
    assert first is not None
    assert third is not None
    assert third.token == 9


@pytest.mark.parametrize("temperature", [1e-5, 1e-6, 1e-40, 1e-300])
def test_hardly_any_temperature_takes_the_best_token(temperature: float) -> None:
    raw = 1000 * torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0))
    (chosen,) = choose(raw, [answer([1, 2, 3], temperature=temperature, repetition_penalty=0.01)], str)
    assert chosen is not None
    assert chosen.token == int(penalised(raw[0], answer([1, 2, 3], repetition_penalty=0.01)).argmax())
    with pytest.raises(
        InvalidRequest, match=r"sampling_parameters.repetition_penalty: .*greater than or equal to 0.01"
    ):
        Sampling().overridden({"repetition_penalty": 1e-40}, "sampling_parameters")
