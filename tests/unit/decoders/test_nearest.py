"""k nearest labelled vectors: votes as scores, ties by nearness, and what is refused of a file."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from task_fixtures import labelled, tiny_backbone, tiny_repository
from torch import Tensor

from fmplex import LoRA, Nearest, Task, TaskProblem
from fmplex_backend.decoders.decoder import Encoded
from fmplex_backend.errors import TaskRefused

HIDDEN = 8


def vectors(count: int, seed: int) -> Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


def decoded(directory: Path, decoder: Nearest, x: Tensor) -> dict[str, Any]:
    loaded = decoder.load(directory, HIDDEN)
    assert loaded.sizes == decoder.sizes(directory, HIDDEN)
    return loaded.decode(Encoded(x.numpy(), [], [], np.zeros((len(x), 1), dtype=bool)))


@given(st.integers(1, 9), st.integers(0, 50))
def test_scores_are_the_votes_of_the_nearest(tmp_path_factory: pytest.TempPathFactory, k: int, seed: int) -> None:
    folder, decoder = tmp_path_factory.mktemp("nearest"), Nearest(["a", "b", "c"], k=k)
    known, numbers = vectors(7, seed), [0, 1, 2, 0, 1, 2, 0]
    save_file(decoder.from_vectors(known, numbers), folder / "decoder.safetensors")
    x = vectors(5, seed + 1000)
    found = decoded(folder, decoder, x)
    cosines = torch.nn.functional.cosine_similarity(x[:, None], known[None], dim=-1)
    for row, near in enumerate(cosines.topk(min(k, 7)).indices.tolist()):
        votes = [sum(numbers[place] == label for place in near) / len(near) for label in range(3)]
        assert found["SCORES"][row].tolist() == pytest.approx(votes)
        winners = [label for label in range(3) if votes[label] == max(votes)]
        nearness = [sum(float(cosines[row, p]) for p in near if numbers[p] == label) for label in winners]
        assert found["LABEL"][row, 0] == "abc"[winners[nearness.index(max(nearness))]]
    assert found["SCORES"].dtype == np.float32


def test_at_most_so_many_of_each_label_are_kept() -> None:
    tensors = Nearest(["a", "b"], per_label=2).from_vectors(vectors(6, 0), [0, 0, 0, 1, 0, 1])
    assert tensors["labels"].tolist() == [0, 0, 1, 1]
    assert torch.allclose(tensors["vectors"], torch.nn.functional.normalize(vectors(6, 0)[[0, 1, 3, 5]], dim=-1))
    with pytest.raises(TaskProblem, match="no text for the labels b"):
        Nearest(["a", "b"]).from_vectors(vectors(2, 0), [0, 0])


@pytest.mark.parametrize(
    ("tensors", "field"),
    [
        ({"labels": torch.tensor([0, 1])}, "vectors"),
        ({"vectors": vectors(2, 0)}, "labels"),
        ({"vectors": vectors(2, 0)[:, :5].contiguous(), "labels": torch.tensor([0, 1])}, "vectors"),
        ({"vectors": vectors(2, 0), "labels": torch.tensor([0])}, "labels"),
        ({"vectors": vectors(2, 0), "labels": torch.tensor([0, 2])}, "labels"),
        ({"vectors": vectors(2, 0), "labels": torch.tensor([0, -1])}, "labels"),
        ({"vectors": vectors(2, 0), "labels": torch.tensor([0.0, 1.0])}, "labels"),
        ({"vectors": vectors(0, 0), "labels": torch.zeros(0, dtype=torch.long)}, "labels"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, tensors: dict[str, Tensor], field: str) -> None:
    save_file(tensors, tmp_path / "decoder.safetensors")
    with pytest.raises(TaskRefused) as caught:
        Nearest(["a", "b"]).load(tmp_path, HIDDEN)
    assert caught.value.field == field


def test_a_task_is_fitted_saved_and_comes_back(tmp_path: Path) -> None:
    root = tiny_repository(tmp_path)
    task = Task("near", tiny_backbone(root), decoder=Nearest(k=7))
    task.fit(*labelled(200), progress=False)
    assert task.evaluate(*labelled(60, 1))["accuracy"] >= 0.7
    path = task.save()
    again = Task.load(path.parent, tiny_backbone(root))
    texts, _ = labelled(9, 2)
    assert again.predict(texts) == task.predict(texts)
    assert again.decoder == Nearest(["ham", "spam"], k=7)
    with pytest.raises(TaskProblem, match="class_weights do nothing for a nearest decoder"):
        Task("n", tiny_backbone(root), adapter=LoRA(r=2), decoder=Nearest()).fit(
            *labelled(20), class_weights="balanced", progress=False
        )


def test_many_labels_take_little_memory(tmp_path: Path) -> None:
    """No square of them is made."""
    count = 50_000
    save_file(
        {"vectors": vectors(4, 0), "labels": torch.tensor([0, 7, count - 1, 7])}, tmp_path / "decoder.safetensors"
    )
    decoder = Nearest(["a"], k=3)
    object.__setattr__(decoder, "labels", [str(number) for number in range(count)])  # spares checking them one by one
    tracemalloc.start()
    try:
        found = decoded(tmp_path, decoder, vectors(2, 1))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert found["SCORES"].shape == (2, count)
