"""Names and shapes of the tensors on the wire, and the tags.

Dims leave out the batch; -1 is variable. A task's ensemble may show a backbone's tensor under another
name (SCORES for TOKEN_SCORES): `shown_as` is that name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

USAGE = "usage"  # the receipt, as clients see it
USAGE_DIMS = (3,)  # [queue_us, compute_us, batch_items]
TAG_PREFIX = "VFM_"
MEMBER_PREFIX = "MEMBER_"


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
INPUT_TOKENS = TensorSpec("num_input_tokens", "TYPE_UINT32", (1,))  # as Triton's vLLM backend names it
OFFSETS = TensorSpec("OFFSETS", "TYPE_INT32", (-1, 2))
TRUNCATED = TensorSpec("TRUNCATED", "TYPE_BOOL", (1,))

# What every backbone has beside its family's: a request with the input TASK (a name, or "" for all) is answered with
# STATUS (JSON, see `fmplex_backend.status`). Triton sends a batching model no request that has no input at all.
TASK = TensorSpec("TASK", "TYPE_STRING", (1,))
STATUS = TensorSpec("STATUS", "TYPE_STRING", (1,))
# A parameter of such a request, "true": the backbone reads the version of a task that is about to be bound to it.
PREFETCH = "prefetch"

# What a group's entry asks for beside its tag: MEMBER_<n> for the task of each tag n, which brings that task's receipt;
# the outputs of the tasks as <position>.SCORES ..., the tasks in the order of their tags; and ERRORS, a text for each
# task in the order of the entry's parameter `group`, "" where it answers.
ERRORS = TensorSpec("ERRORS", "TYPE_STRING", (-1,), shown_as="errors")


def tag_name(vfm: int) -> str:
    """The requested output that names a vFM."""
    return f"{TAG_PREFIX}{vfm}"


def member_name(vfm: int) -> str:
    """The requested output that names a task of a group by its tag."""
    return f"{MEMBER_PREFIX}{vfm}"


def position_name(position: int, output: str) -> str:
    """An output of the task at a position of a group, as the backbone names it."""
    return f"{position}.{output}"


def position_of(output: str) -> tuple[int, str] | None:
    """The position and the task's own output that a group's output stands for; None where it is none."""
    position, dot, own = output.partition(".")
    return (int(position), own) if dot and _is_number(position) else None


def backbone_outputs(own: Sequence[TensorSpec], slots: int, group_members: int) -> Iterator[TensorSpec]:
    """Every output that a backbone has.

    Args:
        own: those of its family's tasks.
        slots: how many tasks it can take.
        group_members: how many tasks a group can have; 0: there are no groups.
    """
    yield from (*own, STATUS)
    receipts = [tag_name, member_name] if group_members else [tag_name]
    yield from (TensorSpec(name(vfm), "TYPE_INT64", USAGE_DIMS) for name in receipts for vfm in range(slots))
    for position in range(group_members):
        yield from (TensorSpec(position_name(position, each.name), each.data_type, each.dims) for each in own)
    if group_members:
        yield ERRORS


def backbone_asked(steps: Iterable[tuple[str, Iterable[str]]]) -> str:
    """The model of the first of an ensemble's steps that asks for a tag; "" where none does.

    Args:
        steps: of each its model, and the outputs that it asks this model for.
    """
    return next((model for model, outputs in steps if any(tag_of(each) is not None for each in outputs)), "")


@lru_cache(maxsize=4096)
def tag_of(output: str) -> int | None:
    """The vFM a requested output names, or None where it is no tag."""
    return _number_after(TAG_PREFIX, output)


def member_of(output: str) -> int | None:
    """The tag of a group's task that a requested output names, or None where it names none."""
    return _number_after(MEMBER_PREFIX, output)


def _number_after(prefix: str, output: str) -> int | None:
    number = output.removeprefix(prefix)
    return int(number) if number != output and _is_number(number) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
