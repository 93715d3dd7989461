"""The text encoder over tiny models: whatever is in a batch, each request gets what it would get alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backend_fixtures import bytes_of, text_task, write_version
from model_fixtures import TINY, WORDS, save_adapter, save_tiny, text_runtime, tiny_tokenizer, write_head
from peft import IA3Config, LoraConfig, PeftModel
from transformers import AutoModel, AutoTokenizer

from fmplex_backend.errors import InvalidRequest, TaskRefused
from fmplex_backend.runtime.text_encoder import TextEncoderRuntime
from fmplex_backend.types import Finished, Pass, PassShape, Reply, Request
from fmplex_backend.vfm import Vfm

# PEFT 0.21 asks transformers 5 for a property under its former name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

TEXTS = [
    "w1",
    "w2 w3 w4 w5 w6 w7 w8 w9 w10",
    "w11 w12",
    " ".join(f"w{n}" for n in range(13, 53)),
    "w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1 w1",
    "",
    "unknown words",
]
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
def runtime(bert: Path) -> TextEncoderRuntime:
    """For tests that attach nothing."""
    return text_runtime(bert)


def version(directory: Path, decoder: dict[str, Any], adapter: Any = None, kind: str = "bert", **rest: Any) -> Path:
    """A version directory; `adapter` is a PEFT config."""
    if adapter is not None:
        rest["adapter"] = {"kind": "peft"}
        save_adapter(directory / "1" / "adapter", adapter, kind)
    return write_version(directory.parent, directory.name, 1, text_task(decoder, **rest))


def serve(runtime: TextEncoderRuntime, path: Path) -> Vfm:
    """A vFM that is attached."""
    vfm = Vfm(0, path.parent.name)
    vfm.extensions = runtime.load(path)
    runtime.attach(vfm.extensions)
    return vfm


def ask(runtime: TextEncoderRuntime, vfm: Vfm, *texts: str) -> Request:
    request = Request(vfm, {"TEXT": bytes_of(*texts)}, (), 0.0, unanswered)
    runtime.prepare(request)
    return request


def unanswered(request: Request, reply: Reply) -> None:
    raise AssertionError("a runtime answers nobody")


def run(runtime: TextEncoderRuntime, batch: Sequence[Request]) -> tuple[list[dict[str, Any]], list[Pass]]:
    """Each request's output tensors, and the passes."""
    for request in batch:
        request.extensions = request.vfm.extensions
    passes = list(runtime.run(batch))
    outcomes = {id(request): outcome for done in passes for request, outcome in done.outcomes}
    assert len(outcomes) == len(batch)
    tensors = []
    for request in batch:
        outcome = outcomes[id(request)]
        assert isinstance(outcome, Finished)
        tensors.append(dict(runtime.decode(request, outcome.value)))
    return tensors, passes


def same(have: dict[str, Any], want: dict[str, Any]) -> None:
    assert have.keys() == want.keys()
    for name, value in want.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(have[name], value, rtol=1e-4, atol=1e-5)
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
    np.testing.assert_allclose(tensors[0]["EMBEDDING"], (states * mask).sum(1) / mask.sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_poolings_leave_the_padding_out(bert: Path, tmp_path: Path, pooling: str) -> None:
    runtime = text_runtime(bert, predict=per_pass)
    vfm = serve(runtime, version(tmp_path / "task", {**EMBEDDING, "pooling": pooling}))
    tensors, _ = run(runtime, [ask(runtime, vfm, *TEXTS)])
    tokenizer = tiny_tokenizer()
    for text, have in zip(TEXTS, tensors[0]["EMBEDDING"], strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            states = runtime.model(input_ids=ids).last_hidden_state[0]
        want = {"mean": states.mean(0), "cls": states[0], "max": states.amax(0)}[pooling]
        np.testing.assert_allclose(have, want.numpy(), rtol=1e-4, atol=1e-5)


def test_passes_by_length_answer_the_short_first(bert: Path, tmp_path: Path) -> None:
    runtime = text_runtime(bert, predict=per_token)
    vfm = serve(runtime, version(tmp_path / "task", EMBEDDING))
    long, short, both = (ask(runtime, vfm, *texts) for texts in ([TEXTS[3]], [TEXTS[0]], [TEXTS[2], TEXTS[3]]))
    _, passes = run(runtime, [long, short, both])
    assert [[request for request, _ in done.outcomes] for done in passes] == [[short], [long, both]]
    assert [done.shape for done in passes] == [PassShape(2 * 4, 4, 0), PassShape(2 * 42, 42, 0)]
    shares = [{id(request): work for request, work in done.portions} for done in passes]
    assert shares[0][id(both)] + shares[1][id(both)] == both.work
    assert (shares[0][id(short)], shares[1][id(long)]) == (short.work, long.work)


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
    request.extensions = request.vfm.extensions
    next(iter(runtime.run([request])))
    tensors, _ = run(runtime, [request])
    again, _ = run(runtime, [request])
    same(tensors[0], again[0])


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


def test_a_request_that_was_prepared_for_a_former_version(bert: Path, tmp_path: Path) -> None:
    """It runs with the new one's adapter and decoder, so it needs the new one's prefix, cut-off and spans too."""
    runtime = text_runtime(bert)
    token = version(tmp_path / "new", {"kind": "token-classification", "labels": ["a", "b"]}, encoder={"prefix": "w7 "})
    write_head(token / "decoder.safetensors", 2)
    vfm = serve(runtime, version(tmp_path / "old", EMBEDDING, encoder={"max_length": 4}))
    queued = ask(runtime, vfm, "w1 w2 w3 w4", "w5")
    vfm.extensions = runtime.load(token)
    runtime.attach(vfm.extensions)
    fresh = ask(runtime, vfm, "w1 w2 w3 w4", "w5")
    tensors, _ = run(runtime, [queued, fresh])
    same(tensors[0], tensors[1])
    assert tensors[0]["OFFSETS"].shape == (2, 4, 2)
    back, _ = run(runtime, [queued])
    same(back[0], tensors[1])


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
def test_the_token_budget(bert: Path, tokens: int, budget: int) -> None:
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
