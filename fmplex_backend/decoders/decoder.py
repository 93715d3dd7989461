"""What a decoder kind is: a section of task.json, a head that is served, a result for clients, and how it is fitted.

A kind is one class in a file of its own, a line in `decoders/__init__.py`, and a name in its family's spec. What only
fitting needs (torch's losses, scikit-learn) is imported inside the methods that need it: serving imports none of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from typing_extensions import Self

from fmplex_backend.decoders.agreement import Agreed, equal, near
from fmplex_backend.decoders.results import Raw, Result
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.interface import TensorSpec
from fmplex_backend.section import CHECKED, PathInside, is_from_file

if TYPE_CHECKING:
    from torch import Tensor

    from fmplex_backend.decoders.confidence import Sample
    from fmplex_backend.decoders.figures import Evaluation
    from fmplex_backend.decoders.trainable import TrainableHead

Array = npt.NDArray[np.float32]
Outputs = Mapping[str, npt.NDArray[Any]]  # one item's output tensors, by the names clients see
Pooling = Literal["mean", "cls", "max"]
TOKENS = "tokens"  # in the place of a pooling: the decoder reads every token's hidden state
WEIGHTS = "decoder.safetensors"
SHOWN = 20  # labels in a message, at most


@plain_dataclass(frozen=True, slots=True)
class Encoded:
    """A request's hidden states after the backbone: n items, vectors of width h."""

    pooled: Array | None  # [n, h]
    tokens: list[Array]  # n arrays [t_i, h], special tokens left out; empty unless the decoder reads TOKENS
    offsets: list[npt.NDArray[np.int32]]  # n arrays [t_i, 2], characters [start, end) in the text as sent
    truncated: npt.NDArray[np.bool_]  # [n, 1]
    rows: Sequence[Any] = ()  # as the backbone took them, of families whose decoders compare with what was sent
    lengths: Sequence[int] = ()  # n, the tokens that the backbone read of each item, special tokens included

    @property
    def vectors(self) -> Array:
        """The pooled vectors [n, h], for decoders that read them."""
        assert self.pooled is not None
        return self.pooled


@plain_dataclass(frozen=True, slots=True)
class LoadedDecoder:
    """A decoder with its weights, as the reply threads call it, several at a time."""

    reads: str  # the pooling it wants: mean, cls, max or TOKENS
    sizes: Mapping[str, int | None]  # every tensor it makes -> its last dim, None where that varies
    decode: Callable[[Encoded], dict[str, npt.NDArray[Any]]]  # output tensors by name, batch first


@dataclass(config=CHECKED, frozen=True)
class Decoder:
    """Base of all kinds: all that a family, the server, a client and training need to know of one."""

    kind: str = field(default="", kw_only=True, repr=False)

    gives: ClassVar[tuple[TensorSpec, ...]] = ()
    may_give: ClassVar[tuple[TensorSpec, ...]] = ()  # outputs that only some tasks of the kind have
    # gradient: a head is trained; vectors: its tensors are computed from the rows' vectors; sequences: it has no
    # tensors, and the adapter is trained by the loss of whole sequences; nothing: it takes no labels
    learns: ClassVar[Literal["gradient", "vectors", "sequences", "nothing"]] = "gradient"
    label_column: ClassVar[str] = "label"  # the table's column of labels, where none is named
    # How the names of files end that are a label each, and the folder of such that lies beside the folder of items of
    # the same names; empty where labels are no files.
    label_files: ClassVar[Sequence[str]] = ()
    label_folder: ClassVar[str] = ""
    whole_column: ClassVar[str] = ""  # one whose cells hold items and labels both, see `parted`; "": there is none
    by_token: ClassVar[bool] = False  # whether it reads the state of every token, and has a target for each word
    stratified: ClassVar[bool] = False  # whether validation rows are held out label by label
    needs_weights: ClassVar[bool] = True  # whether it must be fitted before it can be served
    has_figures: ClassVar[bool] = True
    labels_itself: ClassVar[bool] = False  # whether it makes rows and labels of items without any, by `rows_from`
    holds_out: ClassVar[float | None] = None  # the part of the rows that is held out where `fit` is told of none
    # outputs that tell one version's answers from another's; none: those of floating-point numbers, or else all
    telling: ClassVar[tuple[TensorSpec, ...]] = ()

    @property
    def reads(self) -> str:
        """What it takes from the backbone: mean, cls or max of an item's states, or TOKENS."""
        return TOKENS if self.by_token else str(getattr(self, "pooling", "mean"))

    @property
    def label_names(self) -> Sequence[str]:
        """Its labels in the order of its scores; none for kinds without labels."""
        return ()

    # -- serving

    def load(self, directory: Path, hidden: int) -> LoadedDecoder:
        """Read its weights out of a version directory; raises TaskRefused.

        Args:
            hidden: the width of the backbone's vectors.
        """
        raise NotImplementedError

    def sizes(self, directory: Path, hidden: int | None) -> dict[str, int | None]:
        """Every output of a saved version -> its last dim; None where that varies or needs an unknown `hidden`."""
        raise NotImplementedError

    # -- what clients get

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """The output tensors of a whole reply, of those of its parts (at least one): of each tensor the last, unless
        a kind knows better.
        """
        return {name: tensor for part in parts for name, tensor in part.items()}

    @classmethod
    def result(cls, labels: Sequence[str], item: Any, outputs: Outputs, truncated: bool) -> Result:
        """One item's output tensors as a Python object."""
        return Raw(outputs, truncated)

    # -- what tells versions apart

    @classmethod
    def agreed(cls, one: Outputs, other: Outputs, tolerance: float) -> Agreed:
        """Of each of n items, [n], whether two versions of a task answer the same; see `decoders/agreement.py`.

        Args:
            one, other: their output tensors for the same items, batch first, by the names of `gives`.
            tolerance: of numbers. Here numbers with fractions tell, and where there are none, everything.
        """
        numbers = [name for name in one if name in other and np.issubdtype(one[name].dtype, np.floating)]
        found = [near(one[name], other[name], tolerance) for name in numbers]
        found = found or [equal(one[name], other[name]) for name in one if name in other]
        agreed: Agreed = np.all(found, axis=0)
        return agreed

    # -- fitting

    @classmethod
    def parted(cls, cell: Any) -> tuple[Any, Any] | None:
        """Of a cell that holds an item and its label both: the item's cell and the label; None of any other.

        Raises ValueError, which says what is wrong, where it should hold both.
        """
        return None

    @classmethod
    def asked(cls, cell: Any) -> Any:
        """A labelled row's cell of an item, as the task's input takes it."""
        return cell

    def brought(self) -> dict[str, Tensor]:
        """Tensors that it comes with, so that it need not be fitted; raises TaskProblem."""
        return {}

    def rows_from(self, items: Sequence[Any], source: str) -> Rows:
        """Rows, with the labels that they are to have, of items without any; raises TaskProblem."""
        raise NotImplementedError

    def split(self, rows: Rows, part: float) -> tuple[list[int], list[int]] | None:
        """Indices of the rows to train on and of the fraction to hold out, where it is not to be a random one."""
        return None

    def with_labels_of(self, rows: Rows) -> Self:
        """A copy with the labels that occur in the rows, where it has none yet."""
        return self

    def as_saved(self, tensors: Mapping[str, Tensor]) -> Self:
        """A copy with the settings that only its tensors tell, such as the widths of its layers."""
        return self

    def check_labels(self, rows: Rows) -> None:
        """Raise TaskProblem that lists rows whose label is blank or of the wrong type; `targets` finds the rest."""

    def remarks(self, rows: Rows) -> list[str]:
        """What is odd about rows that it is to be fitted on, in whole sentences; raises TaskProblem where they cannot
        teach it anything.
        """
        return []

    def targets(self, rows: Rows) -> list[Any]:
        """The training target of each row; raises TaskProblem where a label cannot be read."""
        raise TaskProblem(f"a {self.kind} decoder has no weights to fit")

    def trainable(self, hidden: int, class_weights: Tensor | None = None) -> TrainableHead:
        """A head to be trained by gradient descent, on vectors of this width."""
        raise NotImplementedError

    def figure_of(self, values: Tensor, targets: Tensor) -> tuple[str, float] | None:
        """A figure's name and value, of a head's values for rows and their stacked targets; None for kinds without."""
        return None

    def figures_of_loss(self, loss: float) -> dict[str, float]:
        """Figures that follow from the mean loss of held-out rows, the most telling one first."""
        return {}

    @property
    def plain(self) -> Self:
        """A copy that rejects nothing, and has the same labels."""
        return self

    @property
    def fits_confidence(self) -> bool:
        """Whether `fit` is to make the tensors that tell what to reject, by `confidence_of`."""
        return False

    def confidence_of(
        self, training: Sample, targets: Sequence[Any], held: Sample | None, outside: Sample | None
    ) -> dict[str, Tensor]:
        """The tensors of CONFIDENCE_WEIGHTS, from rows as the fitted task sees them.

        Args:
            held: rows that were not trained on. outside: rows that are to be rejected, whose targets are IGNORED.
        """
        raise NotImplementedError

    def from_vectors(self, vectors: Tensor, targets: Sequence[Any]) -> dict[str, Tensor]:
        """Its tensors, computed from the training rows' vectors [n, h] and targets."""
        raise NotImplementedError

    def balanced_weights(self, targets: Sequence[Any]) -> Tensor:
        """A weight per label that makes rare labels count as much as others; raises TaskProblem without labels."""
        raise TaskProblem(f"class_weights do nothing for a {self.kind} decoder. Leave them out")

    def figures(self, rows: Rows, outputs: Sequence[Outputs]) -> Evaluation:
        """Compare outputs, one mapping a row, with the rows' labels."""
        raise TaskProblem(f"a {self.kind} decoder cannot be evaluated. Compare its outputs yourself")


@dataclass(config=CHECKED, frozen=True)
class Weighted(Decoder):
    """A kind with tensors of its own, in a safetensors file of the version directory."""

    weights: PathInside = field(default=WEIGHTS, kw_only=True, repr=False)


@dataclass(config=CHECKED, frozen=True)
class Labelled(Decoder):
    """A kind with labels: those given, or those that occur in the rows it is fitted on."""

    labels: Annotated[Sequence[str], Field(validate_default=True)] = ()

    @field_validator("labels")
    @classmethod
    def _usable(cls, labels: Sequence[str], info: ValidationInfo) -> Sequence[str]:
        if is_from_file(info) and not labels:
            raise ValueError("a list of at least one label is needed")
        twice = sorted(label for label, count in Counter(labels).items() if count > 1)
        if twice:
            raise ValueError(f"labels must differ, these are given twice: {twice[:SHOWN]}")
        return labels

    @property
    def label_names(self) -> Sequence[str]:
        return self.labels

    def with_labels_of(self, rows: Rows) -> Self:
        if self.labels:
            return self
        return replace(self, labels=sorted(self.labels_in(rows), key=lambda label: (label != "O", label)))

    def labels_in(self, rows: Rows) -> set[str]:
        """All labels that occur."""
        return {str(label) for label in rows.labels}
