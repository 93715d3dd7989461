"""What a recording adds for a pass: the bank's own operations, with the weights that are attached at that time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import save_adapter, tiny_model
from peft import IA3Config, LoraConfig
from torch import Tensor, nn

from fmplex_backend.adapters import parts
from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.adapters.recorded_lora import (
    PER_MODULE,
    RecordedLora,
    adaptable_modules,
    add_products,
    added,
    operations_without_lora,
    sample_lora,
)
from fmplex_backend.adapters.torchscript import scripted

CPU = torch.device("cpu")
TOKENS = 7


@pytest.fixture(autouse=True, params=(0, 1 << 40), ids=("slot by slot", "slots together"))
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "OVERHEAD", dict.fromkeys(parts.OVERHEAD, request.param))


class Bench:
    """A model with a bank, and one like it without."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.plain = tiny_model("bert"), tiny_model("bert")
        self.bank = AdapterBank(self.model, CPU)
        self.modules = adaptable_modules(self.plain, lambda: self.plain(input_ids=ids_of(2)), (2, TOKENS))
        self.lora = RecordedLora(self.bank, list(self.modules), ["pooler"])

    def attach(self, name: str, config: Any) -> Adapter:
        path = save_adapter(self.folder / name, config, seed=sum(map(ord, name)))
        adapter = load_adapter(path, self.model, torch.float32, CPU)
        self.bank.attach(adapter)
        return adapter

    def given(self, adapters: Sequence[Adapter | None]) -> list[Tensor] | None:
        with self.bank.applied(adapters), torch.inference_mode():
            return self.lora.of_pass(len(adapters), TOKENS)

    def check(self, *adapters: Adapter | None) -> None:
        """The same from the model with the bank, and from the other with what a recording is given."""
        rows = sorted(adapters, key=self.bank.order)
        ids = ids_of(len(rows))
        given = self.given(rows)
        assert given is not None
        with self.bank.applied(rows), torch.inference_mode():
            want = self.model(input_ids=ids).last_hidden_state
        with added(given, list(self.modules.values())), torch.inference_mode():
            have = self.plain(input_ids=ids).last_hidden_state
        assert torch.equal(have, want)


def ids_of(rows: int) -> Tensor:
    return torch.randint(4, 60, (rows, TOKENS), generator=torch.Generator().manual_seed(rows))


def lora(rank: int, *targets: str, **options: Any) -> LoraConfig:
    return LoraConfig(r=rank, target_modules=list(targets), **options)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("add", [add_products, scripted(add_products)], ids=["python", "scripted"])
def test_products_are_added_to_their_own_tokens(add: Callable[..., Tensor]) -> None:
    x, y = torch.randn(2, 3, 8), torch.zeros(2, 3, 5)
    a, b = torch.randn(6, 8), torch.randn(6, 5)
    mask = torch.zeros(6, 4, dtype=torch.bool)
    mask[:3, 2:] = mask[3:, :2] = True
    plan = torch.tensor([[3, 6, 0, 2, -1], [0, 6, 2, 6, 0]])
    assert add(x, y, a, b, mask.view(-1), plan).shape == y.shape
    torch.testing.assert_close(y[0], x[0] @ a[2:4].T @ b[2:4])
    torch.testing.assert_close(y[1], x[1] @ a[:2].T @ b[:2] + x[1] @ a[4:].T @ b[4:])


def test_equal_to_the_bank(bench: Bench) -> None:
    """Of several ranks, in several buckets, on several modules, with rows of no adapter."""
    first = bench.attach("first", lora(3, "query", "value"))
    second = bench.attach("second", lora(4, "query", "output.dense", rank_pattern={"query": 2}))
    third = bench.attach("third", lora(9, "key", "value"))
    bench.check(first)
    bench.check(first, second)
    bench.check(None, first, first, second, None, third, second, third)
    bench.check(third, third)


def test_every_pass_has_the_weights_of_its_time(bench: Bench) -> None:
    """A slot's next owner, and an adapter that is attached again, are not taken for those of before."""
    stays, goes = (bench.attach(name, lora(4, "query", "value")) for name in ("stays", "goes"))
    bench.check(stays, goes)
    slot = goes.slot
    bench.bank.detach(goes)
    comes = bench.attach("comes", lora(4, "query", "value"))
    assert comes.slot == slot
    bench.check(stays, comes)
    bench.check(comes)


def test_threads_make_their_own(bench: Bench) -> None:
    adapters = [bench.attach(name, lora(4, "query")) for name in ("a", "b", "c")]
    passes = [adapters, adapters[::2], adapters[:2]]
    alone = [bench.given(each) for each in passes]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(20):
            for have, want in zip(pool.map(bench.given, passes), alone, strict=True):
                assert have is not None
                assert want is not None
                assert all(map(torch.equal, have, want))


@pytest.mark.parametrize(
    "config",
    [
        IA3Config(target_modules=["query"], feedforward_modules=[]),
        lora(2, "query", use_dora=True),
        lora(2, "query", modules_to_save=["embeddings"]),
    ],
    ids=["ia3", "dora", "modules_to_save"],
)
def test_what_is_no_lora_alone_is_not_recorded(bench: Bench, config: Any) -> None:
    path = save_adapter(bench.folder / "solo", config)
    alone = load_adapter(path, bench.model, torch.float32, CPU, by_row=["embeddings"])
    bench.bank.attach(alone)
    batched = bench.attach("batched", lora(4, "query"))
    assert bench.given([batched, alone]) is None
    assert bench.given([None, batched]) is not None


def test_a_module_that_no_recording_adds_to(bench: Bench) -> None:
    query = bench.attach("query", lora(2, "query"))
    narrow = RecordedLora(bench.bank, [path for path in bench.modules if "layer.1" in path])
    with bench.bank.applied([query]):
        assert narrow.of_pass(1, TOKENS) is None


def test_what_nobody_reads_is_left_out(bench: Bench) -> None:
    assert "pooler.dense" not in bench.modules
    every = bench.attach("every", LoraConfig(r=2, target_modules="all-linear"))
    assert bench.given([every]) is not None
    with bench.bank.applied([every]):
        assert RecordedLora(bench.bank, list(bench.modules)).of_pass(1, TOKENS) is None


def test_stacks_are_not_read(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.bank.stacked = True
    assert bench.given([bench.attach("a", lora(4, "query"))]) is None


class Shapes(nn.Module):
    """Linears that are called in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.twice, self.shared, self.flat, self.some = (nn.Linear(4, 4) for _ in range(5))
        self.again = self.shared
        self.never = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.shared(self.twice(self.twice(self.plain(x)))))
        flat: Tensor = self.flat(x.view(-1, 4)).view(x.shape)
        return self.some(flat) + self.some(flat[:, :1])  # type: ignore[no-any-return]


def test_only_modules_that_see_rows_of_tokens_are_adaptable() -> None:
    model = Shapes()
    assert list(adaptable_modules(model, lambda: model(torch.ones(2, 3, 4)), (2, 3))) == ["plain", "twice"]


def test_a_sample_shows_in_every_module_that_has_some() -> None:
    modules = [nn.Linear(8, 8) for _ in range(3)]
    given = sample_lora(modules, 2, 3)
    x = torch.ones(2, 3, 8)
    with torch.no_grad():
        bare = [module(x) for module in modules]
        with added(given, modules):
            changed = [not torch.equal(module(x), was) for module, was in zip(modules, bare, strict=True)]
    assert changed == [True, False, True]
    assert len(given) == 3 * PER_MODULE


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_a_recording_with_lora_is_told_from_another_by_what_it_does_beside_it(factor: float) -> None:
    linear, x = nn.Linear(8, 8).requires_grad_(False), torch.ones(2, 3, 8)

    def adapted(x: Tensor, lora: list[Tensor]) -> Tensor:
        with added(lora, [linear], scripted(add_products)):
            y: Tensor = linear(x) * factor
        return y

    bare: Any = torch.jit.trace(lambda x: linear(x) * 1.0, (x,))
    with_lora: Any = torch.jit.trace(adapted, (x, sample_lora([linear], 2, 3)))
    of_bare, of_adapted = operations_without_lora(bare.graph), operations_without_lora(with_lora.graph)
    assert (of_bare == of_adapted) == (factor == 1.0)
    assert "linear" in of_bare
    assert "add_products" in str(with_lora.graph)  # of which a copy has changed
