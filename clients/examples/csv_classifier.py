"""A classifier out of a CSV file with the columns `text` and `label`, trained, measured and saved.

python clients/examples/csv_classifier.py reviews.csv --name reviews
python clients/examples/csv_classifier.py reviews.csv --name reviews --server localhost:8001   and served at once
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated

import typer

from fmplex import Backbone, Classifier, Client, LoRA, Task
from fmplex.data import rows_of

HELD_OUT = 0.2


def main(
    file: Annotated[Path, typer.Argument(help="With the columns text and label.")],
    name: Annotated[str, typer.Option(help="The task's.")] = "reviews",
    repository: Path = Path("model_repository"),
    epochs: int = 3,
    server: Annotated[str, typer.Option(help="A running server's gRPC address.")] = "",
) -> None:
    """Train on four fifths, measure on the rest."""
    rows = rows_of(file)
    order = random.Random(0).sample(range(len(rows)), len(rows))
    cut = max(1, round(len(rows) * HELD_OUT))
    test, training = rows.pick(order[:cut]), rows.pick(order[cut:])

    task = Task(name, Backbone("minilm", repository=repository), adapter=LoRA(r=8), decoder=Classifier())
    task.fit(training.texts, training.labels, validation=0.1, epochs=epochs, class_weights="balanced")
    found = task.evaluate(test.texts, test.labels)
    print(f"{found.figures} on {found.rows} rows that were held out")

    if not server:
        print(task.save(repository))
        return
    print(task.deploy(server, repository))
    with Client(server) as client:
        print(client.predict(name, test.texts[:3]))


if __name__ == "__main__":
    typer.run(main)
