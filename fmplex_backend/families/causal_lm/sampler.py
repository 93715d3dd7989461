"""From logits to the next token of each sequence.

The order is that of transformers' `generate` and of vLLM: biases, penalties, temperature, top-k, top-p, min-p.
Sequences that take the best token and ask for nothing else share one argmax.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fmplex_backend.families.causal_lm.sampling import Sampling
from fmplex_backend.families.causal_lm.sequence import Chosen
from fmplex_backend.families.causal_lm.sequence import Sequence as Answer

Spell = Callable[[int], str]  # a token's text


def choose(logits: Tensor, answers: Sequence[Answer], spell: Spell) -> list[Chosen | Exception | None]:
    """The next token of each answer, or what choosing it raised: others' random numbers are drawn, and stay drawn.

    None where its logits hold no best number, but a NaN, an infinity, or nothing but -inf: nothing can be drawn from
    them.

    Args:
        logits: [n, vocabulary].
    """
    logits = logits.float()
    best = logits.argmax(dim=-1)  # of a row with a NaN it is that
    found: list[int | None] = [
        token if finite else None
        for token, finite in zip(best.tolist(), logits.gather(1, best[:, None])[:, 0].isfinite().tolist(), strict=True)
    ]
    return [
        None if token is None else _chosen_or_raised(logits[row], token, answer, spell)
        for row, (token, answer) in enumerate(zip(found, answers, strict=True))
    ]


def _chosen_or_raised(logits: Tensor, best: int, answer: Answer, spell: Spell) -> Chosen | Exception:
    try:
        return _chosen(logits, best, answer, spell)
    except Exception as error:
        return error


def _chosen(logits: Tensor, best: int, answer: Answer, spell: Spell) -> Chosen:
    sampling = answer.asked.sampling
    token = best
    if sampling.draws or sampling.changes_scores or answer.must_go_on:
        scores = penalised(logits, answer)
        token = _drawn(filtered(scores, sampling), answer) if sampling.draws else int(scores.argmax())
    if not answer.tells_logprobs:
        return Chosen(token)
    return Chosen(token, _logprobs_of(logits, token, sampling.logprobs or 0, spell))


def penalised(logits: Tensor, answer: Answer) -> Tensor:
    """[vocabulary], without tokens that must not come now."""
    scores, sampling = logits.clone(), answer.asked.sampling
    if sampling.logit_bias:
        tokens, biases = zip(*sampling.logit_bias, strict=True)
        scores.index_add_(0, torch.tensor(tokens, device=logits.device), torch.tensor(biases, device=logits.device))
    penalty = sampling.repetition_penalty
    if penalty != 1:
        seen = torch.tensor(answer.tokens, device=logits.device).unique()
        own = scores[seen]
        scores[seen] = torch.where(own < 0, own * penalty, own / penalty)
    if answer.generated and (sampling.presence_penalty or sampling.frequency_penalty):
        own = torch.tensor(answer.tokens[-answer.generated :], device=logits.device)
        seen, counts = own.unique(return_counts=True)
        scores[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if answer.must_go_on:
        scores[list(answer.ends)] = -torch.inf
    return scores


def filtered(scores: Tensor, sampling: Sampling) -> Tensor:
    """[vocabulary] with temperature; tokens that top-k, top-p or min-p leave out are -inf."""
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(descending=False)
        left_out = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        left_out[-1] = False
        scores = scores.masked_fill(left_out.scatter(0, order, left_out), -torch.inf)
    if sampling.min_p > 0:
        probabilities = scores.softmax(dim=-1)
        scores = scores.masked_fill(probabilities < sampling.min_p * probabilities.max(), -torch.inf)
    return scores


def _drawn(scores: Tensor, answer: Answer) -> int:
    """A token, each with its probability."""
    if answer.random is None:
        answer.random = torch.Generator(scores.device)
        seed = answer.asked.sampling.seed
        answer.random.seed() if seed is None else answer.random.manual_seed(seed)
    return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=answer.random))


def _logprobs_of(logits: Tensor, token: int, most: int, spell: Spell) -> dict[str, Any]:
    """The logarithmic probabilities before temperature of the token, and then of the best ones, as vLLM tells them."""
    values = logits.log_softmax(dim=-1)
    ranked = values.topk(most).indices.tolist() if most else []
    ranks = {token: int((values > values[token]).sum()) + 1}  # the first, so that it can be told from the best ones
    for rank, each in enumerate(ranked, start=1):
        ranks[each] = rank
    return {
        str(each): {"logprob": float(values[each]), "rank": rank, "decoded_token": spell(each)}
        for each, rank in ranks.items()
    }
