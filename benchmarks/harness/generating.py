"""Generation without a server, each way in a process of its own on one core: `python -m benchmarks.harness.generating`.

* ours: the engine, the scheduler and the runtime of the backend, with tasks of a repository;
* static: transformers' `generate` on batches in the order of arrival, padded to the longest prompt, until the longest
  answer is done; `static, fast products` with the backend's Linears under it;
* continuous: transformers' continuous batching, with as many sequences a step as ours and more tokens.

Prompts are tokenised before the time is taken. All run in inference mode with one thread. Time is the process's CPU
time: what this takes on a core that does nothing else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
from transformers.utils import logging

from benchmarks.harness.language_model import BACKBONE, SEQUENCES, Ask, model_directory, tokenizer, wishes
from benchmarks.harness.subject import subject
from benchmarks.load.child import Child
from fmplex_backend.families.causal_lm.runtime import CausalLmRuntime
from fmplex_backend.families.fast_linears import speed_up
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.configs import backbone_parameters
from fmplex_backend.scheduling import Bfq, CostModel
from fmplex_backend.serving.engine import Engine
from fmplex_backend.types import Failed, Outcome, Request, Running, Vfm
from fmplex_controller.server.installation import ALLOCATOR

STEP_TOKENS = 2 * 64 + SEQUENCES  # of a step
PAGE, PAGES = 16, 1024
Generate = Callable[[Sequence[Ask]], float]  # seconds of CPU time


class OneCore(Child):
    """A process with one thread on the core of models; its first step is `set_up_on_one_core`."""

    def __init__(self, **setup: str) -> None:
        variables = ALLOCATOR | os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        super().__init__({**setup, "core": subject().apart.models[0]}, variables)


class Generating(OneCore):
    """A process that generates on demand."""

    module = "benchmarks.harness.generating"

    def __init__(self, kind: str, repository: Path | None = None) -> None:
        super().__init__(kind=kind, repository=str(repository))

    def per_second(self, asks: Sequence[Ask]) -> float:
        """Generated tokens that were asked for, per second of CPU time."""
        return sum(ask.tokens for ask in asks) / float(self.ask({"asks": [asdict(ask) for ask in asks]}))


# -- in the process


def set_up_on_one_core() -> dict[str, Any]:
    """Read what a `OneCore` was set up with, and stay on its core."""
    logging.disable_progress_bar()
    setup: dict[str, Any] = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, {setup["core"]})
    torch.set_num_threads(1)
    return setup


class Ours:
    """The engine of a backbone, stepped by hand."""

    def __init__(self, repository: Path) -> None:
        file = repository / BACKBONE / "config.pbtxt"
        config: Any = load_backbone_config(file, backbone_parameters(repository, BACKBONE) or {})
        self.runtime = CausalLmRuntime(config, file, "cpu")
        cost = CostModel()
        cost.seed(self.runtime.profile())
        scheduler = Bfq(
            cost,
            max_items=config.max_sequences,
            max_tokens=self.runtime.max_batch_tokens,
            efficiency=config.batch_efficiency,
            has_room=self.runtime.has_room,
        )
        self.engine = Engine(self.runtime, scheduler, cost, self._take)
        self.engine.preparer = self
        names = sorted(each.name for each in repository.iterdir() if (each / "1" / "task.json").is_file())
        self.vfms = {name: Vfm(number, name) for number, name in enumerate(names)}
        for name, vfm in self.vfms.items():
            self.engine.attach(vfm, self.runtime.load(repository / name / "1"))

    def generate(self, asks: Sequence[Ask]) -> float:
        """Seconds of all steps."""
        self.engine.add_requests([self._request(ask) for ask in asks])
        start = time.process_time()
        while self.engine.step(wait=False) or self.engine.scheduler.queued:
            pass
        return time.process_time() - start

    def _request(self, ask: Ask) -> Request:
        vfm = self.vfms[ask.task]
        inputs = {
            name: np.array([[text.encode()]], dtype=np.object_)
            for name, text in (("text_input", ask.text), ("sampling_parameters", wishes(ask.tokens)))
        }
        request = Request(vfm, inputs, (), self.engine.clock(), lambda *_: None)
        request.extensions = vfm.extensions
        self.runtime.prepare(request)
        return request

    def _take(self, request: Request, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            raise outcome.error
        if not isinstance(outcome, Running):
            self.runtime.decode(request, outcome.value)

    def resume(self) -> None:
        """As the engine's preparer: nobody waits to be prepared."""

    def prepare_again(self, request: Request) -> None:
        """As the engine's preparer: no task changes."""
        raise NotImplementedError


def transformers_model() -> Any:
    """The model as transformers loads it; no token ends an answer."""
    model: Any = AutoModelForCausalLM.from_pretrained(model_directory(), dtype=subject().dtype)
    model.eval().requires_grad_(False)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0)
    return model


def static(model: Any, asks: Sequence[Ask]) -> float:
    """`generate`, batch by batch."""
    prompts = [tokenizer()(ask.text)["input_ids"] for ask in asks]
    start = time.process_time()
    for first in range(0, len(asks), SEQUENCES):
        rows = prompts[first : first + SEQUENCES]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        tokens = max(ask.tokens for ask in asks[first : first + SEQUENCES])
        with torch.inference_mode():
            found = model.generate(ids, attention_mask=mask, max_new_tokens=tokens)
        assert found.shape[1] == longest + tokens
    return time.process_time() - start


@contextmanager
def continuous() -> Iterator[Generate]:
    """transformers' continuous batching: one manager for all rounds."""
    own = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=-1, max_new_tokens=1)
    settings = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=PAGES,
        max_batch_tokens=STEP_TOKENS,
        max_requests_per_batch=SEQUENCES,
        allow_block_sharing=False,
    )
    model = transformers_model()
    with model.continuous_batching_context_manager(own, continuous_batching_config=settings) as manager:

        def generate(asks: Sequence[Ask]) -> float:
            prompts = [tokenizer()(ask.text)["input_ids"] for ask in asks]
            start = time.process_time()
            for prompt, ask in zip(prompts, asks, strict=True):
                manager.add_request(prompt, max_new_tokens=ask.tokens)
            done = 0
            while done < len(asks):
                result = manager.get_result(timeout=60)
                if result is None or result.error is not None:
                    raise RuntimeError(f"continuous batching failed: {result and result.error}")
                if result.is_finished():
                    done += 1
            return time.process_time() - start

        yield generate


@contextmanager
def generator(kind: str, repository: str) -> Iterator[Generate]:
    """The way of generating that a kind names."""
    if kind == "continuous":
        with continuous() as generate:
            yield generate
    elif kind == "ours":
        yield Ours(Path(repository)).generate
    else:
        model = transformers_model()
        if kind == "static, fast products":
            speed_up(model, few_rows=True)
        yield lambda asks: static(model, asks)


def main() -> None:
    """Answer every line of stdin with seconds."""
    setup = set_up_on_one_core()
    with generator(setup["kind"], setup["repository"]) as generate:
        print(0, flush=True)
        for line in sys.stdin:
            print(generate([Ask(**ask) for ask in json.loads(line)["asks"]]), flush=True)


if __name__ == "__main__":
    main()
