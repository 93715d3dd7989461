"""Puts the Linears of a frozen model into the form that is the fastest on this CPU."""

from __future__ import annotations

import logging
from collections import Counter
from typing import cast

import torch
from torch import nn

from fmplex_backend.families import mkl, onednn
from fmplex_backend.families.linears import OtherLinear
from fmplex_backend.families.mkl import MklLinear
from fmplex_backend.families.onednn import OneDnnLinear, PackedOneDnnLinear
from fmplex_backend.families.precision import AMX, cpu_has
from fmplex_backend.hardware import processor_vendor

logger = logging.getLogger(__name__)

INTEL = "GenuineIntel"
Kinds = dict[tuple[torch.dtype, bool], type[OtherLinear]]


def speed_up(
    model: nn.Module, *, few_rows: bool = False, vendor: str | None = None, has_amx: bool | None = None
) -> int:
    """Replace Linears on a CPU by faster ones; returns how many.

    Weights that another module has too, as a language model's head those of its embeddings, are not packed: they would
    be in memory twice.

    Args:
        few_rows: whether passes mostly have some dozens of rows, as a language model's.
        vendor: of the CPU, as /proc/cpuinfo names it; by default this machine's.
        has_amx: whether the CPU multiplies bfloat16 with AMX; by default whether this one does, as torch tells it.
    """
    kinds = _kinds(
        processor_vendor() if vendor is None else vendor, cpu_has(AMX) if has_amx is None else has_amx, few_rows
    )
    uses = Counter(id(each) for _, each in model.named_parameters(remove_duplicate=False))
    tried: dict[torch.Size, bool] = {}
    replaced = 0
    for path in [path for path, each in model.named_modules() if type(each) is nn.Linear]:
        base = cast(nn.Linear, model.get_submodule(path))
        kind = kinds.get((base.weight.dtype, uses[id(base.weight)] > 1))
        if kind is None or base.weight.device.type != "cpu":
            continue
        if kind is MklLinear and not _is_right(base, tried):
            continue
        model.set_submodule(path, kind(base))  # and let go of what it replaces
        replaced += 1
    if replaced:
        _leave_files(model)
    return replaced


def _is_right(base: nn.Linear, tried: dict[torch.Size, bool]) -> bool:
    """Whether MKL multiplies packed weights of this shape right, tried once for each."""
    shape = base.weight.shape
    if shape not in tried:
        tried[shape] = mkl.is_right(base, MklLinear(base))
        if not tried[shape]:
            logger.warning("MKL multiplies packed weights of %s wrong here: they stay as they are", tuple(shape))
    return tried[shape]


def _kinds(vendor: str, has_amx: bool, few_rows: bool) -> Kinds:
    """By the dtype of weights, and whether they are another module's too."""
    found: Kinds = {}
    if onednn.is_there() and has_amx:
        found[torch.bfloat16, False] = PackedOneDnnLinear
    if onednn.is_there() and few_rows and vendor:
        found[torch.float32, True] = found[torch.float32, False] = OneDnnLinear
    if mkl.is_there() and vendor == INTEL:
        found[torch.float32, False] = MklLinear
    return found


def _leave_files(model: nn.Module) -> None:
    """Copy what is left of the weights: a file that some are mapped from stays in memory as long as one is."""
    for each in model.parameters():
        each.data = each.data.clone()
