"""Adapters of all kinds in one batch against PEFT, one by one, on tiny models with random weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_fixtures import DEVICES, TINY, save_adapter, tiny_model
from peft import IA3Config, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from fmplex_backend.adapters import parts, stacks
from fmplex_backend.adapters.multi_lora import AdaptedLinear, AdapterBank
from fmplex_backend.adapters.peft import Adapter, LoraWeights, load_adapter
from fmplex_backend.errors import TaskRefused

WAYS = [
    (device, way)
    for device in DEVICES
    for way in ("slot by slot", "slots together", "stacked")
    if way == "stacked" or device == "cpu"
]

# by model: attention, attention and feed-forward, every Linear there is
TARGETS: dict[str, tuple[list[str], list[str], list[str] | str]] = {
    "albert": (["query"], ["key", "value", "ffn", "ffn_output"], "all-linear"),
    "electra": (["query", "value"], ["key", "intermediate.dense", "output.dense"], "all-linear"),
    "bert": (["query", "value"], ["query", "key", "intermediate.dense", "output.dense"], "all-linear"),
    "roberta": (["query"], ["key", "value", "intermediate.dense"], "all-linear"),
    "distilbert": (["q_lin", "v_lin"], ["k_lin", "lin1", "lin2"], "all-linear"),
    "mpnet": (["attn.q", "attn.v"], ["attn.o", "intermediate.dense"], "all-linear"),
    "modernbert": (["Wqkv"], ["Wqkv", "attn.Wo", "Wi"], "all-linear"),
}
FEEDFORWARD = {
    "albert": ["ffn_output"],
    "electra": ["output.dense"],
    "bert": ["output.dense"],
    "roberta": ["output.dense"],
    "distilbert": ["lin2"],
    "mpnet": ["output.dense"],
    "modernbert": ["mlp.Wo"],
}


def close(have: Tensor, want: Tensor) -> None:
    atol = 1e-5 if Bench.device.type == "cpu" else 1e-4  # a GPU adds up in another order
    torch.testing.assert_close(have.cpu(), want.cpu(), rtol=1e-4, atol=atol)


def reference(kind: str, directory: Path | None, ids: Tensor, *, merged: bool = False) -> Tensor:
    """The last hidden states with one adapter, by PEFT."""
    model = tiny_model(kind)
    if directory is not None:
        model = PeftModel.from_pretrained(model, str(directory)).eval()
        model = model.merge_and_unload() if merged else model
    with torch.inference_mode():
        states: Tensor = model(input_ids=ids).last_hidden_state
    return states


@pytest.fixture(autouse=True, params=WAYS, ids="{0[1]} on {0[0]}".format)
def _every_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with few slots in a batch and with many, and as on a GPU: there as well where there is one."""
    device, way = request.param
    monkeypatch.setattr(Bench, "device", torch.device(device))
    monkeypatch.setattr(Bench, "stacked", way == "stacked")
    overhead = 1 << 40 if way == "slots together" else 0
    monkeypatch.setattr(parts, "OVERHEAD", dict.fromkeys(parts.OVERHEAD, overhead))


def ids_of(rows: int, tokens: int = 7, seed: int = 0) -> Tensor:
    return torch.randint(4, 60, (rows, tokens), generator=torch.Generator().manual_seed(seed))


class Bench:
    """A backbone with a bank, and PEFT beside it."""

    stacked = False
    device = torch.device("cpu")

    def __init__(self, kind: str = "bert") -> None:
        self.kind = kind
        self.model = tiny_model(kind).to(self.device)
        self.bank = AdapterBank(self.model, self.device, stacked=self.stacked)

    def load(self, directory: Path) -> Adapter:
        return load_adapter(directory, self.model, torch.float32, self.device)

    def attach(self, directory: Path) -> Adapter:
        adapter = self.load(directory)
        self.bank.attach(adapter)
        return adapter

    def run(self, adapters: Sequence[Adapter | None], ids: Tensor) -> Tensor:
        """Hidden states in the order given, whatever order the bank wants."""
        order = sorted(range(len(adapters)), key=lambda row: self.bank.order(adapters[row]))
        states = torch.empty(0)
        with self.bank.applied([adapters[row] for row in order]), torch.inference_mode():
            states = self.model(input_ids=ids[order].to(self.device)).last_hidden_state
        back: Tensor = states.cpu()[torch.tensor(order).argsort()]
        return back

    def check(self, rows: Sequence[tuple[Adapter | None, Path | None]], *, merged: bool = False) -> None:
        """Every row comes out as PEFT has it."""
        ids = ids_of(len(rows))
        states = self.run([adapter for adapter, _ in rows], ids)
        for row, (_, directory) in enumerate(rows):
            expected = reference(self.kind, directory, ids[row : row + 1], merged=merged)
            close(states[row : row + 1], expected)


def lora(rank: int, targets: Any, **rest: Any) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=8, target_modules=targets, **rest)


# -- LoRA


SPOILT = {
    "lora": lora(4, ["query", "output.dense"]),
    "ia3": IA3Config(target_modules=["query", "output.dense"], feedforward_modules=["output.dense"]),
}


@pytest.mark.parametrize("spoilt", SPOILT.values(), ids=SPOILT)
def test_numbers_of_one_row_do_not_reach_others(tmp_path: Path, spoilt: Any) -> None:
    """Whatever one adapter makes of its own rows, NaN included; also once its slot is another's."""
    bench = Bench()
    paths = [save_adapter(tmp_path / str(n), lora(4, ["query", "output.dense"]), seed=n) for n in range(2)]
    good, other = bench.attach(paths[0]), bench.load(paths[1])
    broken = bench.load(save_adapter(tmp_path / "spoilt", spoilt))
    for weights in broken.lora.values():
        weights.a.fill_(torch.nan)  # of B's the loader has seen that they are finite
    broken.solo = {path: lambda base, x, y: torch.full_like(y, torch.nan) for path in broken.solo}
    bench.bank.attach(broken)
    ids = ids_of(5)
    states = bench.run([good, broken, None, broken, good], ids)
    assert torch.isnan(states[[1, 3]]).all()
    for row, directory in ((0, paths[0]), (2, None), (4, paths[0])):
        close(states[row : row + 1], reference("bert", directory, ids[row : row + 1]))
    bench.bank.detach(broken)
    bench.bank.attach(other)
    bench.check([(other, paths[1]), (good, paths[0]), (None, None)])


@pytest.mark.parametrize("kind", TINY)
def test_a_mix_of_ranks_and_modules_in_one_batch(tmp_path: Path, kind: str) -> None:
    some, more, every = TARGETS[kind]
    configs = [lora(1, some), lora(3, more), lora(8, every), lora(16, some), lora(8, more)]
    paths = [save_adapter(tmp_path / str(n), config, kind, seed=n) for n, config in enumerate(configs)]
    bench = Bench(kind)
    rows: list[tuple[Adapter | None, Path | None]] = [(bench.attach(path), path) for path in paths]
    bench.check([rows[2], (None, None), *rows, (None, None), rows[0], rows[2]])


def test_it_is_the_merged_model_too(tmp_path: Path) -> None:
    path = save_adapter(tmp_path, lora(4, "all-linear"))
    bench = Bench()
    bench.check([(bench.attach(path), path)] * 2, merged=True)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"rank_pattern": {"query": 2, "layer.1.attention.self.value": 5}},
        {"alpha_pattern": {"query": 3, "layer.0.attention.self.value": 40}},
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"query": 3}},
        {"layers_to_transform": [1]},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"lora_dropout": 0.5},
    ],
    ids=lambda options: "+".join(options),
)
def test_what_a_lora_config_may_say(tmp_path: Path, options: dict[str, Any]) -> None:
    path = save_adapter(tmp_path, lora(4, ["query", "value"], **options))
    bench = Bench()
    bench.check([(bench.attach(path), path), (None, None)])


def test_rows_without_an_adapter_are_those_of_the_bare_backbone(tmp_path: Path) -> None:
    bench = Bench()
    adapter = bench.attach(save_adapter(tmp_path, lora(8, "all-linear")))
    ids = ids_of(4)
    states = bench.run([None, adapter, None, None], ids)
    close(states[[0, 2, 3]], reference("bert", None, ids)[[0, 2, 3]])
    close(bench.run([None] * 4, ids), reference("bert", None, ids))


def test_trained_inside_a_model_with_a_head(tmp_path: Path) -> None:
    """The names then begin with the backbone's own prefix, and patterns may name it."""
    path = save_adapter(tmp_path, lora(4, ["query"], alpha_pattern={"layer.0.attention.self.query": 32}))
    bench = Bench()
    tensors = load_file(path / "adapter_model.safetensors")
    renamed = {name.replace("model.encoder", "model.bert.encoder"): tensor for name, tensor in tensors.items()}
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(renamed, inside / "adapter_model.safetensors")
    config = json.loads((path / "adapter_config.json").read_text())
    config["alpha_pattern"] = {"bert.encoder.layer.0.attention.self.query": 32}
    (inside / "adapter_config.json").write_text(json.dumps(config))
    bench.check([(bench.attach(inside), path)])


def test_one_row_with_one_token(tmp_path: Path) -> None:
    path = save_adapter(tmp_path, lora(4, "all-linear"))
    bench = Bench()
    ids = ids_of(1, tokens=1)
    close(bench.run([bench.attach(path)], ids), reference("bert", path, ids))


# -- DoRA and IA3


@pytest.mark.parametrize("kind", TINY)
def test_dora(tmp_path: Path, kind: str) -> None:
    path = save_adapter(tmp_path, lora(3, TARGETS[kind][1], use_dora=True), kind)
    bench = Bench(kind)
    adapter = bench.attach(path)
    assert adapter.kind == "dora"
    bench.check([(adapter, path), (None, None), (adapter, path)])


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("feedforward", [True, False])
def test_ia3(tmp_path: Path, kind: str, feedforward: bool) -> None:
    before = FEEDFORWARD[kind]
    config = IA3Config(target_modules=[*TARGETS[kind][0], *before], feedforward_modules=before if feedforward else [])
    path = save_adapter(tmp_path, config, kind)
    bench = Bench(kind)
    adapter = bench.attach(path)
    assert adapter.kind == "ia3"
    bench.check([(adapter, path), (None, None)])


@pytest.mark.parametrize("feedforward", [["ense"], ".*output.dense", ["query"], "dense"])
def test_ia3_names_its_modules_as_peft_does(tmp_path: Path, feedforward: list[str] | str) -> None:
    """A list: ends of names; a string: a regular expression. The modules are square, so their shape does not tell."""
    config = IA3Config(target_modules=".*attention.output.dense", feedforward_modules=feedforward)
    path = save_adapter(tmp_path, config)
    bench = Bench()
    bench.check([(bench.attach(path), path)])


def test_every_kind_in_one_batch(tmp_path: Path) -> None:
    configs = {
        "small": lora(3, ["query", "value"]),
        "large": lora(16, "all-linear", use_rslora=True),
        "dora": lora(4, ["query", "key"], use_dora=True),
        "dora2": lora(2, ["value"], use_dora=True),
        "ia3": IA3Config(target_modules=["value", "output.dense"], feedforward_modules=["output.dense"]),
    }
    bench = Bench()
    rows: list[tuple[Adapter | None, Path | None]] = []
    for seed, (name, config) in enumerate(configs.items()):
        path = save_adapter(tmp_path / name, config, seed=seed)
        rows.append((bench.attach(path), path))
    mixed = [*rows, (None, None), *reversed(rows), (None, None)]
    bench.check(mixed)


def test_threads_run_passes_side_by_side(paths: list[Path]) -> None:
    """Each with rows of its own: what one applies, the other must not see."""
    bench = Bench()
    adapters: list[Adapter | None] = [bench.attach(path) for path in paths[:3]]
    ids = ids_of(4)
    sets = [[adapters[0], adapters[1], adapters[2], None], [None, adapters[2], adapters[0], None], [None] * 4]
    alone = [bench.run(each, ids) for each in sets]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(20):
            for together, expected in zip(pool.map(lambda each: bench.run(each, ids), sets), alone, strict=True):
                close(together, expected)


# -- slots


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [save_adapter(tmp_path / str(n), lora(2 + n % 3, ["query"]), seed=n) for n in range(12)]


def test_runs_that_are_multiplied_together_lie_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with a device that every machine has; there runs are joined though they are long."""
    monkeypatch.setattr(parts, "OVERHEAD", dict.fromkeys(parts.OVERHEAD, 0))
    meta = torch.device("meta")
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, device=meta))
    bank = AdapterBank(model, meta, stacked=False)
    adapters = [
        Adapter("lora", lora={"0": LoraWeights(torch.empty(4, 64, device=meta), torch.empty(4, 64, device=meta))})
        for _ in range(3)
    ]
    for adapter in adapters:
        bank.attach(adapter)
    rows = [adapter for adapter in adapters for _ in range(5)]
    with bank.applied(rows, packed=True), torch.inference_mode():
        assert model(torch.empty(1, len(rows), 64, device=meta)).shape == (1, len(rows), 64)
        (part,) = bank.current.parts
    assert isinstance(part, parts.LoraPart)
    ((product,),) = part._products.values()
    assert product.foreign is not None
    assert (product.foreign.device, product.foreign.shape) == (meta, (15, 12))


def test_many_adapters_of_one_bucket(paths: list[Path]) -> None:
    """More than there are slots at first: the stacks grow under those that are there."""
    bench = Bench()
    rows: list[tuple[Adapter | None, Path | None]] = [(bench.attach(path), path) for path in paths]
    slots = {(adapter.bucket, adapter.slot) for adapter, _ in rows if adapter}
    assert len(slots) == len(paths)
    assert all(slot > 0 for _, slot in slots)
    bench.check(rows)
    assert bench.bank.attached == len(paths)


def test_a_slot_is_used_again_and_holds_nothing_of_its_former_owner(paths: list[Path], tmp_path: Path) -> None:
    bench = Bench()
    first = [bench.attach(path) for path in paths[:3]]
    gone = first[1]
    slot = gone.slot
    bench.bank.detach(gone)
    narrow = save_adapter(tmp_path / "narrow", lora(1, ["value"]), seed=99)
    adapter = bench.attach(narrow)
    assert (adapter.bucket, adapter.slot) == (gone.bucket, slot)
    bench.check([(adapter, narrow), (first[0], paths[0]), (first[2], paths[2])])
    assert bench.bank.attached == 3


def test_an_adapter_that_cannot_be_attached_leaves_no_trace(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    first = bench.attach(paths[0])
    with monkeypatch.context() as patch:
        for kind in ("Stack", "Pairs"):
            patch.setattr(f"fmplex_backend.adapters.stacks.{kind}.put", _no_memory)
        with pytest.raises(MemoryError):
            bench.attach(paths[1])
    second = bench.attach(paths[1])
    bench.check([(first, paths[0]), (second, paths[1])])
    assert bench.bank.attached == 2


def test_an_adapter_that_cannot_be_attached_keeps_no_memory(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its weights nor stacks that were made for it, which captured passes then must not read any more."""
    bench = Bench()
    adapter, generation = bench.load(paths[0]), bench.bank.generation
    for kind in ("Stack", "Pairs"):
        monkeypatch.setattr(f"fmplex_backend.adapters.stacks.{kind}.put", _no_memory)
    with pytest.raises(MemoryError):
        bench.bank.attach(adapter)
    assert not adapter.lora
    wrapped = [module for module in bench.model.modules() if isinstance(module, AdaptedLinear)]
    assert [module.stacks for module in wrapped] == [{}]
    assert bench.bank.generation > generation


def test_stacks_that_nobody_uses_are_dropped_on_demand(paths: list[Path]) -> None:
    """And the next ones are made for few slots again."""
    bench = Bench()
    adapters = [bench.attach(path) for path in paths]
    wrapped = [module for module in bench.model.modules() if isinstance(module, AdaptedLinear)]
    for adapter in adapters[1:]:
        bench.bank.detach(adapter)
        bench.bank.drop_unused()
    assert all(module.stacks for module in wrapped)
    generation = bench.bank.generation
    bench.bank.detach(adapters[0])
    bench.bank.drop_unused()
    assert [module.stacks for module in wrapped] == [{}] * len(wrapped)
    assert bench.bank.generation > generation
    bench.check([(bench.attach(paths[7]), paths[7]), (None, None)])
    for module in wrapped:
        for stack in module.stacks.values():
            assert isinstance(stack, stacks.Pairs) or len(stack.a) == 4


def _no_memory(*_: object) -> None:
    raise MemoryError


def test_when_all_are_gone_the_backbone_is_bare(paths: list[Path]) -> None:
    bench = Bench()
    adapters = [bench.attach(path) for path in paths[:5]]
    for adapter in adapters:
        bench.bank.detach(adapter)
    assert bench.bank.attached == 0
    bench.check([(None, None)] * 2)
    bench.check([(bench.attach(paths[7]), paths[7]), (None, None)])


def test_attaching_during_the_life_of_others_changes_nothing_for_them(paths: list[Path]) -> None:
    bench = Bench()
    adapter, ids = bench.attach(paths[0]), ids_of(1)
    before = bench.run([adapter], ids)
    for path in paths[1:]:
        bench.attach(path)
    assert np.array_equal(before.numpy(), bench.run([adapter], ids).numpy())


def test_a_module_that_sees_one_vector_per_row(tmp_path: Path) -> None:
    """BERT's pooler: "all-linear" and "dense" target it too. It must not stop the others, and it must be right."""
    path = save_adapter(tmp_path / "all", lora(4, ["dense"]))
    other = save_adapter(tmp_path / "other", lora(4, ["query"]), seed=1)
    bench = Bench()
    adapters = [bench.attach(path), bench.attach(other)]
    assert "pooler.dense.lora_A" in " ".join(load_file(path / "adapter_model.safetensors"))
    ids = ids_of(2)
    with bench.bank.applied(adapters), torch.inference_mode():
        pooled = bench.model(input_ids=ids.to(bench.device)).pooler_output
    for row, directory in enumerate([path, other]):
        model = PeftModel.from_pretrained(tiny_model("bert"), str(directory)).eval()
        with torch.inference_mode():
            expected = model(input_ids=ids[row : row + 1]).pooler_output
        close(pooled[row : row + 1], expected)


def test_a_module_that_mixes_the_rows_is_refused_by_name(tmp_path: Path) -> None:
    bench = Bench()
    adapter = bench.attach(save_adapter(tmp_path, lora(4, ["query"])))
    wrapped = bench.model.get_submodule("encoder.layer.0.attention.self.query")
    with bench.bank.applied([adapter]), pytest.raises(RuntimeError, match=r"layer\.0\.attention\.self\.query sees"):
        wrapped(torch.zeros(3, 4, 32, device=bench.device))


def test_an_adapter_is_checked_against_a_backbone_that_holds_others(paths: list[Path]) -> None:
    bench = Bench()
    bench.attach(paths[0])
    late = bench.load(paths[1])
    bench.bank.attach(late)
    bench.check([(late, paths[1])])


def test_an_adapter_that_was_refused_leaves_the_bank_alone(tmp_path: Path) -> None:
    bench = Bench()
    with pytest.raises(TaskRefused):
        bench.attach(tmp_path)
    assert bench.bank.attached == 0


def test_a_module_whose_rows_cannot_be_told_apart_is_no_matter_to_who_leaves_it_alone(tmp_path: Path) -> None:
    bench = Bench()
    here = save_adapter(tmp_path / "here", lora(4, ["query"]))
    there = save_adapter(tmp_path / "there", lora(4, ["value"]), seed=1)
    odd, plain = bench.attach(here), bench.attach(there)
    query = bench.model.get_submodule("encoder.layer.0.attention.self.query")
    base = query.forward
    query.forward = lambda x: base(x.reshape(1, -1, x.shape[-1])).view(*x.shape[:2], -1)
    with pytest.raises(RuntimeError, match="cannot be told apart by row"):
        bench.run([odd, plain], ids_of(2))
    bench.check([(plain, there), (None, None)])


def test_an_adapter_that_is_not_attached_is_no_bare_backbone(paths: list[Path]) -> None:
    bench = Bench()
    adapter = bench.attach(paths[0])
    bench.bank.detach(adapter)
    for each in (adapter, bench.load(paths[1])):
        with pytest.raises(RuntimeError, match="not in memory"):
            bench.run([each, None], ids_of(2))
