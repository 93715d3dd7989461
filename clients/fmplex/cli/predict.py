"""`fmplex predict`: asks a served task, for people and for files."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fmplex.cli.options import SERVER, Asked
from fmplex.cli.shown import PROBLEM, errors_shown
from fmplex.data.stream import FORMATS, STDIN
from fmplex_backend.errors import TaskProblem
from fmplex_backend.families import input_named
from fmplex_backend.families.spec import Input, SteppedInput

BEST = 3  # labels that are shown


def predict(
    task: Annotated[str, typer.Argument(help="Name of the task.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(help="Inputs: texts, files of pictures or series, or numbers such as 0.5,12,3; - for stdin."),
    ] = None,
    server: Asked = SERVER,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait; with --file, for a batch.")] = 30.0,
    top: Annotated[
        int | None, typer.Option(min=1, help="Labels to show with their scores.", show_default=str(BEST))
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Show all labels.")] = False,
    threshold: Annotated[
        float | None, typer.Option(help="Leave out labels and spans scored below; one label becomes empty.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read inputs from this file; - for stdin.", dir_okay=False)
    ] = None,
    kind: Annotated[
        str,
        typer.Option("--format", help="Format of --file, where its name does not tell it.", metavar="|".join(FORMATS)),
    ] = "",
    column: Annotated[
        str,
        typer.Option(
            help="Column of the input, or columns of the numbers: a,b,c.", show_default="text or image, or all"
        ),
    ] = "",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write results to this file.", dir_okay=False)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin --out anew, whatever is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results whole, as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw inputs and results into this .png, .svg or .pdf file.", dir_okay=False)
    ] = None,
    hold_back: Annotated[
        int, typer.Option(min=0, help="Last steps of series that are not sent; --plot shows them beside the forecast.")
    ] = 0,
) -> None:
    """Send inputs to a served task, and print its results or write them to a file.

    A file is read row by row, sent in batches, and written in order. Interrupted, the same command goes on after the
    last row in --out. Rows that cannot be answered are named and have the column `error`; the exit status is then 1.
    """
    if kind and kind not in FORMATS:
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join(FORMATS)}", param_hint="--format")
    if texts == ["-"] and file is None:
        texts, file = None, STDIN
    if bool(texts) == (file is not None):
        raise typer.BadParameter("give inputs, or --file FILE, or - for stdin", param_hint="TEXTS")
    if (plot is not None or hold_back) and not texts:
        raise typer.BadParameter("only inputs that are given one by one are drawn", param_hint="--plot")
    if out is not None and file is None:
        raise typer.BadParameter("results of a --file are written to one", param_hint="--out")
    if out is not None and file is not None and out.absolute() == file.absolute():
        raise typer.BadParameter("it is --file too", param_hint="--out")
    with errors_shown(as_json):
        if texts:
            asked = Asking(task, texts, None if every else top or BEST, threshold, as_json, plot, hold_back)
            _ask(asked, server, timeout)
            return
        from fmplex.cli import files

        assert file is not None
        wanted = None if every else top or (0 if out or as_json else BEST)
        job = files.Job(task, file, out, kind or None, column, wanted, threshold, as_json, overwrite)
        done = files.run(job, server, timeout)
    if not done.rows:
        print(
            f"fmplex: {file} has no rows. Name a file that has some below its header",
            file=sys.stderr,
        )
    if out is not None or done.failed:
        more = f", {done.failed:,} of them with an error" if done.failed else ""
        print(f"fmplex: {done.rows:,} rows{more}{f': {out}' if out else ''}", file=sys.stderr)
    if done.failed:
        raise typer.Exit(PROBLEM)


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked, and how the results are shown."""

    task: str
    texts: list[str]
    top: int | None
    threshold: float | None
    as_json: bool
    plot: Path | None
    hold_back: int


def _ask(asked: Asking, server: str, timeout: float) -> None:
    from fmplex.cli.answers import result_line
    from fmplex.cli.files import shortened
    from fmplex.client.deadline import Deadline
    from fmplex.client.results import above, as_json_value
    from fmplex.client.sync import Client

    deadline = Deadline.after(timeout, time.monotonic)
    with Client(server, timeout=timeout) as client:
        reads = input_named(client.interface(asked.task).takes)
        if reads is None:
            raise TaskProblem(f"{asked.task!r} reads what no family here has. Send it with a Triton client")
        items, held = _parted(reads, [reads.parse(text) for text in asked.texts], asked.hold_back)
        found = client.predict(asked.task, items, timeout=deadline.remaining)
    if asked.plot is not None:
        from fmplex.cli.plotting import draw

        draw(asked.plot, items, found, held)
    if asked.threshold is not None:
        found = [above(each, asked.threshold) for each in found]
    if asked.as_json:
        print(json.dumps([as_json_value(each) for each in found], ensure_ascii=False))
        return
    for item, each in zip(items, found, strict=True):
        line = result_line(each, asked.top)
        print(f"{shortened(reads.show(item))}: {line}" if len(items) > 1 else line)


def _parted(reads: Input, items: list[Any], hold_back: int) -> tuple[list[Any], list[Any]]:
    """Items as they are sent, and what of each is held back."""
    if not hold_back:
        return items, [None] * len(items)
    if not isinstance(reads, SteppedInput):
        raise TaskProblem(f"{reads.tensor.name} has no steps that could be held back. Leave --hold-back out")
    parts = [reads.parted(item, hold_back) for item in items]
    return [first for first, _ in parts], [last for _, last in parts]
