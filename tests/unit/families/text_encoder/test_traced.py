"""A recorded forward: equal to the model's for every shape, or not used."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_fixtures import save_adapter, save_tiny, text_runtime
from peft import LoraConfig
from torch import Tensor, nn

from fmplex_backend.adapters.peft import load_adapter
from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime
from fmplex_backend.families.text_encoder.tokenizer import Tokens
from fmplex_backend.families.text_encoder.traced import LONGEST, TracedForward


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> TextEncoderRuntime:
    return text_runtime(save_tiny(tmp_path_factory.mktemp("traced") / "model"))


def rows_of(*lengths: int) -> list[Tokens]:
    return [Tokens([5 + row + position % 7 for position in range(n)], [], [], False) for row, n in enumerate(lengths)]


@pytest.mark.parametrize("lengths", [(1,), (9,), (9, 9, 9), (3, 9, 1), (2, 32), (7,) * 8])
def test_equal_to_the_model(runtime: TextEncoderRuntime, lengths: tuple[int, ...]) -> None:
    ids = torch.full((len(lengths), max(lengths)), runtime.pad)
    for place, row in enumerate(rows := rows_of(*lengths)):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    traced = runtime.forward.traced
    assert traced is not None
    states = traced.run(ids, mask if len(set(lengths)) > 1 else None)
    assert states is not None
    with torch.no_grad():
        want = runtime.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(states[mask], want[mask], rtol=1e-5, atol=1e-6)
    assert len(rows) == len(states)


def test_an_adapter_is_not_passed_over(runtime: TextEncoderRuntime, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["query", "value"])
    adapter = load_adapter(save_adapter(tmp_path / "a", config, seed=1), runtime.model, torch.float32, runtime.device)
    runtime.bank.attach(adapter)
    rows = rows_of(5, 5)
    mixed = runtime.forward.launch(rows, [None, adapter], {"mean"}).hidden()
    bare = runtime.forward.launch(rows, [None, None], {"mean"}).hidden()
    alone = runtime.forward.launch(rows[1:], [adapter], {"mean"}).hidden()
    runtime.bank.detach(adapter)
    vectors = {name: torch.tensor(hidden.row(place, "mean", None)) for name, hidden, place in (
        ("mixed", mixed, 1), ("bare", bare, 1), ("alone", alone, 0), ("mixed bare", mixed, 0), ("bare bare", bare, 0)
    )}  # fmt: skip
    torch.testing.assert_close(vectors["mixed"], vectors["alone"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(vectors["mixed bare"], vectors["bare bare"], rtol=1e-4, atol=1e-5)
    assert (vectors["mixed"] - vectors["bare"]).abs().max() > 1e-3


def test_modules_that_a_task_may_bring_whole_are_found_all_the_same(runtime: TextEncoderRuntime) -> None:
    assert "embeddings" in runtime.by_row


def test_the_weights_are_the_models_own(runtime: TextEncoderRuntime) -> None:
    traced: Any = runtime.forward.traced
    own = {each.data_ptr() for each in runtime.model.parameters()}
    for recorded in (traced._unpadded, traced._padded):
        assert {each.data_ptr() for each in recorded.parameters()} == own
        constants = [node.output().toIValue() for node in recorded.graph.findAllNodes("prim::Constant")]
        assert not any(each.numel() > 1 for each in constants if isinstance(each, Tensor)), (
            "kept when the model is gone"
        )


class Stubborn(nn.Module):
    """What it computes depends on a length that a recording fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=50)
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        factor = 2.0 if input_ids.shape[1] > 20 else 1.0
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("attention_mask has to be [n, t]")
        return SimpleNamespace(last_hidden_state=input_ids[..., None] * self.weight * factor)


def test_a_recording_that_differs_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    traced = TracedForward(Stubborn(), 64)
    assert traced.run(torch.ones(1, 4, dtype=torch.int64), None) is None
    assert traced.run(torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.bool)) is None
    assert "without padding run through Python: it differs for 4 rows of 33" in caplog.text
    assert "with padding run through Python: attention_mask has to be [n, t]" in caplog.text


def test_longer_than_what_was_compared_is_the_models(runtime: TextEncoderRuntime) -> None:
    traced = runtime.forward.traced
    assert traced is not None
    assert traced.longest == min(LONGEST, runtime.tokenizer.max_length)
    assert traced.run(torch.ones(1, traced.longest + 1, dtype=torch.int64), None) is None
