"""Names and shapes of the tensors on the wire: per family what comes in, per decoder what goes out.

Dims leave out the batch; -1 is variable. A task's ensemble may show a backbone's tensor under another
name (SCORES for TOKEN_SCORES): `shown_as` is that name.
"""

from __future__ import annotations

from dataclasses import dataclass

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


EMBEDDING = TensorSpec("EMBEDDING", "TYPE_FP32", (-1,))
SCORES = TensorSpec("SCORES", "TYPE_FP32", (-1,))
LABEL = TensorSpec("LABEL", "TYPE_STRING", (-1,))
TOKEN_SCORES = TensorSpec("TOKEN_SCORES", "TYPE_FP32", (-1, -1), shown_as="SCORES")
OFFSETS = TensorSpec("OFFSETS", "TYPE_INT32", (-1, 2))
TRUNCATED = TensorSpec("TRUNCATED", "TYPE_BOOL", (1,))

TEXT = TensorSpec("TEXT", "TYPE_STRING", (1,))
FEATURES = TensorSpec("FEATURES", "TYPE_FP32", (-1,))

# A task takes one of them, as its encoder says; a backbone has all, none required.
FAMILY_INPUTS: dict[str, tuple[TensorSpec, ...]] = {
    "text-encoder": (TEXT, FEATURES),
}
FAMILY_OUTPUTS: dict[str, tuple[TensorSpec, ...]] = {
    "text-encoder": (EMBEDDING, SCORES, LABEL, TOKEN_SCORES, OFFSETS, TRUNCATED),
}
DECODER_OUTPUTS: dict[str, tuple[TensorSpec, ...]] = {
    "embedding": (EMBEDDING,),
    "classification": (SCORES, LABEL),
    "multi-label": (SCORES, LABEL),
    "regression": (SCORES,),
    "token-classification": (TOKEN_SCORES, LABEL, OFFSETS),
    "similarity": (SCORES, LABEL),
}


def tag_name(vfm: int) -> str:
    """The requested output that names a vFM."""
    return f"{TAG_PREFIX}{vfm}"


def tag_of(output: str) -> int | None:
    """The vFM a requested output names, or None where it is no tag."""
    number = output.removeprefix(TAG_PREFIX)
    is_tag = number != output and number.isascii() and number.isdigit() and len(number) < 10
    return int(number) if is_tag else None
