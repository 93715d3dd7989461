"""Passes as a CUDA graph runs them, on the CPU: a recorder that runs the recorded function again at every replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import save_adapter, save_tiny, text_runtime
from peft import LoraConfig
from recorder import FakeRecorder

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.decoders.decoder import TOKENS
from fmplex_backend.families.cuda_graphs import Graphs
from fmplex_backend.families.forward import rounded_up
from fmplex_backend.families.text_encoder.forward import CapturedTokens, Forward, PassKind
from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime
from fmplex_backend.families.text_encoder.tokenizer import Tokens

POOLINGS = {"cls", "mean", "max", TOKENS}


class Passes:
    """A tiny runtime whose passes run as captured ones, beside one that has none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime: TextEncoderRuntime = text_runtime(save_tiny(folder / "model"))
        runtime = self.runtime
        self.bank = runtime.bank = runtime.residency.bank = AdapterBank(runtime.model, runtime.device, stacked=True)
        self.plain = Forward(runtime.model, self.bank, runtime.pad, 8)
        self.captured = Forward(runtime.model, self.bank, runtime.pad, 8)
        recorder: Any = FakeRecorder()
        self.kinds: list[PassKind] = []

        def capture(kind: PassKind) -> CapturedTokens:
            self.kinds.append(kind)
            return CapturedTokens(self.captured, kind, recorder)

        self.captured.graphs = Graphs(capture, after=1, clock=lambda: 0.0)
        self.captured._generation = self.bank.generation

    def adapter(self, rank: int, seed: int, **options: Any) -> Adapter:
        config = LoraConfig(r=rank, target_modules=["query", "value"], **options)
        path = save_adapter(self.folder / f"adapter{seed}", config, seed=seed)
        adapter = load_adapter(path, self.runtime.model, torch.float32, self.runtime.device)
        self.bank.attach(adapter)
        return adapter

    def check(self, rows: list[Tokens], adapters: list[Adapter | None]) -> None:
        """The same from both, row by row; eight rows of the one's batch are padding's."""
        order = sorted(range(len(rows)), key=lambda index: self.bank.order(adapters[index]))
        rows, adapters = [rows[index] for index in order], [adapters[index] for index in order]
        one, other = (each.launch(rows, adapters, POOLINGS).hidden() for each in (self.plain, self.captured))
        for index, row in enumerate(rows):
            for kind in POOLINGS:
                have, want = (torch.as_tensor(hidden.row(index, kind, row)) for hidden in (other, one))
                torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


@pytest.fixture
def passes(tmp_path: Path) -> Passes:
    return Passes(tmp_path)


def rows_of(*lengths: int, first: int = 5) -> list[Tokens]:
    return [
        Tokens([first + (row + place) % 40 for place in range(length)], [], list(range(length)), False)
        for row, length in enumerate(lengths)
    ]


def test_rows_of_any_length_and_number(passes: Passes) -> None:
    for lengths in ((3,), (16, 16), (16,) * 4, (5, 30, 17), (9,) * 7, (32,) * 8):
        passes.check(rows_of(*lengths), [None] * len(lengths))
    assert passes.kinds[1] == PassKind(2, 16, False, ())
    assert passes.kinds[2] == PassKind(4, 16, False, ())
    assert passes.kinds[3] == PassKind(4, 32, True, ())
    assert passes.kinds[4] == PassKind(8, 16, True, ())


def test_adapters_of_several_ranks_and_rows_with_none(passes: Passes) -> None:
    small, large, third = passes.adapter(2, 1), passes.adapter(16, 2), passes.adapter(3, 3)
    passes.check(rows_of(4, 9, 9, 12, 3), [small, None, large, third, small])
    assert passes.kinds[-1].buckets == (small.bucket, large.bucket)
    passes.check(rows_of(9, 4, 4, 3, 12, first=9), [None, large, large, small, third])  # replayed with other slots
    passes.check(rows_of(4, 9, 9, 12, 3), [None] * 5)
    assert len(passes.kinds) == 2


def test_a_graph_sees_an_adapter_that_takes_a_slot_over(passes: Passes) -> None:
    first = passes.adapter(2, 1)
    passes.check(rows_of(4, 9), [first, None])
    slot = first.slot
    passes.bank.detach(first)
    second = passes.adapter(2, 2)
    assert second.slot == slot
    passes.check(rows_of(4, 9), [second, None])


def test_graphs_of_former_stacks_are_dropped(passes: Passes) -> None:
    adapters = [passes.adapter(2, 1)]
    passes.check(rows_of(4, 9), [adapters[0], None])
    adapters += [passes.adapter(2, seed) for seed in range(2, 8)]  # the stacks grow
    passes.check(rows_of(4, 9), [adapters[0], adapters[-1]])
    assert len(passes.kinds) == 2
    assert passes.kinds[0] == passes.kinds[1]


def test_what_cannot_be_captured_runs_without(passes: Passes) -> None:
    dora = passes.adapter(2, 1, use_dora=True)
    passes.check(rows_of(4, 9), [None, dora])
    assert passes.kinds == []


@pytest.mark.parametrize(("value", "rounded"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (64, 64), (70, 72)])
def test_rows_are_rounded_up(value: int, rounded: int) -> None:
    assert rounded_up(value, (2, 1), (8, 4), (64, 8)) == rounded
