"""`fmplex backbone add` and `list`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fmplex.cli import columns, live
from fmplex.cli.options import DEFAULT, AsJson, Live, Repo, Server
from fmplex.cli.rows import short
from fmplex.cli.shown import after, errors_shown, print_result
from fmplex.client.sync import Client
from fmplex_backend import families
from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families.model_files import find_model, model_config
from fmplex_backend.repository.backbone import BackboneEntry, family_of, model_named
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.configs import CONFIG, backbone_parameters
from fmplex_backend.repository.writer import ModelRepository

COLUMNS = ("backbone", "family", "model", "dtype", "tasks", "state", "queue", "batches")

MOST = 2**31 - 1  # of Triton's int32

app = typer.Typer(help="Add and list the backbones of a model repository.", no_args_is_help=True)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Name of the backbone.")],
    model: Annotated[str, typer.Argument(help="Hub id, directory, or package:<module> of its weights.")],
    repository: Repo = DEFAULT,
    family: Annotated[str, typer.Option(help="Kind of model; default: what its config.json shows.")] = "",
    dtype: Annotated[
        str, typer.Option(help="auto (what the device has in hardware), float32, bfloat16 or float16.")
    ] = "auto",
    slots: Annotated[int, typer.Option(help="Number of tasks that it can take.")] = 256,
    max_batch_size: Annotated[int, typer.Option(min=1, max=MOST, help="Most items of a batch.")] = 32,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Add a backbone: its model is found (and fetched from the hub), its family told, its directory written."""
    with errors_shown(as_json):
        models = ModelRepository(repository)
        models.check_free(name)
        file, source = Path(repository, name, CONFIG), model_named(model)
        directory = find_model(source, file)
        found = family or family_of(model, model_config(directory, file))
        given = {"model": source, "family": found, "dtype": dtype, "vfm_slots": str(slots)}
        config = load_backbone_config(file, given)
        path = models.add_backbone(BackboneEntry(name, config, max_batch_size if families.family(found).batched else 0))
        if server:
            with after(f"{path} is written, but"), Client(server) as client:
                client.load(name)
                client.status(name)
        document = {"backbone": name, "family": found, "model": source, "path": str(path), "loaded": bool(server)}
        print_result(document, f"{name}: {path} ({found})", as_json)


@app.command("list")
def list_(repository: Repo = DEFAULT, server: Live = "", as_json: AsJson = False) -> None:
    """List all backbones; while a server runs, also how they are on it."""
    with errors_shown(as_json):
        models = ModelRepository(repository)
        backbones = tuple(models.backbones())
        now = live.read(server, {}, backbones)
        bound = [backbone for backbone, _ in models.tasks().values()]
        rows = [_row(models, name, now) | {"tasks": bound.count(name)} for name in backbones]
        if as_json:
            print(json.dumps(rows, ensure_ascii=False))
            return
        cells = [{key: "-" if value is None else short(value) for key, value in row.items()} for row in rows]
        shown = [each for each in COLUMNS if now is not None or each not in ("queue", "batches")]
        columns.show(cells, shown, ["batches", "queue", "model", "dtype"] if now is not None else ["model", "dtype"])
        for row in rows:
            if row["error"]:
                print(f"fmplex: {row['backbone']}: {row['state']}: {row['error']}", file=sys.stderr)


def _row(models: ModelRepository, name: str, now: live.Live | None) -> dict[str, Any]:
    row: dict[str, Any] = {"backbone": name} | dict.fromkeys(
        ("family", "model", "dtype", "state", "queue", "batches", "error")
    )
    try:
        config = load_backbone_config(models.root / name / CONFIG, backbone_parameters(models.root, name) or {})
    except BackboneRefused as error:
        row |= {"state": "refused", "error": str(error)}
    else:
        row |= {"family": config.family, "model": config.model, "dtype": config.dtype}
    if now is None:
        return row
    if name in now.missing:
        return row | {"state": "not served", "error": row["error"] or now.missing[name]}
    status = now.backbones[name]
    told = {"model": status.model, "dtype": status.dtype, "queue": status.queued, "batches": status.batches}
    return row | {"state": "serving"} | told
