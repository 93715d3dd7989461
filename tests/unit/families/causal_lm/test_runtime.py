"""The runtime under the real engine and scheduler, against transformers' `generate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM, Gemma2Config, MambaConfig, Qwen3Config

from fmplex_backend.adapters.weight_file import InFile
from fmplex_backend.errors import (
    BackboneRefused,
    ExecutionFailed,
    FmplexError,
    InvalidRequest,
    NotFinite,
    TaskRefused,
    TimeLimit,
)
from fmplex_backend.families import fast_linears
from fmplex_backend.families.causal_lm.parameters import CausalLmConfig
from fmplex_backend.families.causal_lm.runtime import CausalLmRuntime
from fmplex_backend.families.onednn import PackedOneDnnLinear
from fmplex_backend.scheduling import Bfq, CostModel, Locality
from fmplex_backend.serving.engine import Engine
from fmplex_backend.types import Failed, Finished, Outcome, Request, Running, Vfm
from testing.adapters import lora, save_adapter
from testing.language_models import save_tiny

FILE = Path("backbone/config.pbtxt")
TOKEN_BYTES = 3 * 2 * 32 * 4  # of keys and values: layers, both, numbers, bytes
NEAR = 1e-4  # best logits so close may be told apart otherwise


def backbone(model: Path, **parameters: Any) -> CausalLmRuntime:
    given: dict[str, Any] = {"kv_cache_bytes": 1 << 22, "prefill_chunk": 8, "dtype": "float32", **parameters}
    config = CausalLmConfig(model=str(model), family="causal-lm", threads=1, **given)
    return CausalLmRuntime(config, FILE, "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def versions(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A plain task, one with a system prompt, two with LoRA of different ranks and modules."""
    folder = tmp_path_factory.mktemp("versions")
    found = []
    targets = {2: lora(4, "q_proj", "v_proj"), 3: lora(8, "k_proj", "o_proj", "gate_proj", "down_proj")}
    for number in range(4):
        version = folder / str(number)
        version.mkdir()
        document: dict[str, Any] = {"family": "causal-lm", "decoder": {"chat": False}}
        if number == 1:
            document["decoder"] = {"system": "be brief"}
        if number in targets:
            document["adapter"] = {"kind": "peft"}
            bare = AutoModelForCausalLM.from_pretrained(model)
            save_adapter(version / "adapter", bare, targets[number], seed=number, scale=0.3)
        (version / "task.json").write_text(json.dumps(document))
        found.append(version)
    return found


@dataclass
class Rig:
    """An engine without threads."""

    runtime: CausalLmRuntime
    versions: Sequence[Path]
    sequences: int = 4
    parts: dict[Request, list[Outcome]] = field(default_factory=dict)

    failed: dict[Request, FmplexError] = field(default_factory=dict)
    now: float = 0.0

    def __post_init__(self) -> None:
        scheduler = Bfq(
            CostModel(),
            max_items=self.sequences,
            max_tokens=self.runtime.max_batch_tokens,
            has_room=self.runtime.has_room,
            locality=Locality(self.runtime.locality_s, self.runtime.kept) if self.runtime.locality_s else None,
        )
        self.engine = Engine(self.runtime, scheduler, CostModel(), self._hand_over, lambda: self.now)
        self.engine.preparer = self  # type: ignore[assignment]
        self.vfms = [Vfm(number, f"task{number}") for number in range(len(self.versions))]
        for vfm, version in zip(self.vfms, self.versions, strict=True):
            self.engine.attach(vfm, self.runtime.load(version))

    def resume(self) -> None:
        """Nobody waits to be prepared."""

    def ask(self, task: int, text: str, **wishes: Any) -> Request:
        stream = wishes.pop("stream", False)
        inputs = {"text_input": np.array([[text.encode()]], dtype=np.object_)}
        if "messages" in wishes:
            messages = wishes.pop("messages")
            written = messages if isinstance(messages, str) else json.dumps(messages)
            inputs["messages"] = np.array([[written.encode()]], dtype=np.object_)
        for flag in [name for name in wishes if name.startswith("return_") or name == "exclude_input_in_output"]:
            inputs[flag] = np.array([[wishes.pop(flag)]])
        inputs["sampling_parameters"] = np.array([[json.dumps(wishes).encode()]], dtype=np.object_)
        inputs["stream"] = np.array([[stream]])
        request = Request(self.vfms[task], inputs, (), 0.0, lambda *_: None)
        request.extensions = self.vfms[task].extensions
        self.runtime.prepare(request)
        self.parts[request] = []
        self.engine.add_request(request)
        return request

    def run(self, most: int = 5000) -> None:
        for _ in range(most):
            if not self.engine.step(wait=False) and not self.engine.scheduler.queued:
                return
        raise AssertionError("it does not end")

    def text(self, request: Request) -> str:
        assert request not in self.failed, self.failed[request]
        return "".join(str(outcome.value.text) for outcome in self.parts[request])  # type: ignore[union-attr]

    def answer(self, request: Request) -> list[int]:
        assert request not in self.failed, self.failed[request]
        tokens: list[int] = request.prepared.tokens
        return tokens[len(request.prepared.asked.prompt) :]

    def _hand_over(self, request: Request, outcome: Outcome) -> None:
        if isinstance(outcome, Failed):
            self.failed[request] = outcome.error
        self.parts[request].append(outcome)


@pytest.fixture
def rig(model: Path, versions: list[Path]) -> Rig:
    return Rig(backbone(model), versions)


@pytest.fixture(scope="module")
def generate(model: Path, versions: list[Path]) -> Callable[[int, list[int], int], tuple[list[int], Any]]:
    """What a task's merged model generates alone, greedily, and the logits."""
    merged: dict[int, Any] = {}

    def made(task: int, prompt: list[int], tokens: int) -> tuple[list[int], Any]:
        if task not in merged:
            bare = AutoModelForCausalLM.from_pretrained(model)
            adapted = (versions[task] / "adapter").is_dir()
            merged[task] = (
                PeftModel.from_pretrained(bare, versions[task] / "adapter").merge_and_unload() if adapted else bare
            )
        found = merged[task].generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return found.sequences[0, len(prompt) :].tolist(), found.logits

    return made


def same(ours: list[int], theirs: list[int], logits: Any) -> bool:
    """Whether they are equal up to a token where the best two logits are near."""
    for place, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            best = logits[place][0].topk(2).values
            return float(best[0] - best[1]) < NEAR
    return len(ours) == len(theirs)


TEXTS = [f"{word} {number} " * (1 + number % 7) for number, word in enumerate(["fox", "日本", "dog", "🙂", "lazy"] * 5)]


def test_every_task_mixed_with_the_others_says_what_it_says_alone(rig: Rig, generate: Any) -> None:
    asked = [(task, rig.ask(task, text, temperature=0, max_tokens=12)) for text in TEXTS for task in range(4)]
    rig.run()
    for task, request in asked:
        assert same(rig.answer(request), *generate(task, request.prepared.asked.prompt, 12)), (task, request.inputs)
    assert rig.engine.counts.passes < sum(len(rig.answer(request)) for _, request in asked) / 2
    assert rig.runtime.memory.blocks.free == rig.runtime.memory.blocks.count


def test_adapters_change_answers(generate: Any) -> None:
    """Else the test above would prove little."""
    prompt = list(range(5, 30))
    answers = [generate(task, prompt, 12)[0] for task in (0, 2, 3)]
    assert len({tuple(answer) for answer in answers}) == 3


def test_weights_in_bfloat16_are_packed_where_there_is_amx(
    model: Path, versions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[bool, list[float]] = {}
    for has_amx in (False, True):
        monkeypatch.setattr(fast_linears, "cpu_has", lambda _, has_amx=has_amx: has_amx)
        rig = Rig(backbone(model, dtype="bfloat16"), versions)
        assert any(isinstance(each, PackedOneDnnLinear) for each in rig.runtime.model.modules()) == has_amx
        asked = [
            rig.ask(task, text, temperature=0, max_tokens=1, logprobs=0) for text in TEXTS[:2] for task in range(4)
        ]
        rig.run()
        told[has_amx] = [rig.parts[request][-1].value.cumulative_logprob for request in asked]  # type: ignore[union-attr]
    assert told[True] == pytest.approx(told[False], abs=0.1)


def test_preempted_sequences_end_as_they_would_have(model: Path, versions: list[Path], generate: Any) -> None:
    runtime = backbone(model, kv_cache_bytes=12 * 16 * 3 * 2 * 32 * 4)
    assert runtime.memory.blocks.count == 12
    rig = Rig(runtime, versions, sequences=8)
    asked = [(task, rig.ask(task, text, temperature=0, max_tokens=40)) for text in TEXTS[:6] for task in range(4)]
    rig.run()
    assert runtime.memory.preempted > 0
    for task, request in asked:
        assert same(rig.answer(request), *generate(task, request.prepared.asked.prompt, 40))
    assert runtime.memory.blocks.free == 12


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_all_blocks_are_free_at_the_end(small: Rig, data: st.DataObject) -> None:
    """Whatever is asked, cancelled and preempted meanwhile."""
    asked: list[Request] = []
    for _ in range(data.draw(st.integers(1, 6))):
        for _ in range(data.draw(st.integers(0, 5))):
            length, tokens = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
            task = data.draw(st.integers(0, 3))
            asked.append(
                small.ask(task, "x" * length, max_tokens=tokens, temperature=data.draw(st.sampled_from([0, 1])))
            )
        for _ in range(data.draw(st.integers(0, 8))):
            small.engine.step(wait=False)
        if asked and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(asked))
            small.parts[gone] = []
            if gone in gone.vfm.queue:
                small.engine.scheduler.discard(gone.vfm, [gone])
                small.engine._forget(gone)
    small.run()
    memory = small.runtime.memory
    assert memory.blocks.free == memory.blocks.count
    assert not memory.blocks_of


@pytest.fixture(scope="module")
def small(model: Path, versions: list[Path]) -> Rig:
    return Rig(backbone(model, kv_cache_bytes=8 * 16 * 3 * 2 * 32 * 4), versions, sequences=6)


def test_prompts_take_less_of_a_step_beside_one_who_asks_for_one_thing_at_a_time(rig: Rig, generate: Any) -> None:
    asked = [(0, rig.ask(0, TEXTS[6], temperature=0, max_tokens=12))]
    asked += [(3, rig.ask(3, text + TEXTS[6], temperature=0, max_tokens=12)) for text in TEXTS[:3]]
    most = 0
    while any(request.prepared.computed < len(request.prepared.asked.prompt) for _, request in asked):
        before = [request.prepared.computed for _, request in asked]
        assert rig.engine.step(wait=False)
        steps = [request.prepared.computed - then for (_, request), then in zip(asked, before, strict=True)]
        most = max(most, sum(steps[1:]))
    assert most == rig.runtime.chunk
    rig.run()
    for task, request in asked:
        assert same(rig.answer(request), *generate(task, request.prepared.asked.prompt, 12))


def test_parts_make_the_whole_and_end_at_stop_strings(rig: Rig) -> None:
    """At every boundary of tokens: characters of several bytes, and stop strings over several tokens."""
    whole = rig.ask(0, "日本語 🙂", temperature=0, max_tokens=60, ignore_eos=True)
    parts = rig.ask(0, "日本語 🙂", temperature=0, max_tokens=60, ignore_eos=True, stream=True)
    rig.run()
    text = rig.runtime.tokenizer.decode(rig.answer(whole), skip_special_tokens=True)
    assert rig.text(whole) == rig.text(parts) == text
    assert len(rig.parts[whole]) == 1 < len(rig.parts[parts])
    assert all(isinstance(part, Running) for part in rig.parts[parts][:-1])
    assert isinstance(rig.parts[parts][-1], Finished)
    for start in range(3, len(text) - 3, 5):
        stop = text[start : start + 3]
        stopped = rig.ask(0, "日本語 🙂", temperature=0, max_tokens=60, ignore_eos=True, stream=True, stop=stop)
        rig.run()
        assert rig.text(stopped) == text[: text.index(stop)]
        assert rig.parts[stopped][-1].value.finish_reason == "stop"  # type: ignore[union-attr]


def test_a_seed_makes_an_answer_again_whatever_else_runs(rig: Rig) -> None:
    first = rig.ask(0, "fox", seed=7, max_tokens=20)
    rig.run()
    others = [rig.ask(task, text, max_tokens=9) for task, text in enumerate(TEXTS[:4])]
    again, other = rig.ask(0, "fox", seed=7, max_tokens=20), rig.ask(0, "fox", seed=8, max_tokens=20)
    rig.run()
    assert rig.answer(first) == rig.answer(again) != rig.answer(other)
    assert all(rig.answer(each) for each in others)


def test_hardly_any_temperature_breaks_nobody_elses_pass(rig: Rig) -> None:
    """A pass that breaks is run again one by one, and a seed's next number drawn twice."""
    seeded = rig.ask(0, "fox", seed=7, max_tokens=12, ignore_eos=True)
    rig.run()
    again = rig.ask(0, "fox", seed=7, max_tokens=12, ignore_eos=True)
    for _ in range(4):
        rig.engine.step(wait=False)
    best, cold = (rig.ask(1, "dog", temperature=each, max_tokens=5, ignore_eos=True) for each in (0, 1e-40))
    rig.run()
    assert rig.answer(best) == rig.answer(cold)
    assert rig.answer(again) == rig.answer(seeded)
    assert rig.engine.counts.broken_passes == 0


@pytest.mark.parametrize("where", ["the text", "the log probabilities"])
def test_what_raises_for_one_request_changes_nobody_elses_answer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Those before it in the pass have drawn their tokens, and taken their texts out to be sent."""

    def ask(task: int) -> Request:
        return rig.ask(task, "fox", seed=7, max_tokens=12, ignore_eos=True, stream=True)

    def raising(tokens: object) -> str:
        raise RuntimeError("no such token")

    alone = ask(0)
    rig.run()
    first, bad, last = ask(0), rig.ask(1, "dog", max_tokens=5, logprobs=1), ask(0)
    if where == "the text":
        monkeypatch.setattr(bad.prepared.detokenizer, "decode", raising)
    else:
        monkeypatch.setattr(rig.runtime, "_spell", raising)
    rig.run()
    assert isinstance(rig.failed[bad], ExecutionFailed)
    assert str(rig.failed[bad]) == "choosing the next token of 'task1' raised RuntimeError: no such token"
    for request in (first, last):
        assert rig.answer(request) == rig.answer(alone)
        assert rig.text(request) == rig.text(alone)
    assert rig.engine.counts.broken_passes == 0
    assert rig.runtime.memory.blocks.free == rig.runtime.memory.blocks.count


def test_an_answer_ends_at_the_time_limit_with_what_it_has(rig: Rig) -> None:
    whole, parts, early = (
        rig.ask(0, "日本語 🙂", temperature=0, max_tokens=60, ignore_eos=True, stream=stream, stop="zzz")
        for stream in (False, True, False)
    )
    for _ in range(20):
        rig.engine.step(wait=False)
    unbegun = rig.ask(0, "fox " * 30, max_tokens=5)
    early.vfm.max_seconds, rig.now = 5.0, 6.0
    rig.engine.step(wait=False)
    for request in (whole, parts):
        assert rig.parts[request][-1].value.finish_reason == "length"  # type: ignore[union-attr]
        assert 5 < len(rig.answer(request)) < 60
        text = rig.runtime.tokenizer.decode(rig.answer(request), skip_special_tokens=True)
        assert rig.text(request) == text
    assert isinstance(rig.failed[unbegun], TimeLimit)
    assert not rig.engine.scheduler.queued
    assert rig.runtime.memory.blocks.free == rig.runtime.memory.blocks.count


def test_a_row_with_nan_ends_that_request_alone(model: Path, versions: list[Path], generate: Any) -> None:
    """Neither its neighbours in the pass, nor who has its blocks afterwards, nor whose context is padded."""
    runtime = backbone(model)
    rig = Rig(runtime, [versions[0], versions[0]], sequences=6)
    broken = runtime.load(versions[2])
    assert broken.adapter is not None
    for weights in broken.adapter.lora.values():
        weights.b.fill_(torch.nan)
    rig.engine.attach(rig.vfms[1], broken)
    bad = rig.ask(1, "fox " * 9, temperature=0, max_tokens=9)
    good = [rig.ask(0, text, temperature=0, max_tokens=12) for text in TEXTS[:5]]
    rig.run()
    assert isinstance(rig.failed[bad], NotFinite)
    again = [rig.ask(0, text, temperature=0, max_tokens=12) for text in TEXTS[:9]]
    rig.run()
    for request in [*good, *again]:
        assert same(rig.answer(request), *generate(0, request.prepared.asked.prompt, 12))
    assert runtime.memory.blocks.free == runtime.memory.blocks.count


# -- prefixes


PREFIX = "the quick brown fox jumps over the lazy dog " * 5
ENDS = ("fox", "日本語", "dog 1 2 3", "🙂")


def prefix_tokens(rig: Rig) -> list[int]:
    """Of each task: tokens that were found in memory."""
    return [rig.runtime._counts(vfm).prefix_tokens for vfm in rig.vfms]


def test_what_a_tasks_prompts_begin_with_is_computed_once(model: Path, versions: list[Path], generate: Any) -> None:
    computed = {}
    for keeps in (False, True):
        rig = Rig(backbone(model, prefix_cache=keeps), versions)
        for task in (0, 2):
            rig.ask(task, PREFIX, temperature=0, max_tokens=1)
        rig.run()
        before = [vfm.engine.tokens for vfm in rig.vfms]
        asked = [(task, rig.ask(task, PREFIX + end, temperature=0, max_tokens=12)) for end in ENDS for task in (0, 2)]
        rig.run()
        for task, request in asked:
            assert same(rig.answer(request), *generate(task, request.prepared.asked.prompt, 12))
        made = sum(len(rig.answer(request)) - 1 for _, request in asked)
        computed[keeps] = sum(vfm.engine.tokens for vfm in rig.vfms) - sum(before) - made
        assert (sum(prefix_tokens(rig)) > 0) == keeps
        assert rig.runtime.memory.blocks.free == rig.runtime.memory.blocks.count
    assert computed[False] == sum(len(request.prepared.asked.prompt) for _, request in asked)
    assert computed[True] < 0.3 * computed[False]


def test_what_finds_its_beginning_goes_first_with_the_same_answer(
    model: Path, versions: list[Path], generate: Any
) -> None:
    """Four texts in turn, of which memory keeps one or two."""
    found = {}
    for seconds in (0.0, 60.0):
        rig = Rig(backbone(model, kv_cache_bytes=1 << 17, locality_s=seconds), versions[:1], sequences=1)
        texts = [f"{number} {PREFIX}" for number in range(4)]
        asked = [rig.ask(0, text + end, temperature=0, max_tokens=4) for end in ENDS for text in texts]
        rig.run()
        for request in asked:
            assert same(rig.answer(request), *generate(0, request.prepared.asked.prompt, 4))
        found[seconds] = sum(prefix_tokens(rig))
        assert rig.runtime.memory.blocks.free == rig.runtime.memory.blocks.count
    assert found[60.0] > 2 * found[0.0]


def test_tasks_find_nothing_of_each_other_and_a_version_nothing_of_a_former(
    model: Path, versions: list[Path], generate: Any
) -> None:
    rig = Rig(backbone(model), [versions[0], versions[0], versions[2], versions[3]])
    for task in range(4):
        rig.ask(task, PREFIX, temperature=0, max_tokens=2)
        rig.run()
    assert prefix_tokens(rig) == [0, 0, 0, 0]
    rig.engine.attach(rig.vfms[2], rig.runtime.load(versions[3]))
    changed = rig.ask(2, PREFIX + "fox", temperature=0, max_tokens=12)
    rig.run()
    assert prefix_tokens(rig) == [0, 0, 0, 0]
    assert same(rig.answer(changed), *generate(3, changed.prepared.asked.prompt, 12))
    assert len(rig.runtime.memory.blocks._roots) == 4


def test_an_answer_is_a_prefix_too(rig: Rig) -> None:
    first = rig.ask(0, "fox", temperature=0, max_tokens=60, ignore_eos=True)
    rig.run()
    again = rig.ask(0, "fox" + rig.text(first), temperature=0, max_tokens=2)
    again.prepared.tokens[:] = again.prepared.asked.prompt[:] = [*first.prepared.tokens[:-1], 5]
    rig.run()
    assert prefix_tokens(rig)[0] == (len(first.prepared.tokens) - 1) // 16 * 16


def test_limits_of_a_task(model: Path, versions: list[Path], generate: Any) -> None:
    rig = Rig(backbone(model, kv_cache_bytes=24 * 16 * 3 * 2 * 32 * 4), versions, sequences=8)
    limited, shared, _, _ = rig.vfms
    limited.max_running, shared.max_kv_share = 2, 0.4
    asked = [(task, rig.ask(task, text, temperature=0, max_tokens=40)) for text in TEXTS[:6] for task in (0, 1, 2)]
    most = [0, 0]
    while rig.engine.step(wait=False):
        memory = rig.runtime.memory
        most = [max(most[0], memory.running[limited]), max(most[1], memory.held[shared])]
    assert most[0] == 2
    assert 5 < most[1] <= 9
    for task, request in asked[::3] + asked[2::3]:
        assert same(rig.answer(request), *generate(task, request.prepared.asked.prompt, 40))


# -- metrics


def test_metrics_of_a_task_and_of_the_memory(rig: Rig) -> None:
    sent = [rig.ask(0, "fox " * 30, temperature=0, max_tokens=10, ignore_eos=True) for _ in range(6)]
    vfm, runtime = rig.vfms[0], rig.runtime
    assert list(runtime.readings(vfm)) == []
    runtime.clock = lambda: rig.now

    def read(which: Vfm | None) -> dict[str, float]:
        found = {}
        for metric, value, labels in runtime.readings(which):
            assert metric in runtime.metrics
            found[metric + "".join(f"[{label}]" for _, label in labels)] = value
        return found

    while rig.engine.step(wait=False):
        rig.now += 0.02
        if rig.engine.counts.batches == 8:
            told, memory = read(vfm), read(None)
            assert told["fmplex_sequences_running"] + told["fmplex_sequences_waiting"] == 6
            assert told["fmplex_kv_blocks"] > 0
            assert memory["fmplex_backbone_kv_blocks_free"] < memory["fmplex_backbone_kv_blocks"]
    told, memory = read(vfm), read(None)
    assert told["fmplex_prompt_tokens_total"] == sum(len(request.prepared.asked.prompt) for request in sent)
    assert told["fmplex_generated_tokens_total"] == 60
    assert told["fmplex_prefix_tokens_total"] > 0
    names = ("running", "waiting")
    assert [told[f"fmplex_sequences_{name}"] for name in names] + [told["fmplex_kv_blocks"]] == [0, 0, 0]
    first, following = "fmplex_time_to_first_token_seconds", "fmplex_time_per_output_token_seconds"
    assert (told[f"{first}_count"], told[f"{following}_count"]) == (6, 54)
    assert told[f"{first}_bucket[0.01]"] == 0 < told[f"{first}_bucket[0.25]"] <= told[f"{first}_bucket[+Inf]"] == 6
    assert told[f"{following}_sum"] == pytest.approx(54 * 0.02)
    assert told[f"{following}_bucket[0.01]"] == 0
    assert memory["fmplex_backbone_kv_blocks_free"] == memory["fmplex_backbone_kv_blocks"]
    assert memory["fmplex_backbone_kv_blocks_prefix"] > 0


def test_log_probabilities(rig: Rig, generate: Any) -> None:
    request = rig.ask(0, "lazy dog", temperature=0, max_tokens=5, logprobs=2, ignore_eos=True)
    rig.run()
    told = rig.parts[request][-1].value.logprobs  # type: ignore[union-attr]
    _, logits = generate(0, request.prepared.asked.prompt, 5)
    assert len(told) == 5
    for token, each, own in zip(rig.answer(request), told, logits, strict=False):
        expected = own[0].log_softmax(-1)
        assert each[str(token)]["rank"] == 1
        assert each[str(token)]["logprob"] == pytest.approx(float(expected[token]), abs=1e-3)
        assert {int(key) for key in each} == set(expected.topk(2).indices.tolist())


def test_a_token_is_told_before_the_best_ones_and_their_sum(rig: Rig) -> None:
    drawn = rig.ask(0, "fox", seed=3, temperature=5, max_tokens=12, logprobs=4, ignore_eos=True, stream=True)
    summed = rig.ask(0, "fox", seed=3, temperature=5, max_tokens=12, ignore_eos=True, return_cumulative_logprob=True)
    plain = rig.ask(0, "fox", max_tokens=2)
    rig.run()
    told = [each for part in rig.parts[drawn] for each in part.value.logprobs]  # type: ignore[union-attr]
    assert [int(next(iter(each))) for each in told] == rig.answer(drawn)
    assert any(next(iter(each.values()))["rank"] > 1 for each in told), "a hot draw takes others than the best"
    total = sum(next(iter(each.values()))["logprob"] for each in told)
    (whole,), last = rig.parts[summed], rig.parts[drawn][-1]
    assert whole.value.cumulative_logprob == last.value.cumulative_logprob == pytest.approx(total)  # type: ignore[union-attr]
    assert whole.value.logprobs is None  # type: ignore[union-attr]
    tensors = [rig.runtime.decode(each, rig.parts[each][-1].value) for each in (summed, plain)]  # type: ignore[union-attr]
    assert [float(each["cumulative_logprob"].item()) for each in tensors] == [pytest.approx(total, rel=1e-5), 0]


CHAT = [
    {"role": "user", "content": "fox"},
    {"role": "assistant", "content": "dog"},
    {"role": "user", "content": "日本"},
]


def shown(rig: Rig, task: int, messages: Any) -> str:
    """The prompt of a conversation, as text."""
    prompt = rig.ask(task, "", messages=messages, max_tokens=1).prepared.asked.prompt
    rig.run()
    return str(rig.runtime.tokenizer.decode(prompt))


def test_a_conversation_is_shown_in_the_chat_template_behind_the_tasks_system_prompt(rig: Rig) -> None:
    text = "<|im_start|>system\nbe brief{}<|im_end|>\n<|im_start|>user\nfox<|im_end|>\n"
    rest = "<|im_start|>assistant\ndog<|im_end|>\n<|im_start|>user\n日本<|im_end|>\n<|im_start|>assistant\n"
    assert shown(rig, 1, CHAT) == text.format("") + rest
    for role in ("system", "developer"):
        assert shown(rig, 1, [{"role": role, "content": "and kind"}, *CHAT]) == text.format("\n\nand kind") + rest
    one = rig.ask(1, "fox", max_tokens=1)
    assert shown(rig, 1, CHAT[:1]) == rig.runtime.tokenizer.decode(one.prepared.asked.prompt)


def test_every_users_turn_is_shown_as_the_tasks_texts_are(rig: Rig, tmp_path: Path) -> None:
    document = {"family": "causal-lm", "encoder": {"template": "Say: {text}!"}, "decoder": {}}
    (tmp_path / "task.json").write_text(json.dumps(document))
    extensions = rig.runtime.load(tmp_path)
    tokens = extensions.reader.conversation(CHAT)
    said = rig.runtime.tokenizer.decode(tokens)
    assert said.count("Say: fox!") == said.count("Say: 日本!") == 1
    assert "Say: dog" not in said


@pytest.mark.parametrize(
    ("task", "text", "messages", "says"),
    [
        (1, "", "[{", "messages is not JSON"),
        (1, "", [], "messages is to be a JSON list"),
        (1, "", {"role": "user"}, "messages is to be a JSON list"),
        (1, "", ["fox"], "messages[0] is to be an object"),
        (1, "", [*CHAT, {"role": "tool", "content": "4"}], "messages[3].role is 'tool': say system, developer, user"),
        (
            1,
            "",
            [{"role": "user", "content": [{"type": "text"}]}],
            "it is to be a text",
        ),
        (1, "", [{"role": "user", "content": "a", "tool_calls": []}], "messages[0]: there is no field 'tool_calls'"),
        (1, "", [CHAT[0]] * 5000, "5000 turns, more than 4096"),
        (1, "", [{"role": "user", "content": "日" * 600}], "messages and the task's template are"),
        (1, "fox", CHAT, "messages stands in the place of text_input"),
        (0, "", CHAT, "messages: 'task0' has no chat template, or does not use it"),
    ],
)
def test_conversations_that_cannot_be_read(rig: Rig, task: int, text: str, messages: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rig.ask(task, text, messages=messages)
    assert says in str(caught.value)


def test_a_conversation_is_not_put_before_its_answer_and_may_be_refused_by_the_template(
    rig: Rig, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="exclude_input_in_output"):
        rig.ask(1, "", messages=CHAT, exclude_input_in_output=False)
    template = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}"
    document = {"family": "causal-lm", "decoder": {"chat_template": template}}
    (tmp_path / "task.json").write_text(json.dumps(document))
    with pytest.raises(InvalidRequest, match="messages: the chat template does not take them: one turn only"):
        rig.runtime.load(tmp_path).reader.conversation(CHAT)


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"temprature": 0}, "sampling_parameters: there is no field 'temprature'"),
        ({"temperature": "hot"}, "sampling_parameters.temperature"),
        ({"temperature": -1}, "sampling_parameters.temperature"),
        ({"top_p": 0}, "sampling_parameters.top_p"),
        ({"max_tokens": 5000}, "sampling_parameters.max_tokens: 5000"),
        ({"stop_token_ids": [9999]}, "sampling_parameters.stop_token_ids: there is no token 9999"),
        ({"logit_bias": {"9999": 1}}, "sampling_parameters.logit_bias: there is no token 9999"),
        ({"logit_bias": {"5": 1000}}, "sampling_parameters.logit_bias: input should be less than or equal to 100"),
        ({"stop": ""}, "sampling_parameters.stop"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens: 9"),
    ],
)
def test_wishes_that_cannot_be_met(rig: Rig, wishes: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rig.ask(0, "fox", **wishes)
    assert says in str(caught.value)


def test_a_token_that_the_tokenizer_alone_has(model: Path, versions: list[Path], tmp_path: Path) -> None:
    """Some fine-tuned models come with a tokenizer that has more than their embedding: it would end others' pass."""
    runtime = backbone(model)
    runtime.tokenizer.add_tokens(["<tool>"])
    rig = Rig(runtime, versions)
    for task, wishes in ((0, {}), (1, {"messages": [{"role": "user", "content": "a <tool> b"}]})):
        with pytest.raises(InvalidRequest, match="holds '<tool>', a token that the model does not have: leave it out"):
            rig.ask(task, "" if wishes else "a <tool> b", **wishes)
    document = {"family": "causal-lm", "decoder": {"system": "use <tool>"}}
    (tmp_path / "task.json").write_text(json.dumps(document))
    with pytest.raises(TaskRefused, match=r"decoder.system: .*'<tool>', a token that the model does not have"):
        runtime.load(tmp_path)


def test_numbers_may_come_as_text_as_vllms_clients_send_them(rig: Rig) -> None:
    request = rig.ask(0, "fox", temperature="0", max_tokens="3", ignore_eos="true")
    rig.run()
    assert len(rig.answer(request)) == 3


def test_a_prompt_that_can_never_fit(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match="takes 512 of prompt and answer together"):
        rig.ask(0, "日" * 600)


@pytest.mark.parametrize("kind", ["qwen", "gemma"])
def test_other_architectures(kind: str, versions: list[Path], tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    config = (
        Qwen3Config(num_hidden_layers=2, **sizes)
        if kind == "qwen"
        else Gemma2Config(num_hidden_layers=2, sliding_window=8, **sizes)
    )
    directory = save_tiny(tmp_path / kind, config=config)
    rig = Rig(backbone(directory), versions[:1])
    asked = [rig.ask(0, text, temperature=0, max_tokens=10, ignore_eos=True) for text in TEXTS[:5]]
    rig.run()
    own = AutoModelForCausalLM.from_pretrained(directory)
    for request in asked:
        prompt = request.prepared.asked.prompt
        found = own.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=10,
            min_new_tokens=10,
            do_sample=False,
        )
        count = next((n for n, token in enumerate(rig.answer(request)) if token == own.config.eos_token_id), 10)
        assert rig.answer(request)[:count] == found[0, len(prompt) :].tolist()[:count]


def test_an_architecture_without_attention_of_the_registry_is_refused(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "mamba", config=MambaConfig(hidden_size=32, num_hidden_layers=2))
    with pytest.raises(BackboneRefused, match=r"MambaForCausalLM \(mamba\) cannot share passes"):
        backbone(directory)


def test_too_little_memory_is_refused(model: Path) -> None:
    with pytest.raises(BackboneRefused, match=r"kv_cache_bytes.* there is room for 16 tokens"):
        backbone(model, kv_cache_bytes=16 * TOKEN_BYTES)


def test_what_is_too_short_by_max_length_is_not_said_to_lack_memory(model: Path) -> None:
    with pytest.raises(BackboneRefused, match=r"parameters.max_length: it is 32. Say 64 or more"):
        backbone(model, max_length=32)
    with pytest.raises(BackboneRefused, match=r"parameters.kv_cache_bytes: there is room for 48 tokens"):
        backbone(model, max_length=32, kv_cache_bytes=48 * TOKEN_BYTES)


@pytest.mark.parametrize("blocks", [4, 5, 8, 9, 91])
def test_a_profile_is_measured_in_the_blocks_that_there_are(model: Path, blocks: int) -> None:
    """Whatever their number, from the least that a backbone is loaded with on; the one that pads contexts is left."""
    runtime = backbone(model, kv_cache_bytes=blocks * 16 * TOKEN_BYTES)
    shapes = [shape for shape, _ in runtime.profile()]
    assert len(shapes) == 5
    assert all(0 < shape.longest <= runtime.max_length for shape in shapes)
    assert all(not keys[:16].any() for keys, _ in runtime.cache.layers.values())


def test_a_chat_without_a_template_is_refused(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(json.dumps({"family": "causal-lm", "decoder": {"chat_template": "{{ oops("}}))
    with pytest.raises(TaskRefused, match="chat_template"):
        rig.runtime.load(tmp_path)


# -- adapters beyond a budget


def test_adapters_come_and_go_and_answers_stay_the_same(model: Path, tmp_path: Path) -> None:
    """Eight tasks where two adapters fit: all are answered, as with room for all."""
    versions = []
    for number in range(8):
        version = tmp_path / str(number)
        version.mkdir()
        save_adapter(
            version / "adapter",
            AutoModelForCausalLM.from_pretrained(model),
            lora(4, "q_proj", "v_proj"),
            seed=number,
            scale=0.3,
        )
        document = {"family": "causal-lm", "decoder": {"chat": False}, "adapter": {"kind": "peft"}}
        (version / "task.json").write_text(json.dumps(document))
        versions.append(version)
    free = Rig(backbone(model), versions)
    size = sum(pair.a.nbytes + pair.b.nbytes for pair in free.runtime.load(versions[0]).adapter.lora.values())  # type: ignore[union-attr]
    tight = Rig(backbone(model, adapter_memory=2 * size), versions)
    asked = []
    for rig in (free, tight):
        requests = [
            rig.ask(task, f"text {turn}", temperature=0, max_tokens=5 + 3 * turn, ignore_eos=True)
            for turn in range(3)
            for task in range(8)
        ]
        while any(not rig.parts[request] or isinstance(rig.parts[request][-1], Running) for request in requests):
            rig.engine.step(wait=bool(rig.engine.scheduler.queued))
            assert rig.runtime.residency.used <= 2 * size
        asked.append([rig.answer(request) for request in requests])
    assert asked[0] == asked[1]
    assert len({tuple(answer[:5]) for answer in asked[0]}) > 8
    assert tight.runtime.residency.loads >= 6
    told = {each.metric: each.value for each in tight.runtime.readings(None)}
    assert told["fmplex_backbone_adapters_resident"] == 2
    for vfm in tight.vfms:
        tight.engine.retire(vfm)
    assert tight.runtime.residency.used == tight.runtime.bank.attached == 0


def test_an_adapter_that_cannot_be_brought_back_breaks_nobody_elses_batch(
    model: Path, versions: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = backbone(model)
    size = max(
        sum(pair.a.nbytes + pair.b.nbytes for pair in free.load(version).adapter.lora.values())  # type: ignore[union-attr]
        for version in versions[2:]
    )
    rig = Rig(backbone(model, adapter_memory=size), versions)

    read, gone = InFile.read, rig.vfms[3].extensions.adapter.kept

    def broken(self: InFile, device: torch.device) -> Any:
        if self is gone:
            raise OSError("the disk is gone")
        return read(self, device)

    monkeypatch.setattr(InFile, "read", broken)
    lost, *others = [rig.ask(task, "text", temperature=0, max_tokens=8, ignore_eos=True) for task in (3, 0, 2, 0)]
    while len(rig.failed) + sum(_ended(rig, each) for each in others) < 4:
        rig.engine.step(wait=bool(rig.engine.scheduler.queued))
    late = rig.ask(3, "again", temperature=0, max_tokens=8)
    rig.run()
    assert [*rig.failed] == [lost, late]
    assert all("'task3' could not be brought back" in str(error) for error in rig.failed.values())
    assert rig.engine.counts.broken_passes == 0
    assert rig.runtime.memory.blocks.free == rig.runtime.memory.blocks.count
    assert "the disk is gone" in caplog.text


def _ended(rig: Rig, request: Request) -> bool:
    return bool(rig.parts[request]) and isinstance(rig.parts[request][-1], Finished)
