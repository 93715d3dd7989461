"""Attention that is told what is padding equals transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from fmplex_backend.families.text_encoder.attention import NAME, never_reading_masks, unpadded

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IDS = {"vocab_size": 500, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 3, "sep_token_id": 4}
KINDS: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    "modernbert": SIZES | {"local_attention": 8},
    "qwen2": SIZES | {"num_key_value_heads": 2, "use_cache": False},
}


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(kind, **IDS, **KINDS.get(kind, SIZES))).eval()


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(5, 400, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    return ids, mask


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_the_same(kind: str) -> None:
    model, (ids, mask) = tiny(kind), padded()
    ones = torch.ones_like(ids)
    with torch.inference_mode():
        whole, masked = (model(input_ids=ids, attention_mask=each).last_hidden_state for each in (ones, mask))
        never_reading_masks(model)
        assert model.config._attn_implementation == NAME
        with unpadded():
            found = model(input_ids=ids, attention_mask=ones).last_hidden_state
        torch.testing.assert_close(found, whole)
        found = model(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(found[mask.bool()], masked[mask.bool()])


def test_a_pass_without_padding_needs_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (ids, mask) = tiny("bert"), padded()
    never_reading_masks(model)
    masks: list[Any] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def attention(*args: Any, attn_mask: Any = None, **others: Any) -> Any:
        masks.append(attn_mask)
        return real(*args, attn_mask=attn_mask, **others)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    with torch.inference_mode():
        with unpadded():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        assert masks == [None, None]
        model(input_ids=ids, attention_mask=mask)
    assert all(each is not None for each in masks[2:])


def test_a_model_with_attention_of_its_own_is_left_as_it_is() -> None:
    model = tiny("mpnet")
    before = model.config._attn_implementation
    never_reading_masks(model)
    assert model.config._attn_implementation == before
