"""Tasks on pictures: from folders, tables of paths, PIL images and arrays."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vision_fixtures import encoded, picture, save_vision

from fmplex import Backbone, Classifier, Embedder, ImageArray, ImageFile, LoRA, Nearest, Task, TaskProblem
from fmplex_backend.repository.config import load_task_config
from testing.repositories import write_backbone

LABELS = ("bright", "dark")


def of_label(label: str, seed: int) -> Any:
    return picture(seed) // 3 + (150 if label == "bright" else 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`pictures/bright/...` and `pictures/dark/...`, twelve of each."""
    for label in LABELS:
        (tmp_path / "pictures" / label / "more").mkdir(parents=True)
        for seed in range(12):
            place = tmp_path / "pictures" / label / ("more" if seed > 8 else ".") / f"{seed}.png"
            place.write_bytes(encoded(of_label(label, seed)))
    (tmp_path / "pictures" / "dark" / "notes.txt").write_text("no picture")
    (tmp_path / "pictures" / "dark" / ".hidden.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    """A tiny DINOv2 with registers."""
    root = tmp_path / "repository"
    root.mkdir()
    model = save_vision(tmp_path / "model")
    write_backbone(root, "dino", model=str(model), family="vision-encoder", max_batch_size=16, threads="1")
    return Backbone("dino", repository=root, device="cpu")


def test_a_folder_is_rows_with_labels(folder: Path, backbone: Backbone) -> None:
    task = Task("light", backbone, decoder=Classifier())
    rows = task.rows(folder)
    assert rows.labels == ["bright"] * 12 + ["dark"] * 12
    assert rows.items[0].source == folder / "bright" / "0.png"
    task.fit(folder, validation=0.25, test=folder, progress=False)
    assert task.metrics["accuracy"] == 1.0
    assert [each.label for each in task.predict(folder / "dark")] == ["dark"] * 12  # type: ignore[attr-defined]


def test_every_form_of_a_picture_is_answered_alike(folder: Path, backbone: Backbone) -> None:
    task = Task("light", backbone, decoder=Classifier(pooling="cls"))
    task.fit([of_label(label, seed) for label in LABELS for seed in range(8)], [*LABELS[:1] * 8, *LABELS[1:] * 8])
    file, pixels = folder / "dark" / "3.png", of_label("dark", 3)
    forms: list[Any] = [str(file), file, file.read_bytes(), Image.open(file), pixels, pixels[None], [file]]
    answers = [task.predict(form) for form in forms]
    assert all(len(each) == 1 and each[0] == answers[0][0] for each in answers)
    assert len(task.predict(np.stack([pixels, pixels]))) == 2


def test_a_table_names_pictures_from_its_own_folder(
    folder: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = folder / "train.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label"])
        writer.writerows([[f"{label}/{seed}.png", label] for label in LABELS for seed in range(8)])
    monkeypatch.chdir(folder.parent)
    task = Task("light", backbone, decoder=Nearest(k=1))
    task.fit(table, progress=False)
    assert task.evaluate(table).figures["accuracy"] == 1.0
    table.write_text("image,label\nnone.png,dark\n")
    with pytest.raises(TaskProblem, match=r"train\.csv, row 0: there is no file none\.png"):
        task.rows(table)


def test_lora_adapts_queries_and_values_by_default(folder: Path, backbone: Backbone) -> None:
    task = Task("light", backbone, adapter=LoRA(r=4), decoder=Classifier(), encoder=ImageFile(side=48))
    task.fit(folder, epochs=1, progress=False)
    assert task.fitted.adapter is not None
    assert {name.split(".")[-3] for name in task.fitted.adapter.tensors} == {"q_proj", "v_proj"}
    saved = task.save()
    assert load_task_config(saved / "task.json").encoder == ImageFile(side=48)
    again = Task.load(saved.parent, backbone)
    file = folder / "dark" / "1.png"
    assert again.predict(file) == task.predict(file)
    entry = (saved.parent / "config.pbtxt").read_text()
    assert '"IMAGE_BYTES"' in entry
    assert "TRUNCATED" not in entry


def test_pixels_of_one_request_are_of_one_size(backbone: Backbone) -> None:
    task = Task("vector", backbone, decoder=Embedder(), encoder=ImageArray())
    assert len(task.predict([picture(1, 20, 30), picture(2, 20, 30)])) == 2
    with pytest.raises(TaskProblem, match=r"of one size.*20 x 20, 30 x 20.*ImageFile"):
        task.predict([picture(1, 20, 20), picture(2, 20, 30)])
    entry = (task.save().parent / "config.pbtxt").read_text()
    assert '"IMAGE"' in entry


def test_what_is_no_picture_is_named(folder: Path, backbone: Backbone) -> None:
    task = Task("light", backbone, decoder=Classifier())
    (folder / "dark" / "broken.jpg").write_bytes(encoded(picture(1), "JPEG")[:300])
    with pytest.raises(TaskProblem, match=r"row \d+ \(.*broken\.jpg\): it cannot be decoded"):
        task.fit(folder, progress=False)
    with pytest.raises(TaskProblem, match="is no picture"):
        task.predict(3.5)  # type: ignore[arg-type]
    with pytest.raises(TaskProblem, match="has no labelled files"):
        task.rows(folder / "dark" / "more")
    with pytest.raises(TaskProblem, match="has no files of these kinds"):
        task.predict(folder.parent / "repository")


def test_tasks_on_texts_read_no_folders(folder: Path) -> None:
    from fmplex.data.rows import items_of, rows_of
    from fmplex_backend.families.text_encoder.inputs import TEXT

    for read in (lambda: rows_of(folder, None, TEXT), lambda: items_of(folder, TEXT)):
        with pytest.raises(TaskProblem, match="is a folder, and the task reads TEXT"):
            read()
