"""Clips -> vectors while a task is fitted, as the server computes them. Imported only when fitting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.audio_encoder.clips import Clip
from fmplex_backend.families.audio_encoder.forward import Forward
from fmplex_backend.families.audio_encoder.preprocessing import Frames
from fmplex_backend.families.audio_encoder.runtime import AudioEncoderRuntime
from fmplex_backend.families.audio_encoder.sections import AudioFile, AudioSamples
from fmplex_backend.families.audio_encoder.whisper import encoder_states, kept
from fmplex_backend.families.fitting import LearnsNothing, PooledFeatures
from fmplex_backend.families.pooling import pool

MOST_TOKENS = 16384  # of a pass: a batch of long clips has a hundred times as many


@dataclass(frozen=True, slots=True)
class ClipExample:
    """A clip as the backbone takes it."""

    parts: list[Frames]
    words: ClassVar[Sequence[int]] = ()
    rows: ClassVar[int] = 1

    @property
    def length(self) -> int:
        """Tokens of all its parts."""
        return sum(part.length for part in self.parts)


class AudioFittingInputs(LearnsNothing):
    """A task's encoder while the task is fitted."""

    def __init__(self, encoder: AudioFile | AudioSamples, runtime: AudioEncoderRuntime) -> None:
        self.encoder, self.runtime = encoder, runtime

    def examples(self, rows: Rows, *, reads: str) -> list[ClipExample]:
        """Rows ready for `AudioFeatures`, several at a time; raises TaskProblem for the first that is no clip."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(self._example, range(len(rows)), rows.items, [rows.source] * len(rows)))

    def features(self, bare: Any, model: Any, reads: str) -> AudioFeatures:
        """A pooling over the bare backbone and over the model that is being fitted."""
        if reads == "cls":
            raise TaskProblem("decoder.pooling: it is cls, but the backbone has no class token. Say mean or max")
        return AudioFeatures(bare, model, reads, self.runtime)

    def _example(self, place: int, clip: Clip, source: str) -> ClipExample:
        preprocessor = self.runtime.preprocessor
        try:
            return ClipExample(preprocessor.read(clip.samples(preprocessor.most), self.encoder.silence))
        except ValueError as error:
            raise TaskProblem(f"{source}, row {place} ({clip.name}): {error}") from None


class AudioFeatures(PooledFeatures[ClipExample]):
    """See `PooledFeatures`."""

    def __init__(self, bare: Any, model: Any, reads: str, runtime: AudioEncoderRuntime) -> None:
        super().__init__(bare, model, reads, runtime.device)
        self.forward: Forward = runtime.forward

    def through(self, model: Any, examples: Sequence[ClipExample]) -> Tensor:
        parts = [part for each in examples for part in each.parts]
        passes = passes_of([part.length for part in parts], MOST_TOKENS)
        order = torch.tensor([place for chosen in passes for place in chosen])
        pooled = torch.cat([self._pooled(model, [parts[place] for place in chosen]) for chosen in passes])
        pooled = pooled[order.argsort().to(self.device)]
        if len(parts) == len(examples):
            return pooled
        clips = torch.split(pooled, [len(each.parts) for each in examples])
        return torch.stack([clip.amax(dim=0) if self.reads == "max" else clip.mean(dim=0) for clip in clips])

    def _pooled(self, model: Any, parts: Sequence[Frames]) -> Tensor:
        """[n, h] of parts in one pass."""
        longest = max(part.length for part in parts)
        dtype = next(model.parameters()).dtype
        own, lengths = (
            torch.tensor(each, device=self.device)
            for each in ([part.own for part in parts], [part.length for part in parts])
        )
        features = self.forward.stacked(parts, longest).to(self.device, dtype)
        states = encoder_states(model, features, lengths if bool((lengths < longest).any()) else None)
        return pool(self.reads, states, kept(own, longest))


def passes_of(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Parts in passes of at most so many tokens with their padding, the short ones first; a longer one has its own."""
    passes: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if passes and (len(passes[-1]) + 1) * lengths[place] <= most:
            passes[-1].append(place)
        else:
            passes.append([place])
    return passes
