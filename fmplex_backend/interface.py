"""Names and shapes of the tensors on the wire, and the tags.

Dims leave out the batch; -1 is variable. A task's ensemble may show a backbone's tensor under another
name (SCORES for TOKEN_SCORES): `shown_as` is that name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

USAGE = "usage"  # the receipt, as clients see it
USAGE_DIMS = (3,)  # [queue_us, compute_us, batch_items]
TAG_PREFIX = "VFM_"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor: Triton's `data_type`, dims without the batch."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    shown_as: str = ""

    @property
    def client_name(self) -> str:
        """What a task's clients see."""
        return self.shown_as or self.name


# Outputs that decoders of several families give.
EMBEDDING = TensorSpec("EMBEDDING", "TYPE_FP32", (-1,))
SCORES = TensorSpec("SCORES", "TYPE_FP32", (-1,))
LABEL = TensorSpec("LABEL", "TYPE_STRING", (-1,))
TOKEN_SCORES = TensorSpec("TOKEN_SCORES", "TYPE_FP32", (-1, -1), shown_as="SCORES")
CONFIDENCE = TensorSpec("CONFIDENCE", "TYPE_FP32", (1,))
OFFSETS = TensorSpec("OFFSETS", "TYPE_INT32", (-1, 2))
TRUNCATED = TensorSpec("TRUNCATED", "TYPE_BOOL", (1,))

# What every backbone has beside its family's: a request with the input TASK (a name, or "" for all) is answered with
# STATUS (JSON, see `fmplex_backend.status`). Triton sends a batching model no request that has no input at all.
TASK = TensorSpec("TASK", "TYPE_STRING", (1,))
STATUS = TensorSpec("STATUS", "TYPE_STRING", (1,))


def tag_name(vfm: int) -> str:
    """The requested output that names a vFM."""
    return f"{TAG_PREFIX}{vfm}"


def backbone_asked(steps: Iterable[tuple[str, Iterable[str]]]) -> str:
    """The model of the first of an ensemble's steps that asks for a tag; "" where none does.

    Args:
        steps: of each its model, and the outputs that it asks this model for.
    """
    return next((model for model, outputs in steps if any(tag_of(each) is not None for each in outputs)), "")


@lru_cache(maxsize=4096)
def tag_of(output: str) -> int | None:
    """The vFM a requested output names, or None where it is no tag."""
    number = output.removeprefix(TAG_PREFIX)
    is_tag = number != output and number.isascii() and number.isdigit() and len(number) < 10
    return int(number) if is_tag else None
