"""Labelled examples: items that a task reads, and the labels it should give them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fmplex_backend.errors import TaskProblem

SEPARATOR = "|"  # between the labels of a text, in a CSV
IGNORED = -100  # the target of a word that was cut off: torch's cross entropy leaves it out


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled examples out of one source, which messages name."""

    items: list[Any]  # texts, or rows of numbers: what the task's encoder reads
    labels: list[Any]
    words: list[list[tuple[int, int]]]  # characters [start, end) of each text's words; empty where texts came whole
    source: str = "the data"

    def __len__(self) -> int:
        return len(self.items)

    def pick(self, places: Sequence[int]) -> Rows:
        """The rows at these indices."""
        items, labels = [self.items[place] for place in places], [self.labels[place] for place in places]
        return Rows(items, labels, [self.words[place] for place in places] if self.words else [], self.source)


def is_ignored(target: Any) -> bool:
    """Whether a row's target says that it is out of scope; some kinds have arrays for targets, which never do."""
    return isinstance(target, int) and target == IGNORED


def places(found: Sequence[int], most: int = 5) -> str:
    """Row numbers as text: "row 3", or "rows 3, 8, 12, 20, 31 and 7 more"."""
    return f"{'row' if len(found) == 1 else 'rows'} {listed([str(place) for place in found], most)}"


def named(labels: Sequence[str], most: int = 5) -> str:
    """Labels as text, in quotation marks."""
    return f"the {'label' if len(labels) == 1 else 'labels'} {listed([repr(label) for label in labels], most)}"


def listed(words: Sequence[str], most: int) -> str:
    """With commas, and "and 7 more" in the place of those beyond the first `most`."""
    rest = [f"{len(words) - most} more"] if len(words) > most else []
    *before, last = [*words[:most], *rest]
    return f"{', '.join(before)} and {last}" if before else last


def label_number(labels: Sequence[str], value: Any, place: int, rows: Rows) -> int:
    """The index of a label given by name or by index; raises TaskProblem that names the row."""
    if isinstance(value, int) and not isinstance(value, bool) and str(value) not in labels:
        if 0 <= value < len(labels):
            return value
    elif str(value) in labels:
        return list(labels).index(str(value))
    raise TaskProblem(
        f"{rows.source}, row {place}: {value!r} is none of the labels {', '.join(labels[:20])}. "
        "Correct it, or add it to the decoder's labels"
    )


def label_set(value: Any) -> list[str]:
    """Several labels of one row: a list, or a string with SEPARATOR between."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(SEPARATOR) if part.strip()]
    return [str(each) for each in value]


def tags_of(value: Any) -> list[str]:
    """A tag a word: a list, or a string with spaces between."""
    return value.split() if isinstance(value, str) else [str(each) for each in value]
