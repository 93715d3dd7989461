"""GGUF files: dequantised once, kept as safetensors in the user's cache. Imports torch only when it converts."""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from fmplex_backend.errors import BackboneRefused
from fmplex_backend.families.model_cache import cache_directory

BLOCK = 1 << 20  # bytes of a file that are read at a time
DIGEST = re.compile(r"[0-9a-f]{16}")
WAIT_S = 600.0  # for another process that converts the same file


def gguf_file(place: Path, file: Path) -> Path | None:
    """The one GGUF file that is, or is in, a place; None where there is none, or a model as transformers saves it.

    Raises BackboneRefused, naming the backbone's `file`, where there are several.
    """
    if place.suffix == ".gguf" and place.is_file():
        return place
    if not place.is_dir() or any(place.rglob("config.json")):
        return None
    found = sorted(place.rglob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(each.name for each in found[:5])
        raise BackboneRefused(
            file, "parameters.model", f"{place} holds several GGUF files: {names}", "Name one of them, with its path"
        )
    return found[0] if found else None


def converted(source: Path, file: Path, *, make: bool = True) -> Path:
    """The directory of a GGUF file's model as transformers saves it; raises BackboneRefused, naming `file`.

    Args:
        make: whether to make it where it is not there yet: it takes a minute, and 4 bytes a weight of disk.
    """
    target = cache_directory() / f"{source.stem}-{_digest(source, cache_directory())}"
    if target.is_dir():
        return target
    if not make:
        problem = f"{source} has not been converted yet"
        raise BackboneRefused(file, "parameters.model", problem, "Serve the backbone once")
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{target}.lock", timeout=WAIT_S)
    try:
        with lock:
            if not target.is_dir():
                _make(source, target, file)
    except Timeout:
        problem = f"another process has been converting {source} for {WAIT_S:g} s"
        remedy = f"Wait until it is done, or end it: it holds {lock.lock_file}"
        raise BackboneRefused(file, "parameters.model", problem, remedy) from None
    return target


def _make(source: Path, target: Path, file: Path) -> None:
    aside = Path(tempfile.mkdtemp(dir=target.parent))
    try:
        _convert(source, aside)
        aside.rename(target)
    except Exception as error:
        raise BackboneRefused(
            file,
            "parameters.model",
            f"transformers cannot read {source}: {type(error).__name__}: {error}",
            'Install what it names: pip install "fmplex[gguf]"; or give a directory of safetensors',
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _convert(source: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # it would fill the server's log
    given = {"gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **given)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # save_pretrained refuses a model that says it is quantised
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    fresh.load_state_dict(loaded.state_dict())
    fresh.generation_config = loaded.generation_config
    fresh.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source.parent, **given).save_pretrained(directory)


def _digest(source: Path, cache: Path) -> str:
    """Of all its bytes. A file that has not been written to since it was last read is not read again.

    What is remembered of it lies in `cache`, named by the file's place, size and times; where nothing can be written
    there, it is read each time.
    """
    told = source.stat()
    seen = f"{source.resolve()} {told.st_size} {told.st_mtime_ns} {told.st_ctime_ns} {told.st_ino}"
    note = cache / f"{source.stem}-{hashlib.sha256(seen.encode()).hexdigest()[:16]}.sha256"
    with contextlib.suppress(OSError):
        if DIGEST.fullmatch(known := note.read_text(encoding="utf-8")):
            return known
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    found = digest.hexdigest()[:16]
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        note.write_text(found, encoding="utf-8")
    return found
