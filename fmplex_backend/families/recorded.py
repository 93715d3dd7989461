"""A model's pass recorded as TorchScript, for CPUs: it runs without the interpreter.

A pass through transformers' modules holds the interpreter's lock between its operations, some hundred times. Threads
that each run a part of a pass wait for one another there, and for those that prepare requests and send replies. MiniLM
in bfloat16 on two cores takes 13 texts of 16 tokens 0.74 of the time when recorded, 6 of 64 tokens 0.80; with ten LoRA
adapters among them 0.64 and 0.71.

A recording has fixed what the model's Python decided, which may depend on the shape of the inputs and on their values.
So it is compared with the model over several before it is used. One with LoRA has to be, operation by operation, the
one without, but for what it adds: then it has fixed the same, and is compared over fewer shapes. The weights are the
model's own, in memory once; those of adapters are inputs of each pass.

TorchScript's optimised execution, a setting of each thread, is off: passes are as fast, and it would make another copy
of a recording at its first passes, which then take as long as recording it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from fmplex_backend.adapters.recorded_lora import (
    adaptable_modules,
    add_products,
    added,
    operations_without_lora,
    sample_lora,
)
from fmplex_backend.adapters.torchscript import scripted
from fmplex_backend.families.linears import weights_of
from fmplex_backend.families.parallel import threads_for

logger = logging.getLogger(__name__)

LONGEST = 512  # tokens of a row: longer passes have work enough to go through Python
LARGE = 1 << 28  # weights: passes of larger models have work enough, too, and comparing them takes long
Given = tuple[Tensor, ...]  # what a pass takes, beside LoRA
Shape = tuple[int, int]  # rows, and tokens of a row
PROBED_ROWS = 2  # of the pass that shows which modules LoRA can be added to
COMPARED_ADAPTED = 2  # shapes that are compared with LoRA added


def repays(model: nn.Module, most: int = LARGE) -> bool:
    """Whether a model has so few weights that the interpreter's part of a pass counts."""
    return weights_of(model) <= most


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which passes run, that is recorded: e.g. of rows of one length.

    Args:
        name: what log lines call passes that run so.
        run: `Given` -> a tensor, or a tuple of them.
        sample: what a pass of a shape is given.
        shapes: the first is recorded, the others are compared: what is recorded wrongly for every shape shows there.
            The last may be expensive.
        plain: the model's own, that the recording has to be equal to; by default `run`.
        compared: of what a pass makes, and what it was given, that which has to be equal; by default all.
    """

    name: str
    run: Callable[..., Any]
    sample: Callable[[int, int], Given]
    shapes: Sequence[Shape]
    plain: Callable[..., Any] | None = None
    compared: Callable[..., Any] = lambda made, *given: made


class _Flat(nn.Module):
    """Wraps a pass so that torch.jit.trace sees one flat module: to trace its submodules takes three times as long.

    Its tensors are registered here: the tracer makes constants of others, which torch never frees.

    Args:
        adaptable: the modules that LoRA is added to, in its order.
    """

    __jit_ignored_attributes__ = ("run", "adaptable")

    def __init__(self, model: nn.Module, run: Callable[..., Any], adaptable: Sequence[nn.Module]) -> None:
        super().__init__()
        object.__setattr__(self, "run", run)
        object.__setattr__(self, "adaptable", adaptable)
        for number, parameter in enumerate(model.parameters()):
            self.register_parameter(f"parameter{number}", parameter)
        for number, buffer in enumerate(model.buffers()):
            self.register_buffer(f"buffer{number}", buffer)

    def forward(self, *given: Any) -> Any:
        """`Given`, and behind it LoRA where the pass has some, see `RecordedLora`."""
        lora: list[Tensor] = given[-1] if isinstance(given[-1], list) else []
        # Scripted, its branch and loop stay, where torch.jit.trace would fix what it saw.
        with added(lora, self.__dict__["adaptable"], scripted(add_products)):
            return self.__dict__["run"](*(given[:-1] if lora else given))


class RecordedForward:
    """A frozen model's passes, bare and with LoRA; it has no adapters yet.

    Args:
        ways: by what the family tells them apart by.
        longest: tokens of a row, which recordings are for.
    """

    def __init__(self, model: nn.Module, ways: Mapping[bool, Way], longest: int) -> None:
        self._model, self.longest = model, longest
        way = next(iter(ways.values()))
        shape = PROBED_ROWS, way.shapes[0][1]
        given = way.sample(*shape)
        with threads_for(math.prod(shape)):
            self._adaptable = adaptable_modules(model, lambda: way.run(*given), shape)
        self.adaptable = list(self._adaptable)  # paths of the modules that LoRA is added to, in its order
        self._recordings: dict[tuple[bool, bool], Any] = {}  # by way, and whether with LoRA
        for key, way in ways.items():
            bare = self._recordings[key, False] = self._recorded(way)
            if bare is not None and self.adaptable:
                self._recordings[key, True] = self._recorded(way, bare=bare)

    def run(self, way: bool, given: Given, lora: list[Tensor] | None = None) -> Any:
        """What a way's `run` makes; it must be recorded, see `runs`.

        Args:
            lora: as `RecordedLora` makes it for the modules of `adaptable`; None: no row has an adapter.
        """
        recording: Any = self._recordings[way, lora is not None]
        with optimized_execution(False):
            return recording(*given) if lora is None else recording(*given, lora)

    def runs(self, way: bool, tokens: int, *, adapted: bool) -> bool:
        """Whether a recording runs passes like this, of so many tokens a row."""
        return tokens <= self.longest and self._recordings.get((way, adapted)) is not None

    def _recorded(self, way: Way, *, bare: Any = None) -> Any:
        """A recording, with LoRA if that without is given; None where it may make what the model does not."""
        adapted = bare is not None
        module = _Flat(self._model, way.run, list(self._adaptable.values()))
        first, *compared = way.shapes
        try:
            with torch.no_grad(), warnings.catch_warnings(), optimized_execution(False):
                warnings.simplefilter("ignore")  # of the tracer, about each decision: what they change shows below
                given = self._given(way, first, adapted=adapted)
                with threads_for(math.prod(first)):
                    recording: Any = torch.jit.trace(module, given, check_trace=False)
                if adapted:
                    if operations_without_lora(recording.graph) != operations_without_lora(bare.graph):
                        raise AssertionError("the model's own operations are others where LoRA is added")
                    compared = compared[:COMPARED_ADAPTED]
                for shape in compared:
                    self._check(recording, way, shape, adapted=adapted)
        except Exception as error:  # the tracer's errors have no base class of their own
            which = f"{way.name}{' and with adapters' if adapted else ''}"
            logger.info("passes %s run through Python: %s", which, str(error).strip().splitlines()[0])
            return None
        return recording

    def _check(self, recording: Callable[..., Any], way: Way, shape: Shape, *, adapted: bool) -> None:
        """Raise AssertionError where what the recording makes is not what the model does."""
        whole = self._given(way, shape, adapted=adapted)
        given, lora = (whole[:-1], whole[-1]) if adapted else (whole, [])
        rows, tokens = shape
        with threads_for(rows * tokens):
            with added(lora, list(self._adaptable.values())):
                want = (way.plain or way.run)(*given)
            have = recording(*whole)
        torch.testing.assert_close(
            way.compared(have, *given), way.compared(want, *given), msg=f"it differs for {rows} rows of {tokens}"
        )

    def _given(self, way: Way, shape: Shape, *, adapted: bool) -> tuple[Any, ...]:
        """What a recording takes."""
        given = way.sample(*shape)
        return (*given, sample_lora(list(self._adaptable.values()), *shape)) if adapted else given
