"""A recorded forward: equal to the model's for every shape, or not used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from model_fixtures import TINY, save_adapter, save_tiny, text_runtime
from peft import LoraConfig
from torch import Tensor, nn

from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.families.onednn import PackedOneDnnLinear
from fmplex_backend.families.recorded import LONGEST, Given, RecordedForward, repays
from fmplex_backend.families.text_encoder import traced
from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime
from fmplex_backend.families.text_encoder.tokenizer import Tokens
from fmplex_backend.families.text_encoder.traced import recorded_texts

CPU = torch.device("cpu")


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
    recorded, padded = runtime.forward.recorded, len(set(lengths)) > 1
    assert recorded is not None
    assert recorded.runs(padded, max(lengths), adapted=False)
    states = recorded.run(padded, (ids, mask) if padded else (ids,))
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


CONFIGS = {
    "few": LoraConfig(r=3, target_modules=["query", "value"]),
    "every": LoraConfig(r=5, target_modules="all-linear", use_rslora=True),
    "pattern": LoraConfig(r=4, target_modules=["query", "output.dense"], rank_pattern={"query": 2}),
    "dora": LoraConfig(r=2, target_modules=["value"], use_dora=True),
    "whole": LoraConfig(r=2, target_modules=["value"], modules_to_save=["embeddings"]),
}


class Counted:
    """A runtime's recordings, and how often one has run with adapters."""

    def __init__(self, recorded: RecordedForward) -> None:
        self.recorded, self.times = recorded, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.recorded, name)

    def run(self, way: bool, given: Given, lora: list[Tensor] | None = None) -> Any:
        self.times += lora is not None
        return self.recorded.run(way, given, lora)


@pytest.fixture
def attach(runtime: TextEncoderRuntime, tmp_path: Path) -> Iterator[Callable[[str], Adapter]]:
    attached = []

    def attach(name: str) -> Adapter:
        path = save_adapter(tmp_path / f"{name}{len(attached)}", CONFIGS[name], seed=len(attached))
        adapter = load_adapter(path, runtime.model, torch.float32, CPU, unread=runtime.unread, by_row=runtime.by_row)
        runtime.bank.attach(adapter)
        attached.append(adapter)
        return adapter

    yield attach
    for adapter in attached:
        runtime.bank.detach(adapter)


def check(
    runtime: TextEncoderRuntime, monkeypatch: pytest.MonkeyPatch, *rows: tuple[int, Adapter | None], recorded: bool
) -> None:
    """Rows of so many tokens: the same, bit by bit, as transformers' modules make of them."""
    ordered = sorted(rows, key=lambda row: runtime.bank.order(row[1]))
    tokens, adapters = rows_of(*(length for length, _ in ordered)), [adapter for _, adapter in ordered]
    assert runtime.forward.recorded is not None
    counted: Any = Counted(runtime.forward.recorded)
    with monkeypatch.context() as patch:
        patch.setattr(runtime.forward, "recorded", counted)
        have = runtime.forward.launch(tokens, adapters, {"mean"}).hidden()
        patch.setattr(runtime.forward, "recorded", None)
        want = runtime.forward.launch(tokens, adapters, {"mean"}).hidden()
    assert counted.times == int(recorded)
    for place in range(len(rows)):
        assert np.array_equal(have.row(place, "mean", None), want.row(place, "mean", None))


def test_adapters_are_recorded_too(
    runtime: TextEncoderRuntime, attach: Callable[[str], Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, every, pattern, again = map(attach, ("few", "every", "pattern", "few"))
    check(runtime, monkeypatch, (1, few), recorded=True)
    check(runtime, monkeypatch, (9, few), (9, None), (9, every), (9, few), (9, pattern), (9, again), recorded=True)
    check(runtime, monkeypatch, (9, few), (3, None), (1, every), (32, few), (5, pattern), (9, again), recorded=True)
    check(runtime, monkeypatch, (40, every), (40, every), (40, None), recorded=True)


@pytest.mark.parametrize("kind", ["dora", "whole"])
def test_a_pass_with_adapters_that_are_no_plain_lora_is_the_models(
    runtime: TextEncoderRuntime, attach: Callable[[str], Adapter], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    few, other = attach("few"), attach(kind)
    check(runtime, monkeypatch, (9, few), (9, None), (9, other), recorded=False)
    check(runtime, monkeypatch, (9, few), (9, None), recorded=True)


def test_adapters_come_and_go_under_a_recording(
    runtime: TextEncoderRuntime, attach: Callable[[str], Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    stays = attach("few")
    for name in ("few", "pattern", "every"):
        check(runtime, monkeypatch, (9, stays), (9, attach(name)), recorded=True)


@pytest.mark.parametrize("kind", TINY)
def test_every_kind_of_model_records_adapters_where_it_records_at_all(kind: str, tmp_path: Path) -> None:
    recorded: Any = text_runtime(save_tiny(tmp_path / "model", kind)).forward.recorded
    used = {key for key, recording in recorded._recordings.items() if recording is not None}
    assert used in ({(False, False), (False, True)}, set(recorded._recordings))
    assert len(recorded.adaptable) >= 6


def test_modules_that_a_task_may_bring_whole_are_found_all_the_same(runtime: TextEncoderRuntime) -> None:
    assert "embeddings" in runtime.by_row


def test_the_weights_are_the_models_own(runtime: TextEncoderRuntime) -> None:
    recorded: Any = runtime.forward.recorded
    own = {each.data_ptr() for each in runtime.model.parameters()}
    assert len(recorded._recordings) == 4
    for recording in recorded._recordings.values():
        assert {each.data_ptr() for each in recording.parameters()} == own
        constants = [node.output().toIValue() for node in recording.graph.findAllNodes("prim::Constant")]
        assert not any(each.numel() > 1 for each in constants if isinstance(each, Tensor)), (
            "kept when the model is gone"
        )


class Stubborn(nn.Module):
    """What it computes depends on a shape, or on what is hooked to its Linear: a recording fixes that.

    Args:
        doubles: of rows, and tokens of a row.
    """

    def __init__(self, doubles: Callable[[int, int], bool] = lambda rows, tokens: False) -> None:
        super().__init__()
        self.config, self.doubles = SimpleNamespace(vocab_size=50), doubles
        self.inner = nn.Linear(1, 2).requires_grad_(False)
        self.hooked = 1.0  # the factor where it is

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        factor = 2.0 if self.doubles(*input_ids.shape) else 1.0
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("attention_mask has to be [n, t]")
        if self.inner._forward_hooks:
            factor *= self.hooked
        return SimpleNamespace(last_hidden_state=self.inner(input_ids[..., None].float()) * factor)


@pytest.mark.parametrize(
    ("doubles", "shape"),
    [
        (lambda rows, tokens: tokens > 20, "1 rows of 64"),
        (lambda rows, tokens: tokens > 6, "4 rows of 9"),
        (lambda rows, tokens: tokens == 1, "1 rows of 1"),
        (lambda rows, tokens: rows > 3, "4 rows of 9"),
        (lambda rows, tokens: rows < 2, "1 rows of 1"),
    ],
    ids=["long", "longer than recorded", "one token", "many rows", "one row"],
)
def test_a_recording_that_differs_is_not_used(
    doubles: Callable[[int, int], bool], shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recorded = recorded_texts(Stubborn(doubles), 64)
    assert recorded is not None
    assert not any(recorded.runs(padded, 4, adapted=adapted) for padded in (False, True) for adapted in (False, True))
    assert f"without padding run through Python: it differs for {shape}" in caplog.text
    assert "with padding run through Python: attention_mask has to be [n, t]" in caplog.text


@pytest.mark.parametrize("hooked", [1.0, 2.0])
def test_one_with_lora_has_to_do_what_the_other_does(hooked: float, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = Stubborn()
    model.hooked = hooked
    recorded = recorded_texts(model, 64)
    assert recorded is not None
    assert recorded.runs(False, 4, adapted=False)
    assert recorded.runs(False, 4, adapted=True) == (hooked == 1.0)
    told = "and with adapters run through Python: the model's own operations are others where LoRA is added"
    assert (told in caplog.text) == (hooked != 1.0)


def test_a_large_model_runs_as_it_is(runtime: TextEncoderRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """To record and compare it would take longer at load than it gains."""
    monkeypatch.setattr(traced, "LARGE_TEXTS", sum(each.numel() for each in runtime.model.parameters()) - 1)
    assert recorded_texts(runtime.model, 64) is None


@pytest.mark.parametrize("packed", [False, True])
def test_how_large_a_model_is_does_not_depend_on_how_its_weights_lie(packed: bool) -> None:
    model = nn.Sequential(nn.Embedding(10, 32), nn.Linear(32, 64, bias=False))
    if packed:
        model[1] = PackedOneDnnLinear(cast(nn.Linear, model[1]))
    assert repays(model, 10 * 32 + 32 * 64)
    assert not repays(model, 10 * 32 + 32 * 64 - 1)


def test_longer_than_what_was_compared_is_the_models(runtime: TextEncoderRuntime) -> None:
    recorded = runtime.forward.recorded
    assert recorded is not None
    assert recorded.longest == min(LONGEST, runtime.tokenizer.max_length)
    assert recorded.runs(False, recorded.longest, adapted=False)
    assert not recorded.runs(False, recorded.longest + 1, adapted=False)
