"""Against transformers and PEFT, one clip at a time; clips of several lengths in a batch."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
import torch
from audio_fixtures import HIDDEN, WINDOW, audio_runtime, clip, encoded, save_whisper, tiny_whisper, whole_states
from model_fixtures import save_tiny
from peft import LoraConfig, PeftModel
from recorder import FakeRecorder
from runtime_requests import run, unanswered
from transformers import WhisperFeatureExtractor, WhisperModel

from fmplex_backend.adapters.multi_lora import AdapterBank
from fmplex_backend.errors import BackboneRefused, TaskRefused
from fmplex_backend.families.audio_encoder.forward import CapturedFrames, Forward, PassKind
from fmplex_backend.families.audio_encoder.runtime import AudioEncoderRuntime
from fmplex_backend.families.cuda_graphs import Graphs
from fmplex_backend.serving.preparation import SMALL_BYTES
from fmplex_backend.types import Request, Vfm
from testing.adapters import save_adapter

CLIPS = [clip(seed, seconds) for seed, seconds in enumerate((0.3, 0.02, 2.5, 0.31, 6))]


@cache
def directory() -> Path:
    return save_whisper(Path(mkdtemp()))


def encoder() -> Any:
    return WhisperModel.from_pretrained(directory()).encoder.eval()


def serve(runtime: AudioEncoderRuntime, folder: Path, **task: Any) -> Vfm:
    """A vFM that is attached."""
    folder.mkdir(exist_ok=True)
    document = {"family": "audio-encoder", "decoder": {"kind": "embedding", "normalize": False}, **task}
    (folder / "task.json").write_text(json.dumps(document))
    vfm = Vfm(0, folder.name)
    vfm.extensions = runtime.load(folder)
    runtime.attach(vfm.extensions)
    return vfm


def ask(runtime: AudioEncoderRuntime, vfm: Vfm, *clips: Any) -> Request:
    sent = np.empty((len(clips), 1), dtype=np.object_)
    sent[:, 0] = [encoded(each, subtype="FLOAT") for each in clips]
    request = Request(vfm, {"AUDIO_BYTES": sent}, (), 0.0, unanswered)
    request.extensions = vfm.extensions
    runtime.prepare(request)
    return request


def expected(model: Any, samples: Any, pooling: str, silence: float = 1) -> Any:
    """By transformers' own extractor and forward, of one clip."""
    own = -(-len(samples) // 320)
    length = min(WINDOW, own + round(50 * silence))
    states = whole_states(model, WhisperFeatureExtractor.from_pretrained(directory()), samples, length)[:own]
    return (states.mean(dim=0) if pooling == "mean" else states.amax(dim=0)).numpy()


def test_tasks_with_adapters_and_without_share_a_pass(tmp_path: Path) -> None:
    runtime = audio_runtime(directory())
    runtime.predict = lambda shape: 1.0  # a pass costs the same whatever is in it: one is best
    models, vfms, settings = [], [], []
    for number, (rank, pooling, silence) in enumerate([(0, "mean", 1), (4, "max", 1), (4, "mean", 0), (16, "mean", 3)]):
        folder, model, task = tmp_path / str(number), encoder(), {"encoder": {"silence": silence}}
        if rank:
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "v_proj", "fc1"])
            save_adapter(folder / "adapter", encoder(), config, seed=number, scale=0.2)
            model = PeftModel.from_pretrained(model, str(folder / "adapter")).eval()
            task["adapter"] = {"kind": "peft"}
        decoder = {"kind": "embedding", "normalize": False, "pooling": pooling}
        vfms.append(serve(runtime, folder, decoder=decoder, **task))
        models.append(model)
        settings.append((pooling, silence))
    batch = [ask(runtime, vfm, *CLIPS[n:], *CLIPS[:n]) for n, vfm in enumerate(vfms)]
    answers, passes = run(runtime, batch)
    assert len(passes) == 1
    for n, (model, (pooling, silence), answer) in enumerate(zip(models, settings, answers, strict=True)):
        for place, samples in enumerate([*CLIPS[n:], *CLIPS[:n]]):
            want = expected(model, samples, pooling, silence)
            np.testing.assert_allclose(answer["EMBEDDING"][place], want, rtol=1e-3, atol=5e-5)
    plain, adapted = (expected(models[n], CLIPS[0], "mean") for n in (0, 3))
    assert np.abs(plain - adapted).max() > 0.01


def test_with_all_the_silence_there_is_it_is_the_models_own_forward(tmp_path: Path) -> None:
    runtime = audio_runtime(directory())
    vfm = serve(runtime, tmp_path / "whole", encoder={"silence": 30})
    (answer,), _ = run(runtime, [ask(runtime, vfm, *CLIPS)])
    extractor, model = WhisperFeatureExtractor.from_pretrained(directory()), encoder()
    for place, samples in enumerate(CLIPS):
        features = extractor(samples, sampling_rate=16_000, return_tensors="pt")["input_features"]
        with torch.no_grad():
            states = model(features).last_hidden_state[0]
        want = states[: -(-len(samples) // 320)].mean(dim=0).numpy()
        np.testing.assert_allclose(answer["EMBEDDING"][place], want, rtol=1e-3, atol=5e-5)


def test_a_long_clip_is_the_mean_of_its_parts(tmp_path: Path) -> None:
    runtime = audio_runtime(directory())
    vfm = serve(runtime, tmp_path / "long")
    samples = clip(9, 20)
    length = -(-len(samples) // 3)
    answers, _ = run(runtime, [ask(runtime, vfm, samples)])
    parts = [expected(runtime.model, samples[n * length : (n + 1) * length], "mean") for n in range(3)]
    np.testing.assert_allclose(answers[0]["EMBEDDING"][0], np.mean(parts, axis=0), rtol=1e-3, atol=5e-5)


def test_a_request_of_more_than_a_batch_runs_in_steps(tmp_path: Path) -> None:
    runtime = audio_runtime(directory(), max_items=4)
    vfm = serve(runtime, tmp_path / "many")
    request = ask(runtime, vfm, *[clip(seed) for seed in range(10)])
    assert request.work.items < 10
    assert request.prepared_bytes == 10 * (4 * 16 * 2 * (15 + 50) + 4 * HIDDEN)


def test_few_bytes_may_be_minutes() -> None:
    """So that nothing is prepared on the thread that takes requests in."""
    assert len(encoded(np.zeros(250 * 2_000, np.int16), 2_000, kind="FLAC")) <= SMALL_BYTES
    assert not AudioEncoderRuntime.quick_when_small


def test_a_class_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskRefused, match=r"decoder\.pooling.*no class token"):
        serve(audio_runtime(directory()), tmp_path / "cls", decoder={"kind": "embedding", "pooling": "cls"})


@pytest.mark.filterwarnings("ignore")
def test_models_of_other_kinds_are_refused(tmp_path: Path) -> None:
    text = save_tiny(tmp_path / "text")
    with pytest.raises(BackboneRefused, match=r"parameters\.model: transformers cannot load"):
        audio_runtime(text)
    WhisperFeatureExtractor(feature_size=16).save_pretrained(text)
    with pytest.raises(BackboneRefused, match=r"it is a bert, where the family takes Whisper"):
        audio_runtime(text)
    odd = save_whisper(tmp_path / "odd")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(odd)
    with pytest.raises(BackboneRefused, match=r"makes 80 bins of 16000 samples a second, the encoder takes 16"):
        audio_runtime(odd)


def test_a_models_weights_without_its_decoders_are_enough(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = save_whisper(tmp_path / "model")
    file = model / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if "decoder." not in name}
    save_file(weights, file, metadata={"format": "pt"})
    assert audio_runtime(model).hidden == HIDDEN
    lacking = {name: tensor for name, tensor in weights.items() if "layers.1.fc1" not in name}
    save_file(lacking, file, metadata={"format": "pt"})
    with pytest.raises(BackboneRefused, match=r"lack encoder\.layers\.1\.fc1"):
        audio_runtime(model)


# -- CUDA graphs, on the CPU


def test_captured_passes_are_the_same(tmp_path: Path) -> None:
    runtime = audio_runtime(directory())
    bank = runtime.bank = AdapterBank(runtime.model, runtime.device, stacked=True)
    adapters: list[Any] = [None]
    for seed, rank in enumerate((4, 4, 16), 1):
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj", "fc2"])
        save_adapter(tmp_path / str(seed) / "adapter", encoder(), config, seed=seed, scale=0.2)
        adapters.append(serve(runtime, tmp_path / str(seed), adapter={"kind": "peft"}).extensions.adapter)
    plain, captured = (Forward(runtime.model, bank, 8) for _ in range(2))
    kinds: list[PassKind] = []
    recorder: Any = FakeRecorder()

    def capture(kind: PassKind) -> CapturedFrames:
        kinds.append(kind)
        return CapturedFrames(captured, kind, recorder)

    captured.graphs = Graphs(capture, after=1, clock=lambda: 0.0)
    captured._generation = bank.generation
    rows = [runtime.preprocessor.read(each, 1)[0] for each in CLIPS]
    for chosen in ([0], [0, 0, 0], [0, 1, 2, 3, 0], [1, 1, 2, 2, 3]):
        own = sorted((adapters[number] for number in chosen), key=bank.order)
        one, other = (each.launch(rows[: len(own)], own, {"mean", "max"}).hidden() for each in (plain, captured))
        for place in range(len(own)):
            for pooling in ("mean", "max"):
                np.testing.assert_allclose(
                    other.row(place, pooling, rows[place]), one.row(place, pooling, rows[place]), rtol=1e-4, atol=2e-5
                )
    assert [(each.rows, each.longest) for each in kinds] == [(1, 80), (4, 176), (8, 384)]


def test_positions_of_a_shorter_window_are_the_first_of_the_whole() -> None:
    model, _ = tiny_whisper()
    whole = model.encoder.embed_positions.weight
    config = model.config.__class__(**{**model.config.to_dict(), "max_source_positions": 40})
    assert torch.equal(WhisperModel(config).encoder.embed_positions.weight, whole[:40])
