"""Decoders of installed packages: found by entry point, checked, fitted and served; never code from a repository."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file
from task_fixtures import install, labelled
from torch import Tensor

from fmplex import Backbone, CustomDecoder, LoRA, Plugin, Raw, Task, TaskProblem
from fmplex_backend.decoders.plugin import GROUP
from fmplex_backend.errors import TaskRefused
from fmplex_backend.repository.tasks import Repository, TaskSpec


class Ordinal(CustomDecoder):
    """How far up a scale: one sigmoid a step."""

    gives: ClassVar[tuple[str, ...]] = ("SCORES",)

    def __init__(self, options: Mapping[str, Any], hidden: int) -> None:
        super().__init__(options, hidden)
        self.layer = torch.nn.Linear(hidden, int(options["grades"]) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """[n, h] -> [n, steps]."""
        values: Tensor = self.layer(x)
        return values

    def outputs(self, values: Tensor) -> dict[str, npt.NDArray[Any]]:
        """SCORES."""
        return {"SCORES": torch.sigmoid(values).numpy()}

    def sizes(self) -> dict[str, int]:
        """One a step."""
        return {"SCORES": self.layer.out_features}

    def targets(self, labels: Sequence[Any]) -> Tensor:
        """1 for every step that is reached."""
        return torch.tensor([[float(label > step) for step in range(self.layer.out_features)] for label in labels])

    def loss(self, values: Tensor, targets: Tensor) -> Tensor:
        """Of every step."""
        return torch.nn.functional.binary_cross_entropy_with_logits(values, targets)


class Odd(Ordinal):
    """Gives what no backbone has."""

    gives: ClassVar[tuple[str, ...]] = ("SOUND",)


class NoDecoder:
    """Not one at all."""

    def __init__(self, options: Mapping[str, Any], hidden: int) -> None:
        pass


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"ordinal": "Ordinal", "odd": "Odd", "none": "NoDecoder", "gone": "Nowhere"}
    install(monkeypatch, GROUP, {name: f"{__name__}:{value}" for name, value in names.items()})


def graded(count: int) -> tuple[list[str], list[int]]:
    texts, labels = labelled(count)
    return texts, [0 if label == "ham" else 3 for label in labels]


@pytest.mark.parametrize("adapter", [None, LoRA(r=2, targets=["query"])])
def test_a_packages_decoder_is_fitted_saved_and_loaded(backbone: Backbone, adapter: LoRA | None) -> None:
    task = Task("grade", backbone, adapter=adapter, decoder=Plugin("ordinal", {"grades": 4}))
    task.fit(*graded(200), epochs=30, learning_rate=5e-2, progress=False)
    texts, labels = graded(40)
    scores = np.stack([each["SCORES"] for each in task.outputs(texts)])
    assert scores.shape == (40, 3)
    assert np.mean((scores.mean(axis=1) > 0.5) == (np.array(labels) > 0)) >= 0.8
    path = task.save()
    spec = Repository(backbone.repository, backbone.name).read_task("grade")
    assert isinstance(spec, TaskSpec)
    assert spec.outputs == {"SCORES": (3,), "TRUNCATED": (1,)}
    again = Task.load(path.parent, backbone)
    assert np.array_equal(np.stack([each["SCORES"] for each in again.outputs(texts)]), scores)
    (found,) = again.predict(texts[0])
    assert isinstance(found, Raw)
    with pytest.raises(TaskProblem, match="a plugin decoder cannot be evaluated"):
        task.evaluate(*graded(4))


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("nothing", {}, "no installed package registers a decoder 'nothing'; registered: gone, none, odd, ordinal"),
        ("ordinal", {}, "cannot be made: KeyError"),
        ("gone", {}, "cannot be made: AttributeError"),
        ("none", {}, "is not a CustomDecoder"),
        ("odd", {"grades": 3}, "gives some of EMBEDDING, SCORES, LABEL"),
    ],
)
def test_what_is_wrong_with_a_package_is_named(
    backbone: Backbone, name: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(TaskRefused, match=match):
        Task("grade", backbone, decoder=Plugin(name, options)).fit(*graded(20), progress=False)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"layer.weight": torch.zeros(3, 32)}, "layer.bias"),
        ({"layer.weight": torch.zeros(3, 32), "layer.bias": torch.zeros(2)}, "needs .3"),
    ],
)
def test_weights_that_do_not_fit(backbone: Backbone, tensors: dict[str, Tensor], match: str) -> None:
    task = Task("grade", backbone, decoder=Plugin("ordinal", {"grades": 4}))
    task.fit(*graded(20), epochs=1, progress=False)
    path = task.save()
    save_file(tensors, path / "decoder.safetensors")
    with pytest.raises(TaskRefused, match=match):
        Task.load(path, backbone).predict("w1")


def test_errors_name_the_file_that_is_wrong(backbone: Backbone) -> None:
    task = Task("grade", backbone, decoder=Plugin("ordinal", {"grades": 4}))
    task.fit(*graded(20), epochs=1, progress=False)
    path = task.save()
    (path / "decoder.safetensors").write_bytes(b"short")
    with pytest.raises((TaskRefused, TaskProblem), match=str(path)):
        Task.load(path, backbone).predict("w1")
