"""The families that are measured beside texts: their backbones, their inputs, and a server with tasks on one.

Weights of adapters, of heads and of the audio encoder are random: what they cost does not depend on their values.
"""

from __future__ import annotations

import base64
import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from transformers import AutoConfig, AutoModel, T5EncoderModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from benchmarks.harness.serving import pin, serving
from benchmarks.harness.subject import subject
from benchmarks.load.client import METHOD, message
from benchmarks.load.plan import Reads
from fmplex_backend.families.model_files import find_model
from testing.adapters import lora, save_adapter
from testing.optional_series import CHRONOS_BOLT, CHRONOS_BOLT_SMALL, save_chronos_bolt
from testing.repositories import Task, write_backbone, write_task
from testing.servers import Serving

BACKBONE = "backbone"
RANK, TASKS = 8, 10
RATE = 16_000  # samples a second
CONTEXT, PATCHES = 288, 24  # of the demo's PatchTST
LONG_CONTEXT: int = CHRONOS_BOLT["chronos_config"]["context_length"]

Recipe = Mapping[str, Any]  # fields of a Task
POOLED: tuple[Recipe, ...] = (
    {"decoder": "classification", "labels": 10},
    {"decoder": "classification", "layers": 3, "options": {"activation": "gelu"}},
    {"decoder": "multi-label", "labels": 6},
    {"decoder": "regression", "labels": 2},
    {"decoder": "nearest", "labels": 5},
    {"decoder": "similarity", "labels": 4},
    {"decoder": "embedding"},
    {"decoder": "classification", "options": {"pooling": "max"}},
)


@dataclass(frozen=True, slots=True)
class Point:
    """What tasks are asked; `content` makes an input of a seed.

    Args:
        rows: of the backbone, that an input is.
        encoder: the tasks' section of that name.
    """

    name: str
    reads: Reads
    content: Callable[[int], bytes]
    rows: int = 1
    encoder: Mapping[str, Any] = field(default_factory=dict)

    def inputs(self, count: int) -> list[str]:
        """Different ones, in base64."""
        return [base64.b64encode(self.content(seed)).decode() for seed in range(count)]


@dataclass(frozen=True, slots=True)
class Measured:
    """A backbone of a family.

    Args:
        name: of what is measured.
        model: makes what the backbone's config names, in a folder if need be.
        hidden: the width of its vectors.
        heads: of which a set of tasks takes ten, in turn.
        points: at which throughput is measured.
        fair: at which shares are.
        seconds: of a round of throughput, and of the load of which the shares are taken.
        part: of transformers' model, that adapters are on; "": all of it.
        modules: of that, which get LoRA.
        architecture: makes transformers' model of a config.
    """

    name: str
    family: str
    model: Callable[[Path], str]
    hidden: int
    bmax: int
    heads: tuple[Recipe, ...]
    points: tuple[Point, ...]
    fair: Point
    seconds: tuple[float, float]
    part: str = ""
    modules: tuple[str, ...] = ("q_proj", "v_proj")
    architecture: Callable[[Any], Any] = AutoModel.from_config

    def tasks(self, kind: str, folder: Path, model: str, count: int = TASKS) -> list[Task]:
        """`head`: a head each, of several kinds; `lora`: a classifier each, with an adapter of its own."""
        if kind == "head":
            return [self._task(f"head{number}", self.heads[number % len(self.heads)]) for number in range(count)]
        adapters = self._adapters(folder, model, count)
        return [self._task(f"lora{number}", POOLED[0], adapter=each) for number, each in enumerate(adapters)]

    def rivals(self, weights: Mapping[str, float]) -> list[Task]:
        """Classifiers with these weights."""
        encoder = dict(self.fair.encoder)
        return [
            self._task(name, POOLED[0], encoder=encoder, parameters={"weight": f"{weight:g}"})
            for name, weight in weights.items()
        ]

    def _task(self, name: str, recipe: Recipe, **more: Any) -> Task:
        reads = self.points[0].reads
        data_type = {"BYTES": "TYPE_STRING", "FP32": "TYPE_FP32"}[reads.datatype]
        dims = (1,) if reads.datatype == "BYTES" else (-1,) * len(reads.dims)
        own = {
            "hidden": self.hidden,
            "max_batch_size": self.bmax,
            "backbone": BACKBONE,
            "family": self.family,
            "truncates": False,
            "reads": (reads.name, data_type, dims),
        }
        return Task(name, 0, **{**own, **recipe, **more})

    def _adapters(self, folder: Path, model: str, count: int) -> list[Path]:
        shape = AutoConfig.from_pretrained(find_model(model, Path("benchmarks")))
        adapters = []
        for number in range(count):
            with torch.device("meta"):  # only the names and shapes of the model's weights matter
                whole = self.architecture(shape)
            own = getattr(whole, self.part) if self.part else whole
            adapters.append(save_adapter(folder / f"adapter{number}", own, lora(RANK, *self.modules), seed=number))
        return adapters


@contextlib.contextmanager
def served(
    measured: Measured, model: str, tasks: Sequence[Task], *, apart: bool = True, **variables: str
) -> Iterator[Serving]:
    """A server with one backbone for all tasks.

    Args:
        apart: whether its process is on the model core, and Triton on the other one; else both where they like.
        variables: of its environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "repository")
        repository.mkdir()
        settings = {"family": measured.family, "threads": "1", "dtype": subject().dtype}
        write_backbone(repository, BACKBONE, model=model, max_batch_size=measured.bmax, kind=subject().kind, **settings)
        for number, task in enumerate(tasks):
            write_task(repository, replace(task, vfm=number))
        with serving(repository, **variables) as server:
            if apart:
                pin(server.process, *subject().apart.others)
                pin(server.stub(BACKBONE), *subject().apart.models)
            yield server


def ask_in_turn(server: Serving, names: Sequence[str], inputs: Sequence[str], reads: Reads) -> None:
    """One request after the other; raises where one fails."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        call = channel.unary_unary(METHOD)
        for number, each in enumerate(inputs):
            call(message(names[number % len(names)], each, usage=True, outputs=(), reads=reads))


# -- what is asked


def photograph(seed: int) -> bytes:
    """A JPEG file of 500 x 375 pixels, with patches of colour and some noise, as large as a photograph's."""
    from PIL import Image

    numbers = np.random.default_rng(seed)
    colours = Image.fromarray(numbers.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    pixels = np.asarray(colours.resize((500, 375), Image.Resampling.BICUBIC)) + numbers.normal(0, 6, (375, 500, 3))
    stream = BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def clip(seed: int) -> bytes:
    """A WAV file of two seconds: a tone and some noise."""
    import soundfile

    numbers, times = np.random.default_rng(seed), np.arange(2 * RATE) / RATE
    wave = np.sin(2 * np.pi * numbers.uniform(100, 900) * times) / 3 + numbers.normal(0, 0.02, len(times))
    stream = BytesIO()
    soundfile.write(stream, wave, RATE, format="WAV")
    return stream.getvalue()


def series(channels: int, length: int) -> Callable[[int], bytes]:
    """A daily course of hourly values, with noise: [length, channels]."""

    def content(seed: int) -> bytes:
        numbers, steps = np.random.default_rng(seed), np.arange(length)[:, None]
        course = np.sin(2 * np.pi * steps / 24 + numbers.uniform(0, 6, channels))
        return (30 + 12 * course + numbers.normal(0, 2, course.shape)).astype(np.float32).tobytes()

    return content


def _whisper(folder: Path) -> str:
    """An encoder of tiny.en's sizes; of the decoder, which no backbone keeps, there is little."""
    sizes: dict[str, Any] = {"num_mel_bins": 80, "d_model": 384, "max_source_positions": 1500}
    encoder: dict[str, Any] = {"encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536}
    decoder: dict[str, Any] = {"decoder_layers": 1, "decoder_attention_heads": 6, "decoder_ffn_dim": 64}
    tokens: dict[str, Any] = {
        "vocab_size": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    torch.manual_seed(0)
    model: Any = WhisperModel(WhisperConfig(**sizes, **encoder, **decoder, **tokens))
    model.save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    return str(folder / "whisper")


def _patchtst(folder: Path) -> str:
    return str(Path("model_repository", "patchtst", "1").resolve())


def _dino(folder: Path) -> str:
    return "cache:dinov2-small-mri"


def _chronos_bolt(name: str, hidden: int, points: tuple[Point, ...], **sizes: int) -> Measured:
    return Measured(
        name=name,
        family="time-series",
        model=lambda folder: str(save_chronos_bolt(folder / name, sizes=sizes)),
        hidden=hidden,
        bmax=8,
        heads=POOLED,
        points=points,
        fair=points[0],
        seconds=(6.0, 12.0),
        modules=("q", "v"),
        architecture=T5EncoderModel,
    )


def _series_of(channels: int, length: int = CONTEXT) -> Point:
    """As many steps as the backbone sees."""
    named = f"{channels} channel{'s' if channels > 1 else ''}"
    return Point(named, Reads("SERIES", "FP32", (length, channels)), series(channels, length), rows=channels)


FORECASTS: tuple[Recipe, ...] = tuple(
    {"decoder": "forecast", "labels": steps, "hidden": PATCHES * 96, "options": {"horizon": steps}}
    for steps in (24, 96)
)
PICTURES = Reads("IMAGE_BYTES")
BY_CLASS_TOKEN: tuple[Recipe, ...] = tuple(
    {"decoder": kind, "options": {"pooling": "cls"}} for kind in ("classification", "embedding")
)
CLIPS = Point("clips of 2 s", Reads("AUDIO_BYTES"), clip)
VISION = Measured(
    name="vision",
    family="vision-encoder",
    model=_dino,
    hidden=384,
    bmax=8,
    heads=(*POOLED, *BY_CLASS_TOKEN),
    points=(Point("224 x 224", PICTURES, photograph),),
    fair=Point("112 x 112", PICTURES, photograph, encoder={"side": 112}),  # more batches in as many seconds
    seconds=(4.0, 20.0),
)
SERIES = Measured(
    name="series",
    family="time-series",
    model=_patchtst,
    hidden=96,
    bmax=32,
    heads=(*FORECASTS, *POOLED),
    points=(_series_of(1), _series_of(32)),
    fair=_series_of(1),
    seconds=(2.0, 5.0),
)
LONG = (_series_of(1, LONG_CONTEXT),)
FORECASTERS = (
    _chronos_bolt("chronos-bolt-tiny", CHRONOS_BOLT["d_model"], LONG),
    _chronos_bolt("chronos-bolt-small", CHRONOS_BOLT_SMALL["d_model"], LONG, **CHRONOS_BOLT_SMALL),
)
AUDIO = Measured(
    name="audio",
    family="audio-encoder",
    model=_whisper,
    hidden=384,
    bmax=32,
    heads=POOLED,
    points=(CLIPS,),
    fair=CLIPS,
    seconds=(3.0, 12.0),
    part="encoder",
)
BY_NAME = {each.name: each for each in (VISION, SERIES, *FORECASTERS, AUDIO)}
