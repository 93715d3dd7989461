"""EMBEDDING: the pooled vector itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic.dataclasses import dataclass

from fmplex_backend.decoders.agreement import Agreed, alike
from fmplex_backend.decoders.decoder import Decoder, Encoded, LoadedDecoder, Outputs, Pooling
from fmplex_backend.decoders.head import unit
from fmplex_backend.decoders.results import Result, Vector
from fmplex_backend.interface import EMBEDDING, INPUT_TOKENS
from fmplex_backend.section import CHECKED


@dataclass(config=CHECKED, frozen=True)
class Embedder(Decoder):
    """The pooled vector itself, L2-normalised unless `normalize` is false. It has no weights.

    Args:
        count_tokens: also tell how many tokens were read, for clients that are billed by them.
    """

    pooling: Pooling = "mean"
    normalize: bool = True
    count_tokens: bool = False

    kind: Literal["embedding"] = field(default="embedding", kw_only=True, repr=False)
    gives = (EMBEDDING,)
    may_give = (INPUT_TOKENS,)
    learns = "nothing"
    needs_weights = False
    has_figures = False

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        def decode(encoded: Encoded) -> dict[str, npt.NDArray[Any]]:
            found: dict[str, npt.NDArray[Any]] = {
                "EMBEDDING": unit(encoded.vectors) if self.normalize else encoded.vectors
            }
            if self.count_tokens:
                found[INPUT_TOKENS.name] = np.array(encoded.lengths, dtype=np.uint32)[:, None]
            return found

        return LoadedDecoder(self.pooling, self.sizes(directory, hidden), decode)

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        return {"EMBEDDING": hidden} | ({INPUT_TOKENS.name: 1} if self.count_tokens else {})

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        return Vector(outputs["EMBEDDING"], truncated)

    @classmethod
    def agreed(cls, one: Outputs, other: Outputs, tolerance: float) -> Agreed:
        """Vectors whose cosine is at least 1 - tolerance."""
        return alike(one["EMBEDDING"], other["EMBEDDING"], tolerance)
