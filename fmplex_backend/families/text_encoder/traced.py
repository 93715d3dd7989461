"""A text encoder's forward recorded as TorchScript, for CPUs: it runs without the interpreter.

A pass through transformers' modules holds the interpreter's lock between its operations, some hundred times. Threads
that each run a part of a pass wait for one another there, and for those that prepare requests and send replies. MiniLM
in bfloat16 on two cores takes 13 texts of 16 tokens 0.74 of the time when recorded, 6 of 64 tokens 0.80.

A recording has fixed what the model's Python decided, which may depend on the shape of the inputs. So it is compared
with the model over several shapes before it is used. The weights are the model's own, in memory once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LONGEST = 512  # tokens: longer passes have work enough to go through Python

logger = logging.getLogger(__name__)


class _WithoutMask(nn.Module):
    """Wraps a model so that torch.jit.trace sees one flat module: to trace its submodules takes three times as long.

    Its tensors are registered here: the tracer makes constants of others, which torch never frees.
    """

    __jit_ignored_attributes__ = ("model",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "model", model)
        for number, parameter in enumerate(model.parameters()):
            self.register_parameter(f"parameter{number}", parameter)
        for number, buffer in enumerate(model.buffers()):
            self.register_buffer(f"buffer{number}", buffer)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: [n, t] -> states [n, t, h]."""
        model: Any = self.__dict__["model"]
        states: Tensor = model(input_ids=ids).last_hidden_state
        return states


class _WithMask(_WithoutMask):
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        """ids: [n, t], mask: [n, t] of what is no padding -> states [n, t, h]."""
        # [n, 1, t, t]: one of [n, t] the model's Python would look at, and a recording fix what it saw
        attention_mask = mask[:, None, None].expand(-1, 1, ids.shape[1], -1)
        model: Any = self.__dict__["model"]
        states: Tensor = model(input_ids=ids, attention_mask=attention_mask).last_hidden_state
        return states


class TracedForward:
    """A frozen model's forward without adapters.

    Args:
        max_length: of the model's inputs, in tokens.
    """

    def __init__(self, model: nn.Module, max_length: int) -> None:
        self._model: Any = model
        self.longest = min(max_length, LONGEST)
        self._unpadded = self._recorded("without padding", _WithoutMask(model), padded=False)
        self._padded = self._recorded("with padding", _WithMask(model), padded=True)

    def run(self, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        """[n, t] ids, and a mask [n, t] of what is no padding -> states [n, t, h]; None where the model has to run."""
        if ids.shape[1] > self.longest:
            return None
        if mask is None:
            return None if self._unpadded is None else self._unpadded(ids)
        return None if self._padded is None else self._padded(ids, mask)

    def _recorded(self, which: str, module: nn.Module, *, padded: bool) -> Callable[..., Tensor] | None:
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the tracer, about each decision: what they change shows below
                traced: Callable[..., Tensor] = torch.jit.trace(
                    module, self._inputs(3, min(17, self.longest), padded=padded), check_trace=False
                )
                for rows, length in ((1, 1), (2, 5), (4, 33), (1, self.longest), (3, 17)):
                    self._check(traced, rows, min(length, self.longest), padded=padded)
        except Exception as error:  # the tracer's errors have no base class of their own
            logger.info("passes %s run through Python: %s", which, str(error).strip().splitlines()[0])
            return None
        return traced

    def _check(self, traced: Callable[..., Tensor], rows: int, length: int, *, padded: bool) -> None:
        """Raise AssertionError where the recording's states are not the model's."""
        ids, *masks = inputs = self._inputs(rows, length, padded=padded)
        given = {"attention_mask": masks[0].long()} if masks else {}
        want = self._model(input_ids=ids, **given).last_hidden_state
        compared = masks[0] if masks else torch.ones_like(ids, dtype=torch.bool)
        torch.testing.assert_close(
            traced(*inputs)[compared], want[compared], msg=f"it differs for {rows} rows of {length}"
        )

    def _inputs(self, rows: int, length: int, *, padded: bool) -> tuple[Tensor, ...]:
        ids = (1 + torch.arange(rows * length)).view(rows, length) % self._model.config.vocab_size
        lengths = length - torch.arange(rows) % length
        return (ids, torch.arange(length) < lengths[:, None]) if padded else (ids,)
