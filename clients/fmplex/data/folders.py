"""Files in a folder, of inputs whose items are files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fmplex_backend.errors import TaskProblem
from fmplex_backend.families.spec import Input


def labelled_files(folder: Path, reads: Input) -> tuple[list[Path], list[str]]:
    """Files and their labels, in order: `folder/label/...` has those of a label, however deep; raises TaskProblem."""
    _check_reads_files(folder, reads)
    labels = sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    found = [(file, label.name) for label in labels for file in _files(label, reads)]
    if not found:
        raise TaskProblem(
            f"{folder} has no labelled files. Put those of each label into a folder of its name, as "
            f"{folder}/cat/1{reads.files[0]}; files of these kinds are read: {', '.join(reads.files)}"
        )
    return [file for file, _ in found], [label for _, label in found]


def paired_files(folder: Path, reads: Input, labels: str, suffixes: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Files and the files that are their labels, in order: `images/a/1.jpg` and `masks/a/1.png`; raises TaskProblem.

    Args:
        labels: the name of the folder that has the labels. suffixes: how the names of those end.
    """
    _check_reads_files(folder, reads)
    items = folder / f"{reads.default_column}s"
    if not items.is_dir() or not (folder / labels).is_dir():
        raise TaskProblem(
            f"{folder} has no folders {items.name} and {labels}. Put files of the same names into both: "
            f"{items.name}/1{reads.files[0]} and {labels}/1{suffixes[0]}"
        )
    found, partners = files_in(items, reads), []
    for file in found:
        plain = folder / labels / file.relative_to(items)
        own = [plain.with_suffix(suffix) for suffix in suffixes if plain.with_suffix(suffix).is_file()]
        if not own:
            raise TaskProblem(f"{file} has no {plain.with_suffix(suffixes[0])}. Add it, or take the file out")
        partners.append(own[0])
    return found, partners


def files_in(folder: Path, reads: Input) -> list[Path]:
    """Every file that is an item, in order; raises TaskProblem where there is none."""
    _check_reads_files(folder, reads)
    found = _files(folder, reads)
    if not found:
        raise TaskProblem(f"{folder} has no files of these kinds: {', '.join(reads.files)}. Name another folder")
    return found


def _files(folder: Path, reads: Input) -> list[Path]:
    """Hidden ones are left out."""
    every = (file for file in folder.rglob("*") if not any(map(_hidden, file.relative_to(folder).parts)))
    return sorted(file for file in every if file.suffix.lower() in reads.files and file.is_file())


def _hidden(name: str) -> bool:
    return name.startswith(".")


def _check_reads_files(folder: Path, reads: Input) -> None:
    if not reads.files:
        raise TaskProblem(
            f"{folder} is a folder, and the task reads {reads.tensor.name}, which are no files. Name a .csv, .tsv or "
            ".jsonl file"
        )
