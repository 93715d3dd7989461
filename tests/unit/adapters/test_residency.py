"""Which adapters are in the bank under a budget: a tiny model, posted functions called by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_fixtures import save_adapter, tiny_model
from peft import LoraConfig

from fmplex_backend.adapters import residency
from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.adapters.residency import Residency
from fmplex_backend.errors import TaskRefused
from fmplex_backend.types import RESIDENT, Request, Vfm

TASKS = 5


class House:
    """Adapters of one size, `room` of which fit."""

    def __init__(self, folder: Path, room: float) -> None:
        self.now, self.posted = 0.0, list[Callable[[], None]]()
        self.model = tiny_model("bert")
        self.bank = AdapterBank(self.model, torch.device("cpu"))
        paths = [save_adapter(folder / str(n), LoraConfig(r=4, target_modules=["query"]), seed=n) for n in range(TASKS)]
        self.file = paths[0] / "adapter_config.json"
        self.adapters = [self.load(path) for path in paths]
        self.size = sum(pair.a.nbytes + pair.b.nbytes for pair in self.adapters[0].lora.values())
        self.residency = Residency(self.bank, int(room * self.size), self.posted.append, lambda: self.now)
        self.vfms = [Vfm(n, f"task{n}") for n in range(TASKS)]
        for vfm, adapter in zip(self.vfms, self.adapters, strict=True):
            vfm.extensions = SimpleNamespace(adapter=adapter)

    def load(self, path: Path) -> Adapter:
        return load_adapter(path, self.model, torch.float32, torch.device("cpu"))

    def attach(self) -> None:
        for adapter in self.adapters:
            self.residency.keep(adapter, self.file)
            self.residency.attach(adapter)

    def request(self, task: int) -> Request:
        vfm = self.vfms[task]
        return Request(vfm, {}, (), 0.0, lambda *_: None, extensions=vfm.extensions)

    def settle(self) -> None:
        """Read what is being read, and call what was posted."""
        reader = self.residency._reader
        assert reader is not None
        while True:
            wait([reader.submit(int)])  # behind those before it
            if not self.posted:
                return
            while self.posted:
                self.posted.pop(0)()
                assert self.residency.used <= self.residency.budget

    def resident(self) -> set[int]:
        found = {n for n, adapter in enumerate(self.adapters) if adapter.slot}
        told = {
            n
            for n, vfm in enumerate(self.vfms)
            for r in self.residency.readings(vfm)
            if (r.metric, r.value) == (RESIDENT, 1)
        }
        assert found == told
        assert len(found) * self.size == self.residency.used
        return found


@pytest.fixture
def house(tmp_path: Path) -> House:
    made = House(tmp_path, 2.5)
    made.attach()
    return made


def weights(house: House, task: int) -> list[torch.Tensor]:
    slot = house.adapters[task].slot
    assert slot
    stacks: list[Any] = [stack for module in house.model.modules() for stack in getattr(module, "stacks", {}).values()]
    return [part for stack in stacks for part in (stack.filled[slot].a, stack.filled[slot].b)]


def test_those_that_fit_are_in_memory_at_first(house: House) -> None:
    assert house.resident() == {0, 1}
    assert house.bank.attached == 2


def test_one_that_is_asked_for_takes_the_place_of_the_longest_unused(house: House) -> None:
    for task in (1, 0):
        request = house.request(task)
        assert house.residency.is_ready(request)
        house.residency.begin(request)
        house.residency.end(request)
    house.residency.expect(house.adapters[3])
    house.settle()
    assert house.resident() == {0, 3}
    assert (house.residency.loads, house.residency.evictions) == (1, 1)


def test_what_comes_back_is_what_was_loaded(house: House, tmp_path: Path) -> None:
    """Also where the version's own file has changed since, or is gone."""
    fresh = House(tmp_path / "other", TASKS)
    fresh.attach()
    for file in tmp_path.glob("*/adapter_model.safetensors"):
        file.unlink()
    assert not house.residency.is_ready(house.request(4))
    house.settle()
    for have, want in zip(weights(house, 4), weights(fresh, 4), strict=True):
        assert torch.equal(have, want)


def test_one_whose_requests_have_begun_stays(house: House) -> None:
    begun = [house.request(task) for task in (0, 1)]
    for request in begun:
        house.residency.begin(request)
    waiting = house.request(2)
    assert not house.residency.is_ready(waiting)
    house.settle()
    assert house.resident() == {0, 1}
    house.residency.end(begun[0])
    house.settle()
    assert house.resident() == {1, 2}
    assert house.residency.is_ready(waiting)


def test_the_one_furthest_ahead_gives_way(house: House) -> None:
    """It takes no new requests, goes on with those that have begun, and then makes room."""
    house.vfms[1].start = 3.0
    begun = [house.request(task) for task in (0, 1, 1)]
    for request in begun:
        house.residency.begin(request)
    assert not house.residency.is_ready(house.request(2))
    assert house.residency.is_ready(begun[1])
    assert not house.residency.is_ready(house.request(1))
    assert house.residency.is_ready(house.request(0))
    for request in begun[1:]:
        house.residency.end(request)
    house.settle()
    assert house.resident() == {0, 2}


def test_nobody_gives_way_to_one_that_is_further_ahead(house: House) -> None:
    house.vfms[2].start = 3.0
    for task in (0, 1):
        house.residency.begin(house.request(task))
    house.residency.expect(house.adapters[2])
    house.settle()
    assert not house.residency.is_ready(house.request(2))
    assert all(house.residency.is_ready(house.request(task)) for task in (0, 1))


def test_nobody_gives_way_to_one_that_is_gone(house: House) -> None:
    for task in (0, 1):
        house.vfms[task].start = 1.0
        house.residency.begin(house.request(task))
    assert not house.residency.is_ready(house.request(2))
    assert not all(house.residency.is_ready(house.request(task)) for task in (0, 1))
    house.residency.detach(house.adapters[2])
    assert all(house.residency.is_ready(house.request(task)) for task in (0, 1))


def test_one_that_was_read_stays_until_its_requests_come(house: House) -> None:
    for task in (2, 3):
        house.residency.expect(house.adapters[task])
    house.settle()
    assert house.resident() == {2, 3}
    assert not house.residency.is_ready(house.request(4))
    house.settle()
    assert house.resident() == {2, 3}
    house.now += residency.FRESH_S + 0.1  # they have not come
    assert not house.residency.is_ready(house.request(4))
    house.settle()
    assert house.resident() == {3, 4}


def test_one_that_is_detached_while_it_is_read_keeps_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "CHUNK_S", -1.0)  # a module at a time
    for task in (2, 3):
        house.residency.expect(house.adapters[task])
        house.posted.pop(0)()
        reader = house.residency._reader
        assert reader is not None
        wait([reader.submit(int)])
        if task == 3:
            house.posted.pop(0)()
            assert house.posted, "it is in the bank at once"
        house.residency.detach(house.adapters[task])
        house.settle()
        assert not house.adapters[task].lora
        assert house.bank.attached == len(house.resident())
    for task in (0, 1, 4):
        house.residency.detach(house.adapters[task])
    assert (house.bank.attached, house.residency.used) == (0, 0)


def test_a_file_that_cannot_be_read_is_told_by_the_pass(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Any, device: torch.device) -> Any:
        raise OSError("disk")

    request = house.request(2)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(residency.WeightFile, "read", broken)
        assert not house.residency.is_ready(request)
        house.settle()
    assert "disk" in caplog.text
    assert house.residency.is_ready(request)
    house.residency.begin(request)
    with pytest.raises(RuntimeError, match="not in memory"):
        house.bank.order(house.adapters[2])
    house.residency.end(request)
    house.now += residency.RETRY_S
    assert not house.residency.is_ready(request)
    house.settle()
    assert 2 in house.resident()


def test_one_that_is_larger_than_the_budget_is_refused(tmp_path: Path) -> None:
    house = House(tmp_path, 0.9)
    with pytest.raises(TaskRefused, match="adapter_memory"):
        house.residency.keep(house.adapters[0], house.file)


def test_without_a_budget_all_are_in_memory(tmp_path: Path) -> None:
    house = House(tmp_path, 0)
    house.attach()
    assert house.bank.attached == TASKS
    assert not [*house.residency.readings(None), *house.residency.readings(house.vfms[0])]
    assert house.residency.is_ready(house.request(0))
