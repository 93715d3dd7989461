"""Tasks that answer with maps: from folders, tables and arrays to served versions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vision_fixtures import encoded, save_vision

from fmplex import (
    Backbone,
    DepthMap,
    ImageFile,
    LabelMap,
    LoRA,
    SegmentationMap,
    Task,
    TaskProblem,
    TaskRefused,
    ValueMap,
)
from fmplex.training.options import FitOptions
from fmplex.training.prepare import TaskParts, _digest
from fmplex.training.trained import TrainedWeights
from fmplex_backend.families.vision_encoder.masks import resized
from fmplex_backend.repository.config import load_task_config
from testing.repositories import write_backbone

LABELS = ("ground", "block")
SIDE = 64


def scene(seed: int) -> tuple[Any, Any]:
    """A bright block on noisy dark ground [64, 96, 3], and its mask."""
    rng = np.random.default_rng(seed)
    pixels, mask = rng.integers(0, 60, (SIDE, 96, 3)), np.zeros((SIDE, 96), np.uint8)
    top, left = 8 * rng.integers(0, 4), 12 * rng.integers(0, 4)
    mask[top : top + 32, left : left + 48] = 1
    pixels[mask == 1] += 180
    return pixels.astype(np.uint8), mask


SCENES = [scene(seed) for seed in range(24)]
PICTURES, MASKS = [pixels for pixels, _ in SCENES], [mask for _, mask in SCENES]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`images/...` and `masks/...`, as PNG files of the same names."""
    for place, (pixels, mask) in enumerate(SCENES):
        for kind, content, name in (("images", pixels, f"{place}.webp"), ("masks", mask, f"{place}.png")):
            file = tmp_path / "scenes" / kind / str(place % 2) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(content, "PNG") if kind == "masks" else encoded(content, "WEBP", lossless=True))
    return tmp_path / "scenes"


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    """A tiny DINOv2 with registers, whose processor crops."""
    root = tmp_path / "repository"
    root.mkdir()
    model = save_vision(tmp_path / "model")
    write_backbone(root, "dino", model=str(model), family="vision-encoder", max_batch_size=16, threads="1")
    return Backbone("dino", repository=root, device="cpu")


def test_masks_beside_pictures_teach_a_segmentation(folder: Path, backbone: Backbone) -> None:
    task = Task("blocks", backbone, decoder=SegmentationMap(LABELS, size=(16, 24)), encoder=ImageFile(side=64))
    rows = task.rows(folder)
    assert rows.labels[0] == folder / "masks" / "0" / "0.png"
    assert rows.items[0].source == folder / "images" / "0" / "0.webp"
    history = task.fit(folder, validation=0.25, test=(PICTURES, MASKS), progress=False)
    assert history.figure == "pixel_accuracy"
    assert task.metrics["mean_iou"] > 0.8 < task.metrics["pixel_accuracy"]
    (found,) = task.predict(PICTURES[0])
    assert isinstance(found, LabelMap)
    assert found.map.shape == (16, 24)
    assert found.map.dtype == np.uint8
    assert (found.resized(SIDE, 96) == MASKS[0]).mean() > 0.9
    assert list(found.scores) == list(LABELS)
    assert found.scores["block"] == pytest.approx(float(MASKS[0].mean()), abs=0.1)
    saved = task.save()
    document = json.loads((saved / "task.json").read_text())
    assert document["decoder"]["size"] == [16, 24]
    entry = (saved.parent / "config.pbtxt").read_text()
    assert "TYPE_UINT8" in entry
    assert 'key: "LABEL_MAP"' in entry
    again = Task.load(saved.parent, backbone)
    (other,) = again.predict(PICTURES[0])
    assert np.array_equal(other.map, found.map)  # type: ignore[attr-defined]


def test_figures_are_of_the_masks_own_pixels(backbone: Backbone) -> None:
    decoder = SegmentationMap(["a", "b", "c"], size=2)
    task = Task("blocks", backbone, decoder=decoder)
    mask = np.array([[0, 0, 1, 1], [0, 1, 1, 255]], np.uint8)
    rows = task.rows([np.zeros((2, 4, 3), np.uint8)], [mask])
    found = decoder.figures(rows, [{"MAP": np.array([[0, 1], [0, 1]], np.uint8)}])
    assert found.figures == {"mean_iou": pytest.approx((3 / 4 + 3 / 4) / 2), "pixel_accuracy": round(6 / 7, 4)}


def test_labels_are_the_numbers_in_masks_where_none_are_named(backbone: Backbone) -> None:
    task = Task("blocks", backbone, decoder=SegmentationMap(size=8))
    task.fit(PICTURES[:6], [2 * mask for mask in MASKS[:6]], progress=False)
    assert task.decoder.label_names == ["0", "1", "2"]
    assert any("'1' has no pixel" in remark for remark in task.remarks)
    with pytest.raises(TaskProblem, match="row 1: its mask: it has the number 7, and the labels have 0 to 2"):
        task.evaluate(PICTURES[:2], [MASKS[0], 7 * MASKS[1]])
    one = Task("one", backbone, decoder=SegmentationMap(size=8))
    with pytest.raises(TaskProblem, match="leaves nothing to tell apart"):
        one.fit(PICTURES[:2], [np.zeros_like(MASKS[0])] * 2, progress=False)


def test_a_lora_is_fitted_with_a_map(backbone: Backbone) -> None:
    task = Task("blocks", backbone, adapter=LoRA(r=2), decoder=SegmentationMap(LABELS, size=16, hidden=[8]))
    task.fit(PICTURES[:12], MASKS[:12], epochs=2, class_weights="balanced", validation=0.25, progress=False)
    assert task.fitted.adapter is not None
    assert len(task.history.training) == 2  # type: ignore[union-attr]
    assert task.evaluate(PICTURES, MASKS).figures["mean_iou"] > 0.2


def test_a_lora_is_compared_with_the_head_alone(backbone: Backbone) -> None:
    task = Task("blocks", backbone, adapter=LoRA(r=2), decoder=SegmentationMap(LABELS, size=16))
    task.fit(PICTURES[:12], MASKS[:12], epochs=1, test=(PICTURES[12:], MASKS[12:]), progress=False)
    assert {"mean_iou", "head_only_mean_iou"} <= task.metrics.keys()


def test_the_digest_of_masks_is_of_what_they_show(backbone: Backbone) -> None:
    task = Task("blocks", backbone, decoder=SegmentationMap(LABELS, size=16))

    def digest(masks: list[Any]) -> str:
        rows = task.rows(PICTURES[:2], masks)
        parts = TaskParts("blocks", backbone, task.encoder, None, task.decoder, TrainedWeights())
        return _digest(parts, task.decoder, rows, FitOptions())

    first, again, other = ([Image.fromarray(mask) for mask in masks] for masks in (MASKS[:2], MASKS[:2], MASKS[1:3]))
    assert digest(first) == digest(again) != digest(other)


def test_depths_are_fitted_where_they_are_known(backbone: Backbone, tmp_path: Path) -> None:
    for name in ("images", "depths"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for place, (pixels, mask) in enumerate(SCENES):
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{place}.png")
        millimetres = (1000 + 2000 * mask.astype(np.uint16)).astype(np.uint16)
        millimetres[:8] = 0  # unknown
        Image.fromarray(millimetres).save(tmp_path / "data" / "depths" / f"{place}.png")
    task = Task("depth", backbone, decoder=DepthMap(size=(16, 24), scale=0.001), encoder=ImageFile(side=64))
    task.fit(tmp_path / "data", progress=False)
    figures = task.evaluate(tmp_path / "data").figures
    assert figures["rmse"] < figures["mean_rmse"] / 2
    (found,) = task.predict(PICTURES[3])
    assert isinstance(found, ValueMap)
    assert found.map.dtype == np.float32
    wanted = 1 + 2 * resized(MASKS[3], (16, 24)).astype(np.float32)
    assert np.abs(found.map - wanted).mean() < 0.4
    saved = task.save()
    assert json.loads((saved / "task.json").read_text())["decoder"]["scale"] == 0.001
    assert Task.load(saved.parent, backbone).evaluate(tmp_path / "data").figures == figures


def test_a_table_names_masks_from_its_own_folder(
    folder: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = folder / "train.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "mask"])
        writer.writerows([[f"images/0/{n}.webp", f"masks/0/{n}.png"] for n in range(0, 8, 2)])
    monkeypatch.chdir(folder.parent)
    task = Task("blocks", backbone, decoder=SegmentationMap(LABELS, size=8))
    task.fit(table, progress=False)
    table.write_text("image,mask\nimages/0/0.webp,masks/none.png\n")
    with pytest.raises(TaskProblem, match=r"train\.csv, row 0: the label 'masks/none\.png' is no \.png or \.npy file"):
        task.rows(table)


def test_a_picture_without_a_mask_is_named(folder: Path, backbone: Backbone) -> None:
    task = Task("blocks", backbone, decoder=SegmentationMap(LABELS, size=8))
    (folder / "masks" / "1" / "3.png").unlink()
    with pytest.raises(TaskProblem, match=r"images/1/3\.webp has no .*masks/1/3\.png"):
        task.rows(folder)
    with pytest.raises(TaskProblem, match=r"has no folders images and masks.*images/1\.jpg and masks/1\.png"):
        task.rows(folder / "images")


def test_a_version_for_a_backbone_without_a_grid_is_refused(backbone: Backbone) -> None:
    from dataclasses import replace

    task = Task("blocks", backbone, decoder=SegmentationMap(LABELS, size=8))
    task.fit(PICTURES[:6], MASKS[:6], progress=False)
    saved = task.save()
    assert load_task_config(saved / "task.json").decoder == SegmentationMap([*LABELS], size=8)
    runtime: Any = backbone.runtime
    runtime.anatomy = replace(runtime.anatomy, stride=None)
    with pytest.raises(TaskRefused, match=r"decoder\.kind.*segmentation.*no square grid of patches"):
        runtime.load(saved)
