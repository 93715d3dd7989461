"""`fmplex task ...`: what the Task-API does, from a shell."""

from __future__ import annotations

from typing import Annotated

import typer

from fmplex.cli import changes, checks, listing, rollout
from fmplex.cli.deploy import deploy
from fmplex.cli.evaluating import evaluate
from fmplex.cli.options import (
    DEFAULT,
    AsJson,
    Hold,
    Labels,
    MaxQueue,
    MaxQueueBytes,
    MaxSeconds,
    Name,
    NewVersion,
    Repo,
    Server,
    SloMs,
    Weight,
    split,
)
from fmplex.cli.shown import errors_shown, print_result
from fmplex.cli.train import train
from fmplex_backend.adapters.kinds import Pretrained
from fmplex_backend.decoders import Classifier, Embedder
from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.configs import Terms

app = typer.Typer(help="Train, add, list, change and check the tasks of a model repository.", no_args_is_help=True)
app.command()(train)
app.command()(evaluate)
app.command()(deploy)
app.command("list")(listing.list_)
app.command()(listing.show)
app.command("set")(changes.set_)
app.command()(changes.load)
app.command()(changes.unload)
app.command()(changes.rollback)
app.command()(rollout.canary)
app.command()(rollout.shadow)
app.command()(rollout.promote)
app.command()(changes.remove)
app.command()(checks.check)


@app.command()
def add(
    name: Name,
    adapter: Annotated[str, typer.Option(help="A directory that save_pretrained wrote, or a hub id.")],
    backbone: Annotated[str, typer.Option(help="Name of a backbone in the repository.")] = "minilm",
    labels: Labels = "",
    repository: Repo = DEFAULT,
    new_version: NewVersion = False,
    hold: Hold = False,
    weight: Weight = None,
    slo_ms: SloMs = None,
    max_queue: MaxQueue = None,
    max_queue_bytes: MaxQueueBytes = None,
    max_seconds: MaxSeconds = None,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Add a trained PEFT adapter as a task: with --labels by its score head, without them as an embedding."""
    with errors_shown(as_json):
        from fmplex.task.destination import check_destination

        terms = Terms(weight, slo_ms, max_queue, max_queue_bytes, max_seconds)
        asked = "" if hold else server
        check_destination(name, backbone, repository, terms, asked, new_version=new_version, held=hold)
        from fmplex.task.backbone import Backbone
        from fmplex.task.task import Task

        names = split(labels)
        decoder = Classifier(names) if names else Embedder()
        task = Task(
            name,
            Backbone(backbone, repository=repository),
            adapter=Pretrained(adapter),
            decoder=decoder,
            **terms.given(),
        )
        if names and not task.has_head:
            raise TaskProblem(
                f"{adapter} has no score head for --labels. Leave them out to serve its embeddings, or fit a "
                f"head: fmplex task train {name} --from {adapter} --data FILE"
            )
        path = task.deploy(server, repository) if asked else task.save(repository, held=hold)
        words = "\n".join([f"{name}: {path}", *(f"note: {remark}" for remark in task.remarks)])
        print_result({"task": name, "path": str(path), "notes": task.remarks}, words, as_json)
