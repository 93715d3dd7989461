"""Files in a folder, of inputs whose items are files."""

from __future__ import annotations

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
