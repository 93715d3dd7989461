"""Measures how well out-of-scope texts are told from those of a task's labels, on CLINC150.

    git clone https://github.com/clinc/oos-eval
    python clients/examples/rejection.py oos-eval/data/data_full.json            LoRA r=8
    python clients/examples/rejection.py oos-eval/data/data_full.json --rank 0   the head alone

150 labels; 15,000 rows to train on; 3,000 validation rows and 200 out-of-scope rows to fit the confidence on; and, to
measure it, 4,500 test rows and 1,000 out-of-scope ones, of which none is used before.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from sklearn.metrics import roc_auc_score

from fmplex import Backbone, Classifier, Embedder, LoRA, Task
from fmplex_backend.decoders.confidence import Confidence, Sample

OUTSIDE = "oos"
Rows = list[tuple[str, str]]
Array = npt.NDArray[np.float32]


def columns(*parts: Rows) -> tuple[list[str], list[str]]:
    """Texts and labels."""
    rows = [row for part in parts for row in part]
    return [text for text, _ in rows], [label for _, label in rows]


def vectors(task: Task, texts: list[str]) -> Array:
    """What the task's decoder reads, [n, h]."""
    plain = Task("vectors", task.backbone, decoder=Embedder(normalize=False))
    plain.adapter, plain.fitted = task.adapter, replace(task.fitted, head={}, confidence={})
    return np.stack([each["EMBEDDING"] for each in plain.outputs(texts)])


def areas(task: Task, inside: list[str], outside: list[str]) -> dict[str, float]:
    """The area under the ROC curve by each way of telling in-scope texts from others."""
    texts = [*inside, *outside]
    outputs = task.outputs(texts)
    tensors: dict[str, Any] = {name: each.numpy() for name, each in task.fitted.confidence.items()}
    read = vectors(task, texts)
    values = read @ task.fitted.head["weight"].numpy().T + task.fitted.head["bias"].numpy()
    sample = Sample(read, values)
    distance, background, energy = Confidence(**tensors).evidence(sample.vectors, sample.values).T
    found = {
        "softmax maximum": [float(each["SCORES"].max()) for each in outputs],
        "energy": energy,
        "Mahalanobis distance": -distance,
        "relative Mahalanobis distance (confidence=features)": background - distance,
        "learned (reject_label)": [float(each["CONFIDENCE"][0]) for each in outputs],
    }
    kinds = np.repeat([1, 0], [len(inside), len(outside)])
    return {name: float(roc_auc_score(kinds, np.asarray(sure))) for name, sure in found.items()}


def main(
    data: Annotated[Path, typer.Argument(help="data_full.json of CLINC150.")],
    rank: Annotated[int, typer.Option(help="Rank of the LoRA adapter; 0 for the head alone.")] = 8,
    epochs: int = 3,
    backbone: str = "minilm",
    repository: Path = Path("model_repository"),
    seed: int = 0,
) -> None:
    """Fit once, with rows that are out of scope, and print the areas and the figures."""
    rows = json.loads(data.read_text(encoding="utf-8"))
    task = Task(
        "intents",
        Backbone(backbone, repository=repository),
        adapter=LoRA(r=rank) if rank else None,
        decoder=Classifier(reject_label=OUTSIDE),
    )
    task.fit(
        *columns(rows["train"], rows["oos_train"]),
        validation=columns(rows["val"], rows["oos_val"]),
        test=columns(rows["test"], rows["oos_test"]),
        epochs=epochs,
        seed=seed,
        progress=True,
    )
    for name, value in task.metrics.items():
        print(f"{name}: {value}")
    for name, value in areas(task, columns(rows["test"])[0], columns(rows["oos_test"])[0]).items():
        print(f"{name}: AUROC {value:.4f}")


if __name__ == "__main__":
    typer.run(main)
