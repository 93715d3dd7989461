"""A repository with a tiny backbone, texts that such a one can learn to tell apart, and made-up entry points."""

from __future__ import annotations

import random
from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from model_fixtures import save_tiny
from torch import Tensor

from fmplex import Backbone, Classifier, CustomEncoder, Task
from fmplex_backend import plugins
from testing.repositories import write_backbone

BASE = "base"
FLOWERS = ("long", "wide")


def tiny_repository(folder: Path, *, slots: int = 256, kind: str = "bert") -> Path:
    """A repository with the backbone `base`."""
    model = save_tiny(folder / "model", kind)
    root = folder / "repository"
    root.mkdir()
    write_backbone(root, BASE, model=str(model), max_batch_size=16, threads="1", vfm_slots=str(slots))
    return root


def tiny_backbone(root: Path) -> Backbone:
    """The backbone of a tiny repository."""
    return Backbone(BASE, repository=root, device="cpu")


def spam(backbone: Backbone, **options: Any) -> Task:
    """A task with a classifier that is not fitted yet."""
    return Task("spam", backbone, decoder=Classifier(["ham", "spam"]), **options)


def fitted(task: Task, rows: Any, **options: Any) -> Task:
    """The task, fitted to the rows for two epochs unless `options` say otherwise."""
    task.fit(*rows, progress=False, **({"epochs": 2} | options))
    return task


def install(monkeypatch: pytest.MonkeyPatch, group: str, names: Mapping[str, str]) -> None:
    """Pretend that a package with these entry points (name to module:attribute) is installed."""
    points = EntryPoints(EntryPoint(name, value, group) for name, value in names.items())
    monkeypatch.setattr(plugins, "entry_points", points.select)


def sentence(rng: random.Random, low: int, high: int, words: int = 6) -> str:
    """`words` random ones of w<low> to w<high - 1>."""
    return " ".join(f"w{rng.randrange(low, high)}" for _ in range(words))


def labelled(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts and labels: ham has words below w25, spam has words from w30 on."""
    rng = random.Random(seed)
    labels = [rng.choice(("ham", "spam")) for _ in range(count)]
    return [sentence(rng, *((0, 25) if label == "ham" else (30, 55))) for label in labels], labels


def several(count: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Texts and labels: none, one or both of `low` (words below w20) and `high` (words from w40 on)."""
    rng = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        own = [name for name in ("low", "high") if rng.random() < 0.5]
        pieces = [sentence(rng, *((0, 20) if name == "low" else (40, 60)), 3) for name in own]
        texts.append(" ".join([*pieces, sentence(rng, 25, 35, 2)]))
        labels.append(own)
    return texts, labels


def numbered(count: int, seed: int = 0) -> tuple[list[str], list[float]]:
    """Texts, and the share of a text's words that are below w30."""
    rng = random.Random(seed)
    texts = [" ".join(sentence(rng, *rng.choice(((0, 20), (40, 60))), 1) for _ in range(6)) for _ in range(count)]
    return texts, [sum(int(word[1:]) < 30 for word in text.split()) / 6 for text in texts]


def tagged(count: int, seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    """Words and tags: those from w40 on are names."""
    rng = random.Random(seed)
    texts = [[f"w{rng.randrange(60)}" for _ in range(7)] for _ in range(count)]
    return texts, [["B-NAME" if int(word[1:]) >= 40 else "O" for word in words] for words in texts]


def flowers(count: int, seed: int = 0) -> tuple[list[list[float]], list[str]]:
    """Length and width in very different units, and which is larger in its own."""
    rng = random.Random(seed)
    rows = [(rng.random(), rng.random()) for _ in range(count)]
    return [[1000 * a, b / 100 + 7] for a, b in rows], [FLOWERS[b > a] for a, b in rows]


class Letters(CustomEncoder):
    """A vector for every letter of a text."""

    takes: ClassVar[Literal["FEATURES", "TEXT"]] = "TEXT"

    def __init__(self, options: Mapping[str, Any], width: int) -> None:
        super().__init__(options, width)
        self.table = torch.nn.Embedding(27, width)
        self.most = int(options["most"])

    def read(self, rows: Any) -> Tensor:
        """Numbers of letters, 0 for all else; the last is repeated."""
        if not all(rows):
            raise ValueError("a text with no letters")
        numbers = [[max(0, ord(letter) - 96) if "a" <= letter <= "z" else 0 for letter in row] for row in rows]
        return torch.tensor([(row * self.most)[: self.most] for row in numbers])

    def forward(self, x: Tensor) -> Tensor:
        """[n, letters] -> [n, letters, width]."""
        vectors: Tensor = self.table(x)
        return vectors


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    """Copies of every tensor of the backbone."""
    model: Any = backbone.runtime.model
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two are equal; adapters wrap Linears, which changes the names in `other`."""
    plain = {name.replace(".base.", "."): tensor for name, tensor in other.items()}
    return one.keys() == plain.keys() and all(torch.equal(one[name], plain[name]) for name in one)
