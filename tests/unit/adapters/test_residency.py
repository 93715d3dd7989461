"""Which adapters are in the bank under a budget: a tiny model, posted functions called by hand."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from model_fixtures import save_adapter, tiny_model
from peft import LoraConfig

from fmplex_backend.adapters import residency, weight_file
from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.adapters.residency import Residency
from fmplex_backend.errors import TaskRefused
from fmplex_backend.types import RESIDENT, Failed, Request, Vfm

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
        """Queued."""
        vfm = self.vfms[task]
        request = Request(vfm, {}, (), 0.0, lambda *_: None, extensions=vfm.extensions)
        vfm.queue.append(request)
        return request

    def copy(self, task: int) -> Request:
        vfm = Vfm(task, "copies", spare=True)
        return Request(vfm, {}, (), 0.0, lambda *_: None, extensions=self.vfms[task].extensions)

    def expect(self, *tasks: int) -> None:
        for task in tasks:
            self.residency.expect(self.request(task))

    def begin(self, *requests: Request) -> list[Request]:
        """Ready ones, in a batch that is put together."""
        for request in requests:
            assert self.residency.is_ready(request)
            self.residency.begin(request)
            if not request.vfm.spare:
                request.vfm.queue.remove(request)
        return [*requests]

    def run(self, *requests: Request) -> list[Request]:
        """The same, in a batch that has run a step."""
        begun = self.begin(*requests)
        assert self.residency.run(begun) == (begun, None)
        return begun

    def settle(self) -> None:
        """Read what is being read, and call what was posted."""
        while True:
            self.read()
            if not self.posted:
                return
            while self.posted:
                self.posted.pop(0)()
                assert self.residency.used <= self.residency.budget

    def read(self) -> None:
        """Wait until all that is being read is."""
        reader = self.residency._reader
        assert reader is not None
        wait([reader.submit(int)])  # behind those before it

    def between_batches(self) -> None:
        """Call what was posted until now, as the engine does."""
        posted, self.posted[:] = list(self.posted), []
        for command in posted:
            command()

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
        for request in house.run(house.request(task)):
            house.residency.end(request)
    house.expect(3)
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
    begun = house.run(*map(house.request, (0, 1)))
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
    begun = house.run(*map(house.request, (0, 1, 1)))
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
    house.run(*map(house.request, (0, 1)))
    house.expect(2)
    house.settle()
    assert not house.residency.is_ready(house.request(2))
    assert all(house.residency.is_ready(house.request(task)) for task in (0, 1))


def test_nobody_gives_way_to_one_that_is_gone(house: House) -> None:
    for task in (0, 1):
        house.vfms[task].start = 1.0
        house.run(house.request(task))
    assert not house.residency.is_ready(house.request(2))
    assert not all(house.residency.is_ready(house.request(task)) for task in (0, 1))
    house.residency.detach(house.adapters[2])
    assert all(house.residency.is_ready(house.request(task)) for task in (0, 1))


def test_nobody_gives_way_to_one_whose_request_was_dropped(house: House) -> None:
    for task in (0, 1):
        house.vfms[task].start = 1.0
        house.run(house.request(task))
    waiting = house.request(2)
    assert not house.residency.is_ready(waiting)
    assert not all(house.residency.is_ready(house.request(task)) for task in (0, 1))
    house.vfms[2].queue.remove(waiting)
    house.residency.end(waiting)
    assert all(house.residency.is_ready(house.request(task)) for task in (0, 1))


def test_nobody_gives_way_for_good_where_copies_alone_are_left_to_wait(house: House) -> None:
    """The copy takes nothing from who waits, and who waits would be kept out for one that has gone."""
    begun = house.run(*map(house.request, (0, 1)))
    assert not house.residency.is_ready(house.copy(2))
    house.vfms[0].start = 5.0
    dropped, waiting = house.request(3), house.request(0)
    house.residency.expect(waiting)
    assert not house.residency.is_ready(dropped)
    assert not house.residency.is_ready(waiting), "it is to leave for the other"
    house.vfms[3].queue.clear()
    house.residency.end(dropped)
    assert house.residency.is_ready(waiting)
    for request in begun:
        house.residency.end(request)
    assert house.residency.is_ready(waiting)


def test_one_that_was_read_stays_until_its_requests_come(house: House) -> None:
    house.expect(2, 3)
    house.settle()
    assert house.resident() == {2, 3}
    assert not house.residency.is_ready(house.request(4))
    house.settle()
    assert house.resident() == {2, 3}
    house.now += residency.FRESH_S + 0.1  # they have not come
    assert not house.residency.is_ready(house.request(4))
    house.settle()
    assert house.resident() == {3, 4}


def test_those_that_were_read_during_one_batch_share_the_time_after_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "CHUNK_S", -1.0)  # a module at a time
    for task in (2, 3):
        house.expect(task)
    house.between_batches()
    house.read()
    house.between_batches()
    batches = 0
    while house.posted:
        assert len(house.posted) == 1, "each has a time of its own"
        house.between_batches()
        batches += 1
    assert {2, 3} <= house.resident()
    assert batches >= 2 * len(house.model.encoder.layer)


def test_one_that_is_detached_while_it_is_read_keeps_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "CHUNK_S", -1.0)  # a module at a time
    for task in (2, 3):
        house.expect(task)
        house.posted.pop(0)()
        house.read()
        if task == 3:
            house.between_batches()
            house.between_batches()
            assert house.posted, "it is in the bank at once"
            assert house.adapters[task].slot
        house.residency.detach(house.adapters[task])
        house.settle()
        assert not house.adapters[task].lora
        assert house.bank.attached == len(house.resident())
    for task in (0, 1, 4):
        house.residency.detach(house.adapters[task])
    assert (house.bank.attached, house.residency.used) == (0, 0)


def test_a_file_that_cannot_be_read_is_told_to_its_own_requests(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Any, device: torch.device) -> Any:
        raise OSError("disk")

    request = house.request(2)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(weight_file.InFile, "read", broken)
        assert not house.residency.is_ready(request)
        house.settle()
    assert "disk" in caplog.text
    assert house.residency.is_ready(request)
    house.residency.begin(request)
    (other,) = house.begin(house.request(1))
    kept, told = house.residency.run([request, other])
    assert kept == [other]
    assert told is not None
    ((culprit, outcome),) = told.outcomes
    assert culprit is request
    assert isinstance(outcome, Failed)
    assert "'task2'" in str(outcome.error)
    with pytest.raises(RuntimeError, match="not in memory"):
        house.bank.order(house.adapters[2])
    house.residency.end(request)
    house.expect(2)
    house.settle()
    assert house.residency.is_ready(request), "it is not read again at once"
    house.now += residency.RETRY_S
    assert not house.residency.is_ready(request)
    house.settle()
    assert 2 in house.resident()
    assert not house.residency.is_lost(request)


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


# -- who is read first


def test_the_one_with_the_smallest_tag_is_read_first(house: House) -> None:
    begun = house.run(*map(house.request, (0, 1)))
    house.vfms[2].start, house.vfms[3].start = 5.0, 4.0
    house.expect(2, 3)
    house.settle()
    house.residency.end(begun[0])
    house.settle()
    assert house.resident() == {1, 3}


def test_one_that_nobody_waits_for_any_more_is_not_read(house: House) -> None:
    begun = house.run(*map(house.request, (0, 1)))
    house.expect(2, 3)
    house.settle()
    house.vfms[2].queue.clear()  # refused, cancelled or late
    for request in begun:
        house.residency.end(request)
    house.settle()
    assert (house.residency.loads, 3 in house.resident()) == (1, True)


def test_one_that_others_wait_for_stays_where_another_may_go(house: House) -> None:
    for request in house.run(*map(house.request, (0, 1))):
        house.residency.end(request)
    house.expect(0)
    house.expect(2)
    house.settle()
    assert house.resident() == {0, 2}


@pytest.mark.parametrize(
    ("tags", "left"), [((1.0, 3.0, 2.0), {0, 2}), ((3.0, 1.0, 2.0), {1, 2}), ((1.0, 2.0, 3.0), {0, 1})]
)
def test_of_those_that_others_wait_for_the_one_furthest_ahead_goes(
    house: House, tags: tuple[float, ...], left: set[int]
) -> None:
    """Their requests wait for something else, such as KV blocks; who runs sooner keeps its adapter."""
    house.expect(0, 1)
    for vfm, tag in zip(house.vfms, tags, strict=False):
        vfm.start = tag
    house.expect(2)
    house.settle()
    assert house.resident() == left


@pytest.mark.parametrize("spare", [False, True])
def test_room_collects_for_a_large_one_but_not_for_copies(house: House, spare: bool) -> None:
    """0 is in use, and 1 alone is not enough."""
    house.run(house.request(0))
    house.residency.budget -= house.size
    request = house.copy(2) if spare else house.request(2)
    assert not house.residency.is_ready(request)
    house.settle()
    assert (0 in house.resident(), 1 in house.resident(), 2 in house.resident()) == (True, spare, False)


# -- copies


def test_nothing_is_read_ahead_for_copies(house: House) -> None:
    house.residency.expect(house.copy(2))
    assert not house.posted


def test_a_copy_between_two_steps_keeps_nothing_from_others(house: House) -> None:
    copies = house.run(*map(house.copy, (0, 1)))
    waiting = house.request(2)
    assert not house.residency.is_ready(waiting)
    house.settle()
    assert house.residency.is_ready(waiting)
    house.run(waiting)
    assert not all(map(house.residency.is_ready, copies))
    house.settle()
    assert house.residency.loads == 1, "those who wait may come back to it"


def test_a_copy_goes_on_when_there_is_room_again(house: House) -> None:
    copies = house.run(*map(house.copy, (0, 1)))
    waiting = house.request(2)
    assert not house.residency.is_ready(waiting)
    house.settle()
    assert house.resident() == {1, 2}
    for request in house.run(waiting):
        house.residency.end(request)
    assert not house.residency.is_ready(copies[0])
    house.settle()
    house.run(*copies)


def test_a_copy_keeps_its_adapter_while_its_batch_is_put_together_and_runs(house: House) -> None:
    copies = house.begin(*map(house.copy, (0, 1)))
    assert not house.residency.is_ready(house.request(2))
    house.settle()
    assert house.residency.run(copies) == (copies, None)
    house.residency.end(copies[0])  # between two passes
    house.settle()
    assert house.resident() == {1, 2}


def test_a_copy_takes_nothing_from_a_copy_that_has_begun(house: House) -> None:
    house.run(*map(house.copy, (0, 1)))
    assert not house.residency.is_ready(house.copy(2))
    house.settle()
    assert house.resident() == {0, 1}


def test_a_copy_takes_no_adapter_that_others_wait_for(house: House) -> None:
    for request in house.run(*map(house.request, (0, 1))):
        house.residency.end(request)
    house.expect(0, 1)
    copy = house.copy(2)
    assert not house.residency.is_ready(copy)
    house.settle()
    assert house.resident() == {0, 1}
    house.begin(house.vfms[0].queue[0])
    house.vfms[1].queue.clear()
    assert not house.residency.is_ready(copy)
    house.settle()
    assert house.resident() == {0, 2}


def test_what_was_read_for_a_copy_does_not_wait_for_it(house: House) -> None:
    assert not any(map(house.residency.is_ready, map(house.copy, (2, 3))))
    house.settle()
    assert house.resident() == {2, 3}
    assert not house.residency.is_ready(house.request(4))
    house.settle()
    assert house.resident() == {3, 4}


def test_copies_wait_for_those_who_wait(house: House) -> None:
    begun = house.run(*map(house.request, (0, 1)))
    assert not house.residency.is_ready(house.copy(2))
    assert not house.residency.is_ready(house.request(3))
    house.settle()
    house.residency.end(begun[0])
    house.settle()
    assert house.resident() == {1, 3}


# -- where they are kept


def test_one_that_could_not_be_attached_is_not_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    house.residency.detach(house.adapters[0])
    adapter = house.load(house.file.parent)
    house.residency.keep(adapter, house.file)
    with monkeypatch.context() as patch:
        patch.setattr(AdapterBank, "attach", no_memory)
        with pytest.raises(MemoryError):
            house.residency.attach(adapter)
    house.vfms[0].extensions = SimpleNamespace(adapter=adapter)
    house.expect(0)
    house.settle()
    assert (house.residency.loads, house.residency.used) == (0, house.size)


def test_one_descriptor_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = tempfile.TemporaryFile

    def counted(**options: Any) -> Any:
        made.append(make(**options))
        return made[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", counted)
    house = House(tmp_path, 2.5)
    house.attach()
    (file,) = made
    whole = os.fstat(file.fileno()).st_size
    for task in (1, 2):
        house.residency.detach(house.adapters[task])
        adapter = house.load(house.file.parent.parent / str(task))
        house.residency.keep(adapter, house.file)
        assert os.fstat(file.fileno()).st_size == whole
        del adapter
    for task in (0, 3, 4):
        house.residency.detach(house.adapters[task])
    house.residency.keep(house.load(house.file.parent), house.file)
    assert os.fstat(file.fileno()).st_size == whole // TASKS


def test_what_cannot_be_written_is_refused_and_says_where(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    adapter = house.load(house.file.parent)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TaskRefused, match=r"No space left on device.*TMPDIR"):
        house.residency.keep(adapter, house.file)
    monkeypatch.undo()
    house.residency.keep(adapter, house.file)


def test_no_directory_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    house = House(tmp_path, 2.5)
    monkeypatch.setattr(tempfile, "TemporaryFile", none)
    with pytest.raises(TaskRefused, match=r"No usable temporary directory.*TMPDIR"):
        house.attach()
