"""The contract of a family: its spec. Imports neither torch nor Triton.

The backbone's boundary, the repository's reader and writer, the Task-API and the command line use families through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy.typing as npt

from fmplex_backend.decoders.decoder import Decoder
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.families import kind_of
from fmplex_backend.families.heads import CarriedOver
from fmplex_backend.interface import TensorSpec
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.types import Predict, Runtime

if TYPE_CHECKING:
    from torch import Tensor, nn


class Input(Protocol):
    """An input tensor, and how Python values become one."""

    tensor: TensorSpec
    columns: Literal["one", "several"]  # how many of a table's columns make an item
    default_column: str  # the table's column that is an item, where none is named; "" where several make one
    files: Sequence[str]  # how the names of files end that are an item each, such as ".png"; empty where none are

    def is_item(self, data: Any) -> bool:
        """Whether this is one item, where a caller may give one or many."""

    def item(self, cell: Any) -> tuple[Any, list[tuple[int, int]]]:
        """A cell as an item and, of a list of words, each word's characters [start, end); raises ValueError."""

    def array(self, items: Sequence[Any]) -> npt.NDArray[Any]:
        """Items as the tensor is sent, batch first; raises TaskProblem."""

    def parse(self, argument: str) -> Any:
        """A command-line argument as an item; raises TaskProblem."""

    def show(self, item: Any) -> str:
        """An item in a line, for people."""

    def probe(self, size: int | None) -> Any:
        """A valid item, to try a task with; `size` is the tensor's last dim, where that is fixed."""


@runtime_checkable
class SteppedInput(Input, Protocol):
    """An input whose items are sequences in time, of which the end can be held back."""

    def parted(self, item: Any, steps: int) -> tuple[Any, Any]:
        """An item without its last steps, and these; raises TaskProblem where it is no longer than that."""


@runtime_checkable
class TableInput(Input, Protocol):
    """An input whose items may take all of a table, or several of its rows."""

    def from_table(
        self, columns: Mapping[str, Sequence[Any]], named: Sequence[str] | None, label: str | None
    ) -> tuple[list[Any], list[Any]]:
        """Items of a table, and their labels, empty where it has none; raises ValueError.

        Args:
            named: by the caller, those of its columns that are read. label: that of the labels; None where none are
                asked for.
        """


class Encoder(Protocol):
    """A section of task.json that says how inputs become what the backbone takes."""

    @property
    def kind(self) -> str:
        """As task.json names it."""

    @property
    def learns(self) -> Literal["nothing", "optionally", "always"]:
        """Whether it has weights: none, some that may be fitted with the decoder, or some that must be."""

    def reads(self) -> Input:
        """The input it reads; raises TaskRefused where an installed package would have to say."""

    def size(self) -> int | None:
        """The last dim of its input, where that is fixed."""


class Parts(Protocol):
    """A task.json, or a task in the making: what `Family.check` looks at."""

    @property
    def encoder(self) -> Any: ...

    @property
    def decoder(self) -> Any: ...


class Example(Protocol):
    """A row ready for the backbone."""

    @property
    def length(self) -> int:
        """Tokens of its longest window: rows of like length are batched together."""

    @property
    def words(self) -> Sequence[int]:
        """Where tokens are read: the position of each word's first token, -1 where it is cut off."""


class Features(Protocol):
    """A model and a pooling, as training sees them: rows -> vectors, computed as the server does."""

    model: Any  # with the adapter that is being fitted
    device: Any

    def vectors(self, examples: Sequence[Any]) -> Tensor:
        """[rows, h] through the model, with gradients."""

    def every(self, examples: Sequence[Any]) -> Tensor:
        """Any number of rows through the model, without gradients."""

    def fixed(self, examples: Sequence[Any]) -> Tensor:
        """The same through the backbone as it is before fitting."""

    def places(self, examples: Sequence[Any]) -> list[Tensor]:
        """For each example, the indices of its rows in what `fixed` returns."""

    def precision(self, wanted: str) -> Any:
        """The context manager of a training step: autocast to bfloat16, or nothing."""


class FittingInputs(Protocol):
    """A task's encoder while the task is fitted."""

    @property
    def module(self) -> nn.Module | None:
        """Its weights, where it has some."""

    def examples(self, rows: Rows, *, reads: str) -> list[Any]:
        """Rows ready for `Features`; raises TaskProblem.

        Args:
            reads: what the decoder reads of them, see `Decoder.reads`.
        """

    def observe(self, examples: Sequence[Any]) -> None:
        """All training rows, once, before the first fitting."""

    def tensors(self) -> dict[str, Tensor]:
        """Copies of its weights, by their names in encoder.safetensors; empty without any."""

    def features(self, bare: Any, model: Any, reads: str) -> Features:
        """A pooling over the bare backbone and over the model that is being fitted."""


class SequenceExample(Protocol):
    """A row as a whole sequence: what the model is asked, and what it is to answer."""

    @property
    def length(self) -> int:
        """Tokens."""

    @property
    def words(self) -> Sequence[int]:
        """None."""

    @property
    def counted(self) -> int:
        """Tokens of the answer: those that the loss is of."""


class SequenceLosses(Protocol):
    """A model, as the training of whole sequences sees it."""

    model: Any  # with the adapter that is being fitted

    def losses(self, examples: Sequence[Any], precision: str = "float32") -> Iterator[tuple[Tensor, int]]:
        """The loss of so many sequences, pack by pack: a pack's sum over `counted` tokens, a scalar, and their number.

        A pack is computed when it is asked for, so that one at a time takes memory. `precision` is that of a training
        step: see `families.fitting.autocast`.
        """


class SequenceInputs(Protocol):
    """A task whose decoder learns from whole sequences, while it is fitted or evaluated."""

    @property
    def learning_rate(self) -> float | None:
        """Of a low-rank adapter by default; None: that of the adapter's kind, as for other kinds."""

    def examples(self, rows: Rows) -> list[Any]:
        """Rows with the answers to them, as `SequenceExample`s; raises TaskProblem."""

    def losses(self, model: Any, pack_tokens: int) -> SequenceLosses:
        """Over the backbone with an adapter in it, in packs of at most so many tokens; 0: chosen for the device."""

    def compared(self, rows: Rows) -> list[int]:
        """The rows whose item can be asked in a request, so that its answer can be compared with theirs."""

    def compared_by(self, examples: Sequence[Any]) -> Sequence[Mapping[str, str]]:
        """Parameters of each one's request, of examples whose item can be asked."""


class Family:
    """Base of all specs: all that code outside of a family needs to know about it."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[Input, ...]]  # a task takes one of them, as its encoder says; a backbone has all
    common_outputs: ClassVar[tuple[TensorSpec, ...]] = ()  # of every task, whatever its decoder
    encoders: ClassVar[tuple[type[Any], ...]]  # sections of task.json; the first is the default
    adapters: ClassVar[tuple[type[Any], ...]] = ()
    decoders: ClassVar[tuple[type[Decoder], ...]]
    parameters: ClassVar[type[BackboneConfig]] = BackboneConfig
    runtimes: ClassVar[tuple[str, ...]] = ("torch",)
    streams: ClassVar[bool] = False  # whether a reply may come in several parts
    # Whether tensors have a batch dimension; without one a request is one item, and max_batch_size is 0.
    batched: ClassVar[bool] = True
    limits: ClassVar[tuple[str, ...]] = ()  # terms of a task's entry that mean something to this family only
    optional_inputs: ClassVar[tuple[TensorSpec, ...]] = ()  # that clients may send beside a task's input
    probe_parameters: ClassVar[Mapping[str, str]] = {}  # of requests that try a task: quick, and the same each time

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Every output that some task may have."""
        every = [spec for decoder in self.decoders for spec in (*decoder.gives, *decoder.may_give)]
        return tuple(dict.fromkeys([*every, *self.common_outputs]))

    def decoder(self, kind: str) -> type[Decoder]:
        """The decoder of a kind; raises KeyError."""
        return {kind_of(each): each for each in self.decoders}[kind]

    @property
    def leading(self) -> tuple[int, ...]:
        """The dims that tensors with a batch dimension have before their own where a config does not imply them."""
        return () if self.batched else (-1,)

    def max_items(self, config: BackboneConfig, max_batch_size: int) -> int:
        """Bmax: what a backbone's config.pbtxt says, or a parameter where requests have no batch dimension."""
        return max_batch_size

    def check(self, parts: Parts) -> None:
        """Raise ValueError, beginning with a field's name, where encoder and decoder exclude each other."""

    def encoder_for(self, columns: Sequence[str], options: Mapping[str, Any]) -> Any:
        """The encoder for a table: of these feature columns, or of its text column by default; raises TaskProblem."""
        return self.encoders[0](**options)

    def make_runtime(
        self, config: BackboneConfig, file: Path, device: str, max_items: int, predict: Predict
    ) -> Runtime:
        """Load the backbone; raises BackboneRefused.

        Args:
            config: of the class `parameters`.
            file: the backbone's config.pbtxt, for messages.
            device: as torch names it, e.g. "cuda:0".
            max_items: Bmax.
            predict: the cost model's estimate of a pass, in seconds.
        """
        raise NotImplementedError

    def takes_model(self, config: Mapping[str, Any]) -> bool:
        """Whether a model is of the family, by its config.json: what `fmplex backbone add` goes by."""
        return False

    def hidden_width(self, config: BackboneConfig, file: Path) -> int | None:
        """The width of the backbone's vectors, read without loading it; None where that cannot be told."""
        return None

    def fingerprint(self, config: BackboneConfig, file: Path) -> str | None:
        """The backbone's `fmplex_backend.fingerprint`, read without loading it; None where that cannot be told."""
        return None

    def carried_over(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CarriedOver:
        """The head of a fine-tuned model, as a decoder; raises ValueError where there is none that computes the same.

        Args:
            config: the model's config.json.
            tensors: those of its file that are not the backbone's, and those of the backbone's modules that its runtime
                names `unread`, by their names there.
        """
        raise ValueError(f"no heads are carried over for {self.name} models")

    def samples(self, tensor: str, length: int, count: int, seed: int) -> list[Any]:
        """So many different items of an input, each of about `length` tokens, to measure with.

        Empty where items of that input have no length that could be chosen.
        """
        return []

    def completed(self, decoder: Decoder, runtime: Any) -> Decoder:
        """A decoder that is about to be fitted, with the settings that only the backbone tells."""
        return decoder

    def fitting_inputs(self, encoder: Any, runtime: Any, tensors: Mapping[str, Tensor], seed: int) -> FittingInputs:
        """The encoder of a task that is about to be fitted, with the tensors it has, if any."""
        raise NotImplementedError

    def sequence_inputs(self, encoder: Any, decoder: Any, runtime: Any) -> SequenceInputs:
        """Of a task whose decoder's `learns` is "sequences"; raises TaskProblem or TaskRefused."""
        raise NotImplementedError
