"""What a task needs around a shared backbone to be the fine-tuned model it was: an adapter as PEFT would save it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor, nn

from fmplex.importing.difference import Product, product
from fmplex.task.adapters import PREFIX, AdapterState, listed
from fmplex.task.backbone import Backbone
from fmplex_backend.adapters.kinds import MAX_RANK
from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.errors import TaskProblem, TaskRefused


@dataclass(frozen=True, slots=True)
class Extension:
    """LoRA where a difference is of low rank, modules of its own where it is not."""

    lora: Mapping[str, Product] = field(default_factory=dict)  # by the path of a Linear
    modules: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)  # by path: its state_dict
    work: float = 0.0  # multiplications that a row of it costs more, as a part of the backbone's

    def __bool__(self) -> bool:
        return bool(self.lora or self.modules)

    @property
    def bytes(self) -> int:
        """Of memory, in float32."""
        factors = sum(each.a.numel() + each.b.numel() for each in self.lora.values())
        return 4 * (factors + sum(each.numel() for own in self.modules.values() for each in own.values()))

    @property
    def left_out(self) -> float:
        """The largest part of a matrix's difference that it lacks."""
        return max((each.left_out for each in self.lora.values()), default=0.0)

    def adapter(self) -> AdapterState:
        """As PEFT's `save_pretrained` writes it."""
        ranks = Counter(each.rank for each in self.lora.values())
        usual = ranks.most_common(1)[0][0] if ranks else 1
        others = {path: each.rank for path, each in self.lora.items() if each.rank != usual}
        config = LoraConfig(
            r=usual,
            lora_alpha=usual,  # a scale of 1
            target_modules=sorted(self.lora) or DUMMY_TARGET_MODULES,
            rank_pattern=others,
            alpha_pattern=dict(others),
            modules_to_save=sorted(self.modules) or None,
        )
        settings: dict[str, Any] = config.to_dict()  # type: ignore[no-untyped-call]
        tensors = {f"{PREFIX}{path}.lora_A.weight": each.a for path, each in self.lora.items()}
        tensors |= {f"{PREFIX}{path}.lora_B.weight": each.b for path, each in self.lora.items()}
        for path, own in self.modules.items():
            tensors |= {f"{PREFIX}{path}.{part}": each.clone().contiguous() for part, each in own.items()}
        return AdapterState({key: listed(value) for key, value in settings.items()}, tensors)

    def described(self) -> str:
        """In a few words."""
        parts = []
        if self.lora:
            ranks = sorted({each.rank for each in self.lora.values()})
            span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
            parts.append(f"LoRA of rank {span} on {len(self.lora)} layers")
        if self.modules:
            parts.append(f"{len(self.modules)} modules of its own")
        return ", ".join(parts) or "none"


class Comparison:
    """Compares models with a backbone, tensor by tensor.

    Args:
        rounding: of the format that the backbone's weights are stored in.
        most: the largest rank of LoRA; differences of a higher one are cut to it where `cuts` is set.
    """

    def __init__(self, backbone: Backbone, rounding: float, most: int | None, *, cuts: bool) -> None:
        self.runtime: Any = backbone.runtime
        self.rounding, self.most, self.cuts = rounding, min(most or MAX_RANK, MAX_RANK), cuts
        self.modules = dict(self.runtime.model.named_modules())
        self.state = {name: each for name, each in self.runtime.model.state_dict().items() if not self._unread(name)}
        self.multiplications = sum(each.weight.numel() for each in self.modules.values() if isinstance(each, nn.Linear))

    def _unread(self, name: str) -> bool:
        return name.startswith(tuple(f"{each}." for each in self.runtime.unread))

    def extension(self, other: Backbone, rounding: float) -> Extension:
        """What makes another model of the backbone; raises TaskProblem where nothing that belongs to a row does."""
        state = {name: each for name, each in other.runtime.model.state_dict().items() if not self._unread(name)}
        self._check_alike(state)
        changed: dict[str, set[str]] = {}
        for name, each in self.state.items():
            if not torch.equal(each, state[name]):
                path, _, part = name.rpartition(".")
                changed.setdefault(path, set()).add(part)
        lora = {
            path: found
            for path, parts in changed.items()
            if (found := self._lora(path, parts, state, max(rounding, self.rounding)))
        }
        whole = {self._around(path) for path in changed if path not in lora}
        outermost = {path for path in whole if not any(path.startswith(f"{outer}.") for outer in whole)}
        lora = {path: each for path, each in lora.items() if not any(path.startswith(f"{own}.") for own in outermost)}
        modules = {
            path: {name.removeprefix(f"{path}."): each for name, each in state.items() if name.startswith(f"{path}.")}
            for path in outermost
        }
        return Extension(lora, modules, self._work(lora, modules))

    def _check_alike(self, state: Mapping[str, Tensor]) -> None:
        for name in sorted(self.state.keys() ^ state.keys()):
            raise TaskProblem(f"only one of it and the backbone has {name}: it is another architecture")
        for name, each in self.state.items():
            if each.shape != state[name].shape:
                sizes = f"{list(state[name].shape)}, the backbone's {list(each.shape)}"
                raise TaskProblem(f"its {name} is {sizes}: it is of another size, or has other tokens")

    def _lora(self, path: str, parts: set[str], state: Mapping[str, Tensor], rounding: float) -> Product | None:
        """The difference of a Linear as LoRA, where it is one and takes less than the layer itself."""
        linear = self.modules[path]
        if parts != {"weight"} or not isinstance(linear, nn.Linear) or not self._adaptable(path):
            return None
        found = product(state[f"{path}.weight"], linear.weight, rounding, self.most if self.cuts else None)
        smaller = found.rank * (linear.in_features + linear.out_features) < linear.weight.numel()
        return found if found.rank <= self.most and smaller else None

    def _adaptable(self, path: str) -> bool:
        try:
            self.runtime.check_adapter(Adapter("lora", solo={path: lambda base, x, y: y}), Path())
        except TaskRefused:
            return False
        return True

    def _around(self, path: str) -> str:
        """The smallest module around a changed one whose output has a row for each row; raises TaskProblem."""
        at = path
        while at and at not in self.runtime.by_row:
            at = at.rpartition(".")[0]
        if not at:
            raise TaskProblem(f"its {path} differs, which all rows of a batch share")
        return at

    def _work(self, lora: Mapping[str, Product], modules: Mapping[str, Mapping[str, Tensor]]) -> float:
        factors = sum(each.a.numel() + each.b.numel() for each in lora.values())
        own = sum(
            each.weight.numel()
            for path, each in self.modules.items()
            if isinstance(each, nn.Linear) and any(f"{path}.".startswith(f"{outer}.") for outer in modules)
        )
        return (factors + own) / max(1, self.multiplications)
