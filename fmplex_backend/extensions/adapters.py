"""Adapters as PEFT writes them, read and checked against the backbone they are for.

LoRA (any rank, rsLoRA, rank and alpha patterns) is applied batched by `multi_lora`. DoRA and IA3 cannot share a matrix
product across tasks, so they run on their own rows after the common part. Any other kind is refused by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from fmplex_backend.errors import TaskRefused
from fmplex_backend.extensions.weights import expect_shape, read_safetensors

WEIGHTS = "adapter_model.safetensors"
SUPPORTED = "LoRA (with rsLoRA), DoRA and IA3"
MAX_RANK = 512
CHANGES_BASE = (
    "pissa",
    "olora",
    "corda",
    "loftq",
    "lora_ga",
)  # initialisations that also rewrite the backbone's weights


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One module's pair, the scale folded into B: y += x @ a.T @ b. So lie the rows of both one behind the other."""

    a: Tensor  # [r, in]
    b: Tensor  # [r, out]

    @property
    def rank(self) -> int:
        """The rank."""
        return self.a.shape[0]


SAME_FUNCTION = {"use_dora", "velora_config"}  # of PEFT's variants of LoRA: one is supported, one is for training

RowTransform = Callable[[nn.Linear, Tensor, Tensor], Tensor]  # base, x [n, t, in], base's y [n, t, out] -> y


@dataclass(eq=False, slots=True)
class Adapter:
    """A checked adapter. `slot` and `bucket` are the bank's (see multi_lora), on the engine thread.

    `lora` holds the weights until the bank has them, which is then the only one.
    """

    kind: str
    lora: dict[str, LoraWeights] = field(default_factory=dict)
    solo: Mapping[str, RowTransform] = field(default_factory=dict)
    bucket: int = 0
    slot: int = 0

    @property
    def batched(self) -> bool:
        """Whether it shares matrix products with others."""
        return self.kind == "lora"

    @property
    def rank(self) -> int:
        """The largest rank among its modules."""
        return max((weights.rank for weights in self.lora.values()), default=0)


def load_adapter(directory: Path, backbone: nn.Module, dtype: torch.dtype, device: torch.device) -> Adapter:
    """Read a PEFT directory; raises TaskRefused."""
    file = directory / "adapter_config.json"
    if not file.is_file():
        raise TaskRefused(
            file, "(whole file)", "there is no such file", "Put there what PeftModel.save_pretrained wrote"
        )
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except Exception as error:  # PEFT raises whatever its parser raises
        raise TaskRefused(
            file, "(whole file)", f"PEFT cannot read it: {error}", "Save the adapter again with PEFT"
        ) from None
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind not in ("LORA", "IA3"):  # not by class: AdaLoRA's is a LoraConfig
        raise TaskRefused(file, "peft_type", f"{kind} adapters are not supported", f"Supported: {SUPPORTED}")
    read = _Reader(directory, file, config, backbone, dtype, device)
    if kind == "IA3":
        return read.ia3()
    return read.dora() if config.use_dora else read.lora()


class _Reader:
    """The files of one adapter against one backbone."""

    def __init__(
        self,
        directory: Path,
        file: Path,
        config: Any,
        backbone: nn.Module,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.file, self.config, self.dtype, self.device = file, config, dtype, device
        self.weights = directory / WEIGHTS
        self.modules = dict(backbone.named_modules())
        self.prefix = getattr(backbone, "base_model_prefix", "")
        self._refuse_options()
        self.tensors = {self._place(name): (name, t) for name, t in read_safetensors(self.weights).items()}

    def lora(self) -> Adapter:
        return Adapter("lora", lora={path: self._pair(path) for path in self._paths(("lora_A", "lora_B"))})

    def dora(self) -> Adapter:
        parts = ("lora_A", "lora_B", "lora_magnitude_vector")
        return Adapter("dora", solo={path: self._dora_module(path) for path in self._paths(parts)})

    def ia3(self) -> Adapter:
        return Adapter("ia3", solo={path: self._ia3_module(path) for path in self._paths(("ia3_l",))})

    # -- one module each

    def _pair(self, path: str) -> LoraWeights:
        linear = self._linear(path)
        name_a, a = self.tensors[path, "lora_A"]
        name_b, b = self.tensors[path, "lora_B"]
        expect_shape(self.weights, name_a, a, (-1, linear.in_features), f"the backbone's {path}")
        rank = a.shape[0]
        expect_shape(self.weights, name_b, b, (linear.out_features, rank), f"the backbone's {path}")
        if not 0 < rank <= MAX_RANK:
            raise TaskRefused(
                self.weights, name_a, f"rank {rank} is not between 1 and {MAX_RANK}", "Train with a rank that is"
            )
        alphas: dict[str, float] = self.config.alpha_pattern or {}
        alpha = alphas.get(get_pattern_key(list(alphas), _trained_path(name_a)), float(self.config.lora_alpha))
        scale = alpha / (math.sqrt(rank) if self.config.use_rslora else rank)
        return LoraWeights(
            a=a.to(self.device, self.dtype).contiguous(),
            b=(b.float().T * scale).to(self.device, self.dtype).contiguous(),
        )

    def _dora_module(self, path: str) -> RowTransform:
        linear, pair = self._linear(path), self._pair(path)
        name, magnitude = self.tensors[path, "lora_magnitude_vector"]
        expect_shape(self.weights, name, magnitude, (linear.out_features,), f"the backbone's {path}")
        merged = linear.weight.detach().float() + pair.b.float().T @ pair.a.float()
        ratio = (magnitude.to(merged) / merged.norm(dim=1)).to(self.dtype)  # [out]
        if not bool(torch.isfinite(ratio).all()):
            raise TaskRefused(
                self.weights, name, f"the merged weight of {path} has a row of zeros", "Train the adapter again"
            )

        def transform(base: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
            plain = y if base.bias is None else y - base.bias
            turned: Tensor = ratio * (plain + x @ pair.a.T @ pair.b)
            return turned if base.bias is None else turned + base.bias

        return transform

    def _ia3_module(self, path: str) -> RowTransform:
        linear = self._linear(path)
        name, factors = self.tensors[path, "ia3_l"]
        before = _named(_trained_path(name), self.config.feedforward_modules or ())
        width = linear.in_features if before else linear.out_features
        if factors.numel() != width:
            expect_shape(self.weights, name, factors, (1, width) if before else (width, 1), f"the backbone's {path}")
        vector = factors.flatten().to(self.device, self.dtype)
        if before:
            return lambda base, x, y: nn.functional.linear(x * vector, base.weight, base.bias)
        return lambda base, x, y: y * vector

    # -- names

    def _refuse_options(self) -> None:
        config = self.config
        init = str(getattr(config, "init_lora_weights", "")).lower()
        unsupported = {
            "modules_to_save": getattr(config, "modules_to_save", None),
            "bias": getattr(config, "bias", "none") != "none",
            "lora_bias": getattr(config, "lora_bias", False),
            "layer_replication": getattr(config, "layer_replication", None),
            "target_parameters": getattr(config, "target_parameters", None),
            "trainable_token_indices": getattr(config, "trainable_token_indices", None),
            "fan_in_fan_out": getattr(config, "fan_in_fan_out", False),
            "init_lora_weights": init.startswith(CHANGES_BASE),
        }
        self._refuse_variants()
        for option, used in unsupported.items():
            if used:
                raise TaskRefused(
                    self.file,
                    option,
                    f"{option}={getattr(config, option)!r} changes weights that the tasks share",
                    "Train with it unset (an adapter from PiSSA, OLoRA, CorDA or LoftQ can be saved as plain "
                    "LoRA: path_initial_model_for_weight_conversion)",
                )

    def _refuse_variants(self) -> None:
        """What makes another function of the same tensors, e.g. LoRA that begins at an invocation token."""
        names = {each.name for each in fields(self.config) if each.metadata.get("is_lora_variant")} - SAME_FUNCTION
        for option in sorted({*names, "use_qalora"}):
            if getattr(self.config, option, None):
                raise TaskRefused(
                    self.file,
                    option,
                    f"{option} makes another function of LoRA's weights",
                    f"Train with it unset. Supported: {SUPPORTED}",
                )

    def _place(self, name: str) -> tuple[str, str]:
        """`base_model.model.encoder.layer.0.query.lora_A.weight` -> its module's path here and the part."""
        path, part = _trained_path(name), name.removesuffix(".weight").rpartition(".")[2]
        if part not in ("lora_A", "lora_B", "lora_magnitude_vector", "ia3_l"):
            raise TaskRefused(self.weights, name, "a tensor that no supported adapter holds", f"Supported: {SUPPORTED}")
        if path not in self.modules and self.prefix:
            path = path.removeprefix(f"{self.prefix}.")  # trained inside AutoModelFor...
        if path not in self.modules:
            raise TaskRefused(
                self.weights,
                name,
                f"the backbone has no module {path!r}",
                "Was it trained for another backbone?",
            )
        return path, part

    def _paths(self, parts: tuple[str, ...]) -> list[str]:
        paths = sorted({path for path, _ in self.tensors})
        if not paths:
            raise TaskRefused(self.weights, "(whole file)", "it holds no tensors", "Save the adapter again")
        for path in paths:
            have = {part for other, part in self.tensors if other == path}
            if have != set(parts):
                raise TaskRefused(
                    self.weights,
                    path,
                    f"it has {sorted(have)}, not {sorted(parts)}",
                    "Save the adapter again",
                )
        return paths

    def _linear(self, path: str) -> nn.Linear:
        module = self.modules[path]
        shared = getattr(module, "base", None)  # wrapped already, for other tasks
        module = shared if isinstance(shared, nn.Linear) else module
        if not isinstance(module, nn.Linear):
            raise TaskRefused(
                self.file,
                "target_modules",
                f"{path} is a {type(module).__name__}, only Linear modules take adapters here",
                "Train without that target module",
            )
        return module


def _trained_path(name: str) -> str:
    """The module of a tensor under the name it had in training: what a config's patterns are matched with."""
    return name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")[0]


def _named(path: str, patterns: str | list[str] | set[str] | tuple[str, ...]) -> bool:
    """PEFT's rule for IA3's feedforward modules: a regular expression, or ends of names."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, path) is not None
    return any(path.endswith(pattern) for pattern in patterns)
