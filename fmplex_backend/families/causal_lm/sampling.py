"""How the next token is chosen, and when an answer ends: what `sampling_parameters` may say. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fmplex_backend.errors import InvalidRequest
from fmplex_backend.section import CHECKED

MAX_STOPS, MAX_STOP = 16, 256  # strings, characters of one
MAX_BIASES, MAX_BIAS = 300, 100  # tokens, and what is added to the logits of one: OpenAI's limits
LEAST_TEMPERATURE = 1e-5  # vLLM's: divided by less, logits may be infinite, and nothing can be drawn from these


def _listed(value: Any) -> Any:
    """One stop string in the place of a list."""
    return [value] if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    """An object by tokens, as OpenAI has it, in the place of pairs."""
    return tuple(value.items()) if isinstance(value, Mapping) else value


Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP)]


@dataclass(config=CHECKED, frozen=True)
class Sampling:
    """The names, meanings and order of vLLM's SamplingParams.

    Args:
        max_tokens: the longest answer.
        min_tokens: the shortest: no token that ends the answer is chosen before, and no stop string looked for.
        temperature: divides the logits; 0, and what is below 1e-5, takes the best token always.
        top_k: of so many best tokens; 0 or -1: of all.
        top_p: of the fewest best tokens that have this probability together (Holtzman et al. 2020).
        min_p: of those that have at least this part of the best one's probability.
        repetition_penalty: divides positive and multiplies negative logits of tokens that the prompt or the answer
            already has (Keskar et al. 2019).
        presence_penalty: is taken from the logits of tokens that the answer already has.
        frequency_penalty: likewise, once for each time it has them.
        logit_bias: numbers from -100 to 100 by token, which are added to its logits before all else.
        stop: strings that end the answer before them. stop_token_ids: tokens that end it likewise.
        ignore_eos: go on after the model's own end.
        seed: of the random numbers; without one they differ each time.
        logprobs: so many best tokens are told with each token's logarithmic probability; None: none are.
    """

    max_tokens: Annotated[int, Field(ge=1)] = 256
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=-1)] = 0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[tuple[tuple[int, Bias], ...], Field(max_length=MAX_BIASES), BeforeValidator(_pairs)] = ()
    stop: Annotated[tuple[StopString, ...], Field(max_length=MAX_STOPS), BeforeValidator(_listed)] = ()
    stop_token_ids: Annotated[tuple[int, ...], Field(max_length=MAX_STOPS)] = ()
    ignore_eos: bool = False
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn; else the best one is taken always."""
        return self.temperature >= LEAST_TEMPERATURE

    @property
    def changes_scores(self) -> bool:
        """Whether scores are others than the logits: by what was there before, or by the request itself."""
        penalties = self.presence_penalty or self.frequency_penalty
        return self.repetition_penalty != 1 or bool(penalties or self.logit_bias)

    @property
    def named_tokens(self) -> Iterator[tuple[str, int]]:
        """Each token that is named by its number, with the field that does."""
        yield from (("stop_token_ids", token) for token in self.stop_token_ids)
        yield from (("logit_bias", token) for token, _ in self.logit_bias)

    def overridden(self, wishes: Mapping[str, Any], source: str) -> Sampling:
        """With what a request says; raises InvalidRequest that names the field in `source`."""
        try:
            return CHECK.validate_python({name: getattr(self, name) for name in FIELDS} | dict(wishes))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0]) if first["loc"] else "(all)"
            if first["type"] == "unexpected_keyword_argument":
                raise InvalidRequest(f"{source}: there is no field {name!r}; there are {', '.join(FIELDS)}") from None
            wanted = f"{first['msg'][0].lower()}{first['msg'][1:]}"
            raise InvalidRequest(f"{source}.{name}: {wanted} (got {str(first.get('input'))[:80]!r})") from None


FIELDS = tuple(each.name for each in fields(Sampling))
CHECK = TypeAdapter(Sampling)
