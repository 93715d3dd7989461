"""What the contract test (tests/triton/test_family_contract.py) has to know of a family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt

from fmplex import Backbone, Task
from testing.clients import Outputs, Question

Fit = Callable[[str, Backbone], Task]  # makes a task of that name
Reference = Callable[[Any], Outputs]  # one item -> the tensors that a client must get, without the batch dimension


@dataclass(frozen=True)
class Broken:
    """A way to break a task, and what the server's answer must name then: file, field or tensor, remedy."""

    variant: str
    spoil: Callable[[Path], None]  # gets the task's directory
    says: tuple[str, ...]


class FamilyCase(ABC):
    """A family's entry in the contract test.

    Its tasks come in named variants (a decoder, with an adapter or without). Those with weights have random ones, the
    same for a variant, and different enough that no two variants answer alike.
    """

    family: ClassVar[str]  # in the registry
    # Requests of the test in which tasks share batches, over gRPC; one that streams answers in parts, which are joined.
    parameters: ClassVar[Mapping[str, str]] = {}
    bmax: ClassVar[int] = 32  # items of a batch
    # Answers to the lighter of two rivals that are waited for, at least: what a batch holds too many is much less than
    # a fiftieth of them.
    counted: ClassVar[int] = 150
    shares_rows: ClassVar[bool] = True  # equal rows of a batch run once
    variables: ClassVar[Mapping[str, str]] = {}  # of the server's environment; PYTHONPATH for a family in tests
    served: ClassVar[tuple[str, ...]]  # variants to be compared with the reference: every kind of decoder and adapter
    adapted: ClassVar[frozenset[str]]  # those of `served` that have an adapter
    rivals: ClassVar[tuple[str, str]]  # two of `served`, one of them with an adapter
    versions: ClassVar[tuple[str, ...]]  # variants whose outputs have the same dims, so that one may follow another
    items: ClassVar[Sequence[Any]]  # some twenty or more, all different, of all sizes
    rows: ClassVar[int] = 1  # of the backbone, that each of `items` is
    # Of about one size each, and all different: equal ones would share rows.
    short: ClassVar[Sequence[Any]]  # 32
    long: ClassVar[Sequence[Any]]  # 256 that cost more than `short`, so that clients keep up with the backbone
    longest: ClassVar[Sequence[Any]]  # 32 that cost five times as much as `short`, or more
    broken: ClassVar[Mapping[str, Broken]]
    broken_versions: ClassVar[tuple[str, ...]]  # those of `broken` that spoil a version's files, not the entry
    fitted: ClassVar[Mapping[str, Fit]]  # tasks by kind, fitted in a second or two

    @abstractmethod
    def write_backbone(self, repository: Path, name: str, max_batch_size: int) -> None:
        """Write a backbone's directory."""

    @abstractmethod
    def write_task(self, repository: Path, name: str, tag: int, variant: str) -> Path:
        """Move a whole task into the repository, on the backbone `BACKBONE`; its directory."""

    @abstractmethod
    def write_version(self, version: Path, name: str, variant: str) -> Path:
        """Write a version of the task `name` into a directory that does not exist yet, and return that."""

    @abstractmethod
    def reference(self, version: Path) -> Reference:
        """What a version must answer, computed without the backend."""

    @abstractmethod
    def states(self, reference: Any, item: Any) -> npt.NDArray[Any]:
        """What the decoder of a version gets for an item, by what `reference` has returned for that version."""

    def steps(self, question: Question, references: Mapping[str, Any]) -> int:
        """In how many batches a request is, at least."""
        return 1

    def asked(self, kind: str) -> Sequence[Any]:
        """Items for a task of `fitted`."""
        return self.items[:4]


BACKBONE = "backbone"  # its name in the contract's repository
