"""Logarithmic probabilities in OpenAI's two shapes, out of what the backbone tells.

That is, of each token, {id: {"logprob", "rank", "decoded_token"}}, its own first and then the best ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
Told = Mapping[str, Mapping[str, Any]]


def of_chat(told: Sequence[Told] | None, most: int) -> dict[str, Any] | None:
    """A chat's: of each token its text, bytes and the `most` best ones."""
    if told is None:
        return None
    content = []
    for each in told:
        own, *_ = each.values()
        best = sorted(each.values(), key=_rank)[:most]
        content.append({**_token(own), "top_logprobs": [_token(one) for one in best]})
    return {"content": content, "refusal": None}


def of_completion(told: Sequence[Told] | None, most: int, offset: int) -> dict[str, Any] | None:
    """A completion's: four lists as long as there are tokens.

    The best ones are told by their texts. Of those with the same text the token itself has it, else the best of them,
    and others are `token_id:` and their number, as vLLM can write tokens.

    Args:
        offset: characters of the answer before these tokens.
    """
    if told is None:
        return None
    found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for each in told:
        own, *_ = each.values()
        found["tokens"].append(own["decoded_token"])
        found["token_logprobs"].append(own["logprob"])
        found["top_logprobs"].append(_by_text(each, most))
        found["text_offset"].append(offset)
        offset += len(own["decoded_token"])
    return found


def _by_text(told: Told, most: int) -> dict[str, float]:
    """The `most` best ones of a token's and its own, best first."""
    own, best = next(iter(told)), sorted(told, key=lambda token: _rank(told[token]))
    whose: dict[str, str] = {}  # token a text stands for
    for token in (own, *best):
        whose.setdefault(told[token]["decoded_token"], token)
    shown = {token: told[token] for token in (*best[:most], own)}
    return {
        each["decoded_token"] if whose[each["decoded_token"]] == token else f"token_id:{token}": each["logprob"]
        for token, each in shown.items()
    }


def _rank(told: Mapping[str, Any]) -> int:
    return int(told["rank"])


def _token(told: Mapping[str, Any]) -> dict[str, Any]:
    """`bytes` is null for a token that holds a part of a character: its text does not tell them."""
    text = told["decoded_token"]
    return {
        "token": text,
        "logprob": told["logprob"],
        "bytes": None if REPLACEMENT in text else list(text.encode()),
    }
