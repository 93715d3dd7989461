"""Series for the demo: generated ones, and request rates of production clients of a language model (ServeGen).

ServeGen (github.com/alibaba/ServeGen, Apache-2.0; Xiang et al. 2025) publishes, for each client of a model, how many
requests a second came in each window of 10 minutes, for two weeks. A directory `servegen` holds its files as they are
there (`data/language/m-small/chunk-*-trace.csv`), or a tar of them.
"""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
DAY = 144  # windows of 10 minutes
HELD_OUT = 4 * DAY  # the last steps of a client
CLIENTS = "language/m-small/"
BUSY = 0.9  # the least part of a client's windows with requests: the others hardly have a rate

KINDS = ("bursts", "daily", "flat", "growth")


def request_rates(data: Path) -> list[Array]:
    """Of each busy client, [2016, 1], requests a second."""
    found = [np.array(rates, dtype=np.float32)[:, None] for _, rates in sorted(_traces(data / "servegen"))]
    if not found:
        raise SystemExit(f"{data / 'servegen'} has no {CLIENTS}chunk-*-trace.csv. Copy ServeGen's data there")
    return [rates for rates in found if (rates > 0).mean() >= BUSY]


def _traces(folder: Path) -> Iterator[tuple[str, list[float]]]:
    for file in sorted(folder.rglob("*-trace.csv")):
        if CLIENTS in str(file):
            yield file.name, _rates(file.read_text(encoding="utf-8"))
    for packed in sorted(folder.glob("*.tar*")):
        with tarfile.open(packed) as archive:
            for member in archive:
                stream = archive.extractfile(member) if CLIENTS in member.name else None
                if stream is not None and member.name.endswith("-trace.csv"):
                    yield Path(member.name).name, _rates(stream.read().decode())


def _rates(text: str) -> list[float]:
    """A line is: start in seconds, requests a second, and how they are distributed."""
    return [float(row[1] or 0) for row in csv.reader(io.StringIO(text)) if row]


def waves(rng: np.random.Generator, steps: int) -> Array:
    """Sums of periods, trends, steps and noise, each of a random share: [steps]."""
    time = np.arange(steps)
    whole = np.zeros(steps)
    for _ in range(rng.integers(1, 4)):
        period, phase = np.exp(rng.uniform(np.log(6), np.log(steps))), rng.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * time / period + phase)
        shape = rng.integers(3)
        wave = np.sign(wave) if shape == 1 else np.maximum(wave, 0) ** 3 if shape == 2 else wave
        whole += rng.exponential() * wave
    whole += rng.normal() * np.linspace(-1, 1, steps) * rng.integers(0, 2)
    whole += np.cumsum(rng.normal(size=steps)) * rng.exponential(0.05)
    whole += rng.normal(size=steps) * rng.exponential(0.2)
    if rng.random() < 0.2:
        whole[rng.integers(steps) :] += rng.normal() * 2
    return whole.astype(np.float32)


def load_curves(count: int, seed: int, steps: int = 2 * DAY) -> tuple[list[Array], list[str]]:
    """Generated loads of a server, each of one of KINDS: [steps, 1]."""
    rng = np.random.default_rng(seed)
    labels = [KINDS[place % len(KINDS)] for place in range(count)]
    return [_load_curve(rng, label, steps) for label in labels], labels


def _load_curve(rng: np.random.Generator, kind: str, steps: int) -> Array:
    """Requests a second, with the noise of counting them."""
    time, level = np.arange(steps), np.exp(rng.uniform(0, 4))
    shape = np.ones(steps)
    if kind == "daily":
        shape += rng.uniform(0.3, 0.9) * np.sin(2 * np.pi * (time / DAY + rng.random()))
    elif kind == "growth":
        shape += rng.uniform(0.5, 2) * time / steps
    elif kind == "bursts":
        for start in rng.integers(0, steps, rng.integers(2, 7)):
            shape[start : start + rng.integers(3, 15)] *= rng.uniform(1.5, 4)
    drift = np.exp(np.cumsum(rng.normal(size=steps)) * 0.01)
    noise = rng.normal(size=steps) * rng.uniform(0.05, 0.3)
    curve: Array = np.maximum(level * shape * drift * (1 + noise), 0).astype(np.float32)[:, None]
    return curve
