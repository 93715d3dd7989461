"""A text encoder's forward recorded as TorchScript, for CPUs: it runs without the interpreter.

A pass through transformers' modules holds the interpreter's lock between its operations, some hundred times. Threads
that each run a part of a pass wait for one another there, and for those that prepare requests and send replies. MiniLM
in bfloat16 on two cores takes 13 texts of 16 tokens 0.74 of the time when recorded, 6 of 64 tokens 0.80; with ten LoRA
adapters among them 0.64 and 0.71.

A recording has fixed what the model's Python decided, which may depend on the shape of the inputs. So it is compared
with the model over several shapes before it is used. The weights are the model's own, in memory once; those of adapters
are inputs of each pass.

TorchScript's optimised execution, a setting of each thread, is off: passes are as fast, and it would make another copy
of a recording at its first passes, which then take as long as recording it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from fmplex_backend.adapters.recorded_lora import adaptable_modules, add_products, added, sample_lora
from fmplex_backend.adapters.torchscript import scripted

LONGEST = 512  # tokens: longer passes have work enough to go through Python

logger = logging.getLogger(__name__)


class _WithoutMask(nn.Module):
    """Wraps a model so that torch.jit.trace sees one flat module: to trace its submodules takes three times as long.

    Its tensors are registered here: the tracer makes constants of others, which torch never frees.

    Args:
        adaptable: the modules that LoRA is added to, in its order.
    """

    __jit_ignored_attributes__ = ("model", "adaptable")

    def __init__(self, model: nn.Module, adaptable: Sequence[nn.Module]) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "adaptable", adaptable)
        for number, parameter in enumerate(model.parameters()):
            self.register_parameter(f"parameter{number}", parameter)
        for number, buffer in enumerate(model.buffers()):
            self.register_buffer(f"buffer{number}", buffer)

    def forward(self, ids: Tensor, lora: list[Tensor] | None = None) -> Tensor:
        """ids: [n, t], lora: see `RecordedLora` -> states [n, t, h]."""
        return self._states(lora, input_ids=ids)

    def _states(self, lora: list[Tensor] | None, **given: Tensor) -> Tensor:
        model: Any = self.__dict__["model"]
        # Scripted, its branch and loop stay, where torch.jit.trace would fix what it saw.
        with added(lora or [], self.__dict__["adaptable"], scripted(add_products)):
            states: Tensor = model(**given).last_hidden_state
        return states


class _WithMask(_WithoutMask):
    def forward(self, ids: Tensor, mask: Tensor, lora: list[Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """ids: [n, t], mask: [n, t] of what is no padding, lora: as above -> states [n, t, h]."""
        # [n, 1, t, t]: one of [n, t] the model's Python would look at, and a recording fix what it saw
        return self._states(lora, input_ids=ids, attention_mask=mask[:, None, None].expand(-1, 1, ids.shape[1], -1))


class TracedForward:
    """A frozen model's forward, bare and with LoRA; it has no adapters yet.

    Args:
        max_length: of the model's inputs, in tokens.
    """

    def __init__(self, model: nn.Module, max_length: int) -> None:
        self._model: Any = model
        self.longest = min(max_length, LONGEST)
        ids, _ = self._inputs(2, min(3, self.longest))
        self._adaptable = adaptable_modules(model, lambda: model(input_ids=ids), ids.shape)
        self.adaptable = list(self._adaptable)  # paths of the modules that LoRA is added to, in its order
        self._recordings = {  # by whether rows are padded, and whether LoRA is added
            (padded, adapted): self._recorded(padded=padded, adapted=adapted)
            for padded in (False, True)
            for adapted in ((False, True) if self.adaptable else (False,))
        }

    def run(self, ids: Tensor, mask: Tensor | None, lora: list[Tensor] | None = None) -> Tensor | None:
        """[n, t] ids, and a mask [n, t] of what is no padding -> states [n, t, h]; None where the model has to run.

        Args:
            lora: as `RecordedLora` makes it for the modules of `adaptable`; None: no row has an adapter.
        """
        if not self.runs(ids.shape[1], padded=mask is not None, adapted=lora is not None):
            return None
        recording: Any = self._recordings[mask is not None, lora is not None]
        with optimized_execution(False):
            states: Tensor = recording(*(each for each in (ids, mask, lora) if each is not None))
        return states

    def runs(self, tokens: int, *, padded: bool, adapted: bool) -> bool:
        """Whether a recording runs passes like this, of so many tokens a row."""
        return tokens <= self.longest and self._recordings.get((padded, adapted)) is not None

    def _recorded(self, *, padded: bool, adapted: bool) -> Callable[..., Tensor] | None:
        modules = list(self._adaptable.values())
        module = (_WithMask if padded else _WithoutMask)(self._model, modules)
        try:
            with torch.no_grad(), warnings.catch_warnings(), optimized_execution(False):
                warnings.simplefilter("ignore")  # of the tracer, about each decision: what they change shows below
                traced: Callable[..., Tensor] = torch.jit.trace(
                    module, self._given(3, 17, padded=padded, adapted=adapted), check_trace=False
                )
                for rows, length in ((1, 1), (2, 5), (4, 33), (1, self.longest), (3, 17)):
                    self._check(traced, *self._given(rows, length, padded=padded, adapted=adapted), padded=padded)
        except Exception as error:  # the tracer's errors have no base class of their own
            which = f"{'with' if padded else 'without'} padding{' and with adapters' if adapted else ''}"
            logger.info("passes %s run through Python: %s", which, str(error).strip().splitlines()[0])
            return None
        return traced

    def _check(self, traced: Callable[..., Tensor], ids: Tensor, *others: Any, padded: bool) -> None:
        """Raise AssertionError where the recording's states are not the model's."""
        masks, lora = (others[:1], others[1:]) if padded else ((), others)
        given = {"attention_mask": masks[0].long()} if masks else {}
        with added(lora[0] if lora else [], list(self._adaptable.values())):
            want = self._model(input_ids=ids, **given).last_hidden_state
        compared = masks[0] if masks else torch.ones_like(ids, dtype=torch.bool)
        rows, length = ids.shape
        torch.testing.assert_close(
            traced(ids, *others)[compared], want[compared], msg=f"it differs for {rows} rows of {length}"
        )

    def _given(self, rows: int, length: int, *, padded: bool, adapted: bool) -> tuple[Any, ...]:
        """What a recording takes."""
        ids, mask = self._inputs(rows, min(length, self.longest))
        lora = sample_lora(list(self._adaptable.values()), *ids.shape)
        return (ids, *([mask] if padded else []), *([lora] if adapted else []))

    def _inputs(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        ids = (1 + torch.arange(rows * length)).view(rows, length) % self._model.config.vocab_size
        lengths = length - torch.arange(rows) % length
        return ids, torch.arange(length) < lengths[:, None]
