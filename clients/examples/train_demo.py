"""Train the demo's tasks, all on one frozen all-MiniLM-L6-v2, and save them into a model repository.

    python clients/examples/train_demo.py --data DIR                 from the sets' files in DIR
    python clients/examples/train_demo.py                            from the Hugging Face hub
    python clients/examples/train_demo.py --only sentiment,topic

A task that is there already is replaced. On one machine a seed and a number of threads give the same weights again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from demo_data import DataSet, Example, sentence_pairs
from demo_tasks import TASKS, DemoTask
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from fmplex import Backbone, Task, TaskProblem, Text
from fmplex.repository import ModelRepository

BACKBONE = "minilm"
LENGTH, EMBEDDED_LENGTH = 128, 256  # tokens of a text; the second is what the model's authors set for embeddings


def columns(decoder: Any, labels: tuple[str, ...], rows: list[Example]) -> tuple[list[Any], list[Any]]:
    """Texts and labels as Task.fit takes them."""
    named = [[labels[number] for number in row.target] for row in rows]
    if decoder.kind == "token-classification":
        return [[row.text[start:end] for start, end in row.words] for row in rows], named
    if decoder.kind == "multi-label":
        return [row.text for row in rows], [[labels[n] for n, flag in enumerate(row.target) if flag] for row in rows]
    return [row.text for row in rows], [names[0] for names in named]


def thinned(rows: list[Example], most: int | None) -> list[Example]:
    """At most so many, evenly spread."""
    if most is None or most >= len(rows):
        return rows
    return [rows[at * len(rows) // most] for at in range(most)]


def train(entry: DemoTask, backbone: Backbone, data: DataSet, seed: int) -> Task:
    """Fit and evaluate; the head alone is measured first, where an adapter is to better it."""
    decoder = replace(entry.decoder, labels=data.labels)
    task = Task(
        entry.name,
        backbone,
        adapter=entry.adapter,
        decoder=decoder,
        encoder=Text(max_length=LENGTH),
        description=entry.description,
        **entry.terms,
    )
    training, held_out = columns(decoder, data.labels, data.train), columns(decoder, data.labels, data.held_out)
    alone: dict[str, float] = {}
    if entry.adapter:
        head = Task(entry.name, backbone, decoder=decoder, encoder=Text(max_length=LENGTH))
        head.fit(*training, seed=seed, progress=False)
        alone = head.evaluate(*held_out).figures
    task.fit(*training, seed=seed, **entry.fit)
    task.evaluate(*held_out)
    figures: dict[str, float | int | str] = {"test_set": data.held_out_name}
    task.metrics = figures | task.metrics | {f"head_only_{name}": value for name, value in alone.items()}
    return task


def embedding(entry: DemoTask, backbone: Backbone, data: Path | None) -> Task:
    """The backbone's own embedding, and how well its cosines rank pairs of sentences."""
    task = Task(
        entry.name,
        backbone,
        decoder=entry.decoder,
        encoder=Text(max_length=EMBEDDED_LENGTH),
        description=entry.description,
    )
    pairs = sentence_pairs(data)
    left, right = (
        np.stack([each["EMBEDDING"] for each in task.outputs(texts)])
        for texts in ([pair.left for pair in pairs], [pair.right for pair in pairs])
    )
    found = spearmanr((left * right).sum(axis=1), [pair.score for pair in pairs]).statistic
    task.metrics = {"test_set": "STS-B test", "test_rows": len(pairs), "spearman": round(float(found), 4)}
    return task


def chosen_tasks(only: str) -> list[DemoTask]:
    """The tasks named in `only`, or all."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = set(names) - {task.name for task in TASKS}
    if unknown:
        known = ", ".join(task.name for task in TASKS)
        raise typer.BadParameter(f"no such task: {', '.join(sorted(unknown))}; there are {known}")
    return [task for task in TASKS if not names or task.name in names]


def report(tasks: list[tuple[DemoTask, Task]]) -> Table:
    """One line per task."""
    table = Table("task", "adapter", "decoder", "held-out rows", "figure", "head alone", "seconds")
    for entry, task in tasks:
        adapter = f"LoRA r={entry.adapter.r}, {len(entry.adapter.targets)} kinds of module" if entry.adapter else "-"
        name = task.evaluation.headline if task.evaluation else "spearman"
        rows = f"{task.metrics['test_set']} ({task.metrics['test_rows']})"
        cells = (
            f"{name} {task.metrics[name]}",
            task.metrics.get(f"head_only_{name}"),
            task.metrics.get("train_seconds"),
        )
        table.add_row(
            entry.name, adapter, task.decoder.kind, rows, *("-" if cell is None else str(cell) for cell in cells)
        )
    return table


def main(
    data: Annotated[Path | None, typer.Option(help="Directory with the sets' files; absent: the hub")] = None,
    only: Annotated[str, typer.Option(help="Names of tasks, with commas; absent: all")] = "",
    repository: Annotated[Path, typer.Option(help="Where the tasks go")] = Path("model_repository"),
    seed: Annotated[int, typer.Option(help="Of shuffling, dropout and first weights")] = 0,
    rows: Annotated[int | None, typer.Option(min=64, help="Training rows at most; absent: all")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores to use")] = 2,
) -> None:
    """Train the demo's tasks and save them into the model repository."""
    torch.set_num_threads(threads)
    console, models, done = Console(), ModelRepository(repository), []
    backbone = Backbone(BACKBONE, repository=repository)
    for entry in chosen_tasks(only):
        console.print(f"{entry.name}: {entry.description}")
        if entry.read is None:
            task = embedding(entry, backbone, data)
        else:
            read = entry.read(data)
            task = train(entry, backbone, replace(read, train=thinned(read.train, rows)), seed)
        if entry.name in models.tasks():
            models.remove(entry.name)  # its tag is the lowest that is free then
        done.append((entry, task))
        task.save(repository)
    console.print(report(done))


if __name__ == "__main__":
    try:
        typer.run(main)
    except TaskProblem as error:
        raise SystemExit(str(error)) from None
