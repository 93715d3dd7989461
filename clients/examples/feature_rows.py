"""Rows of numbers on a text backbone: scikit-learn's wine or breast-cancer set, compared with a logistic regression.

    python clients/examples/feature_rows.py
    python clients/examples/feature_rows.py --data breast_cancer --server localhost:8001

The second form serves the task at once, on a running server.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from sklearn import datasets
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fmplex import Backbone, Classifier, Client, Projection, Task


class Data(str, Enum):
    """Data sets that scikit-learn brings along."""

    wine = "wine"
    breast_cancer = "breast_cancer"


def main(
    data: Data = Data.wine,
    repository: Path = Path("model_repository"),
    epochs: int = 10,
    server: Annotated[str, typer.Option(help="A running server's gRPC address.")] = "",
) -> None:
    """Train on three quarters, evaluate on the rest."""
    found: Any = getattr(datasets, f"load_{data.value}")()
    labels = [str(found.target_names[number]) for number in found.target]
    rows, test, own, held = train_test_split(found.data, labels, test_size=0.25, random_state=0, stratify=labels)

    name = data.value.replace("_", "-")
    encoder = Projection(rows.shape[1], tokens=4)
    task = Task(name, Backbone("minilm", repository=repository), encoder=encoder, decoder=Classifier())
    task.fit(rows, own, epochs=epochs, learning_rate=1e-3)
    print(f"{task.evaluate(test, held).figures} on {len(test)} rows that were held out")
    plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(rows, own)
    print(f"a logistic regression's accuracy: {plain.score(test, held):.4f}")

    if not server:
        print(task.save(repository))
        return
    print(task.deploy(server, repository))
    with Client(server) as client:
        print(client.predict(name, test[:3]))


if __name__ == "__main__":
    typer.run(main)
