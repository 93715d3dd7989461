"""The device's memory: what adapters take of it, and one for which there is not enough."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from backend_fixtures import BACKBONE, bytes_of, text_task, write_task
from gpu_only import DEVICE, needs_cuda
from model_fixtures import WORDS, text_runtime, tiny_tokenizer
from peft import LoraConfig
from transformers import BertConfig, BertModel

from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime
from fmplex_backend.repository.tasks import Repository
from fmplex_backend.scheduling import POLICIES, CostModel
from fmplex_backend.serving.engine import Engine
from fmplex_backend.serving.loader import Loader
from fmplex_backend.types import Failed, Finished, Outcome, Reply, Request, Vfm
from testing.adapters import lora, save_adapter

pytestmark = needs_cuda

MB = 1 << 20
EMBEDDING = {"kind": "embedding", "normalize": False}


def save_model(directory: Path, hidden: int) -> Path:
    """Two layers with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, pad_token_id=1, **sizes)
    BertModel(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def add_task(root: Path, name: str, tag: int, model: Path, config: LoraConfig | None) -> Path:
    """A task in the repository, whole; returns its version."""
    adapter = {"adapter": {"kind": "peft"}} if config else {}
    version = write_task(root, name, tag, task=text_task(EMBEDDING, **adapter))
    if config:
        save_adapter(version / "adapter", BertModel.from_pretrained(model), config, seed=tag)
    return version


def allocated() -> int:
    """Bytes of tensors on the device."""
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


# -- what adapters take


def test_adapters_take_what_their_stacks_need(tmp_path: Path) -> None:
    """And no more than half as much again for slots that are free, at 1, 10 and 100 tasks."""
    hidden, rank = 256, 8
    model = save_model(tmp_path / "model", hidden)
    version = add_task(tmp_path, "task", 0, model, lora(rank))
    runtime = text_runtime(model, device=DEVICE)
    modules = 2 * 2  # query and value of two layers
    slot = modules * rank * 2 * hidden * 4  # bytes of one adapter
    bare, attached = allocated(), []
    for count in (1, 10, 100):
        torch.cuda.reset_peak_memory_stats()
        while len(attached) < count:
            attached.append(runtime.load(version))
            runtime.attach(attached[-1])
        taken = allocated() - bare
        most = 1.5 * (count + 1) + 4  # slots
        assert slot * (count + 1) <= taken <= slot * most + MB, (count, taken / slot)
        peak = torch.cuda.max_memory_allocated() - bare
        assert peak <= taken + 2 * slot * most / modules + 2 * slot + MB, "growing copies one module at a time"
    full = allocated()
    for extensions in attached:
        runtime.detach(extensions)
    again = [runtime.load(version) for _ in range(100)]
    for extensions in again:
        runtime.attach(extensions)
    assert allocated() <= full + MB, "slots are used again"


# -- an adapter that is too large


class Backbone:
    """A loader and an engine over a real runtime, without a server and without threads."""

    def __init__(self, root: Path, model: Path) -> None:
        self.runtime: TextEncoderRuntime = text_runtime(model, device=DEVICE, max_items=8)
        self.outcomes: dict[int, Outcome] = {}
        cost = CostModel()
        self.engine = Engine(self.runtime, POLICIES["bfq"](cost, max_items=8), cost, self._hand_over)
        self.engine.preparer = self
        self.loader = Loader(Repository(root, BACKBONE), self.runtime, self.engine, max_queue=9, slots=9)

    def prepare_again(self, request: Request) -> None:
        raise AssertionError("no version is replaced here")

    def resume(self) -> None:
        """Nothing waits."""

    def _hand_over(self, request: Request, outcome: Outcome) -> None:
        self.outcomes[id(request)] = outcome

    def refresh(self) -> None:
        """Read the repository and attach what is new."""
        self.loader.refresh()
        self.drain()

    def drain(self) -> None:
        while self.engine.step(wait=False):
            pass

    def ask(self, tag: int, *texts: str) -> Any:
        """The embeddings on the CPU, or the error's message."""
        vfm = self.loader.table[tag]
        if not isinstance(vfm, Vfm):
            return str(vfm.error)
        request = Request(vfm, {"TEXT": bytes_of(*texts)}, ("EMBEDDING",), self.engine.clock(), _no_reply)
        request.extensions = vfm.extensions
        self.runtime.prepare(request)
        self.engine.add_request(request)
        self.drain()
        outcome = self.outcomes.pop(id(request))
        if isinstance(outcome, Failed):
            return str(outcome.error)
        assert isinstance(outcome, Finished)
        return torch.as_tensor(self.runtime.decode(request, outcome.value)["EMBEDDING"])


def _no_reply(reply: Reply, final: bool) -> None:
    raise AssertionError("the engine hands over, it does not reply")


@pytest.fixture
def all_memory_again() -> Iterator[None]:
    """Whatever the test allows this process."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


# A rank that takes about 56 MB of the device's memory, four times that in stacks.
@pytest.mark.usefixtures("all_memory_again")
@pytest.mark.parametrize("rest", [32 * MB, 112 * MB], ids=["none for its file", "none for its stacks"])
def test_an_adapter_too_large_for_the_device_is_refused_alone(tmp_path: Path, rest: int) -> None:
    root = tmp_path / "repository"
    root.mkdir()
    model = save_model(tmp_path / "model", 1024)
    add_task(root, "bare", 0, model, None)
    add_task(root, "small", 1, model, lora(4))
    backbone = Backbone(root, model)
    backbone.refresh()
    texts = ("w1 w2 w3", "w4 w5")
    before = [backbone.ask(tag, *texts) for tag in (0, 1)]
    assert not torch.allclose(before[0], before[1], atol=1e-3)
    torch.cuda.empty_cache()
    held = allocated()
    total = torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + rest) / total)
    add_task(root, "large", 2, model, lora(512, "query", "key", "value", "dense"))
    backbone.refresh()
    said = backbone.ask(2, *texts)
    assert isinstance(said, str)
    assert "out of memory" in said
    assert "large" in said
    for _ in range(3):
        for tag in (0, 1):
            after = backbone.ask(tag, *texts)
            assert isinstance(after, torch.Tensor), after
            torch.testing.assert_close(after, before[tag], rtol=1e-4, atol=1e-4)
    assert allocated() < held + 32 * MB, "what was refused leaves nothing on the device"
