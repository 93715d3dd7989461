"""The demo's tasks on SmolLM2: `assistant`, a system prompt, and `headline`, a LoRA that writes a story's headline.

    python clients/examples/language_demo.py AG_NEWS/test.csv
    python clients/examples/language_demo.py AG_NEWS/test.csv --rows 200 --repository another

The file is AG News' test set as its authors publish it: rows of a class, a title and a description. Every fourth row is
held out. Tasks that are there are replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from demo_data import csv_rows, news_text

from fmplex import Backbone, Generator, LoRA, Task
from fmplex_backend.repository.writer import ModelRepository

BACKBONE = "smollm2"
HOLD_OUT_EVERY = 4
LONGEST = 400  # characters of a story


def stories(file: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Descriptions with their titles: rows to train on, and those held out."""
    rows = [(news_text(body, ""), news_text(title, "")) for _, title, body in csv_rows(file)]
    rows = [row for row in rows if len(row[0]) <= LONGEST and row[1]]
    held_out = rows[HOLD_OUT_EVERY - 1 :: HOLD_OUT_EVERY]
    return [row for place, row in enumerate(rows, 1) if place % HOLD_OUT_EVERY], held_out


def assistant(backbone: Backbone) -> Task:
    """It answers questions."""
    return Task(
        "assistant",
        backbone,
        decoder=Generator(system="You answer in one short sentence.", temperature=0, max_tokens=48),
        description="Answers questions in a sentence",
    )


def save(task: Task, repository: Path) -> None:
    """In the place of one of that name."""
    if task.name in ModelRepository(repository).tasks():
        ModelRepository(repository).remove(task.name)
    print(task.save(repository))


def main(
    file: Annotated[Path, typer.Argument(help="AG News' test.csv.")],
    repository: Path = Path("model_repository"),
    rows: Annotated[int, typer.Option(help="Rows to train on.")] = 400,
    test_rows: Annotated[int, typer.Option(help="Held-out rows to evaluate on.")] = 50,
    epochs: int = 1,
    seed: int = 0,
    precision: Annotated[str, typer.Option(help="Of the steps: float32, or bfloat16 where the CPU has it.")] = "auto",
) -> None:
    """Save the one, fit and save the other."""
    training, held_out = stories(file)
    training, test = (
        own[:: max(1, len(own) // most)][:most] for own, most in ((training, rows), (held_out, test_rows))
    )
    backbone = Backbone(BACKBONE, repository=repository, dtype="float32")
    save(assistant(backbone), repository)

    decoder = Generator(system="Write the headline of this story.", temperature=0, max_tokens=24)
    task = Task(
        "headline",
        backbone,
        adapter=LoRA(r=8, targets=("q_proj", "v_proj")),
        decoder=decoder,
        description="Writes the headline of a newspaper's story (AG News)",
    )
    options = {"epochs": epochs, "seed": seed, "precision": precision, "batch_size": 8}
    task.fit(training, validation=0.1, test=test, progress=True, **options)
    task.metrics |= {"test_set": "AG News, every 4th row of its test file"}
    print(task.metrics)
    for story, title in test[:3]:
        print(f"{story}\n  {title}\n  {task.predict(story)[0]}")
    save(task, repository)


if __name__ == "__main__":
    typer.run(main)
