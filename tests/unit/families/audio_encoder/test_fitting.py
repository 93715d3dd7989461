"""Vectors while a task is fitted: long clips in passes that fit into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from audio_fixtures import HIDDEN, WINDOW, audio_runtime, clip, save_whisper
from hypothesis import given
from hypothesis import strategies as st

from fmplex import AudioSamples
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.families.audio_encoder import fitting
from fmplex_backend.families.audio_encoder.clips import clip_of
from fmplex_backend.families.audio_encoder.fitting import AudioFittingInputs, passes_of


@pytest.mark.parametrize("reads", ["mean", "max"])
def test_long_clips_go_through_in_several_passes(reads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = audio_runtime(save_whisper(tmp_path / "model"))
    inputs = AudioFittingInputs(AudioSamples(), runtime)
    clips = [clip_of(clip(seed, seconds)) for seed, seconds in enumerate((20, 0.3, 9, 2, 17))]
    examples = inputs.examples(Rows(clips, [], []), reads=reads)
    assert [len(each.parts) for each in examples] == [3, 1, 2, 1, 3]
    assert examples[0].length == sum(part.length for part in examples[0].parts) > WINDOW
    features = inputs.features(runtime.model, runtime.model, reads)
    sizes: list[int] = []
    own = fitting.encoder_states

    def counted(model: Any, values: Any, lengths: Any) -> Any:
        states = own(model, values, lengths)
        sizes.append(states.shape[0] * states.shape[1])
        return states

    monkeypatch.setattr(fitting, "encoder_states", counted)
    whole = features.every(examples)
    assert (len(sizes), whole.shape) == (1, (len(clips), HIDDEN))
    monkeypatch.setattr(fitting, "MOST_TOKENS", 2 * WINDOW)
    sizes.clear()
    torch.testing.assert_close(features.every(examples), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.vectors(examples), whole, rtol=1e-4, atol=1e-5)
    assert len(sizes) > 6
    assert max(sizes) <= 2 * WINDOW


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(100, 2000))
def test_each_part_is_in_one_pass(lengths: list[int], most: int) -> None:
    passes = passes_of(lengths, most)
    assert sorted(place for chosen in passes for place in chosen) == list(range(len(lengths)))
    for chosen in passes:
        assert len(chosen) == 1 or len(chosen) * max(lengths[place] for place in chosen) <= most
