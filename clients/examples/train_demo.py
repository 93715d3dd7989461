"""Train the demo's tasks, all on one frozen all-MiniLM-L6-v2, and save them into a model repository.

    python clients/examples/train_demo.py --data DIR                 reads the data sets' files in DIR
    python clients/examples/train_demo.py                            reads them from the Hugging Face hub
    python clients/examples/train_demo.py --only sentiment,topic
    python clients/examples/train_demo.py --measure                  trains nothing: the figures of what is there, anew

A task that is there already is replaced. On one machine a seed and a number of threads give the same weights again.
Figures are those of the backbone in float32, and once more in bfloat16, with that before their names.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from demo_data import DataSet, Example, SentencePair, sentence_pairs
from demo_tasks import TASKS, DemoTask
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from fmplex import Backbone, Task, TaskProblem, Text
from fmplex_backend.repository.writer import ModelRepository, write_config

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
    """At most `most` rows, evenly spaced."""
    if most is None or most >= len(rows):
        return rows
    return [rows[at * len(rows) // most] for at in range(most)]


Figures = dict[str, float]


def train(entry: DemoTask, backbone: Backbone, data: DataSet, seed: int) -> Task:
    """Fit a task; with an adapter, the head alone is evaluated, for comparison."""
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
    training = columns(decoder, data.labels, data.train)
    alone: Figures = {}
    if entry.adapter:
        head = Task(entry.name, backbone, decoder=decoder, encoder=Text(max_length=LENGTH))
        head.fit(*training, seed=seed, progress=False)
        alone = head.evaluate(*columns(decoder, data.labels, data.held_out)).figures
    task.fit(*training, seed=seed, progress=True, **entry.fit)
    task.metrics |= {f"head_only_{name}": value for name, value in alone.items()}
    return task


def embedding(entry: DemoTask, backbone: Backbone) -> Task:
    """The backbone's own embedding."""
    return Task(
        entry.name,
        backbone,
        decoder=entry.decoder,
        encoder=Text(max_length=EMBEDDED_LENGTH),
        description=entry.description,
    )


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows that no task is fitted on, and what is measured on them."""

    name: str
    rows: int
    figures: Callable[[Task], Figures]

    @classmethod
    def of(cls, data: DataSet) -> HeldOut:
        """A data set's, and the decoder's own figures."""

        def figures(task: Task) -> Figures:
            return dict(task.evaluate(*columns(task.decoder, data.labels, data.held_out)).figures)

        return cls(data.held_out_name, len(data.held_out), figures)

    @classmethod
    def of_pairs(cls, pairs: list[SentencePair]) -> HeldOut:
        """Pairs of sentences, and how well an embedding's cosines rank them."""

        def spearman(task: Task) -> Figures:
            left, right = (
                np.stack([each["EMBEDDING"] for each in task.outputs(texts)])
                for texts in ([pair.left for pair in pairs], [pair.right for pair in pairs])
            )
            found = spearmanr((left * right).sum(axis=1), [pair.score for pair in pairs]).statistic
            return {"spearman": round(float(found), 4)}

        return cls("STS-B test", len(pairs), spearman)


def measure(task: Task, held_out: HeldOut, rounded: Backbone) -> None:
    """Put a task's figures into its metrics: in float32 and, on the backbone `rounded`, in bfloat16."""
    figures: dict[str, float | int | str] = {"test_set": held_out.name}
    figures |= task.metrics | {"test_rows": held_out.rows} | held_out.figures(task)
    with tempfile.TemporaryDirectory() as folder:
        task.write(Path(folder))
        other = held_out.figures(Task.load(folder, rounded))
    task.metrics = figures | {f"{rounded.config.dtype}_{name}": value for name, value in other.items()}


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
    table = Table("task", "adapter", "decoder", "held-out rows", "figure", "in bfloat16", "head alone", "seconds")
    for entry, task in tasks:
        adapter = f"LoRA r={entry.adapter.r}, {len(entry.adapter.targets)} kinds of module" if entry.adapter else "-"
        name = task.evaluation.headline if task.evaluation else "spearman"
        rows = f"{task.metrics['test_set']} ({task.metrics['test_rows']})"
        cells = (
            f"{name} {task.metrics[name]}",
            task.metrics[f"bfloat16_{name}"],
            task.metrics.get(f"head_only_{name}"),
            task.metrics.get("train_seconds"),
        )
        table.add_row(
            entry.name, adapter, task.decoder.kind, rows, *("-" if cell is None else str(cell) for cell in cells)
        )
    return table


def main(
    data: Annotated[Path | None, typer.Option(help="Directory with the data sets' files; default: the hub.")] = None,
    only: Annotated[str, typer.Option(help="Names of tasks, comma-separated; default: all.")] = "",
    repository: Annotated[Path, typer.Option(help="Model repository to save into.")] = Path("model_repository"),
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    rows: Annotated[int | None, typer.Option(min=64, help="Training rows at most; default: all.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores to use.")] = 2,
    measured_only: Annotated[bool, typer.Option("--measure", help="Measure the tasks that are there.")] = False,
) -> None:
    """Train the demo's tasks and save them into the model repository."""
    torch.set_num_threads(threads)
    console, models, done = Console(), ModelRepository(repository), []
    backbone, rounded = (Backbone(BACKBONE, repository=repository, dtype=dtype) for dtype in ("float32", "bfloat16"))
    for entry in chosen_tasks(only):
        console.print(f"{entry.name}: {entry.description}")
        read = None if entry.read is None else entry.read(data)
        if measured_only:
            task = Task.load(repository / entry.name, backbone)
        elif read is None:
            task = embedding(entry, backbone)
        else:
            task = train(entry, backbone, replace(read, train=thinned(read.train, rows)), seed)
        measure(task, HeldOut.of_pairs(sentence_pairs(data)) if read is None else HeldOut.of(read), rounded)
        done.append((entry, task))
        if measured_only:
            write_config(models.task(entry.name)[1].version.path, task.config())
            continue
        if entry.name in models.tasks():
            models.remove(entry.name)  # its tag is the lowest that is free then
        task.save(repository)
    console.print(report(done))


if __name__ == "__main__":
    try:
        typer.run(main)
    except TaskProblem as error:
        raise SystemExit(str(error)) from None
