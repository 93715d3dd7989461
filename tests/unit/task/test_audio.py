"""Tasks on audio: from folders, tables of paths, and arrays."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audio_fixtures import clip, encoded, save_whisper

from fmplex import AudioFile, AudioSamples, Backbone, Classifier, Embedder, LoRA, Nearest, Task, TaskProblem
from fmplex_backend.repository.config import load_task_config
from testing.repositories import write_backbone

LABELS = ("high", "low")


def of_label(label: str, seed: int) -> Any:
    return clip(seed, 0.3, pitch=2500 if label == "high" else 150)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`clips/high/...` and `clips/low/...`, twelve of each."""
    for label in LABELS:
        (tmp_path / "clips" / label).mkdir(parents=True)
        for seed in range(12):
            (tmp_path / "clips" / label / f"{seed}.wav").write_bytes(encoded(of_label(label, seed)))
    (tmp_path / "clips" / "low" / "notes.txt").write_text("no clip")
    return tmp_path / "clips"


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    """A tiny Whisper."""
    root = tmp_path / "repository"
    root.mkdir()
    model = save_whisper(tmp_path / "model")
    write_backbone(root, "ear", model=str(model), family="audio-encoder", max_batch_size=16, threads="1")
    return Backbone("ear", repository=root, device="cpu")


def test_a_folder_is_rows_with_labels(folder: Path, backbone: Backbone) -> None:
    task = Task("pitch", backbone, decoder=Classifier())
    assert task.rows(folder).labels == ["high"] * 12 + ["low"] * 12
    task.fit(folder, validation=0.25, test=folder, progress=False)
    assert task.metrics["accuracy"] == 1.0
    assert [each.label for each in task.predict(folder / "low")] == ["low"] * 12  # type: ignore[attr-defined]


def test_every_form_of_a_clip_is_answered_alike(folder: Path, backbone: Backbone) -> None:
    task = Task("pitch", backbone, decoder=Classifier(pooling="max"))
    task.fit([of_label(label, seed) for label in LABELS for seed in range(8)], [*LABELS[:1] * 8, *LABELS[1:] * 8])
    whole = np.round(of_label("low", 3) * 32768).astype(np.int16)
    file = folder / "low" / "16bit.wav"
    file.write_bytes(encoded(whole))
    forms: list[Any] = [str(file), file, file.read_bytes(), whole, (whole, 16_000), whole[None], [file]]
    answers = [task.predict(form) for form in forms]
    assert all(len(each) == 1 and each[0] == answers[0][0] for each in answers)


def test_a_table_names_clips_from_its_own_folder(
    folder: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = folder / "train.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["audio", "label"])
        writer.writerows([[f"{label}/{seed}.wav", label] for label in LABELS for seed in range(8)])
    monkeypatch.chdir(folder.parent)
    task = Task("pitch", backbone, decoder=Nearest(k=1))
    task.fit(table, progress=False)
    assert task.evaluate(table).figures["accuracy"] == 1.0


def test_lora_adapts_queries_and_values_by_default(folder: Path, backbone: Backbone) -> None:
    task = Task("pitch", backbone, adapter=LoRA(r=4), decoder=Classifier(), encoder=AudioFile(silence=0.5))
    task.fit(folder, epochs=1, progress=False)
    assert task.fitted.adapter is not None
    assert {name.split(".")[-3] for name in task.fitted.adapter.tensors} == {"q_proj", "v_proj"}
    saved = task.save()
    assert load_task_config(saved / "task.json").encoder == AudioFile(silence=0.5)
    again = Task.load(saved.parent, backbone)
    file = folder / "low" / "1.wav"
    assert again.predict(file) == task.predict(file)
    assert '"AUDIO_BYTES"' in (saved.parent / "config.pbtxt").read_text()


def test_samples_of_one_request_are_of_one_length(backbone: Backbone) -> None:
    task = Task("vector", backbone, decoder=Embedder(), encoder=AudioSamples())
    assert len(task.predict([clip(1), clip(2)])) == 2
    with pytest.raises(TaskProblem, match=r"of one length.*AudioFile"):
        task.predict([clip(1), clip(2, 0.4)])
    assert '"AUDIO"' in (task.save().parent / "config.pbtxt").read_text()


def test_what_is_no_clip_is_named(folder: Path, backbone: Backbone) -> None:
    task = Task("pitch", backbone, decoder=Classifier())
    (folder / "low" / "broken.wav").write_bytes(encoded(clip(1))[:30])
    with pytest.raises(TaskProblem, match=r"row \d+ \(.*broken\.wav\): it is no WAV"):
        task.fit(folder, progress=False)
    with pytest.raises(TaskProblem, match="is no clip"):
        task.predict(3.5)  # type: ignore[arg-type]
    with pytest.raises(TaskProblem, match="no class token"):
        Task("pitch", backbone, decoder=Classifier(pooling="cls")).fit(
            [clip(1), clip(2)], ["low", "high"], progress=False
        )
