"""Adapters as PEFT writes them, read and checked against the backbone they are for.

LoRA (any rank, rsLoRA, rank and alpha patterns) is applied batched by `multi_lora`. DoRA and IA3 cannot share a matrix
product across tasks, so they run on their own rows after the common part; so do adapters that bring whole modules
(`modules_to_save`), with their LoRA. Any other kind is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from fmplex_backend.adapters.layout import Layout
from fmplex_backend.adapters.saved_modules import own_modules
from fmplex_backend.adapters.settings import Settings, by_pattern, feedforward, read_settings
from fmplex_backend.errors import TaskRefused
from fmplex_backend.types import Vfm
from fmplex_backend.weights import cast, expect_finite, read_safetensors

WEIGHTS = "adapter_model.safetensors"
MAX_CHANGE = 1e4  # an adapter's part in a module's weights, times the weights themselves: sound ones stay below 1


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One module's pair, the scale folded into B: y += x @ a.T @ b. Rows are ranks in both, and contiguous."""

    a: Tensor  # [r, in]
    b: Tensor  # [r, out]

    @property
    def rank(self) -> int:
        return self.a.shape[0]


RowTransform = Callable[[nn.Linear, Tensor, Tensor], Tensor]  # base, x [n, t, in], base's y [n, t, out] -> y


class KeptWeights(Protocol):
    """An adapter's weights outside of the bank, from where they come back (see residency)."""

    bytes: int

    def read(self, device: torch.device) -> dict[str, LoraWeights]:
        """On a device."""


@dataclass(eq=False, slots=True)
class Adapter:
    """A checked adapter. `slot` and `bucket` are the bank's (see multi_lora), on the engine thread.

    `lora` holds the weights until the bank has taken them over, and is empty then. Which are `kept` elsewhere, and
    `asked_by` whom, is residency's.
    """

    kind: str
    lora: dict[str, LoraWeights] = field(default_factory=dict)
    solo: Mapping[str, RowTransform] = field(default_factory=dict)
    modules: Mapping[str, nn.Module] = field(default_factory=dict)  # in the place of the backbone's, by path
    bucket: int = 0
    slot: int = 0  # 0: it is not in the bank
    kept: KeptWeights | None = None  # where it need not stay in the bank
    asked_by: Vfm | None = None  # whose request asked for it last, a copy's only where no other has

    @property
    def batched(self) -> bool:
        """Whether it shares matrix products with others."""
        return self.kind == "lora" and not self.modules

    @property
    def rank(self) -> int:
        """The largest rank among its modules."""
        return max((weights.rank for weights in self.lora.values()), default=0)


def load_adapter(
    directory: Path,
    backbone: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
    *,
    unread: Collection[str] = (),
    by_row: Collection[str] = (),
) -> Adapter:
    """Read a PEFT directory; raises TaskRefused.

    Args:
        unread: modules whose output nobody reads: an adapter may lack them, as it does where it was trained in a model
            without them.
        by_row: the backbone's modules that it may bring whole, see `saved_modules.modules_by_row`.
    """
    file, weights = directory / "adapter_config.json", directory / WEIGHTS
    settings = read_settings(file, str(getattr(getattr(backbone, "config", None), "model_type", "")))
    layout = Layout(file, weights, settings, backbone, unread, by_row)
    return _Reader(file, weights, settings, layout, dtype, device).adapter()


class _Reader:
    """Reads the tensors of one adapter, whose layout fits one backbone."""

    def __init__(
        self,
        file: Path,
        weights: Path,
        settings: Settings,
        layout: Layout,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.file, self.weights, self.settings, self.layout = file, weights, settings, layout
        self.dtype, self.device = dtype, device
        self.tensors = read_safetensors(weights, layout.check)
        trained = list(layout.trained.values())
        self.alphas = by_pattern(file, "alpha_pattern", settings.alpha_pattern, trained)  # by name in training
        self.inner = feedforward(file, settings, trained)

    def adapter(self) -> Adapter:
        paths = sorted(self.layout.trained)
        modules = {path: each for own in self.layout.saved for path, each in self._own_modules(own).items()}
        if modules and self.settings.peft_type == "LORA" and not self.settings.use_dora:
            return Adapter("lora", solo={path: self._lora_module(path) for path in paths}, modules=modules)
        if self.settings.peft_type == "IA3":
            return Adapter("ia3", solo={path: self._ia3_module(path) for path in paths}, modules=modules)
        if self.settings.use_dora:
            return Adapter("dora", solo={path: self._dora_module(path) for path in paths}, modules=modules)
        return Adapter("lora", lora={path: self._pair(path) for path in paths})

    def _tensor(self, path: str, part: str) -> tuple[str, Tensor]:
        """A module's tensor in float32, and its name in the file."""
        name = self.layout.names[path, part]
        return name, cast(self.weights, name, self.tensors[name], torch.float32)

    def _pair(self, path: str) -> LoraWeights:
        name_a, a = self._tensor(path, "lora_A")
        name_b, b = self._tensor(path, "lora_B")
        rank = a.shape[0]
        alpha = self.alphas.get(self.layout.trained[path], self.settings.lora_alpha)
        scale = alpha / (math.sqrt(rank) if self.settings.use_rslora else rank)
        self._expect_in_proportion(path, f"lora_alpha {alpha:g} with rank {rank}", scale * _norm_of_product(a, b))
        scaled = b.T * scale
        expect_finite(self.weights, name_b, scaled, f"times {scale:g} (of alpha and rank) it overflows")
        return LoraWeights(
            a=cast(self.weights, name_a, a, self.dtype).to(self.device).contiguous(),
            b=cast(self.weights, name_b, scaled, self.dtype).to(self.device).contiguous(),
        )

    def _expect_in_proportion(self, path: str, of: str, change: float) -> None:
        """Raise TaskRefused where a change would leave nothing of a module's own weights, and soon overflow."""
        if abs(change) <= MAX_CHANGE:  # whatever they are: their norm takes longer than the rest
            return
        own = float(torch.linalg.vector_norm(self.layout.linears[path].weight.detach(), dtype=torch.float32))
        if not abs(change) <= MAX_CHANGE * max(own, 1.0):
            raise TaskRefused(
                self.weights,
                self.layout.trained[path],
                f"it changes the module's weights by {abs(change):.0e}, where they are {own:.0e} in all: {of}",
                f"Correct lora_alpha in {self.file.name}, or train the adapter again",
            )

    def _own_modules(self, path: str) -> dict[str, nn.Module]:
        tensors = {}
        for part, name in self.layout.saved[path].items():
            tensors[part] = cast(self.weights, name, self.tensors[name], self.dtype).to(self.device)
        return own_modules(path, self.layout.modules[path], tensors, self.layout.by_row)

    def _lora_module(self, path: str) -> RowTransform:
        pair = self._pair(path)
        return lambda base, x, y: y + x @ pair.a.T @ pair.b

    def _dora_module(self, path: str) -> RowTransform:
        linear, pair = self.layout.linears[path], self._pair(path)
        name, magnitude = self._tensor(path, "lora_magnitude_vector")
        merged = linear.weight.detach().float() + pair.b.float().T @ pair.a.float()
        ratio = (magnitude.to(merged) / merged.norm(dim=1)).to(self.dtype)  # [out]
        if not bool((ratio.abs() <= MAX_CHANGE).all()):  # of a row of zeros it is infinite, or NaN
            problem = f"it is more than {MAX_CHANGE:g} times the length of a row of the merged weight of {path}"
            raise TaskRefused(self.weights, name, problem, "Train the adapter again")

        def transform(base: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
            unbiased = y if base.bias is None else y - base.bias
            scaled: Tensor = ratio * (unbiased + x @ pair.a.T @ pair.b)
            return scaled if base.bias is None else scaled + base.bias

        return transform

    def _ia3_module(self, path: str) -> RowTransform:
        name, factors = self._tensor(path, "ia3_l")
        if not bool((factors.abs() <= MAX_CHANGE).all()):
            problem = f"it holds factors beyond {MAX_CHANGE:g}"
            raise TaskRefused(self.weights, name, problem, "Train the adapter again")
        vector = factors.flatten().to(self.device, self.dtype)
        if self.layout.trained[path] in self.inner:
            return partial(_scaled_before, vector)
        return lambda base, x, y: y * vector


def _scaled_before(vector: Tensor, base: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """IA3 in a feedforward module: its input is scaled."""
    scaled: Tensor = base(x * vector)
    return scaled


def _norm_of_product(a: Tensor, b: Tensor) -> float:
    """The Frobenius norm of b @ a, a: [r, in], b: [out, r], without the product."""
    a, b = a.double(), b.double()
    return math.sqrt(max(0.0, float(((a @ a.T) * (b.T @ b)).sum())))
