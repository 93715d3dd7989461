"""The spec of the fake family: WORDS are counted, step by step; each step's count is a part of the reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders import Decoder
from fmplex_backend.decoders.decoder import Outputs
from fmplex_backend.decoders.results import Result
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.spec import Family, Input
from fmplex_backend.interface import TensorSpec
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.section import CHECKED
from fmplex_backend.types import PassShape, Predict, Runtime


class WordsInput:
    """WORDS [1] of strings."""

    tensor = TensorSpec("WORDS", "TYPE_STRING", (1,))
    columns: Literal["one", "several"] = "one"
    default_column = "text"
    files: Sequence[str] = ()

    def is_item(self, data: Any) -> bool:
        return isinstance(data, str)

    def item(self, cell: Any) -> tuple[str, list[tuple[int, int]]]:
        if not isinstance(cell, str):
            raise ValueError(f"{cell!r} is no line of words")
        return cell, []

    def array(self, items: Sequence[Any]) -> npt.NDArray[Any]:
        odd = [item for item in items if not isinstance(item, str)]
        if odd:
            raise TaskProblem(f"the task reads lines of words, not {odd[0]!r}")
        return np.array([line.encode() for line in items], dtype=np.object_)[:, None]

    def parse(self, argument: str) -> str:
        return argument

    def show(self, item: Any) -> str:
        return str(item)

    def probe(self, size: int | None) -> str:
        return "stream steps=3 count these words"


WORDS = WordsInput()
COUNTS = TensorSpec("COUNTS", "TYPE_INT64", (-1,))
MARK = TensorSpec("MARK", "TYPE_FP32", (1,))


@dataclass(config=CHECKED, frozen=True)
class Words:
    """A line of words, each of which counts `repeat` times."""

    repeat: Annotated[int, Field(ge=1)] = 1

    kind: Literal["words"] = field(default="words", kw_only=True, repr=False)
    learns: ClassVar[Literal["nothing", "optionally", "always"]] = "nothing"

    def reads(self) -> Input:
        return WORDS

    def size(self) -> int | None:
        return 1


@plain_dataclass(frozen=True, slots=True)
class Counted(Result):
    """How many words had been read at each step."""

    counts: tuple[int, ...]
    mark: float
    truncated: bool = False


@dataclass(config=CHECKED, frozen=True)
class Counter(Decoder):
    """Counts words; `mark` comes back in every answer."""

    mark: float = 0.0

    kind: Literal["count"] = field(default="count", kw_only=True, repr=False)
    gives = (COUNTS, MARK)
    learns = "nothing"
    needs_weights = False
    has_figures = False

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {"COUNTS": 1, "MARK": 1}

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        return {**parts[-1], "COUNTS": np.concatenate([part["COUNTS"] for part in parts])}

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        return Counted(tuple(outputs["COUNTS"].tolist()), float(outputs["MARK"].item()), truncated)


class FakeConfig(BackboneConfig):
    """A backbone's parameters."""

    step_ms: float = Field(default=1.0, ge=0.0)


class FakeFamily(Family):
    """Answers in as many parts as a line says."""

    name = "fake"
    inputs = (WORDS,)
    encoders = (Words,)
    decoders = (Counter,)
    parameters = FakeConfig
    streams = True

    def make_runtime(
        self, config: BackboneConfig, file: Path, device: str, max_items: int, predict: Predict
    ) -> Runtime:
        from fake_family.runtime import FakeRuntime

        assert isinstance(config, FakeConfig)
        seconds = config.step_ms / 1000

        def seconds_of(shape: PassShape) -> float:
            return seconds + 1e-6 * shape.tokens

        return FakeRuntime(seconds_of)

    def encoder_for(self, columns: Sequence[str], options: Mapping[str, Any]) -> Words:
        return Words(**options)
