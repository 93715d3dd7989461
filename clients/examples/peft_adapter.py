"""A PEFT adapter that was trained elsewhere, with the score head that came with it, becomes a task.

    python clients/examples/peft_adapter.py DIR --labels ham,spam --name spam

DIR is what `save_pretrained` wrote, or a hub id. Without --labels the adapter's embeddings are served.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmplex import Backbone, Classifier, Embedder, Pretrained, Task


def main(
    source: Annotated[str, typer.Argument(help="A PEFT directory or a hub id.")],
    labels: Annotated[str, typer.Option(help="Labels of its score head, in order, comma-separated.")] = "",
    name: str = "adapted",
    repository: Path = Path("model_repository"),
    server: Annotated[str, typer.Option(help="A running server's gRPC address.")] = "",
) -> None:
    """Read the adapter, predict once, save it as a task."""
    decoder = Classifier(labels.split(",")) if labels else Embedder()
    task = Task(name, Backbone("minilm", repository=repository), adapter=Pretrained(source), decoder=decoder)
    print(task.predict("What does it say to this?")[0])
    print(task.deploy(server, repository) if server else task.save(repository))


if __name__ == "__main__":
    typer.run(main)
