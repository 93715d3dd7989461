"""What the spec tells without loading anything: which models are of the family, their width, their inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from vision_fixtures import MODELS, encoded, picture, save_vision, vision_runtime

from fmplex import TaskProblem
from fmplex_backend import families
from fmplex_backend.families.vision_encoder.inputs import IMAGE, IMAGE_BYTES
from fmplex_backend.families.vision_encoder.sections import ImageFile
from fmplex_backend.families.vision_encoder.spec import VisionEncoders
from fmplex_backend.repository.backbone import family_of
from fmplex_backend.repository.config import load_backbone_config

SPEC = VisionEncoders()


@pytest.mark.parametrize("kind", MODELS)
def test_saved_models_are_known_by_their_config(kind: str, tmp_path: Path) -> None:
    directory = save_vision(tmp_path / "model", kind)
    config = json.loads((directory / "config.json").read_text())
    assert family_of("model", config) == "vision-encoder"
    parameters = load_backbone_config(tmp_path, {"model": str(directory), "family": "vision-encoder"})
    assert SPEC.hidden_width(parameters, tmp_path / "config.pbtxt") == vision_runtime(directory).hidden
    assert str(SPEC.fingerprint(parameters, tmp_path / "config.pbtxt")).startswith("sha256:")


@pytest.mark.parametrize(
    ("config", "takes"),
    [
        ({"model_type": "beit", "hidden_size": 8, "image_size": 224, "vocab_size": 8192}, True),
        ({"model_type": "vit", "hidden_size": 8, "architectures": ["ViTForImageClassification"]}, True),
        ({"model_type": "bert", "hidden_size": 8, "vocab_size": 100}, False),
        ({"model_type": "llava", "vision_config": {}, "text_config": {}, "architectures": ["LlavaForCausalLM"]}, False),
        ({"model_type": "detr", "num_channels": 3, "architectures": ["DetrForObjectDetection"]}, False),
        ({"model_type": "videomae", "image_size": 224, "num_frames": 16}, False),
        ({"model_type": "vision-encoder-decoder", "is_encoder_decoder": True, "image_size": 4}, False),
    ],
)
def test_models_of_other_kinds_are_not(config: dict[str, Any], takes: bool) -> None:
    assert SPEC.takes_model(config) == takes
    if takes:
        assert not families.family("text-encoder").takes_model(config)


def test_options_of_other_families_are_refused() -> None:
    assert SPEC.encoder_for([], {}) == ImageFile()
    for columns, options in ((["a", "b"], {}), ([], {"prefix": "query: "})):
        with pytest.raises(TaskProblem, match="reads pictures"):
            SPEC.encoder_for(columns, options)


@pytest.mark.parametrize("reads", [IMAGE, IMAGE_BYTES], ids=["IMAGE", "IMAGE_BYTES"])
def test_inputs(reads: Any, tmp_path: Path) -> None:
    file = tmp_path / "one.JPG"
    file.write_bytes(encoded(picture(1), "JPEG"))
    one: list[Any] = [str(file), file, file.read_bytes(), Image.open(file), picture(1), reads.parse(str(file))]
    assert all(reads.is_item(each) for each in one)
    assert not any(reads.is_item(each) for each in (["a.png"], "rows.csv", tmp_path, picture(1)[None]))
    assert [reads.show(each)[:9] for each in one[2:]] == ["a picture", "a picture", "a picture", str(file)[:9]]
    sent = reads.array([one[0]])
    if reads is IMAGE:
        assert (sent.dtype, sent.shape) == (np.uint8, (1, 40, 48, 3))
    else:
        assert sent.tolist() == [[file.read_bytes()]]
    for bad in (str(tmp_path / "none.png"), 3):
        with pytest.raises(TaskProblem):
            reads.array([bad])
    with pytest.raises(TaskProblem, match="there is no file"):
        reads.parse("none.png")
    with pytest.raises(ValueError, match="there is no file"):
        reads.item("none.png")
    damaged = tmp_path / "bad.png"
    damaged.write_bytes(b"no picture")
    if reads is IMAGE:
        with pytest.raises(TaskProblem, match=r"bad\.png: it is no JPEG"):
            reads.array([damaged])
