"""`fmplex import`: fine-tuned checkpoints of one model become tasks on one backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fmplex.cli import columns
from fmplex.cli.options import DEFAULT, AsJson, Repo, Server, split
from fmplex.cli.shown import PROBLEM, after, errors_shown, print_result
from fmplex.client.sync import Client
from fmplex_backend import families
from fmplex_backend.adapters.kinds import MAX_RANK
from fmplex_backend.errors import TaskProblem
from fmplex_backend.repository.backbone import BackboneEntry, model_named
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.configs import CONFIG, backbone_parameters
from fmplex_backend.repository.writer import ModelRepository

if TYPE_CHECKING:
    from fmplex.importing.checkpoint import Checkpoint
    from fmplex.importing.fleet import Found

COLUMNS = ("task", "from", "decoder", "of its own", "MiB", "work", "error")
MIB = 2**20
MAX_BATCH_SIZE = 32


def import_(
    directories: Annotated[list[Path], typer.Argument(help="Models, each as save_pretrained writes it.")],
    backbone: Annotated[str, typer.Option(help="Name of the backbone: one that is there, or a new one.")],
    base: Annotated[
        str,
        typer.Option(help="What a new backbone is made of: the model they were fine-tuned from, if it is at hand."),
    ] = "",
    names: Annotated[str, typer.Option(help="Names of the tasks, comma-separated; default: the directories'.")] = "",
    rank: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_RANK, help="Cut differences of a higher rank to this one, and say what is lost by it."
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="How far answers may differ from the model's own; others are not saved.")
    ] = 1e-4,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be saved, and save nothing.")] = False,
    repository: Repo = DEFAULT,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Make tasks on one backbone of models that were fine-tuned from one.

    What a model has of its own becomes its task: the head, LoRA where its weights differ by a product of low rank, else
    whole modules. Each task's answers are compared with those on the model itself.
    """
    with errors_shown(as_json):
        from transformers.utils import logging as transformers_logging

        from fmplex.importing.checkpoint import Checkpoint
        from fmplex.importing.fleet import Importer, check_alike

        transformers_logging.set_verbosity_error()  # heads are missing from a backbone on purpose
        models = ModelRepository(repository)
        checkpoints = [Checkpoint(directory) for directory in directories]
        check_alike(checkpoints)
        called = _names(names, checkpoints)
        for name in called:
            models.check_free(name)
        shared, entry = _shared(models, backbone, base, checkpoints)
        importer = Importer(shared, most=rank, cuts=rank is not None, tolerance=tolerance)
        found = [importer.found(each, name) for each, name in zip(checkpoints, called, strict=True)]
        saved = [] if dry_run else _save(models, entry, found)
        document = _document(backbone, importer.bytes, found) | {"saved": saved}
        if as_json:
            print_result(document, "", as_json)
        else:
            _show(document)
        if server and saved:
            with after("all is saved, but"), Client(server) as client:
                for name in (backbone, *saved):
                    client.load(name)
        if any(each.task is None for each in found):
            raise typer.Exit(PROBLEM)


def _names(given: str, checkpoints: Sequence[Checkpoint]) -> list[str]:
    names = split(given) or [each.name for each in checkpoints]
    if len(names) != len(checkpoints):
        raise TaskProblem(f"{len(names)} names are given for {len(checkpoints)} models. Give --names one for each")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TaskProblem(f"several models would be called {', '.join(twice)}. Name each: --names a,b,...")
    return names


def _shared(
    models: ModelRepository, name: str, base: str, checkpoints: Sequence[Checkpoint]
) -> tuple[Any, BackboneEntry | None]:
    """The backbone, and its entry where it is new."""
    from fmplex.importing.checkpoint import COMPARED_IN
    from fmplex.importing.fleet import chosen_base
    from fmplex.task.backbone import Backbone

    family, file = checkpoints[0].family, models.root / name / CONFIG
    if (parameters := backbone_parameters(models.root, name)) is not None:
        if base:
            raise TaskProblem(f"the backbone {name!r} is there already: leave --base out, or choose another name")
        there = load_backbone_config(file, parameters)
        if there.family != family:
            raise TaskProblem(f"the backbone {name!r} is a {there.family}, the models are of the family {family}")
        return Backbone(name, repository=models.root, dtype=COMPARED_IN), None
    models.check_free(name)
    model = model_named(base) if base else str(chosen_base(checkpoints).directory)
    config = load_backbone_config(file, {"model": model, "family": family})
    entry = BackboneEntry(name, config, MAX_BATCH_SIZE if families.family(family).batched else 0)
    shared = Backbone(model, repository=models.root, name=name, family=family, dtype=COMPARED_IN)
    return shared, entry


def _save(models: ModelRepository, entry: BackboneEntry | None, found: Sequence[Found]) -> list[str]:
    tasks = [each.task for each in found if each.task is not None]
    if tasks and entry is not None:
        models.add_backbone(entry)
    for task in tasks:
        task.save(models.root)
    return [task.name for task in tasks]


def _document(backbone: str, shared: int, found: Sequence[Found]) -> dict[str, Any]:
    """What there is to say, with bytes as float32 takes them."""
    tasks = [
        {
            "task": each.name,
            "from": str(each.checkpoint.directory),
            "decoder": each.carried.decoder.kind if each.carried else None,
            "own": each.extension.described() if each.task else None,
            "bytes": each.bytes if each.task else None,
            "work": round(each.extension.work, 4) if each.task else None,
            "left_out": each.extension.left_out if each.task else None,
            "error": each.error if each.task else None,
            "reason": each.reason or None,
        }
        for each in found
    ]
    own = [each.bytes for each in found if each.task is not None]
    return {
        "backbone": backbone,
        "backbone_bytes": shared,
        "bytes_together": shared + sum(own),
        "bytes_apart": shared * len(own) + sum(each.bytes - each.extension.bytes for each in found if each.task),
        "tasks": tasks,
    }


def _show(document: dict[str, Any]) -> None:
    rows = [_row(each) for each in document["tasks"]]
    columns.show(rows, COLUMNS, ["from", "decoder", "work"])
    for each in document["tasks"]:
        if each["reason"]:
            print(f"{each['task']}: not imported: {each['reason']}. It can be a backbone: fmplex backbone add")
        elif each["bytes"] * 2 > document["backbone_bytes"]:
            print(
                f"{each['task']}: a full fine-tune: of its own it has {each['bytes'] / document['backbone_bytes']:.0%} "
                "of the backbone's size, and most of its work is done twice. A backbone of its own serves it as well"
            )
    together, apart = (document[f"bytes_{name}"] / MIB for name in ("together", "apart"))
    done = "saved" if document["saved"] else "nothing saved"
    part = together / apart if apart else 1.0
    print(f"{together:.1f} MiB of weights in place of {apart:.1f} ({part:.0%}), in float32; {done}")


def _row(task: dict[str, Any]) -> dict[str, str]:
    told = {"task": task["task"], "from": task["from"], "decoder": task["decoder"] or "-"}
    if task["reason"]:
        return told | dict.fromkeys(("of its own", "MiB", "work", "error"), "-")
    return told | {
        "of its own": task["own"],
        "MiB": f"{task['bytes'] / MIB:.2f}",
        "work": f"+{task['work']:.0%}",
        "error": f"{task['error']:.0e}",
    }
