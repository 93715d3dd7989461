"""Every architecture against transformers and PEFT, one series at a time; series of all lengths and with gaps."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from model_fixtures import save_tiny
from peft import LoraConfig, PeftModel
from recorder import FakeRecorder
from runtime_requests import run, unanswered
from series_fixtures import (
    CHANNELS,
    CONTEXT,
    HIDDEN,
    MODELS,
    OWN_STEPS,
    PATCH,
    Array,
    ask,
    filled,
    finished,
    save_series_model,
    series,
    series_runtime,
    serve,
    tiny_series_model,
)
from transformers import AutoModel

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.errors import BackboneRefused, InvalidRequest, TaskRefused
from fmplex_backend.families.cuda_graphs import Graphs
from fmplex_backend.families.time_series.architectures import PATCHES
from fmplex_backend.families.time_series.forward import CapturedSeries, Forward, PassKind
from fmplex_backend.types import Request
from testing.adapters import save_adapter

TARGETS = {
    "timesfm": ["q_proj", "v_proj", "gate_proj"],
    "mixer": ["fc1", "fc2"],
    "mixed-channels": ["fc1", "fc2", "q_proj"],
}
FORECASTERS = [kind for kind in MODELS if kind not in ("overlapping", "timesfm")]


@cache
def directory_of(kind: str) -> Path:
    return save_series_model(Path(mkdtemp()), kind)


def model_of(kind: str) -> Any:
    """As the runtime has it, in a copy."""
    return series_runtime(directory_of(kind)).model


def encoder_of(kind: str) -> dict[str, Any]:
    return {"channels": CHANNELS[kind]} if kind in CHANNELS else {}


def given(kind: str, values: Array, known: Any) -> dict[str, Any]:
    """The arguments of a model."""
    if kind == "timesfm":
        padding = torch.from_numpy(~known[:, 0]).float()[None]
        return {
            "past_values": torch.from_numpy(values[:, 0])[None],
            "past_values_padding": padding,
            "freq": torch.zeros(1, 1, dtype=torch.long),
        }
    mask = "observed_mask" if kind.startswith("mix") else "past_observed_mask"
    return {"past_values": torch.from_numpy(values)[None], mask: torch.from_numpy(known).float()[None]}


def states_of(kind: str, model: Any, item: Array) -> tuple[torch.Tensor, Array]:
    """By transformers alone: [channels, t, d], and which values were observed, [context, channels]."""
    parts, knowns = [], []
    channels = item.shape[1]
    for own in [list(range(channels))] if kind in CHANNELS else [[place] for place in range(channels)]:
        values, known = filled(item[:, own])
        with torch.no_grad():
            found = model(**given(kind, values, known)).last_hidden_state
        parts.append(found if kind == "timesfm" else found[0])
        knowns.append(known)
    return torch.cat(parts), np.concatenate(knowns, axis=1)


def expected(kind: str, model: Any, item: Array, pooling: str) -> Any:
    states, known = states_of(kind, model, item)
    if pooling == "cls":
        return states[:, 0].mean(dim=0).numpy()
    stride = 4 if kind == "overlapping" else PATCH
    patches = (CONTEXT - PATCH) // stride + 1
    found = []
    for channel, own in zip(states[:, -patches:], known.T, strict=True):
        seen = [place for place in range(patches) if own[place * stride : place * stride + PATCH].any()]
        found.append(channel[seen].amax(dim=0) if pooling == "max" else channel[seen].mean(dim=0))
    whole = torch.stack(found)
    return (whole.amax(dim=0) if pooling == "max" else whole.mean(dim=0)).numpy()


def test_batch_norms_are_a_factor_and_an_offset() -> None:
    """transformers' answer with transposed views, which torch multiplies slowly; what is computed stays the same."""
    runtime = series_runtime(directory_of("patchtst"))
    seen: list[bool] = []

    def look(module: Any, inputs: Any) -> None:
        seen.append(inputs[0].is_contiguous())

    for path, module in runtime.model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in path:
            module.register_forward_pre_hook(look)
    values, known = filled(series(0, CONTEXT, 1))
    with torch.inference_mode():
        ours = runtime.model(**given("patchtst", values, known)).last_hidden_state
        plain = AutoModel.from_pretrained(directory_of("patchtst")).eval()
        theirs = plain(**given("patchtst", values, known)).last_hidden_state
    assert len(seen) == 2 * 6  # layers, each with four Linears of attention and two behind it
    assert all(seen)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    copied = copy.deepcopy(runtime.model)
    assert copied.state_dict().keys() == plain.state_dict().keys()
    assert {type(each) for each in copied.modules()} == {type(each) for each in plain.modules()}


@pytest.mark.parametrize("kind", MODELS)
def test_tasks_with_adapters_and_without_share_a_pass(kind: str, tmp_path: Path) -> None:
    runtime = series_runtime(directory_of(kind))
    items = [series(seed, 50 + 20 * seed, 3, missing=0.1 * seed) / 50 for seed in range(4)]
    models, vfms, poolings = [], [], []
    for number, (rank, pooling) in enumerate([(0, "mean"), (4, "mean"), (4, "max"), (0, "max"), (16, "mean")]):
        folder, model, task = tmp_path / str(number), model_of(kind), {}
        if rank:
            config = LoraConfig(
                r=rank, lora_alpha=2 * rank, target_modules=TARGETS.get(kind, ["q_proj", "v_proj", "ff.0"])
            )
            save_adapter(folder / "adapter", model_of(kind), config, seed=number, scale=0.2)
            model = PeftModel.from_pretrained(model, str(folder / "adapter")).eval()
            task = {"adapter": {"kind": "peft"}}
        decoder = {"kind": "embedding", "normalize": False, "pooling": pooling}
        vfms.append(serve(runtime, folder, decoder=decoder, encoder=encoder_of(kind), **task))
        models.append(model)
        poolings.append(pooling)
    batch = [ask(runtime, vfm, item) for vfm in vfms for item in items]
    answers, passes = run(runtime, batch)
    assert len(passes) == 1
    assert passes[0].sharing.saved == len(items) * (1 if kind in CHANNELS else 3), "two tasks have no adapter"
    for place, answer in enumerate(answers):
        task, item = divmod(place, len(items))
        want = expected(kind, models[task], items[item], poolings[task])
        np.testing.assert_allclose(answer["EMBEDDING"][0], want, rtol=1e-3, atol=2e-4)
    plain, adapted = (expected(kind, models[n], items[0], "mean") for n in (0, 4))
    assert np.abs(plain - adapted).max() > 0.01


@pytest.mark.parametrize(("kind", "inner"), [("patchtst", "model"), ("mixer", "model"), ("timesfm", "decoder")])
def test_what_is_kept_of_a_checkpoint_is_its_head(kind: str, inner: str, tmp_path: Path) -> None:
    """One that was saved without a head names the backbone's tensors without their prefix."""
    whole = tiny_series_model(kind)
    getattr(whole, inner).save_pretrained(tmp_path / "bare")
    assert not series_runtime(tmp_path / "bare").own_heads.tensors
    head = {name for name in whole.state_dict() if not name.startswith(f"{inner}.")}
    assert series_runtime(directory_of(kind)).own_heads.tensors.keys() == head


def test_cls_is_the_class_token(tmp_path: Path) -> None:
    runtime, item = series_runtime(directory_of("class-token")), series(1, 100, 2)
    vfm = serve(runtime, tmp_path / "cls", decoder={"kind": "embedding", "normalize": False, "pooling": "cls"})
    (answer,), _ = run(runtime, [ask(runtime, vfm, item)])
    want = expected("class-token", runtime.model, item, "cls")
    np.testing.assert_allclose(answer["EMBEDDING"][0], want, rtol=1e-4, atol=1e-5)
    with pytest.raises(TaskRefused, match=r"decoder\.pooling.*no class token"):
        serve(
            series_runtime(directory_of("patchtst")), tmp_path / "none", decoder={"kind": "embedding", "pooling": "cls"}
        )


def test_what_a_gap_holds_and_where_a_series_begins_change_nothing_else(tmp_path: Path) -> None:
    runtime = series_runtime(directory_of("patchtst"))
    vfm = serve(runtime, tmp_path / "one")
    item = series(3, 40, 2, missing=0.2)
    long = np.concatenate([np.full((500, 2), np.nan, dtype=np.float32), item])
    one, padded = (run(runtime, [ask(runtime, vfm, each)])[0][0]["EMBEDDING"] for each in (item, long))
    np.testing.assert_array_equal(one, padded)
    last = series(4, 1000, 2)
    cut, whole = (run(runtime, [ask(runtime, vfm, each)])[0][0]["EMBEDDING"] for each in (last[-CONTEXT:], last))
    np.testing.assert_array_equal(cut, whole)
    request = ask(runtime, vfm, last)
    assert request.prepared_bytes < 2 * (2 * 5 * CONTEXT + 4 * HIDDEN) + 1, "the steps before are not kept"


def own_forecast(kind: str, whole: Any, item: Array, horizon: int) -> Array:
    """By the whole model of transformers, whose forecast is put behind the series until it is long enough."""
    apart = [list(range(item.shape[1]))] if kind in CHANNELS else [[place] for place in range(item.shape[1])]
    columns = []
    for own in apart:
        values, known = filled(item[:, own])
        if kind == "class-token":  # it wants its seven channels, which do not see each other
            values, known = (np.repeat(each, 7, axis=1) for each in (values, known))
        parts: list[Array] = []
        while sum(map(len, parts)) < horizon:
            with torch.no_grad():
                part = whole(**given(kind, values, known)).prediction_outputs[0].numpy()
            parts.append(part)
            values = np.concatenate([values, part])[-CONTEXT:]
            known = np.concatenate([known, np.ones_like(part, dtype=np.bool_)])[-CONTEXT:]
        columns.append(np.concatenate(parts)[:horizon, : len(own)])
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize("horizon", [None, 5, OWN_STEPS, 2 * OWN_STEPS + 3])
@pytest.mark.parametrize("kind", FORECASTERS)
def test_the_models_own_head_forecasts_as_transformers_does(kind: str, horizon: int | None, tmp_path: Path) -> None:
    runtime, whole = series_runtime(directory_of(kind)), tiny_series_model(kind)
    decoder = {"kind": "own-forecast", **({"horizon": horizon} if horizon else {})}
    vfm = serve(runtime, tmp_path / "own", decoder=decoder, encoder=encoder_of(kind))
    item = series(5, 90, 3, missing=0.05)
    request = ask(runtime, vfm, item)
    found = finished(runtime, request)["FORECAST"][0]
    want = own_forecast(kind, whole, item, horizon or OWN_STEPS)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-3)


def test_timesfm_says_quantiles_too(tmp_path: Path) -> None:
    runtime, whole = series_runtime(directory_of("timesfm")), tiny_series_model("timesfm")
    decoder = {"kind": "own-forecast", "quantiles": [0.9, 0.1]}
    vfm, item = serve(runtime, tmp_path / "own", decoder=decoder), series(5, 50, 2)
    found = finished(runtime, ask(runtime, vfm, item))
    with torch.no_grad():
        want = whole(past_values=[torch.from_numpy(channel.copy()) for channel in item.T], freq=[0, 0])
    np.testing.assert_allclose(found["FORECAST"][0], want.mean_predictions.T.numpy(), rtol=1e-4, atol=1e-3)
    levels = want.full_predictions[..., [3, 1]].permute(2, 1, 0)
    np.testing.assert_allclose(found["QUANTILES"][0], levels.numpy(), rtol=1e-4, atol=1e-3)
    with pytest.raises(
        TaskRefused, match=r"decoder\.quantiles: the head of a timesfm does not have 0\.2, but 0\.1, 0\.5, 0\.9"
    ):
        serve(runtime, tmp_path / "other", decoder={"kind": "own-forecast", "quantiles": [0.2]})
    with pytest.raises(TaskRefused, match="is rolled, which says nothing of quantiles"):
        serve(runtime, tmp_path / "long", decoder={**decoder, "horizon": OWN_STEPS + 1})


def test_a_head_of_the_task_is_used_in_the_place_of_the_backbones(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    runtime, item = series_runtime(directory_of("patchtst")), series(5, 90, 2)
    other = tiny_series_model("patchtst", seed=9)
    folder = tmp_path / "tuned"
    folder.mkdir()
    save_file(
        {name: each for name, each in other.state_dict().items() if name.startswith("head.")},
        folder / "decoder.safetensors",
    )
    vfm = serve(runtime, folder, decoder={"kind": "own-forecast", "head": "task"})
    whole = tiny_series_model("patchtst")
    whole.head = other.head
    found = finished(runtime, ask(runtime, vfm, item))["FORECAST"][0]
    np.testing.assert_allclose(found, own_forecast("patchtst", whole, item, OWN_STEPS), rtol=1e-4, atol=1e-3)
    save_file(
        {"head.projection.weight": torch.zeros(3, 4), "head.projection.bias": torch.zeros(OWN_STEPS)},
        folder / "decoder.safetensors",
    )
    with pytest.raises(TaskRefused, match=r"head\.projection\.weight: its shape is \[3, 4\]"):
        runtime.load(folder)
    save_file({"head.projection.bias": torch.zeros(OWN_STEPS)}, folder / "decoder.safetensors")
    with pytest.raises(TaskRefused, match=r"head\.projection\.weight: the file holds no such tensor"):
        runtime.load(folder)


def test_a_backbone_without_a_head_says_so(tmp_path: Path) -> None:
    runtime = series_runtime(directory_of("overlapping"))
    with pytest.raises(TaskRefused, match=r"checkpoint holds no such tensor.*fit a Forecaster"):
        serve(runtime, tmp_path / "own", decoder={"kind": "own-forecast"})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.zeros((1, 0, 2), np.float32), "no dim of 0"),
        (np.zeros((1, 50), np.float32), r"float32 \[n, time, channels\]"),
        (np.zeros((1, 50, 2), np.float64), r"is float64 \[1, 50, 2\]"),
        (np.full((1, 50, 2), np.nan, np.float32), r"SERIES\[0\]: channel 0 has 0 values in the last 50 steps"),
        (np.zeros((1, 1, 1), np.float32), "it has 1 steps; at least 2 are needed"),
        (np.zeros((1, 50, 1025), np.float32), "1,025 channels, 1,024 are allowed"),
    ],
)
def test_hostile_series_are_refused_with_the_reason(value: Any, says: str, tmp_path: Path) -> None:
    runtime = series_runtime(directory_of("patchtst"))
    vfm = serve(runtime, tmp_path / "one")
    request = Request(vfm, {"SERIES": value}, (), 0.0, unanswered)
    request.extensions = vfm.extensions
    with pytest.raises(InvalidRequest, match=says):
        runtime.prepare(request)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, 1e30])
def test_numbers_that_are_none_are_named(bad: float, tmp_path: Path) -> None:
    runtime = series_runtime(directory_of("patchtst"))
    vfm, good = serve(runtime, tmp_path / "one"), series(1, 50, 2)
    item = good.copy()
    item[47, 1] = bad
    with pytest.raises(InvalidRequest, match=r"SERIES\[1\]: channel 1 has the value .* 3 steps before the end"):
        ask(runtime, vfm, good, item)


def test_a_very_long_series_costs_what_its_end_costs(tmp_path: Path) -> None:
    """Ten million steps: what lies before the context is neither copied nor looked at."""
    import tracemalloc

    runtime = series_runtime(directory_of("patchtst"))
    vfm, item = serve(runtime, tmp_path / "one"), np.zeros((1, 10_000_000, 1), dtype=np.float32)
    item[0, ::2], item[0, :5] = 1, np.inf
    request = Request(vfm, {"SERIES": item}, (), 0.0, unanswered)
    request.extensions = vfm.extensions
    tracemalloc.start()
    try:
        runtime.prepare(request)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert request.items == 1


def test_models_that_mix_channels_want_theirs(tmp_path: Path) -> None:
    runtime = series_runtime(directory_of("mixed-channels"))
    with pytest.raises(TaskRefused, match=r"encoder\.channels: it is None, and the backbone sees 3 channels at once"):
        serve(runtime, tmp_path / "any")
    vfm = serve(runtime, tmp_path / "three", encoder={"channels": 3})
    with pytest.raises(InvalidRequest, match="SERIES has 2 channels, the task reads 3"):
        ask(runtime, vfm, series(1, 50, 2))


def test_fewer_steps_than_the_context(tmp_path: Path) -> None:
    runtime, item = series_runtime(directory_of("patchtst")), series(1, 200, 2)
    vfm = serve(runtime, tmp_path / "short", encoder={"steps": 20})
    (answer,), _ = run(runtime, [ask(runtime, vfm, item)])
    want = expected("patchtst", runtime.model, item[-20:], "mean")
    np.testing.assert_allclose(answer["EMBEDDING"][0], want, rtol=1e-3, atol=2e-5)
    with pytest.raises(TaskRefused, match=r"encoder\.steps: the backbone takes 64, not 65"):
        serve(runtime, tmp_path / "long", encoder={"steps": 65})


def test_a_request_of_more_channels_than_a_batch_runs_in_steps(tmp_path: Path) -> None:
    runtime = series_runtime(directory_of("patchtst"), max_items=4)
    vfm, item = serve(runtime, tmp_path / "wide"), series(1, 70, 10)
    request = ask(runtime, vfm, item)
    assert request.work.items == 2
    found = finished(runtime, request)["EMBEDDING"][0]
    np.testing.assert_allclose(found, expected("patchtst", runtime.model, item, "mean"), rtol=1e-3, atol=2e-5)


def test_models_of_other_types_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BackboneRefused, match=r"is of the type bert.*patchtst, patchtsmixer, timesfm, tinytimemixer"):
        series_runtime(save_tiny(tmp_path / "text"))


def test_what_a_model_needs_beside_series_is_refused_by_field(tmp_path: Path) -> None:
    document = {"model_type": "tinytimemixer", "resolution_prefix_tuning": True}
    (tmp_path / "config.json").write_text(json.dumps(document))
    with pytest.raises(BackboneRefused, match="has resolution_prefix_tuning: it wants the frequency of each series"):
        series_runtime(tmp_path)


# -- CUDA graphs, on the CPU


@pytest.mark.parametrize("kind", ["patchtst", "mixed-channels"])
def test_captured_passes_are_the_same(kind: str, tmp_path: Path) -> None:
    runtime = series_runtime(directory_of(kind))
    bank = runtime.bank = runtime.residency.bank = AdapterBank(runtime.model, runtime.device, stacked=True, folds=True)
    adapters: list[Any] = [None]
    for seed, rank in ((1, 4), (2, 4), (3, 16)):
        config = LoraConfig(r=rank, target_modules=TARGETS.get(kind, ["q_proj", "v_proj"]))
        save_adapter(tmp_path / str(seed) / "adapter", model_of(kind), config, seed=seed, scale=0.2)
        vfm = serve(runtime, tmp_path / str(seed), adapter={"kind": "peft"}, encoder=encoder_of(kind))
        adapters.append(vfm.extensions.adapter)
    plain, captured = (Forward(runtime.model, bank, runtime.anatomy, 8) for _ in range(2))
    kinds: list[PassKind] = []
    recorder: Any = FakeRecorder()

    def capture(kind: PassKind) -> CapturedSeries:
        kinds.append(kind)
        return CapturedSeries(captured, kind, recorder)

    captured.graphs = Graphs(capture, after=1, clock=lambda: 0.0)
    captured._generation = bank.generation
    channels = CHANNELS.get(kind, 1)
    rows = [row for seed in range(5) for row in runtime.preprocessor.rows(series(seed, 50 + seed, channels))]
    for chosen in ([0], [0, 0, 0], [0, 1, 2, 3, 0], [1, 1, 2, 2, 3]):
        own = sorted((adapters[number] for number in chosen), key=bank.order)
        one, other = (each.launch(rows[: len(own)], own, {"mean", PATCHES}).hidden() for each in (plain, captured))
        for place in range(len(own)):
            for reads in ("mean", PATCHES):
                np.testing.assert_allclose(
                    other.row(place, reads, rows[place]), one.row(place, reads, rows[place]), rtol=1e-4, atol=1e-4
                )
    assert [each.rows for each in kinds] == [1, 4, 8]
