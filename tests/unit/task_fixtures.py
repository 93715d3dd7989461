"""A repository with a tiny backbone, texts that even such a one can tell apart, packages that seem installed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch
from model_fixtures import save_tiny
from torch import Tensor

from fmplex import Backbone
from fmplex_backend.extensions import plugins

BASE = "base"


def tiny_repository(folder: Path, *, slots: int = 256, kind: str = "bert") -> Path:
    """`repository` with the backbone `base` in it."""
    model = save_tiny(folder / "model", kind)
    root = folder / "repository"
    (root / BASE / "1").mkdir(parents=True)
    (root / BASE / "config.pbtxt").write_text(
        f'name: "{BASE}"\nbackend: "fmplex"\nmax_batch_size: 16\n'
        f'parameters {{ key: "model" value {{ string_value: "{model}" }} }}\n'
        f'parameters {{ key: "threads" value {{ string_value: "1" }} }}\n'
        f'parameters {{ key: "vfm_slots" value {{ string_value: "{slots}" }} }}\n'
    )
    return root


def tiny_backbone(root: Path) -> Backbone:
    """The repository's."""
    return Backbone(BASE, repository=root, device="cpu")


def install(monkeypatch: pytest.MonkeyPatch, group: str, names: Mapping[str, str]) -> None:
    """As if a package with these entry points, name to module:attribute, were there."""
    points = EntryPoints(EntryPoint(name, value, group) for name, value in names.items())
    monkeypatch.setattr(plugins, "entry_points", points.select)


def sentence(rng: random.Random, low: int, high: int, words: int = 6) -> str:
    """Words w<low> to w<high>."""
    return " ".join(f"w{rng.randrange(low, high)}" for _ in range(words))


def labelled(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts of the first words are ham, of the last ones spam."""
    rng = random.Random(seed)
    labels = [rng.choice(("ham", "spam")) for _ in range(count)]
    return [sentence(rng, *((0, 25) if label == "ham" else (30, 55))) for label in labels], labels


def several(count: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Texts with none, one or both kinds of words in them."""
    rng = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        own = [name for name in ("low", "high") if rng.random() < 0.5]
        pieces = [sentence(rng, *((0, 20) if name == "low" else (40, 60)), 3) for name in own]
        texts.append(" ".join([*pieces, sentence(rng, 25, 35, 2)]))
        labels.append(own)
    return texts, labels


def numbered(count: int, seed: int = 0) -> tuple[list[str], list[float]]:
    """How many of a text's words are early ones."""
    rng = random.Random(seed)
    texts = [" ".join(sentence(rng, *rng.choice(((0, 20), (40, 60))), 1) for _ in range(6)) for _ in range(count)]
    return texts, [sum(int(word[1:]) < 30 for word in text.split()) / 6 for text in texts]


def tagged(count: int, seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    """Words above w40 are names."""
    rng = random.Random(seed)
    texts = [[f"w{rng.randrange(60)}" for _ in range(7)] for _ in range(count)]
    return texts, [["B-NAME" if int(word[1:]) >= 40 else "O" for word in words] for words in texts]


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    """Copies of every tensor of the backbone."""
    model: Any = backbone.runtime.model
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Byte for byte; adapters put modules around Linears, which moves their names."""
    plain = {name.replace(".base.", "."): tensor for name, tensor in other.items()}
    return one.keys() == plain.keys() and all(torch.equal(one[name], plain[name]) for name in one)
