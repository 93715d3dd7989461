"""A request while it generates: its tokens, how far they are computed, and what may be sent of their text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from fmplex_backend.families.causal_lm.sampling import Sampling
from fmplex_backend.families.causal_lm.text import Detokenizer, StopStrings
from fmplex_backend.types import Work


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, read and checked."""

    prompt: list[int]
    sampling: Sampling
    streams: bool
    echo: str = ""  # what the answer begins with
    sums_logprobs: bool = False  # whether the sum of its tokens' logarithmic probabilities is told


@dataclass(frozen=True, slots=True)
class Delta:
    """A part of an answer: the text since the part before."""

    text: str
    tokens: int
    finish_reason: str
    logprobs: list[Mapping[str, Any]] | None
    cumulative_logprob: float | None = None  # of all tokens until now


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, and its logarithmic probabilities where they were asked for; its own comes first."""

    token: int
    logprobs: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Sequence:
    """One request's state; the engine thread's once it is prepared.

    Tokens [0, computed) have their keys and values in memory. A step computes the next ones, at most `chunk`; one that
    computes the last of them chooses a token.
    """

    asked: Asked
    chunk: int
    ends: Collection[int]  # tokens that end the answer
    detokenizer: Detokenizer
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    token_at: float = 0.0  # when its last token was made
    random: Any = None  # a torch.Generator, made when it is first needed
    _stops: StopStrings = field(init=False)
    _text: str = ""  # not sent yet
    _unsent: int = 0  # tokens since the part before
    _logprobs: list[Mapping[str, Any]] = field(default_factory=list)
    _sum: float = 0.0  # of the tokens' own logarithmic probabilities

    def __post_init__(self) -> None:
        self.tokens = list(self.asked.prompt)
        self._stops = StopStrings(self.asked.sampling.stop)
        self._text = self.asked.echo

    @property
    def step(self) -> range:
        """Positions of the tokens that the next step computes."""
        return range(self.computed, min(self.computed + self.chunk, len(self.tokens)))

    @property
    def chooses(self) -> bool:
        """Whether the next step ends with a new token."""
        return self.step.stop == len(self.tokens)

    @property
    def work(self) -> Work:
        """Of the next step: each of its tokens attends to all before it, at most."""
        step = self.step
        return Work(1, len(step), len(step) * step.stop)

    @property
    def generated(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - len(self.asked.prompt)

    @property
    def tells_logprobs(self) -> bool:
        """Whether its tokens' logarithmic probabilities are wanted."""
        return self.asked.sums_logprobs or self.asked.sampling.logprobs is not None

    @property
    def must_go_on(self) -> bool:
        """Whether the next token must not end the answer."""
        return self.generated < self.asked.sampling.min_tokens

    def move(self, computed: int) -> None:
        """So many tokens have keys and values in memory: none where these are lost, more where some were found."""
        self.computed = computed

    def advance(self, chosen: Chosen | None) -> str:
        """Note what a step has done; returns why the answer ends with it, or ""."""
        self.computed = self.step.stop
        if chosen is None:
            return ""
        self.tokens.append(chosen.token)
        self._unsent += 1
        if chosen.logprobs is not None:
            self._logprobs.append(chosen.logprobs)
            self._sum += next(iter(chosen.logprobs.values()))["logprob"]
        if chosen.token in self.ends and not self.must_go_on:
            self._flush()
            return "stop"
        last = self.generated >= self.asked.sampling.max_tokens
        text = self.detokenizer.add(chosen.token, last=last)
        # Stop strings are looked for behind the fewest tokens that are wanted, as vLLM does.
        may_stop = self.generated > self.asked.sampling.min_tokens
        self._text += self._stops.add(text) if may_stop else text
        if self._stops.stopped:
            return "stop"
        if last:
            self._text += self._stops.rest()
        return "length" if last else ""

    def cut_short(self) -> Delta | None:
        """Its end, where no step follows though none was the last."""
        self._flush()
        return self.take("length")

    def _flush(self) -> None:
        """No token follows: nothing is held back any more."""
        self._text += self._stops.add(self.detokenizer.rest()) + self._stops.rest()

    def take(self, finish_reason: str = "") -> Delta | None:
        """What there is to be sent now; None for nothing, of an answer that goes on."""
        if not finish_reason and not (self.asked.streams and self._text):
            return None
        told = self._logprobs if self.asked.sampling.logprobs is not None else None
        delta = Delta(self._text, self._unsent, finish_reason, told, self._sum if self.tells_logprobs else None)
        self._text, self._unsent, self._logprobs = "", 0, []
        return delta
