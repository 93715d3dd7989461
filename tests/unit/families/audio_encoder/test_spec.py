"""What the spec tells without loading anything: which models are of the family, their width, their inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audio_fixtures import HIDDEN, audio_runtime, clip, encoded, save_whisper

from fmplex import AudioFile, TaskProblem
from fmplex_backend.families.audio_encoder.inputs import AUDIO, AUDIO_BYTES
from fmplex_backend.families.audio_encoder.spec import AudioEncoders
from fmplex_backend.repository.backbone import family_of
from fmplex_backend.repository.config import load_backbone_config

SPEC = AudioEncoders()


def test_saved_models_are_known_by_their_config(tmp_path: Path) -> None:
    directory = save_whisper(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    assert family_of("model", config) == "audio-encoder"
    parameters = load_backbone_config(tmp_path, {"model": str(directory), "family": "audio-encoder"})
    assert SPEC.hidden_width(parameters, tmp_path / "config.pbtxt") == HIDDEN
    assert str(SPEC.fingerprint(parameters, tmp_path / "config.pbtxt")).startswith("sha256:")


def test_options_of_other_families_are_refused() -> None:
    assert SPEC.encoder_for([], {}) == AudioFile()
    for columns, options in ((["a", "b"], {}), ([], {"prefix": "query: "})):
        with pytest.raises(TaskProblem, match="reads audio"):
            SPEC.encoder_for(columns, options)


def test_samples_are_of_about_so_many_tokens(tmp_path: Path) -> None:
    runtime = audio_runtime(save_whisper(tmp_path / "model"))
    for length in (60, 150):
        rows = [runtime.preprocessor.read(each.samples(30), 1)[0] for each in SPEC.samples("AUDIO_BYTES", length, 4, 0)]
        assert {row.length for row in rows} == {length}
        assert len({row.key for row in rows}) == 4


def tables(whole: Any, folder: Path) -> list[Any]:
    """What holds clips, and is none."""
    return [
        ["a.wav"],
        "rows.csv",
        folder,
        whole[None],
        (whole, whole),
        (whole, "a.wav"),
        (),
        {},
        {"path": ["a.wav"], "label": ["b"]},
        {"path": ["a.wav", "b.wav"]},
    ]


@pytest.mark.parametrize("reads", [AUDIO, AUDIO_BYTES], ids=["AUDIO", "AUDIO_BYTES"])
def test_inputs(reads: Any, tmp_path: Path) -> None:
    file = tmp_path / "one.WAV"
    file.write_bytes(encoded(clip(1)))
    whole = clip(1)
    one: list[Any] = [str(file), file, file.read_bytes(), whole, (whole, 8000), reads.parse(str(file))]
    one += [
        {"array": whole, "sampling_rate": 8000},
        {"bytes": None, "path": str(file)},
        {"array": whole},
        {"array": whole.tolist(), "sampling_rate": 8000},
        (whole, 8000.0),
        (whole, 0),
    ]
    assert all(reads.is_item(each) for each in one)
    assert not any(reads.is_item(each) for each in tables(whole, tmp_path))
    assert [reads.show(each)[:6] for each in one[2:5]] == ["a clip", "a clip", "a clip"]
    sent = reads.array([one[0]])
    if reads is AUDIO:
        assert (sent.dtype, sent.shape) == (np.float32, (1, len(whole)))
        with pytest.raises(TaskProblem, match=r"of one length.*AudioFile"):
            reads.array([whole, whole[:100]])
    else:
        assert sent.tolist() == [[file.read_bytes()]]
    silent = np.zeros(0, np.float32)
    for bad in (str(tmp_path / "none.wav"), 3, (whole, 0), (whole, -1), (whole, 2**31), silent, whole * np.nan):
        with pytest.raises(TaskProblem, match=r"item 1[ :]"):
            reads.array([whole, bad])
    with pytest.raises(TaskProblem, match="there is no file"):
        reads.parse("none.wav")
