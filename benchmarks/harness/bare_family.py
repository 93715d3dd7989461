"""The limit of a family: its backbone's forward in a loop, on tensors that are ready, without a server.

transformers' own module in inference mode, on as many rows as a batch has, with the mean that a head would read copied
out. `prepared` is the same loop with the preparing of each input in it, in the same thread: decoding, resizing,
features, as the backend does it.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from benchmarks.harness.bare import rate
from benchmarks.harness.families import BY_NAME, FORECASTERS, Measured
from benchmarks.harness.subject import subject
from benchmarks.load.child import Child
from fmplex_controller.server.installation import ALLOCATOR

FILE, DEVICE = Path("benchmarks"), torch.device("cpu")
SILENCE = 1.0  # seconds behind a clip, the tasks' default
Prepare = Callable[[list[bytes]], tuple[Tensor, ...]]
Forward = Callable[..., Tensor]  # of what is prepared: [rows, h]


class BareFamily(Child):
    """A process, pinned to the core of models, that runs a loop on demand."""

    module = "benchmarks.harness.bare_family"

    def __init__(self, measured: Measured, model: str, inputs: list[str], point: int) -> None:
        setup = {"name": measured.name, "model": model, "inputs": inputs, "point": point}
        super().__init__(setup | {"core": subject().apart.models[0]}, ALLOCATOR | os.environ)

    def per_second(self, seconds: float, *, prepared: bool = False) -> float:
        """Inputs per second, measured for `seconds`."""
        return float(self.ask({"seconds": seconds, "prepared": prepared}))


# -- in the process


def _settings(model: str) -> dict[str, Any]:
    return {"model": model, "threads": 1, "dtype": subject().dtype}


def _vision(model: str) -> tuple[Prepare, Forward]:
    from fmplex_backend.families.vision_encoder.huggingface import load_backbone
    from fmplex_backend.families.vision_encoder.parameters import VisionEncoderConfig
    from fmplex_backend.families.vision_encoder.preprocessing import ImageReader

    loaded = load_backbone(VisionEncoderConfig.model_validate(_settings(model)), FILE, DEVICE)
    reader = ImageReader("IMAGE_BYTES", loaded.preprocessor, None)

    def prepare(contents: list[bytes]) -> tuple[Tensor, ...]:
        values = np.stack([row.values for row in reader.encode(np.array(contents, dtype=np.object_))])
        return (loaded.preprocessor.normalised(torch.from_numpy(values), loaded.model.dtype),)

    def forward(pixels: Tensor) -> Tensor:
        states: Tensor = loaded.model(pixel_values=pixels).last_hidden_state
        return states[:, loaded.anatomy.extra :].float().mean(dim=1)

    return prepare, forward


def _audio(model: str) -> tuple[Prepare, Forward]:
    from transformers import WhisperModel

    from fmplex_backend.families.audio_encoder.huggingface import load_backbone
    from fmplex_backend.families.audio_encoder.parameters import AudioEncoderConfig
    from fmplex_backend.families.audio_encoder.preprocessing import AudioReader

    loaded = load_backbone(AudioEncoderConfig.model_validate(_settings(model)), FILE, DEVICE)
    reader = AudioReader("AUDIO_BYTES", loaded.preprocessor, SILENCE)
    # Not the loaded model, in which transformers' modules are laid out for speed.
    encoder: Any = WhisperModel.from_pretrained(loaded.directory, dtype=loaded.model.dtype).encoder.eval()
    own: list[int] = []

    def prepare(contents: list[bytes]) -> tuple[Tensor, ...]:
        rows = [row for clip in reader.encode(np.array(contents, dtype=np.object_)) for row in clip]
        if not own:  # transformers' forward takes clips of its config's length alone
            encoder.config.max_source_positions = rows[0].length
            encoder.embed_positions = nn.Embedding.from_pretrained(encoder.embed_positions.weight[: rows[0].length])
            own.append(rows[0].own)
        return (torch.from_numpy(np.stack([row.values for row in rows])).to(encoder.dtype),)

    def forward(features: Tensor) -> Tensor:
        states: Tensor = encoder(features).last_hidden_state
        return states[:, : own[0]].float().mean(dim=1)

    return prepare, forward


def _series_prepared(model: str) -> tuple[Any, Prepare]:
    """The loaded backbone, and [n, context, channels] of values and of what was observed."""
    from fmplex_backend.families.time_series.huggingface import load_backbone
    from fmplex_backend.families.time_series.parameters import TimeSeriesConfig
    from fmplex_backend.families.time_series.preprocessing import Preprocessor, SeriesReader

    config = TimeSeriesConfig(model=model, threads=1)
    loaded = load_backbone(config, FILE, DEVICE)
    reader = SeriesReader(Preprocessor(loaded.anatomy, config.max_channels), None, None, 0)

    def prepare(contents: list[bytes]) -> tuple[Tensor, ...]:
        series = np.stack([np.frombuffer(content, dtype=np.float32) for content in contents])
        rows = [row for own in reader.encode(series.reshape(len(contents), loaded.anatomy.context, -1)) for row in own]
        values, observed = ([getattr(row, name) for row in rows] for name in ("values", "observed"))
        return torch.from_numpy(np.stack(values)), torch.from_numpy(np.stack(observed))

    return loaded, prepare


def _series(model: str) -> tuple[Prepare, Forward]:
    from transformers import AutoConfig, AutoModel

    from fmplex_backend.families.time_series.huggingface import served_config

    loaded, prepare = _series_prepared(model)
    # Not the loaded model, in which transformers' modules are laid out for speed.
    own = served_config(AutoConfig.from_pretrained(loaded.directory), loaded.anatomy.architecture)
    plain: Any = AutoModel.from_pretrained(loaded.directory, config=own).eval()

    def forward(values: Tensor, observed: Tensor) -> Tensor:
        states: Tensor = plain(past_values=values, past_observed_mask=observed).last_hidden_state
        return states.mean(dim=(1, 2))

    return prepare, forward


def _forecaster(model: str) -> tuple[Prepare, Forward]:
    from chronos import ChronosBoltPipeline

    _, prepare = _series_prepared(model)
    plain: Any = ChronosBoltPipeline.from_pretrained(model).model.eval()

    def forward(values: Tensor, observed: Tensor) -> Tensor:
        states: Tensor = plain.encode(context=values[..., 0])[0]
        return states[:, :-1].mean(dim=1)

    return prepare, forward


LOAD = {"vision": _vision, "audio": _audio, "series": _series} | {each.name: _forecaster for each in FORECASTERS}


def main() -> None:
    """Answer every line of stdin with a rate."""
    logging.disable_progress_bar()
    setup: dict[str, Any] = json.loads(sys.stdin.readline())
    os.sched_setaffinity(0, {setup["core"]})
    torch.set_num_threads(1)
    prepare, forward = LOAD[setup["name"]](setup["model"])
    measured = BY_NAME[setup["name"]]
    size: int = max(1, measured.bmax // measured.points[setup["point"]].rows)
    contents = [base64.b64decode(each) for each in setup["inputs"]]
    batches = [contents[start : start + size] for start in range(0, len(contents) - size + 1, size)]
    ready = list(map(prepare, batches))

    def bare(number: int) -> int:
        return run(ready[number % len(ready)])

    def prepared(number: int) -> int:
        return run(prepare(batches[number % len(batches)]))

    def run(tensors: tuple[Tensor, ...]) -> int:
        with torch.inference_mode():
            forward(*tensors).numpy()
        return size

    rate(bare, 0.5)
    print(0, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(rate(prepared if asked["prepared"] else bare, asked["seconds"]), flush=True)


if __name__ == "__main__":
    main()
