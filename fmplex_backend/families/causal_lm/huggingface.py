"""Loading a Hugging Face causal language model, with this family's attention under its modules.

Whether a model goes through the registry of attention functions is not taken on trust: what it computes with ours must
be what it computes with its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families.causal_lm import attention
from fmplex_backend.families.causal_lm.attention import PagedCache, Plan, Span, packed
from fmplex_backend.families.causal_lm.parameters import CausalLmConfig
from fmplex_backend.families.fast_linears import speed_up
from fmplex_backend.families.model_files import find_model
from fmplex_backend.families.precision import chosen_dtype

BLOCK = 16  # tokens
TRIED = (19, 5)  # tokens of the sequences that a model is tried with
CLOSE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # of the largest logit
DEPENDENT_ROPE = ("dynamic", "longrope", "yarn_dynamic")  # rotations that depend on the longest sequence of a pass


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The model on its device, in eval mode and frozen, and what it is asked with."""

    model: Any
    tokenizer: Any
    directory: Path
    max_positions: int
    ends: frozenset[int]  # tokens that end an answer
    token_bytes: int  # of keys and values


def load_model(config: CausalLmConfig, file: Path, device: torch.device) -> LoadedModel:
    """Load model and tokenizer; raises BackboneRefused naming `file`."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # it would fill the server's log
    if device.type == "cpu":
        torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    directory = find_model(config.model, file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        stored = getattr(AutoConfig.from_pretrained(directory), "dtype", None)
        dtype = chosen_dtype(config.dtype, device, stored)
        loaded: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, output_loading_info=True)
        model, loading = loaded
    except Exception as error:  # transformers' errors have no base class of their own
        problem = f"transformers cannot load {config.model!r} as a causal language model: {error}"
        raise BackboneRefused(file, "parameters.model", problem, "Check the directory") from error
    if missing := sorted(loading["missing_keys"]):
        problem = f"the weights of {config.model!r} lack {', '.join(missing[:5])}: they would start at random"
        raise BackboneRefused(file, "parameters.model", problem, "Copy the whole model")
    if not tokenizer.is_fast:
        problem = f"{config.model!r} has no fast tokenizer"
        raise BackboneRefused(file, "parameters.model", problem, "Save one beside it (tokenizer.json)")
    model = model.to(device).eval().requires_grad_(False)
    speed_up(model, few_rows=True)
    token_bytes = _put_attention(model, file, device)
    ends = frozenset(_ends(model, tokenizer))
    return LoadedModel(model, tokenizer, directory, _max_positions(model), ends, token_bytes)


def forward(model: Any, ids: Tensor, plan: Plan, cache: PagedCache, keep: Tensor) -> Tensor:
    """A packed pass: ids [tokens] -> logits [kept tokens, vocabulary]."""
    with torch.inference_mode(), packed(plan, cache):
        logits: Tensor = model(
            input_ids=ids[None], position_ids=plan.positions[None], use_cache=False, logits_to_keep=keep
        ).logits[0]
        return logits


def _put_attention(model: Any, file: Path, device: torch.device) -> int:
    """Let the model use this family's attention; returns the bytes of a token's keys and values."""
    from transformers import AttentionInterface

    kind = f"{type(model).__name__} ({model.config.model_type})"
    odd = sorted({str(each) for each in _rope_types(model.config.to_dict())} & {*DEPENDENT_ROPE})
    if odd:
        problem = f"{kind} has rotary embeddings of the type {odd[0]}, which depend on the longest sequence of a pass"
        raise BackboneRefused(file, "parameters.model", problem, "Choose a model without")
    ids = torch.arange(sum(TRIED), device=device) * 7 % model.config.vocab_size
    own = [model(each[None], use_cache=False).logits[0].float() for each in ids.split(list(TRIED))]
    cache = PagedCache(len(TRIED) * -(-max(TRIED) // BLOCK) * BLOCK)
    try:
        if not model._can_set_attn_implementation():
            raise NotImplementedError("it does not take its attention from transformers' registry")
        AttentionInterface.register(attention.NAME, attention.attend)
        model.set_attn_implementation(attention.NAME)
        ours = _tried(model, ids, cache, device)
        if len(cache.layers) != model.config.num_hidden_layers:
            count = model.config.num_hidden_layers
            raise NotImplementedError(f"of its {count} layers {len(cache.layers)} call the registry's attention")
    except Exception as error:
        problem = f"{kind} cannot share passes between sequences: {error}"
        raise BackboneRefused(
            file, "parameters.model", problem, "Choose a model such as Llama, Qwen, Gemma, Phi or SmolLM"
        ) from error
    scale = max(float(each.abs().max()) for each in own)
    difference = float((torch.cat(own) - ours).abs().max()) / scale
    if not difference <= CLOSE[model.dtype]:
        problem = f"{kind} computes something else in a packed pass: logits differ by {difference:.1e} of the largest"
        raise BackboneRefused(file, "parameters.model", problem, "Choose another model")
    return cache.token_bytes


def _tried(model: Any, ids: Tensor, cache: PagedCache, device: torch.device) -> Tensor:
    """The logits of all tokens: the first sequence in two chunks, the second with one of these in a pass."""
    first, second = ids.split(list(TRIED))
    per = -(-max(TRIED) // BLOCK)
    blocks = [range(number * per, (number + 1) * per) for number in range(2)]
    cut = TRIED[0] // 2
    begun = Plan([Span(cut, cut, blocks[0])], BLOCK, device)
    one = forward(model, first[:cut], begun, cache, torch.arange(cut, device=device))
    spans = [Span(TRIED[0] - cut, TRIED[0], blocks[0]), Span(TRIED[1], TRIED[1], blocks[1])]
    rest = torch.cat([first[cut:], second])
    both = forward(model, rest, Plan(spans, BLOCK, device), cache, torch.arange(len(rest), device=device))
    return torch.cat([one, both]).float()


def _rope_types(config: Any) -> Iterator[Any]:
    """Every `rope_type` in a configuration, however deep."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in ("rope_type", "type") and isinstance(value, str):
                yield value
            yield from _rope_types(value)


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """Of the generation config, which knows a chat's end too; else the tokenizer's."""
    found = getattr(model.generation_config, "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def _max_positions(model: Any) -> int:
    text = model.config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 4096)
