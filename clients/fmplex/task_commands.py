"""`fmplex task ...` and `fmplex predict`: what the Task-API does, from a shell."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fmplex import live
from fmplex.configs import Terms
from fmplex.errors import TaskProblem
from fmplex.repository import ModelRepository, Saved
from fmplex.shown import errors_shown
from fmplex.task_rows import row_of, short
from fmplex_backend.config import load_task_config

if TYPE_CHECKING:
    from fmplex.task import Task

METRICS = "http://localhost:8002/metrics"

app = typer.Typer(help="Make, list, change and check tasks of a model repository.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The task.")]
Repo = Annotated[Path, typer.Option("--repository", "-r", help="The model repository.", file_okay=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Say it in JSON, for programs.")]
Server = Annotated[str, typer.Option(help="Load it on this server too, e.g. localhost:8001.")]
Weight = Annotated[float | None, typer.Option(help="Its share of the backbone.")]
SloMs = Annotated[float | None, typer.Option("--slo-ms", help="The latency it asks for.")]
MaxQueue = Annotated[int | None, typer.Option(help="Requests that may wait.")]
Labels = Annotated[str, typer.Option(help="With commas, in the decoder's order; those of the data by default.")]
DEFAULT = Path("model_repository")


class AdapterKind(str, Enum):
    """What is put into the backbone."""

    lora = "lora"
    dora = "dora"
    ia3 = "ia3"
    none = "none"


class DecoderKind(str, Enum):
    """What comes after the backbone."""

    classification = "classification"
    multi_label = "multi-label"
    regression = "regression"
    token_classification = "token-classification"
    similarity = "similarity"


@app.command()
def train(
    name: Name,
    data: Annotated[Path, typer.Option(help="A .csv, .tsv or .jsonl file.", dir_okay=False)],
    backbone: Annotated[str, typer.Option(help="Of the repository.")] = "minilm",
    repository: Repo = DEFAULT,
    text: Annotated[str, typer.Option(help="The column of texts.")] = "text",
    numbers: Annotated[
        str,
        typer.Option(help="Columns of numbers, with commas, in the place of a text; all: every one but the label's."),
    ] = "",
    label: Annotated[str, typer.Option(help="The column of labels.")] = "label",
    test: Annotated[Path | None, typer.Option(help="Held-out rows, for the figures.", dir_okay=False)] = None,
    validation: Annotated[float, typer.Option(help="Part of the rows that early stopping looks at.")] = 0.1,
    decoder: DecoderKind = DecoderKind.classification,
    labels: Labels = "",
    adapter: AdapterKind = AdapterKind.lora,
    source: Annotated[str, typer.Option("--from", help="Go on from this PEFT adapter.")] = "",
    rank: Annotated[int, typer.Option(help="Of LoRA and DoRA.")] = 8,
    targets: Annotated[str, typer.Option(help="Modules, with commas; PEFT's choice by default.")] = "auto",
    epochs: int = 3,
    learning_rate: Annotated[float | None, typer.Option(help="One that suits the adapter by default.")] = None,
    batch_size: int = 32,
    max_length: Annotated[int | None, typer.Option(help="Tokens; the backbone's by default.")] = None,
    prefix: Annotated[str, typer.Option(help='Before each text, e.g. "query: ".')] = "",
    balanced: Annotated[bool, typer.Option("--balanced", help="Make rare labels count as much as others.")] = False,
    seed: int = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="Go on from here after an interruption.")] = None,
    weight: Weight = None,
    slo_ms: SloMs = None,
    max_queue: MaxQueue = None,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Fit a task on labelled texts or rows of numbers and save it: a new one, or the next version of one."""
    with errors_shown(as_json):
        from fmplex.backbone import Backbone
        from fmplex.parts import Projection, Text
        from fmplex.task import Task

        columns = _columns(numbers, data, label)
        task = Task(
            name,
            Backbone(backbone, repository=repository),
            adapter=_adapter(adapter, source, rank, targets),
            decoder=_decoder(decoder, labels),
            encoder=Projection(len(columns)) if columns else Text(prefix=prefix, max_length=max_length),
            weight=weight,
            slo_ms=slo_ms,
            max_queue=max_queue,
        )
        task.fit(
            data,
            validation=validation or None,
            class_weights="balanced" if balanced else None,
            text=columns or text,
            label=label,
            checkpoint=checkpoint,
            progress=not as_json,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
        )
        if test is not None:
            task.evaluate(test, text=columns or text, label=label)
        path = task.deploy(server, repository) if server else task.save(repository)
        _say({"task": name, "path": str(path), "metrics": task.metrics}, _trained(task, path), as_json)


@app.command()
def add(
    name: Name,
    adapter: Annotated[str, typer.Option(help="A directory that save_pretrained wrote, or a hub id.")],
    backbone: Annotated[str, typer.Option(help="Of the repository.")] = "minilm",
    labels: Labels = "",
    repository: Repo = DEFAULT,
    weight: Weight = None,
    slo_ms: SloMs = None,
    max_queue: MaxQueue = None,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Serve an adapter that PEFT trained, with the score head that came with it; without one, as an embedding."""
    with errors_shown(as_json):
        from fmplex.backbone import Backbone
        from fmplex.parts import Classifier, Embedder, Pretrained
        from fmplex.task import Task

        names = _split(labels)
        decoder = Classifier(names) if names else Embedder()
        task = Task(
            name,
            Backbone(backbone, repository=repository),
            adapter=Pretrained(adapter),
            decoder=decoder,
            weight=weight,
            slo_ms=slo_ms,
            max_queue=max_queue,
        )
        if names and not task.has_head:
            raise TaskProblem(
                f"{adapter} has no score head for the labels. Leave --labels out to serve its embeddings, or fit a "
                f"head: fmplex task train {name} --from {adapter} --data FILE"
            )
        path = task.deploy(server, repository) if server else task.save(repository)
        _say({"task": name, "path": str(path)}, f"{name}: {path}", as_json)


@app.command("list")
def list_(
    repository: Repo = DEFAULT,
    metrics_url: Annotated[str, typer.Option(help="/metrics of the server, for queues and shares.")] = METRICS,
    as_json: AsJson = False,
) -> None:
    """Every task: its terms, version and parts; on a running server its queue and share too."""
    with errors_shown(as_json):
        now = live.read(metrics_url)
        rows = [
            row_of(name, *found, now.get(name)) for name, found in sorted(ModelRepository(repository).tasks().items())
        ]
        if as_json:
            print(json.dumps(rows, ensure_ascii=False))
            return
        table = Table("task", "backbone", "tag", "weight", "SLO ms", "version", "adapter", "decoder", "figure")
        for column in ("queue", "share") if now else ():
            table.add_column(column)
        for row in rows:
            cells = [row["task"], row["backbone"], row["tag"], row["weight"], row["slo_ms"], row["version"]]
            cells += [row["adapter"], row["decoder"] if not row["error"] else row["error"], row["figure"]]
            cells += [row["queue"], None if row["share"] is None else f"{row['share']:.1%}"] if now else []
            table.add_row(*("-" if cell is None else short(cell) for cell in cells))
        Console().print(table)


@app.command()
def show(name: Name, repository: Repo = DEFAULT, as_json: AsJson = False) -> None:
    """All that is known about a task."""
    with errors_shown(as_json):
        models = ModelRepository(repository)
        backbone, spec = models.task(name)
        config = load_task_config(spec.version.path / "task.json")
        row = row_of(name, backbone, spec, live.read(METRICS).get(name))
        document = row | {
            "versions": models.versions(name),
            "path": str(spec.version.path),
            "task.json": config.model_dump(mode="json", exclude_none=True),
        }
        lines = "\n".join(f"{key}: {short(value)}" for key, value in document.items() if value is not None)
        _say(document, lines, as_json)


@app.command("set")
def set_(
    name: Name,
    repository: Repo = DEFAULT,
    weight: Weight = None,
    slo_ms: SloMs = None,
    max_queue: MaxQueue = None,
    as_json: AsJson = False,
) -> None:
    """Change a task's terms, in effect with the next batch."""
    with errors_shown(as_json):
        terms = Terms(weight, slo_ms, max_queue)
        if terms == Terms():
            raise TaskProblem("nothing is to be set. Give --weight, --slo-ms or --max-queue")
        ModelRepository(repository).set(name, terms)
        said = {key: value for key, value in asdict(terms).items() if value is not None}
        _say({"task": name} | said, f"{name}: " + ", ".join(f"{k} {v:g}" for k, v in said.items()), as_json)


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(help="A task's directory, or a version's.", file_okay=False)],
    backbone: Annotated[str, typer.Option(help="Where it is bound to none: a backbone, path or hub id.")] = "",
    as_json: AsJson = False,
) -> None:
    """Whether a server would take a task, with no server; the exit status says it too."""
    with errors_shown(as_json):
        from fmplex.backbone import Backbone
        from fmplex.task import Task

        task = Task.load(directory, Backbone(backbone, repository=directory.resolve().parent) if backbone else None)
        task.check()
        _say({"directory": str(directory), "ok": True}, f"{directory}: ok", as_json)


@app.command()
def remove(name: Name, repository: Repo = DEFAULT, server: Server = "", as_json: AsJson = False) -> None:
    """Take a task out of the repository, with all its versions."""
    with errors_shown(as_json):
        models = ModelRepository(repository)
        if name not in models.tasks():
            models.remove(name)  # says what there is
        if server:
            from fmplex.client import Client

            with Client(server) as client:
                client.unload(name)
        models.remove(name)
        _say({"task": name, "removed": True}, f"{name}: removed", as_json)


@app.command()
def rollback(name: Name, repository: Repo = DEFAULT, server: Server = "", as_json: AsJson = False) -> None:
    """Serve the version before the one that is served."""
    with errors_shown(as_json):
        saved: Saved = ModelRepository(repository).rollback(name)
        if server:
            from fmplex.client import Client

            with Client(server) as client:
                client.load(name)
        _say({"task": name, "version": saved.version}, f"{name}: version {saved.version}", as_json)


def predict(
    task: Name,
    texts: Annotated[list[str], typer.Argument(help="What to ask; rows of numbers as 0.5,12,3.")],
    server: Annotated[str, typer.Option(help="localhost:8001, or http://localhost:8000.")] = "localhost:8001",
    timeout: Annotated[float, typer.Option(help="Seconds.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Ask a served task."""
    with errors_shown(as_json):
        from fmplex.client import Client, as_json_value

        with Client(server, timeout=timeout) as client:
            numbers = client.interface(task).takes == "FEATURES"
            found = client.predict(task, [_row(text) for text in texts] if numbers else texts)
        if as_json:
            print(json.dumps([as_json_value(each) for each in found], ensure_ascii=False))
            return
        for text, each in zip(texts, found, strict=True):
            print(f"{text}: {short(as_json_value(each))}" if len(texts) > 1 else short(as_json_value(each)))


# -- parts out of options


def _row(text: str) -> list[float]:
    try:
        return [float(cell) for cell in text.split(",")]
    except ValueError:
        raise TaskProblem(f"{text!r} is no row of numbers, and the task reads these. Say e.g. 0.5,12,3") from None


def _columns(numbers: str, data: Path, label: str) -> list[str]:
    from fmplex.data import columns_in, read_file

    if numbers != "all":
        return _split(numbers)
    return [name for name in columns_in(read_file(data), str(data)) if name != label]


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def _adapter(kind: AdapterKind, source: str, rank: int, targets: str) -> Any:
    from fmplex.parts import IA3, DoRA, LoRA, Pretrained

    if source:
        return Pretrained(source)
    names: str | list[str] = _split(targets) if "," in targets else targets
    if kind is AdapterKind.none:
        return None
    if kind is AdapterKind.ia3:
        return IA3(targets=names)
    return (DoRA if kind is AdapterKind.dora else LoRA)(r=rank, targets=names)


def _decoder(kind: DecoderKind, labels: str) -> Any:
    from fmplex.parts import BY_KIND

    names = _split(labels)
    return BY_KIND[kind.value](labels=names) if names else BY_KIND[kind.value]()


# -- saying it


def _trained(task: Task, path: Path) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in task.metrics.items())
    return f"{task.name}: {path}\n{figures}"


def _say(document: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(document, ensure_ascii=False) if as_json else text)
