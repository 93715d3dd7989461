"""Trains a classifier on a CSV file with the columns `text` and `label`, evaluates it on held-out rows and saves it.

    python clients/examples/csv_classifier.py reviews.csv --name reviews
    python clients/examples/csv_classifier.py reviews.csv --name reviews --server localhost:8001

The second form serves it at once, on a running server.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from fmplex import Backbone, Classifier, Client, LoRA, Task
from fmplex.data.tables import read_file

HELD_OUT = 0.2


def main(
    file: Annotated[Path, typer.Argument(help="CSV file with the columns text and label.")],
    name: Annotated[str, typer.Option(help="Name of the task.")] = "reviews",
    repository: Path = Path("model_repository"),
    epochs: int = 3,
    server: Annotated[str, typer.Option(help="A running server's gRPC address.")] = "",
) -> None:
    """Train on four fifths, evaluate on the rest."""
    rows = read_file(file)
    random.Random(0).shuffle(rows)
    cut = max(1, round(len(rows) * HELD_OUT))
    test, training = rows[:cut], rows[cut:]

    task = Task(name, Backbone("minilm", repository=repository), adapter=LoRA(r=8), decoder=Classifier())
    task.fit(training, validation=0.1, epochs=epochs, class_weights="balanced")
    found = task.evaluate(test)
    print(f"{found.figures} on {found.rows} rows that were held out")

    if not server:
        print(task.save(repository))
        return
    print(task.deploy(server, repository))
    with Client(server) as client:
        print(client.predict(name, [row["text"] for row in test[:3]]))


if __name__ == "__main__":
    typer.run(main)
