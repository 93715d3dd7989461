"""`fmplex task train`: a task fitted, saved and served, from a shell."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

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
from fmplex.data.rows import rows_for
from fmplex.training.checks import check_rows
from fmplex.training.progress import Progress, shown
from fmplex_backend.adapters.kinds import KINDS as ADAPTERS
from fmplex_backend.adapters.kinds import Adapter, Pretrained
from fmplex_backend.decoders import Decoder
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families import decoders, family, kind_of
from fmplex_backend.families.spec import Family
from fmplex_backend.repository.config import load_backbone_config
from fmplex_backend.repository.configs import CONFIG, Terms, backbone_parameters

NO_ADAPTER = "none"
ADAPTER_KINDS = [*ADAPTERS, NO_ADAPTER]
# Kinds that need nothing but labelled rows; a package's decoder needs a name and options, which the Task-API takes.
DECODER_KINDS = [kind for kind, each in decoders().items() if each.learns != "nothing" and kind != "plugin"]


def _one_of(kinds: Sequence[str]) -> Callable[[str], str]:
    def parse(given: str) -> str:
        if given not in kinds:
            raise typer.BadParameter(f"{given!r} is not one of {', '.join(kinds)}")
        return given

    return parse


class Confidence(str, Enum):
    """What tells whether an input is one that the task knows."""

    score = "score"
    features = "features"


AdapterKind = Annotated[
    str,
    typer.Option(help="Kind of adapter.", parser=_one_of(ADAPTER_KINDS), metavar=f"[{'|'.join(ADAPTER_KINDS)}]"),
]
DecoderKind = Annotated[
    str | None,
    typer.Option(
        help="Kind of decoder; default: classification, of language models generator.",
        parser=_one_of(DECODER_KINDS),
        metavar=f"[{'|'.join(DECODER_KINDS)}]",
        show_default=False,
    ),
]


def train(
    name: Name,
    data: Annotated[Path, typer.Option(help="Training rows: a .csv, .tsv or .jsonl file; of pictures also a folder.")],
    backbone: Annotated[str, typer.Option(help="Name of a backbone in the repository.")] = "minilm",
    repository: Repo = DEFAULT,
    text: Annotated[
        str,
        typer.Option(
            help="Name of the column of texts, or of pictures' paths.",
            show_default="text, image or prompt",
        ),
    ] = "",
    numbers: Annotated[
        str,
        typer.Option(help="Feature columns instead of a text, comma-separated; 'all' for every one but the label."),
    ] = "",
    label: Annotated[
        str, typer.Option(help="Name of the label column.", show_default="label, of answers completion")
    ] = "",
    test: Annotated[Path | None, typer.Option(help="Held-out rows to evaluate on, in the same forms.")] = None,
    validation: Annotated[float, typer.Option(help="Fraction of the rows used for early stopping.")] = 0.1,
    decoder: DecoderKind = None,
    labels: Labels = "",
    adapter: AdapterKind = "lora",
    source: Annotated[str, typer.Option("--from", help="Start from this PEFT adapter: a directory or hub id.")] = "",
    rank: Annotated[int, typer.Option(help="Rank of LoRA or DoRA.")] = 8,
    targets: Annotated[str, typer.Option(help="Target modules, comma-separated; auto: PEFT's choice.")] = "auto",
    epochs: Annotated[int, typer.Option(help="Epochs at most; early stopping may end sooner.")] = 3,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate; default: depends on the adapter.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows of a training step.")] = 32,
    accumulation: Annotated[int, typer.Option(help="Steps whose gradients make one update.")] = 1,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens to cut texts to; default: the backbone's limit.")
    ] = None,
    prefix: Annotated[str, typer.Option(help='Text to put before each text, e.g. "query: ".')] = "",
    balanced: Annotated[bool, typer.Option("--balanced", help="Weight rare labels as much as frequent ones.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Directory for checkpoints, from which the same command goes on after an interruption."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew where there is a checkpoint.")] = False,
    new_version: NewVersion = False,
    hold: Hold = False,
    reject_below: Annotated[
        float | None, typer.Option(help="Answer no label where the confidence is lower (0 to 1).")
    ] = None,
    reject_label: Annotated[
        str | None, typer.Option(help="Label of out-of-scope rows, from which it is learned what to reject.")
    ] = None,
    confidence: Annotated[
        Confidence | None, typer.Option(help="What tells it: the highest score, or features; default: see the guide.")
    ] = None,
    system: Annotated[str, typer.Option(help="What a conversation with a language model begins with.")] = "",
    horizon: Annotated[int | None, typer.Option(help="Steps to forecast, of a series.")] = None,
    weight: Weight = None,
    slo_ms: SloMs = None,
    max_queue: MaxQueue = None,
    max_queue_bytes: MaxQueueBytes = None,
    max_seconds: MaxSeconds = None,
    server: Server = "",
    as_json: AsJson = False,
) -> None:
    """Train a task on labelled texts, pictures, series, rows of numbers or prompts with their answers, and save it.

    It becomes a new task, or a new version of one.

    Name, rows, test rows, repository and server are checked before the first step. What was trained is saved whatever
    happens afterwards. After Ctrl-C the same command goes on from the checkpoint.
    """
    with errors_shown(as_json), _progress(name, as_json) as progress:
        from fmplex.task.destination import check_destination

        progress.phase("checking")
        terms = Terms(weight, slo_ms, max_queue, max_queue_bytes, max_seconds)
        asked = "" if hold else server
        check_destination(name, backbone, repository, terms, asked, new_version=new_version, held=hold)
        of_family = _family(repository, backbone)
        kind = _kind(of_family, decoder)
        columns = _columns(numbers, data, label or decoders()[kind].label_column)
        reading = {name: value for name, value in {"prefix": prefix, "max_length": max_length}.items() if value}
        encoder = of_family.encoder_for(columns, reading)
        told = confidence.value if confidence else None
        chosen = _decoder(
            kind,
            labels=split(labels),
            reject_below=reject_below,
            reject_label=reject_label,
            confidence=told,
            system=system,
            horizon=horizon,
        )
        named = columns or text or None
        rows, tested = (
            None if file is None else rows_for(chosen, file, None, encoder.reads(), columns=named, label=label)
            for file in (data, test)
        )
        assert rows is not None
        remarks = check_rows(chosen, rows, None, tested)
        progress.phase("loading libraries")
        from fmplex.cli.trained import Finisher
        from fmplex.task.backbone import Backbone
        from fmplex.task.task import Task
        from fmplex.training.checkpoints import NUMBERS

        task = Task(
            name,
            Backbone(backbone, repository=repository),
            adapter=_adapter(adapter, source, rank, targets),
            decoder=chosen,
            encoder=encoder,
            **terms.given(),
        )
        folder = checkpoint or default_checkpoint(repository, name)
        if restart and (folder / NUMBERS).is_file():  # a directory of something else is left alone
            shutil.rmtree(folder)
        finisher = Finisher(task, remarks, repository, asked, folder, progress, held=hold, quiet=as_json)
        finisher.fit(
            rows,
            validation=validation or None,
            test=tested,
            class_weights="balanced" if balanced else None,
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            accumulation=accumulation,
            seed=seed,
        )
        finisher.save_and_serve()
    print_result(finisher.document(), finisher.words(), as_json)


@contextlib.contextmanager
def _progress(name: str, as_json: bool) -> Iterator[Progress]:
    if as_json:
        yield Progress(name)
        return
    with shown(name) as progress:
        yield progress


def default_checkpoint(repository: Path, name: str) -> Path:
    """Beside the repository, where no server looks."""
    return repository.resolve().parent / ".fmplex-training" / name


def _family(repository: Path, backbone: str) -> Family:
    """Of a backbone of the repository; raises BackboneRefused."""
    parameters = backbone_parameters(repository, backbone) or {}
    return family(load_backbone_config(repository / backbone / CONFIG, parameters).family)


def _kind(of_family: Family, given: str | None) -> str:
    """A kind of decoder that needs nothing but labelled rows, the family's first by default; raises TaskProblem."""
    kinds = [kind for kind in map(kind_of, of_family.decoders) if kind in DECODER_KINDS]
    if not kinds:
        raise TaskProblem(f"tasks on a {of_family.name} have nothing to fit. Save one with the Task-API")
    if given is not None and given not in kinds:
        raise TaskProblem(f"the backbone is a {of_family.name}, which has {', '.join(kinds)}. Leave --decoder out")
    return given or kinds[0]


def _columns(numbers: str, data: Path, label: str) -> list[str]:
    from fmplex.data.tables import columns_in, read_file

    if numbers != "all":
        return split(numbers)
    return [name for name in columns_in(read_file(data), str(data)) if name != label]


def _adapter(kind: str, source: str, rank: int, targets: str) -> Adapter | None:
    if source:
        return Pretrained(source)
    if kind == NO_ADAPTER:
        return None
    return ADAPTERS[kind].of_options(rank, split(targets) if "," in targets else targets)


def _decoder(kind: str, **options: Any) -> Decoder:
    """The kind's section with those options that are given; raises TaskProblem where it has no such field."""
    given = {name: value for name, value in options.items() if value not in (None, "", [])}
    chosen: Any = decoders()[kind]
    for name in given:
        if name not in chosen.__dataclass_fields__:
            raise TaskProblem(f"a {kind} decoder has no --{name.replace('_', '-')}. Leave it out, or name another kind")
    try:
        decoder: Decoder = chosen(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise TaskProblem(f"{'.'.join(map(str, first['loc'])) or kind}: {first['msg']}. Correct the option") from None
    return decoder
