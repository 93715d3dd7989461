"""Time-series backbones (PatchTST, PatchTSMixer, TimesFM, Tiny Time Mixer, Chronos-Bolt, MOMENT) in torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmplex_backend.adapters.peft import Adapter
from fmplex_backend.decoders.decoder import Encoded, LoadedDecoder
from fmplex_backend.errors import TaskRefused
from fmplex_backend.families.adaptable import check_adaptable, not_adaptable
from fmplex_backend.families.encoder_runtime import EncoderRuntime, Extensions
from fmplex_backend.families.payload import Payload, row_key
from fmplex_backend.families.time_series.architectures import PATCHES
from fmplex_backend.families.time_series.forward import Forward
from fmplex_backend.families.time_series.huggingface import load_backbone
from fmplex_backend.families.time_series.own_head import LoadedHead, OwnForecaster, Rolled
from fmplex_backend.families.time_series.parameters import TimeSeriesConfig
from fmplex_backend.families.time_series.preprocessing import Context, Preprocessor, SeriesReader
from fmplex_backend.families.time_series.rolling import RollingPayload
from fmplex_backend.families.time_series.series import Array
from fmplex_backend.families.time_series.traced import recorded_series
from fmplex_backend.repository.config import TaskConfig
from fmplex_backend.types import Predict

PROFILE = (1, 4, 16, 32)  # rows
MANY_CHANNELS = 8  # series of so many channels fill a batch of Bmax items


class TimeSeriesRuntime(EncoderRuntime[Context]):
    """One time-series model in memory, for all tasks.

    Args:
        config: the backbone's parameters.
        file: the backbone's config.pbtxt, for messages.
        device: where the weights go, as torch names it.
        max_items: Bmax.
        predict: the cost model's estimate of a pass, in seconds.
    """

    forward: Forward
    folds = True  # where it does not hold, `not_adaptable` says so

    def __init__(self, config: TimeSeriesConfig, file: Path, device: str, max_items: int, predict: Predict) -> None:
        loaded = load_backbone(config, file, torch.device(device))
        anatomy = self.anatomy = loaded.anatomy
        super().__init__(
            config,
            loaded.model,
            loaded.directory,
            device=torch.device(device),
            hidden=anatomy.width,
            max_items=max_items,
            predict=predict,
            unread=(),
            tokens=MANY_CHANNELS * max_items * anatomy.tokens,
        )
        self.preprocessor = Preprocessor(anatomy, config.max_channels)
        self.own_heads = loaded.own_heads
        self.not_adaptable = not_adaptable(
            self.model, partial(_observed, anatomy, self.model), (anatomy.context, anatomy.channels)
        )
        forward = Forward(self.model, self.bank, anatomy, max_items)
        self.set_forward(forward, lambda: recorded_series(self.model, anatomy))

    def width_of(self, reads: str) -> int:
        return self.anatomy.width_of(reads)

    def load_encoder(self, task: TaskConfig, version: Path) -> SeriesReader:
        encoder, anatomy, file = task.encoder, self.anatomy, version / "task.json"
        if encoder.steps is not None and encoder.steps > anatomy.context:
            raise TaskRefused(
                file, "encoder.steps", f"the backbone takes {anatomy.context}, not {encoder.steps}", "Lower it"
            )
        if task.decoder.reads == "cls" and not anatomy.extra:
            problem = f"it is cls, but this {self.model.config.model_type} has no class token"
            raise TaskRefused(file, "decoder.pooling", problem, "Say mean or max, and fit the decoder again")
        if not anatomy.separate and encoder.channels != anatomy.channels:
            raise TaskRefused(
                file,
                "encoder.channels",
                f"it is {encoder.channels}, and the backbone sees {anatomy.channels} channels at once",
                f"Say {anatomy.channels}",
            )
        held_back = int(getattr(task.decoder, "held_back", 0))
        return SeriesReader(self.preprocessor, encoder.steps, encoder.channels, held_back)

    def load_decoder(self, task: TaskConfig, version: Path) -> LoadedDecoder:
        if isinstance(task.decoder, OwnForecaster):
            return self.own_heads.load(task.decoder, task.encoder.channels, version)
        return super().load_decoder(task, version)

    def check_adapter(self, adapter: Adapter, file: Path) -> None:
        check_adaptable(adapter, file, self.not_adaptable, "series")

    def encode(self, extensions: Extensions, value: Any) -> list[list[Context]]:
        rows: list[list[Context]] = extensions.encoder.encode(value)
        return rows

    def payload(
        self,
        extensions: Extensions,
        rows: list[Context],
        starts: list[int],
        portions: list[list[int]],
        keys: list[Hashable],
    ) -> Payload[Context]:
        decoder = extensions.decoder
        if not isinstance(decoder, LoadedHead) or decoder.times == 1:
            return super().payload(extensions, rows, starts, portions, keys)

        def forecast(results: list[Any], own: list[Context]) -> Array:
            return decoder.forecast(_encoded(results, len(starts), own, ()))

        def key(row: Context) -> Hashable:
            return row_key(row, extensions.adapter) if self.shares else object()

        return RollingPayload(
            rows,
            starts,
            portions,
            keys,
            times=decoder.times,
            forecast=forecast,
            key=key,
            tokens_of=self.anatomy.tokens_of,
        )

    def encoded(self, payload: Payload[Context], results: list[Any], reads: str) -> Encoded:
        if reads != PATCHES:
            return super().encoded(payload, results, reads)
        before = payload.before if isinstance(payload, RollingPayload) else ()
        return _encoded(results, len(payload.starts), payload.rows, before)

    def profiled_rows(self) -> Iterator[tuple[int, Context]]:
        anatomy = self.anatomy
        ramp = np.linspace(0, 1, anatomy.context * anatomy.channels, dtype=np.float32)
        (row,) = self.preprocessor.rows(ramp.reshape(anatomy.context, anatomy.channels))
        for rows in sorted({min(rows, self.max_items) for rows in PROFILE}):
            yield rows, row


def _encoded(results: list[Any], items: int, rows: list[Context], before: Sequence[Array]) -> Encoded:
    """Rows' [c, w] -> items' [n, channels, w]."""
    whole = np.stack(results)
    pooled = whole.reshape(items, -1, whole.shape[-1])
    return Rolled(pooled, [], [], np.zeros((items, 1), dtype=np.bool_), rows=rows, before=before)


def _observed(anatomy: Any, model: Any, values: torch.Tensor) -> Any:
    return anatomy.run(model, values, torch.ones_like(values, dtype=torch.bool))
