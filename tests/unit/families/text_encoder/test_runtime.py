"""The text encoder over tiny models: whatever is in a batch, each request gets what it would get alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch
from backend_fixtures import text_task, write_version
from model_fixtures import (
    TINY,
    WORDS,
    close_enough,
    device_fixture,
    save_adapter,
    save_tiny,
    text_runtime,
    tiny_tokenizer,
    write_head,
)
from peft import IA3Config, LoraConfig, PeftModel
from runtime_requests import ask, run, serve, unanswered
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from fmplex_backend.errors import InvalidRequest, TaskRefused
from fmplex_backend.families.payload import row_key
from fmplex_backend.families.text_encoder.encoders import ProjectionLayers
from fmplex_backend.families.text_encoder.runtime import TextEncoderRuntime
from fmplex_backend.types import Failed, Pass, PassShape, Request, Running, Sharing, Work

device = device_fixture()
TEXTS = [
    "w1",
    "w2 w3 w4 w5 w6 w7 w8 w9 w10",
    "w11 w12",
    " ".join(f"w{n}" for n in range(13, 53)),
    "w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1",
    "",
    "unknown words",
]
LONG = " ".join(f"w{n}" for n in range(1, 41))  # as long as TEXTS[3]
EMBEDDING = {"kind": "embedding", "pooling": "mean", "normalize": False}


def per_token(shape: PassShape) -> float:
    """Passes cost nothing, padding does: as many passes as there are lengths."""
    return 1e-3 * shape.tokens


def per_pass(shape: PassShape) -> float:
    """One pass, whatever the padding."""
    return 1.0


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def runtime(bert: Path, device: str) -> TextEncoderRuntime:
    """For tests that attach nothing."""
    return text_runtime(bert)


def version(directory: Path, decoder: dict[str, Any], adapter: Any = None, kind: str = "bert", **rest: Any) -> Path:
    """A version directory; `adapter` is a PEFT config."""
    if adapter is not None:
        rest["adapter"] = {"kind": "peft"}
        save_adapter(directory / "1" / "adapter", adapter, kind)
    return write_version(directory.parent, directory.name, 1, text_task(decoder, **rest))


def same(have: dict[str, Any], want: dict[str, Any]) -> None:
    assert have.keys() == want.keys()
    for name, value in want.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(have[name], value, **close_enough())
        else:
            assert np.array_equal(have[name], value)


# -- a batch is its requests


def tasks(root: Path, kind: str) -> Iterator[Path]:
    """Adapters of all kinds, poolings and decoders of all kinds."""
    targets = {"distilbert": ["q_lin", "lin2"], "mpnet": ["attn.q"], "modernbert": ["Wqkv"]}.get(kind, ["query"])
    lora = partial(LoraConfig, target_modules=targets)
    yield version(root / "bare", EMBEDDING, kind=kind)
    yield version(root / "small", {**EMBEDDING, "pooling": "cls"}, lora(r=2), kind)
    yield version(root / "large", {**EMBEDDING, "pooling": "max"}, lora(r=16, use_rslora=True), kind)
    yield version(root / "dora", EMBEDDING, lora(r=4, use_dora=True), kind)
    yield version(root / "ia3", EMBEDDING, IA3Config(target_modules=targets, feedforward_modules=[]), kind)
    for name, decoder in {"tokens": "token-classification", "labels": "classification"}.items():
        path = version(root / name, {"kind": decoder, "labels": ["a", "b", "c"]}, lora(r=3), kind)
        write_head(path / "decoder.safetensors", 3)
        yield path


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("predict", [per_token, per_pass])
def test_a_mixed_batch_is_each_request_alone(tmp_path: Path, kind: str, predict: Any) -> None:
    runtime = text_runtime(save_tiny(tmp_path / "model", kind), predict=predict)
    vfms = [serve(runtime, path) for path in tasks(tmp_path, kind)]
    texts = [[TEXTS[n % len(TEXTS)], *TEXTS[: n % 3]] for n in range(2 * len(vfms))]
    batch = [ask(runtime, vfms[n % len(vfms)], *rows) for n, rows in enumerate(texts)]
    together, passes = run(runtime, batch)
    assert (len(passes) > 1) is (predict is per_token)
    for request, have in zip(batch, together, strict=True):
        alone, _ = run(runtime, [request])
        same(have, alone[0])


@pytest.mark.parametrize("kind", TINY)
def test_alone_it_is_transformers_and_peft(tmp_path: Path, kind: str) -> None:
    directory = save_tiny(tmp_path / "model", kind)
    targets = {"distilbert": ["q_lin"], "mpnet": ["attn.q"], "modernbert": ["Wqkv"]}.get(kind, ["query"])
    path = version(tmp_path / "task", EMBEDDING, LoraConfig(r=4, target_modules=targets), kind)
    runtime = text_runtime(directory)
    tensors, _ = run(runtime, [ask(runtime, serve(runtime, path), TEXTS[1], TEXTS[3], TEXTS[0])])
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(directory), str(path / "adapter")).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer([TEXTS[1], TEXTS[3], TEXTS[0]], padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    np.testing.assert_allclose(tensors[0]["EMBEDDING"], (states * mask).sum(1) / mask.sum(1), **close_enough())


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_poolings_leave_the_padding_out(bert: Path, tmp_path: Path, pooling: str) -> None:
    runtime = text_runtime(bert, predict=per_pass)
    vfm = serve(runtime, version(tmp_path / "task", {**EMBEDDING, "pooling": pooling}))
    tensors, _ = run(runtime, [ask(runtime, vfm, *TEXTS)])
    tokenizer = tiny_tokenizer()
    for text, have in zip(TEXTS, tensors[0]["EMBEDDING"], strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]], device=runtime.device)
        with torch.inference_mode():
            states = runtime.model(input_ids=ids).last_hidden_state[0].cpu()
        want = {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[pooling]
        np.testing.assert_allclose(have, want.numpy(), **close_enough())


def test_passes_by_length_answer_the_short_first(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert, predict=per_token)
    vfm = serve(runtime, version(tmp_path / "task", EMBEDDING))
    texts = ([LONG], [TEXTS[0]], [TEXTS[2], TEXTS[3]])
    long, short, both = (ask(runtime, vfm, *each) for each in texts)
    _, passes = run(runtime, [long, short, both])
    assert [[request for request, _ in done.outcomes] for done in passes] == [[short], [long, both]]
    assert [done.shape for done in passes] == [PassShape(2 * 4, 4, 0), PassShape(2 * 42, 42, 0)]
    shares = [{id(request): work for request, work in done.portions} for done in passes]
    assert shares[0][id(both)] + shares[1][id(both)] == both.work
    assert (shares[0][id(short)], shares[1][id(long)]) == (short.work, long.work)


def test_adapters_take_turns_in_memory_and_vectors_stay_the_same(bert: Path, tmp_path: Path) -> None:
    """Three tasks where one adapter fits."""
    loras = [LoraConfig(r=2, lora_alpha=alpha, target_modules=["query"]) for alpha in (20, 40, 80)]
    paths = [version(tmp_path / str(n), EMBEDDING, lora) for n, lora in enumerate(loras)]
    free = text_runtime(bert)
    wanted, _ = run(free, [ask(free, serve(free, path), LONG) for path in paths])
    assert all(np.abs(wanted[n]["EMBEDDING"] - wanted[n - 1]["EMBEDDING"]).max() > 1e-3 for n in range(3))
    pairs = free.load(paths[0]).adapter.lora.values()  # type: ignore[union-attr]
    tight = text_runtime(bert, adapter_memory=sum(pair.a.nbytes + pair.b.nbytes for pair in pairs))
    posted: Queue[Callable[[], None]] = Queue()
    tight.post = posted.put
    vfms = [serve(tight, path) for path in paths]
    (done,) = tight.run([ask(tight, vfms[1], LONG)])
    ((_, outcome),) = done.outcomes
    assert isinstance(outcome, Failed), "it is not the bare backbone's"
    for turn in (0, 1, 2, 0):
        request = ask(tight, vfms[turn], LONG)
        vfms[turn].queue.append(request)
        while not tight.has_room(request):
            posted.get(timeout=30)()
        vfms[turn].queue.clear()
        (tensors,), _ = run(tight, [request])
        tight.forget(request)
        same(tensors, wanted[turn])
    assert tight.bank.attached == 1
    assert tight.residency.loads == 3


def test_a_pass_says_how_many_adapters_took_part(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert, predict=per_pass)
    paths = [
        version(tmp_path / str(n), EMBEDDING, LoraConfig(r=2, target_modules=["query"]) if n else None)
        for n in range(3)
    ]
    batch = [ask(runtime, serve(runtime, path), "w1") for path in paths]
    _, passes = run(runtime, [*batch, ask(runtime, batch[2].vfm, "w2")])
    assert [done.shape.adapter_groups for done in passes if done.shape] == [2]


def test_running_a_request_again_is_running_it_once(bert: Path, tmp_path: Path) -> None:
    """The engine does so after a pass that broke off."""
    runtime = text_runtime(bert, predict=per_token)
    request = ask(runtime, serve(runtime, version(tmp_path / "task", EMBEDDING)), *TEXTS)
    next(iter(runtime.run([request])))
    tensors, _ = run(runtime, [request])
    again, _ = run(runtime, [request])
    same(tensors[0], again[0])


# -- rows that requests share


def alone(runtime: TextEncoderRuntime, requests: Sequence[Request]) -> list[dict[str, Any]]:
    return [run(runtime, [request])[0][0] for request in requests]


def exactly(have: dict[str, Any], want: dict[str, Any]) -> None:
    """Up to what rounding makes of another number of rows in a pass."""
    assert have.keys() == want.keys()
    for name, value in want.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(have[name], value, rtol=1e-6, atol=1e-6)
        else:
            assert np.array_equal(have[name], value)


@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("predict", [per_token, per_pass])
def test_each_request_gets_its_own_answer_of_rows_that_run_once(tmp_path: Path, kind: str, predict: Any) -> None:
    """With no adapter, every pooling and decoder reads the same rows; with LoRA, DoRA or IA3, requests of one task."""
    runtime = text_runtime(save_tiny(tmp_path / "model", kind), predict=predict)
    vfms = [serve(runtime, path) for path in tasks(tmp_path, kind)]
    for name, pooling in (("max", "max"), ("cls", "cls")):
        vfms.append(serve(runtime, version(tmp_path / name, {**EMBEDDING, "pooling": pooling}, kind=kind)))
    head = version(tmp_path / "words", {"kind": "token-classification", "labels": ["a", "b"]}, kind=kind)
    write_head(head / "decoder.safetensors", 2)
    vfms.append(serve(runtime, head))
    batch = [ask(runtime, vfm, *TEXTS[:4]) for vfm in vfms] + [ask(runtime, vfm, TEXTS[3], TEXTS[0]) for vfm in vfms]
    together, passes = run(runtime, batch)
    adapters = {id(vfm.extensions.adapter) for vfm in vfms}
    assert sum(done.sharing.saved for done in passes) == 6 * len(vfms) - 4 * len(adapters)
    for have, want in zip(together, alone(runtime, batch), strict=True):
        same(have, want)  # products that several adapters share add up in another order


def shared(runtime: TextEncoderRuntime, *requests: Request) -> int:
    """How many rows did not run; the answers are those that each gets alone."""
    together, passes = run(runtime, requests)
    for have, want in zip(together, alone(runtime, requests), strict=True):
        exactly(have, want)
    return sum(done.sharing.saved for done in passes)


def test_equal_tokens_are_equal_rows(bert: Path, tmp_path: Path) -> None:
    """Whether they come from a prefix, a cut-off, a window or one text twice."""
    runtime = text_runtime(bert, predict=per_pass)
    encoders = {
        "plain": {},
        "prefixed": {"prefix": "w9 w8 "},
        "short": {"max_length": 4},
        "windows": {"max_length": 4, "windows": 3},
    }
    plain, prefixed, short, windows = (
        serve(runtime, version(tmp_path / name, EMBEDDING, encoder=encoder)) for name, encoder in encoders.items()
    )
    assert shared(runtime, ask(runtime, plain, "w9 w8 w1"), ask(runtime, prefixed, "w1")) == 1
    assert shared(runtime, ask(runtime, plain, "w1"), ask(runtime, prefixed, "w1")) == 0
    assert shared(runtime, ask(runtime, plain, "w1 w2"), ask(runtime, short, "w1 w2 w3 w4")) == 1
    assert shared(runtime, ask(runtime, plain, "w3 w4", "w5"), ask(runtime, windows, "w1 w2 w3 w4 w5 w6 w7")) == 1
    assert shared(runtime, ask(runtime, plain, "w1", "w2", "w1", "w1")) == 2
    assert shared(runtime, ask(runtime, windows, "w1 w2 w1 w2 w1 w2")) == 2


def test_an_adapter_is_known_by_its_identity(bert: Path, tmp_path: Path) -> None:
    """Two tasks with equal files have two adapters, and so have two versions of one task."""
    runtime = text_runtime(bert, predict=per_pass)
    lora = LoraConfig(r=2, target_modules=["query"])
    one, two = (serve(runtime, version(tmp_path / name, EMBEDDING, lora)) for name in ("one", "two"))
    assert shared(runtime, *(ask(runtime, vfm, "w1") for vfm in (one, two, one, one))) == 2


def test_equal_vectors_are_equal_rows(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert, predict=per_pass)
    encoder = {"kind": "projection", "features": 3, "tokens": 2, "hidden": []}
    path = version(tmp_path / "task", EMBEDDING, encoder=encoder)
    layers = ProjectionLayers(3, 2, [], "relu", runtime.width)
    save_file(layers.state_dict(), path / "encoder.safetensors")
    vfm, bare = serve(runtime, path), serve(runtime, version(tmp_path / "bare", EMBEDDING))

    def numbers(*rows: Sequence[float]) -> Request:
        request = Request(vfm, {"FEATURES": np.array(rows, dtype=np.float32)}, (), 0.0, unanswered)
        request.extensions = vfm.extensions
        runtime.prepare(request)
        return request

    assert shared(runtime, numbers([1, 2, 3]), numbers([1, 2, 3]), numbers([1, 2, 4], [1, 2, 3])) == 2
    placeholders = ask(runtime, bare, "")
    placeholders.prepared.rows[0].ids[:] = [runtime.placeholder] * 2
    placeholders.prepared.keys[0] = row_key(placeholders.prepared.rows[0], None)
    assert shared(runtime, numbers([1, 2, 3]), placeholders) == 0, "the same ids, but no vectors"


def test_what_is_shared_is_told_and_paid_equally(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert, predict=per_pass)
    vfms = [serve(runtime, version(tmp_path / str(n), EMBEDDING)) for n in range(3)]
    both, one, other = (
        ask(runtime, vfm, *texts) for vfm, texts in zip(vfms, (["w1", "w2"], ["w1"], ["w3"]), strict=True)
    )
    _, (done,) = run(runtime, [both, one, other])
    assert dict(done.portions) == {both: Work(2, 4.5, 13.5), one: Work(1, 1.5, 4.5), other: Work(1, 3, 9)}
    assert (done.shape, done.sharing) == (PassShape(9, 3, 0), Sharing({both: 1, one: 1}, 1))
    assert both.rows.keys() > one.rows.keys()
    assert both.rows.keys().isdisjoint(other.rows)


def test_sharing_can_be_turned_off(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert, predict=per_pass, share_rows=False)
    vfm = serve(runtime, version(tmp_path / "task", EMBEDDING))
    assert shared(runtime, *(ask(runtime, vfm, "w1", "w1") for _ in range(2))) == 0


def test_a_broken_pass_leaves_nothing_of_others_rows(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine then runs one request after the other."""
    runtime = text_runtime(bert, predict=per_token)
    vfms = [serve(runtime, version(tmp_path / str(n), EMBEDDING)) for n in range(3)]
    batch = [ask(runtime, vfm, "w1", TEXTS[3], TEXTS[1]) for vfm in vfms]
    want = alone(runtime, batch)
    passes = runtime.run(batch)
    next(passes)
    with monkeypatch.context() as broken:
        broken.setattr(runtime.forward, "pooled", raising)
        with pytest.raises(RuntimeError, match="broken"):
            next(passes)
    for have, expected in zip(alone(runtime, batch), want, strict=True):
        exactly(have, expected)


def raising(rows: Any, poolings: Any) -> None:
    raise RuntimeError("broken")


# -- portions


def steps(runtime: TextEncoderRuntime, batch: Sequence[Request]) -> list[list[Pass]]:
    """The passes of each step, until all requests are finished."""
    taken: list[list[Pass]] = []
    left = list(batch)
    while left:
        taken.append(list(runtime.run(left)))
        outcomes = {id(request): outcome for done in taken[-1] for request, outcome in done.outcomes}
        for request in left:
            outcome = outcomes[id(request)]
            if isinstance(outcome, Running):
                request.work = outcome.next_work
        left = [request for request in left if isinstance(outcomes[id(request)], Running)]
    return taken


@pytest.mark.parametrize("kind", ["embedding", "token-classification"])
def test_a_request_over_the_token_budget_runs_in_portions(bert: Path, tmp_path: Path, kind: str) -> None:
    """And is answered as if it had run whole."""
    decoder = {**EMBEDDING, "pooling": "max"} if kind == "embedding" else {"kind": kind, "labels": ["a", "b"]}
    path = version(tmp_path / "task", decoder, LoraConfig(r=2, target_modules=["query"]))
    if kind != "embedding":
        write_head(path / "decoder.safetensors", 2)
    texts = [f"{TEXTS[n % 5]} w{n}" for n in range(20)]  # all different: none is shared
    small, large = text_runtime(bert, max_batch_tokens=100), text_runtime(bert)
    request = ask(small, serve(small, path), *texts)
    other = ask(small, request.vfm, "w1")
    assert (request.work.tokens <= 50, request.items) == (True, 20)
    taken = steps(small, [request, other])
    assert [request for request, _ in taken[0][-1].outcomes].count(other) == 1
    assert len(taken) > 4
    parts = [[work for done in passes for owner, work in done.portions if owner is request] for passes in taken]
    asked = [sum(work.tokens for work in each) for each in parts]
    assert max(asked) <= 50
    whole = ask(large, serve(large, path), *texts)
    assert sum(asked) == whole.work.tokens
    want, _ = run(large, [whole])
    same(dict(small.decode(request, request.prepared.results)), want[0])


def test_a_broken_portion_runs_again(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert, max_batch_tokens=60, predict=per_token)
    vfm = serve(runtime, version(tmp_path / "task", EMBEDDING))
    texts = [TEXTS[n % 5] for n in range(12)]
    plain, broken = ask(runtime, vfm, *texts), ask(runtime, vfm, *texts)
    steps(runtime, [plain])
    list(runtime.run([broken]))
    next(runtime.run([broken]))  # of the second portion the first pass alone
    steps(runtime, [broken])
    same(dict(runtime.decode(broken, broken.prepared.results)), dict(runtime.decode(plain, plain.prepared.results)))


def test_windows_are_rows_of_portions(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert, max_batch_tokens=256, max_items=8)
    encoder = {"windows": 64, "max_length": 8}
    vfm = serve(runtime, version(tmp_path / "task", EMBEDDING, encoder=encoder))
    request = ask(runtime, vfm, " ".join(["w1"] * 600), "w2")
    assert request.items == 65
    taken = steps(runtime, [request])
    rows = [sum(work.items for done in passes for _, work in done.portions) for passes in taken]
    assert (max(rows), sum(rows)) == (4, 65)


def test_what_a_request_keeps_is_counted(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert)
    short, long = (
        ask(runtime, serve(runtime, version(tmp_path / "task", EMBEDDING)), *["w1 w2"] * count) for count in (1, 20)
    )
    assert 0 < 19 * short.prepared_bytes < long.prepared_bytes


# -- preparing


def test_work_counts_rows_tokens_and_area(runtime: TextEncoderRuntime, tmp_path: Path) -> None:
    request = ask(runtime, serve(runtime, version(tmp_path / "task", EMBEDDING)), "w1", "w1 w2 w3")
    assert request.work == (2, 3 + 5, 9 + 25)


def test_truncation_is_told(runtime: TextEncoderRuntime, tmp_path: Path) -> None:
    vfm = serve(runtime, version(tmp_path / "task", EMBEDDING, encoder={"max_length": 4}))
    tensors, _ = run(runtime, [ask(runtime, vfm, "w1", "w1 w2 w3")])
    assert tensors[0]["TRUNCATED"].tolist() == [[False], [True]]
    assert tensors[0]["TRUNCATED"].dtype == np.bool_


def test_a_prefix_is_part_of_the_text(runtime: TextEncoderRuntime, tmp_path: Path) -> None:
    with_prefix = serve(runtime, version(tmp_path / "one", EMBEDDING, encoder={"prefix": "w9 w8 "}))
    without = serve(runtime, version(tmp_path / "two", EMBEDDING))
    tensors, _ = run(runtime, [ask(runtime, with_prefix, "w1"), ask(runtime, without, "w9 w8 w1")])
    same(tensors[0], tensors[1])


def test_no_items(runtime: TextEncoderRuntime, tmp_path: Path) -> None:
    vfm = serve(runtime, version(tmp_path / "task", EMBEDDING))
    with pytest.raises(InvalidRequest, match="no items"):
        ask(runtime, vfm)


def test_a_request_runs_with_the_version_it_was_prepared_for(bert: Path, tmp_path: Path) -> None:
    """Until it is prepared again, with the new one's prefix, cut-off and spans."""
    runtime = text_runtime(bert)
    token = version(tmp_path / "new", {"kind": "token-classification", "labels": ["a", "b"]}, encoder={"prefix": "w7 "})
    write_head(token / "decoder.safetensors", 2)
    vfm = serve(runtime, version(tmp_path / "old", EMBEDDING, encoder={"max_length": 4}))
    queued = ask(runtime, vfm, "w1 w2 w3 w4", "w5")
    alone, _ = run(runtime, [queued])
    vfm.extensions = runtime.load(token)
    runtime.attach(vfm.extensions)
    fresh = ask(runtime, vfm, "w1 w2 w3 w4", "w5")
    tensors, _ = run(runtime, [queued, fresh])
    same(tensors[0], alone[0])
    assert tensors[1]["OFFSETS"].shape == (2, 4, 2)
    queued.extensions = vfm.extensions
    runtime.prepare(queued)
    again, _ = run(runtime, [queued])
    same(again[0], tensors[1])


def test_a_tokenizer_without_specials_refuses_what_has_no_tokens(tmp_path: Path) -> None:
    """There would be nothing to take a mean of."""
    directory = save_tiny(tmp_path / "model")
    file = directory / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    runtime = text_runtime(directory)
    vfm = serve(runtime, version(tmp_path / "task", EMBEDDING))
    ask(runtime, vfm, "w1")
    with pytest.raises(InvalidRequest, match=r"TEXT\[1\]"):
        ask(runtime, vfm, "w1", " ")


# -- loading a version


def test_another_backbones_task_is_refused(runtime: TextEncoderRuntime, tmp_path: Path) -> None:
    path = version(tmp_path / "task", EMBEDDING, backbone={"model": "other", "fingerprint": "sha256:0"})
    with pytest.raises(TaskRefused) as caught:
        runtime.load(path)
    assert (caught.value.field, caught.value.file) == ("backbone.fingerprint", str(path / "task.json"))
    assert str(runtime.fingerprint) in caught.value.problem


def test_its_own_task_is_not(runtime: TextEncoderRuntime, tmp_path: Path) -> None:
    own = {"model": "tiny", "fingerprint": runtime.fingerprint}
    assert runtime.load(version(tmp_path / "own", EMBEDDING, backbone=own)).adapter is None
    assert runtime.load(version(tmp_path / "unknown", EMBEDDING, backbone={"model": "tiny"})).adapter is None


def test_a_cut_off_beyond_the_backbones(runtime: TextEncoderRuntime, tmp_path: Path) -> None:
    with pytest.raises(TaskRefused) as caught:
        runtime.load(version(tmp_path / "task", EMBEDDING, encoder={"max_length": 49}))
    assert caught.value.field == "encoder.max_length"
    assert "48" in caught.value.problem


@pytest.mark.parametrize(
    ("encoder", "field"),
    [
        ({"prefix": "w1 " * 60}, "encoder.prefix"),
        ({"prefix": "w1 w2 ", "max_length": 4}, "encoder.prefix"),
        ({"template": "w1 " * 200 + "{text}", "windows": 3, "max_length": 16}, "encoder.template"),
    ],
)
def test_a_prefix_that_leaves_no_token_to_the_text(
    runtime: TextEncoderRuntime, tmp_path: Path, encoder: dict[str, Any], field: str
) -> None:
    with pytest.raises(TaskRefused) as caught:
        runtime.load(version(tmp_path / "task", EMBEDDING, encoder=encoder))
    assert (caught.value.field, "no text would be read" in caught.value.problem) == (field, True)


def test_a_prefix_of_megabytes_is_refused_before_it_is_tokenised(runtime: TextEncoderRuntime, tmp_path: Path) -> None:
    with pytest.raises(TaskRefused, match="65536 characters"):
        runtime.load(version(tmp_path / "task", EMBEDDING, encoder={"prefix": "w1 " * 1_000_000}))


def test_an_adapter_at_another_place(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert)
    path = write_version(tmp_path, "task", 1, text_task(EMBEDDING, adapter={"kind": "peft", "path": "elsewhere"}))
    save_adapter(path / "elsewhere", LoraConfig(r=2, target_modules=["query"]))
    adapter = runtime.load(path).adapter
    assert adapter is not None
    assert adapter.rank == 2


def test_detaching_gives_the_place_back(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert)
    vfm = serve(runtime, version(tmp_path / "task", EMBEDDING, LoraConfig(r=2, target_modules=["query"])))
    bare = serve(runtime, version(tmp_path / "bare", EMBEDDING))
    assert runtime.bank.attached == 1
    runtime.detach(vfm.extensions)
    runtime.detach(bare.extensions)
    assert runtime.bank.attached == 0


# -- the backbone


def test_profile(runtime: TextEncoderRuntime) -> None:
    shapes = dict(runtime.profile())
    assert len(shapes) >= 3
    assert all(seconds > 0 for seconds in shapes.values())
    assert max(shape.longest for shape in shapes) == 48


def test_a_padding_token_at_the_end_of_the_vocabulary(tmp_path: Path) -> None:
    directory = save_tiny(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        file = directory / name
        text = file.read_text().replace("[PAD]", WORDS[-1])
        file.write_text(text.replace('"pad_token_id": 1', f'"pad_token_id": {len(WORDS) - 1}'))
    runtime = text_runtime(directory)
    assert runtime.pad == len(WORDS) - 1
    assert list(runtime.profile())


@pytest.mark.parametrize(("tokens", "budget"), [(0, 32 * 64), (100, 100)])
def test_the_token_budget(bert: Path, tokens: int, budget: int, device: str) -> None:
    if device != "cpu" and not tokens:
        budget = 32 * 512
    assert text_runtime(bert, max_batch_tokens=tokens).max_batch_tokens == budget


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_answers_in_single(bert: Path, tmp_path: Path, dtype: str) -> None:
    runtime = text_runtime(bert, dtype=dtype)
    vfm = serve(runtime, version(tmp_path / "task", EMBEDDING, LoraConfig(r=2, target_modules=["query"])))
    exact = text_runtime(bert)
    tensors, _ = run(runtime, [ask(runtime, vfm, *TEXTS)])
    want, _ = run(exact, [ask(exact, serve(exact, tmp_path / "task" / "1"), *TEXTS)])
    assert tensors[0]["EMBEDDING"].dtype == np.float32
    np.testing.assert_allclose(tensors[0]["EMBEDDING"], want[0]["EMBEDDING"], atol=0.15)
