"""Every architecture against transformers and PEFT, one picture at a time; pictures of several sizes in a batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from model_fixtures import write_head
from peft import LoraConfig, PeftModel
from recorder import FakeRecorder
from runtime_requests import run, unanswered
from vision_fixtures import HIDDEN, MODELS, SIDE, encoded, picture, save_vision, vision_runtime

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.errors import BackboneRefused, TaskRefused
from fmplex_backend.families.cuda_graphs import Graphs
from fmplex_backend.families.vision_encoder.anatomy import read
from fmplex_backend.families.vision_encoder.forward import CapturedPixels, Forward, PassKind
from fmplex_backend.families.vision_encoder.preprocessing import Pixels
from fmplex_backend.families.vision_encoder.runtime import VisionEncoderRuntime
from fmplex_backend.serving.preparation import SMALL_BYTES
from fmplex_backend.types import Request, Vfm
from testing.adapters import save_adapter

PICTURES = [picture(seed, 30 + 3 * seed, 50 - 2 * seed) for seed in range(5)]
TARGETS = {"convnext": ["pwconv1", "pwconv2"]}


@cache
def directory_of(kind: str) -> Path:
    return save_vision(Path(mkdtemp()), kind)


def model_of(kind: str) -> Any:
    """As the runtime has it, in a copy."""
    return vision_runtime(directory_of(kind)).model


def serve(runtime: VisionEncoderRuntime, folder: Path, **task: Any) -> Vfm:
    """A vFM that is attached."""
    folder.mkdir(exist_ok=True)
    document = {"family": "vision-encoder", "decoder": {"kind": "embedding", "normalize": False}, **task}
    (folder / "task.json").write_text(json.dumps(document))
    vfm = Vfm(0, folder.name)
    vfm.extensions = runtime.load(folder)
    runtime.attach(vfm.extensions)
    return vfm


def ask(runtime: VisionEncoderRuntime, vfm: Vfm, *pictures: Any) -> Request:
    sent = np.empty((len(pictures), 1), dtype=np.object_)
    sent[:, 0] = [encoded(each) for each in pictures]
    request = Request(vfm, {"IMAGE_BYTES": sent}, (), 0.0, unanswered)
    request.extensions = vfm.extensions
    runtime.prepare(request)
    return request


def expected(runtime: VisionEncoderRuntime, model: Any, pixels: Any, pooling: str, side: int | None = None) -> Any:
    """By transformers' own processor, of one picture."""
    processor = runtime.preprocessor
    values = processor.normalised(torch.from_numpy(processor.read(pixels, side).values.copy())[None], torch.float32)
    with torch.no_grad():
        return read(pooling, runtime.anatomy.states(model, values))[0].numpy()


@pytest.mark.parametrize("kind", MODELS)
def test_tasks_with_adapters_and_without_share_a_pass(kind: str, tmp_path: Path) -> None:
    runtime = vision_runtime(directory_of(kind))
    models, vfms, poolings = [], [], []
    for number, (rank, pooling) in enumerate([(0, "mean"), (4, "cls"), (4, "max"), (0, "cls"), (16, "mean")]):
        folder, model, task = tmp_path / str(number), model_of(kind), {}
        if rank:
            targets = TARGETS.get(kind, ["q_proj", "v_proj", "fc1"])
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
            save_adapter(folder / "adapter", model_of(kind), config, seed=number, scale=0.2)
            model = PeftModel.from_pretrained(model, str(folder / "adapter")).eval()
            task = {"adapter": {"kind": "peft"}}
        decoder = {"kind": "embedding", "normalize": False, "pooling": pooling}
        vfms.append(serve(runtime, folder, decoder=decoder, **task))
        models.append(model)
        poolings.append(pooling)
    batch = [ask(runtime, vfm, *PICTURES[n:], *PICTURES[:n]) for n, vfm in enumerate(vfms)]
    answers, passes = run(runtime, batch)
    assert len(passes) == 1
    assert passes[0].sharing.saved == len(PICTURES), "two tasks have no adapter"
    for n, (model, pooling, answer) in enumerate(zip(models, poolings, answers, strict=True)):
        for place, pixels in enumerate([*PICTURES[n:], *PICTURES[:n]]):
            want = expected(runtime, model, pixels, pooling)
            np.testing.assert_allclose(answer["EMBEDDING"][place], want, rtol=1e-3, atol=2e-5)
    plain, adapted = (
        expected(runtime, models[0], PICTURES[0], "mean"),
        expected(runtime, models[4], PICTURES[0], "mean"),
    )
    assert np.abs(plain - adapted).max() > 0.01


@pytest.mark.parametrize(
    ("kind", "pooled"),
    [
        ("vit", lambda model, states: states.last_hidden_state[:, 0]),
        ("registers", lambda model, states: states.last_hidden_state[:, 0]),
        ("clip", lambda model, states: states.pooler_output),
        ("siglip", lambda model, states: states.pooler_output),
        ("swin", lambda model, states: states.pooler_output),
        ("convnext", lambda model, states: states.pooler_output),
    ],
)
def test_cls_is_the_vector_by_which_a_model_sums_up(kind: str, pooled: Callable[[Any, Any], Any]) -> None:
    runtime = vision_runtime(directory_of(kind))
    values = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        want = pooled(runtime.model, runtime.model(pixel_values=values))
        states = runtime.anatomy.states(runtime.model, values)
    torch.testing.assert_close(read("cls", states), want)
    assert states.patches.shape == (2, (SIDE // {"swin": 4, "convnext": 16}.get(kind, 8)) ** 2, runtime.hidden)


def test_the_mean_leaves_class_and_register_tokens_out() -> None:
    runtime = vision_runtime(directory_of("registers"))
    values = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = runtime.model(pixel_values=values).last_hidden_state
        found = read("mean", runtime.anatomy.states(runtime.model, values))
    torch.testing.assert_close(found, states[:, 5:].mean(dim=1))


@pytest.mark.parametrize("kind", MODELS)
def test_pictures_of_several_sizes_in_a_batch(kind: str, tmp_path: Path) -> None:
    runtime = vision_runtime(directory_of(kind))
    sides = (None, 64, 48)
    vfms = [serve(runtime, tmp_path / str(side), encoder={"side": side} if side else {}) for side in sides]
    answers, passes = run(runtime, [ask(runtime, vfm, *PICTURES[:2]) for vfm in vfms])
    assert len(passes) == len(sides)
    for side, answer in zip(sides, answers, strict=True):
        for place, pixels in enumerate(PICTURES[:2]):
            want = expected(runtime, runtime.model, pixels, "mean", side)
            np.testing.assert_allclose(answer["EMBEDDING"][place], want, rtol=1e-3, atol=2e-5)
    lengths = [done.shape.longest for done in passes if done.shape]
    assert len(set(lengths)) == len(sides)


def test_a_request_of_more_than_a_batch_runs_in_steps(tmp_path: Path) -> None:
    runtime = vision_runtime(directory_of("vit"), max_items=4)
    vfm = serve(runtime, tmp_path / "many")
    request = ask(runtime, vfm, *[picture(seed) for seed in range(10)])
    assert request.work.items == 2
    assert request.prepared_bytes == 10 * (3 * SIDE * SIDE + 4 * HIDDEN)


def test_few_bytes_may_be_megapixels() -> None:
    """So that nothing is prepared on the thread that takes requests in."""
    assert len(encoded(np.zeros((1000, 1000, 3), np.uint8), "WEBP")) <= SMALL_BYTES
    assert not VisionEncoderRuntime.quick_when_small


def test_a_pooled_vector_that_a_model_has_not_is_refused(tmp_path: Path) -> None:
    runtime = vision_runtime(directory_of("vit"))
    runtime.anatomy = type(runtime.anatomy)(0, False, True, SIDE, 8)
    with pytest.raises(TaskRefused, match=r"decoder\.pooling.*neither a class token nor a pooled vector"):
        serve(runtime, tmp_path / "cls", decoder={"kind": "embedding", "pooling": "cls"})


def test_an_adapter_on_a_module_that_is_not_called_is_refused(tmp_path: Path) -> None:
    runtime = vision_runtime(directory_of("siglip"))
    config = LoraConfig(r=4, target_modules=["head.attention.out_proj"])
    save_adapter(tmp_path / "odd" / "adapter", model_of("siglip"), config, scale=0.2)
    with pytest.raises(TaskRefused, match=r"target_modules.*head\.attention\.out_proj"):
        serve(runtime, tmp_path / "odd", adapter={"kind": "peft"})


def test_a_head_reads_the_width_of_the_last_stage(tmp_path: Path) -> None:
    runtime = vision_runtime(directory_of("convnext"))
    write_head(tmp_path / "decoder.safetensors", 3, runtime.hidden)
    vfm = serve(runtime, tmp_path, decoder={"kind": "classification", "labels": ["a", "b", "c"]})
    (answer,), _ = run(runtime, [ask(runtime, vfm, *PICTURES)])
    assert answer["SCORES"].shape == (5, 3)
    assert set(answer) == {"SCORES", "LABEL"}


@pytest.mark.filterwarnings("ignore")
def test_models_of_other_kinds_are_refused(tmp_path: Path) -> None:
    from model_fixtures import save_tiny

    with pytest.raises(BackboneRefused, match=r"parameters\.model: transformers cannot load"):
        vision_runtime(save_tiny(tmp_path / "text"))


# -- CUDA graphs, on the CPU


@pytest.mark.parametrize("kind", ["registers", "swin"])
def test_captured_passes_are_the_same(kind: str, tmp_path: Path) -> None:
    runtime = vision_runtime(directory_of(kind))
    bank = runtime.bank = runtime.residency.bank = AdapterBank(runtime.model, runtime.device, stacked=True, folds=True)
    adapters: list[Any] = [None]
    for seed, rank in ((1, 4), (2, 4), (3, 16)):
        config = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"])
        save_adapter(tmp_path / str(seed) / "adapter", model_of(kind), config, seed=seed, scale=0.2)
        adapters.append(serve(runtime, tmp_path / str(seed), adapter={"kind": "peft"}).extensions.adapter)
    plain, captured = (Forward(runtime.model, bank, runtime.anatomy, runtime.preprocessor, 8) for _ in range(2))
    kinds: list[PassKind] = []
    recorder: Any = FakeRecorder()

    def capture(kind: PassKind) -> CapturedPixels:
        kinds.append(kind)
        return CapturedPixels(captured, kind, recorder)

    captured.graphs = Graphs(capture, after=1, clock=lambda: 0.0)
    captured._generation = bank.generation
    rows: list[Pixels] = [runtime.preprocessor.read(each) for each in PICTURES]
    for chosen in ([0], [0, 0, 0], [0, 1, 2, 3, 0], [1, 1, 2, 2, 3]):
        own = sorted((adapters[number] for number in chosen), key=bank.order)
        one, other = (each.launch(rows[: len(own)], own, {"mean", "cls"}).hidden() for each in (plain, captured))
        for place in range(len(own)):
            for pooling in ("mean", "cls"):
                np.testing.assert_allclose(
                    other.row(place, pooling, rows[place]), one.row(place, pooling, rows[place]), rtol=1e-4, atol=1e-5
                )
    assert [each.rows for each in kinds] == [1, 4, 8]
