"""Language models in torch: a step computes tokens of many sequences, of prompts and of answers, in one packed pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic, perf_counter, thread_time
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.adapters.peft import Adapter, load_adapter
from fmplex_backend.adapters.residency import METRICS as ADAPTER_METRICS
from fmplex_backend.adapters.residency import Residency
from fmplex_backend.errors import ExecutionFailed, NotFinite, TaskRefused
from fmplex_backend.families.causal_lm.asking import Reader
from fmplex_backend.families.causal_lm.attention import PagedCache, Plan, Span
from fmplex_backend.families.causal_lm.capacity import cache_bytes, longest
from fmplex_backend.families.causal_lm.huggingface import BLOCK, forward, load_model
from fmplex_backend.families.causal_lm.inputs import PROMPT
from fmplex_backend.families.causal_lm.memory import Memory
from fmplex_backend.families.causal_lm.metrics import METRICS, TaskCounts
from fmplex_backend.families.causal_lm.parameters import CausalLmConfig
from fmplex_backend.families.causal_lm.prefill_budget import PrefillBudget
from fmplex_backend.families.causal_lm.sampler import choose
from fmplex_backend.families.causal_lm.sections import Generator, as_tensor
from fmplex_backend.families.causal_lm.sequence import Chosen, Delta
from fmplex_backend.families.causal_lm.sequence import Sequence as Answer
from fmplex_backend.families.causal_lm.step import Step, shape_of
from fmplex_backend.families.causal_lm.text import Detokenizer
from fmplex_backend.families.model_files import check_trained_for
from fmplex_backend.families.precision import dtype_name
from fmplex_backend.fingerprint import fingerprint
from fmplex_backend.repository.config import load_task_config
from fmplex_backend.types import (
    Failed,
    Finished,
    Kept,
    Metric,
    Outcome,
    Pass,
    PassShape,
    Post,
    Reading,
    Request,
    Running,
    Vfm,
)

CHUNKS = {"cpu": 64, "cuda": 512}  # tokens of a prompt in a step: about as long as that many sequences' next tokens
TOKEN_BYTES = 128  # about what a token of a sequence takes, in lists and until it is sent
PROFILE = ((1, 1, 32), (8, 1, 32), (8, 1, 256), (1, 32, 32), (1, 64, 256))  # sequences, new tokens, context


@dataclass(frozen=True, slots=True)
class Extensions:
    """A task's version, read and checked."""

    reader: Reader
    adapter: Adapter | None
    outputs: Mapping[str, int | None]
    takes: str = PROMPT.tensor.name

    @property
    def adapted(self) -> bool:
        return self.adapter is not None

    @property
    def repeats(self) -> bool:
        return False  # it samples, and streams


class CausalLmRuntime:
    """One language model in memory, for all tasks.

    Args:
        config: the backbone's parameters.
        file: the backbone's config.pbtxt, for messages.
        device: where the weights go, as torch names it.
        clock: seconds, the engine's.
    """

    quick_when_small = True
    queues_passes = False  # the next step begins with this one's tokens
    metrics: Mapping[str, Metric] = {**METRICS, **ADAPTER_METRICS}
    post: Post

    def __init__(self, config: CausalLmConfig, file: Path, device: str, clock: Callable[[], float] = monotonic) -> None:
        self.device, self.clock = torch.device(device), clock
        self.counts: WeakKeyDictionary[Vfm, TaskCounts] = WeakKeyDictionary()
        loaded = load_model(config, file, self.device)
        self.model, self.tokenizer, self.ends = loaded.model, loaded.tokenizer, loaded.ends
        self.dtype, self.fingerprint = dtype_name(self.model.dtype), fingerprint(loaded.directory)
        self.bank = AdapterBank(self.model, self.device, stacked=False)
        self.residency = Residency(self.bank, config.adapter_memory, lambda command: self.post(command))
        self.chunk = config.prefill_chunk or CHUNKS.get(self.device.type, CHUNKS["cuda"])
        self.max_batch_tokens = config.max_batch_tokens or 2 * self.chunk + config.max_sequences
        self.chunk = min(self.chunk, self.max_batch_tokens)
        self.prefill_budget = PrefillBudget(self.chunk, clock)
        blocks = cache_bytes(config, self.device) // (BLOCK * loaded.token_bytes)
        self.memory = Memory(
            blocks, BLOCK, _tokens_of, self._move, keeps=config.prefix_cache, locality_s=config.locality_s
        )
        self.locality_s = config.locality_s
        self.cache = PagedCache((1 + blocks) * BLOCK)
        self.max_length = longest(config, file, loaded, self.memory.capacity)
        self._decode = partial(self.tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    # -- off the engine thread

    def load(self, version: Path) -> Extensions:
        """Read a version directory; raises TaskRefused."""
        file = version / "task.json"
        task = load_task_config(file)
        check_trained_for(task.backbone, self.fingerprint, file)
        generator: Generator = task.decoder
        vocabulary = self.model.config.get_text_config().vocab_size
        reader = Reader.of(self.tokenizer, task.encoder, generator, self.max_length, vocabulary, file)
        adapter = None
        if task.adapter:
            adapter = load_adapter(version / task.adapter.path, self.model, self.model.dtype, self.device)
            self._check_modules(adapter, version / task.adapter.path / "adapter_config.json")
            self.residency.keep(adapter, version / task.adapter.path / "adapter_config.json")
        return Extensions(reader, adapter, generator.sizes(version, None))

    def prepare(self, request: Request) -> None:
        """Read what it asks for, and tokenise; raises InvalidRequest."""
        extensions: Extensions = request.extensions
        asked = extensions.reader.read(request)
        sampling = asked.sampling
        ends = {*sampling.stop_token_ids} if sampling.ignore_eos else {*self.ends, *sampling.stop_token_ids}
        answer = Answer(asked, self.chunk, ends, Detokenizer(self._decode))
        request.prepared, request.work, request.items = answer, answer.work, 1
        request.prepared_bytes = TOKEN_BYTES * (len(asked.prompt) + sampling.max_tokens)
        self.residency.expect(request)

    def decode(self, request: Request, value: Delta) -> Mapping[str, Any]:
        """A part of an answer -> output tensors, [1, 1] each."""
        prompt, total = len(request.prepared.asked.prompt), value.cumulative_logprob or 0.0
        return {
            "text_output": np.array([[value.text.encode("utf-8", "replace")]], dtype=np.object_),
            "finish_reason": np.array([[value.finish_reason.encode()]], dtype=np.object_),
            "num_input_tokens": np.array([[prompt]], dtype=np.uint32),
            "num_output_tokens": np.array([[value.tokens]], dtype=np.uint32),
            "logprobs": as_tensor(value.logprobs)[None],
            "cumulative_logprob": np.array([[total]], dtype=np.float32),
        }

    # -- the engine thread

    def attach(self, extensions: Extensions) -> None:
        """Put a version's adapter into the bank."""
        if extensions.adapter:
            self.residency.attach(extensions.adapter)

    def detach(self, extensions: Extensions) -> None:
        """Take a version's adapter out of the bank."""
        self.memory.blocks.drop(extensions)
        if extensions.adapter:
            self.residency.detach(extensions.adapter)

    def has_room(self, request: Request) -> bool:
        """Whether there are blocks for its next step; another request may lose its own for them."""
        ready = self.residency.is_ready(request)
        if ready and self.residency.is_lost(request):
            return True  # it fails, and takes nobody's blocks for that
        answer: Answer = request.prepared
        begins = request not in self.memory.blocks_of
        most = self.prefill_budget.most(request, len(answer.step), begins=begins) if ready else 0
        has = most > 0 and self.memory.has_room(request)
        if has:
            answer.chunk = most
            request.work = answer.work
            self.prefill_budget.place(request.vfm, len(answer.step))
            self.residency.begin(request)
        return has

    def kept(self, request: Request) -> Kept | None:
        """What a request that has no blocks would find; it does not fit while its adapter is in its file."""
        kept = self.memory.kept(request)
        if kept is not None and kept.fits and not self.residency.is_ready(request):
            return kept._replace(fits=False)
        return kept

    def forget(self, request: Request) -> None:
        """Free its blocks."""
        self.memory.release(request)
        self.residency.end(request)

    def cut_short(self, request: Request) -> Delta | None:
        """The answer as far as it is; None before its first token."""
        answer: Answer = request.prepared
        return answer.cut_short() if answer.generated else None

    def run(self, batch: Sequence[Request]) -> Iterator[Pass]:
        """One step of every sequence of a batch, in one pass."""
        self.memory.begin()
        self.prefill_budget.begin()
        batch, failed = self.residency.run(batch)
        if failed:
            yield failed
        if not batch:
            return
        requests = sorted(batch, key=lambda request: self.bank.order(request.extensions.adapter))
        begun = thread_time()
        step = Step.of(requests, lambda request: self.memory.blocks_of[request])
        choosing, ends = step.choosing, step.ends
        logits = self._logits(step.ids, step.spans, step.adapters, [ends[number] for number in choosing])
        chosen = choose(logits, [requests[number].prepared for number in choosing], self._spell) if choosing else []
        found = dict(zip(choosing, chosen, strict=True))
        now = self.clock()
        outcomes = [
            (request, self._outcome_or_failure(request, number in found, found.get(number), now))
            for number, request in enumerate(requests)
        ]
        self._count_waiting(requests)
        yield Pass(step.shape, step.portions, outcomes, thread_time() - begun)

    def is_fatal(self, error: Exception) -> bool:
        """Every CUDA error but a lack of memory leaves the process's CUDA context unusable."""
        return "CUDA error" in str(error) and not isinstance(error, torch.OutOfMemoryError)

    def profile(self) -> Iterator[tuple[PassShape, float]]:
        """Time a pass of each of a few shapes, after a warm-up."""
        count = self.memory.blocks.count
        for position, (sequences, new, context) in enumerate([PROFILE[0], *PROFILE]):
            sequences = min(sequences, count)
            context = min(context, self.max_length, count // sequences * BLOCK)
            per = -(-context // BLOCK)
            spans = [
                Span(min(new, context), context, range(1 + number * per, 1 + (number + 1) * per))
                for number in range(sequences)
            ]
            ids = torch.zeros(sum(span.new for span in spans), dtype=torch.int64)
            start = perf_counter()
            self._logits(ids, spans, [None] * len(ids), [0])
            if position:
                yield shape_of(spans, 0), perf_counter() - start

    def readings(self, vfm: Vfm | None) -> Iterable[Reading]:
        """Of a task; of the backbone the memory's."""
        yield from self.residency.readings(vfm)
        yield from self._readings(vfm)

    def _readings(self, vfm: Vfm | None) -> Iterable[Reading]:
        if vfm is not None:
            counts = self.counts.get(vfm)
            return () if counts is None else counts.readings(self.memory.running[vfm], self.memory.held[vfm], vfm.depth)
        blocks = self.memory.blocks
        return (
            Reading("fmplex_backbone_kv_blocks", blocks.count),
            Reading("fmplex_backbone_kv_blocks_free", blocks.free),
            Reading("fmplex_backbone_kv_blocks_prefix", blocks.unheld),
        )

    def _logits(
        self, ids: torch.Tensor, spans: Sequence[Span], adapters: Sequence[Adapter | None], rows: Sequence[int]
    ) -> torch.Tensor:
        """Those of some of a pass's tokens: [rows, vocabulary]."""
        plan = Plan(spans, BLOCK, self.device)
        keep = torch.tensor(rows or [0], device=self.device)
        with self.bank.applied(adapters, packed=True):
            return forward(self.model, ids.to(self.device), plan, self.cache, keep)

    def _outcome_or_failure(
        self, request: Request, chooses: bool, chosen: Chosen | Exception | None, now: float
    ) -> Outcome:
        """What raises is this request's alone: a pass that breaks runs again, and others' sequences have advanced."""
        try:
            if isinstance(chosen, Exception):
                raise chosen
            return self._outcome(request, chooses, chosen, now)
        except Exception as error:
            if self.is_fatal(error):
                raise
            raised = f"{type(error).__name__}: {error}"
            return Failed(ExecutionFailed(f"choosing the next token of {request.vfm.name!r} raised {raised}"))

    def _outcome(self, request: Request, chooses: bool, chosen: Chosen | None, now: float) -> Outcome:
        answer, counts = request.prepared, self._counts(request.vfm)
        if chooses and chosen is None:
            self.memory.blocks.drop(request.extensions)  # what has no numbers is nothing to go on from
            problem = "hold NaN or infinite numbers: its weights are too large for this prompt"
            return Failed(NotFinite(f"the logits of {request.vfm.name!r} {problem}"))
        reason = answer.advance(chosen)
        answer.chunk = self.chunk
        self.memory.keep(request, answer.computed)
        if chosen is not None:
            first = answer.generated == 1
            counts.prompt_tokens += first * len(answer.asked.prompt)
            counts.generated(now, request.arrived_at if first else answer.token_at, first=first)
            answer.token_at = now
        delta = answer.take(reason)
        return Finished(delta) if reason else Running(answer.work, delta)

    def _move(self, request: Request, computed: int) -> None:
        """Its next step begins elsewhere: it has lost its blocks, or found some."""
        request.prepared.move(computed)
        request.work = request.prepared.work
        counts = self._counts(request.vfm)
        counts.prefix_tokens += computed
        counts.preemptions += not computed

    def _counts(self, vfm: Vfm) -> TaskCounts:
        if vfm not in self.counts:
            self.counts[vfm] = TaskCounts()
        return self.counts[vfm]

    def _count_waiting(self, batch: Sequence[Request]) -> None:
        """How many wait, of the tasks in a batch: what is queued and has not begun."""
        for vfm, count in Counter(request.vfm for request in batch).items():
            self._counts(vfm).waiting = len(vfm.queue) - (self.memory.running[vfm] - count)

    def _spell(self, token: int) -> str:
        return str(self._decode([token]))

    def _check_modules(self, adapter: Adapter, file: Path) -> None:
        """The head sees some of a pass's tokens only, and embeddings no vectors."""
        head = self.model.get_output_embeddings()
        paths = {path for path, module in self.model.named_modules() if module is head}
        if found := paths & {*adapter.lora, *adapter.solo}:
            problem = f"{found.pop()} makes the logits, and takes no adapter here"
            raise TaskRefused(file, "target_modules", problem, "Train without that target module")


def _tokens_of(request: Request) -> list[int]:
    tokens: list[int] = request.prepared.tokens
    return tokens
