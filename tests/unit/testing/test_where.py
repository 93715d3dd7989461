"""Where test backbones run, and the model that stands in for one that cannot be installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_fixtures import save_tiny
from tolerances import BFLOAT16, FLOAT32_CPU, FLOAT32_GPU, tolerance

from fmplex_backend.families.model_files import find_model
from fmplex_backend.families.text_encoder.huggingface import load_backbone
from fmplex_backend.families.text_encoder.parameters import TextEncoderConfig
from testing import device
from testing.models import MINILM
from testing.repositories import write_backbone
from testing.stand_in import write_stand_in

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 64}


def test_the_environment_says_where_backbones_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FMPLEX_TEST_KIND", raising=False)
    monkeypatch.delenv("FMPLEX_TEST_DTYPE", raising=False)
    write_backbone(tmp_path, "plain")
    monkeypatch.setenv("FMPLEX_TEST_KIND", "KIND_GPU")
    assert (device.torch_device(), tolerance()) == ("cuda:0", FLOAT32_GPU)
    monkeypatch.setenv("FMPLEX_TEST_DTYPE", "bfloat16")
    assert tolerance() is BFLOAT16
    write_backbone(tmp_path, "told")
    write_backbone(tmp_path, "own", kind="KIND_CPU", dtype="float32")
    plain, told, own = ((tmp_path / name / "config.pbtxt").read_text() for name in ("plain", "told", "own"))
    assert ("KIND_CPU" in plain, "float32" in plain) == (True, True)
    assert ("KIND_GPU" in told, "bfloat16" in told) == (True, True)
    assert ("KIND_CPU" in own, "float32" in own, "bfloat16" in own) == (True, True, False)


def test_a_stand_in_is_found_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = save_tiny(tmp_path / "tiny")
    model = write_stand_in(tmp_path / "site", tokenizer, SMALL)
    assert (model / "tokenizer.json").is_file()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    file = tmp_path / "config.pbtxt"
    assert find_model(f"package:{MINILM}", file) == model
    loaded = load_backbone(TextEncoderConfig(model=f"package:{MINILM}", threads=1), file, torch.device("cpu"))
    assert loaded.model.config.hidden_size == 32


def test_labels_follow_from_scores_that_are_not_close() -> None:
    def row(*scores: float) -> dict[str, np.ndarray]:
        return {"SCORES": np.array(scores, dtype=np.float32), "LABEL": np.array(["a"], dtype=np.object_)}

    assert BFLOAT16.settles(row(0.9, 0.1))
    assert not BFLOAT16.settles(row(0.51, 0.49))
    assert FLOAT32_CPU.settles(row(0.51, 0.49))
    several = {"SCORES": np.array([0.9, 0.1]), "LABEL": np.array(["a", ""], dtype=np.object_)}
    assert not BFLOAT16.settles(several)
    assert BFLOAT16.of(np.array([0.0, 2.0])) == pytest.approx(0.21)
