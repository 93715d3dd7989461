"""What the runtimes of all encoders do alike: requests are rows, which pass through the backbone once, in one step each
or in portions, and are pooled for decoders.

A family's runtime says how an input becomes rows (`encode`), which of them may share a pass (`alike`), and how a pass
is run (its `EncoderForward`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Generic, Protocol

import numpy as np
import torch

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.adapters.residency import METRICS, Residency
from fmplex_backend.adapters.saved_modules import modules_by_row
from fmplex_backend.decoders.decoder import Encoded, LoadedDecoder
from fmplex_backend.errors import InvalidRequest
from fmplex_backend.families.forward import EncoderForward, Launched
from fmplex_backend.families.model_files import check_trained_for
from fmplex_backend.families.parallel import threads_for
from fmplex_backend.families.passes import cut_into_portions, plan_passes
from fmplex_backend.families.payload import Payload, RowT, row_key
from fmplex_backend.families.precision import dtype_name
from fmplex_backend.families.recorded import RecordedForward
from fmplex_backend.families.shared_rows import SharedRow, divide, unite
from fmplex_backend.fingerprint import fingerprint
from fmplex_backend.repository.config import TaskConfig, load_task_config
from fmplex_backend.repository.parameters import BackboneConfig
from fmplex_backend.types import KeepsNothing, Metric, Outcome, Pass, PassShape, Predict, Reading, Request, Vfm


class LoadedEncoder(Protocol):
    """A task's encoder, with its weights."""

    takes: str  # the input it reads


@dataclass(frozen=True, slots=True)
class Extensions:
    """A task's version, read and checked."""

    encoder: Any  # a LoadedEncoder of the family
    adapter: Adapter | None
    decoder: LoadedDecoder
    common_outputs: Mapping[str, int | None] = field(default_factory=dict)  # of every task of the family

    @property
    def takes(self) -> str:
        return str(self.encoder.takes)

    @property
    def adapted(self) -> bool:
        return self.adapter is not None

    @property
    def repeats(self) -> bool:
        return True

    @property
    def outputs(self) -> Mapping[str, int | None]:
        return {**self.decoder.sizes, **self.common_outputs}


class EncoderRuntime(KeepsNothing, ABC, Generic[RowT]):
    """One encoder in memory, for all tasks; implements `fmplex_backend.types.Runtime`.

    Args:
        model: on its device, in eval mode and frozen.
        directory: where it was read from.
        hidden: the width of its vectors.
        max_items: Bmax.
        predict: the cost model's estimate of a pass, in seconds; decides how a batch is cut into passes.
        unread: modules whose output nobody reads, see `load_adapter`.
        tokens: the most of a batch, where the config leaves it open.
    """

    metrics: Mapping[str, Metric] = METRICS
    common_outputs: ClassVar[Mapping[str, int | None]] = {}
    folds: ClassVar[bool] = False  # see `AdapterBank`
    forward: EncoderForward[RowT, Any]
    by_row: frozenset[str] = frozenset()  # modules that a task's adapter may bring whole, see `modules_by_row`

    def __init__(
        self,
        config: BackboneConfig,
        model: Any,
        directory: Path,
        *,
        device: torch.device,
        hidden: int,
        max_items: int,
        predict: Predict,
        unread: Sequence[str],
        tokens: int,
    ) -> None:
        self.device, self.model, self.predict = device, model, predict
        self.dtype = dtype_name(model.dtype)
        self.hidden, self.unread = hidden, unread
        self.fingerprint = fingerprint(directory)
        self.bank = AdapterBank(model, device, folds=self.folds)
        self.residency = Residency(self.bank, config.adapter_memory, lambda command: self.post(command))
        self.queues_passes = device.type == "cuda"
        self.max_items, self.shares = max_items, config.share_rows
        self.max_batch_tokens = config.max_batch_tokens or tokens

    def set_forward(
        self, forward: EncoderForward[RowT, Any], recorded: Callable[[], RecordedForward | None] = lambda: None
    ) -> None:
        """Say how passes run: the last step of a family's `__init__`, as it runs some.

        Args:
            recorded: records the model's passes, for a CPU; None where they run as they are.
        """
        self.forward = forward
        self.by_row = modules_by_row(self.model, self.run_rows)
        # Only now: a recording calls no modules, at whose outputs `modules_by_row` looks.
        if self.device.type == "cpu" and (recordings := recorded()) is not None:
            forward.record(recordings, self.unread)

    # -- the family's

    @abstractmethod
    def load_encoder(self, task: TaskConfig, version: Path) -> LoadedEncoder:
        """A task's encoder; raises TaskRefused."""

    @abstractmethod
    def encode(self, extensions: Extensions, value: Any) -> list[list[RowT]]:
        """An input tensor -> the rows of each item, at least one; raises InvalidRequest."""

    @abstractmethod
    def profiled_rows(self) -> Iterator[tuple[int, RowT]]:
        """Passes to be timed at load: how many rows, and one of them."""

    def width_of(self, reads: str) -> int:
        """The width of what a decoder reads: of the pooled vector, unless a family has other things to read."""
        return self.hidden

    def load_decoder(self, task: TaskConfig, version: Path) -> LoadedDecoder:
        """A task's decoder with its weights; raises TaskRefused."""
        decoder: LoadedDecoder = task.decoder.load(version, self.width_of(task.decoder.reads))
        return decoder

    def payload(
        self,
        extensions: Extensions,
        rows: list[RowT],
        starts: list[int],
        portions: list[list[int]],
        keys: list[Hashable],
    ) -> Payload[RowT]:
        """What is kept for a request while it runs."""
        return Payload(rows, starts, portions, keys)

    def encoded(self, payload: Payload[RowT], results: list[Any], reads: str) -> Encoded:
        """Rows' results -> what a decoder reads."""
        pooled = _joined(np.stack(results), payload.starts, reads)
        truncated = np.zeros((len(payload.starts), 1), dtype=np.bool_)
        ends = [*payload.starts[1:], len(payload.rows)]
        lengths = [
            sum(row.length for row in payload.rows[start:end]) for start, end in zip(payload.starts, ends, strict=True)
        ]
        return Encoded(pooled, [], [], truncated, lengths=lengths)

    def common_tensors(self, encoded: Encoded) -> Mapping[str, Any]:
        """The tensors of `common_outputs`."""
        return {}

    def alike(self, row: RowT) -> Hashable:
        """Rows may share a pass where this is equal."""
        return None

    def check_adapter(self, adapter: Adapter, file: Path) -> None:
        """Raise TaskRefused where a sound adapter of this model cannot be applied row by row."""

    def in_memory(self, rows: Sequence[RowT], reads: str) -> int:
        """Bytes that rows, and their results, take until the reply."""
        return sum(row.bytes for row in rows) + 4 * self.width_of(reads) * len(rows)

    # -- off the engine thread

    def load(self, version: Path) -> Extensions:
        """Read a version directory; raises TaskRefused."""
        file = version / "task.json"
        task = load_task_config(file)
        check_trained_for(task.backbone, self.fingerprint, file)
        encoder = self.load_encoder(task, version)
        adapter = None
        if task.adapter:
            directory = version / task.adapter.path
            adapter = load_adapter(
                directory, self.model, self.model.dtype, self.device, unread=self.unread, by_row=self.by_row
            )
            self.check_adapter(adapter, directory / "adapter_config.json")
            self.residency.keep(adapter, directory / "adapter_config.json")
        return Extensions(encoder, adapter, self.load_decoder(task, version), self.common_outputs)

    def prepare(self, request: Request) -> None:
        """Run the task's encoder; raises InvalidRequest."""
        extensions: Extensions = request.extensions
        value = request.inputs.get(extensions.takes)
        if value is None:
            has = ", ".join(request.inputs) or "none"
            raise InvalidRequest(f"{request.vfm.name!r} takes the input {extensions.takes}, the request has {has}")
        items = self.encode(extensions, value)
        rows = [row for own in items for row in own]
        starts = [0, *accumulate(len(own) for own in items[:-1])]
        lengths = [row.length for row in rows]
        portions = cut_into_portions(lengths, max_rows=self.max_items, max_tokens=self.max_batch_tokens)
        keys = [row_key(row, extensions.adapter) if self.shares else object() for row in rows]
        payload = request.prepared = self.payload(extensions, rows, starts, portions, keys)
        request.work, request.rows, request.items = payload.work, payload.row_work, len(rows)
        request.prepared_bytes = self.in_memory(rows, extensions.decoder.reads)
        self.residency.expect(request)

    def decode(self, request: Request, value: list[Any]) -> Mapping[str, Any]:
        """Rows' hidden states -> output tensors (reply threads)."""
        decoder: LoadedDecoder = request.extensions.decoder
        encoded = self.encoded(request.prepared, value, decoder.reads)
        return {**decoder.decode(encoded), **self.common_tensors(encoded)}

    # -- the engine thread

    def attach(self, extensions: Extensions) -> None:
        """Put a version's adapter into the bank."""
        if extensions.adapter:
            self.residency.attach(extensions.adapter)

    def detach(self, extensions: Extensions) -> None:
        """Take a version's adapter out of the bank."""
        if extensions.adapter:
            self.residency.detach(extensions.adapter)

    def has_room(self, request: Request) -> bool:
        """Whether its adapter is in memory."""
        has = self.residency.is_ready(request)
        if has:
            self.residency.begin(request)
        return has

    def forget(self, request: Request) -> None:
        """Its adapter need not stay for it."""
        self.residency.end(request)

    def readings(self, vfm: Vfm | None) -> Iterator[Reading]:
        """Of adapters in memory."""
        return self.residency.readings(vfm)

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        """Run the rows of a batch in passes by length, the short first; equal rows once."""
        batch, failed = self.residency.run(batch)
        told = [failed] if failed else []
        rows = unite(asked for request in batch for asked in request.prepared.begin_step(request))
        apart: dict[Hashable, list[SharedRow[RowT]]] = {}
        for row in rows:
            apart.setdefault(self.alike(row.row), []).append(row)
        groups = [
            [alike[position] for position in group]
            for alike in apart.values()
            for group in plan_passes([row.row.length for row in alike], self.predict)
        ]
        if self.queues_passes:
            launched = [self._launch(group) for group in groups]
            return chain(told, map(self._collect, groups, launched))
        return chain(told, (self._collect(group, self._launch(group)) for group in groups))

    def run_rows(self, count: int) -> None:
        """A pass of so many equal rows, without adapters, on this thread."""
        _, row = next(iter(self.profiled_rows()))
        with threads_for(count * row.length), self.bank.applied([None] * count):
            self.forward.pooled([row] * count, {"mean"})

    def is_fatal(self, error: Exception) -> bool:
        """Every CUDA error but a lack of memory leaves the process's CUDA context unusable."""
        return "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError)

    def profile(self) -> Iterator[tuple[PassShape, float]]:
        """Time a pass of each of a few shapes, after a warm-up."""
        shapes = list(self.profiled_rows())
        for position, (rows, row) in enumerate([shapes[0], *shapes]):
            start = perf_counter()
            self.forward.launch([row] * rows, [None] * rows, {"mean"}).hidden()
            if position:
                yield PassShape(rows * row.length, row.length, 0), perf_counter() - start

    def _launch(self, rows: list[SharedRow[RowT]]) -> Launched:
        rows.sort(key=lambda row: self.bank.order(_adapter(row)))
        poolings = {request.extensions.decoder.reads for row in rows for request, _ in row.askers}
        return self.forward.launch([row.row for row in rows], [_adapter(row) for row in rows], poolings)

    def _collect(self, rows: list[SharedRow[RowT]], launched: Launched) -> Pass:
        hidden = launched.hidden()
        outcomes: list[tuple[Request, Outcome]] = []
        for place, row in enumerate(rows):
            for request, index in row.askers:
                payload: Payload[RowT] = request.prepared
                payload.results[index] = hidden.row(place, request.extensions.decoder.reads, payload.rows[index])
                payload.missing -= 1
                if not payload.missing:
                    outcomes.append((request, payload.end_step()))
        longest = max(row.row.length for row in rows)
        groups = len({id(adapter) for row in rows if (adapter := _adapter(row)) is not None})
        portions, sharing = divide(rows)
        return Pass(PassShape(len(rows) * longest, longest, groups), portions, outcomes, launched.worked, sharing)


def _adapter(row: SharedRow[Any]) -> Adapter | None:
    """Of all who ask for a row: it is in the key."""
    extensions: Extensions = row.askers[0][0].extensions
    return extensions.adapter


def _joined(pooled: Any, starts: list[int], pooling: str) -> Any:
    """Rows' vectors [rows, h] -> items' [n, h]: the mean (or the largest) of an item's rows."""
    if len(starts) == len(pooled):
        return pooled
    if pooling == "max":
        return np.maximum.reduceat(pooled, starts, axis=0)
    counts = np.diff([*starts, len(pooled)])[:, None]
    return np.add.reduceat(pooled, starts, axis=0) / counts.astype(np.float32)
