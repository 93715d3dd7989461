"""Pictures -> vectors while a task is fitted, as the server computes them. Imported only when fitting."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fmplex_backend.decoders.decoder import TOKENS
from fmplex_backend.decoders.rows import Rows
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.fitting import LearnsNothing, PooledFeatures
from fmplex_backend.families.vision_encoder.anatomy import read
from fmplex_backend.families.vision_encoder.pictures import Picture
from fmplex_backend.families.vision_encoder.preprocessing import Pixels
from fmplex_backend.families.vision_encoder.runtime import OTHER_KIND, VisionEncoderRuntime
from fmplex_backend.families.vision_encoder.sections import ImageArray, ImageFile


@dataclass(frozen=True, slots=True)
class PictureExample:
    """A picture as the backbone takes it."""

    pixels: Pixels
    words: ClassVar[Sequence[int]] = ()
    rows: ClassVar[int] = 1

    @property
    def length(self) -> int:
        """Tokens."""
        return self.pixels.length


class VisionFittingInputs(LearnsNothing):
    """A task's encoder while the task is fitted."""

    def __init__(self, encoder: ImageFile | ImageArray, runtime: VisionEncoderRuntime) -> None:
        """Raises TaskProblem where the backbone takes no pictures of the encoder's size."""
        self.encoder, self.runtime = encoder, runtime
        if problem := runtime.preprocessor.problem(encoder.side):
            raise TaskProblem(f"encoder.side: {problem[0]}. {problem[1]}")

    def examples(self, rows: Rows, *, reads: str) -> list[PictureExample]:
        """Rows ready for `VisionFeatures`, several at a time; raises TaskProblem for the first that is no picture."""
        read = partial(self._example, source=rows.source, whole=reads == TOKENS)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            return list(pool.map(read, range(len(rows)), rows.items))

    def features(self, bare: Any, model: Any, reads: str) -> VisionFeatures:
        """A pooling over the bare backbone and over the model that is being fitted."""
        if reads == "cls" and not self.runtime.anatomy.has_summary:
            raise TaskProblem(
                "decoder.pooling: it is cls, but the backbone has neither a class token nor a pooled vector. Say mean "
                "or max"
            )
        if reads == TOKENS and self.runtime.anatomy.stride is None:
            raise TaskProblem(f"{self.runtime.no_grid}, which a map is made of. {OTHER_KIND}")
        return VisionFeatures(bare, model, reads, self.runtime)

    def _example(self, place: int, picture: Picture, *, source: str, whole: bool) -> PictureExample:
        preprocessor = self.runtime.preprocessor
        try:
            pixels = picture.pixels(preprocessor.most)
            return PictureExample(preprocessor.read(pixels, self.encoder.side, whole=whole))
        except ValueError as error:
            raise TaskProblem(f"{source}, row {place} ({picture.name}): {error}") from None


class VisionFeatures(PooledFeatures[PictureExample]):
    """See `PooledFeatures`; of TOKENS [n, t, h], all of one size."""

    def __init__(self, bare: Any, model: Any, reads: str, runtime: VisionEncoderRuntime) -> None:
        super().__init__(bare, model, reads, runtime.device)
        self.runtime = runtime

    def through(self, model: Any, examples: Sequence[PictureExample]) -> Tensor:
        by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for place, each in enumerate(examples):
            by_shape[each.pixels.shape].append(place)
        parts = [self._alike(model, [examples[place].pixels for place in own]) for own in by_shape.values()]
        order = torch.tensor([place for own in by_shape.values() for place in own])
        return torch.cat(parts)[order.argsort().to(self.device)]

    def _alike(self, model: Any, rows: Sequence[Pixels]) -> Tensor:
        """[n, h] of pictures of one size, or [n, t, h]."""
        values = torch.from_numpy(np.stack([row.values for row in rows])).to(self.device)
        dtype = next(model.parameters()).dtype
        states = self.runtime.anatomy.states(model, self.runtime.preprocessor.normalised(values, dtype))
        return read(self.reads, states)
